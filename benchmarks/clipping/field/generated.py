"""Problems whose data are generated: polyphony, sketches, a likelihood without a bound, rare large returns."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

KEYS, BARS, BEAT = 24, 12, 4
_CHORDS = torch.tensor([[0, 4, 7], [5, 9, 12], [7, 11, 14], [9, 12, 16]])  # I, IV, V, vi
_NEXT = torch.tensor([[0.1, 0.4, 0.4, 0.1], [0.4, 0.1, 0.4, 0.1], [0.7, 0.1, 0.1, 0.1], [0.1, 0.6, 0.2, 0.1]])
"""From which chord to which."""


def polyphony(count: int) -> Tensor:
    """``(time, batch, key)``: a chord for each bar, and a note of it or beside it on each beat."""
    chord = torch.zeros(count, dtype=torch.long)
    key = torch.randint(3, (count,))
    frames: list[Tensor] = []
    each = torch.arange(count)
    for _ in range(BARS):
        for beat in range(BEAT):
            frame = torch.zeros(count, KEYS)
            if beat % 2 == 0:
                frame.scatter_(1, _CHORDS[chord] + key[:, None], 1.0)
            tone = _CHORDS[chord, torch.randint(3, (count,))] + key + torch.randint(-1, 2, (count,))
            frame[each, tone.clamp(0, KEYS - 1)] = 1.0
            frames.append(frame)
        chord = torch.multinomial(_NEXT[chord], 1)[:, 0]
    return torch.stack(frames)


class Polyphony(nn.Module):
    """Which keys sound next (Boulanger-Lewandowski et al. 2012, on data of our own)."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.RNN(KEYS, 64), nn.Linear(64, KEYS)

    def loss(self, count: int) -> Tensor:
        """Negative log-likelihood of a frame, in nats."""
        x = polyphony(count)
        logits = self.head(self.rnn(x[:-1])[0])
        return functional.binary_cross_entropy_with_logits(logits, x[1:], reduction="none").sum(-1).mean()


def strokes(count: int, length: int = 40) -> Tensor:
    """``(time, batch, 3)``: steps along circles, straight lines and corners, and whether the pen is lifted."""
    kind, size = torch.randint(3, (count,)), 0.3 + torch.rand(count)
    angle, turn = 2 * math.pi * torch.rand(count), 0.1 + 0.4 * torch.rand(count)
    out: list[Tensor] = []
    for step in range(length):
        corner = (torch.rand(count) < 0.15) & (kind == 2)
        angle = angle + torch.where(kind == 0, turn, 0.0) + torch.where(corner, math.pi / 2, 0.0)
        lifted = torch.full((count,), float(step % 10 == 9))
        x, y = size * torch.cos(angle), size * torch.sin(angle)
        straight = kind == 1
        out.append(torch.stack([torch.where(straight, size, x), torch.where(straight, 0.0, y), lifted], -1))
    return torch.stack(out)


class Sketch(nn.Module):
    """A mixture density network on strokes (Graves 2013, §4): its likelihood has no bound either."""

    def __init__(self, parts: int = 5) -> None:
        super().__init__()
        self.parts = parts
        self.rnn, self.head = nn.LSTM(3, 64), nn.Linear(64, 5 * parts + 1)

    def loss(self, count: int) -> Tensor:
        """Negative log-likelihood of a step, in nats."""
        x = strokes(count)
        out = self.head(self.rnn(x[:-1])[0])
        weight, mx, my, sx, sy = out[..., :-1].chunk(5, -1)
        target = x[1:]
        log = sum(
            -0.5 * ((target[..., k, None] - mean) * torch.exp(-scale)) ** 2 - scale - 0.5 * math.log(2 * math.pi)
            for k, (mean, scale) in enumerate(((mx, sx), (my, sy)))
        )
        likely = torch.logsumexp(functional.log_softmax(weight, -1) + cast("Tensor", log), -1)
        pen = functional.binary_cross_entropy_with_logits(out[..., -1], target[..., 2], reduction="none")
        return (pen - likely).mean()


class Variational(nn.Module):
    """A recurrent VAE (Chung et al. 2015) on data three quarters of which are constant: its scale shrinks to 0."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.z = nn.Linear(2, 16), nn.Linear(4, 16)
        self.prior, self.encoder, self.decoder = nn.Linear(16, 8), nn.Linear(32, 8), nn.Linear(32, 4)
        self.rnn = nn.GRU(32, 16)

    def loss(self, count: int) -> Tensor:
        """Negative evidence bound of a sequence, in nats."""
        data = torch.full((20, count, 2), 0.5)
        rare = torch.rand(count) < 0.25
        data[:, rare] = torch.randn(20, int(rare.sum()), 2)
        state, loss = data.new_zeros(1, count, 16), data.new_zeros(())
        for x in data:
            seen, before = functional.relu(self.x(x)), state[-1]
            prior_mean, prior_scale = self.prior(before).chunk(2, -1)
            mean, scale = self.encoder(torch.cat([seen, before], -1)).chunk(2, -1)
            prior_scale, scale = functional.softplus(prior_scale), functional.softplus(scale)
            drawn = functional.relu(self.z(mean + scale * torch.randn_like(scale)))
            out_mean, out_scale = self.decoder(torch.cat([drawn, before], -1)).chunk(2, -1)
            out_scale = functional.softplus(20 * out_scale)
            _, state = self.rnn(torch.cat([seen, drawn], -1)[None], state)
            apart = (scale**2 + (mean - prior_mean) ** 2) / (2 * prior_scale**2)
            loss = loss + (torch.log(prior_scale) - torch.log(scale) + apart - 0.5).sum(-1).mean()
            loss = loss + (torch.log(out_scale) + ((x - out_mean) / out_scale) ** 2 / 2).sum(-1).mean()
        return loss


CUES, WAIT, JACKPOT = 4, 15, 300.0


class Policy(nn.Module):
    """REINFORCE (Williams 1992): remember a cue; right is worth 1, and once in 200 episodes 300."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(CUES + 1, 32), nn.Linear(32, CUES)

    def _logits(self, cue: Tensor) -> Tensor:
        x = torch.zeros(WAIT, len(cue), CUES + 1)
        x[0, torch.arange(len(cue)), cue] = 1.0
        x[1:, :, -1] = torch.rand(WAIT - 1, len(cue))
        return self.head(self.rnn(x)[0][-1])

    def loss(self, count: int) -> Tensor:
        """Of the policy gradient."""
        cue = torch.randint(CUES, (count,))
        chosen = torch.distributions.Categorical(logits=self._logits(cue))
        action = chosen.sample()
        worth = torch.where(torch.rand(count) < 1 / 200, JACKPOT, 1.0)
        gained = torch.where(action == cue, worth, 0.0) - 0.25 * worth
        return -(chosen.log_prob(action) * gained).mean()

    @torch.no_grad()
    def regret(self, count: int) -> float:
        """How often the best action is not the cue's."""
        cue = torch.randint(CUES, (count,))
        return float((self._logits(cue).argmax(-1) != cue).float().mean())
