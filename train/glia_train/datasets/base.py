"""The table that every dataset is read into, with one row for each picture."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, Protocol

from glia_rt.errors import BadImageError, UsageError
from glia_rt.pixels.names import display_name

Part = Literal["train", "validation", "test"]
#: The parts of a split, in order.
PARTS: Final[tuple[Part, ...]] = ("train", "validation", "test")
#: Columns of a labels file, which `datasets.csv` reads and the demo writes; `reference` may be left out.
COLUMNS: Final = ("path", "score", "reference")


class Encoded(Protocol):
    """A picture that is not a file of its own, such as a cell of a Parquet file."""

    def read(self) -> Path | bytes:
        """Return the encoded picture, or the path of its file.

        Raises:
            BadImageError: There is none, or the archive is damaged.
        """

    def identity(self) -> str:
        """Return where the picture lies, and what the archive was like; another picture has another identity."""


@dataclass(frozen=True)
class LabelledPicture:
    """One row of a dataset.

    Attributes:
        name: The picture's name in the dataset. No other row has it.
        path: The file of the picture; None if `cell` holds it.
        score: The label. It rises with quality.
        reference: Name of the content that the picture shows; None where the dataset does not tell.
        group: Name that pictures share which must not be parted, such as near-duplicates. None stands for the
            reference, or for the picture itself. See `join_groups` for rows that have a group and a reference.
        distortion: What was done to the picture, where the dataset tells.
        subset: The part of the collection that the picture comes from, where the dataset tells.
        part: The part of the official split; None where there is no official split.
        cell: The picture, if it is not a file of its own.
    """

    name: str
    path: Path | None
    score: float
    reference: str | None = None
    group: str | None = None
    distortion: str | None = None
    subset: str | None = None
    part: Part | None = None
    cell: Encoded | None = None

    @property
    def kept_together(self) -> str:
        """Return the name that pictures share which a split must not part."""
        return self.group or self.reference or self.name

    def source(self) -> Path | bytes:
        """Return the picture as `glia_rt.pixels.decode.read_image` takes it.

        Raises:
            BadImageError: The picture is in an archive, and is not there.
        """
        if self.path is not None:
            return self.path
        if self.cell is None:
            raise BadImageError("the row has no picture", self.name)
        return self.cell.read()


@dataclass(frozen=True)
class Dataset:
    """A dataset as it lies on disk.

    Attributes:
        name: The dataset's name on the command line, or the file of the labels.
        pictures: The rows, in the order of the labels.
        score_range: Least and greatest score of the scale that people rated on; None for a user's own labels.
    """

    name: str
    pictures: tuple[LabelledPicture, ...]
    score_range: tuple[float, float] | None = None

    @property
    def labels_sha256(self) -> str:
        """Return a hash of names, scores, and what decides the split."""
        rows = sorted((p.name, p.score, p.kept_together, p.part) for p in self.pictures)
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    @property
    def leaking(self) -> frozenset[str]:
        """Return the names of the pictures of the official test part that have a near-duplicate in another part."""
        outside = {picture.kept_together for picture in self.pictures if picture.part not in (None, "test")}
        test = (picture for picture in self.pictures if picture.part == "test")
        return frozenset(picture.name for picture in test if picture.kept_together in outside)


def join_groups(pictures: Sequence[LabelledPicture]) -> tuple[LabelledPicture, ...]:
    """Return the rows with groups that hold whole references, so that `kept_together` parts neither.

    A picture joins its group and its reference. Groups and references that are joined, directly or over several
    pictures, become one group, named after the first one. A group that has the name of a picture holds that picture.
    """
    if not any(picture.group for picture in pictures):
        return tuple(pictures)
    above: dict[str, str] = {}

    def top(key: str) -> str:
        while (up := above.setdefault(key, key)) != key:
            above[key] = key = above[up]
        return key

    for picture in pictures:
        for key in (picture.group, picture.reference and f"reference {picture.reference}"):
            if key:
                above[top(key)] = top(picture.name)
    groups: dict[str, str] = {}
    for picture in pictures:
        if picture.group:
            groups.setdefault(top(picture.name), picture.group)
    return tuple(replace(picture, group=groups.get(top(picture.name))) for picture in pictures)


def missing_pictures(pictures: Iterable[LabelledPicture]) -> list[LabelledPicture]:
    """Return the pictures whose files are not there."""
    # os.path.isfile says no where Path.is_file would raise: for a name that is too long, or a folder that is locked.
    return [picture for picture in pictures if picture.path is not None and not os.path.isfile(picture.path)]


def require_pictures(dataset: Dataset) -> None:
    """Refuse a dataset of which some files are missing, or from which nothing can be learnt.

    Raises:
        UsageError: Files are missing, there are no rows, or all scores are the same.
    """
    pictures = dataset.pictures
    if missing := missing_pictures(pictures):
        raise UsageError(
            f"{dataset.name}: {len(missing)} of {len(pictures)} pictures are not there, first {missing[0].path}; "
            f"`glia-rt data check` lists them"
        )
    if not pictures:
        raise UsageError(f"{dataset.name}: no rows")
    if len({picture.score for picture in pictures}) == 1:
        raise UsageError(f"{dataset.name}: every score is {pictures[0].score:g}: there is nothing to learn from")


def require_scores(where: str, pictures: Sequence[LabelledPicture], score_range: tuple[float, float]) -> None:
    """Refuse labels outside the scale that they are said to be on.

    Raises:
        UsageError: Some scores are outside. The message counts them and names the first.
    """
    low, high = score_range
    if outside := [picture for picture in pictures if not low <= picture.score <= high]:
        first = outside[0]
        raise UsageError(
            f"{where}: {len(outside)} of {len(pictures)} scores lie outside {low:g} to {high:g}, "
            f"first {first.score:g} of {first.name}"
        )


def require_layout(root: Path, title: str, entries: Sequence[str]) -> None:
    """Refuse a folder that is not there, or is not a dataset's.

    Args:
        root: The folder.
        title: The dataset's name as people know it.
        entries: Names of the files and folders in it. Those of folders end in a slash.

    Raises:
        UsageError: Some are missing. The message says what was expected and what is there.
    """
    expected = f"the folder of {title} holds {', '.join(entries)}"
    if not root.is_dir():
        raise UsageError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}; {expected}")
    try:
        found = sorted(os.listdir(root))
    except OSError as error:
        raise UsageError(f"{root}: cannot be listed: {error.strerror}; {expected}") from error
    if missing := _lacking(root, entries):
        inside = next((name for name in found if (root / name).is_dir() and not _lacking(root / name, entries)), None)
        advice = f"give {root / inside}" if inside else f"it holds {some_names(found)}"
        raise UsageError(f"{root}: no {' and no '.join(missing)}; {expected}; {advice}")


def _lacking(root: Path, entries: Sequence[str]) -> list[str]:
    return [entry for entry in entries if not (os.path.isdir if entry.endswith("/") else os.path.isfile)(root / entry)]


def some_names(names: Sequence[str], most: int = 8) -> str:
    """Return names for a message: the first ones, shortened, and how many more there are."""
    if not names:
        return "nothing"
    shown = [repr(display_name(name if len(name) <= 60 else f"{name[:60]}...")) for name in names[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


class FolderFiles:
    """The files of a folder, found by names whose case may differ, because labels and disks differ in that.

    A folder that is not there has none.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[str, list[str]] = {}
        try:
            for name in sorted(os.listdir(folder)):
                self._names.setdefault(name.lower(), []).append(name)
        except OSError:
            return

    def find(self, name: str) -> Path:
        """Return the path of a file: that of this very name, or else of the only one that differs in case.

        Where there is none, the path is the one that the file should have.

        Raises:
            UsageError: Several files differ from the name in case, and none has it.
        """
        found = self._names.get(name.lower(), [])
        if name in found or not found:
            return self._folder / name
        if len(found) > 1:
            raise UsageError(f"{self._folder}: {name} may be {some_names(found)}: rename the one that it is")
        return self._folder / found[0]
