"""Clipping through time against models unrolled with PyTorch's own cells, where a tensor hook on each state clips."""

# Over 300 lines: one backward pass, and all that it is held against.
from __future__ import annotations

import copy
import gc
import io
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_gradwatch.recurrent import tap
from lightning_gradwatch.recurrent.control.bounded_backward import Rule
from lightning_gradwatch.recurrent.control.through_time import ThroughTime
from lightning_gradwatch.recurrent.limit import Limit
from tests.cases import Case, cases
from tests.oracles import unroll
from tests.sweeps import masks_of

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}
NEVER = 1e30


def clipping(bound: float):
    """The slow and obvious: one sequence's gradient of one state, ``(1, width)``, brought to the bound."""

    def hook(gradient: Tensor) -> Tensor:
        norm = float(gradient.double().norm())
        return gradient * (bound / norm) if norm > bound else gradient

    return hook


def leaves_of(case: Case) -> tuple[list[Tensor], tuple[Tensor | None, Tensor | None]]:
    sequences = [x.requires_grad_() for x in case.sequences()]
    h0, c0 = (None if state is None else state.requires_grad_() for state in case.states())
    return sequences, (h0, c0)


def gradients_of(module: nn.Module, sequences, states) -> dict[str, Tensor]:
    named = {name: p.grad for name, p in module.named_parameters()}
    named |= {f"x{j}": x.grad for j, x in enumerate(sequences)}
    named |= {name: state.grad for name, state in zip(("h0", "c0"), states, strict=True) if state is not None}
    return {name: torch.zeros(()) if g is None else g for name, g in named.items()}


def fused(case: Case, rule: Rule | None) -> tuple[dict[str, Tensor], list[Tensor], Tensor]:
    """Gradients, outputs and the generator state of the forward; PyTorch's own without a rule."""
    module = case.module()
    sequences, states = leaves_of(case)
    rng = torch.get_rng_state()
    hooks = ThroughTime(rule) if rule else None
    if hooks:
        hooks.attach(module)
    output, state = module(*case.inputs(sequences, states))
    h_n, c_n = state if case.mode == "LSTM" else (state, None)
    outputs = [case.output_of(output, j) for j in range(len(case.lengths))]
    loss = sum(case.loss_of(outputs[j], case.state_of(h_n, j), case.state_of(c_n, j)) for j in range(len(outputs)))
    loss.backward()
    if hooks:
        hooks.detach()
    return gradients_of(module, sequences, states), [o.detach() for o in outputs], rng


def unrolled(case: Case, bound: float, rng: Tensor) -> dict[str, Tensor]:
    """The same from single cells with a hook on every h and c."""
    module = case.module()
    sequences, states = leaves_of(case)
    masks = masks_of(case, rng)
    for j, x in enumerate(sequences):
        start = [None if state is None else state[:, j] for state in states]
        model = unroll(module, x, *start, masks[j] if masks else None)
        for state in [s for layer in (*model.h, *model.c) for direction in layer for s in direction]:
            state.register_hook(clipping(bound))
        case.loss_of(model.output, model.h_n, model.c_n if case.mode == "LSTM" else None).backward()
    return gradients_of(module, sequences, states)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, gradient in expected.items():
        scale = max(float(gradient.abs().max()), 1e-30)
        error = float((found[name] - gradient).abs().max()) / scale
        assert error <= tolerance, f"{name}: off by {error:.2g} of {scale:.2g}"


@given(case=cases(), bound=st.sampled_from([0.01, 0.3, 2.0, NEVER]))
@settings(max_examples=120, deadline=None)
def test_it_is_what_tensor_hooks_on_unrolled_cells_do(case: Case, bound: float) -> None:
    """Every parameter's, input's and initial state's gradient agrees, over kinds, layers, directions, layouts and losses."""
    found, outputs, rng = fused(case, Rule(Limit(bound)))
    _, plain, _ = fused(case, None)
    assert all(torch.equal(a, b) for a, b in zip(outputs, plain, strict=True))
    assert_same(found, unrolled(case, bound, rng), TOLERANCE[case.dtype] * 100)


@given(case=cases(dtype=torch.float32))
@settings(max_examples=60, deadline=None)
def test_without_anything_to_clip_it_is_pytorchs_backward(case: Case) -> None:
    """A bound that nothing reaches leaves PyTorch's own gradients, to rounding."""
    assert_same(fused(case, Rule(Limit(NEVER)))[0], fused(case, None)[0], TOLERANCE[torch.float32])


@pytest.mark.parametrize("mode", ["RNN_TANH", "RNN_RELU", "LSTM", "GRU"])
def test_an_exploding_sequence_is_held_and_leaves_the_others_alone(mode: str) -> None:
    """No state's gradient exceeds the bound, whatever its weights do to it; the other sequences' gradients are untouched."""
    case = Case(mode=mode, lengths=(40, 40), layout="batch_first", gain=4.0, loss="last", seed=3)
    bound = 1.0
    module, x = case.module(), torch.stack(case.sequences()).requires_grad_()
    hooks = ThroughTime(Rule(Limit(bound)))
    hooks.attach(module)
    weight = torch.tensor([1e-9, 1e9], dtype=torch.float64)
    output, _ = module(x)
    (output[:, -1].sum(1) * weight).sum().backward()
    hooks.detach()
    assert x.grad is not None
    reach = max(
        float(torch.linalg.matrix_norm(p.detach(), 2))
        for n, p in module.named_parameters()
        if "_ih" in n and p.dim() == 2
    )
    assert float(x.grad.norm(dim=-1).max()) <= 2 * bound * reach
    plain = case.module()
    y = x.detach().clone().requires_grad_()
    (plain(y)[0][:, -1].sum(1) * weight).sum().backward()
    assert y.grad is not None
    if float(y.grad[0].norm(dim=-1).max()) < bound / 10:
        torch.testing.assert_close(x.grad[0], y.grad[0], rtol=1e-9, atol=0)


@pytest.mark.parametrize("make", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
@pytest.mark.parametrize("bound", [0.05, NEVER])
def test_a_cell_in_a_loop_is_held_by_hooks(make, bound: float) -> None:
    """A loop over a cell and the fused module of the same weights get the same gradients."""
    torch.manual_seed(0)
    cell = make(3, 4).double()
    module = {nn.RNNCell: nn.RNN, nn.GRUCell: nn.GRU, nn.LSTMCell: nn.LSTM}[make](3, 4).double()
    module.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    hooks = ThroughTime(Rule(Limit(bound)))
    model = nn.ModuleList([cell, module])
    hooks.attach(model)
    state, made = None, []
    for step in x:
        state = cell(step, state)
        made.append(state[0] if isinstance(state, tuple) else state)
    weight = torch.randn(6, 2, 4, dtype=torch.float64)
    ((torch.stack(made) * weight).sum() + (module(x)[0] * weight).sum()).backward()
    hooks.detach()
    for name, parameter in cell.named_parameters():
        fused_one = module.get_parameter(f"{name}_l0").grad
        torch.testing.assert_close(parameter.grad, fused_one, rtol=1e-10, atol=1e-13)


def test_a_tap_is_held() -> None:
    """A marked state of a recurrence of one's own gets a gradient within the bound."""
    weight = torch.full((3, 3), 2.0, requires_grad=True)
    hooks = ThroughTime(Rule(Limit(0.5)))
    hooks.attach(nn.Linear(1, 1))
    h = first = torch.ones(2, 3, requires_grad=True) * 1
    first.retain_grad()
    for _ in range(5):
        h = tap(h @ weight)
    h.sum().backward()
    hooks.detach()
    assert first.grad is not None
    assert float(first.grad.norm(dim=-1).max()) <= 0.5 * float(torch.linalg.matrix_norm(weight.detach(), 2)) * 1.001


def test_a_module_fed_step_by_step_is_held_as_one_sequence() -> None:
    """Called one timestep at a time, with its state handed on, the gradients are those of one call."""
    case = Case(mode="LSTM", lengths=(6, 6), num_layers=1)
    hooks, grads = ThroughTime(Rule(Limit(0.2))), []
    for pieces in (1, 6):
        module = case.module()
        hooks.attach(module)
        state, made = None, []
        for part in case.inputs()[0].chunk(pieces):
            output, state = module(part, state)
            made.append(output)
        torch.cat(made).square().sum().backward()
        grads.append([p.grad for p in module.parameters()])
        hooks.detach()
    for one, many in zip(*grads, strict=True):
        torch.testing.assert_close(one, many, rtol=1e-9, atol=1e-12)


def test_what_is_not_finite_stays_so() -> None:
    """A NaN or inf from the loss reaches the weights as something not finite, so that the step can be skipped."""
    for poison in (float("nan"), float("inf")):
        module, hooks = Case().module(), ThroughTime(Rule(Limit(1.0)))
        hooks.attach(module)
        (module(*Case().inputs())[0][0, 0, 0] * poison).backward()
        hooks.detach()
        assert not all(bool(p.grad.isfinite().all()) for p in module.parameters() if p.grad is not None)


def test_the_bound_is_in_the_unit_of_the_loss() -> None:
    """A loss that a gradient scaler multiplied is clipped as the unscaled one."""
    grads = []
    for factor in (1.0, 1024.0):
        module, limit = Case().module(), Limit(0.1)
        limit.factor = torch.tensor(factor)
        hooks = ThroughTime(Rule(limit))
        hooks.attach(module)
        (module(*Case().inputs())[0].square().sum() * factor).backward()
        hooks.detach()
        grads.append([p.grad / factor for p in module.parameters() if p.grad is not None])
    for plain, scaled in zip(*grads, strict=True):
        torch.testing.assert_close(plain, scaled, rtol=1e-9, atol=0)


def test_frozen_weights_and_evaluation_are_left_alone() -> None:
    """Without a gradient PyTorch's output is returned itself; frozen weights stay without gradient."""
    module, hooks = Case().module(), ThroughTime(Rule(Limit(0.1)))
    hooks.attach(module)
    with torch.no_grad():
        assert module(*Case().inputs())[0].grad_fn is None
    module.weight_hh_l0.requires_grad_(False)
    module(*Case().inputs())[0].sum().backward()
    hooks.detach()
    assert module.weight_hh_l0.grad is None
    assert module.weight_ih_l0.grad is not None


@pytest.mark.parametrize("make", [nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_a_module_in_eval_mode_is_held_too(make: type[nn.Module]) -> None:
    """Who puts a module in eval mode, for its dropout say, may train it all the same."""
    torch.manual_seed(0)
    module, x = make(3, 4), torch.randn(5, 3)
    module.eval()
    hooks, grads = ThroughTime(Rule(Limit(1e-3))), []
    for held in (False, True):
        module.zero_grad()
        if held:
            hooks.attach(module)
        output = module(x)
        (output if isinstance(output, Tensor) else output[0]).square().sum().backward()
        grads.append(max(float(p.grad.norm()) for p in module.parameters() if p.grad is not None))
    hooks.detach()
    assert hooks.seen
    assert grads[1] < 0.1 * grads[0]


@pytest.mark.parametrize("mode", ["RNN_TANH", "RNN_RELU", "LSTM", "GRU"])
@pytest.mark.parametrize("layout", ["time_major", "packed"])
def test_a_model_may_change_what_it_gets_in_place(mode: str, layout: str) -> None:
    """The gradients are those of the same change out of place."""
    case, grads = Case(mode=mode, lengths=(6, 6), layout=layout), []
    for in_place in (False, True):
        module, hooks = case.module(), ThroughTime(Rule(Limit(0.2)))
        hooks.attach(module)
        output, state = module(*case.inputs())
        output = output.data if layout == "packed" else output
        h_n, *c_n = state if mode == "LSTM" else (state,)
        changed = [t.mul_(0.5) if in_place else t * 0.5 for t in (output, h_n, *c_n)]
        sum(t.square().sum() for t in changed).backward()
        hooks.detach()
        grads.append([p.grad for p in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_parametrized_weights_get_their_gradients() -> None:
    """Weight normalisation on the recurrent weight trains through our backward."""
    grads = []
    for bound in (None, NEVER):
        module = Case().module()
        nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
        hooks = ThroughTime(Rule(Limit(bound or 1.0)))
        if bound:
            hooks.attach(module)
        module(*Case().inputs())[0].square().sum().backward()
        hooks.detach()
        grads.append([p.grad for p in module.parameters()])
    for plain, ours in zip(*grads, strict=True):
        torch.testing.assert_close(plain, ours, rtol=1e-9, atol=1e-12)


def test_nothing_is_left_behind() -> None:
    """Hooks come off, a copy made meanwhile is inert, the model saves, and no graph outlives its loss."""
    module, hooks = Case().module(), ThroughTime(Rule(Limit(0.1)))
    hooks.attach(module)
    copied = copy.deepcopy(module)
    torch.save(module, io.BytesIO())
    assert "Bounded" not in str(copied(*Case().inputs())[0].grad_fn)
    gc.disable()
    try:
        output, _ = module(*Case().inputs())
        node = weakref.ref(output)
        output.sum().backward()
        del output
        assert node() is None
    finally:
        gc.enable()
    hooks.detach()
    assert not module._forward_hooks
    assert not module._forward_pre_hooks
    assert "Bounded" not in str(module(*Case().inputs())[0].grad_fn)


class OwnForward(nn.LSTM):
    def forward(self, x):  # type: ignore[override]
        return super().forward(x)[0]


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (OwnForward(2, 2), "has a forward of its own"),
        (torch.jit.script(nn.LSTM(2, 2)), "TorchScript"),
        (nn.LSTM(2, 2, num_layers=2, dropout=0.5, device="meta"), "dropout between its layers"),
        (torch.compile(nn.LSTMCell(2, 2)), "is compiled"),
    ],
)
def test_what_cannot_be_held_is_refused(model: nn.Module, match: str) -> None:
    """One error names the module, the reason and a remedy, and no hook stays."""
    hooks = ThroughTime(Rule(Limit(1.0)))
    with pytest.raises(ValueError, match=match):
        hooks.attach(nn.ModuleDict({"rnn": model}))
    hooks.detach()


def test_a_second_derivative_is_refused() -> None:
    """A gradient penalty through it is an error, not a wrong number."""
    module, hooks = Case().module(), ThroughTime(Rule(Limit(1.0)))
    hooks.attach(module)
    x = Case().inputs()[0].requires_grad_()
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
    hooks.detach()


def test_dropout_between_layers_needs_the_forwards_own_masks() -> None:
    """The masks come from the generator's state at the forward, whatever was drawn since; the generator stays where it was."""
    case = replace(Case(), num_layers=3, dropout=0.5, lengths=(7, 7))
    torch.manual_seed(7)
    found, _, rng = fused(case, Rule(Limit(0.2)))
    assert_same(found, unrolled(case, 0.2, rng), 1e-9)
