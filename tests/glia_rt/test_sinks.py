from __future__ import annotations

import csv
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from pyarrow import parquet

from glia_rt.errors import GliaError, OutputExistsError, UsageError
from glia_rt.results import COLUMNS, Result
from glia_rt.sinks import METADATA_KEY, ROW_GROUP, format_score, json_line, open_sink

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


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def break_off(output: Path, results: list[Result], error: BaseException, *, overwrite: bool = False) -> Path | None:
    """Write rows, then raise; returns what the sink says of the partial file."""
    sink = open_sink(output, overwrite=overwrite, metadata=METADATA)
    with pytest.raises(type(error)), sink:  # noqa: PT012
        for result in results:
            sink.write(result)
        raise error
    return sink.partial_path


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may grow past `size` bytes: what a full disk looks like, without filling one."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_columns() -> None:
    assert COLUMNS == ("path", "score", "status", "error", "width", "height")


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_come_back_in_order_whatever_the_names(tmp_path: Path, kind: str) -> None:
    output = tmp_path / f"scores.{kind}"
    results = [row for name in WEIRD_NAMES for row in (ok(name), bad(name))]
    with open_sink(output, overwrite=False, metadata=METADATA) as sink:
        for result in results:
            sink.write(result)
    assert read(output, kind) == expected(results, kind)
    assert sink.partial_path is None
    assert names(tmp_path) == [f"scores.{kind}", f"scores.{kind}.meta.json"]


@pytest.mark.parametrize("kind", FORMATS)
def test_no_rows_make_a_valid_file(tmp_path: Path, kind: str) -> None:
    output = tmp_path / f"scores.{kind}"
    with open_sink(output, overwrite=False, metadata=METADATA):
        pass
    assert read(output, kind) == []
    if kind == "csv":
        assert output.read_bytes() == b"path,score,status,error,width,height\r\n"
    if kind == "parquet":
        assert parquet.read_schema(output).names == list(COLUMNS)


@pytest.mark.parametrize("kind", FORMATS)
def test_output_is_absent_until_the_end(tmp_path: Path, kind: str) -> None:
    output = tmp_path / f"scores.{kind}"
    with open_sink(output, overwrite=False, metadata=METADATA) as sink:
        sink.write(ok("a.jpg"))
        assert names(tmp_path) == [f"scores.{kind}.partial"]
        assert sink.partial_path == tmp_path / f"scores.{kind}.partial"
    assert output.is_file()


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_row_is_in_the_file_as_soon_as_it_is_written(tmp_path: Path, kind: str) -> None:
    with open_sink(tmp_path / f"scores.{kind}", overwrite=False, metadata=METADATA) as sink:
        for count in (1, 2, 3):
            sink.write(ok("a.jpg"))
            assert sink.partial_path is not None
            assert len(read(sink.partial_path, kind)) == count


@pytest.mark.parametrize(
    "error", [RuntimeError("the engine failed"), KeyboardInterrupt()], ids=lambda e: type(e).__name__
)
@pytest.mark.parametrize("kind", FORMATS)
def test_a_run_that_breaks_off_keeps_its_rows_and_makes_no_output(
    tmp_path: Path, kind: str, error: BaseException
) -> None:
    results = [ok("a.jpg"), bad("b.jpg")]
    partial = break_off(tmp_path / f"scores.{kind}", results, error)
    assert partial == tmp_path / f"scores.{kind}.partial"
    assert names(tmp_path) == [partial.name]
    assert read(partial, kind) == expected(results, kind)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_run_that_breaks_off_before_its_first_row_leaves_nothing(tmp_path: Path, kind: str) -> None:
    assert break_off(tmp_path / f"scores.{kind}", [], RuntimeError("no such bundle")) is None
    assert names(tmp_path) == []


def test_an_output_is_replaced_only_if_asked(tmp_path: Path) -> None:
    output = tmp_path / "scores.csv"
    output.write_text("precious")
    with pytest.raises(OutputExistsError, match=r"scores\.csv exists.*--overwrite"):
        open_sink(output, overwrite=False, metadata=METADATA)
    assert output.read_text() == "precious"
    assert names(tmp_path) == ["scores.csv"]

    with open_sink(output, overwrite=True, metadata=METADATA) as sink:
        sink.write(ok("a.jpg"))
        assert output.read_text() == "precious"
    assert read(output, "csv") == expected([ok("a.jpg")], "csv")


def test_a_broken_link_in_the_outputs_place_counts_as_an_output(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").symlink_to("unmounted.csv")
    with pytest.raises(OutputExistsError):
        open_sink(tmp_path / "scores.csv", overwrite=False, metadata=METADATA)


def test_a_failed_overwrite_leaves_the_output_as_it_was(tmp_path: Path) -> None:
    output = tmp_path / "scores.csv"
    output.write_text("precious")
    break_off(output, [ok("a.jpg")], RuntimeError("the engine failed"), overwrite=True)
    assert output.read_text() == "precious"


def test_rows_of_a_failed_run_are_replaced_only_if_asked(tmp_path: Path) -> None:
    output = tmp_path / "scores.csv"
    partial = break_off(output, [ok("first.jpg")], KeyboardInterrupt())
    assert partial is not None
    with pytest.raises(OutputExistsError, match=r"scores\.csv\.partial exists.*--overwrite"):
        open_sink(output, overwrite=False, metadata=METADATA)
    assert read(partial, "csv") == expected([ok("first.jpg")], "csv")

    with open_sink(output, overwrite=True, metadata=METADATA) as sink:
        sink.write(ok("second.jpg"))
    assert read(output, "csv") == expected([ok("second.jpg")], "csv")
    assert not partial.exists()


def test_two_runs_cannot_write_one_output(tmp_path: Path) -> None:
    output = tmp_path / "scores.jsonl"
    with open_sink(output, overwrite=False, metadata=METADATA), pytest.raises(OutputExistsError):
        open_sink(output, overwrite=False, metadata=METADATA)


@pytest.mark.parametrize("name", ["scores", "scores.txt", "scores.csv.gz"])
def test_other_extensions_are_refused_with_the_list_of_those_that_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"\.csv, \.jsonl, \.parquet"):
        open_sink(tmp_path / name, overwrite=True, metadata=METADATA)
    assert names(tmp_path) == []


def test_extension_in_capitals(tmp_path: Path) -> None:
    with open_sink(tmp_path / "SCORES.CSV", overwrite=False, metadata=METADATA) as sink:
        sink.write(ok("a.jpg"))
    assert read(tmp_path / "SCORES.CSV", "csv") == expected([ok("a.jpg")], "csv")


def test_a_folder_that_is_not_there_or_is_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        open_sink(tmp_path / "missing" / "scores.csv", overwrite=False, metadata=METADATA)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        open_sink(tmp_path / "folder.csv", overwrite=True, metadata=METADATA)


def test_a_place_that_cannot_be_written_is_found_at_once(tmp_path: Path) -> None:
    (tmp_path / "scores.csv.partial").mkdir()
    with pytest.raises(UsageError, match=r"scores\.csv\.partial: cannot be written: Is a directory"):
        open_sink(tmp_path / "scores.csv", overwrite=True, metadata=METADATA)


@pytest.mark.parametrize("kind", FORMATS)
def test_metadata_lies_beside_the_output(tmp_path: Path, kind: str) -> None:
    with open_sink(tmp_path / f"scores.{kind}", overwrite=False, metadata=METADATA):
        pass
    assert json.loads((tmp_path / f"scores.{kind}.meta.json").read_text("utf-8")) == METADATA


def test_metadata_that_is_not_json_is_found_before_any_row(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        open_sink(tmp_path / "scores.csv", overwrite=False, metadata={"path": Path("a")})
    assert names(tmp_path) == []


def test_parquet_types_row_groups_and_metadata(tmp_path: Path) -> None:
    output = tmp_path / "scores.parquet"
    results = [ok(f"{i}.jpg", score=float(np.float32(i / 7))) for i in range(ROW_GROUP + 1)]
    with open_sink(output, overwrite=False, metadata=METADATA) as sink:
        for result in results:
            sink.write(result)
    with parquet.ParquetFile(output) as file:
        assert file.schema_arrow.types == [pa.string(), pa.float32(), pa.string(), pa.string(), pa.int32(), pa.int32()]
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [ROW_GROUP, 1]
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"
        assert json.loads(file.schema_arrow.metadata[METADATA_KEY.encode()]) == METADATA
    assert read(output, "parquet") == expected(results, "parquet")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_full_disk_is_told_and_keeps_every_row_written_before(tmp_path: Path, kind: str) -> None:
    sink = open_sink(tmp_path / f"scores.{kind}", overwrite=False, metadata=METADATA)
    written: list[Result] = []

    def fill() -> None:
        with sink, largest_file(20_000):
            while True:
                result = ok(f"{len(written)}.jpg")
                sink.write(result)
                written.append(result)

    with pytest.raises(
        GliaError, match=rf"scores\.{kind}: cannot be written: File too large.*scores\.{kind}\.partial\."
    ):
        fill()
    partial = tmp_path / f"scores.{kind}.partial"
    assert sink.partial_path == partial
    assert names(tmp_path) == [partial.name]
    whole_lines = partial.read_bytes().rpartition(b"\n")[0]
    partial.write_bytes(whole_lines)
    assert len(written) > 100
    assert read(partial, kind)[: len(written)] == expected(written, kind)


@pytest.mark.parametrize(("rows", "size"), [(1, 500), (ROW_GROUP, 500), (3 * ROW_GROUP, 50_000)])
def test_a_full_disk_under_parquet_says_that_the_rest_cannot_be_read(tmp_path: Path, rows: int, size: int) -> None:
    def fill() -> None:
        with largest_file(size), open_sink(tmp_path / "scores.parquet", overwrite=False, metadata=METADATA) as sink:
            for i in range(rows):
                sink.write(ok(f"{i}.jpg"))

    with pytest.raises(GliaError, match=r"File too large.*a Parquet file cut short cannot be read") as caught:
        fill()
    assert caught.type is GliaError
    assert names(tmp_path) == ["scores.parquet.partial"]


@pytest.mark.parametrize("score", [0.1, 61.234567, 100.0, 0.0, -3.5, 1 / 3, 1e-9, 123456.79, 2.0**24, 3e20])
def test_scores_read_back_as_the_same_float32(tmp_path: Path, score: float) -> None:
    exact = np.float32(score)
    text = format_score(float(exact))
    digits = len(text.partition("e")[0].replace(".", "").lstrip("-0").rstrip("0")) or 1
    assert np.float32(text) == exact
    assert digits == 1 or np.float32(f"{exact:.{digits - 1}g}") != exact

    for kind in ("csv", "jsonl"):
        with open_sink(tmp_path / f"scores.{kind}", overwrite=False, metadata=METADATA) as sink:
            sink.write(ok("a.jpg", score=float(exact)))
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
