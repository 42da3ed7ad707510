"""Labelled pictures: read from a CSV, split into a training and a held-out part, and turned into views."""

from __future__ import annotations

import csv
import functools
import io
import math
import os
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from glia_rt.contract import Contract
from glia_rt.errors import BadImageError, UsageError
from glia_rt.images import read_image
from glia_rt.pipeline import ordered_map
from glia_rt.sampler import Views, make_views

COLUMNS: Final = ("path", "score", "reference")
TRAIN_FRACTION: Final = 0.8
#: Fewer references (or pictures) than this cannot be cut 80 to 20.
MIN_GROUPS: Final = 5


@dataclass(frozen=True)
class LabelledPicture:
    """One row of a labels file.

    Attributes:
        name: The path as the file writes it.
        path: Where the picture is.
        score: Its label; rises with quality.
        reference: Name of the content it shows, where the file has that column.
    """

    name: str
    path: Path
    score: float
    reference: str | None = None


@dataclass(frozen=True)
class Split:
    """The two parts of a data set, each sorted by name.

    Attributes:
        train: About 80 % of the references, or of the pictures where there are none.
        test: The held-out rest.
        by: What was drawn; by "reference", no content is in both parts.
    """

    train: tuple[LabelledPicture, ...]
    test: tuple[LabelledPicture, ...]
    by: Literal["reference", "picture"]

    def to_csv(self) -> str:
        """The split as a table, path,score,reference,split; the last is "train" or "test"."""
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow([*COLUMNS, "split"])
        for part, pictures in (("train", self.train), ("test", self.test)):
            writer.writerows([p.name, p.score, p.reference, part] for p in pictures)
        return table.getvalue()


def read_labels(labels: str | os.PathLike[str]) -> list[LabelledPicture]:
    """Read a labels file.

    Args:
        labels: A CSV in UTF-8, with or without BOM, whose first line is path,score or path,score,reference, in any
            order. Relative paths start at the folder that the CSV is in. Scores rise with quality.

    Raises:
        UsageError: The file cannot be used; the message names the line.
    """
    labels = Path(labels)
    try:
        text = labels.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{labels}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{labels}: not UTF-8 (byte {error.start}): save it as UTF-8") from error

    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    pictures: list[LabelledPicture] = []
    seen: dict[str, int] = {}
    missing: list[str] = []
    try:
        header = next(rows, [])
        _check_header(labels, header)
        for row in rows:
            if not row:
                continue
            where = f"{labels}, line {rows.line_num}"
            picture = _parse_row(where, labels.parent, header, row)
            place = os.path.normpath(picture.path)
            if (first := seen.setdefault(place, rows.line_num)) != rows.line_num:
                raise UsageError(f"{where}: {picture.name} is in line {first} already: keep one of them")
            if not picture.path.is_file():
                missing.append(f"line {rows.line_num}: {picture.path}")
            pictures.append(picture)
    except csv.Error as error:
        raise UsageError(f"{labels}, line {rows.line_num}: not CSV: {error}") from error
    if missing:
        raise UsageError(
            f"{labels}: {len(missing)} of {len(pictures)} pictures are not there, first {missing[0]}; "
            "relative paths start at the folder of the labels file"
        )
    if not pictures:
        raise UsageError(f"{labels}: no rows after the header")
    if len({picture.score for picture in pictures}) == 1:
        raise UsageError(f"{labels}: every score is {pictures[0].score:g}: there is nothing to learn from")
    return pictures


def _check_header(labels: Path, header: Sequence[str]) -> None:
    allowed = f"the first line names the columns: {','.join(COLUMNS)}, of which reference may be left out"
    if missing := [column for column in COLUMNS[:2] if column not in header]:
        raise UsageError(f"{labels}, line 1: no column {' and no column '.join(missing)}; {allowed}")
    if unknown := [column for column in header if column not in COLUMNS]:
        raise UsageError(f"{labels}, line 1: unknown column {', '.join(map(repr, unknown))}; {allowed}")
    if len(set(header)) < len(header):
        raise UsageError(f"{labels}, line 1: a column is there twice; {allowed}")


def _parse_row(where: str, folder: Path, header: Sequence[str], row: Sequence[str]) -> LabelledPicture:
    if len(row) != len(header):
        raise UsageError(f"{where}: {len(row)} fields where the header has {len(header)}")
    fields = dict(zip(header, row, strict=True))
    if not fields["path"]:
        raise UsageError(f"{where}: the path is empty")
    try:
        score = float(fields["score"])
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise UsageError(f"{where}: the score must be a finite number, not {fields['score']!r}")
    if fields.get("reference") == "":
        raise UsageError(f"{where}: the reference is empty: give every picture one, or leave the column out")
    return LabelledPicture(fields["path"], folder / fields["path"], score, fields.get("reference"))


def split_pictures(pictures: Iterable[LabelledPicture], seed: int) -> Split:
    """Draw the training and the held-out part, 80 to 20, from sorted names, so that only the seed decides.

    Args:
        pictures: All with a reference, or all without.
        seed: At least 0.

    Raises:
        UsageError: Too few references or pictures, or all training pictures have the same score.
    """
    pictures = sorted(pictures, key=lambda picture: picture.name)
    by: Literal["reference", "picture"] = "reference" if pictures[0].reference is not None else "picture"
    groups = sorted({picture.reference or picture.name for picture in pictures})
    if len(groups) < MIN_GROUPS:
        advice = "; without the reference column the split is by picture" if by == "reference" else ""
        raise UsageError(f"an 80/20 split by {by} needs at least {MIN_GROUPS}, the labels have {len(groups)}{advice}")
    order = np.random.default_rng(seed).permutation(len(groups))
    drawn = {groups[i] for i in order[: round(TRAIN_FRACTION * len(groups))]}
    train = tuple(picture for picture in pictures if (picture.reference or picture.name) in drawn)
    test = tuple(picture for picture in pictures if (picture.reference or picture.name) not in drawn)
    if len({picture.score for picture in train}) == 1:
        raise UsageError(
            f"every training picture has the score {train[0].score:g}: give another --seed, or more pictures"
        )
    return Split(train, test, by)


def check_pictures(pictures: Iterable[LabelledPicture], workers: int) -> None:
    """Decode every picture once, in threads: better now than hours into a run.

    Raises:
        BadImageError: Some cannot be read; the message counts them and names the first.
    """

    def complaint(picture: LabelledPicture) -> str | None:
        try:
            read_image(picture.path)
        except BadImageError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(workers, "glia-read") as readers:
        bad = [reason for reason in ordered_map(readers, complaint, pictures, ahead=2 * workers) if reason]
    if bad:
        more = f", and {len(bad) - 1} more pictures cannot be read" if len(bad) > 1 else ""
        raise BadImageError(f"{bad[0]}{more}; mend what the labels name, or take it out of them")


@dataclass(frozen=True)
class ViewLoader:
    """Turns pictures, named by their indices, into batches of views, in threads that work ahead.

    Threads, since decoding and resizing leave Python to others meanwhile, and start at once on every system.

    Attributes:
        pictures: What the indices count.
        contract: Sizes of the views.
        seed: With an epoch and an index it fixes every draw, whatever the number of workers.
        workers: Threads that decode.
    """

    pictures: Sequence[LabelledPicture]
    contract: Contract
    seed: int
    workers: int

    def batches(
        self, indices: Sequence[int], batch_size: int, epoch: int | None
    ) -> Generator[tuple[Tensor, Tensor, Tensor]]:
        """Views and labels in the order of `indices`; closing the generator early ends its threads.

        Args:
            indices: Of pictures.
            batch_size: N of every batch but the last, which may be smaller.
            epoch: As `views` takes it.

        Yields:
            Global views and fragments, uint8 (N, 224, 224, 3), and labels, float32 (N,).

        Raises:
            BadImageError: A picture cannot be read.
        """
        read = functools.partial(self.views, epoch=epoch)
        with (
            ThreadPoolExecutor(self.workers, "glia-read") as readers,
            closing(ordered_map(readers, read, indices, ahead=batch_size + self.workers)) as views,
        ):
            for start in range(0, len(indices), batch_size):
                batch = indices[start : start + batch_size]
                global_views, fragments = zip(*islice(views, len(batch)), strict=True)
                yield (
                    torch.from_numpy(np.stack(global_views)),
                    torch.from_numpy(np.stack(fragments)),
                    torch.tensor([self.pictures[i].score for i in batch], dtype=torch.float32),
                )

    def views(self, index: int, epoch: int | None) -> Views:
        """Views of one picture.

        Args:
            index: Of the picture.
            epoch: While training: both views are made of one picture, flipped horizontally and vertically with
                probability 1/2 each, and the fragments lie anywhere in their cells. None for the deterministic views
                of scoring.

        Raises:
            BadImageError: The picture cannot be read.
        """
        image = read_image(self.pictures[index].path)
        if epoch is None:
            return make_views(image, self.contract)
        rng = np.random.default_rng([self.seed, epoch, index])
        # The picture is flipped, not the views: a mosaic flipped as a whole is one no flipped picture gives, since
        # cells start at the top left.
        flip_rows, flip_columns = rng.random(2) < 0.5
        return make_views(image[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1], self.contract, rng)
