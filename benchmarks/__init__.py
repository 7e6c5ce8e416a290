"""Parity, timing and reports."""
