"""Names of classes that can be those of folders, and those that cannot."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cifarkit.generation import generate_dataset
from cifarkit.generation.class_names import check_class_names


@pytest.mark.parametrize(
    ("classes", "error", "message"),
    [
        ("cat", TypeError, "classes='cat' must be a sequence of names"),
        (["cat", 3], TypeError, r"classes=\['cat', 3\] must be a sequence of names"),
        ([], ValueError, "classes holds 0 names; give from 1 to 1024"),
        (["cat", " "], ValueError, "classes holds ' '; a name becomes a folder, so give 1 to 200 bytes"),
        (["é" * 101], ValueError, "give 1 to 200 bytes"),
        (["a/b"], ValueError, "'a/b'; a name becomes a folder: no slash"),
        (["..\\b"], ValueError, "no slash"),
        (["a\nb"], ValueError, "control character"),
        (["a\u202eb"], ValueError, "control character"),
        (["c:"], ValueError, "no slash"),
        ([".."], ValueError, "'..'; a name becomes a folder that is seen: no dot or blank at its ends"),
        ([".hidden"], ValueError, "no dot or blank at its ends"),
        (["dog "], ValueError, "no dot or blank at its ends"),
        (["manifest.jsonl"], ValueError, "a name becomes a folder that is seen"),
        (["cat", "cat"], ValueError, "classes holds 'cat' and 'cat', one folder on some systems"),
        (["cat", "Cat"], ValueError, "classes holds 'cat' and 'Cat', one folder"),
    ],
)
def test_a_name_that_can_be_no_folder_is_refused(classes: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        check_class_names(classes)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["é", "e\u0301"], "an accent written in two ways, one folder on macOS"),
        (["cat", "NUL"], "'NUL'; a name becomes a folder, and this is a device on Windows: rename it"),
        (["com1.x"], "this is a device on Windows"),
    ],
)
def test_a_new_export_is_given_names_for_every_system(classes: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        generate_dataset(
            lambda labels, _: torch.zeros(len(labels), 3, 4, 4), classes=classes, per_class=1, folder=tmp_path
        )
    assert not [*tmp_path.iterdir()]
    check_class_names(classes)  # an older export goes on


def test_usual_names_pass() -> None:
    names = ("aquarium_fish", "Straße 9", "t-shirt", "ネコ", "console")
    assert check_class_names(list(names)) == names
