"""glia-rt data: what a dataset is and whether it is whole, and datasets made of photographs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import click

from glia_rt.cli.console import show_count, tell
from glia_rt.cli.options import needs, overwrite_option
from glia_rt.machine import cpu_count
from glia_rt.steps import step

#: `Check`, `Scores` and `Lost` of glia_train.datasets.check, which is imported only by what needs it.
Check: TypeAlias = Any
Scores: TypeAlias = Any
Lost: TypeAlias = Any

#: Exit status of a check that found pictures missing or unreadable.
SOME_BAD = 3
#: Missing or unreadable pictures that are listed; --json lists all.
MOST_LISTED = 20
#: Characters of the longest bar of a histogram.
BAR = 40

workers_option = click.option("--workers", type=click.IntRange(min=1), help="Threads; default: one per core.")


@click.group()
def data() -> None:
    """Datasets of labelled pictures: check one, or make one of photographs."""


@data.command()
@click.argument("dataset", metavar="NAME|LABELS", type=click.Path(readable=False))
@click.option("--root", type=click.Path(), metavar="DIR", help="The folder that a published dataset was unpacked to.")
@click.option(
    "--path-column",
    metavar="COLUMN",
    help="The column of the paths, or in Parquet of the pictures; default: path, or image.",
)
@click.option("--score-column", metavar="COLUMN", default="score", show_default=True, help="The column of the scores.")
@click.option("--group-column", metavar="COLUMN", help="A column of names that pictures share which are kept together.")
@workers_option
@click.option("--json", "as_json", is_flag=True, help="Print all there is, as JSON.")
def check(
    dataset: str,
    root: str | None,
    path_column: str | None,
    score_column: str,
    group_column: str | None,
    workers: int | None,
    as_json: bool,
) -> int:
    """Say what a dataset is, and decode every picture once: biq2021, kadid10k, or labels of your own.

    Labels of your own are a .csv, a .parquet, or a folder of .parquet files. If pictures are missing or cannot be
    read, they are listed, and the exit status is 3.
    """
    import json

    with needs("train"):
        from glia_train.datasets.check import check_dataset
        from glia_train.datasets.csv import Columns
        from glia_train.datasets.table import read_dataset

        with step("read the labels"):
            table = read_dataset(dataset, root, Columns(path_column, score_column, group_column))
    with step("read the pictures"), show_count("reading", len(table.pictures)) as done:
        found = check_dataset(table, workers or cpu_count(), done)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
    else:
        for line in _lines(found):
            tell(line)
    return 0 if found.is_whole else SOME_BAD


@data.command()
@click.argument("photos", type=click.Path(readable=False))
@click.option("--out", required=True, type=click.Path(), metavar="DIR", help="The folder of the new dataset.")
@click.option("--metric", type=click.Choice(["ssim"]),
              help="Label the pictures by this full-reference metric; default: no labels.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=3407, show_default=True,
              help="Fixes noise, positions and directions, whatever the number of threads.")  # fmt: skip
@click.option("--max-side", type=click.IntRange(min=32), metavar="PIXELS",
              help="Reduce photographs with a longer side, as KADID-10k's to 512; default: leave them.")  # fmt: skip
@workers_option
@overwrite_option
def distort(
    photos: str,
    out: str,
    metric: str | None,
    seed: int,
    max_side: int | None,
    workers: int | None,
    overwrite: bool,
) -> None:
    """Distort photographs in KADID-10k's 25 ways at five levels, into a dataset in its layout.

    Every photograph becomes 126 PNG files, listed in DIR/pictures.csv. With --metric there is also DIR/dmos.csv, and
    the dataset is read as kadid10k. DIR appears when it is whole.
    """
    import shlex

    with needs("train"):
        from glia_train import synthetic
    threads = workers or cpu_count()
    synthetic.require_output(photos, out, overwrite=overwrite)
    found = synthetic.find_photographs(photos)
    with step("read the photographs"), show_count("reading", len(found)) as done:
        synthetic.require_photographs(found, max_side=max_side, workers=threads, done=done)
    total = len(found) * synthetic.PER_PHOTOGRAPH
    with step("distort the photographs"), show_count("distorting", total) as done:
        synthetic.distort_photographs(
            found, out, seed=seed, metric=metric, max_side=max_side, workers=threads, done=done
        )
    tell(f"wrote {total} pictures of {len(found)} photographs to {out}; next:")
    if metric:
        tell(f"  {shlex.join(['glia-rt', 'data', 'check', 'kadid10k', '--root', out])}")
    else:
        listed = os.fspath(Path(out) / synthetic.PICTURES)
        tell(f"  {shlex.join(['glia-rt', 'score', 'model.glia', '--list', listed, '-o', 'scores.csv'])}")


def _lines(found: Check) -> Iterator[str]:
    """Yield a check as lines for people."""
    yield f"dataset     {found.dataset}"
    yield f"pictures    {found.pictures}"
    if found.references:
        yield f"references  {found.references}"
    if found.groups:
        yield f"groups      {found.groups}, with {found.grouped} pictures that belong together"
    if found.parts:
        parts = ", ".join(f"{name} {scores.pictures}" for name, scores in found.parts.items())
        yield f"split       {parts}"
        if found.leaking:
            yield f"leaking     {found.leaking} test pictures have a near-duplicate in another part"
    scale = "" if found.score_range is None else f", on a scale of {found.score_range[0]:g} to {found.score_range[1]:g}"
    yield f"scores      {found.scores.least:g} to {found.scores.greatest:g}, mean {found.scores.mean:.3f}{scale}"
    if found.scores.least == found.scores.greatest:
        yield "            every score is the same: there is nothing to learn from"
    yield from _sizes(found)
    yield ""
    yield from _histogram(found)
    for title, table in (("part", found.parts), ("subset", found.subsets), ("distortion", found.distortions)):
        yield from _table(title, table)
    yield from _lost("missing", found.missing)
    yield from _lost("unreadable", found.unreadable)


def _sizes(found: Check) -> Iterator[str]:
    sizes = found.sizes
    if sizes is None:
        yield "sizes       no picture could be read"
    elif sizes.distinct == 1:
        yield f"sizes       {_by(sizes.least)}, all"
    else:
        yield (
            f"sizes       {_by(sizes.least)} to {_by(sizes.greatest)}, median {_by(sizes.median)}, "
            f"{sizes.distinct} different ones"
        )


def _by(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def _histogram(found: Check) -> Iterator[str]:
    edges, counts = found.histogram.edges, found.histogram.counts
    texts = [f"{low:.4g} to {high:.4g}" for low, high in itertools.pairwise(edges)]
    wide, most = max(map(len, ["score", *texts])), max(counts)
    yield f"{'score':<{wide}}  {'pictures':>8}"
    for text, count in zip(texts, counts, strict=True):
        bar = "#" * (max(1, round(BAR * count / most)) if count else 0)
        yield f"{text:<{wide}}  {count:>8}  {bar}".rstrip()


def _table(title: str, rows: Mapping[str, Scores]) -> Iterator[str]:
    if not rows:
        return
    wide = max(map(len, [title, *rows]))
    yield ""
    yield f"{title:<{wide}}  {'pictures':>8}  {'least':>8}  {'mean':>8}  {'greatest':>8}"
    for name, scores in rows.items():
        figures = "  ".join(f"{figure:>8.4g}" for figure in (scores.least, scores.mean, scores.greatest))
        yield f"{name:<{wide}}  {scores.pictures:>8}  {figures}"


def _lost(title: str, pictures: Sequence[Lost]) -> Iterator[str]:
    if not pictures:
        return
    yield ""
    yield f"{title}: {len(pictures)}"
    for lost in pictures[:MOST_LISTED]:
        yield f"  {lost.reason}"
    if len(pictures) > MOST_LISTED:
        yield f"  and {len(pictures) - MOST_LISTED} more; --json lists all"
