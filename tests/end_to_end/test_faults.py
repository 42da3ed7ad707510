"""Runs of the command line that are killed, interrupted, starved or fed what is no picture: each in a process."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

#: Whole processes, killed and hindered.
pytestmark = pytest.mark.slow

#: How long any of these processes may take before it is taken to hang, in seconds.
LIMIT = 120
#: Parts so often that a run of seconds has many, which is all that differs from the command line of a user.
PROGRAM = """
import sys
from glia_rt.runs import journal as parts
from glia_rt.cli.main import main
parts.PART_SECONDS = 0.05
sys.exit(main())
"""


def start(*args: str | Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, *map(str, args)]
    return subprocess.Popen(command, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options)


def run(*args: str | Path, **options: Any) -> tuple[int, str]:
    process = start(*args, **options)
    try:
        _, stderr = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    assert "Traceback" not in stderr
    return process.returncode, stderr


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def kept(output: Path) -> list[dict[str, Any]]:
    """The rows in the parts of a run that is not done."""
    parts = sorted(output.with_name(f"{output.name}.parts").glob("*.jsonl"))
    return [json.loads(line) for part in parts for line in part.read_bytes().splitlines()]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


# Killed


@pytest.mark.slow
def test_fifty_kills_and_the_same_file(tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    """Files, an archive and bad ones; killed whenever it comes, also while it starts, merges, and cleans up."""
    (tmp_path / "album").mkdir()
    for i in range(66):
        os.link(pictures / f"{i % 32:02}.jpg", tmp_path / "album" / f"{i:04}.jpg")
    (tmp_path / "album" / "0030b.jpg").write_text("hello")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for path in sorted(pictures.iterdir()):
            tar.add(path, path.name)
    sources = [tmp_path / "album", tmp_path / "0.tar"]
    assert run("score", tiny_bundle, *sources, "-o", tmp_path / "first.csv")[0] == 3  # fills the engine's cache
    began = time.monotonic()
    assert run("score", tiny_bundle, *sources, "-o", tmp_path / "undisturbed.csv")[0] == 3
    whole = time.monotonic() - began
    expected = (tmp_path / "undisturbed.csv").read_bytes()

    def killed_often(output: Path, kills: int, seed: int) -> set[int]:
        """Rows in the parts after each kill; an output that is whole before the last one starts anew."""
        chance, found = random.Random(seed), list[int]()
        while len(found) < kills:
            process = start("score", tiny_bundle, *sources, "-o", output, "--resume")
            try:
                process.communicate(timeout=chance.uniform(0.1, 1.0) * whole)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate(timeout=LIMIT)
                found.append(len(kept(output)))
            if output.exists() and len(found) < kills:
                assert output.read_bytes() == expected
                output.unlink()
                shutil.rmtree(output.with_name(f"{output.name}.parts"), ignore_errors=True)
        assert run("score", tiny_bundle, *sources, "-o", output, "--resume")[0] == 3
        assert output.read_bytes() == expected
        return set(found)

    outputs = [tmp_path / "scores-0.csv", tmp_path / "scores-1.csv"]
    with ThreadPoolExecutor() as two:  # since a start keeps one core busy
        found = set[int]().union(*two.map(killed_often, outputs, (25, 25), (0, 1)))
    assert len(found) > 5, "the kills came at different moments"
    left = {path.name for path in tmp_path.glob("scores*")}
    ends = ("", ".listing.jsonl.zst", ".meta.json")
    assert left == {f"{output.name}{end}" for output in outputs for end in ends}


def test_a_second_run_onto_one_output_is_refused(tiny_bundle: Path, many: Path, tmp_path: Path) -> None:
    output = tmp_path / "scores.csv"
    first = start("score", tiny_bundle, many, "-o", output)
    try:
        wait_for(lambda: bool(kept(output)), first)
        for option in ([], ["--resume"], ["--overwrite"]):
            status, stderr = run("score", tiny_bundle, many, "-o", output, *option)
            assert status == 2
            assert stderr.endswith(f"{output}: another run is writing it; wait, or name another output\n")
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()
    assert len(kept(output)) > 0


# Interrupted


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_keeps_its_rows_and_says_where(
    tiny_bundle: Path, many: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    output = tmp_path / "scores.csv"
    process = start("score", tiny_bundle, many, "-o", output)
    try:
        wait_for(lambda: len(kept(output)) >= 20, process)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == status
    found = kept(output)
    assert 20 <= len(found) < 3000
    assert [Path(row["path"]).name for row in found] == [f"{i:04}.jpg" for i in range(len(found))]
    said = f"glia-rt: {len(found)} rows kept in {output}.parts: the same command with --resume goes on"
    assert stderr.splitlines()[-1] == said
    assert ("glia-rt: interrupted" in stderr.splitlines()) == (number == signal.SIGINT)
    assert "Traceback" not in stderr
    assert not output.exists()


def test_ctrl_c_twice_ends_at_once(tiny_bundle: Path, many: Path, tmp_path: Path) -> None:
    """The first lets the run keep its rows, on a disk that hangs."""
    output, hangs, hung = tmp_path / "scores.csv", tmp_path / "hangs", tmp_path / "hung"
    hanging = f"""
import os, pathlib, time
fsync = os.fsync

def hang_or_sync(fd):
    if not pathlib.Path({str(hangs)!r}).exists():
        return fsync(fd)
    pathlib.Path({str(hung)!r}).touch()
    time.sleep({LIMIT})

os.fsync = hang_or_sync
{PROGRAM}"""
    command = [sys.executable, "-c", hanging, "score", str(tiny_bundle), str(many), "-o", str(output)]
    process = subprocess.Popen(command, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: len(kept(output)) >= 20, process)
        hangs.touch()
        wait_for(hung.exists, process)  # so that there are rows to be kept
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=3)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=5)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert len(kept(output)) >= 20


# A source that goes, a disk that fills


def test_a_folder_that_is_deleted_meanwhile(tiny_bundle: Path, many: Path, tmp_path: Path) -> None:
    output = tmp_path / "scores.csv"
    process = start("score", tiny_bundle, many, "-o", output)
    try:
        wait_for(lambda: len(kept(output)) >= 20, process)
        many.rename(tmp_path / "elsewhere")
        _, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 1
    gone = f"glia-rt: {many}: pictures can no longer be read from here: No such file or directory"
    assert f"{gone}; bring them back" in stderr
    assert {row["status"] for row in kept(output)} == {"ok"}


def test_a_full_disk(tiny_bundle: Path, many: Path, tmp_path: Path) -> None:
    """No file of that process may grow past 8 kB: what a full disk looks like, without filling one."""
    output = tmp_path / "scores.csv"
    # A part for every row, so that only the output grows so large.
    limited = (
        "import resource; from glia_rt.runs import journal; journal.PART_SECONDS = 0.0;"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000)){PROGRAM}"
    )
    # Not OpenVINO, whose cache of compiled graphs would be over the limit, too.
    args = ["score", str(tiny_bundle), f"{many}/00*.jpg", "-o", str(output), "--backend", "onnxruntime"]
    command = [sys.executable, "-c", limited, *args, "--resume"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2:] == [
        f"glia-rt: {output}: cannot be written: File too large; make room, and give the same command again with "
        "--resume",
        f"glia-rt: 100 rows kept in {output}.parts: the same command with --resume goes on",
    ]
    assert not output.exists()
    assert run(*args, "--resume")[0] == 0
    assert len(rows(output)) == 100


# What is no picture


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bomb() -> bytes:
    """60,000 x 60,000 pixels of one bit in a few kilobytes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1 << 22), 9)) + chunk(b"IEND", b"")


def tiff_bomb() -> bytes:
    """A TIFF of 8 x 8 pixels that says that it has 60,000 x 60,000."""
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "TIFF", compression="tiff_adobe_deflate")
    content = bytearray(file.getvalue())
    (directory,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, directory)
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, _ = struct.unpack_from("<HH", content, entry)
        if tag in (256, 257, 278):  # width, height, rows a strip
            struct.pack_into("<HHII", content, entry, tag, 4, 1, 60_000)
    return bytes(content)


def tar_of(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def rogues(pictures: Path, tmp_path: Path) -> dict[str, str]:
    """A folder of what is no picture, and what is said of each."""
    folder = tmp_path / "rogues"
    (folder / "folder.jpg").mkdir(parents=True)
    good = (pictures / "00.jpg").read_bytes()
    files = {
        "bomb.png": png_bomb(),
        "bomb.tif": tiff_bomb(),
        "cut.jpg": good[: len(good) // 2],
        "empty.jpg": b"",
        "header.jpg": good[:30],
        "html.jpg": b"<html><body>404</body></html>",
        "noise.png": random.Random(0).randbytes(5000),
        "tar.jpg": tar_of(("a.jpg", good)),
        "zeros.webp": bytes(100_000),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(folder / "pipe.jpg")
    limit = "exceeds limit of 178956970 pixels"
    return {
        "bomb.png": limit,
        "bomb.tif": limit,
        "cut.jpg": "truncated",
        "dangling.jpg": "No such file or directory",
        "empty.jpg": "empty file",
        "header.jpg": "runcated",
        "html.jpg": "not a picture Pillow can read",
        "noise.png": "not a picture Pillow can read",
        "pipe.jpg": "not a regular file",
        "tar.jpg": "not a picture Pillow can read",
        "zeros.webp": "not a picture Pillow can read",
    }


def test_what_is_no_picture_is_a_row_and_the_others_are_scored(
    tiny_bundle: Path, pictures: Path, tmp_path: Path, rogues: dict[str, str]
) -> None:
    for i, path in enumerate(sorted(pictures.iterdir())[:3]):
        shutil.copy(path, tmp_path / "rogues" / f"{'aip'[i]}.jpg")
    report = tmp_path / "r.html"
    status, stderr = run("score", tiny_bundle, tmp_path / "rogues", "-o", tmp_path / "scores.csv", "--report", report)
    assert status == 3
    found = {Path(row["path"]).name: row for row in rows(tmp_path / "scores.csv")}
    assert sorted(found) == sorted([*rogues, "a.jpg", "i.jpg", "p.jpg"])
    for name, row in found.items():
        assert (row["status"], row["score"] != "") == (("bad_image", False) if name in rogues else ("ok", True)), name
        assert rogues.get(name, "") in row["error"]
    assert f"{len(rogues)} of {len(found)} pictures could not be read" in stderr
    assert "not a picture Pillow can read" in report.read_text()


def test_archives_of_what_is_no_picture(
    tiny_bundle: Path, pictures: Path, tmp_path: Path, rogues: dict[str, str]
) -> None:
    good = (pictures / "00.jpg").read_bytes()
    members = [("good.jpg", good), ("bomb.png", png_bomb()), ("bomb.tif", tiff_bomb()), ("../out.jpg", good)]
    inner = tar_of(*members)
    (tmp_path / "0.tar").write_bytes(tar_of(*members, ("inner.tar", inner), ("inner.jpg", inner)))
    (tmp_path / "cut.tar").write_bytes(inner[:700])
    (tmp_path / "none.tar").write_bytes(b"hello")
    archives = [tmp_path / name for name in ("0.tar", "cut.tar", "none.tar")]
    assert run("score", tiny_bundle, *archives, "-o", tmp_path / "scores.csv")[0] == 3
    found = [(row["path"].removeprefix(f"{tmp_path}/"), row["error"]) for row in rows(tmp_path / "scores.csv")]
    assert [name for name, _ in found] == [
        "0.tar/good.jpg", "0.tar/bomb.png", "0.tar/bomb.tif", "0.tar/../out.jpg", "0.tar/inner.jpg", "cut.tar",
        "none.tar",
    ]  # fmt: skip
    reasons = ["", "exceeds limit", "exceeds limit", "leads out", "not a picture", "damaged", "damaged"]
    assert [reason in error for reason, (_, error) in zip(reasons, found, strict=True)] == [True] * 7
    assert found[0][1] == ""


def test_names_of_all_kinds(tiny_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    """As files, as far as the file system goes, and as members of an archive, where 4,000 characters do."""
    names = [b"two\nlines.jpg", b'quo"te, comma.jpg', b"\xff\xfe.jpg", b" spaces .jpg", "é😀.jpg".encode(), b"-o.jpg"]
    names += [b"x" * 251 + b".jpg"]
    (tmp_path / "album").mkdir()
    content = (pictures / "00.jpg").read_bytes()
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path / "album") + b"/" + name)).write_bytes(content)
    long = [os.fsdecode(name) for name in names] + ["y" * 3996 + ".jpg"]
    (tmp_path / "0.tar").write_bytes(tar_of(*((name, content) for name in long)))
    shown = [name.encode("utf-8", "backslashreplace").decode() for name in long]
    expected = [f"album/{name}" for name in sorted(shown[:-1], key=lambda name: names[shown.index(name)])]
    expected += [f"0.tar/{name}" for name in shown]
    outputs = {}
    for kind in ("csv", "jsonl", "parquet"):
        output = tmp_path / f"scores.{kind}"
        assert run("score", tiny_bundle, "album", "0.tar", "-o", output, cwd=tmp_path)[0] == 0
        outputs[kind] = output
    assert [row["path"] for row in rows(outputs["csv"])] == expected
    assert [json.loads(line)["path"] for line in outputs["jsonl"].read_bytes().splitlines()] == expected
    from pyarrow import parquet

    assert parquet.read_table(outputs["parquet"]).column("path").to_pylist() == expected


@pytest.mark.slow
def test_a_hundred_thousand_tiny_files(tiny_bundle: Path, tmp_path: Path) -> None:
    """Mostly unreadable ones, since the engine's speed is not what is looked at here."""
    folder = tmp_path / "album"
    folder.mkdir()
    Image.fromarray(np.full((3, 4, 3), 77, np.uint8)).save(folder / "000000.png")
    for i in range(1, 100_000):
        if i % 10_000:
            (folder / f"{i:06}.png").touch()
        else:
            os.link(folder / "000000.png", folder / f"{i:06}.png")
    output = tmp_path / "scores.parquet"
    status, stderr = run("score", tiny_bundle, folder, "-o", output)
    assert status == 3
    assert f"100000 rows in {output}" in stderr
    from pyarrow import parquet

    table = parquet.read_table(output)
    assert table.column("path").to_pylist() == [f"{folder}/{i:06}.png" for i in range(100_000)]
    assert table.column("status").to_pylist().count("ok") == 10
    assert len(set(table.column("score").drop_null().to_pylist())) == 1
