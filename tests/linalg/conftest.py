"""Property tests here are the same on every run, and slow machines are not failures."""

from hypothesis import settings

settings.register_profile("linalg", deadline=None, derandomize=True)
settings.load_profile("linalg")
