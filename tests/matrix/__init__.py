"""The tests, run with the versions that people have."""
