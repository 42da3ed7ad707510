"""Pictures in archives, written out as files, because training reads them in random order."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from pathlib import Path

from glia_rt import files
from glia_train.datasets.base import LabelledPicture


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
    return tuple(picture if picture.cell is None else _unpacked(picture, folder) for picture in pictures)


def _unpacked(picture: LabelledPicture, folder: Path) -> LabelledPicture:
    assert picture.cell is not None
    path = folder / hashlib.sha256(picture.cell.identity().encode()).hexdigest()[:32]
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        source = picture.cell.read()
        if isinstance(source, Path):
            path = source
        else:
            files.write_whole(path, source)
    return dataclasses.replace(picture, path=path, cell=None)
