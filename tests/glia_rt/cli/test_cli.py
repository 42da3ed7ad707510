from __future__ import annotations

import csv
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import pytest
from helpers.listings import glia_rt_with_rights, make
from PIL import Image
from pyarrow import parquet

import glia_rt
from glia_rt import Scorer
from glia_rt.backends.choose import default_precision
from glia_rt.cli.main import cli, main
from glia_rt.results import COLUMNS
from glia_rt.versions import install_command

GliaRt = Callable[..., "subprocess.CompletedProcess[str]"]
Capture = pytest.CaptureFixture[str]

ROOT = Path(__file__).parents[3]
#: The smallest that trains in seconds.
BACKBONE = "vit_tiny_r_s16_p8_224"
HEAVY = {"torch", "timm", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "pyarrow", "scipy", "skimage"}
HEAVY |= {"rich", "numba", "ray", "matplotlib", "jinja2", "filelock", "glia_train", "glia_export", "glia_engines"}
PROGRAM = "import sys; from glia_rt.cli.main import main; sys.exit(main())"


@pytest.fixture(autouse=True)
def _pillow_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line sets the process's own limit of pixels."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


@pytest.fixture(scope="module")
def good(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eleven pictures."""
    folder = tmp_path_factory.mktemp("good")
    for path in sorted(pictures.iterdir())[:11]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def album(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures, and two bad ones among them."""
    folder = tmp_path_factory.mktemp("two_bad") / "album"
    shutil.copytree(good, folder)
    (folder / "03b.jpg").touch()
    (folder / "99.jpg").write_text("hello")
    return folder


@pytest.fixture(scope="module")
def rows_of_album(plain_bundle: Path, album: Path) -> list[dict[str, Any]]:
    with Scorer.open(plain_bundle) as scorer:
        return [{name: getattr(result, name) for name in COLUMNS} for result in scorer.score_files([album])]


def assert_equal_rows(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], abs=1e-6)
    assert [row | {"score": None} for row in found] == [row | {"score": None} for row in expected]


# Help and documentation


COMMANDS = sorted(cli.commands.items())
IN_GROUPS = [
    (f"{name} {inner}", command)
    for name, group in COMMANDS
    if isinstance(group, click.Group)
    for inner, command in sorted(group.commands.items())
]


def test_the_commands() -> None:
    assert [name for name, _ in COMMANDS] == [
        *("build", "compare", "data", "demo", "doctor", "evaluate", "export", "info", "list", "score", "train"),
        "verify",
    ]
    assert [name for name, _ in IN_GROUPS] == ["data check", "data distort"]


@pytest.mark.parametrize(("name", "command"), [*COMMANDS, *IN_GROUPS])
def test_every_command_and_option_has_help(name: str, command: click.Command, capsys: Capture) -> None:
    assert command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{name} {option.opts[-1]} has no help"
    for flag in ("-h", "--help"):
        assert main([*name.split(), flag]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith(f"Usage: glia-rt {name} ")
        assert command.help.split()[0] in shown


@pytest.mark.parametrize("name", [name for name, _ in [*COMMANDS, *IN_GROUPS]])
def test_every_command_is_in_the_readme(name: str) -> None:
    assert re.search(rf"\bglia-rt {name}\b", (ROOT / "README.md").read_text(encoding="utf-8"))


def test_help_names_every_command(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name, _ in COMMANDS)


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert glia_rt.__version__ in capsys.readouterr().out


# Exit statuses, as a shell sees them


def test_status_0(glia_rt_command: GliaRt, plain_bundle: Path, good: Path) -> None:
    done = glia_rt_command("score", plain_bundle, good)
    assert done.returncode == 0
    header, *rows = done.stdout.splitlines()
    assert header.split() == ["score", "size", "path"]
    assert [row.split()[-1] for row in rows] == [str(path) for path in sorted(good.iterdir())]
    assert done.stderr.startswith(f"backend openvino, {default_precision('openvino')}, cpu\n  not tensorrt")


@pytest.mark.parametrize(
    "args",
    [
        ["score"],
        ["scroe", "model.glia", "a.jpg"],
        ["score", "model.glia", "a.jpg", "--batch-size", "0"],
        ["score", "model.glia", "a.jpg", "--backend", "cuda"],
        ["train", "--data", "labels.csv", "--backbone-weights", "random"],
    ],
)
def test_status_2_usage(args: list[str], capsys: Capture) -> None:
    assert main(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Usage: glia-rt")
    assert "Error: " in captured.err


def test_status_2_output_exists(glia_rt_command: GliaRt, plain_bundle: Path, good: Path, tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("mine")
    done = glia_rt_command("score", plain_bundle, good, "-o", tmp_path / "scores.csv")
    assert (done.returncode, done.stdout) == (2, "")
    assert "scores.csv exists; name another file, or give --overwrite" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "scores.csv").read_text() == "mine"


def test_status_3(glia_rt_command: GliaRt, plain_bundle: Path, album: Path) -> None:
    done = glia_rt_command("score", plain_bundle, album)
    assert done.returncode == 3
    assert len(done.stdout.splitlines()) == 1 + 13
    assert f"{album}/03b.jpg: empty file" in done.stdout
    assert done.stderr.splitlines()[2:] == ["2 of 13 pictures could not be read: see the status and error columns"]


def test_status_4(shifted_bundle: Callable[[float], Path], capsys: Capture) -> None:
    assert main(["verify", str(shifted_bundle(1.0))]) == 4
    captured = capsys.readouterr()
    assert "FAILED" in captured.out
    assert re.search(r"glia-rt: selftest scores, .*: off by 0\.25 of the score range", captured.err)


def test_status_5(glia_rt_command: GliaRt, tmp_path: Path) -> None:
    done = glia_rt_command("score", tmp_path / "gone.glia", "a.jpg")
    assert (done.returncode, done.stdout) == (5, "")
    message = f"glia-rt: {tmp_path}/gone.glia does not exist; `glia-rt export CHECKPOINT` writes one\n"
    assert done.stderr == message


@pytest.mark.parametrize(
    ("args", "missing", "extra"),
    [
        (["score", "BUNDLE", "a.jpg"], ["openvino", "onnxruntime"], "cpu"),
        (["score", "BUNDLE", "a.jpg", "--backend", "openvino"], ["openvino"], "cpu"),
        (["verify", "BUNDLE", "--backend", "onnxruntime"], ["onnxruntime"], "cpu"),
        (["info", "CHECKPOINT"], ["torch"], "train"),
        (["train", "--data", "a.csv", "--out", "b", "--backbone-weights", "random"], ["timm"], "train"),
        (["export", "a.pt"], ["onnx"], "export"),
        (["demo"], ["torch"], "demo"),
    ],
)
def test_status_6_says_what_to_install(
    plain_bundle: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    without_packages: Callable[..., dict[str, str]],
    args: list[str],
    missing: list[str],
    extra: str,
) -> None:
    files = {"BUNDLE": str(plain_bundle), "CHECKPOINT": str(tiny_checkpoint)}
    command = [sys.executable, "-S", "-c", PROGRAM, *(files.get(arg, arg) for arg in args)]
    environment = without_packages(*missing)
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=environment, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout) == (6, "")
    assert f"{missing[0]} is not installed: {install_command(extra)}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_precision_that_the_backend_lacks(plain_bundle: Path, good: Path, capsys: Capture) -> None:
    args = ["score", str(plain_bundle), str(good), "--backend", "onnxruntime", "--precision", "bf16"]
    assert main(args) == 6
    assert capsys.readouterr() == ("", "glia-rt: backend onnxruntime computes in fp32 on a CPU, not bf16\n")


def start(*args: str | Path, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, args)], text=True, **options)


def test_a_reader_that_has_seen_enough_is_no_error(plain_bundle: Path, many: Path) -> None:
    process = start("score", plain_bundle, many, "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["status"] == "ok"
        process.stdout.close()
        _, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0
    assert [line.split()[0] for line in stderr.splitlines()] == ["backend", "not"]


def test_a_reader_of_messages_that_went_away_does_not_stop_a_run(
    plain_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    """As in `glia-rt score ... 2>&1 | tee log` when tee dies: the output is what was asked for."""
    process = start("score", plain_bundle, pictures, "-o", tmp_path / "scores.csv", stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        process.stderr.close()
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 33


def test_messages_that_find_no_room_do_not_stop_a_run(plain_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        process = start("score", plain_bundle, pictures, "-o", tmp_path / "scores.csv", stderr=full)
        assert process.wait(timeout=60) == 0
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 33


def test_what_an_interrupt_says_is_passed_on(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    @click.command()
    def stopped() -> None:
        raise KeyboardInterrupt("training stopped: the checkpoint is of epoch 3")

    monkeypatch.setitem(cli.commands, "stopped", stopped)
    assert main(["stopped"]) == 130
    assert capsys.readouterr().err == "glia-rt: training stopped: the checkpoint is of epoch 3\n"


# Output of score


def read_rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
        return rows
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with path.open(encoding="utf-8", newline="") as file:
        kinds = {"score": float, "width": int, "height": int}
        return [{k: kinds.get(k, str)(v) if v else None for k, v in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_files(
    plain_bundle: Path, album: Path, rows_of_album: list[dict[str, Any]], tmp_path: Path, ending: str, capsys: Capture
) -> None:
    output = tmp_path / f"scores{ending}"
    assert main(["score", str(plain_bundle), str(album), "-o", str(output), "--workers", "1"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"13 rows in {output}" in captured.err.splitlines()
    rows = read_rows(output)
    assert list(rows[0]) == list(COLUMNS)
    assert_equal_rows(rows, rows_of_album)
    metadata = json.loads((tmp_path / f"scores{ending}.meta.json").read_text())
    assert metadata["bundle"] == "plain.glia"
    assert (metadata["backend"], metadata["precision"]) == ("openvino", default_precision("openvino"))
    assert (metadata["device"], metadata["input"]) == ("cpu", "views")
    assert (metadata["batch_size"], metadata["rows"], metadata["bad_images"]) == (4, 13, 2)
    assert metadata["versions"]["glia_rt"] == glia_rt.__version__
    ends = ("", ".listing.jsonl.zst", ".meta.json")
    assert sorted(path.name for path in tmp_path.glob("scores*")) == [f"{output.name}{end}" for end in ends]


def test_json(plain_bundle: Path, album: Path, rows_of_album: list[dict[str, Any]], capsys: Capture) -> None:
    assert main(["score", str(plain_bundle), str(album), "--json"]) == 3
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert_equal_rows(rows, rows_of_album)


def test_terminal(plain_bundle: Path, album: Path, rows_of_album: list[dict[str, Any]], capsys: Capture) -> None:
    assert main(["score", str(plain_bundle), str(album)]) == 3
    _, *lines = capsys.readouterr().out.splitlines()
    for line, row in zip(lines, rows_of_album, strict=True):
        score, size, rest = line.split(maxsplit=2)
        if row["status"] == "ok":
            assert (score, size, rest) == (f"{row['score']:.4f}", f"{row['width']}x{row['height']}", row["path"])
        else:
            assert (score, size, rest) == ("-", "-", f"{row['path']}: {row['error']}")


def test_overwrite(plain_bundle: Path, good: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "scores.csv"
    args = ["score", str(plain_bundle), str(good / "00.jpg"), "-o", str(output)]
    assert [main(args), main(args), main([*args, "--overwrite"])] == [0, 2, 0]
    assert capsys.readouterr().err.splitlines().count(f"1 row in {output}") == 2


def test_options_reach_the_scorer(plain_bundle: Path, good: Path, tmp_path: Path) -> None:
    output = tmp_path / "scores.jsonl"
    options = ["--backend", "onnxruntime", "--precision", "fp32", "--batch-size", "3", "--max-pixels", "27000"]
    assert main(["score", str(plain_bundle), str(good), "-o", str(output), *options]) == 3
    metadata = json.loads((tmp_path / "scores.jsonl.meta.json").read_text())
    assert [metadata[k] for k in ("backend", "precision", "batch_size")] == ["onnxruntime", "fp32", 3]
    rows = read_rows(output)
    assert {row["status"] for row in rows} == {"ok", "bad_image"}
    assert all("limit of 27000 pixels" in row["error"] for row in rows if row["status"] == "bad_image")


@pytest.mark.parametrize("output", ["scores.xml", "no/scores.csv"])
def test_a_wrong_output_is_found_before_anything_is_scored(
    plain_bundle: Path, good: Path, tmp_path: Path, output: str, capsys: Capture
) -> None:
    began = len(list(tmp_path.iterdir()))
    assert main(["score", str(plain_bundle), str(good), "-o", str(tmp_path / output)]) == 2
    assert len(list(tmp_path.iterdir())) == began
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "nothing is named: give PATHs, or --list"),
        (["a.jpg", "--resume"], "--resume, --overwrite, --retry-errors and --report are for a file: give -o too"),
        (["a.jpg", "--overwrite"], "--resume, --overwrite, --retry-errors and --report are for a file: give -o too"),
        (
            ["a.jpg", "--report", "r.html"],
            "--resume, --overwrite, --retry-errors and --report are for a file: give -o too",
        ),
        (["a.jpg", "--shard", "3"], "--shard 3 is not I/N, as 1/4"),
        (["a.jpg", "--shard", "0/4"], "shards are numbered from 1"),
        (["a.jpg", "--device", "cuda:0"], "--device cuda:0 is not a list of numbers, as 0 or 0,1"),
        (
            ["a.jpg", "--device", "0,0"],
            "a list of different ones, as [0, 1], not [0, 0]",
        ),
        (["a.jpg", "-o", "a.csv", "--resume", "--overwrite"], "resume, overwrite and retry_errors: give one of them"),
    ],
)
def test_options_that_do_not_go_together(
    plain_bundle: Path, good: Path, args: list[str], message: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(good)
    assert main(["score", str(plain_bundle), *args]) == 2
    assert message in capsys.readouterr().err


def test_lists_columns_and_shards(plain_bundle: Path, good: Path, tmp_path: Path, capsys: Capture) -> None:
    files = sorted(good.iterdir())
    (tmp_path / "list.csv").write_text("file\n" + "".join(f"{path}\n" for path in files))
    output = tmp_path / "scores.jsonl"
    listing = str(tmp_path / "listing.jsonl.zst")
    assert main(["list", "--list", str(tmp_path / "list.csv"), "--column", "file", "-o", listing]) == 0
    assert f"{len(files)} pictures in {listing}" in capsys.readouterr().err
    assert main(["score", str(plain_bundle), "--list", listing, "--shard", "2/3", "-o", str(output)]) == 0
    assert [row["path"] for row in read_rows(output)] == [str(path) for path in files[1::3]]
    metadata = json.loads((tmp_path / "scores.jsonl.meta.json").read_text())
    assert metadata["listing"]["shard"] == "2/3"
    assert metadata["listing"]["pieces"] == 4


def test_a_listing_says_what_could_not_be_read(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.jpg", "b.zip", "closed/c.jpg")
    (tmp_path / "l.csv").write_text("path\n" + "x.jpg\n" + '""\n' * 12)
    (tmp_path / "closed").chmod(0)
    listing = tmp_path / "l.jsonl.zst"
    status, said = glia_rt_with_rights("list", tmp_path, "--list", tmp_path / "l.csv", "-o", listing)
    (tmp_path / "closed").chmod(0o700)
    assert status == 3
    assert said[0].startswith(f"{tmp_path}/closed: this folder cannot be listed: Permission denied; make it readable")
    assert said[1:10] == [f"{tmp_path}/l.csv, line {i}: no value in column 'path'" for i in range(3, 12)]
    last = "13 places could not be read: each becomes a row that says so"
    assert said[10:] == [f"3 pictures in {listing}", "left out: 1 .zip file", last]


def test_a_listing_of_nothing(tmp_path: Path, capsys: Capture) -> None:
    make(tmp_path, "album/0.tar")
    (tmp_path / "l.jsonl.zst").write_text("mine")
    assert main(["list", str(tmp_path / "album"), "-o", str(tmp_path / "l.jsonl.zst"), "--overwrite"]) == 2
    assert f"no pictures in {tmp_path}/album; left out: 1 .tar file" in capsys.readouterr().err
    assert (tmp_path / "l.jsonl.zst").read_text() == "mine"


def test_a_folder_that_may_not_be_read_is_a_row(plain_bundle: Path, good: Path, tmp_path: Path) -> None:
    make(tmp_path, "closed/a.jpg")
    (tmp_path / "closed").chmod(0)
    output = tmp_path / "scores.jsonl"
    status, said = glia_rt_with_rights("score", plain_bundle, good, tmp_path / "closed", "-o", output)
    (tmp_path / "closed").chmod(0o700)
    assert status == 3
    assert said[-1].startswith(f"1 of {len(list(good.iterdir())) + 1} pictures could not be read")
    *rows, last = read_rows(output)
    assert {row["status"] for row in rows} == {"ok"}
    assert last["path"] == f"{tmp_path}/closed"
    assert last["error"].startswith("this folder cannot be listed: Permission denied")


def test_what_is_left_out_is_said_once(plain_bundle: Path, good: Path, tmp_path: Path, capsys: Capture) -> None:
    shutil.copytree(good, tmp_path / "album")
    make(tmp_path, "album/0.tar", "album/s.zip")
    assert main(["score", str(plain_bundle), str(tmp_path / "album"), "-o", str(tmp_path / "scores.csv")]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    as_named = f"archives are read if they are named, as '{tmp_path}/album/**/*.tar'"
    assert said == [f"left out: 1 .tar file, 1 .zip file ({as_named})"]


def test_names_on_standard_input(plain_bundle: Path, good: Path) -> None:
    process = start(
        "score",
        plain_bundle,
        "-",
        "-0",
        "--json",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    files = sorted(good.iterdir())
    rows, _ = process.communicate("\0".join(map(str, files)), timeout=60)
    assert process.returncode == 0
    assert [json.loads(line)["path"] for line in rows.splitlines()] == [str(path) for path in files]


def test_resuming_and_a_report(plain_bundle: Path, album: Path, tmp_path: Path, capsys: Capture) -> None:
    output, report = tmp_path / "scores.csv", tmp_path / "r.html"
    args = ["score", str(plain_bundle), str(album), "-o", str(output), "--resume"]
    assert main([*args, "--report", str(report)]) == 3
    assert f"13 rows in {output}; {report} shows them" in capsys.readouterr().err
    before = output.stat().st_mtime_ns
    assert main(args) == 3
    assert output.stat().st_mtime_ns == before


def test_json_is_for_the_terminal(plain_bundle: Path, good: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["score", str(plain_bundle), str(good), "--json", "-o", str(tmp_path / "a.csv")]) == 2
    assert "--json is for the terminal; for a file name it .jsonl" in capsys.readouterr().err


def test_no_pictures(plain_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["score", str(plain_bundle), str(tmp_path / "empty")]) == 2
    assert f"no pictures in {tmp_path}/empty" in capsys.readouterr().err


def shown_on(reader: int) -> bytes:
    """All that reaches a terminal until its other end is closed."""
    shown = b""
    try:
        while piece := os.read(reader, 4096):
            shown += piece
    except OSError:  # how Linux says that it is closed
        pass
    os.close(reader)
    return shown


def test_a_terminal_shows_progress_and_rows_stay_clean(plain_bundle: Path, good: Path) -> None:
    reader, terminal = pty.openpty()
    process = start("score", plain_bundle, good, "--json", stdout=subprocess.PIPE, stderr=terminal)
    os.close(terminal)
    rows, _ = process.communicate(timeout=60)
    shown = shown_on(reader)
    assert process.returncode == 0
    assert len([json.loads(line) for line in rows.splitlines()]) == 11
    assert b"scoring" in shown
    assert b"11/11 pictures" in shown
    rates = [float(rate) for rate in re.findall(rb"(\d+\.\d)/s", shown)]
    assert rates
    assert max(rates) < 2000, "not the rate at which one batch's rows come"


def test_rows_on_a_terminal_have_their_lines_to_themselves(plain_bundle: Path, good: Path) -> None:
    reader, terminal = pty.openpty()
    process = start("score", plain_bundle, good, stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = shown_on(reader).decode()
    assert process.wait(timeout=60) == 0
    lines = [line for line in shown.splitlines() if line.endswith(".jpg")]
    assert len(lines) == 11
    assert all(re.fullmatch(r" +-?\d+\.\d{4}  +\d+x\d+ +\S+\.jpg", line) for line in lines)
    assert "scoring" not in shown


# Other commands


def test_verify(plain_bundle: Path, capsys: Capture) -> None:
    assert main(["verify", str(plain_bundle), "--backend", "onnxruntime"]) == 0
    captured = capsys.readouterr()
    assert "FAILED" not in captured.out
    assert captured.out.count(" ok") == 2
    assert captured.err == "backend onnxruntime, fp32, cpu\n"


def test_info_of_a_bundle(plain_bundle: Path, capsys: Capture) -> None:
    assert main(["info", str(plain_bundle), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["bundle"] == str(plain_bundle)
    assert len(record["identity"]) == 64
    assert record["contract"]["score"]["range"] == [1, 5]
    assert {"model", "checkpoint", "files", "parity", "tools"} < set(record)


def test_info_of_a_checkpoint(tiny_checkpoint: Path, capsys: Capture) -> None:
    assert main(["info", str(tiny_checkpoint), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["checkpoint"] == str(tiny_checkpoint)
    assert record["backbones"]["backbone"]["source"] == "random"
    assert record["contract"]["score"]["range"] == [1, 5]


def test_info_of_nothing_needs_no_package(without_packages: Callable[..., dict[str, str]], tmp_path: Path) -> None:
    environment = without_packages("torch")
    command = [sys.executable, "-S", "-c", PROGRAM, "info", str(tmp_path / "gone.pt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.returncode == 5
    assert done.stderr == f"glia-rt: {tmp_path / 'gone.pt'}: no such bundle or checkpoint\n"


@pytest.mark.parametrize("name", ["gone.pt", "gone.glia", "text.pt"])
def test_info_of_something_else(tmp_path: Path, name: str, capsys: Capture) -> None:
    (tmp_path / "text.pt").write_text("hello")
    assert main(["info", str(tmp_path / name)]) == 5
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"glia-rt: {tmp_path / name}")


def test_doctor(capsys: Capture) -> None:
    assert main(["doctor"]) == 0
    captured = capsys.readouterr()
    for name in ("openvino", "onnxruntime", "numpy", "pillow"):
        assert name in captured.out
    assert captured.err == ""


def test_export_refuses_before_it_works(tiny_checkpoint: Path, plain_bundle: Path, capsys: Capture) -> None:
    assert main(["export", str(tiny_checkpoint), "-o", str(plain_bundle)]) == 2
    assert "plain.glia exists; give --overwrite" in capsys.readouterr().err


def test_export_wants_pictures_where_it_is_told_to_look(tiny_checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["export", str(tiny_checkpoint), "-o", str(tmp_path / "a.glia"), "--images", str(tmp_path)]) == 2
    assert f"--images: no pictures in {tmp_path}" in capsys.readouterr().err


def test_train(tmp_path: Path, good: Path, capsys: Capture) -> None:
    names = sorted(path.name for path in good.iterdir())
    rows = [f"{good / name},{score},{score % 6}" for score, name in enumerate(names)]
    labels, out = tmp_path / "labels.csv", tmp_path / "a run"
    labels.write_text("\n".join(["path,score,reference", *rows]))
    options = {"epochs": 1, "batch_size": 4, "lr": 1e-3, "weight_decay": 0.1, "loss": "plcc", "seed": 7, "workers": 1}
    options |= {"micro_batch_size": 2, "crops": 2, "warmup_epochs": 0.5, "clip_norm": 1.0, "ema": 0.9}
    options |= {"precision": "fp32", "backbone_lr": 1e-4, "ranking": 0.0}
    flags = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    args = ["--data", str(labels), "--out", str(out), "--backbone", BACKBONE, "--backbone-weights", "random", *flags]
    args += ["--tune-backbone", "--score-range", "0", "20", "--scale", "0", "100", "--no-test", "--no-cache"]
    assert main(["train", *args, "--train-on-validation", "--half-weights"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"wrote {out}/checkpoint.pt; next:\n  glia-rt export '{out}/checkpoint.pt'\n"
    assert "training SRCC" in captured.err  # that of the validation part, which is trained on
    assert "test part:" not in captured.err
    record = json.loads((out / "run.json").read_text())
    expected = options | {"adapter_only": False, "score_range": [0, 20], "time_limit_s": None}
    expected |= {"cache": False, "measure_test": False, "train_on_validation": True, "half_weights": True}
    expected |= {"fit_head": False, "scale": [0, 100]}
    assert record["options"] == expected
    assert (record["config"]["backbone"], record["config"]["tune_backbone"]) == (BACKBONE, True)


def test_the_next_command_of_adapters_names_their_backbone(tmp_path: Path, good: Path, capsys: Capture) -> None:
    from safetensors.torch import save_file

    from glia_train.backbones import create_backbone

    save_file(create_backbone(BACKBONE).state_dict(), tmp_path / "vit.safetensors")
    labels, out = tmp_path / "labels.csv", tmp_path / "run"
    labels.write_text("\n".join(["path,score", *(f"{path},{i}" for i, path in enumerate(sorted(good.iterdir())))]))
    args = ["--data", str(labels), "--out", str(out), "--backbone", BACKBONE, "--adapter-only"]
    args += ["--backbone-weights", str(tmp_path / "vit.safetensors"), "--epochs", "1", "--batch-size", "4"]
    assert main(["train", *args]) == 0
    command = f"glia-rt export {out}/checkpoint.pt --backbone-weights {tmp_path}/vit.safetensors\n"
    assert capsys.readouterr().out.endswith(command)


# What may be imported, and how long that takes


def python(program: str, *args: str) -> str:
    """What a program in a process of its own says last."""
    command = [sys.executable, "-c", program, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines()[-1]


def loaded_after(statement: str) -> set[str]:
    return {name.partition(".")[0] for name in python(f"import sys; {statement}; print(*sys.modules)").split()}


HELP = "from glia_rt.cli.main import main; main(['--help'])"


@pytest.mark.parametrize("statement", ["import glia_rt", HELP])
def test_nothing_heavy_is_imported_at_start(statement: str) -> None:
    loaded = loaded_after(statement)
    assert "glia_rt" in loaded
    assert loaded & HEAVY == set()


@pytest.mark.parametrize(("statement", "more"), [("import glia_rt", set()), (HELP, {"click"})])
def test_a_start_imports_these_packages_and_no_others(statement: str, more: set[str]) -> None:
    """What a start costs, without a clock: numpy, and what decodes pictures."""
    before = loaded_after("pass")  # an editable install has modules of its own
    found = {name for name in loaded_after(statement) - before - sys.stdlib_module_names if not name.startswith("_")}
    assert found - {"cython_runtime"} == {"glia_rt", "numpy", "PIL", "simplejpeg"} | more


def test_scoring_imports_no_training(plain_bundle: Path, good: Path) -> None:
    args = ["score", str(plain_bundle), str(good), "--backend", "onnxruntime"]
    loaded = loaded_after(f"from glia_rt.cli.main import main; main({args!r})")
    assert "onnxruntime" in loaded
    assert loaded & {"torch", "timm", "onnx", "openvino", "glia_train", "glia_export"} == set()


def test_a_file_that_may_not_be_read_is_a_row(plain_bundle: Path, good: Path, tmp_path: Path, capsys: Capture) -> None:
    """What click.Path refuses by itself ends the run. Not for root, who may read all: a loop of links is as good."""
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    os.chmod(shutil.copy(next(good.iterdir()), tmp_path / "closed.jpg"), 0)
    paths = [str(tmp_path / "loop.jpg"), str(tmp_path / "closed.jpg"), str(next(good.iterdir()))]
    assert main(["score", str(plain_bundle), *paths, "--json"]) == 3
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["path"] for row in rows] == paths
    assert rows[0]["status"] == "bad_image"
    [command] = [param for param in cli.commands["score"].params if param.name == "paths"]
    assert isinstance(command.type, click.Path)
    assert not command.type.readable


def test_a_full_standard_output(plain_bundle: Path, good: Path) -> None:
    with open("/dev/full", "w") as full:
        process = start("score", plain_bundle, good, stdout=full, stderr=subprocess.PIPE)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stderr.splitlines()[-1] == "glia-rt: standard output cannot be written: No space left on device"
    assert "Traceback" not in stderr


def test_names_do_not_command_the_terminal(plain_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a\x1b[2J\nb.jpg").write_text("no picture")
    assert main(["score", str(plain_bundle), str(tmp_path)]) == 3
    assert capsys.readouterr().out.splitlines()[1].endswith(r"a\x1b[2J\nb.jpg: not a picture Pillow can read")
    (tmp_path / "\u009b2J\x7f\u202e.jpg").write_text("no picture")
    assert main(["score", str(plain_bundle), str(tmp_path), "--json"]) == 3
    printed = capsys.readouterr().out.strip()
    assert all(line.isprintable() for line in printed.splitlines())
    assert {json.loads(line)["path"] for line in printed.splitlines()} == {str(path) for path in tmp_path.iterdir()}
    hostile = str(tmp_path / "\x1b[2J.glia")
    plain, code = str(plain_bundle), "\x1b[2J"
    commands = [
        ["score", hostile, "x.jpg"], ["score", plain, "x.jpg", "-o", hostile], ["info", hostile], ["export", hostile],
        ["score", plain, "x.jpg", "--shard", code], ["score", plain, "x.jpg", "--workers", code], [hostile],
        ["data", "check", "biq2021", "--root", hostile], ["compare", hostile, hostile, "--data", hostile],
    ]  # fmt: skip
    for command in commands:
        assert main(command) != 0
        shown = capsys.readouterr()
        assert "\x1b" not in shown.out + shown.err
        assert r"\x1b[2J" in shown.err


def test_a_log_has_a_line_of_progress_now_and_then(
    plain_bundle: Path, good: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glia_rt.cli.console.LOG_SECONDS", 0.0)
    assert main(["score", str(plain_bundle), str(good), "-o", str(tmp_path / "scores.csv")]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "pictures" in line]
    assert len(lines) == 11
    assert all(re.fullmatch(r"\d+/11 pictures \d+\.\d/s(, \d+:\d\d:\d\d left)?", line) for line in lines)
    assert "left" in lines[-2]


def test_what_is_in_the_way_is_said_before_the_engine_is_opened(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "scores.csv").touch()
    assert main(["score", str(tmp_path / "no.glia"), "a.jpg", "-o", str(tmp_path / "scores.csv")]) == 2
    assert "scores.csv exists; name another file, or give --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize("to_file", [False, True])
def test_a_listing_that_grows_meanwhile(
    plain_bundle: Path, good: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, to_file: bool
) -> None:
    shutil.copytree(good, tmp_path / "album" / "a")
    (tmp_path / "album" / "z").mkdir()
    read = Scorer._read

    def growing(*args: Any) -> Any:
        with suppress(FileExistsError):  # several threads read: the file must come whole, and once
            os.link(good / "00.jpg", tmp_path / "album" / "z" / "late.jpg")
        return read(*args)

    monkeypatch.setattr(Scorer, "_read", growing)
    output = ["-o", str(tmp_path / "scores.csv")] if to_file else []
    assert main(["score", str(plain_bundle), str(tmp_path / "album"), "--batch-size", "2", *output]) == 0
    said = capsys.readouterr()
    assert f"1 file has appeared in {tmp_path}/album since it was listed: not of this run" in said.err
    assert "late.jpg" not in ((tmp_path / "scores.csv").read_text() if to_file else said.out)
