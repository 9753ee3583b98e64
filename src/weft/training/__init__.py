"""Training an adapter with transformers' Trainer: the loop is theirs, the adapter's part is here."""
