"""The clip-audit campaign: models that clip in every way, and what is true of each."""
