"""Adaptive clipping on recurrent networks: who loses runs, who slows training. `python -m benchmarks.clipping.field`."""
