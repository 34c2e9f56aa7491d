"""What optimizers keep beside the weights: does a saved state belong to this optimizer, and is it whole?"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adafactor, Optimizer

from cifarkit.training.kinds import (
    AMOUNT,
    FINITE,
    FLAG,
    INTEGER,
    LIST,
    NOTHING,
    NUMBER,
    ROW,
    SINGLE,
    TABLE,
    TENSOR,
    TEXT,
    Kind,
    as_number,
    entry,
    require,
)

# Of these it is known that they keep, for each parameter, tensors like it, and a few single numbers.
_KNOWN = ("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Adadelta", "Adagrad", "ASGD", "RMSprop", "Rprop", "Muon")
_NEEDED = {  # class -> setting -> the entry that a step reads where the setting is on
    "Adam": {"amsgrad": "max_exp_avg_sq"},
    "AdamW": {"amsgrad": "max_exp_avg_sq"},
    "RMSprop": {"centered": "grad_avg", "momentum": "momentum_buffer"},
}
_SINGLE = ("step", "eta", "mu", "mu_product")
_SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum", "exp_inf")  # or sizes: never negative


def require_optimizer_state(saved: Mapping[str, Any], optimizer: Optimizer, where: str, *, same_torch: bool) -> None:
    """Raise ValueError for the first entry of an optimizer's ``state_dict`` that it could not go on with.

    Args:
        saved: of the same class, with as many parameters in each group.
        optimizer: what shall take it up.
        where: where in the checkpoint it stands.
        same_torch: whether it was saved by this version of PyTorch; others have other settings, which PyTorch adds.
    """
    groups = entry(saved, "param_groups", LIST, where)
    if len(groups) != len(optimizer.param_groups):
        raise ValueError(f"{where}['param_groups'] has {len(groups)} groups, not {len(optimizer.param_groups)}")
    members: dict[int, tuple[Tensor, int]] = {}  # number of a parameter -> itself and its group
    for index, (group, own) in enumerate(zip(groups, optimizer.param_groups, strict=True)):
        place = f"{where}['param_groups'][{index}]"
        require(group, TABLE, place)
        numbers = entry(group, "params", LIST, place)
        sane = len(numbers) == len(own["params"]) and all(map(INTEGER.fits, numbers))
        if not sane or len({*numbers} - members.keys()) != len(numbers):
            raise ValueError(f"{place}['params'] does not number the {len(own['params'])} parameters of the group")
        for name, value in own.items():
            if name != "params" and (name in group or same_torch or name in ("lr", "base_rate")):
                entry(group, name, _setting_like(value), place)
        for name in {"lr", "base_rate"} & own.keys():
            require(as_number(group[name]), AMOUNT, f"{place}[{name!r}]")
        refusal = _refusal_of(group, optimizer)
        if refusal is not None and _refusal_of(own, optimizer) is None:
            raise ValueError(f"{place} holds settings that {type(optimizer).__name__} does not take: {refusal}")
        if group.get("capturable") and not own.get("capturable") and any(item.is_cpu for item in own["params"]):
            raise ValueError(f"{place}['capturable'] is true, which PyTorch takes only for parameters on a GPU")
        members |= {number: (parameter, index) for number, parameter in zip(numbers, own["params"], strict=True)}
    _require_states(entry(saved, "state", TABLE, where), members, f"{where}['state']")
    # Adafactor and those of others may keep something else for each parameter.
    if _is_own(optimizer) and not isinstance(optimizer, Adafactor):
        _require_alike(saved["state"], members, f"{where}['state']")
    if _is_own(optimizer) and type(optimizer).__name__ in _KNOWN:
        _require_moments(saved["state"], members, f"{where}['state']")
        _require_what_settings_need(saved["state"], groups, members, type(optimizer).__name__, f"{where}['state']")


def _is_own(optimizer: Optimizer) -> bool:
    return type(optimizer).__module__.startswith(("torch.", "cifarkit."))


def _refusal_of(group: Mapping[str, Any], optimizer: Optimizer) -> str | None:
    """Return what the class of the optimizer says against the numbers of a group, by making one of them."""
    if not _is_own(optimizer):  # the making of another kind may do anything
        return None
    known = inspect.signature(type(optimizer)).parameters
    settings = {name: as_number(value) for name, value in group.items() if name in known and name != "params"}
    settings = {name: value for name, value in settings.items() if NUMBER.fits(value) or _are_numbers(value)}
    settings["lr"] = as_number(group.get("base_rate", group["lr"]))  # the rate itself may be bent to 0
    try:
        type(optimizer)([torch.zeros(1, 1)], **settings)
    except Exception as error:  # classes say in many ways what they do not take
        return str(error)
    return None


def _are_numbers(value: Any) -> bool:
    return ROW.fits(value) and all(map(NUMBER.fits, value))


def _setting_like(own: Any) -> Kind:
    """Return what may stand in the place of a setting of an optimizer."""
    if isinstance(own, Tensor):
        return TENSOR | SINGLE
    if own is None or type(own) is bool:  # such as foreach, which PyTorch may decide
        return FLAG | NOTHING | SINGLE if own is None else FLAG | NOTHING
    if type(own) in (list, tuple):
        kinds = [_setting_like(item) for item in own]
        words = f"{len(own)} values such as {own}"
        return Kind(words, lambda value: _fit_in_turn(value, kinds))
    if type(own) in (int, float):
        return SINGLE
    return TEXT if type(own) is str else Kind("anything", lambda value: True)


def _fit_in_turn(values: Any, kinds: Sequence[Kind]) -> bool:
    same_length = ROW.fits(values) and len(values) == len(kinds)
    return same_length and all(kind.fits(value) for kind, value in zip(kinds, values, strict=True))


def _require_states(states: Mapping[Any, Any], members: Mapping[int, Any], where: str) -> None:
    for number, values in states.items():
        if number not in members:
            raise ValueError(f"{where}[{number!r}] is of no parameter")
        require(values, TABLE, f"{where}[{number!r}]")
        for name, value in values.items():
            place = f"{where}[{number!r}][{name!r}]"
            require(value, TENSOR | NUMBER | FLAG | NOTHING | ROW | TABLE, place)
            if isinstance(value, Tensor) and _overlaps(value):
                raise ValueError(f"{place} is a tensor whose numbers share their places in memory")


def _overlaps(tensor: Tensor) -> bool:
    """Tell whether two entries of a tensor may be one number, which nothing can be written to."""
    reach = 0  # from the first number to the last one in the dimensions so far
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reach:
            return True
        reach += (size - 1) * stride
    return False


def _require_moments(states: Mapping[int, Any], members: Mapping[int, tuple[Tensor, int]], where: str) -> None:
    """Require of an optimizer that is known what it writes itself: tensors like the parameter, and finite numbers."""
    for number, values in states.items():
        for name, value in values.items():
            place, parameter = f"{where}[{number}][{name!r}]", members[number][0]
            if name in _SINGLE:
                require(as_number(value), AMOUNT if name == "step" else FINITE, place)
            elif isinstance(value, Tensor):
                floating = value.is_floating_point() or value.is_complex()
                if value.shape != parameter.shape or not floating:
                    raise ValueError(f"{place} is {_relation(value, parameter)}; it must be one like it, of floats")
                _require_sane_numbers(value, name, place)


def _require_what_settings_need(
    states: Mapping[int, Any], groups: Sequence[Any], members: Mapping[int, tuple[Tensor, int]], kind: str, where: str
) -> None:
    for number, values in states.items():
        group = groups[members[number][1]]
        for setting, name in _NEEDED.get(kind, {}).items():
            if values and group.get(setting) and name not in values:
                raise ValueError(f"{where}[{number}][{name!r}] is missing, which {kind} with {setting} needs")


def _require_sane_numbers(value: Tensor, name: str, place: str) -> None:
    """Refuse NaN, and squares below 0; infinite squares may come of large gradients."""
    if value.numel() and not value.is_complex():
        least = value.min()  # NaN if one of them is
        if bool(least.isnan()) or (name in _SQUARES and bool(least < 0)):
            raise ValueError(f"{place} holds {'NaN' if bool(least.isnan()) else 'squares below 0'}")


def _require_alike(states: Mapping[int, Any], members: Mapping[int, tuple[Tensor, int]], where: str) -> None:
    """Require of all parameters of a group that they have the same entries, as far as they have any."""
    for group in {group for _, group in members.values()}:
        own = {number: parameter for number, (parameter, index) in members.items() if index == group}
        own = {number: parameter for number, parameter in own.items() if number in states}
        for name in {name for number in own for name in states[number]}:
            kinds = {number: _relation(states[number].get(name), parameter) for number, parameter in own.items()}
            # The tensors of a single number are like it, and scalars, too.
            counted = Counter(kind for number, kind in kinds.items() if own[number].dim())
            usual = counted.most_common(1)[0][0] if counted else ""
            for number, found in kinds.items():
                if name not in states[number]:
                    raise ValueError(f"{where}[{number}][{name!r}] is missing, which others of its group have")
                if found != usual and own[number].dim():
                    raise ValueError(f"{where}[{number}][{name!r}] is {found}; in others of its group it is {usual}")


def _relation(value: Any, parameter: Tensor) -> str:
    """Say what a value is, and a tensor in relation to its parameter."""
    if not isinstance(value, Tensor):
        return f"of type {type(value).__name__}"
    size = "a tensor like the parameter" if value.shape == parameter.shape else "a tensor of another shape"
    kind = "floats" if value.is_floating_point() or value.is_complex() else "integers"
    return f"{size if value.dim() else 'a scalar tensor'} of {kind}"
