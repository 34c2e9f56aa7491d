"""What optimizers keep beside the weights: does a saved state belong to this optimizer, and is it whole?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Adafactor, Optimizer

from cifarkit.training.kinds import (
    FLAG,
    INTEGER,
    LIST,
    NOTHING,
    NUMBER,
    ROW,
    TABLE,
    TENSOR,
    TEXT,
    Kind,
    entry,
    require,
)


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
        members |= {number: (parameter, index) for number, parameter in zip(numbers, own["params"], strict=True)}
    _require_states(entry(saved, "state", TABLE, where), members, f"{where}['state']")
    # Adafactor and those of others may keep something else for each parameter.
    if type(optimizer).__module__.startswith(("torch.", "cifarkit.")) and not isinstance(optimizer, Adafactor):
        _require_alike(saved["state"], members, f"{where}['state']")


def _setting_like(own: Any) -> Kind:
    """Return what may stand in the place of a setting of an optimizer."""
    if isinstance(own, Tensor):
        return TENSOR | NUMBER
    if own is None or type(own) is bool:  # such as foreach, which PyTorch may decide
        return FLAG | NOTHING | NUMBER if own is None else FLAG | NOTHING
    if type(own) in (list, tuple):
        kinds = [_setting_like(item) for item in own]
        words = f"{len(own)} values such as {own}"
        return Kind(words, lambda value: _fit_in_turn(value, kinds))
    if type(own) in (int, float):
        return NUMBER
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
            require(value, TENSOR | NUMBER | FLAG | NOTHING | ROW | TABLE, f"{where}[{number!r}][{name!r}]")


def _require_alike(states: Mapping[int, Any], members: Mapping[int, tuple[Tensor, int]], where: str) -> None:
    """Require of all parameters of a group that they have the same entries, as far as they have any."""
    for group in {group for _, group in members.values()}:
        own = {number: parameter for number, (parameter, index) in members.items() if index == group}
        own = {number: parameter for number, parameter in own.items() if number in states}
        for name in {name for number in own for name in states[number]}:
            kinds = {number: _relation(states[number].get(name), parameter) for number, parameter in own.items()}
            usual = Counter(kinds.values()).most_common(1)[0][0]
            for number, found in kinds.items():
                if name not in states[number]:
                    raise ValueError(f"{where}[{number}][{name!r}] is missing, which others of its group have")
                if found != usual and own[number].dim():  # the tensors of a single number are like it, too
                    raise ValueError(f"{where}[{number}][{name!r}] is {found}; in others of its group it is {usual}")


def _relation(value: Any, parameter: Tensor) -> str:
    """Say what a value is, and a tensor in relation to its parameter."""
    if not isinstance(value, Tensor):
        return f"of type {type(value).__name__}"
    size = "a tensor like the parameter" if value.shape == parameter.shape else "a tensor of another shape"
    return f"{size if value.dim() else 'a scalar tensor'} of {'floats' if value.is_floating_point() else 'integers'}"
