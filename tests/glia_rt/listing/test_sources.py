"""Arguments of every kind, and what they come to: patterns, archives, tables, what is left out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from helpers.listings import glia_rt_with_rights, listed, make, pieces, table, tar
from PIL import Image
from pyarrow import parquet

from glia_rt.errors import UsageError
from glia_rt.listing.sources import Sources
from glia_rt.pixels.decode import read_image


def test_what_an_argument_is_decides_how_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "album/2.jpg", "album/10.jpg", "album/x.tar", "album/x.parquet", "a.jpg")
    tar(tmp_path / "0.TAR", "p.jpg", "q.jpg")
    table(tmp_path / "t.parquet", 3)
    monkeypatch.chdir(tmp_path)
    sources = Sources(["a.jpg", "album", Path("0.TAR"), "t.parquet", "missing.jpg"], column="image")
    assert pieces(sources) == [
        "File a.jpg", "File album/10.jpg", "File album/2.jpg", "TarArchive 0.TAR", "RowGroup t.parquet",
        "RowGroup t.parquet", "File missing.jpg",
    ]  # fmt: skip
    assert listed(sources) == [
        "a.jpg", "album/10.jpg", "album/2.jpg", "0.TAR/p.jpg", "0.TAR/q.jpg", "t.parquet/0", "t.parquet/1",
        "t.parquet/2", "missing.jpg",
    ]  # fmt: skip


ALL = ["B.jpg", "b.jpg", "deep/c.jpg", "deep/er/d.jpg", "deep-2/e.png", "x.jpg/y.jpg", "é.jpg"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", ["1.tar/p.jpg", *ALL]),
        ("**", ["1.tar/p.jpg", *ALL[:4], "deep/x.tar/q.jpg", *ALL[4:]]),
        ("**/*", ["1.tar/p.jpg", *ALL[:4], "deep/x.tar/q.jpg", *ALL[4:]]),
        ("**/*.jpg", [name for name in ALL if name.endswith("jpg")]),
        ("**/**/*.jpg", [name for name in ALL if name.endswith("jpg")]),
        ("**/er/*", ["deep/er/d.jpg"]),
        ("**/er", ["deep/er/d.jpg"]),
        ("*/*.jpg", ["deep/c.jpg", "x.jpg/y.jpg"]),
        ("de*", ["deep/c.jpg", "deep/er/d.jpg", "deep-2/e.png"]),
        ("deep/**", ["deep/c.jpg", "deep/er/d.jpg", "deep/x.tar/q.jpg"]),
        ("./[bB].jpg", ["./B.jpg", "./b.jpg"]),
        ("*.tar", ["1.tar/p.jpg"]),
        ("d*/*/d.jp?", ["deep/er/d.jpg"]),
        (".h*/*.jpg", None),
        (".hidden/*", [".hidden/h.jpg"]),
    ],
)
def test_a_pattern_stands_for_what_matches_in_the_order_of_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, expected: list[str] | None
) -> None:
    make(tmp_path, *ALL, "notes.txt", ".hidden.jpg", ".hidden/h.jpg")
    tar(tmp_path / "1.tar", "p.jpg")
    tar(tmp_path / "deep/x.tar", "q.jpg")
    monkeypatch.chdir(tmp_path)
    if expected is None:
        with pytest.raises(UsageError, match="no picture, tar or Parquet file matches this pattern"):
            listed(Sources([pattern]))
        return
    assert listed(Sources([pattern])) == expected
    assert listed(Sources([os.path.join(tmp_path, pattern)])) == [os.path.join(tmp_path, name) for name in expected]


def test_patterns_and_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a/b/c.jpg", "elsewhere/d.jpg")
    (tmp_path / "a/loop").symlink_to(tmp_path / "a")
    (tmp_path / "link").symlink_to("elsewhere")
    monkeypatch.chdir(tmp_path)
    assert listed(Sources(["**/*.jpg"])) == ["a/b/c.jpg", "elsewhere/d.jpg"]
    assert listed(Sources(["*"])) == ["a/b/c.jpg", "elsewhere/d.jpg"]
    assert listed(Sources(["l*k/*.jpg"])) == ["link/d.jpg"]


def test_a_pattern_that_matches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.jpg")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"\*\.png: no picture, tar or Parquet file matches this pattern"):
        listed(Sources(["*.png"]))


def test_a_name_that_looks_like_a_pattern_and_is_there_is_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "[ab].jpg", "a.jpg")
    monkeypatch.chdir(tmp_path)
    assert listed(Sources(["[ab].jpg"])) == ["[ab].jpg"]


def test_a_missing_file_with_brackets_in_its_name_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "a.jpg", "photos [2023]/b.jpg")
    assert listed(Sources(["gone [2].jpg", "a.jpg", "photos [2023]/*.jpg"])) == [
        "gone [2].jpg",
        "a.jpg",
        "photos [2023]/b.jpg",
    ]


def test_missing_files_below_a_folder_with_brackets_are_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "photos [2023]/b.jpg", "a*b/c.jpg")
    gone = ["photos [2023]/gone.jpg", "photos [2023]/deep/gone.jpg", "a*b/gone.jpg", "photos [2023]/gone [1].jpg"]
    found = list(Sources([*gone, "photos [2023]/gone.tar", "photos [2023]/b.jpg"]).pictures())
    assert [picture.name for picture in found] == [*gone, "photos [2023]/gone.tar", "photos [2023]/b.jpg"]
    assert [picture.refused for picture in found] == [*[None] * 4, "cannot be read: No such file or directory", None]


def test_a_table_in_parts(tmp_path: Path) -> None:
    for day in (1, 2):
        (tmp_path / f"{day}.parquet" / "inner").mkdir(parents=True)
        (tmp_path / f"{day}.parquet" / "_SUCCESS").touch()
        table(tmp_path / f"{day}.parquet" / "inner" / "part-0.parquet", 2)
        table(tmp_path / f"{day}.parquet" / "part-1.parquet", 1)
    names = [
        f"{tmp_path}/{day}.parquet/{part}" for day in (1, 2) for part in ("inner/part-0.parquet", "part-1.parquet")
    ]
    (tmp_path / "l.txt").write_text("1.parquet\n2.parquet\n")
    for sources in (
        Sources([tmp_path / "*.parquet"], column="image"),
        Sources([tmp_path / "1.parquet", tmp_path / "2.parquet"], column="image"),
        Sources(list_file=tmp_path / "l.txt", column="image"),
    ):
        assert pieces(sources) == [f"RowGroup {name}" for name in names]


def test_parts_of_a_table_that_may_not_be_read_are_rows(tmp_path: Path) -> None:
    folder = tmp_path / "t.parquet"
    for name in ("a", "b", "c.parquet"):
        (folder / name).mkdir(parents=True)
        table(folder / name / "PART.PARQUET", 1)
    (folder / "b").chmod(0)
    status, said = glia_rt_with_rights("list", folder, "--column", "image", "-o", tmp_path / "l.jsonl.zst")
    (folder / "b").chmod(0o700)
    assert status == 3
    assert said[0].startswith(f"{folder}/b: this folder cannot be listed: Permission denied")
    found = pieces(Sources(list_file=tmp_path / "l.jsonl.zst"))
    assert found == [
        f"RowGroup {folder}/a/PART.PARQUET", f"Refused {folder}/b", f"RowGroup {folder}/c.parquet/PART.PARQUET"
    ]  # fmt: skip


def test_what_else_is_in_a_table_is_counted(tmp_path: Path) -> None:
    folder = tmp_path / "t.parquet"
    make(folder, "a.jpg", "x.tar", "_SUCCESS", ".b.jpg")
    table(folder / "0.parquet", 1)
    sources = Sources([folder], column="image")
    assert pieces(sources) == [f"RowGroup {folder}/0.parquet"]
    assert sources.say_left_out().startswith("left out: 1 .jpg file, 1 .tar file, 1 hidden picture (archives")


def test_logs_and_unfinished_parts_of_a_table_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "t.parquet"
    for name in ("_delta_log/1.checkpoint.parquet", "_temporary/0/part-0.parquet", "part-0.parquet", "a/_b.parquet"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        table(folder / name, 1)
    sources = Sources([folder], column="image")
    assert pieces(sources) == [f"RowGroup {folder}/part-0.parquet"]
    assert sources.say_left_out() == "left out: 3 underscored parts"


def test_links_to_tables_are_not_followed(tmp_path: Path) -> None:
    table_in_parts = tmp_path / "1.parquet"
    table_in_parts.mkdir()
    table(table_in_parts / "part-0.parquet", 1)
    (table_in_parts / "loop.parquet").symlink_to(".")
    (tmp_path / "latest.parquet").symlink_to("1.parquet")
    for sources in (Sources([tmp_path / "*.parquet"], column="image"), Sources([table_in_parts], column="image")):
        assert pieces(sources) == [f"RowGroup {table_in_parts}/part-0.parquet"]
        assert "link" in sources.say_left_out()
    named = Sources([tmp_path / "latest.parquet"], column="image")
    assert pieces(named) == [f"RowGroup {tmp_path}/latest.parquet/part-0.parquet"]


def test_standard_input_that_fails_is_not_an_output_that_fails(tmp_path: Path) -> None:
    with open("/proc/self/mem", "rb") as failing:
        command = [sys.executable, "-m", "glia_rt", "list", "-", "-o", str(tmp_path / "l.jsonl.zst")]
        done = subprocess.run(command, stdin=failing, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "glia-rt: standard input cannot be read: Input/output error"


def test_a_table_without_parts_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").mkdir()
    [picture] = Sources([tmp_path / "t.parquet"]).pictures()
    assert picture.refused == "a table without parts: no Parquet file is in this folder"


def test_what_a_search_finds_remembers_the_folder(tmp_path: Path) -> None:
    make(tmp_path, "album/deep/a.jpg", "b.jpg")
    tar(tmp_path / "album/deep/0.tar", "p.jpg")
    (tmp_path / "album/t.parquet").mkdir()
    table(tmp_path / "album/t.parquet/0.parquet", 1)
    table(tmp_path / "1.parquet", 1)
    album, top = f"{tmp_path}/album", str(tmp_path)

    def searched(*paths: str) -> list[tuple[str, str | None]]:
        found = Sources([f"{tmp_path}/{path}" for path in paths], column="image").pieces()
        return [(os.path.relpath(piece.path, tmp_path), getattr(piece, "folder", None)) for piece in found]

    picture, archive, part = "album/deep/a.jpg", "album/deep/0.tar", "album/t.parquet/0.parquet"
    assert searched("album") == [(picture, album)]
    assert searched("album/**") == [(archive, album), (picture, album), (part, album)]
    assert searched("al*/*/*.jpg", "al*/*.parquet") == [(picture, top), (part, top)]
    assert searched("album/t.parquet") == [(part, f"{album}/t.parquet")]
    assert searched("b.jpg", "1.parquet", archive) == [("b.jpg", None), ("1.parquet", None), (archive, None)]


def test_one_shard_without_the_column_is_a_row(tmp_path: Path) -> None:
    table(tmp_path / "0.parquet", 1)
    table(tmp_path / "1.parquet", 1, column="other")
    parquet.write_table(pa.table({"image": pa.nulls(2)}), tmp_path / "2.parquet")
    found = list(Sources([tmp_path / "*.parquet"], column="image").pictures())
    assert [picture.refused for picture in found] == [
        None, "no column 'image'; it has other: name one with --column", "the row has no picture",
        "the row has no picture",
    ]  # fmt: skip


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "IMG_1.JXL", "IMG_2.jxl", ".b.jpg", ".git/c.jpg", "deep/d.cr2", "notes.txt")
    (tmp_path / "link").symlink_to(tmp_path / "deep")
    sources = Sources([tmp_path])
    assert listed(sources) == [f"{tmp_path}/a.jpg"]
    assert sources.say_left_out() == (
        "left out: 1 .cr2 file, 2 .jxl files, 1 hidden folder, 1 hidden picture, 1 link to a folder"
    )
    assert listed(sources) == [f"{tmp_path}/a.jpg"]
    assert sources.left_out[".jxl file"] == 2, "of one walk"
    assert Sources([tmp_path / "a.jpg"]).say_left_out() == ""


def test_archives_beside_pictures_are_counted(tmp_path: Path) -> None:
    make(tmp_path, "0.tar", "deep/1.tar", "deep/a.jpg", "deep/b.tar.gz", "t.PARQUET", "s.zip", "s.tar.bz2", "l.csv.gz")
    sources = Sources([tmp_path])
    assert listed(sources) == [f"{tmp_path}/deep/a.jpg"]
    assert sources.say_left_out() == (
        "left out: 1 .parquet file, 2 .tar files, 1 .tar.bz2 file, 1 .tar.gz file, 1 .zip file "
        f"(archives are read if they are named, as '{tmp_path}/**/*.parquet')"
    )
    pattern = Sources([tmp_path / "d*"])
    assert listed(pattern) == [f"{tmp_path}/deep/a.jpg"]
    assert pattern.say_left_out() == (
        "left out: 1 .tar file, 1 .tar.gz file (archives are read if they are named, as '**/*.tar')"
    )


def test_what_a_pattern_does_not_ask_for_is_not_counted(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "IMG_1.JXL", "0.tar", "s.zip", ".b.jpg")
    pattern = Sources([tmp_path / "*.jpg"])
    assert listed(pattern) == [f"{tmp_path}/a.jpg"]
    assert pattern.say_left_out() == "", "of what no one asked for"


def test_heic_is_read_where_a_package_reads_it_and_counted_where_none_does(
    tmp_path: Path, without_packages: Callable[..., dict[str, str]]
) -> None:
    (tmp_path / "album").mkdir()
    path = tmp_path / "album" / "IMG_1.HEIC"
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8).repeat(10, 0).repeat(10, 1)
    exif = Image.Exif()
    exif[0x0112] = 6  # a phone that is held upright
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(path, quality=95, exif=exif.tobytes())
    assert listed(Sources([tmp_path / "album"])) == [str(path)]
    found = read_image(path)
    assert found.shape == (80, 60, 3)
    assert np.abs(found.astype(int) - np.rot90(pixels, 3)).mean() < 20
    program = "import sys; from glia_rt.listing.sources import Sources\n"
    program += "sources = Sources(sys.argv[1:]); print(len(list(sources.pictures())), sources.say_left_out())"
    command = [sys.executable, "-S", "-c", program, str(tmp_path / "album")]
    done = subprocess.run(command, env=without_packages("pillow_heif"), capture_output=True, text=True, check=False)
    assert done.stdout == "0 left out: 1 .heic file (pip install pillow-heif, and HEIC is read)\n", done.stderr


def test_archives_of_other_kinds_say_so(tmp_path: Path) -> None:
    make(tmp_path, "s.zip", "s.tar.bz2")
    found = Sources([tmp_path / "s.zip", tmp_path / "s.tar.bz2", tmp_path / "gone.zip"]).pictures()
    assert [picture.refused for picture in found] == [
        *["an archive of a kind that is not read: make it .tar or .tar.gz, or unpack it"] * 2, None,
    ]  # fmt: skip


@pytest.mark.parametrize("shard", [(0, 3), (4, 3), (1, 0), (-1, 2)])
def test_a_shard_that_there_is_not(shard: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="shards are numbered from 1"):
        Sources(["a.jpg"], shard=shard)


def test_the_name_of_a_listing_in_messages() -> None:
    assert str(Sources(["a", "b"], "c.txt")) == "a, b, c.txt"
    assert str(Sources([f"{i}.jpg" for i in range(1000)])) == "0.jpg, 1.jpg, 998 more"


def test_a_folder_of_archives_is_told_from_one_of_pictures(tmp_path: Path) -> None:
    make(tmp_path, "shards/0.tar", "shards/0.json")
    sources = Sources([tmp_path / "shards"])
    assert listed(sources) == []
    as_named = "archives are read if they are named, as"
    assert sources.hint() == f"; left out: 1 .tar file ({as_named} '{tmp_path}/shards/**/*.tar')"
    make(tmp_path, "[1]/0.tar.gz", "empty/x.txt")
    sources = Sources([tmp_path / "[1]"])
    assert listed(sources) == []
    assert sources.hint().endswith(f"as '{tmp_path}/[[]1]/**/*.tar.gz')")
    sources = Sources([tmp_path / "empty"])
    assert listed(sources) == []
    assert sources.hint() == ""


@pytest.mark.parametrize("paths", [iter(["a.jpg"]), {"a.jpg"}, [b"a.jpg"], b"a.jpg"])
def test_paths_are_a_list_of_strings(paths: Any) -> None:
    with pytest.raises(UsageError, match=r"paths are (a list|str)"):
        Sources(paths)
