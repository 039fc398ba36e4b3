"""Makes the LightningModule of a bundle: the class that the user names, with the run's own
arguments."""

from __future__ import annotations

import inspect
import re
import tempfile
from collections.abc import Mapping
from typing import Any

import torch

from lightning_gradwatch.replay.target import Target
from lightning_gradwatch.runlog.bundles import BUNDLE_KEY, BundleError, args_to_give
from lightning_gradwatch.trainer.compat import LightningModule, lightning_version

_MOST_TOLD = 2  # tensors that do not fit
_CALLS = ("_instantiator", "_class_path")


def build_module(target: Target, bundle: Mapping[str, Any], arguments: Mapping[str, Any]) -> LightningModule:
    """A module as in the run, with the bundle's weights.

    Args:
        target: a LightningModule's class gets the hyperparameters that the run saved, with
            ``arguments`` over them; a function ``arguments`` alone.
        bundle: the file's content.

    Raises:
        BundleError: it cannot be made so, or the weights do not fit.
    """
    name = getattr(target, "__qualname__", str(target))
    _check_names(target, name, arguments)
    try:
        if isinstance(target, type) and issubclass(target, LightningModule):
            return _from_checkpoint(target, bundle, arguments)
        module = target(**arguments)
        if not isinstance(module, LightningModule):
            raise BundleError(f"`--module` must make a LightningModule; {name} made a {type(module).__name__}.")
        module.load_state_dict(bundle["state_dict"])
    except BundleError:
        raise
    except TypeError as error:
        known = ", ".join(bundle["hyper_parameters"]) or "none, since the module does not call save_hyperparameters()"
        left_out = [at for at in bundle[BUNDLE_KEY]["problems"] if at.startswith("hyper_parameters")]
        hint = f"; it could not hold {', '.join(left_out)}" if left_out else ""
        raise BundleError(
            f"{name} could not be made ({error}). The bundle has these arguments: {known}{hint}. Give the others by --args "
            "'{…}', or name a function that makes the module."
        ) from error
    except Exception as error:  # whatever the user's own class raises
        if "state_dict" not in str(error):
            raise BundleError(f"{name} could not be made ({type(error).__name__}: {error}).") from error
        target_name, saved = (
            bundle[BUNDLE_KEY]["module"],
            bundle["hyper_parameters"] if isinstance(target, type) else (),
        )
        lacking = args_to_give(target, saved)
        raise BundleError(
            f"The bundle's weights do not fit {name} ({_misfit(str(error))}). "
            + (
                f"Give the arguments that the run used: {lacking}."
                if lacking
                else f"Is it the run's own class ({target_name}) with its own arguments?"
            )
        ) from error
    return module


def _from_checkpoint(target: Any, bundle: Mapping[str, Any], arguments: Mapping[str, Any]) -> LightningModule:
    """By Lightning itself, so that the class's own hooks have their say; from a file that holds
    nothing but what is needed.

    ``_instantiator`` and ``_class_path``, by which LightningCLI has a checkpoint say what to call,
    are not handed on.
    """
    hyper_parameters = {name: value for name, value in bundle["hyper_parameters"].items() if name not in _CALLS}
    with tempfile.TemporaryFile() as file:
        checkpoint = {
            "state_dict": bundle["state_dict"],
            "hyper_parameters": hyper_parameters,
            "hparams_name": bundle["hparams_name"],
            "pytorch-lightning_version": lightning_version,
            "epoch": bundle["epoch"],
            "global_step": bundle["global_step"],
        }
        torch.save(checkpoint, file)
        file.seek(0)
        return target.load_from_checkpoint(file, map_location="cpu", **_restricted(), **arguments)


def _restricted() -> dict[str, bool]:
    """Lightning up to 2.5.5 cannot be told to load data alone. It loads unrestricted what was
    written a moment ago: the bundle's content, which was itself read as data alone.
    """
    known = inspect.signature(LightningModule.load_from_checkpoint).parameters
    return {"weights_only": True} if "weights_only" in known else {}


def _misfit(error: str) -> str:
    """What ``load_state_dict`` says of tensors, in short: the first few, and how many more."""
    sizes = re.findall(r"size mismatch for (\S+): .*?torch\.Size\(\[(.*?)\]\).*?torch\.Size\(\[(.*?)\]\)", error)
    misfits = [f"{name}: {_size(saved)} in the bundle, {_size(made)} in the model" for name, saved, made in sizes]
    for kind, where in (("Unexpected", "bundle"), ("Missing", "model")):
        keys = re.search(rf"{kind} key\(s\) in state_dict: (.*?)\. ?$", error, re.MULTILINE)
        misfits += [f"{name} in the {where} only" for name in re.findall(r'"(.*?)"', keys[1] if keys else "")]
    more = f"; and {len(misfits) - _MOST_TOLD} more" if len(misfits) > _MOST_TOLD else ""
    return "; ".join(misfits[:_MOST_TOLD]) + more if misfits else " ".join(error.split())


def _size(numbers: str) -> str:
    return numbers.replace(", ", "×") or "a scalar"


def _check_names(target: Target, name: str, arguments: Mapping[str, Any]) -> None:
    """Lightning would pass over an argument that the class does not take."""
    taken = inspect.signature(target).parameters
    if any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in taken.values()):
        return
    for argument in arguments:
        if argument not in taken:
            raise BundleError(f"`--args` gives {argument!r}, but {name} takes {', '.join(taken) or 'no arguments'}.")
