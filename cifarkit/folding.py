"""A network in use, with every BatchNorm that follows a convolution taken into the convolution's kernel."""

from __future__ import annotations

import copy
from typing import Any

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrize import is_parametrized

_NAME = "network"  # what the one that is traced is called meanwhile


def fold_batchnorm(model: nn.Module) -> nn.Module | None:
    """Copy a network for evaluation, with its BatchNorms folded into the convolutions before them.

    In evaluation a BatchNorm multiplies and shifts each channel by constants, which the kernel can do as well, and a
    pass over all activations is saved.

    Returns:
        a copy that gives the same outputs within rounding, in evaluation mode, its weights apart from the model's; or
        None where that cannot be known: ``torch.fx`` cannot follow the forward pass, the model has hooks that a copy
        would not call, or there is nothing to fold.
    """
    if not any(isinstance(part, nn.BatchNorm2d) for part in model.modules()):
        return None
    traced = trace_copy(model)
    return traced if traced is not None and _fold(traced) else None


def trace_copy(model: nn.Module) -> fx.GraphModule | None:
    """Copy a network for evaluation as a graph of its operations, its weights apart from the model's.

    Returns:
        the copy, in evaluation mode; or None if ``torch.fx`` cannot follow the forward pass, or the model has hooks
        that a copy would not call.
    """
    if any(_has_hooks(part) for part in model.modules()):
        return None
    try:
        return trace_on_images(copy.deepcopy(model).eval())
    except Exception:  # whatever a forward pass may raise when it is given proxies; the model itself then does the work
        return None


def trace_on_images(network: nn.Module) -> fx.GraphModule:
    """Return the operations of ``network(images)`` as a graph, whose modules are the network's own, by their names.

    The network, best a copy, is given the tensors that its forward pass makes anew each time, as attributes.
    """
    root = _OnImages(network)
    graph = fx.Tracer().trace(root)
    for node in graph.nodes:
        if node.op not in ("call_module", "get_attr"):
            continue
        target = str(node.target)
        if target == _NAME:  # one layer of PyTorch's, which takes nothing else
            return fx.symbolic_trace(network)
        if not target.startswith(f"{_NAME}."):  # a tensor that the forward pass makes, kept with the one traced
            setattr(network, target, getattr(root, target))
        node.target = target.removeprefix(f"{_NAME}.")
    return fx.GraphModule(network, graph, type(network).__name__)


class _OnImages(nn.Module):
    """Call a network with images alone.

    Traced so, what else it may take, such as labels, has its default, and not a stand-in that is never None.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Any) -> Any:
        return self.network(images)


def _fold(traced: fx.GraphModule) -> int:
    """Fold in place, and return how many were folded."""
    layers, folded = dict(traced.named_modules()), 0
    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    for node in traced.graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        convolution, norm = layers[str(before.target)], layers[str(node.target)]
        if not _can_fold(convolution, norm) or calls.count(before.target) > 1 or calls.count(node.target) > 1:
            continue
        owner, _, name = str(before.target).rpartition(".")
        setattr(layers[owner], name, fuse_conv_bn_eval(convolution, norm))
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
        folded += 1
    traced.recompile()
    return folded


def _can_fold(convolution: nn.Module, norm: nn.Module) -> bool:
    return (
        type(convolution) is nn.Conv2d
        and type(norm) is nn.BatchNorm2d
        and norm.track_running_stats
        and not is_parametrized(convolution)
    )


def _has_hooks(part: nn.Module) -> bool:
    hooks = (*part._forward_hooks.values(), *part._forward_pre_hooks.values())
    return any(not getattr(hook, "only_warns", False) for hook in hooks)
