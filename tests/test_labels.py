"""Labels that a network cannot look up are named before they fail obscurely."""

from typing import Any

import pytest
import torch

from cifarkit.labels import check_labels

LABELS = torch.tensor([0, 2, 1])


@pytest.mark.parametrize(
    ("labels", "classes", "null"),
    [(LABELS, 3, False), (LABELS, 2, True), (None, 3, True), (None, None, False), (LABELS[:0], 3, False)],
)
def test_labels_that_fit_pass(labels: Any, classes: Any, null: bool) -> None:
    check_labels(labels, 3 if labels is None else len(labels), classes, null=null)


@pytest.mark.parametrize(
    ("labels", "classes", "null", "error", "message"),
    [
        (LABELS, None, False, ValueError, "labels are given, but the network has num_classes=None; build it with"),
        (None, 3, False, TypeError, r"labels=None, but the network has num_classes=3; give int64 labels \(3,\)"),
        (LABELS.float(), 3, True, TypeError, r"labels must be an int64 tensor \(3,\); got torch.float32"),
        ([0, 2, 1], 3, True, TypeError, r"labels must be an int64 tensor \(3,\); got a list"),
        (LABELS[:2], 3, True, ValueError, r"labels must be \(3,\), one for each image; got shape \(2,\)"),
        (LABELS, 2, False, ValueError, "labels run from 0 to 2; for num_classes=2 they must be 0 to 1$"),
        (
            LABELS + 1,
            2,
            True,
            ValueError,
            "1 to 3; for num_classes=2 they must be 0 to 1, or 2 for none",
        ),
        (
            LABELS - 1,
            3,
            True,
            ValueError,
            "-1 to 1; for num_classes=3 they must be 0 to 2, or 3 for none",
        ),
    ],
)
def test_labels_that_do_not_fit_are_named(
    labels: Any, classes: Any, null: bool, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_labels(labels, 3, classes, null=null)
