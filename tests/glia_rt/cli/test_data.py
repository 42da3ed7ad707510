"""glia-rt data: check and distort."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from glia_rt.cli import data
from glia_rt.cli.main import main
from glia_rt.versions import install_command

Capture = pytest.CaptureFixture[str]
GliaRt = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _pillow_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line sets the process's own limit of pixels."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


@pytest.fixture
def biq2021(tmp_path: Path) -> Path:
    """A folder in BIQ2021's layout: six pictures to train on, and two to test on, of which one leaks."""
    root = tmp_path / "biq2021"
    (root / "Images").mkdir(parents=True)
    train = ["ss01 (44)", "ss02 (1)", "ss02 (2)", "ss03 (1)", "ss03 (2)", "ss03 (3)"]
    test = ["ss01 (47)", "ss03 (4)"]
    for i, name in enumerate((*train, *test)):
        Image.new("RGB", (32, 24) if i else (40, 30)).save(root / "Images" / f"{name}.jpg")
    rows = "".join(f"{name}.jpg,{0.15 + i / 10},,\n" for i, name in enumerate(train))
    (root / "Train (Images and MOS).csv").write_text("Image Name,MOS,,\n" + rows)
    rows = "".join(f"{name}.jpg,0.25\n" for name in test)
    (root / "Test (Images and MOS).csv").write_text("Image Name,MOS\n" + rows)
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A photograph in the folder, and one of the same name below it."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for path in (folder / "sea.png", folder / "more" / "sea.png"):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        coarse.resize((40, 36), Image.Resampling.BICUBIC).save(path)
    return folder


def test_check_says_what_a_dataset_is(biq2021: Path, capsys: Capture) -> None:
    assert main(["data", "check", "biq2021", "--root", str(biq2021)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "dataset     biq2021",
        "pictures    8",
        "groups      1, with 2 pictures that belong together",
        "split       train 6, test 2",
        "leaking     1 test pictures have a near-duplicate in another part",
        "scores      0.15 to 0.65, mean 0.362, on a scale of 0 to 1",
        "sizes       32x24 to 40x30, median 32x24, 2 different ones",
        "",
        "score       pictures",
        "0 to 0.1           0",
        "0.1 to 0.2         1  #############",
        "0.2 to 0.3         3  ########################################",
        "0.3 to 0.4         1  #############",
        "0.4 to 0.5         1  #############",
        "0.5 to 0.6         1  #############",
        "0.6 to 0.7         1  #############",
        "0.7 to 0.8         0",
        "0.8 to 0.9         0",
        "0.9 to 1           0",
        "",
        "part   pictures     least      mean  greatest",
        "train         6      0.15       0.4      0.65",
        "test          2      0.25      0.25      0.25",
        "",
        "subset  pictures     least      mean  greatest",
        "ss01           2      0.15       0.2      0.25",
        "ss02           2      0.25       0.3      0.35",
        "ss03           4      0.25     0.475      0.65",
    ]


def test_missing_and_unreadable_pictures_are_listed(
    biq2021: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = biq2021 / "Images"
    for name in ("ss03 (1).jpg", "ss03 (2).jpg", "ss03 (3).jpg"):
        (images / name).unlink()
    (images / "ss02 (1).jpg").write_bytes(b"no picture")
    monkeypatch.setattr(data, "MOST_LISTED", 2)
    assert main(["data", "check", "biq2021", "--root", str(biq2021)]) == 3
    assert capsys.readouterr().out.splitlines()[-8:] == [
        "",
        "missing: 3",
        f"  {images}/ss03 (1).jpg: no such file",
        f"  {images}/ss03 (2).jpg: no such file",
        "  and 1 more; --json lists all",
        "",
        "unreadable: 1",
        f"  {images}/ss02 (1).jpg: not a picture Pillow can read",
    ]
    assert main(["data", "check", "biq2021", "--root", str(biq2021), "--json"]) == 3
    record = json.loads(capsys.readouterr().out)
    assert len(record["missing"]) == 3
    assert record["unreadable"] == [
        {"name": "Images/ss02 (1).jpg", "reason": f"{images}/ss02 (1).jpg: not a picture Pillow can read"}
    ]
    assert (record["dataset"], record["pictures"], record["is_whole"]) == ("biq2021", 8, False)
    assert sum(record["histogram"]["counts"]) == 8


def test_check_of_labels_of_your_own(tmp_path: Path, capsys: Capture) -> None:
    for i in range(3):
        Image.new("RGB", (30, 20)).save(tmp_path / f"{i}.png")
    (tmp_path / "labels.csv").write_text("file,MOS,scene\n0.png,1,a\n1.png,2,a\n2.png,3,\n")
    columns = ["--path-column", "file", "--score-column", "MOS"]
    assert main(["data", "check", str(tmp_path / "labels.csv"), *columns, "--group-column", "scene"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [
        f"dataset     {tmp_path}/labels.csv",
        "pictures    3",
        "groups      1, with 2 pictures that belong together",
        "scores      1 to 3, mean 2.000",
        "sizes       30x20, all",
    ]
    cells = pa.array([(tmp_path / "0.png").read_bytes()] * 2, pa.binary())
    parquet.write_table(pa.table({"image": cells, "score": [2.5, 2.5]}), tmp_path / "train.parquet")
    assert main(["data", "check", str(tmp_path / "train.parquet")]) == 0
    assert "every score is the same: there is nothing to learn from" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["biq2021"], "biq2021 needs --root: the folder that it was unpacked to"),
        (
            ["biq2021", "--root", "nowhere"],
            "nowhere: no such folder; the folder of BIQ2021 holds Train (Images and MOS)",
        ),
        (
            ["kadid10k", "--root", "."],
            ".: no dmos.csv and no images/; the folder of KADID-10k holds dmos.csv, images/; ",
        ),
        (["koniq"], "there is no dataset 'koniq'; there are biq2021, kadid10k, and labels of your own"),
        (["labels.csv"], "labels.csv: cannot be read: No such file or directory"),
        (["labels.csv", "--root", "."], "--root goes with biq2021, kadid10k"),
        (["biq2021", "--root", ".", "--score-column", "mos"], "biq2021 has columns of its own: drop --path-column"),
    ],
)
def test_what_cannot_be_checked(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("glia-rt: ")
    assert message in err
    assert err.count("\n") == 1


def test_names_cannot_command_a_terminal(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "labels.csv").write_text('path,score\n"a\x1b[31m.png",1\n')
    assert main(["data", "check", str(tmp_path / "labels.csv")]) == 3
    assert "\x1b" not in capsys.readouterr().out


def test_distort_and_check(photos: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "a set"
    assert main(["data", "distort", str(photos), "--out", str(out), "--metric", "ssim"]) == 0
    said, err = capsys.readouterr()
    assert err == ""
    assert said.splitlines() == [
        f"wrote 252 pictures of 2 photographs to {out}; next:",
        f"  glia-rt data check kadid10k --root '{out}'",
    ]
    assert main(["data", "check", "kadid10k", "--root", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["dataset     kadid10k layout, SSIM labels", "pictures    250", "references  2"]
    assert len(lines[lines.index("") :]) == 1 + 11 + 1 + 26
    assert main(["data", "distort", str(photos), "--out", str(out)]) == 2
    assert "holds an earlier dataset: give --overwrite to replace it" in capsys.readouterr().err
    assert main(["data", "distort", str(photos), "--out", str(out), "--overwrite", "--seed", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == (
        f"  glia-rt score model.glia --list '{out}/pictures.csv' -o scores.csv"
    )
    assert not (out / "dmos.csv").exists()
    assert main(["data", "check", "kadid10k", "--root", str(out)]) == 2


def test_photographs_that_cannot_be_distorted(photos: Path, tmp_path: Path, capsys: Capture) -> None:
    out = str(tmp_path / "set")
    Image.new("RGB", (100, 20)).save(photos / "flat.png")
    assert main(["data", "distort", str(photos), "--out", out]) == 2
    assert "flat.png: 100x20 pixels, and distortions need at least 32x32" in capsys.readouterr().err
    (photos / "bad.png").write_bytes(b"no picture")
    assert main(["data", "distort", str(photos), "--out", out]) == 3
    assert "bad.png: not a picture Pillow can read" in capsys.readouterr().err
    assert main(["data", "distort", str(photos), "--out", str(photos / "set")]) == 2
    assert "lie in each other" in capsys.readouterr().err
    assert main(["data", "distort", str(photos), "--out", out, "--metric", "psnr"]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_progress_is_a_bar_on_a_terminal(biq2021: Path) -> None:
    program = "import sys; from glia_rt.cli.main import main; sys.exit(main())"
    reader, writer = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", program, "data", "check", "biq2021", "--root", str(biq2021)],
        stdout=subprocess.PIPE,
        stderr=writer,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80"},
        timeout=120,
        check=True,
    )
    os.close(writer)
    shown = os.read(reader, 1 << 16).decode()
    os.close(reader)
    assert "reading" in shown
    assert "8/8" in shown
    assert b"pictures    8" in done.stdout


def test_a_missing_package_is_named(biq2021: Path, without_packages: Callable[..., dict[str, str]]) -> None:
    program = "import sys; from glia_rt.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-S", "-c", program, "data", "distort", str(biq2021 / "Images"), "--out", "x"],
        capture_output=True,
        text=True,
        env=without_packages("skimage", "scikit_image"),
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr == f"glia-rt: skimage is not installed: {install_command('train')}\n"


def test_help() -> None:
    assert main(["data", "--help"]) == 0
    assert main(["data", "check", "--help"]) == 0
    assert main(["data", "distort", "-v", "--help"]) == 0
