"""Muon: momentum whose step for each kernel is an orthogonal matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from cifarkit.checks import check_integer, check_number
from cifarkit.inference import has_native_bf16

# Five rounds of this odd polynomial push singular values from (0, 1] into about [0.7, 1.2]; Jordan 2024 found the
# coefficients by maximising the slope at 0, and leaves it at that, since equal values are not needed.
_LINEAR, _CUBIC, _QUINTIC = 3.4445, -4.7750, 2.0315
_SECOND_BETA = 0.999


class Muon(Optimizer):
    """Step along the orthogonal matrix nearest to the Nesterov momentum of each kernel, so every direction moves alike.

    A group with ``orthogonal`` true holds kernels, whose trailing dimensions count as one; any other group is stepped
    by SGD with Nesterov momentum, or by AdamW if its ``adam`` is true. :func:`muon_groups` sorts a network's
    parameters.

    A kernel in front of a BatchNorm has no scale of its own. With ``keep_norm`` it is brought to the Frobenius norm
    sqrt(D_out) before each step, so that lr is the relative change of a filter and needs no weight decay.

    Args:
        params: parameters, or dicts of them with options of their own, as for any torch optimizer.
        lr: the factor of the step, above 0.
        momentum: share of the past in the momentum, in [0, 1); AdamW's first beta, whose second is 0.999.
        weight_decay: added to the gradient by SGD, else decoupled: p -= lr * weight_decay * p.
        orthogonal: the default for groups that do not say.
        keep_norm: see above; use it only where a normalisation follows.
        adam: the default for groups that do not say.
    Raises:
        ValueError: if a number is out of range, or a group is orthogonal and has adam or a parameter of one dimension.
        TypeError: if an option is of another kind.
    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.03,
        momentum: float = 0.6,
        weight_decay: float = 0.0,
        *,
        orthogonal: bool = True,
        keep_norm: bool = False,
        adam: bool = False,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, options | {"orthogonal": orthogonal, "keep_norm": keep_norm, "adam": adam})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("adam", False)  # a checkpoint from before there was a choice

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as any torch optimizer does, unless an option of it is out of range."""
        super().add_param_group(param_group)  # which fills in the defaults
        try:
            _check_group(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step; closure is called first, as in every torch optimizer, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            step = _step_orthogonal if group["orthogonal"] else _step_adam if group["adam"] else _step_plain
            for parameter in group["params"]:
                if parameter.grad is not None:
                    step(parameter, self.state[parameter], group)
        return loss


def muon_groups(
    model: nn.Module,
    lr: float = 0.03,
    other_lr: float | None = None,
    other_weight_decay: float = 5e-4,
    *,
    bias_lr: float | None = None,
    other_momentum: float = 0.9,
    adam: bool = False,
) -> list[dict[str, Any]]:
    """Sort a network for :class:`Muon`: its convolution kernels behind the first, and all other parameters.

    The first convolution reads pixels and the linear head writes logits; like biases and norms they are stepped by SGD
    with momentum, or by AdamW, which suits networks that make images. Kernels keep their norm if the next layer with
    parameters, in the order in which the layers were made, is a BatchNorm. Parameters that want no gradient are left
    out.

    Args:
        model: a convolutional network.
        lr: rate of the kernels, the relative change of a filter in a step.
        other_lr: rate of the rest; None is 0.1, or 0.001 for AdamW.
        other_weight_decay: of the rest.
        bias_lr: rate of what has one dimension, biases and the weights of norms, in a third group that shrinks as fast
            as the rest; None leaves them in the second.
        other_momentum: of the rest, in [0, 1).
        adam: step the rest by AdamW.
    Raises:
        ValueError: if the network has no convolution to train behind the first.
        TypeError: if model is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model is a {type(model).__name__}; give the torch.nn.Module whose parameters are to be sorted"
        )
    layers = _layers_of(model)
    followed = [*pairwise(layers), *((layer, None) for layer in layers[-1:])]
    found = [
        (_kernel_of(layer), isinstance(after, _BatchNorm)) for layer, after in followed if isinstance(layer, nn.Conv2d)
    ]
    (first, _), *behind = found or [(None, False)]
    kernels = {id(kernel): kernel for kernel, _ in behind if kernel is not None and kernel is not first}
    kernels = {key: kernel for key, kernel in kernels.items() if kernel.requires_grad}
    if not kernels:
        raise ValueError(f"model is a {type(model).__name__} without a second convolution to train; use torch.optim")
    free = {id(kernel) for kernel, normalized in behind if not normalized}  # by one of the layers that share it
    others = [item for item in model.parameters() if item.requires_grad and id(item) not in kernels]
    groups: list[dict[str, Any]] = []
    for keep_norm in (True, False):
        some = [kernel for key, kernel in kernels.items() if (key not in free) == keep_norm]
        groups.append({"params": some, "lr": lr, "keep_norm": keep_norm})
    plain = {"orthogonal": False, "momentum": other_momentum, "adam": adam}
    other_lr = (0.001 if adam else 0.1) if other_lr is None else other_lr
    if bias_lr is not None:
        check_number("bias_lr", bias_lr, 0, above=True)
        flat = [item for item in others if item.dim() < 2]
        others = [item for item in others if item.dim() >= 2]
        groups.append({"params": flat, "lr": bias_lr, "weight_decay": other_weight_decay * other_lr / bias_lr} | plain)
    groups.append({"params": others, "lr": other_lr, "weight_decay": other_weight_decay} | plain)
    return [group for group in groups if group["params"]]


def _layers_of(model: nn.Module) -> list[nn.Module]:
    """Return the modules with parameters, and BatchNorms without, in order; what forms a weight is no layer."""
    formed = {layer for layer in model.modules() if parametrize.is_parametrized(layer)}
    forming = {part for layer in formed for part in layer.get_submodule("parametrizations").modules()}

    def counts(layer: nn.Module) -> bool:
        owns = any(True for _ in layer.parameters(recurse=False))
        return layer not in forming and (owns or layer in formed or isinstance(layer, _BatchNorm))

    return [layer for layer in model.modules() if counts(layer)]


def _kernel_of(layer: nn.Module) -> Tensor | None:
    """Return the parameter that a kernel is made from, as by spectral normalisation; None if there are several."""
    if not parametrize.is_parametrized(layer, "weight"):
        return layer._parameters.get("weight", layer._parameters.get("weight_orig"))  # the latter of older hooks
    kernel: Tensor | None = getattr(layer.parametrizations["weight"], "original", None)  # type: ignore[index]
    return kernel


def orthogonalize(matrices: Tensor, rounds: int = 5) -> Tensor:
    """Bring the singular values of a matrix near 1 and keep its singular vectors, by Newton and Schulz's iteration.

    Args:
        matrices: (M, N) floating point; zeros stay zeros.
        rounds: of the iteration; 5 bring values down to 0.005 of the Frobenius norm up to 0.7.
    Returns:
        (M, N) in the dtype of the input, computed in bf16 where the processor has it.
    Source: Jordan et al. 2024; Bernstein and Newhouse 2024, arXiv 2409.20325, appendix A.
    """
    check_integer("rounds", rounds, 1)
    x = matrices.to(torch.bfloat16 if has_native_bf16(matrices.device) else torch.float32)
    x = x / (x.norm() + 1e-7)
    wide = x if len(x) <= x.shape[1] else x.T  # the product below is then the smaller of the two
    for _ in range(rounds):
        gram = wide @ wide.T  # (M, M), M <= N
        wide = _LINEAR * wide + (_CUBIC * gram + _QUINTIC * gram @ gram) @ wide
    levelled: Tensor = (wide if len(x) <= x.shape[1] else wide.T).to(matrices.dtype)
    return levelled


def _check_group(group: dict[str, Any]) -> None:
    check_number("lr", group["lr"], 0, above=True)
    check_number("momentum", group["momentum"], 0, 1, below=True)
    check_number("weight_decay", group["weight_decay"], 0)
    for name in ("orthogonal", "keep_norm", "adam"):
        if not isinstance(group[name], bool):
            raise TypeError(f"{name}={group[name]!r} must be True or False")
    if group["orthogonal"] and group["adam"]:
        raise ValueError(
            "a group is stepped either by orthogonal steps or by AdamW; give one with adam orthogonal=False"
        )
    if group["adam"] and any(p.is_complex() for p in group["params"]):
        raise ValueError(
            "a group with adam=True holds a complex parameter, which its AdamW cannot step; give adam=False"
        )
    flat = next((tuple(p.shape) for p in group["params"] if p.dim() < 2), None)
    if group["orthogonal"] and flat is not None:
        raise ValueError(
            f"an orthogonal group holds a parameter of shape {flat}, which is no matrix; put it into a group with "
            "orthogonal=False, as muon_groups does"
        )


def _nesterov(parameter: Tensor, gradient: Tensor, state: dict[str, Any], momentum: float) -> Tensor:
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(parameter)
    buffer: Tensor = state["momentum_buffer"].mul_(momentum).add_(gradient)
    return gradient.add(buffer, alpha=momentum)


def _step_orthogonal(parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    assert parameter.grad is not None
    direction = _nesterov(parameter, parameter.grad, state, group["momentum"])
    matrix = orthogonalize(direction.reshape(len(parameter), -1))  # (D, C, h, w) -> (D, C * h * w)
    if group["keep_norm"]:
        parameter.mul_(len(parameter) ** 0.5 / parameter.norm().clamp(min=1e-12))
    parameter.mul_(1 - group["lr"] * group["weight_decay"])
    parameter.add_(matrix.view(parameter.shape), alpha=-group["lr"])


def _step_plain(parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    assert parameter.grad is not None
    gradient = parameter.grad.add(parameter, alpha=group["weight_decay"])
    parameter.add_(_nesterov(parameter, gradient, state, group["momentum"]), alpha=-group["lr"])


def _step_adam(parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    assert parameter.grad is not None
    if "step" not in state:  # named as torch.optim names them, so that a checkpoint's are held to the same rules
        state |= {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter), "step": 0}
    state["step"] += 1
    first = group["momentum"]
    state["exp_avg"].lerp_(parameter.grad, 1 - first)
    state["exp_avg_sq"].lerp_(parameter.grad.square(), 1 - _SECOND_BETA)
    scale = (state["exp_avg_sq"] / (1 - _SECOND_BETA ** state["step"])).sqrt_().add_(1e-8)
    parameter.mul_(1 - group["lr"] * group["weight_decay"])
    parameter.addcdiv_(state["exp_avg"], scale, value=-group["lr"] / (1 - first ** state["step"]))
