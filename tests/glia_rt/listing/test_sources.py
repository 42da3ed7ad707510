from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from PIL import Image
from pyarrow import parquet

from glia_rt.errors import SourceError, UsageError
from glia_rt.listing.folders import find_images
from glia_rt.listing.lists import names
from glia_rt.listing.sources import Sources
from glia_rt.pixels.decode import read_image


def make(folder: Path, *names: str) -> None:
    """Empty files: finding pictures goes by name alone."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(folder: Path) -> list[str]:
    return [os.path.relpath(path, folder) for path in find_images([folder])]


def test_arguments_keep_their_order_and_their_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "z.jpg", "a.jpg", "album/1.png", "notes.txt", ".hidden.jpg")
    monkeypatch.chdir(tmp_path)
    paths: list[str | Path] = [
        "z.jpg",
        Path("a.jpg"),
        "./album",
        "notes.txt",
        "nothing-there.jpg",
        ".hidden.jpg",
        "z.jpg",
    ]
    assert list(find_images(paths)) == [
        "z.jpg",
        "a.jpg",
        "./album/1.png",
        "notes.txt",
        "nothing-there.jpg",
        ".hidden.jpg",
        "z.jpg",
    ]


def test_files_and_folders_are_sorted_together_by_the_bytes_of_their_names(tmp_path: Path) -> None:
    make(
        tmp_path,
        "b/2.jpg",
        "b/10.jpg",
        "a.jpg",
        "c.jpg",
        "B.jpg",
        "é.jpg",
        "b.jpg",
        "b/deep/er/1.jpg",
        "￿.jpg",
        "😀.jpg",
    )
    assert found(tmp_path) == [
        "B.jpg",
        "a.jpg",
        "b/10.jpg",
        "b/2.jpg",
        "b/deep/er/1.jpg",
        "b.jpg",
        "c.jpg",
        "é.jpg",
        "￿.jpg",
        "😀.jpg",
    ]


def test_a_name_that_is_not_utf8_is_found_and_can_be_opened(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.png"
    Image.new("RGB", (2, 1)).save(os.fsdecode(name))
    [path] = find_images([tmp_path])
    assert os.fsencode(path) == name
    with Image.open(path) as image:
        assert image.size == (2, 1)


def test_extensions_of_pictures_in_any_case(tmp_path: Path) -> None:
    pictures = ["a.JPG", "b.Jpeg", "c.png", "d.tif", "e.webp", "f.bmp", "g.gif", "h.jp2", "i.ppm"]
    make(tmp_path, *pictures, "a.txt", "b.pdf", "c.eps", "d.ps", "e.mpg", "f.mp4", "g.h5", "h.wmf", "jpg", "j.jpg.bak")
    assert found(tmp_path) == pictures


def test_hidden_names_are_left_out(tmp_path: Path) -> None:
    make(tmp_path, ".a.jpg", ".trash/b.jpg", "album/.c.jpg", "album/d.jpg")
    assert found(tmp_path) == ["album/d.jpg"]


def test_a_hidden_folder_given_by_name_is_searched(tmp_path: Path) -> None:
    make(tmp_path, ".trash/b.jpg")
    assert found(tmp_path / ".trash") == ["b.jpg"]


def test_a_folder_named_like_a_picture_is_still_a_folder(tmp_path: Path) -> None:
    make(tmp_path, "shots.jpg/a.jpg")
    assert found(tmp_path) == ["shots.jpg/a.jpg"]


def test_links_to_files_are_pictures_and_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    make(tmp_path, "in/a.jpg", "elsewhere/b.jpg")
    inside = tmp_path / "in"
    (inside / "link.jpg").symlink_to(tmp_path / "elsewhere/b.jpg")
    (inside / "cycle").symlink_to(inside)
    (inside / "cycle.jpg").symlink_to(inside)
    (inside / "elsewhere").symlink_to(tmp_path / "elsewhere")
    assert found(inside) == ["a.jpg", "link.jpg"]


def test_a_broken_link_is_kept_so_that_it_is_reported(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    assert found(tmp_path) == ["broken.jpg", "loop.jpg"]


def test_a_link_to_a_folder_that_is_given_is_followed(tmp_path: Path) -> None:
    make(tmp_path, "album/a.jpg")
    (tmp_path / "link").symlink_to("album")
    assert list(find_images([tmp_path / "link"])) == [str(tmp_path / "link/a.jpg")]


def test_folders_are_read_only_when_their_turn_comes(tmp_path: Path) -> None:
    make(tmp_path, "1/a.jpg", "2/b.jpg")
    images = find_images([tmp_path / "1", tmp_path / "2"])
    assert next(images) == str(tmp_path / "1/a.jpg")
    make(tmp_path, "2/c.jpg")
    assert list(images) == [str(tmp_path / "2/b.jpg"), str(tmp_path / "2/c.jpg")]


def test_a_folder_that_goes_while_it_is_walked_is_an_error_that_names_it(tmp_path: Path) -> None:
    gone = tmp_path / os.fsdecode(b"gone\xff")
    make(tmp_path, "a.jpg", f"{gone}/b.jpg")
    images = find_images([tmp_path])
    assert next(images) == str(tmp_path / "a.jpg")
    shutil.rmtree(gone)
    with pytest.raises(UsageError, match=r"gone\\udcff: this folder cannot be listed: No such file"):
        next(images)


def test_folders_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another user's; whoever runs this may be root, to whom nothing is forbidden."""
    make(tmp_path, "a.jpg", "private/b.jpg")
    scandir = os.scandir

    def guarded(path: str) -> Any:
        if Path(path).name == "private":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    for top in (tmp_path, tmp_path / "private"):
        with pytest.raises(UsageError, match=r"private: this folder cannot be listed: Permission denied; make it read"):
            list(find_images([top]))


def test_an_empty_folder_yields_nothing(tmp_path: Path) -> None:
    assert found(tmp_path) == []


# Listings


def pieces(sources: Sources) -> list[str]:
    return [f"{type(piece).__name__} {piece.path}" for piece in sources.pieces()]


def listed(sources: Sources) -> list[str]:
    return [picture.name for picture in sources.pictures()]


def tar(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return path


def table(path: Path, rows: int, column: str = "image", row_group: int = 2) -> Path:
    content = pa.table({column: pa.array([b"x"] * rows, pa.binary())})
    parquet.write_table(content, path, row_group_size=row_group)
    return path


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


@pytest.mark.parametrize(
    ("content", "null"),
    [(b"a.jpg\nsub/b c.jpg\n\n/d.jpg", False), (b"a.jpg\r\nsub/b c.jpg\r\n/d.jpg\r\n", False),
     (b"a.jpg\0sub/b c.jpg\0/d.jpg\0", True), (b"a.jpg\0sub/b c.jpg\0\0/d.jpg", True)],
    ids=["unix", "windows", "null", "null at the end missing"],
)  # fmt: skip
def test_a_list_is_relative_to_its_folder(tmp_path: Path, content: bytes, null: bool) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    found = listed(Sources(list_file=tmp_path / "list.txt", null_separated=null))
    assert found == [f"{tmp_path}/a.jpg", f"{tmp_path}/sub/b c.jpg", "/d.jpg"]


def test_a_list_may_name_archives_and_comes_after_the_paths(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", "p.jpg")
    (tmp_path / "list.txt").write_text("b.jpg\n0.tar\n")
    found = listed(Sources(["a.jpg"], tmp_path / "list.txt"))
    assert found == ["a.jpg", f"{tmp_path}/b.jpg", f"{tmp_path}/0.tar/p.jpg"]


def test_names_of_any_bytes_in_a_null_separated_list(tmp_path: Path) -> None:
    names = [b"two\nlines.jpg", b"\xff\xfe.jpg", b" spaces .jpg ", b"x" * 4000, b'"quoted".jpg']
    (tmp_path / "list").write_bytes(b"\0".join(names))
    paths = [picture.source for picture in Sources(list_file=tmp_path / "list", null_separated=True).pictures()]
    assert [os.fsencode(str(path)) for path in paths] == [os.fsencode(tmp_path) + b"/" + name for name in names]


@pytest.mark.parametrize(("ending", "separator"), [(".csv", ","), (".CSV", ","), (".tsv", "\t")])
def test_a_column_of_a_csv(tmp_path: Path, ending: str, separator: str) -> None:
    rows = [("id", "file"), ("1", "a.jpg"), ("2", '"two\nlines.jpg"'), ("3", "/c.jpg")]
    text = "\ufeff" + "".join(separator.join(row) + "\r\n" for row in rows)
    (tmp_path / f"list{ending}").write_text(text, encoding="utf-8", newline="")
    assert listed(Sources(list_file=tmp_path / f"list{ending}", column="file")) == [
        f"{tmp_path}/a.jpg",
        f"{tmp_path}/two\nlines.jpg",
        "/c.jpg",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", "id,file\n1,a.jpg\n", "no column 'path'; its first line has id, file: name one with --column"),
        ("list.csv", "", "no column 'path'"),
    ],
)
def test_a_csv_that_is_none(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        listed(Sources(list_file=tmp_path / name))


@pytest.mark.parametrize(
    ("content", "row"),
    [
        ("id,path\n1,a.jpg\n2,\n3,b.jpg\n", "line 3: no value in column 'path'"),
        ("id,path\n1,a.jpg\n2\n3,b.jpg\n", "line 3: no value in column 'path'"),
        ('path,note\na.jpg,"two\nlines"\nc.jpg,"a" b\nb.jpg,x\n', "line 4: ',' expected after '\"'"),
        ('path\na.jpg\nb.jpg\n"c.jpg\nd.jpg\n', "line 4: unexpected end of data"),
    ],
    ids=["empty", "short", "badly quoted", "a quote left open"],
)
def test_a_bad_row_of_a_csv_is_a_row(tmp_path: Path, content: str, row: str) -> None:
    (tmp_path / "l.csv").write_text(content)
    found = list(Sources(list_file=tmp_path / "l.csv").pictures())
    refused = [f"{picture.name}: {picture.refused}" for picture in found if picture.refused]
    assert refused == [f"{tmp_path}/l.csv, {row}"]
    assert [Path(picture.name).name for picture in found if not picture.refused] == ["a.jpg", "b.jpg"]


def test_a_long_field_in_another_column(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("path,embedding\na.jpg," + "0.123 " * 30_000 + "\nb.jpg,1\n")
    assert len(listed(Sources(list_file=tmp_path / "l.csv"))) == 2


def test_a_missing_file_with_brackets_in_its_name_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "a.jpg", "photos [2023]/b.jpg")
    assert listed(Sources(["gone [2].jpg", "a.jpg", "photos [2023]/*.jpg"])) == [
        "gone [2].jpg",
        "a.jpg",
        "photos [2023]/b.jpg",
    ]


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


def test_names_in_a_list_through_a_pipe_are_of_the_working_folder(tmp_path: Path) -> None:
    readable, writable = os.pipe()
    os.write(writable, b"photos/a.jpg\n")
    os.close(writable)
    try:
        assert listed(Sources(list_file=f"/dev/fd/{readable}")) == ["photos/a.jpg"]
    finally:
        os.close(readable)


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"list\.txt: this list cannot be read: No such file or directory"):
        listed(Sources(list_file=tmp_path / "list.txt"))


@pytest.mark.parametrize("shard", [(0, 3), (4, 3), (1, 0), (-1, 2)])
def test_a_shard_that_there_is_not(shard: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="shards are numbered from 1"):
        Sources(["a.jpg"], shard=shard)


def test_walking_holds_no_names(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("".join(f"some/where/{i:09}.jpg\n" for i in range(100_000)))
    sources = Sources(list_file=tmp_path / "list.txt")
    tracemalloc.start()
    assert sum(1 for _ in sources.pictures()) == 100_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6


def test_the_name_of_a_listing_in_messages() -> None:
    assert str(Sources(["a", "b"], "c.txt")) == "a, b, c.txt"
    assert str(Sources([f"{i}.jpg" for i in range(1000)])) == "0.jpg, 1.jpg, 998 more"


def test_a_folder_of_archives_is_told_from_one_of_pictures(tmp_path: Path) -> None:
    make(tmp_path, "shards/0.tar", "shards/0.json")
    sources = Sources([tmp_path / "shards"])
    assert listed(sources) == []
    assert sources.hint() == f"; for the .tar files in {tmp_path}/shards say '{tmp_path}/shards/*.tar'"
    make(tmp_path, "[1]/0.tar.gz")
    assert Sources([tmp_path / "[1]"]).hint().endswith(f"say '{tmp_path}/[[]1]/*.tar.gz'")
    assert Sources([tmp_path]).hint() == ""


def from_standard_input(content: bytes, *, null: bool = False) -> list[str]:
    program = """if True:
        import sys, json
        from glia_rt.listing.sources import Sources
        sources = Sources(["first.jpg", "-", "last.jpg"], null_separated=len(sys.argv) > 1)
        assert sources.is_stream
        print(json.dumps([picture.name for picture in sources.pictures()]))
    """
    args = [sys.executable, "-c", program, *(["null"] if null else [])]
    done = subprocess.run(args, input=content, capture_output=True, timeout=60, check=True)
    names: list[str] = json.loads(done.stdout)
    return names


def test_a_list_that_comes_through_a_pipe_is_read_once(tmp_path: Path) -> None:
    readable, writable = os.pipe()
    os.write(writable, b"a.jpg\n")
    os.close(writable)
    try:
        sources = Sources(list_file=f"/dev/fd/{readable}")
        assert sources.is_stream
        assert [Path(name).name for name in listed(sources)] == ["a.jpg"]
    finally:
        os.close(readable)
    with pytest.raises(UsageError, match="give - as a path"):
        Sources(list_file="-")
    assert Sources([Path("-")]).is_stream


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf/a.jpg\r\n/b.jpg")
    assert listed(Sources(list_file=tmp_path / "list.txt")) == ["/a.jpg", "/b.jpg"]


class _InPieces(io.RawIOBase):
    """What a slow writer puts into a pipe."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._pieces.pop(0) if self._pieces else b""
        buffer[: len(piece)] = piece
        return len(piece)


@pytest.mark.parametrize(
    "pieces",
    [(b"\xef\xbb\xbf", b"a.jpg\n"), (b"\xef", b"\xbb", b"\xbfa.jpg"), (b"a", b".jp", b"g")],
    ids=["alone", "in two halves", "none"],
)
def test_a_byte_order_mark_may_come_in_pieces(pieces: tuple[bytes, ...]) -> None:
    assert list(names(io.BufferedReader(_InPieces(*pieces)), "it", False)) == ["a.jpg"]


def test_a_byte_order_mark_and_nothing_else() -> None:
    assert list(names(io.BufferedReader(_InPieces(b"\xef\xbb\xbf")), "it", False)) == []
    assert list(names(io.BufferedReader(_InPieces(b"\xef\xbb")), "it", True)) == [os.fsdecode(b"\xef\xbb")]


@pytest.mark.parametrize(
    ("name", "content", "null", "message"),
    [
        ("list.txt", b"a.jpg\0b.jpg\0", False, r"there are NULs in it; give -0"),
        ("list.txt", "a.jpg\nb.jpg\n".encode("utf-16"), False, r"there are NULs in it; .*save it as UTF-8"),
        ("list.txt", b"a.jpg\n" * 20_000, True, r"its names do not end in NUL: leave out -0"),
        ("list.txt", b"a" * 100_000, False, r"its names end in NUL: give -0"),
        ("list.csv", b"path,path\na.jpg,b.jpg\n", False, r"list\.csv: several columns are called 'path'"),
    ],
    ids=["null", "utf-16", "no null", "no line break", "a column twice"],
)
def test_a_list_that_is_none(tmp_path: Path, name: str, content: bytes, null: bool, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        listed(Sources(list_file=tmp_path / name, null_separated=null))


@pytest.mark.parametrize("paths", [iter(["a.jpg"]), {"a.jpg"}, [b"a.jpg"], b"a.jpg"])
def test_paths_are_a_list_of_strings(paths: Any) -> None:
    with pytest.raises(UsageError, match=r"paths are (a list|str)"):
        Sources(paths)


def test_names_on_standard_input() -> None:
    assert from_standard_input(b"a.jpg\n\nsub/b.jpg\n") == ["first.jpg", "a.jpg", "sub/b.jpg", "last.jpg"]
    assert from_standard_input(b"a\nb.jpg\0\xff.jpg", null=True) == ["first.jpg", "a\nb.jpg", "\\udcff.jpg", "last.jpg"]
