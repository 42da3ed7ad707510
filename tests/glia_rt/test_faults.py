"""Faults of the machine, made for real: too little memory, too few open files, a file whose reading fails."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glia_rt import Scorer, budget
from glia_rt.errors import BadImageError, MachineError
from glia_rt.faults import Gate, is_machine_fault, reported
from glia_rt.listing.sources import Sources
from glia_rt.pixels.decode import read_image
from glia_rt.runs.run import Outcome, score_to_file

#: A regular file that can be opened. Reading its first page fails with EIO.
FAILING = "/proc/self/mem"
LIMITED = """
import resource, sys
from glia_rt.cli.main import main
kind, size = getattr(resource, sys.argv[1]), int(sys.argv[2])
def limit():
    resource.setrlimit(kind, (size, size))
from glia_rt import Scorer
opened = Scorer.open
def open_then_limit(*args, **options):
    scorer = opened(*args, **options)
    scorer.score_batch([sys.argv[3]] * 5)  # what the engine takes is taken
    if kind == resource.RLIMIT_AS:
        global size
        size += int(open("/proc/self/statm").read().split()[0]) * 4096
    limit()
    return scorer
Scorer.open = open_then_limit
sys.exit(main(sys.argv[4:]))
"""


def limited(kind: str, size: int, small: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command with a limit of the system, which holds once the engine has been opened and used."""
    command = [sys.executable, "-c", LIMITED, kind, str(size), str(small), *map(str, arguments)]
    # By itself glibc reserves 64 MB of addresses for each thread, which this limit counts.
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


def rows(output: Path) -> list[tuple[str, str, str | None]]:
    found = map(json.loads, output.read_text().splitlines())
    return [(Path(row["path"]).name, row["status"], row["error"]) for row in found]


@pytest.fixture
def album(pictures: Path, tmp_path: Path) -> Path:
    """Four small pictures, and a large one among them that takes 400 MB. Libraries and threads take 100 MB."""
    album = tmp_path / "album"
    album.mkdir()
    for i in range(4):
        shutil.copy(pictures / f"{i:02}.jpg", album)
    Image.fromarray(np.zeros((10_000, 10_000), np.uint8)).save(album / "01b.png")
    return album


def test_what_is_of_the_machine() -> None:
    assert is_machine_fault(MemoryError())
    assert is_machine_fault(OSError(errno.EIO, ""))
    assert not is_machine_fault(FileNotFoundError(errno.ENOENT, ""))
    assert not is_machine_fault(ValueError("damaged"))
    caused = ValueError()
    caused.__cause__ = OSError(errno.ESTALE, "")
    assert is_machine_fault(caused)
    assert not is_machine_fault(None)


def test_a_picture_whose_reading_fails_is_not_a_bad_picture(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to(FAILING)
    with pytest.raises(MachineError, match=r"a\.jpg: Input/output error"):
        read_image(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_text("no picture")
    with pytest.raises(BadImageError):
        read_image(tmp_path / "b.jpg")


def test_one_picture_that_fails_is_a_row_that_can_be_retried(scorer: Scorer, pictures: Path, tmp_path: Path) -> None:
    album, output = tmp_path / "album", tmp_path / "scores.jsonl"
    shutil.copytree(pictures, album)
    (album / "07.jpg").unlink()
    (album / "07.jpg").symlink_to(FAILING)
    assert score_to_file(scorer, Sources([album]), output) == Outcome(32, 1)
    assert rows(output)[7] == ("07.jpg", "machine_error", "Input/output error")
    (album / "07.jpg").unlink()
    shutil.copy(pictures / "07.jpg", album)
    assert score_to_file(scorer, Sources([album]), output, retry_errors=True) == Outcome(32, 0)
    score_to_file(scorer, Sources([album]), tmp_path / "anew.jsonl")
    assert output.read_bytes() == (tmp_path / "anew.jsonl").read_bytes()


def test_two_that_fail_in_a_row_end_the_run_which_goes_on(scorer: Scorer, pictures: Path, tmp_path: Path) -> None:
    album, output = tmp_path / "album", tmp_path / "scores.jsonl"
    shutil.copytree(pictures, album)
    for name in ("07.jpg", "08.jpg"):
        (album / name).unlink()
        (album / name).symlink_to(FAILING)
    with pytest.raises(MachineError, match=r"07\.jpg: Input/output error, and so for the next picture") as caught:
        score_to_file(scorer, Sources([album]), output)
    assert "7 rows kept in" in caught.value.__notes__[0]
    for name in ("07.jpg", "08.jpg"):
        (album / name).unlink()
        shutil.copy(pictures / name, album)
    assert score_to_file(scorer, Sources([album]), output, resume=True) == Outcome(32, 0)


def test_a_picture_that_the_machine_has_no_memory_for_is_a_row(
    scorer: Scorer, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so is the next one: they say nothing of the pictures behind them, and the run does not end."""
    album, output = tmp_path / "album", tmp_path / "scores.jsonl"
    shutil.copytree(pictures, album)
    for name in ("07.jpg", "08.jpg"):
        Image.new("RGB", (3000, 2000)).save(album / name)
    with monkeypatch.context() as patch:
        patch.setattr(budget, "memory_left", lambda: 10_000_000)
        assert score_to_file(scorer, Sources([album]), output) == Outcome(32, 2)
        reason = "decoding takes up to 18 MB, and 10 MB are left: score it where there is more memory"
        assert rows(output)[7:9] == [("07.jpg", "machine_error", reason), ("08.jpg", "machine_error", reason)]
    assert score_to_file(scorer, Sources([album]), output, retry_errors=True) == Outcome(32, 0)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
def test_what_the_machine_lacks_outside_of_a_picture(error: Exception) -> None:
    with pytest.raises(MachineError, match=r"^a batch: (out of memory|can't start new thread)"), reported("a batch"):
        raise error
    with pytest.raises(RuntimeError, match="other"), reported("a batch"):
        raise RuntimeError("other")


def test_an_archive_whose_reading_fails(scorer: Scorer, pictures: Path, tmp_path: Path) -> None:
    """It is a row, if what comes next can be read."""
    (tmp_path / "0.tar").symlink_to(FAILING)
    sources = Sources([tmp_path / "0.tar", pictures])
    assert score_to_file(scorer, sources, tmp_path / "scores.jsonl") == Outcome(33, 1)
    name, status, error = rows(tmp_path / "scores.jsonl")[0]
    assert (name, status) == ("0.tar", "machine_error")
    assert "Input/output error" in str(error)
    assert score_to_file(scorer, sources, tmp_path / "scores.jsonl", retry_errors=True) == Outcome(33, 1)


@pytest.mark.slow
def test_too_little_memory_for_one_picture(plain_bundle: Path, album: Path, tmp_path: Path) -> None:
    command = ["score", plain_bundle, album, "-o", tmp_path / "scores.jsonl", "--backend", "onnxruntime"]
    done = limited("RLIMIT_AS", 330_000_000, album / "00.jpg", *command)
    assert done.returncode == 3, done.stderr
    assert rows(tmp_path / "scores.jsonl")[2] == ("01b.png", "machine_error", "out of memory")
    assert [status for _, status, _ in rows(tmp_path / "scores.jsonl")].count("ok") == 4


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["avif", "webp"])
def test_decoders_that_call_a_lack_of_memory_damage(
    plain_bundle: Path, album: Path, tmp_path: Path, ending: str
) -> None:
    (album / "01b.png").unlink()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    picture.resize((6000, 5000)).save(album / f"01b.{ending}", **({"speed": 10} if ending == "avif" else {}))
    command = ["score", plain_bundle, album, "-o", tmp_path / "scores.jsonl", "--backend", "onnxruntime"]
    done = limited("RLIMIT_AS", 300_000_000, album / "00.jpg", *command, "--workers", "1")
    assert done.returncode == 3, done.stderr
    assert rows(tmp_path / "scores.jsonl")[2] == (f"01b.{ending}", "machine_error", "out of memory")


@pytest.mark.slow
def test_too_few_open_files_are_enough_one_after_the_other(plain_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    command = ["score", plain_bundle, pictures, "-o", tmp_path / "scores.jsonl", "--backend", "onnxruntime"]
    done = limited("RLIMIT_NOFILE", 24, pictures / "00.jpg", *command, "--workers", "32")
    assert done.returncode == 0, done.stderr
    assert {status for _, status, _ in rows(tmp_path / "scores.jsonl")} == {"ok"}


def test_a_gate_is_open_again_after_an_interrupted_wait() -> None:
    gate, entered, leave = Gate(), threading.Event(), threading.Event()

    def stay() -> None:
        with gate.beside_others():
            entered.set()
            leave.wait(60)

    with ThreadPoolExecutor(1) as pool:
        staying = pool.submit(stay)
        entered.wait(60)
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt), gate.alone():
            pass
        with gate.beside_others():
            assert gate.is_inside()
        assert not gate.is_inside()
        leave.set()
        staying.result()


def test_a_thread_that_is_alone_in_a_gate_is_alone() -> None:
    gate, inside, most = Gate(), 0, [0, 0]
    lock = threading.Lock()

    def work(number: int) -> None:
        nonlocal inside
        alone = number % 5 == 0
        with gate.alone() if alone else gate.beside_others():
            with lock:
                inside += 1
                most[alone] = max(most[alone], inside)
            time.sleep(0.002)
            with lock:
                inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(100)))
    assert most[0] > 1
    assert most[1] == 1
