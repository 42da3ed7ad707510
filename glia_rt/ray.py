"""Scoring on a Ray cluster: Ray Data reads, spreads the work and writes; each of its actors opens the bundle once."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from glia_rt.backends import AUTO
from glia_rt.errors import GliaError, MissingPackageError, UsageError
from glia_rt.images import DEFAULT_MAX_PIXELS, configure_pillow
from glia_rt.pieces import Picture
from glia_rt.scorer import Scorer
from glia_rt.sinks import METADATA_KEY

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset


def score_dataset(
    ds: Dataset,
    bundle: str | os.PathLike[str],
    *,
    actors: int | tuple[int, int],
    column: str = "bytes",
    backend: str = AUTO,
    precision: str | None = None,
    batch_size: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    rows: int = 256,
    num_cpus: float = 1,
    num_gpus: float = 0,
    **options: Any,
) -> Dataset:
    """Score."""
    try:
        from ray.data import ActorPoolStrategy
    except ModuleNotFoundError as error:
        raise MissingPackageError(error.name or "ray", "ray") from error
    if (names := ds.columns(fetch_if_missing=False)) is not None:
        _check_columns(names, column)
    sizes = {"size": actors} if isinstance(actors, int) else {"min_size": actors[0], "max_size": actors[1]}
    return ds.repartition(target_num_rows_per_block=rows).map_batches(
        _ScorePictures,
        fn_constructor_kwargs={
            "bundle": os.fspath(bundle),
            "column": column,
            "max_pixels": max_pixels,
            "workers": max(1, int(num_cpus)),
            "on_gpu": num_gpus > 0,
            "backend": backend,
            "precision": precision,
            "batch_size": batch_size,
        },
        batch_size=rows,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(**sizes, max_concurrent_calls_per_actor=2, enable_true_multi_threading=True),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        **options,
    )


class _ScorePictures:
    def __init__(
        self, bundle: str, *, column: str, max_pixels: int, workers: int, on_gpu: bool, **options: Any
    ) -> None:
        self._column = column
        self._workers = workers
        if not on_gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        configure_pillow(max_pixels)
        self._scorer: Scorer | GliaError
        try:
            self._scorer = Scorer.open(bundle, max_pixels=max_pixels, device=0 if on_gpu else None, **options)
        except GliaError as error:
            self._scorer = error

    def __call__(self, table: pa.Table) -> pa.Table:
        import pyarrow as pa

        if isinstance(self._scorer, GliaError):
            raise self._scorer
        _check_columns(table.column_names, self._column)
        pictures = (self._picture(value.as_py()) for value in table[self._column])
        results = [dataclasses.asdict(r) for r in self._scorer.score_pictures(pictures, workers=self._workers)]
        schema = pa.schema(
            [
                ("score", pa.float32()),
                ("status", pa.string()),
                ("error", pa.string()),
                ("width", pa.int32()),
                ("height", pa.int32()),
            ]
        )
        kind = table.schema.field(self._column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            table = table.drop_columns([self._column])
        for field, values in zip(schema, pa.RecordBatch.from_pylist(results, schema).columns, strict=True):
            table = table.append_column(field, values)
        metadata = {METADATA_KEY: json.dumps(self._scorer.resolved)}
        return table.replace_schema_metadata((table.schema.metadata or {}) | metadata)

    def _picture(self, value: Any) -> Picture:
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if not value:
            return Picture("", None, "the row has no picture")
        if not isinstance(value, (bytes, str)):
            raise UsageError("column")
        return Picture("", value)


def _check_columns(names: Sequence[str], column: str) -> None:
    if column not in names:
        raise UsageError(f"no column {column!r}; the dataset has {', '.join(names)}")
