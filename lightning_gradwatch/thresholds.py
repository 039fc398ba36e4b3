"""The numbers by which gradients are judged, each once: for the detectors, the verdicts, the
metrics and the figures.

It imports nothing, so that a command that only reads a run log need not load torch or numpy.
What one detector alone uses (its memory, its wording) stays in that detector."""

# How far back a gradient reaches

HORIZON_RATIO = 0.01
"""Share, dimensionless. The gradient horizon is the first lag at which the lagged gradient falls
under it. At 1 % the far timestep no longer moves a weight by a digit that counts beside the near
ones."""

STARVING_SHARE = HORIZON_RATIO
"""Share. A timestep whose total gradient is under this share of the largest one starves."""

FLOOR = 1e-30
"""Ratio. Under it nothing is told apart from underflow in float32, and the growth rate leaves it
out."""

MAX_POINTS = 1024
"""Timesteps or lags. A longer list is thinned to so many in a record, which ``at`` and ``lag_at``
then name: a page shows no more, and a run log stays small."""

# Vanishing

VANISHING_SHARE = 0.5
"""Share of the sequence. A horizon shorter than this is vanishing: half of the timesteps have no
say."""

CALM_SHARE = 0.6
"""Share of the sequence. Vanishing ends where the horizon is so long: it takes less to go on than
to begin."""

SEVERAL = 3
"""Sampled steps in a row. Vanishing, and a loss that reaches few timesteps, is never judged from
fewer while more may come."""

LOW_LOSS = 0.1
"""Share of the first loss. Under it a loss is low: what the task needs is learned, and a short
horizon may be enough."""

LEARNED_LOSS = 0.5
"""Share of its first value to which a loss has fallen where something has been learned; of one
that began under 0 no share tells."""

RISEN_LOSS = 2.0
"""Times the first loss. Over it a loss has risen, and a horizon that shrank meanwhile was not
shortened by learning."""

# Truncation

LONGER_HELPS, NOTHING_LOST = 0.1, 0.01
"""Shares of the gradient over two segments that lie in the one before the cut: from the first on
longer segments keep more of it, under the second they add next to nothing. What lies between them
is told as a number alone."""

# Exploding

EXPLODING_FACTOR = 1 / HORIZON_RATIO
"""Times. Growth on the way back under this is none that counts: the mirror image of the 1 % under
which a gradient is gone."""

CALM_SAMPLES = 2
"""Sampled steps in a row that must be calm for an episode of vanishing or exploding to end."""

# What leaps out of the ordinary of its own run: of growth and of gradient norms alike

ORDINARY_HISTORY = 16
"""Values before a run's own baseline is trusted."""

ORDINARY_SPREAD = 8.0
"""Robust standard deviations of the logarithm that an ordinary value stays within."""

ENOUGH_EVIDENCE = 2.0
"""In units of the bound, on the log scale: two values in a row over it, or one twice as far out."""

# Few timesteps reached

FEW_SHARE = 0.25
"""Share of the timesteps. A direction that the loss reaches at no more of them is barely reached.
"""

# Saturated gates

BLOCKED_SHARE = 0.01
"""Share of the gradient that the loss sends. Where less than this reaches the gates, hardly
anything is learned there."""

SUSPICIOUS_SHARE = 0.1
"""The same share where a closer look at the gates is worth its price; and where large inputs are
the cause, the share under which that is told: standardised inputs would give many times as much,
and such gates never let go by themselves."""

SATURATION_SAMPLES = 2
"""Sampled steps in a row in which it must be so."""

# Padding

PADDING_TIMESTEPS = 3
"""Timesteps. A run of equal inputs shorter than this says nothing …"""

PADDING_SHARE = 0.1
"""Share of the longest sequence. … nor does one shorter than this."""

# The verdict at the end

LAST_SAMPLES = 10
"""Sampled steps. A verdict rests on the median over the last so many: it is about how training
ended up."""

LAST_SHARE = 1 / 3
"""Share of the training's steps. … of those in this last share, so that in a short run the
beginning is not counted to the end."""

HORIZON_VARIES_FACTOR = 1.5
"""Times. A horizon that varies by this factor in the last samples is told with its range …"""

HORIZON_VARIES_TIMESTEPS = 3
"""Timesteps. … if it varies by so many, too."""


def is_few(reached: float, timesteps: float) -> bool:
    """Whether a loss that reaches the first ``reached`` of ``timesteps``, in a direction's own
    order, reaches few of them; a single one of several always is few."""
    return 0 < reached < timesteps and reached <= max(1, FEW_SHARE * timesteps)
