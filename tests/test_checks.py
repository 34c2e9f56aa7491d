"""Checks of arguments: what passes comes out plain, what does not is named with what would do."""

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cifarkit.checks import (
    check_callable,
    check_device,
    check_integer,
    check_items,
    check_number,
    check_numbers,
    check_size,
    check_transform,
    has_parameter,
)


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_integers_of_any_kind_come_out_plain(value: Any) -> None:
    assert check_integer("count", value, 3) == 3
    assert type(check_integer("count", value)) is int


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (2.0, TypeError, r"count=2\.0 is a float; give an integer"),
        ("2", TypeError, "count='2' is a str; give an integer"),
        (True, TypeError, "count=True is a bool; give an integer"),
        (None, TypeError, "count=None is a NoneType"),
        (np.array([1, 2]), TypeError, r"count=array\(\[1, 2\]\) is a ndarray"),
        (-1, ValueError, "count=-1 must be at least 0"),
    ],
)
def test_what_is_no_integer_is_named(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_integer("count", value, 0)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), torch.tensor(0.5), np.array(0.5)])
def test_numbers_of_any_kind_come_out_plain(value: Any) -> None:
    assert check_number("p", value, 0, 1) == 0.5
    assert type(check_number("p", value)) is float
    assert check_numbers("p", value) == (0.5,)
    assert check_numbers("p", np.array([value, 1])) == check_numbers("p", [value, 1]) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("value", "limits", "error", "message"),
    [
        ("1", {}, TypeError, "p='1' is a str; give a number"),
        (True, {}, TypeError, "p=True is a bool; give a number"),
        ((1, 2), {}, TypeError, r"p=\(1, 2\) is a tuple; give a number"),
        (torch.ones(2), {}, TypeError, r"p=tensor\(\[1., 1.\]\) is a Tensor; give one number"),
        (np.ones(2), {}, TypeError, r"p=array\(.*\) is a ndarray; give one number"),
        (float("nan"), {}, ValueError, "p=nan must be finite"),
        (float("inf"), {"low": 0}, ValueError, "p=inf must be at least 0"),
        (-1, {"low": 0, "high": 1}, ValueError, "p=-1 must be at least 0 and at most 1"),
        (0, {"low": 0, "high": 1, "above": True, "below": True}, ValueError, "p=0 must be above 0 and below 1"),
        (1, {"high": 1, "below": True}, ValueError, "p=1 must be below 1"),
    ],
)
def test_what_is_no_number_is_named(value: Any, limits: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_number("p", value, **limits)


def test_numbers_that_vary_are_compiled() -> None:
    def scale(values: Tensor, factor: float) -> Tensor:
        return values * check_number("factor", factor, 0, 1)

    compiled = torch.compile(scale, fullgraph=True, dynamic=True, backend="eager")
    for factor in (0.1, 0.2, 0.3):
        assert torch.equal(compiled(torch.ones(3), factor), torch.full((3,), factor))


def test_wrong_members_of_several_numbers_are_named() -> None:
    with pytest.raises(ValueError, match="std=0 must be above 0"):
        check_numbers("std", (1, 0), 0, above=True)
    with pytest.raises(ValueError, match=r"std=\[\] is empty; give a number, or one for each channel"):
        check_numbers("std", [])
    with pytest.raises(TypeError, match="std='x' is a str; give a number"):
        check_numbers("std", [1, "x"])


def test_a_size_is_a_side_or_two() -> None:
    assert check_size("size", np.int64(8)) == (8, 8)
    assert check_size("size", torch.zeros(3, 4).shape) == (3, 4)
    with pytest.raises(ValueError, match=r"size=\(8,\) holds 1 numbers; give a side in pixels, or \(height, width\)"):
        check_size("size", (8,))
    with pytest.raises(ValueError, match="size=0 must be at least 1"):
        check_size("size", (8, 0))
    with pytest.raises(TypeError, match=r"size=8\.5 is a float; give an integer"):
        check_size("size", 8.5)


def test_callables_pass_and_classes_do_not() -> None:
    assert check_callable("loss", len, "give a function") is len
    with pytest.raises(TypeError, match="loss is 3; give a function"):
        check_callable("loss", 3, "give a function")
    with pytest.raises(TypeError, match="loss is the class CrossEntropyLoss; make one"):
        check_callable("loss", nn.CrossEntropyLoss, "make one")


def test_a_transform_needs_no_labels() -> None:
    class Mixer:
        needs_labels = True

        def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
            return images

    assert check_transform("transform", torch.neg) is torch.neg
    with pytest.raises(TypeError, match=r"transform is <.*Mixer.*>, which mixes labels too; give it to Classification"):
        check_transform("transform", Mixer())
    with pytest.raises(TypeError, match=r"transform is \[\]; give a callable of images, as in Compose"):
        check_transform("transform", [])


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_device("cpu") == check_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ValueError, match="device='gpu' is unknown; use 'cpu' or 'cuda'"):
        check_device("gpu")
    with pytest.raises(TypeError, match="device=0 is a int; give a name such as 'cpu' or 'cuda:0'"):
        check_device(0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cuda:1': PyTorch finds no CUDA device here; use 'cpu'"):
        check_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert check_device("cuda") == torch.device("cuda")
    with pytest.raises(ValueError, match="device='cuda:1': PyTorch finds 1 here, numbered from 0"):
        check_device("cuda:1")


def test_items_are_of_one_kind() -> None:
    assert check_items("names", ("a", "b"), str) == ["a", "b"]
    for items in (["a", 3], "ab", 3):
        with pytest.raises(TypeError, match="names must be a list of str objects; got "):
            check_items("names", items, str)


def test_parameters_are_found_behind_modules_partials_and_wrappers() -> None:
    class Shift(nn.Module):
        def forward(self, images: Tensor, draws: Any = None) -> Tensor:
            return images

    def plain(images: Tensor, draws: Any = None) -> Tensor:
        return images

    for function in (
        plain,
        Shift(),
        functools.partial(plain),
        functools.wraps(plain)(lambda *rest: rest),
        Shift.forward,
    ):
        assert has_parameter(function, "draws")
        assert not has_parameter(function, "labels")
    assert not has_parameter(torch.neg, "draws")


def test_an_integer_beyond_every_float_is_named() -> None:
    with pytest.raises(ValueError, match="p must be finite; got an integer beyond every float"):
        check_number("p", 10**400)
