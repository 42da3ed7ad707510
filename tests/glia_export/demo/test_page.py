import dataclasses
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from glia_export.demo.data import PHOTOGRAPHS, Copy, make_copies
from glia_export.demo.page import DemoReport, write_report
from glia_export.demo.score import Scored
from glia_export.demo.tune import Tuned
from glia_rt.errors import BadImageError
from glia_rt.verify import Parity

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


DISTORTED = ("jpeg", "color_block", "contrast")


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> list[Copy]:
    return make_copies(tmp_path_factory.mktemp("data") / "pictures", PHOTOGRAPHS[:4], DISTORTED)


@pytest.fixture
def report(copies: list[Copy]) -> DemoReport:
    """Scores that fall by 10 a level from 60 to 90; but coffee's colour blocks, which rise."""
    names = [photograph.name for photograph in PHOTOGRAPHS]
    rising = {("coffee", "color_block")}
    scored = [
        Scored(one, 60 + 10 * names.index(one.photograph) + (1 if key in rising else -10) * one.level)
        for one in copies
        for key in [(one.photograph, one.distortion)]
    ]
    tuned = Tuned(
        trained_on=["astronaut", "chelsea", "coffee"],
        epochs=3,
        held_out=[Scored(one.copy, one.copy.level) for one in scored if one.copy.photograph == "hubble_deep_field"],
        parity=[
            Parity("scorer.onnx, batch 8", "score", 2.34e-7, 1e-5, "cat.png", 24),
            Parity("scorer.fp16.onnx", "feature", 0.5, 5e-3, "rocket.png", 24),
        ],
        engine="",
        no_engine="tensorrt_rtx is not installed",
    )
    return DemoReport(
        scored=scored,
        tuned=tuned,
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
    assert f"pictures scored with the starter {4 * 16}" in text
    assert "worst copies that score below their photograph 7 of 8" in text
    assert "A level is no opinion." in text
    assert "trained on the copies of astronaut, chelsea and coffee." in text
    assert "on held-out photographs, the starter 1.000" in text
    assert "the same, fine-tuned -1.000" in text
    assert "held-out pictures 16" in text
    assert "in all, first stage to last 4 min 00 s" in text
    assert "train 3 min 20 s export 40.0 s" in text
    assert "hardware two cores" in text
    assert "demo.glia/ the bundle" in text
    assert "glia-rt score demo.glia photos/" in text
    assert all(photograph.credit in text for photograph in PHOTOGRAPHS)


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


def test_photographs_come_in_the_order_of_their_scores(tmp_path: Path, report: DemoReport) -> None:
    page = Page(write(tmp_path, report))
    names = [str(image["title"]) for image in page.all("img")]
    expected = ["hubble_deep_field", "coffee", "chelsea", "astronaut"]
    assert names[:4] == [f"{name}-original.png" for name in expected]
    assert "90.0 hubble deep field 80.0 coffee 70.0 chelsea 60.0 astronaut" in page.text


def test_copies_are_shown_beside_their_photograph(tmp_path: Path, report: DemoReport) -> None:
    """Those of the photograph at the end of the first quarter, of the distortions that there are, at three levels."""
    page = Page(write(tmp_path, report))
    names = [str(image["title"]) for image in page.all("img")]
    copies = [f"coffee-{name}-{level}.png" for name in ("jpeg", "color_block") for level in (1, 3, 5)]
    assert names[4:] == ["coffee-original.png", *copies[:3], "coffee-original.png", *copies[3:]]
    assert [image["alt"] for image in page.all("img")][5] == "coffee, jpeg, level 1"
    assert "80.0 the photograph 70.0 level 1 50.0 level 3 30.0 level 5" in page.text


def test_copies_that_score_above_their_photograph_are_named(tmp_path: Path, report: DemoReport) -> None:
    text = Page(write(tmp_path, report)).text
    assert "1 of 8 copies of level 5 score above their photographs:" in text
    assert "coffee color block 85.0 5.0" in text


def test_the_plots_are_in_the_page_s_colours(tmp_path: Path, report: DemoReport) -> None:
    html = write(tmp_path, report)
    svg = html[html.index("<svg") : html.index("</svg>")]
    assert svg.count("stroke: var(--series-1)") == len(DISTORTED)
    assert not re.findall(r"#0[0-9a-f]{5}\b", svg)
    for text in ("level", "score", "jpeg", "color block", "contrast"):
        assert f">{text}</text>" in svg
    for variable in set(re.findall(r"var\((--[\w-]+)\)", html)):
        assert f"{variable}: #" in html


def test_parity_rows_say_whether_they_passed(tmp_path: Path, report: DemoReport) -> None:
    text = Page(write(tmp_path, report)).text
    assert "scorer.onnx, batch 8 2.3e-07 1e-05 pass of the score range 24 cat.png" in text
    assert "scorer.fp16.onnx 5.0e-01 5e-03 fail relative L2 error of the features 24 rocket.png" in text


def test_hostile_names_are_text(tmp_path: Path, report: DemoReport) -> None:
    def renamed(one: Scored) -> Scored:
        path = tmp_path / f"{one.copy.level}{one.copy.distortion}{HOSTILE}"
        shutil.copy(one.copy.path, path)
        return Scored(dataclasses.replace(one.copy, path=path, photograph=HOSTILE), one.score)

    out = tmp_path / "out"
    out.mkdir()
    tuned = report.tuned
    hostile = dataclasses.replace(
        report,
        scored=[renamed(one) for one in report.scored if one.copy.photograph == "coffee"],
        tuned=dataclasses.replace(
            tuned, trained_on=[HOSTILE], parity=[dataclasses.replace(tuned.parity[0], picture=HOSTILE)]
        ),
        setup={HOSTILE: HOSTILE},
        files={HOSTILE: HOSTILE},
        commands={HOSTILE: HOSTILE},
    )
    page = Page(write(out, hostile))
    assert page.all("img")[0]["alt"] == HOSTILE
    assert all("onerror" not in attrs for _, attrs in page.elements)
    assert page.text.count(HOSTILE) >= 8


def test_equal_reports_are_equal_pages(tmp_path: Path, report: DemoReport) -> None:
    assert write(tmp_path, report) == write(tmp_path, report)


def test_a_picture_that_is_gone_is_named_and_leaves_no_page(tmp_path: Path, report: DemoReport) -> None:
    original = next(one for one in report.scored if one.copy.level == 0)
    gone = Scored(dataclasses.replace(original.copy, path=tmp_path / "gone.png"), original.score)
    scored = [gone if one is original else one for one in report.scored]
    with pytest.raises(BadImageError, match=r"gone\.png"):
        write_report(tmp_path / "report.html", dataclasses.replace(report, scored=scored))
    assert not list(tmp_path.iterdir())
