"""``compare_starts``: what each initialisation would give on a model and a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_gradwatch.arguments import check, one_of, whole
from lightning_gradwatch.recurrent.capture.modules import discover
from lightning_gradwatch.starts.comparison import Comparison
from lightning_gradwatch.starts.copies import copied, copied_model, same_randomness
from lightning_gradwatch.starts.initialise import apply_start, fitting
from lightning_gradwatch.starts.known import STARTS
from lightning_gradwatch.starts.measure import Loss, measure
from lightning_gradwatch.starts.row import AS_IT_IS, StartRow


def compare_starts(
    model: nn.Module,
    batch: Any,
    starts: Sequence[str] | None = None,
    *,
    loss: Loss | None = None,
    timesteps: int | None = None,
    max_sequences: int | None = 8,
) -> Comparison:
    """Measure, on one batch and without training, how far the gradient reaches in each recurrent
    layer: as the model is, and with each published initialisation.

    A copy of the model does one forward and backward pass for each start. The model, its
    gradients, buffers, mode and hooks, the batch, and all random generators stay as they are.

    Args:
        model: a LightningModule with automatic optimization, or any module with ``loss``.
        batch: as the training step takes it, on the model's device.
        starts: names out of :data:`STARTS`; by default all that are for one of its modules.
        loss: ``(model, batch)`` → the loss; by default ``model.training_step(batch, 0)``.
        timesteps: for which a start is made; by default, of each module, its longest sequence in
            the batch.
        max_sequences: of the batch that are measured; None takes all.

    Returns:
        a row for each start, module, layer and direction; ``print`` it for a table, which names
        the modules that were not measured, too.

    Raises:
        ValueError: an argument breaks its rule, the model cannot be copied, or no gradient was
            measured in it.
    """
    _check_arguments(model, starts, loss, timesteps, max_sequences)
    run = loss or training_loss
    with same_randomness(model):
        rows = _measured(AS_IT_IS, model, batch, run, max_sequences, None)
        _check_measured(rows, model)
        lengths = {row.module: timesteps or row.timesteps for row in rows}
        for start in starts if starts is not None else fitting(model):
            rows += _measured(start, model, batch, run, max_sequences, lengths)
    missing = [name for name in discover(model) if name not in lengths]
    return Comparison(sorted(rows, key=lambda row: (row.module, row.layer, row.direction)), missing)


def training_loss(model: nn.Module, batch: Any) -> Tensor:
    """What a LightningModule's training step returns."""
    training_step: Any = model.training_step
    returned = training_step(batch, 0) if _takes_index(training_step) else training_step(batch)
    return returned["loss"] if isinstance(returned, Mapping) else returned


def _takes_index(training_step: Any) -> bool:
    code = getattr(getattr(training_step, "__func__", training_step), "__code__", None)
    return code is None or code.co_argcount > 2 or bool(code.co_flags & 0x04)


def _measured(
    start: str,
    model: nn.Module,
    batch: Any,
    loss: Loss,
    max_sequences: int | None,
    timesteps: Mapping[str, int] | None,
) -> list[StartRow]:
    """The rows of one start; with ``timesteps``, of the modules alone that it is for."""
    made = copied_model(model)
    with same_randomness(model):
        names = None if timesteps is None else apply_start(made, start, timesteps)
    with same_randomness(model):  # so that dropout draws the same for each
        rows = measure(start, made, copied("batch", batch, "Give tensors, or containers of them."), loss, max_sequences)
    return [row for row in rows if names is None or row.module in names]


def _check_measured(rows: Sequence[StartRow], model: nn.Module) -> None:
    remedy = (
        "Are its weights frozen, is its output not used in the loss, is it called under no_grad(), or one step at a time with "
        "a detached state?"
    )
    rule = "one in whose recurrent modules a gradient flows back through time"
    check(bool(rows), "model", rule, f"none that was measured in {', '.join(discover(model))}", remedy)


def _check_arguments(
    model: nn.Module, starts: Sequence[str] | None, loss: Loss | None, timesteps: int | None, max_sequences: int | None
) -> None:
    check(isinstance(model, nn.Module), "model", "a torch.nn.Module", type(model).__name__, "Give the network.")  # pyright: ignore[reportUnnecessaryIsInstance]
    for start in starts or ():
        one_of("starts", start, STARTS, "Leave it out to compare all that are for the model.")
    if timesteps is not None:
        whole("timesteps", timesteps, "Leave it out to take the batch's own.")
    if max_sequences is not None:
        whole("max_sequences", max_sequences, "None takes all.")
    remedy = "Give `loss`, a function of model and batch that returns the loss."
    check(
        loss is not None or callable(getattr(model, "training_step", None)),
        "model",
        "a LightningModule, or come with `loss`",
        type(model).__name__,
        remedy,
    )
    automatic = getattr(model, "automatic_optimization", True)
    check(loss is not None or automatic, "model", "one that is optimized automatically", "manual", remedy)
    remedy = "GradWatch() and tap() measure recurrences of one's own."
    check(bool(discover(model)), "model", "one with an nn.RNN, nn.LSTM, nn.GRU or a cell", "none", remedy)
