"""Data sets: rows from files and hub ids, and text rows as token ids with the labels that are learned."""
