"""The truth campaign: is every sentence true that GradWatch says of a run?

    python -m benchmarks.campaigns.truth [--runs N] [--seed N] [--kind WORDS] [-j N] [--list]

Each run is a small model drawn at random, trained for a few steps by a real Trainer with ``GradWatch`` and sometimes
``AdaptiveClip``. Some are healthy, some are sick by construction. What is true of a run does not come from GradWatch: every
step that a sentence speaks of is done again in float64 with the recurrent modules unrolled into PyTorch's own cells, and
autograd says what reaches each timestep, directly and by lag.

Every sentence of the closing lines, the warnings and the events (message and remedy) is then read by machine. Columns:

- ``sentences``: read, and held against the truth;
- ``false verdict``: a word that does not hold: healthy, vanishing, "no gradient reached it", a place or a cause that is another;
- ``false number``: a number outside of what the oracle allows. Where one anchor of one loss is followed it allows one number, up to
  rounding; where the figure is a median over several anchors, what the lowest and the highest of them allow;
- ``unfit remedy``: advice that does not help against what is wrong with the run by construction;
- ``miss``: what is wrong by construction, or a recurrence that is not measured, is not told; or a healthy run has a warning;
- ``not judged``: a sentence that no judge knows. New words need a judge first.
"""
