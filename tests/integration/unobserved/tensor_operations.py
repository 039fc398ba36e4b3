"""Recurrences that are written in tensor operations, and networks that only look like one. Each is a module whose forward takes
inputs ``(batch, time, WIDTH)``, with ``tap`` or something that stands in for it.
"""

# Over 300 lines: a gallery of small networks, alike in form, of which the tests choose.
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Tap = Callable[..., Tensor]
WIDTH = 8


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) / shape[0] ** 0.5)


class Net(nn.Module):
    """Parts by name, and a forward."""

    def __init__(self, run: Callable[[Any, Tensor, Tap], Tensor], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor, tap: Tap = lambda h, name: h) -> Tensor:
        return self.run(self, x, tap)


def linear() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH)


def zeros(x: Tensor, *more: int) -> Tensor:
    return torch.zeros(len(x), WIDTH, *more)


def plain(net: Any, x: Tensor, tap: Tap) -> Tensor:
    h = zeros(x)
    for t in range(x.shape[1]):
        h = tap(torch.tanh(x[:, t] @ net.W + h @ net.U), name="mine")
    return h


def of_layers(net: Any, x: Tensor, tap: Tap) -> Tensor:
    h = zeros(x)
    for x_t in x.unbind(1):
        h = tap(torch.tanh(net.W(x_t) + net.U(h)), name="mine")
    return h


def concatenated(net: Any, x: Tensor, tap: Tap) -> Tensor:
    h, states = zeros(x), []
    for t in range(x.shape[1]):
        h = tap(torch.tanh(net.both(torch.cat([x[:, t], h], 1))), name="mine")
        states.append(h)
    return torch.stack(states, 1)


def lstm(net: Any, x: Tensor, tap: Tap) -> Tensor:
    h = c = zeros(x)
    for t in range(x.shape[1]):
        i, f, g, o = (x[:, t] @ net.W + h @ net.U + net.b).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = tap(o.sigmoid() * c.tanh(), name="mine")
    return h


def gru_into_a_buffer(net: Any, x: Tensor, tap: Tap) -> Tensor:
    h, out = zeros(x), torch.zeros_like(x)
    for t in range(x.shape[1]):
        z = torch.sigmoid(x[:, t] @ net.Wz + h @ net.Uz)
        h = tap((1 - z) * torch.tanh(x[:, t] @ net.W + h @ net.U) + z * h, name="mine")
        out[:, t] = h
    return out


def moving_average(net: Any, x: Tensor, tap: Tap) -> Tensor:
    z, h = net.W(x), zeros(x)
    for t in range(x.shape[1]):
        h = tap(0.9 * h + 0.1 * z[:, t], name="mine")
    return h


def trained_average(net: Any, x: Tensor, tap: Tap) -> Tensor:
    h = zeros(x)
    for t in range(x.shape[1]):
        h = tap(torch.lerp(x[:, t], h, net.a.sigmoid()), name="mine")
    return h


def fast_weights(net: Any, x: Tensor, tap: Tap) -> Tensor:
    s, outputs = zeros(x, WIDTH), []
    for t in range(x.shape[1]):
        s = tap(0.9 * s + net.k(x[:, t])[:, :, None] * net.v(x[:, t])[:, None], name="mine")
        outputs.append(torch.bmm(s, net.q(x[:, t])[:, :, None])[..., 0])
    return torch.stack(outputs, 1)


def linear_attention(net: Any, x: Tensor, tap: Tap) -> Tensor:
    k, v, q = net.k(x), net.v(x), net.q(x)
    s, outputs = zeros(x, WIDTH), []
    for t in range(x.shape[1]):
        s = tap(s + k[:, t, :, None] * v[:, t, None], name="mine")
        outputs.append(torch.einsum("bij,bi->bj", s, q[:, t]))
    return torch.stack(outputs, 1)


def delta_rule(net: Any, x: Tensor, tap: Tap) -> Tensor:
    k, v = functional.normalize(net.k(x), dim=-1), net.v(x)
    s, outputs = zeros(x, WIDTH), []
    for t in range(x.shape[1]):
        wrong = v[:, t] - torch.einsum("bij,bi->bj", s, k[:, t])
        s = tap(s + k[:, t, :, None] * wrong[:, None], name="mine")
        outputs.append(s.sum(1))
    return torch.stack(outputs, 1)


def forward_algorithm(net: Any, x: Tensor, tap: Tap) -> Tensor:
    scores = net.W(x)
    alpha = scores[:, 0]
    for t in range(1, x.shape[1]):
        alpha = tap(torch.logsumexp(alpha[:, :, None] + net.U, 1) + scores[:, t], name="mine")
    return alpha


def scaled_weights(net: Any, x: Tensor, tap: Tap) -> Tensor:
    h = zeros(x)
    for t in range(x.shape[1]):
        h = tap(torch.tanh(x[:, t] @ (0.5 * net.W) + h @ (0.5 * net.U)), name="mine")
    return h


@torch.jit.script
def _step(x: Tensor, h: Tensor, w: Tensor, u: Tensor) -> Tensor:
    return torch.tanh(x @ w + h @ u)


def scripted_step(net: Any, x: Tensor, tap: Tap) -> Tensor:
    h = zeros(x)
    for t in range(x.shape[1]):
        h = tap(_step(x[:, t], h, net.W, net.U), name="mine")
    return h


RECURRENCES: dict[str, Callable[[], Net]] = {
    "products": lambda: Net(plain, W=weight(WIDTH, WIDTH), U=weight(WIDTH, WIDTH)),
    "linear layers": lambda: Net(of_layers, W=linear(), U=linear()),
    "one layer for input and state": lambda: Net(concatenated, both=nn.Linear(2 * WIDTH, WIDTH)),
    "an LSTM by hand": lambda: Net(lstm, W=weight(WIDTH, 4 * WIDTH), U=weight(WIDTH, 4 * WIDTH), b=weight(4 * WIDTH)),
    "a GRU by hand": lambda: Net(gru_into_a_buffer, **{n: weight(WIDTH, WIDTH) for n in ("W", "U", "Wz", "Uz")}),
    "a moving average": lambda: Net(moving_average, W=linear()),
    "a trained average": lambda: Net(trained_average, a=weight(WIDTH)),
    "fast weights": lambda: Net(fast_weights, k=linear(), v=linear(), q=linear()),
    "linear attention": lambda: Net(linear_attention, k=linear(), v=linear(), q=linear()),
    "the delta rule": lambda: Net(delta_rule, k=linear(), v=linear()),
    "the forward algorithm": lambda: Net(forward_algorithm, W=linear(), U=weight(WIDTH, WIDTH)),
    "weights scaled on the spot": lambda: Net(scaled_weights, W=weight(WIDTH, WIDTH), U=weight(WIDTH, WIDTH)),
    "a scripted function": lambda: Net(scripted_step, W=weight(WIDTH, WIDTH), U=weight(WIDTH, WIDTH)),
}
"""By what they are; each has one recurrence and taps its state as ``mine``."""


def in_log_space(net: Any, x: Tensor, tap: Tap) -> Tensor:
    """minGRU's: the logarithms of decays are summed, those of inputs joined by logcumsumexp."""
    k, z = net.W(x), net.V(x)
    keep = -functional.softplus(k)
    h = (keep.cumsum(1) + (functional.logsigmoid(k) + z - keep.cumsum(1)).logcumsumexp(1)).exp()
    return tap(h, decay=keep.exp(), name="mine")


def as_a_matrix(net: Any, x: Tensor, tap: Tap) -> Tensor:
    """Mamba-2's: the decay from each timestep to each later one, as the exponential of a sum."""
    keep = functional.logsigmoid(net.W(x))
    total = keep.cumsum(1)
    future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)[None, :, :, None]
    between = (total[:, :, None] - total[:, None]).masked_fill(future, -torch.inf).exp()
    return tap(torch.einsum("btsh,bsh->bth", between, net.V(x)), decay=keep.exp(), name="mine")


def by_products(net: Any, x: Tensor, tap: Tap) -> Tensor:
    keep = 0.5 + 0.5 * torch.sigmoid(net.W(x))
    products = keep.cumprod(1)
    return tap(products * (net.V(x) / products).cumsum(1), decay=keep, name="mine")


class PairScan(torch.autograd.Function):
    """As the kernels of packages: one function over all timesteps."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        states = [b[:, 0]]
        for t in range(1, b.shape[1]):
            states.append(a[:, t] * states[-1] + b[:, t])
        h = torch.stack(states, 1)
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, h = ctx.saved_tensors
        flows = [grad[:, -1]]
        for t in range(grad.shape[1] - 2, -1, -1):
            flows.insert(0, grad[:, t] + a[:, t + 1] * flows[0])
        flow = torch.stack(flows, 1)
        return flow * torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], 1), flow


def by_a_kernel(net: Any, x: Tensor, tap: Tap) -> Tensor:
    keep = torch.sigmoid(net.W(x))
    return tap(PairScan.apply(keep, net.V(x)), decay=keep, name="mine")


SCANS: dict[str, Callable[[], Net]] = {
    "logcumsumexp": lambda: Net(in_log_space, W=linear(), V=linear()),
    "the exponential of a cumulative sum": lambda: Net(as_a_matrix, W=linear(), V=linear()),
    "cumprod": lambda: Net(by_products, W=linear(), V=linear()),
    "PairScan": lambda: Net(by_a_kernel, W=linear(), V=linear()),
}
"""Diagonal recurrences over all timesteps at once, by the operation; each has one, and gives its
states to ``tap`` as ``mine``.
"""


def transformer(net: Any, x: Tensor, tap: Tap) -> Tensor:
    return net.body(x)


def tied(net: Any, x: Tensor, tap: Tap) -> Tensor:
    words = (x[..., 0] > 0).long()
    return net.body(net.words(words)) @ net.words.weight.t()


def triplets(net: Any, x: Tensor, tap: Tap) -> Tensor:
    a, b, c = (net.body(x[:, t]) for t in range(3))
    return functional.triplet_margin_loss(a, b, c) + functional.triplet_margin_loss(a, c, b)


def all_pairs(net: Any, x: Tensor, tap: Tap) -> Tensor:
    made = [net.body(x[:, t]) for t in range(6)]
    return sum((made[i] * made[j]).sum(1).mean() for i in range(6) for j in range(i))  # type: ignore[return-value]


def gradient_penalty(net: Any, x: Tensor, tap: Tap) -> Tensor:
    point = x[:, 0].clone().requires_grad_()
    (slope,) = torch.autograd.grad(net.body(point).sum(), point, create_graph=True)
    return net.body(x[:, 1]).mean() - net.body(x[:, 2]).mean() + (slope.norm(2, 1) - 1).square().mean()


def summed_losses(net: Any, x: Tensor, tap: Tap) -> Tensor:
    total = torch.zeros(())
    for t in range(x.shape[1]):
        total = total + net.body(x[:, t]).square().mean()
    return total


def sums_over_time(net: Any, x: Tensor, tap: Tap) -> Tensor:
    return net.first(x).cumsum(1).softmax(-1) + net.first(x).exp()


def fixed_kernel(net: Any, x: Tensor, tap: Tap) -> Tensor:
    """A decay that no data changes is a convolution's kernel."""
    kernel = torch.nn.functional.logsigmoid(net.a).expand(x.shape[1], -1).cumsum(0).exp()
    return torch.fft.irfft(torch.fft.rfft(x, 2 * x.shape[1], 1) * torch.fft.rfft(kernel, 2 * x.shape[1], 0), dim=1)


def growing_list(net: Any, x: Tensor, tap: Tap) -> Tensor:
    made = x[:, :0]
    for t in range(x.shape[1]):
        made = torch.cat([made, net.body(x[:, t])[:, None]], 1)
    return made


def buffer(net: Any, x: Tensor, tap: Tap) -> Tensor:
    out, z = torch.zeros_like(x), net.first(x)
    for t in range(x.shape[1]):
        out[:, t] = net.body(z[:, t])
    return out


def pooled(net: Any, x: Tensor, tap: Tap) -> Tensor:
    total, z = zeros(x), net.body(x)
    for t in range(x.shape[1]):
        total = total + z[:, t]
    return total / x.shape[1]


def shared_scale(net: Any, x: Tensor, tap: Tap) -> Tensor:
    for layer in net.layers:
        x = x + torch.relu(layer(x * net.scale))
    return x


def stacked_weights(net: Any, x: Tensor, tap: Tap) -> Tensor:
    for i in range(len(net.W)):
        x = x + torch.relu(x @ net.W[i])
    return x


def dense(net: Any, x: Tensor, tap: Tap) -> Tensor:
    made = [net.first(x)]
    for layer in net.layers:
        made.append(torch.relu(layer(torch.cat(made, -1))))
    return made[-1]


def styled(net: Any, x: Tensor, tap: Tap) -> Tensor:
    styles, h = net.first(x[:, 0]).view(len(x), len(net.layers), WIDTH), x[:, 1]
    for i, layer in enumerate(net.layers):
        h = torch.relu(layer(h) * (1 + styles[:, i]))
    return h


def experts(net: Any, x: Tensor, tap: Tap) -> Tensor:
    shares, out = net.first(x).softmax(-1), torch.zeros_like(x)
    for i, expert in enumerate(net.layers):
        out = out + shares[..., i : i + 1] * expert(x)
    return out


def images(net: Any, x: Tensor, tap: Tap) -> Tensor:
    h, levels = x[:, None], []
    for down in net.downs:
        levels.append(h)
        h = torch.relu(down(h))
    for up in net.ups:
        h = torch.relu(up(torch.cat([h, levels.pop()], 1)))
    return h


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)


def perceptron(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(linear(), *(middle or (nn.ReLU(),)), nn.Linear(WIDTH, WIDTH))


def layers(count: int = 8, width: Callable[[int], int] = lambda i: WIDTH) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(width(i), WIDTH) for i in range(count))


def convolutions(channels: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Conv2d(channels if i or channels > 1 else 1, 1, 3, padding=1) for i in range(5))


NONE: dict[str, Callable[[], Net]] = {
    "a transformer": lambda: Net(transformer, body=encoder()),
    "tied embeddings": lambda: Net(tied, words=nn.Embedding(2, WIDTH), body=encoder()),
    "triplets": lambda: Net(triplets, body=perceptron()),
    "all pairs": lambda: Net(all_pairs, body=perceptron()),
    "a gradient penalty": lambda: Net(gradient_penalty, body=perceptron(nn.Tanh(), linear(), nn.Tanh())),
    "losses summed over time": lambda: Net(summed_losses, body=perceptron()),
    "outputs listed over time": lambda: Net(growing_list, body=perceptron()),
    "outputs in a buffer": lambda: Net(buffer, body=perceptron(), first=linear()),
    "outputs averaged over time": lambda: Net(pooled, body=perceptron()),
    "sums over time": lambda: Net(sums_over_time, first=linear()),
    "a convolution with a kernel that decays": lambda: Net(fixed_kernel, a=weight(WIDTH)),
    "layers that share a scale": lambda: Net(shared_scale, layers=layers(), scale=weight(1)),
    "the weights of all layers in one": lambda: Net(stacked_weights, W=weight(8, WIDTH, WIDTH)),
    "a dense network": lambda: Net(dense, first=linear(), layers=layers(width=lambda i: WIDTH * (i + 1))),
    "layers with styles": lambda: Net(styled, first=nn.Linear(WIDTH, 8 * WIDTH), layers=layers()),
    "experts": lambda: Net(experts, first=linear(), layers=layers()),
    "a convolutional encoder and decoder": lambda: Net(images, downs=convolutions(1), ups=convolutions(2)),
}
"""Networks without any recurrence."""
