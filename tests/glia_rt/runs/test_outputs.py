from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from pyarrow import parquet

from glia_rt.errors import UsageError
from glia_rt.results import COLUMNS, Result
from glia_rt.runs.outputs import METADATA_KEY, ROW_GROUP, format_score, json_line, sink_format

METADATA: dict[str, Any] = {"backend": "openvino", "precision": "bf16", "batch_size": 8, "name": "naïve"}
FORMATS = ("csv", "jsonl", "parquet")
WEIRD_NAMES = (
    "plain.jpg",
    'a "quoted", comma.jpg',
    "two\nlines.jpg",
    "lone\rreturn.jpg",
    "\r\n",
    " spaces .jpg ",
    "\x01\x0b\x0c\x1c\x7f\x85.jpg",
    "separators\u2028\u2029.jpg",
    "日本語 😀.jpg",
    "\\xff.jpg",
    "=1+1",
)


def ok(path: str, score: float = 61.5) -> Result:
    return Result(path=path, score=score, status="ok", error=None, width=640, height=480)


def bad(path: str) -> Result:
    return Result(path=path, score=None, status="bad_image", error="truncated, at byte 12", width=None, height=None)


def read(path: Path, kind: str) -> list[dict[str, Any]]:
    if kind == "csv":
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, strict=True))
    if kind == "jsonl":
        return [json.loads(line) for line in path.read_bytes().splitlines()]
    rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return rows


def expected(results: list[Result], kind: str) -> list[dict[str, Any]]:
    rows = []
    for result in results:
        row: dict[str, Any] = {name: getattr(result, name) for name in COLUMNS}
        if kind == "csv":
            row = {name: "" if value is None else str(value) for name, value in row.items()}
        rows.append(row)
    return rows


def write(output: Path, results: Iterable[Result]) -> None:
    make_sink = sink_format(output)
    with output.open("wb") as file:
        sink = make_sink(file)
        for result in results:
            sink.write(result)
        sink.finish(METADATA)


def test_columns() -> None:
    assert COLUMNS == ("path", "score", "status", "error", "width", "height")


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_come_back_in_order_whatever_the_names(tmp_path: Path, kind: str) -> None:
    output = tmp_path / f"scores.{kind}"
    results = [row for name in WEIRD_NAMES for row in (ok(name), bad(name))]
    write(output, results)
    assert read(output, kind) == expected(results, kind)


@pytest.mark.parametrize("kind", FORMATS)
def test_no_rows_make_a_valid_file(tmp_path: Path, kind: str) -> None:
    output = tmp_path / f"scores.{kind}"
    write(output, [])
    assert read(output, kind) == []
    if kind == "csv":
        assert output.read_bytes() == b"path,score,status,error,width,height\r\n"
    if kind == "parquet":
        assert parquet.read_schema(output).names == list(COLUMNS)


@pytest.mark.parametrize("name", ["scores", "scores.txt", "scores.csv.gz"])
def test_other_extensions_are_refused_with_the_list_of_those_that_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"\.csv, \.jsonl, \.parquet"):
        sink_format(tmp_path / name)


def test_extension_in_capitals(tmp_path: Path) -> None:
    write(tmp_path / "SCORES.CSV", [ok("a.jpg")])
    assert read(tmp_path / "SCORES.CSV", "csv") == expected([ok("a.jpg")], "csv")


def test_a_folder_that_is_not_there_or_is_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        sink_format(tmp_path / "missing" / "scores.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        sink_format(tmp_path / "folder.csv")


def test_parquet_types_row_groups_and_metadata(tmp_path: Path) -> None:
    output = tmp_path / "scores.parquet"
    results = [ok(f"{i}.jpg", score=float(np.float32(i / 7))) for i in range(ROW_GROUP + 1)]
    write(output, results)
    with parquet.ParquetFile(output) as file:
        assert file.schema_arrow.types == [pa.string(), pa.float32(), pa.string(), pa.string(), pa.int32(), pa.int32()]
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [ROW_GROUP, 1]
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"
        assert json.loads(file.metadata.metadata[METADATA_KEY.encode()]) == METADATA
    assert read(output, "parquet") == expected(results, "parquet")


@pytest.mark.parametrize("score", [0.1, 61.234567, 100.0, 0.0, -3.5, 1 / 3, 1e-9, 123456.79, 2.0**24, 3e20])
def test_scores_read_back_as_the_same_float32(tmp_path: Path, score: float) -> None:
    exact = np.float32(score)
    text = format_score(float(exact))
    digits = len(text.partition("e")[0].replace(".", "").lstrip("-0").rstrip("0")) or 1
    assert np.float32(text) == exact
    assert digits == 1 or np.float32(f"{exact:.{digits - 1}g}") != exact

    for kind in ("csv", "jsonl"):
        write(tmp_path / f"scores.{kind}", [ok("a.jpg", score=float(exact))])
        assert np.float32(read(tmp_path / f"scores.{kind}", kind)[0]["score"]) == exact


def test_score_text() -> None:
    assert format_score(float(np.float32(0.1))) == "0.1"
    assert format_score(61.23456789) == "61.23457"
    assert json_line(ok("é.jpg", score=float(np.float32(0.1)))) == (
        '{"path": "é.jpg", "score": 0.1, "status": "ok", "error": null, "width": 640, "height": 480}'
    )


def test_json_never_holds_a_nan() -> None:
    with pytest.raises(ValueError, match="JSON"):
        json_line(ok("a.jpg", score=float("nan")))
