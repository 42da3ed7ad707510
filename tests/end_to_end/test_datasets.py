"""A model is trained and evaluated on a small set in every layout that is read, by the commands a user types."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers.linear import Linear
from PIL import Image
from pyarrow import parquet

from glia_rt.cli.main import main
from glia_train.models.table import FAMILIES

COUNT = 24
Make = Callable[[Path], list[str]]


@pytest.fixture(autouse=True)
def _linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line sets the process's own limit of pixels."""
    monkeypatch.setitem(FAMILIES, Linear.family, Linear)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


def picture(number: int) -> Image.Image:
    """A plain picture with some noise: the higher the number, the brighter."""
    noise = np.random.default_rng(number).integers(0, 9, (30, 40, 3), dtype=np.uint8)
    return Image.fromarray(noise + np.uint8(9 * number))


def biq2021(root: Path) -> list[str]:
    (root / "Images").mkdir(parents=True)
    names = [f"ss0{1 + i % 3} ({5000 + i}).jpg" for i in range(COUNT)]
    for number, name in enumerate(names):
        picture(number).save(root / "Images" / name)
    rows = [f"{name},{number / COUNT:.3f}\n" for number, name in enumerate(names)]
    (root / "Train (Images and MOS).csv").write_text("Image Name,MOS\n" + "".join(rows[::2] + rows[1::4]))
    (root / "Test (Images and MOS).csv").write_text("Image Name,MOS\n" + "".join(rows[3::4]))
    return ["--dataset", "biq2021", "--root", str(root)]


def kadid10k(root: Path) -> list[str]:
    (root / "images").mkdir(parents=True)
    rows = ["dist_img,ref_img,dmos,var"]
    for number in range(COUNT):
        reference, level = divmod(number, 3)
        name = f"I{reference + 1:02}_01_{level + 1:02}.png"
        picture(number).save(root / "images" / name)
        rows.append(f"{name},I{reference + 1:02}.png,{1 + 4 * number / COUNT:.3f},0.5")
    (root / "dmos.csv").write_text("\n".join(rows) + "\n")
    return ["--dataset", "kadid10k", "--root", str(root)]


def own_csv(root: Path) -> list[str]:
    root.mkdir()
    rows = ["file,mos,scene"]
    for number in range(COUNT):
        picture(number).save(root / f"{number}.png")
        rows.append(f"{number}.png,{number},{number // 2}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    columns = ["--path-column", "file", "--score-column", "mos", "--group-column", "scene"]
    return ["--data", str(root / "labels.csv"), *columns]


def hugging_face(root: Path) -> list[str]:
    (root / "data").mkdir(parents=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for shard in range(2):
        numbers = range(shard, COUNT, 2)
        files = [io.BytesIO() for _ in numbers]
        for number, file in zip(numbers, files, strict=True):
            picture(number).save(file, "PNG")
        cells = [{"bytes": file.getvalue(), "path": f"{n}.png"} for n, file in zip(numbers, files, strict=True)]
        table = pa.table({"image": pa.array(cells, kind), "score": pa.array(map(float, numbers), pa.float32())})
        parquet.write_table(table, root / "data" / f"train-0000{shard}-of-00002.parquet", row_group_size=5)
    return ["--data", str(root)]


@pytest.mark.parametrize("make", [biq2021, kadid10k, own_csv, hugging_face])
def test_every_layout(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named, run = make(tmp_path / "set"), tmp_path / "run"
    options = ["--family", "linear", "--backbone-weights", "random", "--epochs", "3", "--batch-size", "4"]
    assert main(["train", *named, "--out", str(run), *options, "--lr", "0.01", "--no-test"]) == 0
    assert {path.name for path in run.iterdir()} == {
        *("checkpoint.pt", "run.json", "split.csv", "metrics.csv", "curves.png")
    }
    capsys.readouterr()
    for part in ("validation", "test"):
        chosen = ["--split", part, "--json", "--predictions", str(tmp_path / f"{part}.csv")]
        assert main(["evaluate", str(run / "checkpoint.pt"), *named, *chosen]) == 0
        found = json.loads(capsys.readouterr().out)
        with (run / "split.csv").open() as file:
            expected = {row["path"] for row in csv.DictReader(file) if row["split"] == part}
        with (tmp_path / f"{part}.csv").open() as file:
            assert {row["path"] for row in csv.DictReader(file)} == expected
        assert found["overall"]["pictures"] == len(expected)
    assert found["overall"]["srcc"] > 0.9  # brightness is all there is to learn
