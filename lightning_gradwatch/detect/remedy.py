"""What helps against a gradient that vanishes or explodes through time, by what was seen: the cell,
the depth, the size, the truncation.
"""

from __future__ import annotations

import math

from lightning_gradwatch.events import Moment
from lightning_gradwatch.growth import levels_off
from lightning_gradwatch.plain import count_of
from lightning_gradwatch.profile import Floats, Profile, growth_rate
from lightning_gradwatch.recurrent.scan import KIND as SCAN
from lightning_gradwatch.thresholds import NOTHING_LOST

DEEP = 3
"""Layers from which on normalisation between them is worth a word."""

_LINES = "`gradwatch explain VANISHING_HIDDEN_GRADIENT` prints the lines that do it"

_PLAIN = (
    "A plain recurrence multiplies the gradient by the same matrix at every step, with slopes under 1: use a gated cell, nn.LSTM or nn.GRU "
    "(Hochreiter and Schmidhuber 1997; Cho et al. 2014), or begin with a recurrent weight that is orthogonal (Henaff et al. 2016) or, with "
    f"relu, the identity (Le et al. 2015); {_LINES}."
)
_OWN_CELL = (
    "What this cell passes on from step to step shrinks: give it an additive path through time, a gate that can stay open, as an LSTM has "
    "(Hochreiter and Schmidhuber 1997), or an orthogonal recurrent weight (Henaff et al. 2016)."
)
_CUT = (
    "Its cell state comes in without a graph at every step, made anew or detached, so that the gradient goes back through h alone: "
    "pass c on to the next step together with h, as the module returned it. Until then a forget-gate bias has nothing to keep."
)

_OPEN = (
    "It falls at the first lags and hardly fades after that ({rate:+.2g} nats per timestep over all lags; a gate that is opened for "
    "{timesteps} timesteps gives {opened:+.2g}): the gate that keeps the state is open already, and opening it further helps little. "
    "What arrives is small but steady, and an optimizer that rescales it, as Adam does, may learn from it: go by the loss."
)

_SCAN = (
    "Each channel keeps |a| of its gradient from one timestep to the one before{size}: begin with decays nearer to 1, of which "
    "exp(−1/{timesteps}) = {decay:.4g} keeps a third over {timesteps} timesteps. In Mamba, S4 and S5 the decay is exp(Δ·A): a smaller Δ "
    "(dt_min, dt_max), or A nearer to 0 (Gu and Dao 2023). In a minGRU or an HGRN it is a gate: a bias with which it stays open. In an LRU "
    "begin with eigenvalues in a ring nearer to 1, r_min and r_max (Orvieto et al. 2023)."
)

SPOILT_WEIGHT = (
    "The weight was spoilt before this step, by an optimizer step with a gradient, a learning rate or a state that was not finite, "
    "or by a bad checkpoint: go back to a checkpoint from before it. {clipper} skips steps whose gradients are not finite."
)
"""Where a weight is the cause, whatever it spoilt first."""

LOST_REMEDY = (
    "Go back to a checkpoint from before, or begin anew, with a lower learning rate: the weights have left where the gradient reached "
    "further."
)
"""Where a gradient that once reached far is short and the loss has risen meanwhile: nothing
but the weights' way made it so.
"""


_CARRIED = "if the state that comes in is carried over, as in truncated backpropagation"
"""A state without a graph may as well be data."""

RISEN_REMEDY = (
    "Begin anew with a learning rate ten times lower, or let it rise slowly (warm-up): within a few steps the run has left "
    "where it began. {clip} clips single steps, and does not shorten those of Adam and its like."
)
"""Where norm and loss rise within the first steps."""


def leap_remedy(largest: float, moment: Moment) -> str:
    """What helps against a step whose loss leapt, and whose norm is no explosion by itself;
    ``largest`` is the largest norm of the steps before.
    """
    return (
        f"{_batch(moment)}Leave it out, or take a loss that an outlier moves less (huber_loss instead of mse_loss). A fixed "
        f"clipping level bounds what such a step does to the weights: {moment.tools.clip(f'policy=Norm({largest:.2g})')}."
    )


def _batch(moment: Moment) -> str:
    """Where to look, if that is known."""
    if moment.batch_idx is None:
        return ""
    return f"Look at batch {moment.batch_idx} of epoch {moment.epoch} for an outlier. "


def jump_remedy(ordinary: float | None, moment: Moment) -> str:
    """What helps against a norm that jumps at that moment; ``ordinary`` is the
    run's median norm, if it is known.
    """
    level = f", here about {ordinary:.2g}" if ordinary else ""
    return (
        f"{_batch(moment)}Use {moment.tools.clip()}, which brings such a step back to its ordinary size{level}; a fixed clipping "
        "level between half and ten times the average norm does too (Pascanu et al. 2013). Lower the learning rate, "
        "or let it rise more slowly, if it happens again."
    )


def vanishing_remedy(profile: Profile, lagged: Floats) -> str:
    """What helps a layer whose gradient horizon is short, the likeliest first."""
    of_cell = _of_scan(profile) if profile.kind == SCAN else _of_cell(profile.kind, profile.real_timesteps)
    of_cell = _CUT if profile.cell_cut else of_cell
    rate = growth_rate(lagged)
    if profile.kind in ("LSTM", "GRU") and not profile.cell_cut and levels_off(rate, profile.real_timesteps):
        of_cell = _OPEN.format(rate=rate, timesteps=profile.real_timesteps, opened=-1 / profile.real_timesteps)
    parts = [*_against_padding(profile), of_cell]
    if profile.layers >= DEEP:
        parts.append(
            f"With {profile.layers} layers on top of one another, normalise between them (layer normalisation, Ba et al. 2016), or add "
            "residual connections."
        )
    if profile.truncated and profile.cut_share is not None and profile.cut_share < NOTHING_LOST:
        parts.append("Longer segments do not help before the horizon is longer.")
    parts.append("Clipping does not help; a shorter way from cause to effect (attention, skipping steps) does.")
    return " ".join(parts)


def _of_scan(profile: Profile) -> str:
    """What the decays can be given, beside what they are."""
    timesteps = max(profile.real_timesteps, 2)
    known = profile.channels is not None and math.isfinite(profile.channels.size)
    size = f", here {profile.channels.size:.3g} (median over the channels)" if profile.channels and known else ""
    return _SCAN.format(size=size, timesteps=timesteps, decay=math.exp(-1 / timesteps))


def _of_cell(kind: str, timesteps: int) -> str:
    """What the cell can be given, for sequences of so many timesteps."""
    if kind not in ("LSTM", "GRU"):
        return _PLAIN if kind == "RNN" else _OWN_CELL
    bias = math.log(max(timesteps, math.e))
    number, outlasts = f"ln {timesteps} = {bias:.1f}", count_of(timesteps, "timestep")
    if kind == "LSTM":
        return (
            f"Its cell state fades by the forget gate at every step, and PyTorch starts that gate half closed: begin with a forget-gate "
            f"bias of {number}, with which a third of the state outlasts {outlasts} (Jozefowicz et al. 2015; Tallec and Ollivier 2018). "
            "It is the second quarter of bias_ih, and PyTorch adds bias_hh to it: set that one's to 0, in every layer and direction; "
            f"{_LINES}."
        )
    return (
        f"Its state is kept by the update gate, which PyTorch starts half closed (h = (1−z)·n + z·h): begin with an update-gate bias of "
        f"+{number}, with which a third of the state outlasts {outlasts} (Tallec and Ollivier 2018). It is the second third of "
        f"bias_ih, and PyTorch adds bias_hh to it: set that one's to 0, in every layer and direction; {_LINES}."
    )


def _against_padding(profile: Profile) -> list[str]:
    """What helps where the gradient has to cross padding, named first: nothing else does."""
    if not profile.ends.padded:
        return []
    if not profile.fused:
        way = "read each sequence's state at its last real step, or keep the state where a mask says padding"
    elif profile.direction == "reverse":
        way = "pad at the end instead of the begin, and pack the sequences (pack_padded_sequence(x, lengths, enforce_sorted=False))"
    else:
        way = (
            "pack the sequences (torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False), with batch_first as in the "
            "module), so that h_n is the state after each one's last real step; or read the output there"
        )
    return [f"If the equal inputs are padding, {way}. Only if they belong to the task:"]


def exploding_remedy(profile: Profile, lagged: Floats, *, in_total: bool) -> str:
    """What helps a layer whose gradient grows through time, the likeliest first.

    Args:
        lagged: its lagged gradient ``(lag,)``.
        in_total: whether the total gradient outgrows its bound as well, or
            that of single timesteps only.
    """
    parts: list[str] = []
    if in_total:
        total = profile.total_median()
        near = float(total[-1] if profile.direction == "forward" else total[0])
        sizes = f" (at its largest {float(total.max()):.2g}, nearest to the loss {near:.2g})"
        parts.append(
            f"The gradient as a whole has outgrown its ordinary size{sizes}: {{clip}} brings such steps back to it (Pascanu et al. "
            "2013). Lower the learning rate if it stays so."
        )
    else:
        parts.append(
            "Only what single timesteps send back grows so; in the sum over all of them it does not show yet. Lower the learning rate, and "
            "let {clip} stand by (Pascanu et al. 2013)."
        )
    if profile.kind == SCAN:
        parts.append(
            "A scan enlarges what it passes back only where |a| is over 1: keep it under, by the way it is made (a sigmoid, "
            "exp(−softplus(…)), exp(−exp(ν)) as in an LRU, Orvieto et al. 2023)."
        )
    elif profile.kind == "RNN":
        parts.append(
            "The recurrent weight enlarges what it passes back: begin with an orthogonal one of gain 1 or less (Henaff et al. 2016), "
            "or use a gated cell."
        )
    elif profile.kind in ("LSTM", "GRU"):
        parts.append(
            "In a gated cell it is the recurrent weights that are large: begin with smaller ones where they are so from the start; "
            "weight decay keeps them small (Pascanu et al. 2013, L2)."
        )
    half = _outgrown_at(lagged)
    shorter = count_of(max(half, 1), "timestep")
    if profile.truncated:
        parts.append(
            f"Shorter segments end it sooner: {shorter} instead of {profile.timesteps} keep the growth under 10, {_CARRIED}."
        )
    elif 0 < half < len(lagged) - 1 and profile.kind != SCAN:
        parts.append(
            f"Truncating backpropagation after {shorter} would keep the growth under 10 (Williams and Peng 1990)."
        )
    if profile.layers >= DEEP:
        parts.append(f"With {profile.layers} layers, normalise between them (Ba et al. 2016).")
    return " ".join(parts)


def _outgrown_at(lagged: Floats) -> int:
    """The last lag before the growth exceeds 10."""
    over = [lag for lag, ratio in enumerate(lagged.tolist()) if ratio > 10]
    return over[0] - 1 if over else len(lagged) - 1
