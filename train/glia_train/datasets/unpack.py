"""Pictures in archives, written out as files, because training reads them in random order."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from pathlib import Path

from glia_rt import files
from glia_train.datasets.base import Encoded, LabelledPicture


def unpack(pictures: Iterable[LabelledPicture], folder: Path) -> tuple[LabelledPicture, ...]:
    """Return pictures that are all files. Those in archives are written to a folder, as they are.

    Pictures that the folder has already are not written again. Several datasets may share the folder.

    Args:
        pictures: The pictures.
        folder: The folder, which is made if a picture has to be written.

    Raises:
        BadImageError: A row of an archive holds no picture.
        OSError: The folder cannot be written to.
    """
    return tuple(
        one if one.cell is None else dataclasses.replace(one, path=_file_of(one.cell, folder), cell=None)
        for one in pictures
    )


def _file_of(cell: Encoded, folder: Path) -> Path:
    """Return the file of a picture in an archive, which is written if it is not there."""
    path = folder / hashlib.sha256(cell.identity().encode()).hexdigest()[:32]
    if not path.exists():
        source = cell.read()
        if isinstance(source, Path):
            return source
        folder.mkdir(parents=True, exist_ok=True)
        files.write_whole(path, source)
    return path
