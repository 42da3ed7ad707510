import base64
import dataclasses
import io
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glia_export.demo.data import PHOTOGRAPHS, DemoPicture, make_dataset
from glia_export.demo.page import THUMBNAILS, DemoReport, ScoredPicture, write_report
from glia_rt.errors import BadImageError
from glia_rt.verify import Parity
from glia_train.metrics import Metrics

HOSTILE = "\"'><img src=x onerror=alert(1)>&.png"
VOID = {"br", "img", "link", "meta"}


class Page(HTMLParser):
    """A page's elements and text; an element closed out of turn is an error."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[DemoPicture]:
    return make_dataset(tmp_path_factory.mktemp("data"), seed=0, pictures=100)


@pytest.fixture
def report(pictures: list[DemoPicture]) -> DemoReport:
    held_out = [p for p in pictures if p.reference in ("astronaut", "china", "motorcycle_left", "rocket")]
    noise = np.random.default_rng(0).normal(0, 0.1, len(held_out))
    return DemoReport(
        backbone="vit_of_the_test",
        trained=[p for p in pictures if p.reference in ("coffee", "ihc", "retina")],
        held_out=[ScoredPicture(p, p.score + e) for p, e in zip(held_out, noise, strict=True)],
        metrics=Metrics(srcc=0.4567, krcc=0.3, plcc=0.5678, rmse=0.1),
        parity=[
            Parity("scorer.onnx, batch 8", "score", 2.34e-7, 1e-5, "cat.png", 24),
            Parity("scorer.fp16.onnx", "feature", 0.5, 5e-3, "rocket.png", 24),
        ],
        seconds={"train": 200.4, "export": 40.04},
        setup={"hardware": "two cores"},
        files={"demo.glia/": "the bundle"},
        commands={"Score your own pictures": "glia-rt score demo.glia photos/"},
    )


def write(folder: Path, report: DemoReport) -> str:
    write_report(folder / "report.html", report)
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_says_what_its_figures_are(tmp_path: Path, report: DemoReport) -> None:
    text = Page(write(tmp_path, report)).text
    assert "These figures show the chain, not the method. The backbone (vit_of_the_test) started from random" in text
    assert "SRCC on held-out photographs 0.457" in text
    assert "PLCC, after a logistic fit 0.568" in text
    assert f"{len(report.trained)} of them, cut from coffee, ihc and retina, were trained on" in text
    assert f"{len(report.held_out)}, cut from astronaut, china, motorcycle left and rocket, were held out" in text
    assert "in all, first stage to last 4 min 00 s" in text
    assert "train 3 min 20 s export 40.0 s" in text
    assert "hardware two cores" in text
    assert "demo.glia/ the bundle" in text
    assert "glia-rt score demo.glia photos/" in text
    assert all(photograph.credit in text for photograph in PHOTOGRAPHS)


def test_figures_that_are_not_defined_come_with_the_reason(tmp_path: Path, report: DemoReport) -> None:
    report = dataclasses.replace(report, metrics=Metrics(note="every score is the same"))
    assert math.isnan(report.metrics.srcc)
    assert "every score is the same" in Page(write(tmp_path, report)).text


def test_the_page_needs_nothing_from_outside(tmp_path: Path, report: DemoReport) -> None:
    html = write(tmp_path, report)
    page = Page(html)
    for _, attrs in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert (attrs.get(name) or "#").startswith(("#", "data:image/webp;base64,"))
    assert not {"script", "link", "iframe", "a"} & {tag for tag, _ in page.elements}
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]*)", html))
    assert "@import" not in html
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]


def test_thumbnails_fall_from_the_best_score_to_the_worst(tmp_path: Path, report: DemoReport) -> None:
    assert len(report.held_out) > THUMBNAILS
    page = Page(write(tmp_path, report))
    names = [image["title"] for image in page.all("img")]
    by_score = sorted(report.held_out, key=lambda scored: -scored.score)
    ranks = [[scored.picture.path.name for scored in by_score].index(str(name)) for name in names]
    assert len(ranks) == THUMBNAILS
    assert ranks == sorted(set(ranks))
    assert (ranks[0], ranks[-1]) == (0, len(by_score) - 1)
    assert max(np.diff(ranks)) - min(np.diff(ranks)) <= 1
    for rank, image in zip(ranks, page.all("img"), strict=True):
        scored = by_score[rank]
        distortion = (scored.picture.distortion or "undistorted").replace("_", " ")
        level = f"level {scored.picture.level}, " if scored.picture.distortion else ""
        photograph = scored.picture.reference.replace("_", " ")
        assert image["alt"] == f"{distortion}, {level}{photograph}"
        caption = f"{scored.score:.3f} label {scored.picture.score:.3f} #{rank + 1} {distortion} {level}{photograph}"
        assert caption in page.text


def test_a_thumbnail_is_the_picture_at_its_own_size(tmp_path: Path, report: DemoReport) -> None:
    best = max(report.held_out, key=lambda scored: scored.score)
    source = Page(write(tmp_path, report)).all("img")[0]["src"]
    assert source is not None
    with (
        Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as thumbnail,
        Image.open(best.picture.path) as file,
    ):
        assert thumbnail.size == file.size
        off = np.asarray(thumbnail, dtype=float) - np.asarray(file)
    assert np.abs(off).mean() < 6


def test_the_plot_has_a_point_for_every_picture_in_the_page_s_colours(tmp_path: Path, report: DemoReport) -> None:
    html = write(tmp_path, report)
    svg = html[html.index("<svg") : html.index("</svg>")]
    points = re.findall(r'<use[^>]*style="fill: var\(--series-(\d)\)', svg)
    assert len(points) == len(report.held_out) + 4  # one each in the legend
    assert set(points) == set("1234")
    assert not re.findall(r"#0[0-9a-f]{5}\b", svg)
    for text in ("label (SSIM)", "score (SSIM predicted)", "astronaut", "motorcycle left"):
        assert f">{text}</text>" in svg
    for variable in set(re.findall(r"var\((--[\w-]+)\)", html)):
        assert f"{variable}: #" in html


def test_parity_rows_say_whether_they_passed(tmp_path: Path, report: DemoReport) -> None:
    text = Page(write(tmp_path, report)).text
    assert "scorer.onnx, batch 8 2.3e-07 1e-05 pass of the score range 24 cat.png" in text
    assert "scorer.fp16.onnx 5.0e-01 5e-03 fail relative L2 error of the features 24 rocket.png" in text


def test_hostile_names_are_text(tmp_path: Path, report: DemoReport) -> None:
    one = report.held_out[0]
    path = tmp_path / HOSTILE
    shutil.copy(one.picture.path, path)
    out = tmp_path / "out"
    out.mkdir()
    hostile = dataclasses.replace(
        report,
        backbone=HOSTILE,
        held_out=[ScoredPicture(dataclasses.replace(one.picture, path=path, reference=HOSTILE), one.score)],
        parity=[dataclasses.replace(report.parity[0], picture=HOSTILE)],
        setup={HOSTILE: HOSTILE},
        files={HOSTILE: HOSTILE},
        commands={HOSTILE: HOSTILE},
    )
    page = Page(write(out, hostile))
    assert [image["title"] for image in page.all("img")] == [HOSTILE]
    assert page.all("img")[0]["alt"] == f"{(one.picture.distortion or '').replace('_', ' ')}, " + (
        f"level {one.picture.level}, " + HOSTILE
    )
    assert all("onerror" not in attrs for _, attrs in page.elements)
    assert page.text.count(HOSTILE) >= 8


def test_equal_reports_are_equal_pages(tmp_path: Path, report: DemoReport) -> None:
    assert write(tmp_path, report) == write(tmp_path, report)


def test_a_picture_that_is_gone_is_named_and_leaves_no_page(tmp_path: Path, report: DemoReport) -> None:
    one = report.held_out[0]
    gone = ScoredPicture(dataclasses.replace(one.picture, path=tmp_path / "gone.png"), one.score)
    with pytest.raises(BadImageError, match=r"gone\.png"):
        write_report(tmp_path / "report.html", dataclasses.replace(report, held_out=[gone]))
    assert not list(tmp_path.iterdir())
