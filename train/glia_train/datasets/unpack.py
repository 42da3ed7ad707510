"""Pictures in archives, written out as files, because training reads them in random order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from glia_rt import files
from glia_train.datasets.base import Dataset


def unpack(dataset: Dataset, folder: Path, done: Callable[[int], None] = lambda _: None) -> Dataset:
    """Return a dataset whose pictures are all files. Those in archives are written to a folder, as they are.

    Pictures that the folder has already are not written again.

    Args:
        dataset: The dataset.
        folder: The folder, which is made if a picture has to be written.
        done: Is called with the number of pictures written so far.

    Raises:
        BadImageError: A row of an archive holds no picture.
    """
    pictures = []
    for number, picture in enumerate(dataset.pictures):
        if picture.cell is None:
            pictures.append(picture)
            continue
        path = folder / f"{number:07}"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            source = picture.source()
            if isinstance(source, Path):
                path = source
            else:
                files.write_whole(path, source)
        pictures.append(dataclasses.replace(picture, path=path, cell=None))
        done(number + 1)
    return dataclasses.replace(dataset, pictures=tuple(pictures))
