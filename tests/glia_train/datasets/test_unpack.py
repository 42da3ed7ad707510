"""Pictures in archives become files, and are never taken for those of another archive."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from glia_rt.pixels.decode import read_image
from glia_train.datasets.base import LabelledPicture
from glia_train.datasets.parquet import read_parquet
from glia_train.datasets.unpack import unpack


def archive(path: Path, greys: list[int]) -> tuple[LabelledPicture, ...]:
    cells = []
    for grey in greys:
        file = io.BytesIO()
        Image.new("RGB", (4, 4), (grey, grey, grey)).save(file, "PNG")
        cells.append(file.getvalue())
    parquet.write_table(pa.table({"image": cells, "score": list(map(float, greys))}), path)
    return read_parquet([path]).pictures


def greys(pictures: tuple[LabelledPicture, ...]) -> list[int]:
    assert all(picture.cell is None for picture in pictures)
    return [int(read_image(picture.source())[0, 0, 0]) for picture in pictures]


def test_archives_share_a_folder(tmp_path: Path) -> None:
    first, second = archive(tmp_path / "a.parquet", [1, 2, 3]), archive(tmp_path / "b.parquet", [100, 101])
    assert greys(unpack(first, tmp_path / "files")) == [1, 2, 3]
    assert greys(unpack(second, tmp_path / "files")) == [100, 101]
    assert greys(unpack(first, tmp_path / "files")) == [1, 2, 3]
    assert len(list((tmp_path / "files").iterdir())) == 5


def test_an_archive_that_changed_is_unpacked_again(tmp_path: Path) -> None:
    assert greys(unpack(archive(tmp_path / "a.parquet", [1, 2]), tmp_path / "files")) == [1, 2]
    changed = archive(tmp_path / "a.parquet", [7, 8])
    os.utime(tmp_path / "a.parquet", ns=(0, 1))  # a stamp that the first one surely had not
    changed = read_parquet([tmp_path / "a.parquet"]).pictures
    assert greys(unpack(changed, tmp_path / "files")) == [7, 8]


def test_files_stay_where_they_are(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "9.png")
    picture = LabelledPicture("9.png", tmp_path / "9.png", 9.0)
    assert unpack([picture], tmp_path / "files") == (picture,)
    assert not (tmp_path / "files").exists()
