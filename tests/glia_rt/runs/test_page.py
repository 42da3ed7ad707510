from __future__ import annotations

import dataclasses
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from glia_rt import Result, Scorer
from glia_rt.errors import GliaError
from glia_rt.listing.frozen import FrozenListing, Summary, freeze
from glia_rt.listing.pieces import Position
from glia_rt.listing.sources import Sources
from glia_rt.runs.page import SHOWN, write_report
from glia_rt.runs.run import describe, described


@pytest.fixture(scope="module")
def rows(pictures: Path) -> list[tuple[Position, Result]]:
    """All 32 pictures with scores of the test's own, and two bad ones."""
    rows = [
        (Position(i, 0), Result(str(path), 1 + i / 10, "ok", None, 400 - 7 * i, 60 + 11 * i))
        for i, path in enumerate(sorted(pictures.iterdir()))
    ]
    for i, missing in enumerate((17, 4711), 32):
        error = f"image file is truncated ({missing} bytes not processed)"
        rows.append((Position(i, 0), Result(f"<b>{i}</b>.jpg", None, "bad_image", error, None, None)))
    return rows


class Page(HTMLParser):
    """What a page shows: text, images, and whatever would be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.images: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")

    def handle_data(self, data: str) -> None:
        self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


def write_rows(tmp_path: Path, rows: Iterator[tuple[Position, Result]], sources: Sources, scorer: Scorer) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        listing = FrozenListing(Path(scratch) / "l.jsonl.zst")
        run = described(describe(scorer, sources), freeze(listing.path, sources.pieces(), str(sources)))
        write_report(tmp_path / "r.html", rows, listing, scorer, run)


def write(tmp_path: Path, rows: list[tuple[Position, Result]], sources: Sources, scorer: Scorer) -> Page:
    write_rows(tmp_path, iter(rows), sources, scorer)
    return Page((tmp_path / "r.html").read_text("utf-8"))


def test_best_and_worst_in_order_with_their_pictures(
    tmp_path: Path, rows: list[tuple[Position, Result]], pictures: Path, scorer: Scorer
) -> None:
    page = write(tmp_path, rows, Sources([pictures]), scorer)
    best, worst = page.text.split(" Best ")[1].split(" Worst ")
    assert re.findall(r"/(\d\d)\.jpg", best) == [f"{i:02}" for i in range(31, 31 - SHOWN, -1)]
    assert re.findall(r"/(\d\d)\.jpg", worst.split("What could")[0]) == [f"{i:02}" for i in range(SHOWN)]
    assert len(page.images) == 2 * SHOWN
    assert len(set(page.images)) == 2 * SHOWN
    assert all(image.startswith("data:image/webp;base64,") for image in page.images)


def test_figures_and_errors_by_kind(
    tmp_path: Path, rows: list[tuple[Position, Result]], pictures: Path, scorer: Scorer
) -> None:
    page = write(tmp_path, rows, Sources([pictures]), scorer)
    assert "32 pictures scored by plain.glia; 2 could not be read. The higher, the better" in page.text
    assert "least 1 5 % are below 1.155 median 2.55 5 % are above 3.945 greatest 4.1" in page.text
    assert "2 image file is truncated (N bytes not processed) <b>32</b>.jpg" in page.text
    assert scorer.bundle.identity in page.text


def test_errors_that_quote_the_damage_do_not_make_a_long_page(tmp_path: Path, scorer: Scorer) -> None:
    errors = [f"broken chunk {chr(ord('a') + i % 26) * (i // 26 + 1)}" for i in range(500)]
    rows = [
        (Position(i, 0), Result(f"{i}.jpg", None, "bad_image", error, None, None)) for i, error in enumerate(errors)
    ]
    page = write(tmp_path, rows, Sources([f"{i}.jpg" for i in range(500)]), scorer)
    assert "400 other reasons 100.jpg" in page.text
    assert page.text.count("broken chunk") == 100


def test_it_needs_nothing_beside_it(
    tmp_path: Path, rows: list[tuple[Position, Result]], pictures: Path, scorer: Scorer
) -> None:
    page = write(tmp_path, rows, Sources([pictures]), scorer)
    text = (tmp_path / "r.html").read_text("utf-8")
    assert not page.tags & {"script", "link", "iframe", "b"}
    assert re.findall(r'(?:src|href)="(?!data:|#)', text) == []
    assert text.count("<svg") == 2
    assert "#0" not in re.sub(r"base64,\S+", "", text), "a colour of the plots that is not the page's"
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_pictures_that_went_away_since(tmp_path: Path, rows: list[tuple[Position, Result]], scorer: Scorer) -> None:
    sources = Sources([f"gone/{i}.jpg" for i in range(34)])
    page = write(tmp_path, rows, sources, scorer)
    assert page.images == []
    assert page.text.count("gone since") == 2 * SHOWN


def test_pictures_that_moved_since_are_not_shown_as_others(
    tmp_path: Path, rows: list[tuple[Position, Result]], pictures: Path, scorer: Scorer
) -> None:
    album = tmp_path / "album"
    shutil.copytree(pictures, album)
    moved = [(at, dataclasses.replace(row, path=str(album / Path(row.path).name))) for at, row in rows]
    assert len(write(tmp_path, moved, Sources([album]), scorer).images) == 2 * SHOWN
    shutil.copy(min(pictures.iterdir()), album / "!.jpg")  # before all others
    assert write(tmp_path, moved, Sources([album]), scorer).images == []


def test_nothing_was_scored(
    tmp_path: Path, rows: list[tuple[Position, Result]], pictures: Path, scorer: Scorer
) -> None:
    page = write(tmp_path, rows[32:], Sources([pictures]), scorer)
    assert "0 pictures scored by plain.glia; 2 could not be read" in page.text
    assert "svg" not in page.tags


def test_many_pictures_do_not_make_a_large_page(tmp_path: Path, pictures: Path, scorer: Scorer) -> None:
    sources = Sources(["none.jpg"])
    scores = [(i * 7919 % 10_007) / 100 for i in range(50_000)]
    rows = ((Position(0, i), Result("a.jpg", score, "ok", None, 100 + i % 977, 300)) for i, score in enumerate(scores))
    write_rows(tmp_path, rows, sources, scorer)
    assert (tmp_path / "r.html").stat().st_size < 600_000


def test_a_place_that_cannot_be_written(
    tmp_path: Path, rows: list[tuple[Position, Result]], pictures: Path, scorer: Scorer
) -> None:
    (tmp_path / "r.html").mkdir()
    with pytest.raises(GliaError, match=r"r\.html: the report cannot be written: Is a directory"):
        write(tmp_path, rows, Sources([pictures]), scorer)


def test_the_run_is_json(scorer: Scorer, pictures: Path) -> None:
    sources = Sources([pictures])
    run = described(describe(scorer, sources), Summary(32, None, "0" * 64))
    assert json.loads(json.dumps(run)) == run
