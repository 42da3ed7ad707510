"""Scoring on a Ray cluster: Ray Data reads and writes, and its actors score.

    import ray
    from glia_rt.runs.ray_data import score_dataset

    pictures = ray.data.read_binary_files("s3://bucket/photos", include_paths=True)
    scores = score_dataset(pictures, "/shared/model.glia", actors=(1, 8), num_gpus=1)
    scores.write_parquet("s3://bucket/scores")

Any reader works that gives encoded pictures, or their paths, in a column:

- `read_parquet`, also for what Hugging Face writes;
- `read_webdataset(..., decoder=None)`, with column="jpg";
- `with_column("bytes", download("url"))`, for a column of URLs.

An actor that dies is started again, and what it was scoring is scored again. No row is lost, and none comes twice. A
job that is to survive its own end needs a checkpoint of Ray Data, in a folder that all nodes share or in an object
store. Configure it before the dataset is made:

    from ray.data.checkpoint import CheckpointConfig

    ray.data.DataContext.get_current().checkpoint_config = CheckpointConfig(
        "path", "/shared/checkpoint", delete_checkpoint_on_success=False
    )

Here "path" is a column of the dataset whose values are unique. The same script, started again, then goes on. It reads
what is already written, but does not score it. It removes files that were half written. Over all runs, each row is
written once. This holds for files; other sinks may get rows twice. A checkpoint takes one more CPU and 1 GiB of memory.

Remove the folder yourself once all is done. By default Ray removes it at the end of the job, and the script, started
once more, would write every row again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from glia_rt.backends.choose import AUTO
from glia_rt.errors import MissingPackageError, UsageError
from glia_rt.listing.parquet import holds_bytes, read_cell
from glia_rt.listing.pieces import Picture
from glia_rt.machine import memory_size
from glia_rt.pixels.decode import DEFAULT_MAX_PIXELS, configure_pillow
from glia_rt.results import COLUMNS
from glia_rt.runs.outputs import METADATA_KEY, arrow_schema
from glia_rt.scorer import Scorer

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

#: Calls that an actor works on at once.
_BLOCKS: Final = 2
_ADDED: Final = COLUMNS[1:]  # all but the name: the dataset has columns of its own for it


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
    """Score the pictures of a dataset lazily, in a pool of actors. Each actor opens the bundle once.

    An actor with a GPU sees no other GPU, and never takes the CPU instead. An actor without a GPU sees none, and
    computes on all cores of its node, whatever it reserves. Have one such actor a node: give a `num_cpus` of more than
    half of the node's CPUs.

    Decoding may take half of a node's memory. An actor has the share of this that it reserves of the node's CPUs or
    GPUs.

    All actors together must leave Ray CPUs to read and write with, one for each task. If none are left, nothing moves.

    Args:
        ds: The dataset of pictures.
        bundle: The path at which every node finds the bundle.
        actors: The number of actors; or the fewest and the most, of which Ray starts as many as there is room for.
        column: A column of encoded pictures as bytes, of paths as strings, or of structs with a field `bytes`, or else
            `path`. Every node must be able to open the paths.
        backend: As in `Scorer.open`; so are `precision`, `batch_size` and `max_pixels`. On nodes of several kinds
            "auto" may choose different backends. Scores then differ as far as the parity of the backends allows.
        precision: See `backend`.
        batch_size: See `backend`.
        max_pixels: See `backend`.
        workers: Decoding threads for each of the two blocks that an actor works on; None for one a core of its node.
        rows: Pictures in a block, which an actor gets at once. An actor works on two blocks at a time. Give fewer for
            very large files, and more for engines on very many cores. A checkpoint advances by a block.
        num_cpus: CPUs that an actor reserves; None for 1.
        num_gpus: GPUs that an actor reserves; None for 0.
        options: Other options of `Dataset.map_batches`, such as accelerator_type, label_selector, memory, runtime_env.

    Returns:
        The dataset, in no fixed order, with the columns score (float32, null for a bad image), status, error, width and
        height (int32), as in `Result`. `column` is left out if its type is for the pictures themselves. The metadata of
        the schema, and so of Parquet files, say how the scores were made: `Scorer.resolved`, as JSON under the key
        `glia-rt`.

    Raises:
        MissingPackageError: Ray Data is not installed.
        UsageError: The dataset has no such column, or already has columns of the result's names.
        RayError: Raised when the dataset is read. An actor could not open the bundle, or its engine failed; Ray's
            message then holds the `GliaError`. Or one of the errors above occurred in a dataset whose columns Ray knows
            only then.
    """
    try:
        from ray.data import ActorPoolStrategy
    except ModuleNotFoundError as error:
        raise MissingPackageError(error.name or "ray", "ray") from error
    known = ds.columns(fetch_if_missing=False)
    if known is not None:
        _check_columns(known, column)
    size = {"size": actors} if isinstance(actors, int) else {"min_size": actors[0], "max_size": actors[1]}
    # Ray's own blocks have up to 128 MiB. Those hold so many small pictures that a pool would wait for one actor.
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
        # Two calls run at once, so that the engine works on one while the other begins and ends.
        compute=ActorPoolStrategy(**size, max_concurrent_calls_per_actor=_BLOCKS, enable_true_multi_threading=True),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        **options,
    )


def _share_of_node() -> float:
    """Return the share of its node that this actor reserves: of the CPUs or of the GPUs, whichever is more.

    An actor that reserves neither is taken to be alone.
    """
    import ray

    context: Any = ray.get_runtime_context()
    nodes: Any = ray.nodes()  # type: ignore[no-untyped-call]
    [node] = [node for node in nodes if node["NodeID"] == context.get_node_id()]
    reserved = context.get_assigned_resources()
    shares = [reserved.get(kind, 0) / node["Resources"].get(kind, math.inf) for kind in ("CPU", "GPU")]
    return float(min(1.0, max(shares) or 1.0))


class _ScorePictures:
    """An actor: a scorer that is kept open. A call scores one block of rows."""

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
        memory = int(_share_of_node() * memory_size() / 2 / _BLOCKS)
        self._scorer = Scorer.open(bundle, device=device, max_pixels=max_pixels, memory=memory, **options)
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
            "paths (give read_webdataset decoder=None)"
        )
    return Picture("", source, refused)


def _check_columns(names: Iterable[str], column: str) -> None:
    names = list(names)
    if column not in names:
        raise UsageError(f"the dataset has no column {column!r}; it has {', '.join(names)}: name one with column=")
    if taken := [name for name in names if name in _ADDED]:
        raise UsageError(f"the dataset already has columns {', '.join(taken)}, which scoring adds: rename or drop them")
