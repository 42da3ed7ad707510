from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from glia_rt import files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with files.whole_file(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_the_old_file_alone(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with files.whole_file(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_killed_process_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    program = (
        "import os, pathlib, sys; from glia_rt import files\n"
        "with files.whole_file(pathlib.Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == -9
    assert path.read_text() == "old"


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args))[1])
    files.write_whole(tmp_path / "a.txt", "text")
    assert calls == ["fsync", "replace", "fsync"]


def test_text_is_utf8(tmp_path: Path) -> None:
    files.write_whole(tmp_path / "a.txt", "é")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9"


def test_hash(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(OSError, match="No such file"):
        files.sha256(tmp_path / "b")


def test_a_folder_appears_when_it_is_whole_and_replaces_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for text in ("old", "new"):
        with files.whole_folder(path) as folder:
            (folder / text).touch()
            assert not (path / text).exists()
    assert names(path) == ["new"]
    assert names(tmp_path) == ["model"]


def test_remove(tmp_path: Path) -> None:
    (tmp_path / "folder" / "within").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    for name in ("folder", "file", "link", "nothing"):
        files.remove(tmp_path / name)
    assert names(tmp_path) == ["kept"]


def test_threads_that_write_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_whole(path, "0" * 50_000)

    def write(digit: str) -> None:
        for _ in range(20):
            files.write_whole(path, digit * 50_000)
            text = path.read_text()
            assert len(text) == 50_000
            assert len(set(text)) == 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, "1234"))
    assert names(tmp_path) == ["a.txt"]


WRITER = """
import pathlib, sys
from glia_rt import files
with files.whole_folder(pathlib.Path(sys.argv[1])) as folder:
    (folder / "a").touch()
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("prefix", [(), ("unshare", "--user", "--pid", "--fork", "--kill-child")])
def test_what_another_process_writes_is_left_until_it_has_ended(tmp_path: Path, prefix: tuple[str, ...]) -> None:
    """Also one of another container, whose number is nobody's here."""
    if prefix and subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("there are no namespaces here")
    path, command = tmp_path / "a", [*prefix, sys.executable, "-c", WRITER, str(tmp_path / "a")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        files.write_whole(path, "text")
        [remains] = tmp_path.glob(".a.partial-*")
        assert (remains / "new" / "a").exists()
        process.kill()
        process.wait()
        process.stdin.close()
    time.sleep(0.2)  # its child dies with it
    files.write_whole(path, "text")
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize(("age", "is_removed"), [(0, False), (2 * 24 * 60 * 60, True)])
def test_what_has_no_lock_is_left_for_a_day(tmp_path: Path, age: int, is_removed: bool) -> None:
    other = tmp_path / ".a.txt.partial-01234567-1-1"
    other.mkdir()
    os.utime(other, (time.time() - age,) * 2)
    files.write_whole(tmp_path / "a.txt", "text")
    assert other.exists() != is_removed


def test_a_process_killed_between_the_renames_loses_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.mkdir()
    (path / "old").touch()
    program = (
        "import os, pathlib, sys; from glia_rt import files\n"
        "rename = pathlib.Path.rename\n"
        "pathlib.Path.rename = lambda *a: os.kill(os.getpid(), 9) if a[0].name == 'new' else rename(*a)\n"
        "with files.whole_folder(pathlib.Path(sys.argv[1])): pass"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == -9
    assert not path.exists()

    def fail() -> None:
        with files.whole_folder(path):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(path) == ["old"]
    assert names(tmp_path) == ["a"]
