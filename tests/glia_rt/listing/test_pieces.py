"""What all pieces of a listing have in common."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from glia_rt.errors import SourceError
from glia_rt.listing.pieces import DamagedArchive, File, Picture
from glia_rt.listing.sources import Sources


def test_a_file_is_one_picture() -> None:
    file = File("photos/a.jpg", folder="photos")
    assert (file.count, file.key()) == (1, "photos/a.jpg")
    assert list(file.pictures()) == [Picture("photos/a.jpg", "photos/a.jpg", folder="photos")]
    assert list(file.pictures(1)) == []


def test_a_damaged_archive_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("x")
    archive = DamagedArchive(str(tmp_path / "a.parquet"), "why")
    assert (archive.count, archive.key().startswith(f"{tmp_path}/a.parquet 1 ")) == (1, True)
    assert list(archive.pictures()) == [Picture(f"{tmp_path}/a.parquet", None, "why")]
    assert list(archive.pictures(1)) == []


@pytest.mark.parametrize("name", ["0.tar", "0.parquet"])
def test_a_fifo_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    for act in (lambda s: s.summary(), lambda s: list(s.pictures())):
        with pytest.raises(SourceError, match=f"{name}: cannot be read: not a regular file"):
            act(Sources([tmp_path / name]))


@pytest.mark.parametrize("ending", [".tar", ".parquet"])
def test_a_name_with_a_nul(ending: str) -> None:
    with pytest.raises(SourceError, match="cannot be read: embedded null byte"):
        next(Sources([f"a\0b{ending}"]).pieces()).key()
