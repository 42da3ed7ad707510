"""Options that several commands share, each group one frozen dataclass and one decorator.

A decorator adds its options to a command, and hands them over as one argument, named like the group.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from glia_rt.backends.choose import AUTO, BACKENDS
from glia_rt.cli.console import State
from glia_rt.contract import GraphKind
from glia_rt.errors import MissingPackageError, UsageError
from glia_rt.listing.sources import DEFAULT_COLUMN, Sources
from glia_rt.pixels.decode import DEFAULT_MAX_PIXELS

if TYPE_CHECKING:
    from glia_rt.scorer import Scorer

Function: TypeAlias = Callable[..., Any]
Decorator: TypeAlias = Callable[[Function], Function]

overwrite_option = click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")


@dataclass(frozen=True)
class EngineOptions:
    """Which engine computes the scores, and how; `Scorer.open` says more."""

    backend: str
    precision: str | None
    input: GraphKind
    device: list[int] | None
    batch_size: int | None

    def open(self, bundle: str, max_pixels: int = DEFAULT_MAX_PIXELS, memory: int | None = None) -> Scorer:
        """Open a bundle; raises as `Scorer.open` does."""
        from glia_rt.scorer import Scorer

        return Scorer.open(
            bundle,
            self.backend,
            self.input,
            precision=self.precision,
            batch_size=self.batch_size,
            device=self.device,
            max_pixels=max_pixels,
            memory=memory,
        )


@dataclass(frozen=True)
class ListingOptions:
    """What to list."""

    paths: tuple[str, ...]
    list_file: str | None
    column: str
    null: bool

    def sources(self, shard: tuple[int, int] = (1, 1)) -> Sources:
        """Return the listing.

        Raises:
            UsageError: Nothing was named, or it is no listing.
        """
        if not self.paths and self.list_file is None:
            raise UsageError("nothing is named: give PATHs, or --list")
        return Sources(self.paths, self.list_file, self.column, shard, self.null)


@dataclass(frozen=True)
class DecodingOptions:
    """Which share of a listing to score, and how it is decoded."""

    shard: tuple[int, int]
    workers: int | None
    max_pixels: int
    memory: int | None


@dataclass(frozen=True)
class OutputOptions:
    """Where rows go."""

    output: str | None
    resume: bool
    overwrite: bool
    retry_errors: bool
    report: str | None
    as_json: bool

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if self.output and self.as_json:
            raise UsageError("--json is for the terminal; for a file name it .jsonl")
        if not self.output and (self.resume or self.overwrite or self.retry_errors or self.report):
            raise UsageError("--resume, --overwrite, --retry-errors and --report are for a file: give -o too")


@dataclass(frozen=True)
class DatasetOptions:
    """Which labelled pictures to use: a published dataset on disk, or labels of the user's own."""

    dataset: str | None
    root: str | None
    data: str | None
    path_column: str | None
    score_column: str | None
    group_column: str | None

    def __post_init__(self) -> None:
        """Refuse what does not go together."""
        if self.dataset is None and self.data is None:
            raise UsageError("no labelled pictures: give --dataset NAME and --root DIR, or --data LABELS")
        if self.dataset is not None and self.data is not None:
            raise UsageError("--dataset and --data are two sources of labels: give one of them")
        if self.data is not None and self.root is not None:
            raise UsageError(
                "--root is the folder of a published dataset: drop it, or give --dataset instead of --data"
            )
        if self.dataset is not None and (self.path_column or self.score_column or self.group_column):
            raise UsageError("--path-column, --score-column and --group-column are for --data: drop them")

    def read(self, *, require: bool = True) -> Any:
        """Return the dataset, a `glia_train.datasets.base.Dataset`.

        Args:
            require: Refuse a dataset of which pictures are missing, or from which nothing can be learnt.

        Raises:
            MissingPackageError: The extra `train` is not installed.
            UsageError: There is no such dataset, its labels cannot be used, or pictures are missing.
        """
        with needs("train"):
            from glia_train.datasets.base import require_pictures
            from glia_train.datasets.csv import Columns
            from glia_train.datasets.table import DATASETS, read_dataset
        if self.dataset is not None and self.dataset not in DATASETS:
            known = ", ".join(DATASETS)
            raise UsageError(
                f"there is no dataset {self.dataset!r}: give one of {known}, or labels of your own by --data"
            )
        if self.dataset is not None:
            dataset = read_dataset(self.dataset, self.root)
        else:
            columns = Columns(self.path_column, self.score_column or Columns.score, self.group_column)
            dataset = read_dataset(self.data or "", columns=columns)
        if require:
            require_pictures(dataset)
        return dataset


def grouped(name: str, kind: type[Any], *options: Decorator) -> Decorator:
    """Return a decorator that adds options to a command, which gets them as one argument `name`, a `kind`."""

    def decorate(function: Function) -> Function:
        def call(*args: Any, **values: Any) -> Any:
            group = kind(**{field.name: values.pop(field.name) for field in dataclasses.fields(kind)})
            return function(*args, **{name: group}, **values)

        command: Function = functools.wraps(function)(call)
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def add_global_options(command: click.Command) -> click.Command:
    """Add --debug and -v, which may stand before the name of a command or after it."""

    def debug(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value:
            context.ensure_object(State).debug = True

    def verbose(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value:
            context.ensure_object(State).log()

    # Eager, so that they hold for the errors of other options too.
    shared: dict[str, Any] = {"is_flag": True, "expose_value": False, "is_eager": True}
    command.params += [
        click.Option(["-v", "--verbose"], callback=verbose, help="Say each step, and how long it took.", **shared),
        click.Option(
            ["--debug"], callback=debug, help="Show the traceback behind an error; GLIA_DEBUG=1 does too.", **shared
        ),
    ]
    return command


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn a failed import of another package into the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingPackageError(error.name or "a package", extra) from error


def parse_batch(text: str) -> tuple[int, int, int]:
    """MIN:OPT:MAX -> three numbers."""
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise UsageError(f"--batch {text} is not MIN:OPT:MAX, as 1:32:64")
    least, usual, greatest = map(int, parts)
    return least, usual, greatest


def parse_sizes(text: str) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """MINHxMINW:OPTHxOPTW:MAXHxMAXW -> three pairs of height and width."""
    sides = [part.split("x") for part in text.split(":")]
    if len(sides) != 3 or not all(len(pair) == 2 and all(side.isdecimal() for side in pair) for pair in sides):
        raise UsageError(f"--size {text} is not MINHxMINW:OPTHxOPTW:MAXHxMAXW, as 224x224:768x1024:3000x4000")
    least, usual, greatest = ((int(height), int(width)) for height, width in sides)
    return least, usual, greatest


def parse_shard(text: str) -> tuple[int, int]:
    """I/N -> two numbers."""
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal()):
        raise UsageError(f"--shard {text} is not I/N, as 1/4")
    return int(i), int(n)


def parse_devices(text: str | None) -> list[int] | None:
    """0,1 -> numbers of GPUs; None for none named."""
    if text is None:
        return None
    if not all(part.isdecimal() and len(part) < 4 for part in text.split(",")):
        raise UsageError(f"--device {text} is not a list of numbers, as 0 or 0,1")
    return [int(part) for part in text.split(",")]


def _parsed(parse: Callable[[Any], Any]) -> Any:
    """Return a callback that parses an option's text."""
    return lambda _context, _parameter, text: parse(text)


engine_options = grouped(
    "engine",
    EngineOptions,
    click.option("--backend", type=click.Choice([AUTO, *BACKENDS]), default=AUTO, show_default=True,
                 help="The engine that computes the scores."),
    click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]),
                 help="The precision to compute in; default: the fastest."),
    click.option("--input", type=click.Choice(["views", "image"]), default="views", show_default=True,
                 help="What the graph takes: the model's inputs, or pictures, one size a batch."),
    click.option("--device", metavar="LIST", callback=_parsed(parse_devices),
                 help="The GPUs to run on, for example 0 or 0,1; default: the first."),
    click.option("--batch-size", type=click.IntRange(min=1),
                 help="Pictures in a run of the engine; default: 4 on a CPU, 32 on a GPU."),
)  # fmt: skip

listing_options = grouped(
    "listing",
    ListingOptions,
    click.argument("paths", nargs=-1, type=click.Path(readable=False), metavar="[PATH]..."),
    click.option("--list", "list_file", type=click.Path(),
                 help="A file that names the pictures: a path a line, a .csv, or what `glia-rt list` writes."),
    click.option("--column", default=DEFAULT_COLUMN, show_default=True,
                 help="The column with the pictures or paths (Parquet), or the paths (.csv)."),
    click.option("-0", "--null", is_flag=True, help="Names on standard input and in the list end in NUL."),
)  # fmt: skip

decoding_options = grouped(
    "decoding",
    DecodingOptions,
    click.option("--shard", metavar="I/N", default="1/1", callback=_parsed(parse_shard),
                 help="Score every N-th piece only, from the I-th, of what `glia-rt list` wrote."),
    click.option("--workers", type=click.IntRange(min=1), help="Decoding threads; default: one per core."),
    click.option("--max-pixels", type=click.IntRange(min=1), default=DEFAULT_MAX_PIXELS, show_default=True,
                 help="The largest picture that is decoded, width times height."),
    click.option("--memory", metavar="MB", type=click.IntRange(min=1),
                 callback=_parsed(lambda size: None if size is None else size * 1_000_000),
                 help="Megabytes that pictures may take while they are decoded; default: half of what there is."),
)  # fmt: skip

output_options = grouped(
    "to",
    OutputOptions,
    click.option("-o", "--output", type=click.Path(), help="A .csv, .jsonl or .parquet file; default: the terminal."),
    click.option("--resume", is_flag=True, help="Go on with a run that broke off; start one if there is none."),
    overwrite_option,
    click.option("--retry-errors", is_flag=True, help="Score the rows of a whole output again that are errors."),
    click.option("--report", type=click.Path(), help="Also write an HTML page about the scores."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON lines instead of a table; without -o only."),
)

dataset_options = grouped(
    "labelled",
    DatasetOptions,
    click.option("--dataset", metavar="NAME", help="A published dataset: biq2021 or kadid10k. It needs --root."),
    click.option("--root", type=click.Path(), metavar="DIR", help="The folder that the dataset was unpacked to."),
    click.option("--data", type=click.Path(), metavar="LABELS",
                 help="Labels of your own: a .csv of path,score, a .parquet, or a folder of .parquet files."),
    click.option("--path-column", metavar="COLUMN",
                 help="The column of the paths, or in Parquet of the pictures; default: path, or image."),
    click.option("--score-column", metavar="COLUMN", help="The column of the scores; default: score."),
    click.option("--group-column", metavar="COLUMN",
                 help="A column of names that pictures share which are kept together; default: reference, if there."),
)  # fmt: skip
