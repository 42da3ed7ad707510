"""Lists of names: lines, names that end in NUL, columns of a CSV, pipes and standard input."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from helpers.listings import listed, tar

from glia_rt.errors import SourceError, UsageError
from glia_rt.listing.lists import names
from glia_rt.listing.sources import Sources


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
    ("content", "rows"),
    [
        ("id,path\n1,a.jpg\n2,\n3,b.jpg\n", ["line 3: no value in column 'path'"]),
        ("id,path\n1,a.jpg\n2\n3,b.jpg\n", ["line 3: no value in column 'path'"]),
        ('path,note\na.jpg,"two\nlines"\nc.jpg,"a" b\nb.jpg,x\n', ["line 4: ',' expected after '\"'"]),
        ('path\n"c.jpg\na.jpg\nb.jpg\n', ["line 2: unexpected end of data"]),
        (
            'path,size\nc.jpg,"5 in\na.jpg,4\nno row\nb.jpg,"6"\n',
            ["line 2: ',' expected after '\"'", "line 4: in the row of line 2"],
        ),
    ],
    ids=["empty", "short", "badly quoted", "a quote left open", "a stray quote"],
)
def test_a_bad_row_of_a_csv_is_a_row(tmp_path: Path, content: str, rows: list[str]) -> None:
    (tmp_path / "l.csv").write_text(content)
    found = list(Sources(list_file=tmp_path / "l.csv").pictures())
    refused = [f"{picture.name}: {picture.refused}" for picture in found if picture.refused]
    assert refused == [f"{tmp_path}/l.csv, {row}" for row in rows]
    assert [Path(picture.name).name for picture in found if not picture.refused] == ["a.jpg", "b.jpg"]


def test_a_stray_quote_does_not_take_in_the_rest_of_a_list(tmp_path: Path) -> None:
    rows = ["path,note", *(f"{i:06}.jpg,x" for i in range(60_000))]
    rows[5] = 'odd.jpg,"x'
    path = tmp_path / "l.csv"
    path.write_text("".join(f"{row}\r\n" for row in rows), newline="")
    tracemalloc.start()
    refused, names = [], 0
    for picture in Sources(list_file=path).pictures():
        if picture.refused:
            refused.append(f"{picture.name}: {picture.refused}")
        else:
            names += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused == [f"{path}, line 6: a row of over 10000 lines: a quote is not closed"]
    assert names == 59_999
    assert peak < 3e6, "60,000 lines take 4 MB"


def test_the_lines_after_a_stray_quote_keep_their_numbers(tmp_path: Path) -> None:
    rows = ["path,note", '"odd.jpg,x', *(f"{i}.jpg,x" for i in range(20_000)), ",short"]
    (tmp_path / "l.csv").write_text("\n".join(rows))
    found = list(Sources(list_file=tmp_path / "l.csv").pictures())
    assert [picture.name for picture in found[1:-1]] == [f"{tmp_path}/{i}.jpg" for i in range(20_000)]
    assert found[-1].name == f"{tmp_path}/l.csv, line 20003"


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_row_without_end_is_refused_and_the_rest_is_read(tmp_path: Path, quote: str) -> None:
    path = tmp_path / "l.csv"
    path.write_text(f"path,note\na.jpg,1\nlong.jpg,{quote}" + "x" * 60_000_000 + "\nb.jpg,2\n")
    tracemalloc.start()
    found = [(Path(picture.name).name, picture.refused) for picture in Sources(list_file=path).pictures()]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [("a.jpg", None), ("l.csv, line 3", "a row of over 16777216 characters"), ("b.jpg", None)]
    assert peak < 80e6
    path.write_bytes(bytes(60_000_000))
    with pytest.raises(UsageError, match=r"l\.csv, line 1: a row of over 16777216 characters"):
        listed(Sources(list_file=path))


def test_the_row_limit_cuts_no_name(tmp_path: Path) -> None:
    """The quote in line 2 takes in the rows behind it. The row's limit falls into the name in one of these."""
    rows = 4_000
    names = [f"{i:05}" + "x" * 9_000 for i in range(rows)]
    (tmp_path / "l.csv").write_text('note,path\n"1,first\n' + "".join(f"1,{name}\n" for name in names))
    found = list(Sources(list_file=tmp_path / "l.csv").pictures())
    assert found[0].refused == "a row of over 16777216 characters"
    assert [Path(picture.name).name for picture in found[1:]] == names


def test_a_long_field_in_another_column(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("path,embedding\na.jpg," + "0.123 " * 30_000 + "\nb.jpg,1\n")
    assert len(listed(Sources(list_file=tmp_path / "l.csv"))) == 2


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


def test_walking_holds_no_names(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("".join(f"some/where/{i:09}.jpg\n" for i in range(100_000)))
    sources = Sources(list_file=tmp_path / "list.txt")
    tracemalloc.start()
    assert sum(1 for _ in sources.pictures()) == 100_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6


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
    assert not Sources(list_file=tmp_path / "gone.txt").is_stream


def test_standard_input_by_its_name_is_read_once_whatever_it_is(tmp_path: Path) -> None:
    """A run that goes on may have a pipe there, where it had a file before."""
    (tmp_path / "l.txt").write_text("a.jpg\n")
    program = "from glia_rt.listing.sources import Sources; s = Sources(list_file='/dev/stdin');"
    program += "print(s.is_stream, [picture.name for picture in s.pictures()])"
    with (tmp_path / "l.txt").open() as file:
        said = subprocess.run([sys.executable, "-c", program], stdin=file, capture_output=True, text=True, check=True)
    assert said.stdout == "True ['a.jpg']\n"


def test_a_list_beside_names_on_standard_input_is_relative_to_its_folder(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("a.jpg\n")
    program = "import sys; from glia_rt.listing.sources import Sources;"
    program += "print([picture.name for picture in Sources(['-'], sys.argv[1]).pictures()])"
    command = [sys.executable, "-c", program, str(tmp_path / "l.txt")]
    said = subprocess.run(command, input="b.jpg\n", capture_output=True, text=True, check=True)
    assert said.stdout == f"['b.jpg', '{tmp_path}/a.jpg']\n"


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


def test_names_on_standard_input() -> None:
    assert from_standard_input(b"a.jpg\n\nsub/b.jpg\n") == ["first.jpg", "a.jpg", "sub/b.jpg", "last.jpg"]
    assert from_standard_input(b"a\nb.jpg\0\xff.jpg", null=True) == ["first.jpg", "a\nb.jpg", "\\udcff.jpg", "last.jpg"]
