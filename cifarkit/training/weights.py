"""The weights of one network, in files of their own or out of the checkpoint of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cifarkit.files import read_file, shown, write_atomically
from cifarkit.training.archive import load_checkpoint, write_checkpoint
from cifarkit.training.kinds import TENSOR, require


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Save a network's weights, as safetensors if the name ends so, else as a plain ``torch.save`` dict.

    Raises:
        ImportError: if the name ends in .safetensors and the extra is not installed.
        TypeError: if model is no module, or keeps something else than tensors by ``get_extra_state``.
    """
    _require_module(model)
    model = getattr(model, "_orig_mod", model)  # of torch.compile, whose names nothing else would find
    state = model.state_dict()
    odd = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
    if odd is not None:
        raise TypeError(f"{odd!r} of the model is a {type(state[odd]).__name__}; files of weights hold tensors alone")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if Path(path).suffix == ".safetensors":
        write_atomically(_safetensors().save(_apart(weights)), path)
    else:
        write_checkpoint(weights, path)


def _require_module(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give the torch.nn.Module, and the path behind it")


def _apart(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of which no two share memory, as tied weights do and safetensors refuses."""
    seen: set[int] = set()
    own = {}
    for name, tensor in weights.items():
        place = tensor.untyped_storage().data_ptr()
        own[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return own


def load_weights(
    model: nn.Module, path: str | Path, *, average: str | None = None, network: str | None = None
) -> nn.Module:
    """Load weights into a network and return it.

    Args:
        model: the network, built like the one that was saved.
        path: a file of :func:`save_weights`, or a checkpoint of a run whose task holds the network.
        average: take the averaged weights of a checkpoint instead: "ema" or "swa", or "ema_2" for the second EMA.
        network: name that the network has in the task of a checkpoint, such as "generator"; None takes the one called
            "model", or else the only one that fits.
    Raises:
        TypeError: if model is no module.
        ValueError: if the file is damaged, or its weights do not fit; the message names the first that does not. Also
            if several networks of a checkpoint fit and none of them is called "model".
    """
    _require_module(model)
    weights = _load_safetensors(Path(path)) if Path(path).suffix == ".safetensors" else load_checkpoint(path)
    if "format_version" in weights:
        try:
            weights = _network_of_run(weights, getattr(model, "_orig_mod", model), path, average, network)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{shown(path)} calls itself the checkpoint of a run and lacks its parts: {error!r}"
            ) from error
    elif average is not None:
        raise ValueError(f"average={average!r}: {shown(path)} holds plain weights and no averaged ones")
    elif network is not None:
        raise ValueError(f"network={network!r}: {shown(path)} holds the weights of one network; leave network out")
    plain = getattr(model, "_orig_mod", model)
    own = plain.state_dict()
    for key in [*own, *weights]:
        sides = (weights, own)
        there, here = (tuple(getattr(side[key], "shape", "?")) if key in side else "absent" for side in sides)
        if there != here:
            raise ValueError(
                f"{shown(path)} does not fit {type(model).__name__}: {key!r} is {there} there and {here} here"
            )
        if isinstance(own[key], Tensor):
            require(weights[key], TENSOR, f"{shown(path)}: {key!r}")
    plain.load_state_dict(weights)
    return model


def _network_of_run(
    state: dict[str, Any], model: nn.Module, path: str | Path, average: str | None, network: str | None
) -> dict[str, Tensor]:
    """Find the weights of one network in a run's checkpoint: the child of the task of that name, or with its keys."""
    tensors: dict[str, Tensor] = state["task"]
    if average is not None:
        found = [item["state"] for item in state["callbacks"] if item["state"].get("kind") == average]
        if not found or not found[0]["updates"]:
            missing = "no average of that name; use 'ema' or 'swa'"
            there = "an average that no update has entered yet" if found else missing
            raise ValueError(f"average={average!r}: {shown(path)} holds {there}")
        tensors = found[0]["averaged"]
    children: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, rest = key.partition(".")
        children.setdefault(name, {})[rest.removeprefix("_orig_mod.")] = tensor  # of torch.compile
    if network is not None:
        if network not in children:
            raise ValueError(f"network={network!r}: {shown(path)} holds the networks {sorted(children)}")
        return children[network]
    own = model.state_dict()
    fitting = [name for name in sorted(children) if children[name].keys() == own.keys()]
    if len(fitting) > 1:
        fitting = [name for name in fitting if _shapes(children[name]) == _shapes(own)] or fitting
    if not fitting and len(children) == 1:
        return next(iter(children.values()))  # whose first key that does not fit is named
    if not fitting:
        raise ValueError(
            f"{shown(path)} holds the networks {sorted(children)}, none of which has the keys of {type(model).__name__}"
        )
    if len(fitting) > 1 and "model" not in fitting:
        raise ValueError(
            f"{shown(path)} holds several networks with the keys of {type(model).__name__}: {fitting}; say which by "
            f"network={fitting[0]!r}"
        )
    return children["model" if "model" in fitting else fitting[0]]


def _shapes(tensors: dict[str, Any]) -> list[Any]:
    return [getattr(tensors[name], "shape", None) for name in sorted(tensors)]


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    library, content = _safetensors(), read_file(path)
    try:
        return dict(library.load(content))
    except Exception as error:  # the library's own errors do not name the file
        raise ValueError(f"{shown(path)} is damaged or no safetensors file: {shown(str(error))}") from error


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("reading and writing .safetensors needs: pip install cifarkit[safetensors]") from error
    return safetensors.torch
