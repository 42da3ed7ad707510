"""What a bundle says of the demo's pictures. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glia_export.demo.data import Copy
from glia_rt.errors import GliaError
from glia_rt.listing.sources import Sources
from glia_rt.results import Result
from glia_rt.runs.run import score_to_file
from glia_rt.scorer import Scorer


@dataclass(frozen=True)
class Scored:
    """A picture of the demo and its score."""

    copy: Copy
    score: float


def score_copies(scorer: Scorer, copies: Sequence[Copy], output: Path) -> list[Scored]:
    """Score pictures into a file, and return the scores in the order of the pictures.

    Raises:
        GliaError: A picture has gone since it was written.
    """
    results: list[Result] = []
    sources = Sources([copy.path for copy in copies])
    score_to_file(scorer, sources, output, overwrite=True, on_row=lambda _, result: results.append(result))
    return [_scored(copy, result) for copy, result in zip(copies, results, strict=True)]


def _scored(copy: Copy, result: Result) -> Scored:
    if result.score is None:
        raise GliaError(f"{result.path}: {result.error}; the demo wrote this file itself: is the disk full?")
    return Scored(copy, result.score)
