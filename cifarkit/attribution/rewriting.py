"""A copy of a network in which every call of a non-linearity is a module of its own, as DeepLift needs it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from cifarkit.attribution.rules import MaxPool, Rescale
from cifarkit.folding import trace_on_images

_CAPTUM_RULES = (nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus)
_POINTWISE_MODULES = (
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Hardtanh,
    nn.ReLU6,
    nn.SELU,
    nn.CELU,
    nn.Softsign,
    nn.LogSigmoid,
    nn.Tanhshrink,
)
_MODULE_OF = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}  # functions without settings
_POINTWISE_NAMES = {
    "abs",
    "celu",
    "clamp",
    "elu",
    "exp",
    "gelu",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "leaky_relu",
    "log",
    "logsigmoid",
    "mish",
    "relu6",
    "selu",
    "silu",
    "softplus",
    "softsign",
    "sqrt",
    "square",
}
_LINEAR_MODULES = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.dropout._DropoutNd,
    nn.Linear,
    nn.Identity,
    nn.Flatten,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Upsample,
    nn.ZeroPad2d,
)
_MAX_POOLS = (nn.MaxPool2d, nn.AdaptiveMaxPool2d)


def separate_nonlinearities(model: nn.Module) -> nn.Module | None:
    """Copy a network and give each call of an activation or max-pool, functional ones too, a module with a rule.

    Returns:
        a copy whose weights are apart from the model's, or None if ``torch.fx`` cannot follow the forward pass.
    """
    try:
        traced = trace_on_images(copy.deepcopy(model).eval())
    except Exception:  # whatever a forward pass may raise when it is given proxies
        return None
    modules, with_captums_rule = dict(traced.named_modules()), set()
    for number, node in enumerate(list(traced.graph.nodes)):
        rule = _module_rule(modules[str(node.target)]) if node.op == "call_module" else _function_rule(node)
        if rule is None:
            continue
        name = f"nonlinearity_{number}"
        traced.add_module(name, rule)
        if isinstance(rule, MaxPool):
            rule.ties_to_image = _operand(node) in with_captums_rule
        with traced.graph.inserting_before(node):
            operand = traced.graph.call_function(_own_tensor, (_operand(node),))
            call = traced.graph.call_module(name, (operand,))
        node.replace_all_uses_with(call)
        if isinstance(rule, (*_CAPTUM_RULES, MaxPool)):
            with_captums_rule.add(call)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def without_rule(model: nn.Module) -> list[str]:
    """Name the kinds of modules that may do something non-linear for which there is no rule."""
    known = (*_CAPTUM_RULES, *_POINTWISE_MODULES, *_LINEAR_MODULES, *_MAX_POOLS)
    leaves = (part for part in model.modules() if not list(part.children()))
    return sorted({type(part).__name__ for part in leaves if not isinstance(part, known)})


def _own_tensor(values: Tensor) -> Tensor:
    """Give a module an input of its own: Captum changes the gradient of the input, which others may use as well."""
    return values.view_as(values)


def _operand(node: fx.Node) -> Any:
    return node.args[0] if node.args else node.kwargs.get("input")


def _module_rule(module: nn.Module) -> nn.Module | None:
    if type(module) in (*_CAPTUM_RULES, *_POINTWISE_MODULES):
        own = copy.deepcopy(module)
        if hasattr(own, "inplace"):
            own.inplace = False  # type: ignore[assignment]  # the rules need what went in
        return own if isinstance(own, _CAPTUM_RULES) else Rescale(own)
    if isinstance(module, _MAX_POOLS) and not module.return_indices:
        pool: Any = copy.deepcopy(module)
        pool.return_indices = True
        return MaxPool(pool.forward)  # the method, so that Captum does not find the module in it
    return None


def _function_rule(node: fx.Node) -> nn.Module | None:
    if node.op not in ("call_function", "call_method"):
        return None
    settings = {key: value for key, value in node.kwargs.items() if key not in ("input", "inplace")}
    others = node.args[1:]
    if not isinstance(_operand(node), fx.Node) or any(isinstance(x, fx.Node) for x in (*others, *settings.values())):
        return None  # a function of two things that both depend on the image
    for function in (F.max_pool2d, F.adaptive_max_pool2d):
        if node.target is function and not settings.pop("return_indices", False):
            return MaxPool(_with(function, others, settings | {"return_indices": True}))
    if node.target is torch.max_pool2d:
        return MaxPool(_with(F.max_pool2d, others, settings | {"return_indices": True}))
    name = (node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")).rstrip("_")
    if name in _MODULE_OF:
        own: nn.Module = _MODULE_OF[name]()
        return own
    if name not in _POINTWISE_NAMES:
        return None
    if isinstance(node.target, str):
        return Rescale(_with(getattr(Tensor, name), others, settings))
    in_place = node.target.__name__ != name
    function = (getattr(F, name, None) or getattr(torch, name)) if in_place else node.target
    return Rescale(_with(function, others, settings))


def _with(function: Any, others: tuple[Any, ...], settings: dict[str, Any]) -> Callable[[Tensor], Any]:
    """Fix all arguments but the first."""
    return partial(_call, function, others, settings)


def _call(function: Any, others: tuple[Any, ...], settings: dict[str, Any], values: Tensor) -> Any:
    return function(values, *others, **settings)
