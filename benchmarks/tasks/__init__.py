"""What `docs/results.md` was measured on: rows of public data sets, and the settings of a run for each."""
