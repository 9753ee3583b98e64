"""What the tasks of language models share: rows, answers, metrics, distance and memory."""
