"""A folder of generated images that is balanced, says where each image is from, and can be continued."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cifarkit.checks import check_callable, check_integer, check_path
from cifarkit.data import ImageDataset
from cifarkit.files import shown, write_atomically
from cifarkit.generation import folder as files
from cifarkit.generation.candidates import Keep, describe_keep, judge, to_pixels
from cifarkit.generation.class_names import MANIFEST, check_class_names
from cifarkit.generation.noise import MOST_PER_CLASS, SampleGenerators, image_generator

Sample: TypeAlias = Callable[[Tensor, SampleGenerators], Tensor]

_FILTERED_BATCHES = 8  # batches whose rejects share the batches of the next attempt, so that these are seldom small
_OWN_NAMES = ("file", "class", "label", "index", "seed", "attempt", "scores")
_LUCK = 5  # images that a class may lack by chance before its filter is taken to be hopeless
_ROUNDING = 4  # of 255, on average: more than bf16 and another size of the batch can make of an image


def generate_dataset(
    sample: Sample,
    *,
    classes: Sequence[str],
    per_class: int,
    folder: str | Path,
    batch_size: int = 100,
    seed: int = 0,
    keep: Keep | None = None,
    progress: bool = True,
    about: Mapping[str, Any] | None = None,
    max_attempts: int = 100,
    rank: int = 0,
    world_size: int = 1,
) -> ImageDataset:
    """Make the same number of images of every class, as folder/<class>/NNNNNN.png and a manifest.jsonl.

    Called again after a kill it makes what is missing or damaged, byte for byte as if nothing had happened; nothing
    else in the folder is touched. A folder that is complete is only read, whatever ``sample`` would make now; with
    :func:`weights_hash` in ``about`` it is refused if the network is another.

    Args:
        sample: (labels int64 (B,), generator) -> images (B, 1 or 3, H, W), float in [-1, 1]; see SampleGenerators.
        keep: (images as stored, in [-1, 1], labels) -> bool (B,), or that and {name: scores (B,)} for the manifest.
        about: facts of the sampler for the manifest and for telling exports apart: sampler, steps, guidance, weights.
        max_attempts: candidates that a class may need an image, on average, before ``keep`` is taken to be hopeless;
            five images of bad luck are allowed for.
        rank, world_size: this process among all that fill the folder; the images of this rank are returned.
    Raises:
        ValueError, TypeError: for a wrong argument, images out of range, or a folder that is not this export's.
        RuntimeError: if keep turns down too many.
    """
    check_callable("sample", sample, "give a function of labels and generator that returns images in [-1, 1]")
    names, batch_size = check_class_names(classes), check_integer("batch_size", batch_size, 1)
    per_class, seed = check_integer("per_class", per_class, 1), check_integer("seed", seed)
    rank, world_size = check_integer("rank", rank, 0), check_integer("world_size", world_size, 1)
    if rank >= world_size:
        raise ValueError(f"rank={rank} must be at least 0 and below world_size={world_size}")
    if per_class > MOST_PER_CLASS:
        raise ValueError(f"per_class={per_class} must be at most {MOST_PER_CLASS}")
    if keep is not None:
        check_callable("keep", keep, "give a function of images and labels that returns bool (B,)")
    settings = {"format": 1, "classes": list(names), "seed": seed, "keep": describe_keep(keep), "about": _plain(about)}
    place, max_attempts = check_path("folder", folder), check_integer("max_attempts", max_attempts, 1)
    export = _Export(sample, keep, place, settings, max_attempts)
    places, group = range(len(names) * per_class), batch_size * (1 if keep is None else _FILTERED_BATCHES)
    own = [places[start : start + group] for start in range(rank * group, len(places), world_size * group)]
    if not own:
        least = f"{group} images, which the ranks take in turn"
        raise ValueError(f"rank={rank} is left without one of the parts of {least}; give fewer ranks or batch_size=")
    new = files.claim(export.folder, settings)
    export.take_stock(per_class, {place for part in own for place in part}, progress, alone=world_size == 1)
    bar = tqdm(total=sum(map(len, own)), initial=len(export.lines), unit="image", disable=None if progress else True)
    with bar:
        if 0 < len(export.lines) < bar.total and all(place in export.lines for place in own[0][:batch_size]):
            export.make(own[0][:batch_size], 0)  # writes nothing, but finds out whether the sampler is another
        try:
            for part in own:
                export.fill(part, batch_size, bar)
        except Exception:
            if new and world_size == 1:  # a sampler or filter that fails at once leaves no trace of its settings
                files.give_up_if_empty(export.folder)
            raise
    export.write_manifest(per_class)
    return export.dataset()


class _Export:
    """What is known of the places of one export; place = index * K + label, so that classes grow evenly.

    Attributes:
        pixels, lines, attempts: of each place of this rank that is filled: the image, its line of the manifest, and
            how many candidates were turned down before.
    """

    def __init__(
        self, sample: Sample, keep: Keep | None, folder: Path, settings: Mapping[str, Any], max_attempts: int
    ) -> None:
        self.sample, self.keep, self.folder, self.max_attempts = sample, keep, folder, max_attempts
        self.classes, self.seed, self.about = settings["classes"], settings["seed"], settings["about"]
        self.pixels: dict[int, Tensor] = {}
        self.lines: dict[int, str] = {}
        self.attempts: dict[int, int] = {}
        self.tried, self.kept = [0] * len(self.classes), [0] * len(self.classes)

    def path(self, place: int) -> Path:
        index, label = divmod(place, len(self.classes))
        return files.picture_path(self.folder, self.classes[label], index)

    def take_stock(self, per_class: int, own: set[int], progress: bool, alone: bool) -> None:
        """Read the pictures of this rank that are there; the damaged ones count as missing."""
        if alone:  # of other machines' processes one cannot know whether they run
            files.tidy(self.folder, self.classes)
        found = files.find_pictures(self.folder, self.classes, per_class)
        there = [place for label, index in found if (place := index * len(self.classes) + label) in own]
        for place in tqdm(there, desc="reading", unit="image", leave=False, disable=None if progress else True):
            picture = files.read_picture(self.path(place))
            if picture is None:
                continue
            self.pixels[place], line = picture
            record = json.loads(line)
            expected = self.record(place, record.get("attempt", 0), record.get("scores"))
            if record != expected:
                raise ValueError(f"{shown(self.path(place))} is of another export; move it elsewhere")
            self.lines[place], self.attempts[place] = line, record["attempt"]
            label = place % len(self.classes)
            self.tried[label] += record["attempt"] + 1  # as if made now: max_attempts is of all together
            self.kept[label] += 1

    def record(self, place: int, attempt: int, scores: Mapping[str, float] | None) -> dict[str, Any]:
        """Return a line of the manifest as a dict."""
        index, label = divmod(place, len(self.classes))
        name = self.classes[label]
        own = {"file": f"{name}/{index:06d}.png", "class": name, "label": label, "index": index, "seed": self.seed}
        facts: dict[str, Any] = own | {"attempt": attempt} | ({"scores": scores} if scores else {}) | self.about
        return facts

    def fill(self, group: Sequence[int], batch_size: int, bar: Any) -> None:
        """Fill the places of a group that are empty.

        All places go through the same batches as if none was filled yet, because the last bit of what a network
        computes may depend on the size of the batch; batches without an empty place are left out.
        """
        pending = list(group)
        for attempt in itertools.count():
            if all(place in self.attempts for place in pending):
                return
            for start in range(0, len(pending), batch_size):
                batch = pending[start : start + batch_size]
                if any(place not in self.attempts for place in batch):
                    bar.update(self.make(batch, attempt))
            pending = [place for place in pending if self.attempts.get(place, math.inf) > attempt]

    def make(self, batch: Sequence[int], attempt: int) -> int:
        """Sample one candidate for each place of a batch, write those that pass, and return their number."""
        indices, labels = zip(*(divmod(place, len(self.classes)) for place in batch), strict=True)
        streams = [image_generator(self.seed, x, i, attempt) for x, i in zip(labels, indices, strict=True)]
        on_cpu = torch.tensor(labels)
        with torch.no_grad():
            pixels = to_pixels(self.sample(on_cpu.clone(), SampleGenerators(streams)), len(batch))
            passed, scores = judge(self.keep, pixels, on_cpu)
        self.check_sameness(pixels, batch, attempt)
        packed = {}
        for row, place in enumerate(batch):
            if place in self.attempts:
                continue
            self.tried[labels[row]] += 1
            if passed[row]:
                self.kept[labels[row]] += 1
                line = json.dumps(self.record(place, attempt, {name: each[row] for name, each in scores.items()}))
                packed[place] = (files.encode_picture(pixels[row], line), line)
                self.pixels[place] = pixels[row].clone()
        files.write_all({self.path(place): content for place, (content, _) in packed.items()})
        for place, (_, line) in packed.items():
            self.lines[place], self.attempts[place] = line, attempt
        self.check_hope()
        return len(packed)

    def check_sameness(self, pixels: Tensor, batch: Sequence[int], attempt: int) -> None:
        """Raise ValueError if the pictures that are there have another size, or were made by another sampler."""
        there = next(iter(self.pixels.values()), pixels[0]).shape
        if pixels.shape[1:] != there:
            raise ValueError(
                f"sample gives images of {_size(pixels[0])}, but {shown(self.folder)} holds {_size(there)}"
            )
        again = [row for row, place in enumerate(batch) if self.attempts.get(place) == attempt]
        if not again:
            return
        stored = torch.stack([self.pixels[batch[row]] for row in again])
        if (stored.float() - pixels[again].float()).abs().mean() > _ROUNDING:
            raise ValueError(
                f"sample makes other images than those in {shown(self.folder)} from the same noise; give the network "
                "and the settings that the folder was begun with (and the same batch_size, if the noise of a batch is "
                "drawn in one call), or another folder"
            )

    def check_hope(self) -> None:
        """Raise RuntimeError if a class, or all of them together, get too few images out of their candidates."""
        whose = [*(f"class {name!r}" for name in self.classes), "all classes"]
        counts = zip([*self.tried, sum(self.tried)], [*self.kept, sum(self.kept)], strict=True)
        for whom, (tried, kept) in zip(whose, counts, strict=True):
            if self.keep is not None and tried > self.max_attempts * (kept + _LUCK):
                allowed = (
                    f"max_attempts={self.max_attempts} allows as many an image, and {_LUCK} times that for bad luck"
                )
                stays = f". What was kept stays in {shown(self.folder)}, which goes on with more max_attempts alone"
                raise RuntimeError(
                    f"keep turned down {tried - kept} of {tried} candidates of {whom}, and {allowed}; raise "
                    f"max_attempts, loosen keep or improve the generator{stays if self.attempts else ''}"
                )

    def write_manifest(self, per_class: int) -> None:
        """Write the lines of all pictures, class by class, if all ranks are through."""
        found = files.find_pictures(self.folder, self.classes)
        if len(found) < len(self.classes) * per_class:
            return
        lines = []
        for label, index in found:
            place = index * len(self.classes) + label
            picture = None if place in self.lines else files.read_picture(self.path(place))  # of another rank
            if picture is None and place not in self.lines:  # damaged; its own rank makes it anew, and the manifest
                return
            lines.append(self.lines[place] if picture is None else picture[1])
        content = "".join(f"{line}\n" for line in lines).encode()
        path = self.folder / MANIFEST
        if not path.exists() or path.read_bytes() != content:
            write_atomically(content, path)

    def dataset(self) -> ImageDataset:
        """Return the pictures of this rank, class by class."""
        places = sorted(self.pixels, key=lambda place: divmod(place, len(self.classes))[::-1])
        labels = torch.tensor([place % len(self.classes) for place in places])
        return ImageDataset(torch.stack([self.pixels[place] for place in places]), labels, self.classes)


def weights_hash(model: nn.Module) -> str:
    """Return 16 hexadecimal digits that change with any weight or saved buffer of a network, for ``about``.

    Raises:
        TypeError: if model is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            own = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {own.dtype} {tuple(own.shape)} ".encode())
            digest.update(own.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _plain(about: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the facts as JSON gives them back, or raise."""
    if about is not None and not isinstance(about, Mapping):
        raise TypeError(f"about is a {type(about).__name__}; give a dict such as {{'sampler': 'ddim', 'steps': 50}}")
    taken = [name for name in about or {} if name in _OWN_NAMES]
    if taken:
        raise ValueError(f"about holds {taken[0]!r}, which the manifest uses itself; give it another name")
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(about or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"about must hold plain values such as text and numbers ({error})") from None
    return plain


def _size(image: Any) -> str:
    channels, height, width = getattr(image, "shape", image)
    return f"{channels} x {height} x {width}"
