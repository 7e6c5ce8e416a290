"""A graph -> an engine, and running it."""
