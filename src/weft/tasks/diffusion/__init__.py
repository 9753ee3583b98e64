"""What the task of pictures is made of: pipelines, the loss, pictures as rows, and grids of pictures."""
