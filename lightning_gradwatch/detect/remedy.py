"""What helps against a gradient that vanishes or explodes through time, by what was seen: the cell, the depth, the size, the truncation."""

from __future__ import annotations

from lightning_gradwatch.events import Moment
from lightning_gradwatch.profile import Floats, Profile

DEEP = 3
"""Layers from which on normalisation between them is worth a word."""

_VANISHING = {
    "RNN": "A plain recurrence multiplies the gradient by the same matrix at every step, with slopes under 1: use a gated cell, "
    "nn.LSTM or nn.GRU (Hochreiter and Schmidhuber 1997; Cho et al. 2014), or begin with a recurrent weight that is orthogonal "
    "(Henaff et al. 2016) or, with relu, the identity (Le et al. 2015).",
    "LSTM": "Its cell state fades by the forget gate at every step, and PyTorch starts that gate half closed: begin with a "
    "forget-gate bias of 1 or more (Gers et al. 2000; Jozefowicz et al. 2015), chosen by the length to remember "
    "(Tallec and Ollivier 2018).",
    "GRU": "Its state is kept by the update gate, which PyTorch starts half closed: begin with an update-gate bias (b_iz + b_hz) of "
    "1 or more, chosen by the length to remember (Tallec and Ollivier 2018).",
}
_OWN_CELL = (
    "What this cell passes on from step to step shrinks: give it an additive path through time, a gate that can stay open, as an LSTM has "
    "(Hochreiter and Schmidhuber 1997), or an orthogonal recurrent weight (Henaff et al. 2016)."
)


SPOILT_WEIGHT = (
    "The weight was spoilt before this step, by an optimizer step with a gradient, a learning rate or a state that was not finite, "
    "or by a bad checkpoint: go back to a checkpoint from before it. AdaptiveClip skips steps whose gradients are not finite."
)
"""Where a weight is the cause, whatever it spoilt first."""


def jump_remedy(ordinary: float | None, moment: Moment) -> str:
    """What helps against a norm that jumps at that moment; ``ordinary`` is the run's median norm, if it is known."""
    batch = (
        "" if moment.batch_idx is None else f"Look at batch {moment.batch_idx} of epoch {moment.epoch} for an outlier. "
    )
    level = f", here about {ordinary:.2g}" if ordinary else ""
    return (
        f"{batch}Use AdaptiveClip(), which brings such a step back to its ordinary size{level}; a fixed clipping level between half "
        "and ten times the average norm does too (Pascanu et al. 2013). Lower the learning rate, or let it rise more slowly, "
        "if it happens again."
    )


def vanishing_remedy(profile: Profile, lagged: Floats) -> str:
    """What helps a layer whose gradient horizon is short, the likeliest first."""
    parts = [_VANISHING.get(profile.kind, _OWN_CELL)]
    if profile.layers >= DEEP:
        parts.append(
            f"With {profile.layers} layers on top of one another, normalise between them (layer normalisation, Ba et al. 2016), or add "
            "residual connections."
        )
    if profile.truncated:
        parts.append("Longer segments do not help before the horizon is longer.")
    else:
        parts.append("Clipping does not help; a shorter way from cause to effect (attention, skipping steps) does.")
    return " ".join(parts)


def exploding_remedy(profile: Profile, lagged: Floats, *, in_total: bool) -> str:
    """What helps a layer whose gradient grows through time, the likeliest first.

    Args:
        lagged: its lagged gradient ``(lag,)``.
        in_total: whether the total gradient outgrows its bound as well, or that of single timesteps only.
    """
    parts: list[str] = []
    if in_total:
        total = profile.total_median()
        near = float(total[-1] if profile.direction == "forward" else total[0])
        sizes = f" (at its largest {float(total.max()):.2g}, nearest to the loss {near:.2g})"
        parts.append(
            f"The gradient as a whole has outgrown its ordinary size{sizes}: AdaptiveClip() brings such steps back to it (Pascanu et al. "
            "2013). Lower the learning rate if it stays so."
        )
    else:
        parts.append(
            "Only what single timesteps send back grows so; in the sum over all of them it does not show yet. Lower the learning rate, and "
            "let AdaptiveClip() stand by (Pascanu et al. 2013)."
        )
    if profile.kind == "RNN":
        parts.append(
            "The recurrent weight enlarges what it passes back: begin with an orthogonal one of gain 1 or less (Henaff et al. 2016), "
            "or use a gated cell."
        )
    elif profile.kind in ("LSTM", "GRU"):
        parts.append(
            "In a gated cell it is the recurrent weights that have grown: weight decay on them keeps them small (Pascanu et al. 2013, L2)."
        )
    half = _outgrown_at(lagged)
    if profile.truncated:
        parts.append(
            f"Shorter segments end it sooner: {max(half, 1)} timesteps instead of {profile.timesteps} keep the growth under 10."
        )
    elif 0 < half < len(lagged) - 1:
        parts.append(
            f"Truncating backpropagation after {half} timesteps would keep the growth under 10 (Williams and Peng 1990)."
        )
    if profile.layers >= DEEP:
        parts.append(f"With {profile.layers} layers, normalise between them (Ba et al. 2016).")
    return " ".join(parts)


def _outgrown_at(lagged: Floats) -> int:
    """The last lag before the growth exceeds 10."""
    over = [lag for lag, ratio in enumerate(lagged.tolist()) if ratio > 10]
    return over[0] - 1 if over else len(lagged) - 1
