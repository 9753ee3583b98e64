"""What an adapter is like, in numbers and pictures."""
