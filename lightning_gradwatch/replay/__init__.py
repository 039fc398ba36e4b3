"""Repeats the training step of a bundle, and looks for the operation where it went wrong."""
