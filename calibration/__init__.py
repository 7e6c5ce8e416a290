"""Data -> lengths and batches."""
