"""What the demo says, in plain words. Every sentence is chosen by the figures that were
measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning_gradwatch.demo import vanishing
from lightning_gradwatch.demo.accuracy import Accuracy
from lightning_gradwatch.demo.exploding import LEARNING_RATE, SPECTRAL_RADIUS, Explosion
from lightning_gradwatch.demo.vanishing import Memory
from lightning_gradwatch.events import EventKind
from lightning_gradwatch.plain import plain, plain_lines
from lightning_gradwatch.report.extra import require
from lightning_gradwatch.runlog.summary import LayerSummary

if TYPE_CHECKING:
    from lightning_gradwatch.demo.artefacts import Artefacts
    from lightning_gradwatch.demo.data import TextData
    from lightning_gradwatch.demo.own_text import OwnText, TextOptions
    from lightning_gradwatch.demo.training import Training

NAMES = {"rnn": "vanilla RNN", "gru": "GRU", "lstm": "LSTM"}
_MOST_EVENTS = 3
_LEARNED = 0.9  # accuracy from which a network is said to have learned a distance


def make_console() -> Any:
    """The standard output."""
    return require("rich.console").Console(highlight=False)


def vanishing_begins(console: Any, steps: int) -> None:
    """Say what act 1 is about."""
    console.rule("1. A gradient that vanishes")
    console.print(
        "Three language models learn sentences like “the [b]cat[/b] , which already ate the dogs , [b]was[/b] full .” "
        "(generated; 1 to 40 words from noun to verb, nouns of either number in between). All alike: "
        f"{vanishing.HIDDEN} hidden units, {steps} steps of Adam at {vanishing.LEARNING_RATE:g}, gradients clipped at "
        f"{vanishing.MAX_NORM:g}, PyTorch's own start but for {vanishing.GATE_BIAS:g} added to the bias of the gate that "
        "keeps the state (LSTM, GRU)."
    )


def memories(console: Any, results: Sequence[Memory]) -> None:
    """The one table, and what it shows."""
    table = require("rich.table").Table(
        title="gradient horizon, and accuracy at was/were by distance of the subject (in words)",
        box=require("rich.box").SIMPLE_HEAD,
    )
    table.add_column("network")
    table.add_column("horizon", justify="right")
    table.add_column("at end", justify="right")
    for accuracy in results[0].accuracies:
        table.add_column("{}–{}".format(*accuracy.bucket), justify="right")
    for memory in results:
        reach = _words(memory.reach.horizon, memory.reach.censored)
        table.add_row(NAMES[memory.cell], reach, _horizon(memory.summary), *map(_cell, memory.accuracies))
    console.print(table)
    console.print(
        "Horizon: how many words back from the verb its gradient falls under 1 %; the longest of all samples in training, and at its "
        "end the median of the last ones. "
        f"Accuracy: {results[0].accuracies[0].verbs} new sentences each, half of them plural, so guessing gives 50 %."
    )
    for memory in results:
        console.print(f"• {_memory_in_words(memory)}")


def exploding_begins(console: Any) -> None:
    """Say what act 2 is about."""
    console.rule("2. A gradient that explodes")
    console.print(
        "A vanilla RNN (relu) reads the sources of Python's standard library character by character. Its recurrent weight "
        f"starts with a spectral radius of {SPECTRAL_RADIUS:g} and SGD's learning rate is {LEARNING_RATE:g}: both too large. "
        "The same training twice, same seed: without and with AdaptiveClip()."
    )


def explosion(console: Any, result: Explosion) -> None:
    """What became of both trainings."""
    console.print(f"• Without clipping: {_fate(result.bare, result)}")
    for event in result.bare.run.event_records[:_MOST_EVENTS]:
        console.print(f"    GradWatch, step {event['step']}: {event['message']}", markup=False)
    console.print(f"• With AdaptiveClip(): {_clips(result.clipped)} {_fate(result.clipped, result)}")


def text_begins(console: Any, options: TextOptions, data: TextData) -> None:
    """Say what is trained on what."""
    source = plain(", ".join(options.files)) or "the sources of Python's standard library"
    console.rule("GradWatch on your own text" if options.files else "GradWatch on real text")
    console.print(
        f"{NAMES[options.cell]}, {options.layers} × {options.hidden} hidden units, learns {len(data.training):,} characters of "
        f"{source}; {len(data.held_out):,} are held out.",
        markup=False,
    )


def own_text(console: Any, result: OwnText) -> None:
    """Perplexity, horizons, and what the model writes."""
    for summary in result.summaries:
        console.print(f"• {summary.place}: horizon {_horizon(summary)} timesteps. {summary.sentence}", markup=False)
    console.print(f"• With AdaptiveClip(): {_clips(result.training)} {_fate(result.training, result)}", markup=False)
    if result.sample:
        console.print("What it writes after the beginning of the held-out text:")
        console.print(plain_lines(result.sample), markup=False, style="italic")


def artefacts(console: Any, files: Artefacts, seconds: float) -> None:
    """Where everything lies."""
    console.rule()
    lie = (
        ("run logs", files.folder),
        ("sentence", files.sentence),
        ("picture", files.picture),
        ("report", files.report),
    )
    for what, where in lie:
        if where is not None:
            console.print(f"{what + ':':<10}{plain(str(where))}", markup=False, soft_wrap=True)
    console.print(f"{seconds:.0f} s in all. Each run log can be read with gradwatch events and gradwatch report.")


def _memory_in_words(memory: Memory) -> str:
    name, reach = f"[b]{NAMES[memory.cell]}[/b]", memory.reach
    learned = [accuracy for accuracy in memory.accuracies if accuracy.share >= _LEARNED]
    guessed = [accuracy for accuracy in memory.accuracies if accuracy.at_chance]
    # The state that has just read the noun lies distance − 1 steps behind the one that predicts the
    # verb.
    beyond = [accuracy for accuracy in memory.accuracies if not reach.censored and accuracy.bucket[0] > reach.horizon]
    if len(learned) == len(memory.accuracies):
        return (
            f"{name} carries the subject across every distance. Its gradient reached {'at least ' if reach.censored else ''}"
            f"{reach.horizon} words back (at step {reach.step}); what has been learned stays, however far it reaches now."
        )
    if len(guessed) == len(memory.accuracies):
        return f"{name} has learned nothing of it: it guesses at every distance ({_percents(guessed)})."
    if beyond and all(accuracy in guessed for accuracy in beyond):
        near = [accuracy for accuracy in learned if accuracy not in beyond]
        return (
            f"{name} falls to chance past its horizon: in no sample did its gradient reach further than {reach.horizon} words, and "
            f"beyond them it guesses ({_percents(beyond)})"
            + (f"; nearer it is right ({_percents(near)})." if near else ".")
        )
    return f"{name} has learned some of it: {_percents(memory.accuracies)}, with a horizon of {reach.horizon} words at most."


def _fate(training: Training, scale: Explosion | OwnText) -> str:
    step, perplexity = training.first_nonfinite_step, training.perplexity
    steps = len(training.losses)
    if not training.weights_finite:
        since = f"the loss is {training.losses[step]:g} from step {step} on and" if step is not None else "at end"
        return f"{since} weights are NaN: the run is lost (stopped after {steps} steps)."
    if not math.isfinite(perplexity):
        return f"after {steps} steps the perplexity is {perplexity:g} although the weights are finite."
    against = (
        f"perplexity {perplexity:.1f} on held-out text after {steps} steps; knowing only how frequent each character is "
        f"would give {scale.unigram:.1f}, knowing nothing {scale.characters}"
    )
    return f"{'it learns' if perplexity < scale.unigram else 'it has not learned'}: {against}."


def _clips(training: Training) -> str:
    steps = training.run.step_records
    clipped = sum((record.get("clip_coefficient") or 1.0) < 1.0 for record in steps)
    skipped = sum(event["kind"] == EventKind.STEP_SKIPPED for event in training.run.event_records)
    return f"{clipped} of {len(steps)} steps clipped, {skipped} skipped;"


def _horizon(summary: LayerSummary) -> str:
    return "–" if summary.horizon is None else _words(summary.horizon, summary.horizon_censored)


def _words(horizon: int, censored: bool) -> str:
    return f"≥ {horizon}" if censored else str(horizon)


def _cell(accuracy: Accuracy) -> str:
    style = "green" if accuracy.share >= _LEARNED else "red" if accuracy.at_chance else "yellow"
    return f"[{style}]{accuracy.share:.0%}[/{style}]"


def _percents(accuracies: Sequence[Accuracy]) -> str:
    return ", ".join(f"{accuracy.share:.0%}" for accuracy in accuracies)
