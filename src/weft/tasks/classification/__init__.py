"""What the task of classification is made of: models with a head, and metrics."""
