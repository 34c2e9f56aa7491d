"""Networks for other programs: a folder as Hugging Face's hub lays it out, and files of torch.export and ONNX."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import io
import json
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cifarkit.checks import check_callable
from cifarkit.files import read_file, shown, write_atomically
from cifarkit.training import load_weights, save_weights

Network = TypeVar("Network", bound=nn.Module)

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_LARGEST_CONFIG = 10_000_000  # bytes
_FORMATS = (".pt2", ".onnx")


def save_pretrained(model: nn.Module, folder: str | Path, config: Mapping[str, Any]) -> Path:
    """Write model.safetensors and config.json, the layout of Hugging Face's ``PyTorchModelHubMixin``.

    A class that inherits from the mixin and from the network's class reads the folder by ``from_pretrained``.

    Args:
        model: the network.
        folder: made if absent; the two files replace older ones.
        config: arguments of the network's constructor, of JSON types, such as {"num_classes": 10}. Other facts, class
            names for example, may stand in it under names that are no argument.
    Returns:
        the folder.
    Raises:
        TypeError: if model is no module, or a value of config is of no JSON type.
        ImportError: if the extra for safetensors is not installed.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    folder = Path(folder)
    text = _to_json(config)
    save_weights(model, folder / _WEIGHTS)
    write_atomically(text.encode(), folder / _CONFIG)
    return folder


def load_pretrained(constructor: Callable[..., Network], folder: str | Path, **changes: Any) -> Network:
    """Build a network from the config.json of a folder and load its model.safetensors; it is in evaluation mode.

    Args:
        constructor: of the network, a class or a function such as :func:`cifarkit.models.resnet18`.
        changes: arguments to use instead of those in config.json; names there that are no argument are passed over.
    Raises:
        FileNotFoundError: if one of the two files is missing.
        ValueError: if one is damaged, the weights do not fit, or config.json describes a network larger than they are.
    """
    folder = Path(folder)
    config = read_config(folder)
    names = _argument_names(constructor)
    arguments = {key: value for key, value in config.items() if key in names} | changes
    network = _build(lambda: constructor(**arguments), folder, changes)
    load_weights(network, folder / _WEIGHTS)
    return network.eval()


def _argument_names(constructor: Callable[..., Any]) -> set[str]:
    """Return the names that a constructor takes, those that a class hands on to its bases by ``**`` as well."""
    names: set[str] = set()
    bases = constructor.__mro__[1:] if isinstance(constructor, type) else ()
    for part in (constructor, *(vars(base)["__init__"] for base in bases if "__init__" in vars(base))):
        parameters = inspect.signature(part).parameters.values()
        names |= {item.name for item in parameters if item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD)}
        if all(item.kind != item.VAR_KEYWORD for item in parameters):
            break
    return names - {"self"}


def _build(constructor: Callable[[], Network], folder: Path, changes: Mapping[str, Any]) -> Network:
    """Build a network unless it has more numbers than its file of weights has bytes: it could fill the memory."""
    weights = folder / _WEIGHTS
    described = f"{shown(folder / _CONFIG)}{' with your arguments' if changes else ''} describes a network"
    if not weights.is_file():
        read_file(weights)  # which says what is wrong with it
    numbers, held = _numbers_of(constructor), weights.stat().st_size
    if numbers > held:
        raise ValueError(f"{described} of {numbers} numbers, and {_WEIGHTS} has {held} bytes")
    try:
        return constructor()
    except (RuntimeError, MemoryError, OverflowError) as error:
        raise ValueError(f"{described} that cannot be built: {shown(_first_line(error))}") from error


def _numbers_of(constructor: Callable[[], nn.Module]) -> int:
    """Count a network's numbers without room for them; 0 if its constructor must see some."""
    try:
        with torch.device("meta"):
            sketch = constructor()
    except Exception:  # if it is a fault of the constructor, it shows again when the network is built
        return 0
    return sum(tensor.numel() for tensor in sketch.state_dict().values() if isinstance(tensor, Tensor))


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return the config.json of a folder of :func:`save_pretrained`.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged.
    """
    path = Path(folder) / _CONFIG
    try:
        config = json.loads(read_file(path, _LARGEST_CONFIG))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shown(path)} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{shown(path)} holds a {type(config).__name__} where an object was expected")
    return config


def export_model(
    model: nn.Module, images: Tensor, path: str | Path, *, check: Callable[[Tensor, Tensor], None] | None = None
) -> Path:
    """Write a network as a file that runs without its Python code, on batches of any size.

    The network is exported in evaluation mode, in fp32 and on the CPU, and itself stays as and where it is. Before they
    are written, the bytes of the file are loaded and run on three batch sizes, ONNX by onnxruntime if it is installed,
    else by onnx itself, which is slow.

    Args:
        images: (B, C, H, W) float, transformed as in training; B of at least 2.
        path: ending in .pt2 for ``torch.export`` or .onnx for ONNX, which needs the extra of that name.
        check: (found, expected) -> None, raising where they differ; None allows for 0.1 % of the largest value.
    Returns:
        the path.
    Raises:
        TypeError, ValueError: if an argument does not fit, or the network cannot be exported; the message says why.
        ImportError: if the extra is not installed.
        RuntimeError: if the exported network gives other values.
    """
    path = Path(path)
    if path.suffix not in _FORMATS:
        raise ValueError(f"path={str(path)!r} must end in .pt2 (torch.export) or .onnx")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    if not isinstance(images, Tensor) or not images.is_floating_point():
        raise TypeError(f"images must be a float tensor; got {getattr(images, 'dtype', type(images).__name__)}")
    if images.dim() != 4 or len(images) < 2:
        raise ValueError(f"images must be (B, C, H, W) with B of at least 2; got shape {tuple(images.shape)}")
    if check is not None:
        check_callable("check", check, "give a function of what was found and what was expected")
    if path.suffix == ".onnx":
        _require_onnx()
    example = images.detach().cpu().float()
    to_bytes, read = (_to_bytes, _run_bytes) if path.suffix == ".pt2" else (_to_onnx, _run_onnx)
    with torch.no_grad():
        twin = _copy_in_fp32(model)
        _require_a_tensor(twin, example)
        content = to_bytes(_export(twin, example))
        _compare(read(content), twin, example, check or _require_alike)
    write_atomically(content, path)
    return path


def _copy_in_fp32(model: nn.Module) -> nn.Module:
    """Copy a network to the CPU for evaluation; what is there in fp32 already is shared, as there may be much of it."""
    tensors: dict[int, Tensor] = {}
    others = [item for part in model.modules() for item in vars(part).values() if isinstance(item, Tensor)]
    for tensor in (*model.parameters(), *model.buffers(), *others):  # the last may have a graph, as of weight_norm
        own = tensor.detach().cpu()
        own = own.float() if own.is_floating_point() else own
        tensors[id(tensor)] = nn.Parameter(own, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else own
    try:
        return copy.deepcopy(model, tensors).eval()
    except Exception as error:  # whatever its parts may raise
        raise ValueError(f"{type(model).__name__} cannot be copied to export it: {_first_line(error)}") from error


def _require_a_tensor(model: nn.Module, images: Tensor) -> None:
    try:
        found = model(images)
    except Exception as error:  # whatever a forward pass may raise
        message = f"{type(model).__name__} fails on images of shape {tuple(images.shape)}: {_first_line(error)}"
        raise ValueError(message) from error
    if not isinstance(found, Tensor):
        names = f"{type(model).__name__} returns a {type(found).__name__}"
        raise TypeError(f"{names}; wrap it in a module whose forward returns one tensor")


def _export(model: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """Trace the network with a batch dimension that is free."""
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    try:
        return torch.export.export(model, (images,), dynamic_shapes=shapes)
    except Exception as error:  # whatever the forward pass or the tracer may raise
        raise ValueError(f"{type(model).__name__} cannot be exported: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _compare(exported: Callable[[Tensor], Tensor], model: nn.Module, images: Tensor, check: Any) -> None:
    for batch in (images, images[:1], torch.cat([images, images[:1]])):
        check(exported(batch), model(batch))


def _require_alike(found: Tensor, expected: Tensor) -> None:
    largest = float(expected.abs().max())
    difference = float((found - expected).abs().max())
    if found.shape != expected.shape or not difference <= 1e-3 * max(largest, 1e-3):  # also true for NaN
        raise RuntimeError(f"the exported network differs by {difference:.3g} of {largest:.3g} from the original")


def _to_bytes(program: torch.export.ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _run_bytes(content: bytes) -> Callable[[Tensor], Tensor]:
    return torch.export.load(io.BytesIO(content)).module()


def _to_onnx(program: torch.export.ExportedProgram) -> bytes:
    """Translate to ONNX; input "images", output "logits", weights inside the file."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the translator about itself
        file = Path(folder) / "model.onnx"
        names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
        try:
            torch.onnx.export(program, f=file, dynamo=True, external_data=False, verbose=False, **names)
        except torch.onnx.OnnxExporterError as error:
            raise ValueError(f"the network cannot be written as .onnx: {_why_not_onnx(error)}") from error
        return file.read_bytes()


def _why_not_onnx(error: BaseException) -> str:
    """Return the first line of the innermost cause, as the others are about the translator."""
    while error.__cause__ is not None:
        error = error.__cause__
    reason = _first_line(error)
    advice = "; attention by sorting can be written as .pt2, or else set method = 'dense' on the GraphAttention layers"
    return reason + advice if "searchsorted" in reason else reason


def _run_onnx(content: bytes) -> Callable[[Tensor], Tensor]:
    """Return a function of images that runs the network in the bytes."""
    if importlib.util.find_spec("onnxruntime"):
        runtime = importlib.import_module("onnxruntime")
        session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    else:
        session = importlib.import_module("onnx.reference").ReferenceEvaluator(content)
    return lambda batch: torch.from_numpy(session.run(["logits"], {"images": batch.numpy()})[0])


def _require_onnx() -> None:
    for name in ("onnx", "onnxscript"):  # which torch needs to write the file
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"writing .onnx needs {name}: pip install cifarkit[onnx]")


def _to_json(config: Mapping[str, Any]) -> str:
    if not isinstance(config, Mapping):
        raise TypeError(f"config is a {type(config).__name__}; give a dict of the constructor's arguments")
    for name, value in config.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            advice = "give numbers, text, lists"
            raise TypeError(f"config[{name!r}] is {value!r}, which JSON cannot hold; {advice}") from None
    return json.dumps(dict(config), indent=2, sort_keys=True) + "\n"
