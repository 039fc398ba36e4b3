"""Which initialisation reaches how far, and whether it helps."""
