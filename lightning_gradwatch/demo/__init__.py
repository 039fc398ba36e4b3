"""The demo: two corpora, a recurrent language model, and a run that shows a gradient vanish and
another one explode."""
