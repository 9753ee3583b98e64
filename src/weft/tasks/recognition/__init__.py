"""What the task of speech is made of: recognizers of both kinds, metrics, and memory."""
