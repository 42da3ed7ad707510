"""Scoring on a Ray cluster: Ray Data reads and writes, its actors score.

    import ray
    from glia_rt.runs.ray_data import score_dataset

    pictures = ray.data.read_binary_files("s3://bucket/photos", include_paths=True)
    scores = score_dataset(pictures, "/shared/model.glia", actors=(1, 8), num_gpus=1)
    scores.write_parquet("s3://bucket/scores")

Any reader will do that gives encoded pictures, or their paths, in a column: `read_parquet`, also of what Hugging Face
writes; `read_webdataset(..., decoder=None)`, with column="jpg"; `with_column("bytes", download("url"))` for a column of
URLs.

An actor that dies is started again and what it had in hand is scored again: no row is lost, none comes twice. For a job
that is to survive its own end, have Ray Data keep a checkpoint, in a folder that all nodes share or an object store:

    from ray.data.checkpoint import CheckpointConfig

    ray.data.DataContext.get_current().checkpoint_config = CheckpointConfig(
        "path", "/shared/checkpoint", delete_checkpoint_on_success=False
    )

before the dataset is made, "path" being a column of the dataset whose values are unique. The same script, started
again, then goes on: what is already written it reads but does not score, and files that were half written it removes,
so that over all runs each row is written once. That holds for files; other sinks may get rows twice. It takes one more
CPU and 1 GiB of memory. Remove the folder once all is done: left to itself Ray does so at the end of the job, and the
script, started once more, would write every row again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from glia_rt.backends.choose import AUTO
from glia_rt.errors import MissingPackageError, UsageError
from glia_rt.pixels.decode import DEFAULT_MAX_PIXELS, configure_pillow
from glia_rt.listing.parquet import holds_bytes, read_cell
from glia_rt.listing.pieces import Picture
from glia_rt.results import COLUMNS
from glia_rt.scorer import Scorer
from glia_rt.runs.outputs import METADATA_KEY, arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

_ADDED: Final = COLUMNS[1:]  # all but the name, for which the dataset has columns of its own


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
    workers: int | None = None,
    rows: int = 128,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    **options: Any,
) -> Dataset:
    """Score the pictures of a dataset, lazily, in a pool of actors that open the bundle once each.

    An actor with a GPU sees no other, and never takes the CPU instead. One without sees no GPU, and computes on all
    cores of its node whatever it reserves: have one a node, by a `num_cpus` of more than half of the node's.

    All actors together must leave Ray CPUs to read and to write with, one a task: with none left, nothing moves.

    Args:
        ds: The pictures.
        bundle: Where every node finds the bundle.
        actors: How many; or the fewest and the most, for as many as there is room for.
        column: Of encoded pictures as bytes, or of paths that every node can open as strings; or of structs with a
            field `bytes`, or else `path`.
        backend: As `Scorer.open` has it; so are `precision`, `batch_size` and `max_pixels`. On nodes of several kinds
            "auto" may choose differently, and scores then differ as the parity of the backends allows.
        precision: See `backend`.
        batch_size: See `backend`.
        max_pixels: See `backend`.
        workers: Decoding threads of each of the two lots that an actor has in work; None for one a core of its node.
        rows: Pictures that an actor gets at once, two such lots being in work: fewer for very large files, more for
            engines on very many cores. Also what a checkpoint advances by.
        num_cpus: CPUs that an actor reserves; None for 1.
        num_gpus: GPUs that an actor reserves; None for 0.
        options: Others of `Dataset.map_batches`, such as accelerator_type, label_selector, memory, runtime_env.

    Returns:
        The dataset, in no fixed order, without `column` if its type is for the pictures themselves, and with score
        (float32, null for a bad image), status, error, width and height (int32) as `Result` has them. How the scores
        were made is in its schema's metadata, and so in Parquet files, as `Scorer.resolved` in JSON under the key
        `glia-rt`.

    Raises:
        MissingPackageError: Ray Data is not installed.
        UsageError: There is no such column, or columns of the result's names are there already.
        RayError: When the dataset is read: an actor could not open the bundle, or its engine failed, and Ray says so
            with the `GliaError` in its message; or an error as above, in a dataset whose columns Ray knows only then.
    """
    try:
        from ray.data import ActorPoolStrategy
    except ModuleNotFoundError as error:
        raise MissingPackageError(error.name or "ray", "ray") from error
    known = ds.columns(fetch_if_missing=False)
    if known is not None:
        _check_columns(known, column)
    size = {"size": actors} if isinstance(actors, int) else {"min_size": actors[0], "max_size": actors[1]}
    # Ray's own blocks have up to 128 MiB: of small pictures so many that a pool would wait for one actor.
    return ds.repartition(target_num_rows_per_block=rows).map_batches(
        _ScorePictures,
        fn_constructor_kwargs={
            "bundle": os.fspath(bundle),
            "column": column,
            "workers": workers,
            "device": 0 if num_gpus else None,  # the first of those that Ray lets the actor see
            "backend": backend,
            "precision": precision,
            "batch_size": batch_size,
            "max_pixels": max_pixels,
        },
        batch_size=rows,
        batch_format="pyarrow",
        # Two calls at once, so that the engine works on the one while the other begins and ends.
        compute=ActorPoolStrategy(**size, max_concurrent_calls_per_actor=2, enable_true_multi_threading=True),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        **options,
    )


class _ScorePictures:
    """What an actor is made of: a scorer, kept open, and how a block of rows goes through it."""

    def __init__(
        self,
        bundle: str,
        *,
        column: str,
        workers: int | None,
        device: int | None,
        max_pixels: int,
        **options: Any,
    ) -> None:
        if device is None:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray hides no GPU from an actor that reserved none
        configure_pillow(max_pixels)
        self._scorer = Scorer.open(bundle, device=device, max_pixels=max_pixels, **options)
        self._metadata = {METADATA_KEY: json.dumps(self._scorer.resolved)}
        self._column = column
        self._workers = workers

    def __call__(self, table: pa.Table) -> pa.Table:
        import pyarrow as pa

        _check_columns(table.column_names, self._column)
        pictures = (_picture(cell, self._column) for cell in table[self._column])
        results = self._scorer.score_pictures(pictures, workers=self._workers)
        schema = pa.schema([field for field in arrow_schema() if field.name in _ADDED])
        scored = pa.RecordBatch.from_pylist([result.to_row() for result in results], schema)
        if holds_bytes(table.schema.field(self._column).type):
            table = table.drop_columns([self._column])
        for field, values in zip(schema, scored.columns, strict=True):
            table = table.append_column(field, values)
        return table.replace_schema_metadata((table.schema.metadata or {}) | self._metadata)


def _picture(cell: Any, column: str) -> Picture:
    source, refused = read_cell(cell)
    if source is not None and not isinstance(source, (bytes, str)):
        raise UsageError(
            f"column {column!r} holds {type(source).__name__}; pictures are encoded bytes, or strings that are their "
            "paths (of read_webdataset, with decoder=None)"
        )
    return Picture("", source, refused)


def _check_columns(names: Iterable[str], column: str) -> None:
    names = list(names)
    if column not in names:
        raise UsageError(f"the dataset has no column {column!r}; it has {', '.join(names)}: name one with column=")
    if taken := [name for name in names if name in _ADDED]:
        raise UsageError(f"the dataset has columns that the scores come with, {', '.join(taken)}: rename or drop them")
