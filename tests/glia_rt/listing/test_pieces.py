"""What all pieces of a listing have in common."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from helpers.listings import glia_rt_with_rights, table, tar

from glia_rt.listing.parquet import row_groups
from glia_rt.listing.pieces import File, Picture, Position, Refused, read_piece
from glia_rt.listing.sources import Sources
from glia_rt.listing.tar import TarArchive
from glia_rt.results import Result
from glia_rt.runs.outputs import read_rows


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


def shown(output: Path) -> list[str]:
    """The rows of an output: the end of a name, and the status, or why there is no score."""
    return [f"{Path(row.path).name}: {why(row)}" for row in read_rows(output)]


def why(row: Result) -> str:
    return row.status if row.error is None else row.error


@pytest.mark.parametrize("is_pattern", [False, True])
def test_an_archive_that_may_not_be_opened_is_a_row(
    plain_bundle: Path, pictures: Path, tmp_path: Path, is_pattern: bool
) -> None:
    """It once stopped the run, and again each time that the run was resumed."""
    archives = [Path(shutil.make_archive(str(tmp_path / f"{i}"), "tar", pictures, f"0{i}.jpg")) for i in range(3)]
    archives[1].chmod(0)
    sources = [tmp_path / "*.tar"] if is_pattern else archives
    command = ["score", plain_bundle, *sources, "-o", tmp_path / "a.csv"]
    status, said = glia_rt_with_rights(*command)
    assert status == 3, said
    assert shown(tmp_path / "a.csv") == ["00.jpg: ok", "1.tar: cannot be read: Permission denied", "02.jpg: ok"]
    archives[1].chmod(0o644)
    status, said = glia_rt_with_rights(*command, "--retry-errors")
    assert status == 0, said
    assert shown(tmp_path / "a.csv") == ["00.jpg: ok", "01.jpg: ok", "02.jpg: ok"]


def test_a_parquet_file_that_is_closed_after_it_was_listed(plain_bundle: Path, tmp_path: Path) -> None:
    paths = [table(tmp_path / f"{i}.parquet", 1) for i in range(3)]
    listing = tmp_path / "l.jsonl.zst"
    status, said = glia_rt_with_rights("list", *paths, "--column", "image", "-o", listing)
    assert status == 0, said
    paths[1].chmod(0)
    status, said = glia_rt_with_rights("score", plain_bundle, "--list", listing, "-o", tmp_path / "a.csv")
    assert status == 3, said
    no_picture = "not a picture Pillow can read"
    assert shown(tmp_path / "a.csv") == [
        f"0: {no_picture}", "1.parquet: cannot be read: Permission denied", f"0: {no_picture}"
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_an_archive_that_goes_away_before_it_is_opened(tmp_path: Path, kind: str) -> None:
    """Whether its folder has gone, too, is for who reads the picture."""
    path = tmp_path / f"a.{kind}"
    if kind == "tar":
        piece = TarArchive.at(str(tar(path, "a.jpg")))
    else:
        [piece] = row_groups(str(table(path, 1)), "image")  # type: ignore[assignment]
    path.unlink()
    [(position, picture)] = read_piece(5, piece)
    assert position == Position(6, -1)
    assert picture.name == str(path)
    assert picture.refused is not None
    assert picture.refused.startswith("cannot be read: ")
    assert picture.folder == str(tmp_path)
