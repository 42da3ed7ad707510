"""KADID-10k's 25 distortions at five levels over a folder of photographs: a dataset in KADID-10k's layout.

    OUT/images/NAME.png          a photograph
    OUT/images/NAME_DD_LL.png    the same, distorted by distortion DD at level LL
    OUT/pictures.csv             every picture: path,reference,distortion,level, and the metric if there is one
    OUT/distort.json             how they were made: metric, seed, names of the photographs, versions
    OUT/dmos.csv                 labels by the metric, in KADID-10k's columns; not there without a metric

`glia_train.datasets.kadid10k` reads the folder if it is labelled. pictures.csv is a list for `glia-rt score`, and a
user's own labels for training, because it has the metric in a column.

A picture depends on the seed, the photograph's pixels and its path below the folder, the distortion and the level. It
does not depend on the other photographs, nor on the number of threads. Threads suffice, because the functions of numpy,
scipy and scikit-image that take the time release the GIL.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from glia_rt.errors import BadImageError, GliaError, OutputExistsError, UsageError
from glia_rt.files import whole_folder, write_whole
from glia_rt.listing.folders import find_images
from glia_rt.pipeline import ordered_map
from glia_rt.pixels.decode import read_image
from glia_rt.pixels.names import display_name
from glia_rt.versions import installed_versions
from glia_train.datasets.kadid10k import COLUMNS, IMAGES, LABELS, RECORD
from glia_train.distortions import DISTORTIONS, LEVELS, MIN_SIDE, distort
from glia_train.full_reference import METRICS, Metric

#: The list of the pictures.
PICTURES: Final = "pictures.csv"
#: Pictures that are made of a photograph: itself, and every distortion at every level.
PER_PHOTOGRAPH: Final = 1 + len(DISTORTIONS) * LEVELS
#: Greatest number of characters of a name. File systems allow 255 bytes, and a character may take four.
_MAX_NAME: Final = 56

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Photograph:
    """A photograph to distort.

    Attributes:
        name: Its name in the new folder, which no other photograph has in any case.
        file: Its path below the folder of the photographs.
        path: The file.
    """

    name: str
    file: str
    path: str


@dataclass(frozen=True)
class _Made:
    """A picture that was written; distortion and level are None and 0 for the photograph itself."""

    reference: str
    distortion: str | None
    level: int
    value: float | None

    @property
    def file(self) -> str:
        if self.distortion is None:
            return f"{self.reference}.png"
        return f"{self.reference}_{DISTORTIONS[self.distortion].number:02}_{self.level:02}.png"


def find_photographs(folder: str | os.PathLike[str]) -> list[Photograph]:
    """Return the pictures in a folder and below it, in the order of names. They are not opened.

    A name is made of the path below the folder: what could not be in a file name everywhere becomes "_", and so does a
    separator. Where several photographs would have one name, or a name could be that of a distorted picture, a hash of
    the path is added.

    Raises:
        UsageError: It is no folder, cannot be listed, or has no pictures.
    """
    top = os.fspath(folder)
    if not os.path.isdir(top):
        raise UsageError(f"{display_name(top)}: not a folder; name the folder of the photographs")
    paths = list(find_images([top]))
    if not paths:
        raise UsageError(f"{display_name(top)}: no pictures in this folder or below it")
    files = [os.path.relpath(path, top) for path in paths]
    plain = [_plain_name(file) for file in files]
    taken = Counter(name.casefold() for name in plain)
    names = [
        name if _is_good(name) and taken[name.casefold()] == 1 else f"{name[:_MAX_NAME]}-{_digest(file)[:8]}"
        for name, file in zip(plain, files, strict=True)
    ]
    return [Photograph(*photograph) for photograph in zip(names, files, paths, strict=True)]


def _plain_name(file: str) -> str:
    stem = unicodedata.normalize("NFC", os.path.splitext(file)[0].replace(os.sep, "__"))
    return re.sub(r"[^\w.-]", "_", stem).lstrip(".")


def _is_good(name: str) -> bool:
    is_short = 0 < len(name) <= _MAX_NAME
    return is_short and not re.search(r"_\d\d_\d\d$", name) and not re.search(r"-[0-9a-f]{8}$", name)


def _digest(file: str) -> str:
    return hashlib.sha256(os.fsencode(file)).hexdigest()


def require_photographs(
    photographs: Sequence[Photograph], *, max_side: int | None, workers: int, done: Callable[[], object] = lambda: None
) -> None:
    """Decode every photograph once, in threads, so that a bad one is found before the work and not hours into it.

    Args:
        photographs: The photographs.
        max_side: As for `distort_photographs`.
        workers: Number of threads.
        done: Is called after each photograph.

    Raises:
        BadImageError: Some cannot be read. The message counts them and names the first.
        UsageError: Some are too small to be distorted, or two are the same picture.
    """

    def look(photograph: Photograph) -> tuple[str, str]:
        """Return a complaint, and the hash of the pixels."""
        try:
            pixels = _read(photograph, max_side)
        except BadImageError as error:
            return str(error), ""
        height, width = pixels.shape[:2]
        if min(height, width) < MIN_SIDE:
            return f"{display_name(photograph.path)}: {width}x{height} pixels", "small"
        return "", hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()

    seen: dict[str, Photograph] = {}
    bad: list[str] = []
    small: list[str] = []
    same: list[str] = []
    with ThreadPoolExecutor(workers, "glia-read") as readers:
        looks = ordered_map(readers, look, photographs, ahead=2 * workers)
        for photograph, (complaint, pixels) in zip(photographs, looks, strict=True):
            if complaint:
                (small if pixels else bad).append(complaint)
            elif (first := seen.setdefault(pixels, photograph)) is not photograph:
                same.append(f"{display_name(photograph.path)} is the same picture as {display_name(first.path)}")
            done()
    if bad:
        raise BadImageError(f"{bad[0]}{_and_more(bad)}; mend it, or take it out of the folder")
    if small:
        raise UsageError(
            f"{small[0]}, and distortions need at least {MIN_SIDE}x{MIN_SIDE}{_and_more(small)}; enlarge it, or "
            "take it out of the folder"
        )
    if same:
        raise UsageError(
            f"{same[0]}{_and_more(same)}; remove one of them, because a split could part them as two contents"
        )


def _and_more(all_of_them: Sequence[str]) -> str:
    return f", and {len(all_of_them) - 1} more like it" if len(all_of_them) > 1 else ""


def require_output(photographs: str | os.PathLike[str], out: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Refuse an output that cannot be written, or that would take away what is not this module's.

    Raises:
        UsageError: One of the two folders lies in the other, or `out` is a file or holds other files.
        OutputExistsError: `out` holds an earlier dataset, and `overwrite` is False.
    """
    top, new = Path(photographs).resolve(), Path(out).resolve()
    if top.is_relative_to(new) or new.is_relative_to(top):
        raise UsageError(f"{out} and {photographs} lie in each other: name a folder beside the photographs")
    if not os.path.lexists(out):
        return
    if not new.is_dir():
        raise UsageError(f"{out} is a file; --out names a folder")
    found = set(os.listdir(new))
    if other := found - ({IMAGES, PICTURES, RECORD, LABELS} if RECORD in found else set()):
        raise UsageError(
            f"{out} holds {display_name(min(other))}, which `glia-rt data distort` did not write: name a new folder"
        )
    if found and not overwrite:
        raise OutputExistsError(f"{out} holds an earlier dataset: give --overwrite to replace it, or another --out")


def distort_photographs(
    photographs: Sequence[Photograph],
    out: str | os.PathLike[str],
    *,
    seed: int,
    metric: str | None = None,
    max_side: int | None = None,
    workers: int = 1,
    done: Callable[[], object] = lambda: None,
) -> int:
    """Write a dataset. The folder appears when it is whole, and replaces one that has its name.

    Args:
        photographs: The photographs, as `require_photographs` lets them pass.
        out: The folder. See `require_output`.
        seed: At least 0. It fixes all that distortions draw.
        metric: A key of `METRICS`, which gives the labels. None for pictures without labels.
        max_side: Photographs with a longer side are reduced to it first, pixels. None leaves all as they are.
        workers: Number of threads.
        done: Is called after each picture.

    Returns:
        The number of pictures that were written.

    Raises:
        UsageError: There is no such metric, or the seed is negative.
        BadImageError: A photograph cannot be read.
        GliaError: The folder cannot be written.
    """
    if metric is not None and metric not in METRICS:
        raise UsageError(f"there is no metric {metric!r}; there is {', '.join(METRICS)}")
    if seed < 0:
        raise UsageError(f"the seed must not be negative, it is {seed}")
    labelled = METRICS[metric] if metric else None
    path = Path(os.path.abspath(out))
    made: list[_Made] = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(path) as folder:
            images = folder / IMAGES
            images.mkdir()

            def make(job: tuple[Photograph, Pixels, str | None, int]) -> _Made:
                photograph, pixels, name, level = job
                changed = pixels
                if name is not None:
                    changed = distort(pixels, name, level, _draws(seed, photograph, name, level))
                value = labelled.measure(pixels, changed) if labelled else None
                result = _Made(photograph.name, name, level, value)
                # PNG is lossless, so that the file holds exactly the pixels that the label is computed from.
                Image.fromarray(changed).save(images / result.file, compress_level=1)
                return result

            with (
                ThreadPoolExecutor(workers, "glia-distort") as pool,
                closing(ordered_map(pool, make, _jobs(photographs, max_side), ahead=2 * workers)) as results,
            ):
                for result in results:
                    made.append(result)
                    done()
            write_whole(folder / PICTURES, _list(made, labelled))
            write_whole(folder / RECORD, _record(photographs, labelled, seed, max_side))
            if labelled:  # last, because a reader takes the folder for whole that has it
                write_whole(folder / LABELS, _labels(made, labelled))
    except OSError as error:
        raise GliaError(f"{out}: cannot be written: {error.strerror or error}; name another folder") from error
    return len(made)


def _read(photograph: Photograph, max_side: int | None) -> Pixels:
    pixels = read_image(photograph.path)
    height, width = pixels.shape[:2]
    if max_side is None or max(height, width) <= max_side:
        return pixels
    scale = max_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def _jobs(
    photographs: Sequence[Photograph], max_side: int | None
) -> Iterator[tuple[Photograph, Pixels, str | None, int]]:
    for photograph in photographs:
        pixels = _read(photograph, max_side)
        yield photograph, pixels, None, 0
        yield from ((photograph, pixels, name, level) for name in DISTORTIONS for level in range(1, LEVELS + 1))


def _draws(seed: int, photograph: Photograph, name: str, level: int) -> np.random.Generator:
    """Return the source of chance for one picture."""
    path = int(_digest(photograph.file.replace(os.sep, "/")), 16)
    return np.random.default_rng([seed, path, DISTORTIONS[name].number, level])


def _list(made: Sequence[_Made], metric: Metric | None) -> str:
    rows = [
        [f"{IMAGES}/{one.file}", f"{one.reference}.png", one.distortion, one.level, *_number(one.value)] for one in made
    ]
    return _to_csv(["path", "reference", "distortion", "level", *([metric.name] if metric else [])], rows)


def _labels(made: Sequence[_Made], metric: Metric) -> str:
    """Return dmos.csv. The photographs are not in it, as in KADID-10k. A metric has no variance between raters."""
    rows = [
        [one.file, f"{one.reference}.png", *_number(metric.to_score(one.value)), 0]
        for one in made
        if one.distortion is not None and one.value is not None
    ]
    return _to_csv(COLUMNS, rows)


def _number(value: float | None) -> list[str]:
    return [] if value is None else [f"{value:.6f}"]


def _to_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return table.getvalue()


def _record(photographs: Sequence[Photograph], metric: Metric | None, seed: int, max_side: int | None) -> str:
    record = {
        "made_by": "glia-rt data distort: KADID-10k's 25 distortions at 5 levels",
        "metric": metric and metric.title,
        "metric_in_full": metric and metric.in_full,
        "metric_direction": metric and metric.direction,
        "dmos": metric and metric.label,
        "seed": seed,
        "max_side": max_side,
        "photographs": {one.name: display_name(one.file) for one in photographs},
        "versions": installed_versions("glia-rt", "numpy", "scipy", "scikit-image", "pillow"),
    }
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"
