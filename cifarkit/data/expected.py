"""What is known of a file beforehand, and whether it is so."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Expected:
    """What is known of a file: checksums in hexadecimal and length in bytes, each of them or None."""

    md5: str | None = None
    sha256: str | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        for name, digest, length in (("md5", self.md5, 32), ("sha256", self.sha256, 64)):
            if digest is not None and not re.fullmatch(f"[0-9a-fA-F]{{{length}}}", digest):
                raise ValueError(f"{name}={digest!r} must be {length} hexadecimal digits")

    def __str__(self) -> str:
        facts = ", ".join(f"{name} {value}" for name, value in vars(self).items() if value is not None)
        return f" ({facts})" if facts else ""

    def problem(self, path: Path) -> str | None:
        """Return what is wrong with the file at path, or None."""
        if not path.is_file():
            return "not a file but a folder, a pipe or a device"
        length = path.stat().st_size
        if self.size is not None and length != self.size:
            return f"{length} bytes instead of {self.size}"
        digests = {"md5": hashlib.md5(usedforsecurity=False), "sha256": hashlib.sha256()}
        wanted = {name: value for name, value in (("md5", self.md5), ("sha256", self.sha256)) if value is not None}
        with path.open("rb") as file:
            while wanted and (chunk := file.read(1 << 20)):
                for name in wanted:
                    digests[name].update(chunk)
        for name, value in wanted.items():
            if digests[name].hexdigest() != value.lower():
                return f"{name} is {digests[name].hexdigest()} instead of {value.lower()}"
        return None
