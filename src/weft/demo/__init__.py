"""The main job on real data that is on every machine: two adapters, from Python's own standard library."""
