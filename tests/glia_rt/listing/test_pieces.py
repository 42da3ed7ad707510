"""What all pieces of a listing have in common."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from glia_rt.listing.pieces import File, Picture, Refused
from glia_rt.listing.sources import Sources


def test_a_file_is_one_picture() -> None:
    file = File("photos/a.jpg", folder="photos")
    assert (file.count, file.changed()) == (1, None)
    assert list(file.pictures()) == [Picture("photos/a.jpg", "photos/a.jpg", folder="photos")]
    assert list(file.pictures(1)) == []


def test_a_place_that_cannot_be_read_is_one_row() -> None:
    archive = Refused("a.parquet", "why")
    assert (archive.count, archive.changed()) == (1, None)
    assert list(archive.pictures()) == [Picture("a.parquet", None, "why")]
    assert list(archive.pictures(1)) == []


@pytest.mark.parametrize("name", ["0.tar", "0.parquet"])
def test_a_fifo_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert list(Sources([tmp_path / name]).pieces()) == [
        Refused(str(tmp_path / name), "cannot be read: not a regular file")
    ]


@pytest.mark.parametrize("ending", [".tar", ".parquet"])
def test_a_name_with_a_nul(ending: str) -> None:
    assert list(Sources([f"a\0b{ending}"]).pieces()) == [Refused(f"a\0b{ending}", "cannot be read: embedded null byte")]
