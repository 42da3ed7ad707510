from __future__ import annotations

import io
import itertools
import mmap
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import ExifTags, Image

import glia_rt
from glia_rt import Result, Scorer
from glia_rt.backends.base import Backend
from glia_rt.backends.choose import CPU_BACKENDS, GPU_BACKENDS, default_precision
from glia_rt.budget import Share
from glia_rt.errors import BackendError, BadImageError, BundleError, UsageError
from glia_rt.pixels.decode import DEFAULT_MAX_PIXELS, read_image
from glia_rt.pixels.views import make_inputs
from glia_rt.samples import stack
from glia_rt.verify import SCORE_LIMITS

SPAN = 4.0  # the tiny bundle's range is 1 to 5

#: How far a score of an array may move with its batch, as a share of the range.
UNPADDED = {"fp32": 1e-6, "bf16": 1e-2}


@pytest.fixture(scope="module", params=CPU_BACKENDS)
def scorer(request: pytest.FixtureRequest, tiny_bundle: Path) -> Iterator[Scorer]:
    """For what an engine may do otherwise than another."""
    with Scorer.open(tiny_bundle, request.param) as scorer:
        yield scorer


@pytest.fixture(scope="module")
def plain(plain_bundle: Path) -> Iterator[Scorer]:
    """For what no engine changes."""
    with Scorer.open(plain_bundle, "onnxruntime") as scorer:
        yield scorer


@pytest.fixture(scope="module")
def files(pictures: Path) -> list[Path]:
    return sorted(pictures.iterdir())


def scores(results: Iterable[Result]) -> list[float | None]:
    return [result.score for result in results]


def as_array(results: Iterable[Result]) -> npt.NDArray[np.float32]:
    return np.array(scores(results), np.float32)


# Opening


def test_it_says_what_it_is(tiny_bundle: Path) -> None:
    with glia_rt.Scorer.open(str(tiny_bundle)) as scorer:
        assert scorer.contract.score.range == (1.0, 5.0)
        assert scorer.backend.name == "openvino"
        assert [reason.partition(":")[0] for reason in scorer.passed_over] == list(GPU_BACKENDS)
        assert scorer.resolved == {
            "bundle": "tiny.glia",
            "bundle_identity": scorer.bundle.identity,
            "contract": scorer.contract.to_dict(),
            "backend": "openvino",
            "precision": default_precision("openvino"),
            "device": "cpu",
            "input": "views",
            "batch_size": 4,
            "max_pixels": DEFAULT_MAX_PIXELS,
            "decoder": f"simplejpeg {version('simplejpeg')}, Pillow {version('pillow')}",
            "versions": {
                "glia_rt": glia_rt.__version__,
                "backend": f"openvino {version('openvino')}",
                "numpy": np.__version__,
            },
        }


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"input": "pixels"}, UsageError, 'input must be "views" or "image", not \'pixels\''),
        ({"batch_size": 0}, UsageError, "batch size must be at least 1, not 0"),
        ({"backend": "cuda"}, UsageError, "no backend 'cuda'"),
        ({"backend": "onnxruntime", "precision": "bf16"}, BackendError, "computes in fp32 on a CPU, not bf16"),
    ],
)
def test_wrong_options(tiny_bundle: Path, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Scorer.open(tiny_bundle, **options)


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        Scorer.open(tmp_path / "gone.glia")


def test_a_signal_handler_that_closes_the_scorer_ends_the_call(tiny_bundle: Path, files: list[Path]) -> None:
    with Scorer.open(tiny_bundle, "onnxruntime") as scorer:
        before = signal.signal(signal.SIGALRM, lambda *_: scorer.close())
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(UsageError, match="within its own call"):
                scorer.score_batch(files * 100)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert len(scorer.score_batch(files[:2])) == 2


def test_a_closed_scorer_says_so(tiny_bundle: Path, files: list[Path]) -> None:
    before = set(threading.enumerate())
    with Scorer.open(tiny_bundle) as scorer:
        scorer.score_batch(files[:8])
        assert len(set(threading.enumerate()) - before) >= 2
    assert set(threading.enumerate()) - before == set()
    with pytest.raises(BackendError, match="backend openvino: closed"):
        scorer.score(files[0])
    with pytest.raises(BackendError, match="backend openvino: closed"):
        scorer.score_batch(files)
    with pytest.raises(BackendError, match="backend openvino: closed"):
        list(scorer.score_files(files))


def test_closing_lets_lists_of_other_threads_end(tiny_bundle: Path, files: list[Path]) -> None:
    with Scorer.open(tiny_bundle, "openvino") as plain:
        engine, begun = Watched(plain.backend), threading.Event()
        scorer = Scorer(plain.bundle, engine, input="views", batch_size=4, max_pixels=1_000_000)

        def paths() -> Iterator[Path]:
            yield from files * 20
            begun.set()

        with ThreadPoolExecutor(1) as pool:
            scored = pool.submit(scorer.score_batch, paths())
            begun.wait()
            while not engine.batches:
                time.sleep(0.001)
            scorer.close()
            assert len(scored.result()) == 20 * len(files)
        with pytest.raises(BackendError, match="backend openvino: closed"):
            scorer.score_batch(files)


# One picture


def test_every_kind_of_source_has_the_same_score(scorer: Scorer, files: list[Path]) -> None:
    expected = scorer.score(files[3])
    assert isinstance(expected, float)
    assert 1 < expected < 5
    with Image.open(files[3]) as image:
        pixels = np.asarray(image)
        sources: list[Any] = [str(files[3]), files[3].read_bytes(), image, pixels, np.asfortranarray(pixels)]
        assert [scorer.score(source) for source in sources] == [expected] * len(sources)


def test_scores_are_those_of_the_export(scorer: Scorer, selftest_pictures: list[Path]) -> None:
    golden = {row["picture"]: row["score"] for row in scorer.bundle.selftest()}
    assert len(golden) == 6
    limit = SCORE_LIMITS[scorer.backend.precision] * SPAN
    for path in selftest_pictures:
        assert scorer.score(path) == pytest.approx(golden[path.name], rel=0, abs=limit)


def test_pictures_differ(plain: Scorer, files: list[Path]) -> None:
    """The tests below compare scores: of pictures with one score they would prove nothing."""
    found = plain.score_batch(files)
    assert len(set(found.tolist())) == len(files)
    assert np.ptp(found) > 0.1 * SPAN


@pytest.mark.parametrize("source", [b"", b"not a picture", np.zeros((3, 3), np.uint8)])
def test_what_is_no_picture(plain: Scorer, source: Any) -> None:
    with pytest.raises(BadImageError):
        plain.score(source)


def test_what_is_no_path(plain: Scorer) -> None:
    with pytest.raises(UsageError, match="paths are str or PathLike, not int"):
        list(plain.score_files([3]))  # type: ignore[list-item]


@pytest.mark.parametrize("paths", ["a.jpg", b"a.jpg", Path("a.jpg")])
def test_one_path_is_not_a_list_of_paths(plain: Scorer, paths: Any) -> None:
    with pytest.raises(UsageError, match="takes a list of paths"):
        next(plain.score_files(paths))
    with pytest.raises(UsageError, match="takes a list of pictures"):
        plain.score_batch(paths)


def test_a_side_too_long(plain: Scorer, tmp_path: Path) -> None:
    """A picture 1 pixel wide and 100 million high is kilobytes, and would be gigabytes on its way to its view."""
    Image.new("1", (65_536, 1)).save(tmp_path / "long.png")
    [result] = plain.score_files([tmp_path / "long.png"])
    assert result.status == "bad_image"
    assert result.error == "a side of 65536 pixels, over the limit of 65535"
    with pytest.raises(BadImageError, match="a side of 65536 pixels"):
        plain.score(tmp_path / "long.png")
    with pytest.raises(BadImageError, match="a side of 65536 pixels"):
        plain.score(np.zeros((65_536, 1, 3), np.uint8))


def test_the_limit_of_pixels(tiny_bundle: Path, files: list[Path]) -> None:
    with Scorer.open(tiny_bundle, max_pixels=1000) as scorer:
        with pytest.raises(BadImageError, match="over the limit of 1000 pixels"):
            scorer.score(files[0])
        [result] = scorer.score_files(files[:1])
        assert result.status == "bad_image"


# Batches of arrays


def test_a_batch_of_many_sizes(scorer: Scorer, files: list[Path]) -> None:
    batch = scorer.score_batch(path for path in files[:11])
    assert batch.dtype == np.float32
    assert batch.shape == (11,)
    alone = np.array([scorer.score(path) for path in files[:11]])
    limit = UNPADDED[scorer.backend.precision] * SPAN
    np.testing.assert_allclose(batch, alone, rtol=0, atol=limit)


def test_whole_pictures_of_a_list_hold_no_more_than_the_memory(
    tiny_bundle: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Scorer.open(tiny_bundle, "onnxruntime", "image") as large:
        expected = large.score_batch(files)
    held: list[int] = []
    take, release = Share.take, Share.release

    def take_and_note(share: Share, size: int, **options: Any) -> None:
        take(share, size, **options)
        held.append(size)

    def release_and_note(share: Share) -> None:
        held.append(-share.held)
        release(share)

    monkeypatch.setattr(Share, "take", take_and_note)
    monkeypatch.setattr(Share, "release", release_and_note)
    with Scorer.open(tiny_bundle, "onnxruntime", "image", memory=1_500_000) as small:
        found = small.score_batch(files * 4)
        np.testing.assert_allclose(found, np.tile(expected, 4), atol=UNPADDED["fp32"] * SPAN)
        assert sum(held) == 0
        with pytest.raises(BadImageError, match=r"images\[1\] \(<bytes>\): not a picture"):
            small.score_batch([files[0], b"junk"])
    # A picture whose turn it is goes on in any case: one of each batch that runs, waits or is filled.
    assert max(itertools.accumulate(held)) <= 1_500_000 + 4 * max(held) < sum(size for size in held if size > 0) / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_an_array_hardly_moves_with_its_batch(tiny_bundle: Path, files: list[Path], name: str) -> None:
    arrays = [read_image(path) for path in files[:8]]
    for precision in {"fp32", default_precision(name)}:
        with Scorer.open(tiny_bundle, name, precision=precision) as scorer:
            found = [scorer.score_batch(arrays[:n])[0] for n in (1, 2, 3, 5, 8)]
            assert np.ptp(found) <= UNPADDED[precision] * SPAN


def test_a_batch_of_any_size_runs_on_all_streams(tiny_bundle: Path, files: list[Path]) -> None:
    """Its scores are those of one stream that takes the same batches, to the bit."""
    with Scorer.open(tiny_bundle, "openvino") as plain:
        engine = Watched(plain.backend, parallel=3)
        with Scorer(plain.bundle, engine, input="views", batch_size=4, max_pixels=1_000_000) as scorer:
            inputs = [make_inputs(read_image(path), scorer.contract) for path in files]
            alone = [plain.backend.run(stack(inputs[first : first + 4])) for first in range(0, len(inputs), 4)]
            assert engine.threads == set()
            np.testing.assert_array_equal(scorer.score_batch(files), np.concatenate(alone))
            assert len(engine.threads) == 3
            engine.threads.clear()
            np.testing.assert_array_equal(scorer.score_views(**stack(inputs)), np.concatenate(alone))
            assert len(engine.threads) == 3


def test_calls_of_many_threads_share_the_streams(tiny_bundle: Path, files: list[Path]) -> None:
    with Scorer.open(tiny_bundle, "openvino") as plain:
        engine = Watched(plain.backend, parallel=2)
        with Scorer(plain.bundle, engine, input="views", batch_size=4, max_pixels=1_000_000) as scorer:
            expected = scorer.score_batch(files)
            with ThreadPoolExecutor(8) as pool:
                found = list(pool.map(scorer.score_batch, [files] * 8))
        assert all(np.array_equal(each, expected) for each in found)
        assert len(engine.threads) == 2


class Watched:
    """An engine, the sizes of the batches that it was given, and the threads that gave them."""

    def __init__(self, engine: Backend, parallel: int = 1) -> None:
        self.name, self.precision, self.device = engine.name, engine.precision, engine.device
        self.parallel = parallel
        self.batches: list[int] = []
        self.threads: set[int] = set()
        self._engine = engine

    def run(self, inputs: Mapping[str, npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        self.batches.append(len(next(iter(inputs.values()))))
        self.threads.add(threading.get_ident())
        return self._engine.run(inputs)

    def warm_up(self) -> None:
        self._engine.warm_up()

    def close(self) -> None:
        self._engine.close()


@pytest.mark.parametrize(
    ("input", "arrays", "in_files"), [("views", [4, 4, 2], [4, 4, 4]), ("image", [4, 3, 1, 1, 1], [4, 3, 1, 1, 1])]
)
def test_arrays_travel_as_they_are_and_views_of_files_in_full_batches(
    tiny_bundle: Path, files: list[Path], input: Any, arrays: list[int], in_files: list[int]
) -> None:
    with Scorer.open(tiny_bundle, "onnxruntime", input) as plain:
        engine = Watched(plain.backend)
        scorer = Scorer(plain.bundle, engine, input=input, batch_size=4, max_pixels=1_000_000)
        chosen = [*files[:1] * 7, *files[1:2] * 2, files[2]]
        assert len(scorer.score_batch(chosen)) == 10
        assert sorted(engine.batches, reverse=True) == arrays  # two threads give them
        engine.batches.clear()
        assert len(list(scorer.score_files(chosen))) == 10
        assert sorted(engine.batches, reverse=True) == in_files


def test_no_pictures(plain: Scorer) -> None:
    views = {one.name: np.zeros((0, *one.shape), np.uint8) for one in plain.contract.inputs}
    assert plain.score_views(**views).shape == (0,)
    empty = plain.score_batch([])
    assert empty.dtype == np.float32
    assert empty.shape == (0,)
    assert list(plain.score_files([])) == []


def test_a_bad_one_in_a_batch_is_named_and_nothing_is_scored(plain: Scorer, files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(BadImageError, match=r"empty\.jpg: empty file"):
        plain.score_batch([files[0], tmp_path / "empty.jpg", files[1]])
    blobs = [path.read_bytes() for path in files[:6]]
    blobs[4] = b"junk"
    with pytest.raises(BadImageError, match=r"^images\[4\] \(<bytes>\): not a picture"):
        plain.score_batch(blobs)
    with pytest.raises(BadImageError, match=r"^<bytes>: not a picture"):
        plain.score(b"junk")


def test_a_picture_in_any_form(plain: Scorer, files: list[Path]) -> None:
    path = files[0]
    expected = plain.score(path)
    content, pixels = path.read_bytes(), read_image(path)
    written = io.BytesIO()
    written.write(content)  # which stands at its end
    forms = [str(path), content, bytearray(content), memoryview(content), written, pixels, torch.from_numpy(pixels)]
    assert [plain.score(form) for form in forms] == [expected] * len(forms)
    with path.open("rb") as file, zipfile.ZipFile(io.BytesIO(), "w") as archive:
        assert plain.score(file) == expected
        archive.writestr("a.jpg", content)
        with archive.open("a.jpg") as member:
            assert plain.score(member) == expected
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert plain.score(mapped) == expected  # type: ignore[arg-type]
    assert plain.score(SimpleNamespace(read=lambda: content)) == expected  # type: ignore[arg-type]
    with path.open(encoding="latin-1") as text, pytest.raises(UsageError, match="opened as text"):
        plain.score(text)


def test_tensors_on_the_host_are_arrays(plain: Scorer, files: list[Path]) -> None:
    pixels = read_image(files[0])
    views = stack([make_inputs(pixels, plain.contract)])
    tensors = {name: torch.from_numpy(array) for name, array in views.items()}
    assert plain.score_views(**tensors) == plain.score_views(**views)
    with pytest.raises(BadImageError, match=r"must be uint8 \(H, W, 3\), not uint8 \(3, "):
        plain.score(torch.from_numpy(pixels).permute(2, 0, 1))
    for unreadable in (torch.zeros((8, 8, 3), requires_grad=True), torch.zeros((8, 8, 3), device="meta")):
        with pytest.raises(UsageError, match="Tensor cannot be read as an array of numpy"):
            plain.score(unreadable)
    with pytest.raises(UsageError, match="picture is a list; it must be an array"):
        plain.score_views(picture=[1])


def test_one_picture_is_no_batch(plain: Scorer, files: list[Path]) -> None:
    with Image.open(files[0]) as image:
        pixels = np.asarray(image)
        for one in (files[0], files[0].read_bytes(), bytearray(b"x"), image, pixels, io.BytesIO(b"x"), 5):
            with pytest.raises(UsageError, match="score_batch takes a list of pictures; score takes one"):
                plain.score_batch(one)  # type: ignore[arg-type]
    np.testing.assert_array_equal(plain.score_batch(pixels[np.newaxis]), plain.score_batch([pixels]))


@pytest.mark.slow
def test_the_graph_samples_as_the_host_does(
    tiny_bundle: Path, files: list[Path], selftest_pictures: list[Path]
) -> None:
    mixed = [*selftest_pictures, *files[:4], selftest_pictures[0], selftest_pictures[0]]
    with (
        Scorer.open(tiny_bundle, "onnxruntime", "views") as host,
        Scorer.open(tiny_bundle, "onnxruntime", "image") as graph,
    ):
        assert graph.resolved["input"] == "image"
        expected = host.score_batch(mixed)
        np.testing.assert_allclose(graph.score_batch(mixed), expected, rtol=0, atol=1e-3 * SPAN)
        results = list(graph.score_files(mixed))
        np.testing.assert_allclose(as_array(results), expected, rtol=0, atol=1e-3 * SPAN)
        assert [result.path for result in results] == [str(path) for path in mixed]


def test_threads_share_a_scorer(scorer: Scorer, files: list[Path]) -> None:
    expected = [scorer.score(path) for path in files[:6]]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(scorer.score, files[:6] * 3)) == expected * 3


# Files: the same to the bit, wherever a picture stands


@pytest.fixture(scope="module", params=[pytest.param(8, marks=pytest.mark.slow), 4])
def steady(request: pytest.FixtureRequest, scorer: Scorer) -> Iterator[Scorer]:
    with Scorer.open(scorer.bundle.path, scorer.backend.name, batch_size=request.param) as scorer:
        yield scorer


@pytest.fixture(scope="module")
def alone(steady: Scorer, files: list[Path]) -> dict[Path, float | None]:
    """What each picture scores when it is the only one."""
    return {path: next(iter(steady.score_files([path]))).score for path in files}


def test_a_score_is_the_same_in_2_7_and_32_files(
    steady: Scorer, files: list[Path], alone: dict[Path, float | None]
) -> None:
    for chosen in (files[:2], files[1:3], files[:7], files[-7:], files, files[::-1]):
        assert scores(steady.score_files(chosen)) == [alone[path] for path in chosen]


@pytest.mark.parametrize("count", [2, 7, 32])
def test_a_score_is_the_same_at_every_place(
    steady: Scorer, files: list[Path], alone: dict[Path, float | None], count: int
) -> None:
    one, others = files[5], itertools.cycle(files[6:])
    for parity in (0, 1):  # at every even place, then at every odd one, each time among others
        chosen = [one if place % 2 == parity else next(others) for place in range(count)]
        assert scores(steady.score_files(chosen)) == [alone[path] for path in chosen]


@pytest.mark.parametrize("workers", [1, 5])
def test_a_score_does_not_depend_on_how_many_threads_decode(
    steady: Scorer, files: list[Path], alone: dict[Path, float | None], workers: int
) -> None:
    assert scores(steady.score_files(files[:12], workers=workers)) == [alone[path] for path in files[:12]]


def test_a_score_does_not_depend_on_bad_pictures_between(
    steady: Scorer, files: list[Path], alone: dict[Path, float | None], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"bad")
    chosen = [path for pair in itertools.zip_longest(files[:12], [], fillvalue=bad) for path in pair]
    assert scores(steady.score_files(chosen)) == [alone.get(path) for path in chosen]


# Rows


def test_rows(plain: Scorer, files: list[Path]) -> None:
    results = list(plain.score_files(files[:10]))
    assert [result.path for result in results] == [str(path) for path in files[:10]]
    assert {(result.status, result.error) for result in results} == {("ok", None)}
    assert [(result.width, result.height) for result in results] == [(400 - 7 * i, 60 + 11 * i) for i in range(10)]
    limit = UNPADDED[plain.backend.precision] * SPAN
    np.testing.assert_allclose(as_array(results), plain.score_batch(files[:10]), rtol=0, atol=limit)
    assert as_array(results).astype(np.float64).tolist() == scores(results), "scores are float32"


def test_size_is_that_of_the_picture_upright(plain: Scorer, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (240, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(np.rot90(pixels, -1)).save(tmp_path / "upright.png")
    turned, upright = plain.score_files([tmp_path / "turned.png", tmp_path / "upright.png"])
    assert (turned.width, turned.height) == (upright.width, upright.height) == (240, 300)
    assert turned.score == upright.score


BAD = {
    "empty.jpg": (b"", "empty file"),
    "text.png": (b"hello", "not a picture Pillow can read"),
    "gone.jpg": (None, "No such file or directory"),
}


def test_a_bad_picture_is_a_row_at_its_place(plain: Scorer, files: list[Path], tmp_path: Path) -> None:
    """`test_pipeline` has every place; this is what the rows say."""
    bad_places = {0, 3, 4, 5, 6, 7, 10}
    for name, (content, _) in BAD.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    names = itertools.cycle(BAD)
    chosen = [tmp_path / next(names) if place in bad_places else files[place] for place in range(11)]
    results = list(plain.score_files(chosen))
    assert [result.path for result in results] == [str(path) for path in chosen]
    for place, (path, result) in enumerate(zip(chosen, results, strict=True)):
        if place in bad_places:
            assert result == Result(str(path), None, "bad_image", BAD[path.name][1], None, None)
        else:
            assert result.status == "ok"
            assert result.score is not None


def test_a_name_that_is_not_utf8(plain: Scorer, files: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "album"
    folder.mkdir()
    shutil.copy(files[0], folder / "\udcff.jpg")
    (folder / "\udcfe.jpg").touch()  # the byte 0xfe
    bad, good = plain.score_files([folder])
    assert (good.path, good.status) == (f"{folder}/\\udcff.jpg", "ok")
    assert (bad.path, bad.error) == (f"{folder}/\\udcfe.jpg", "empty file")


def test_folders(plain: Scorer, files: list[Path], tmp_path: Path) -> None:
    for name in ("b.jpg", "a/2.jpg", "a/10.jpg", "a/.hidden.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(files[0], tmp_path / name)
    (tmp_path / "a/notes.txt").touch()
    found = [result.path for result in plain.score_files([tmp_path, files[1]])]
    assert found == [str(tmp_path / name) for name in ("a/10.jpg", "a/2.jpg", "b.jpg")] + [str(files[1])]


# Stopping and failing


def test_closing_early_ends_every_thread(plain: Scorer, files: list[Path]) -> None:
    results = plain.score_files(itertools.cycle(files))
    next(results)
    results.close()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("glia-")] == []
    with pytest.raises(StopIteration):
        next(results)
    assert np.isfinite(plain.score(files[0]))


def test_an_iterator_that_is_dropped_ends_every_thread(plain: Scorer, files: list[Path]) -> None:
    for result in plain.score_files(itertools.cycle(files)):
        assert result.status == "ok"
        break


@pytest.mark.parametrize("by", [np.inf, np.nan])
def test_a_score_that_is_not_finite_is_an_error(
    shifted_bundle: Callable[[float], Path], files: list[Path], by: float
) -> None:
    bundle = shifted_bundle(by)
    for name in CPU_BACKENDS:
        with Scorer.open(bundle, name) as scorer:
            with pytest.raises(BackendError, match="a score that is not finite"):
                scorer.score(files[0])
            with pytest.raises(BackendError, match="a score that is not finite"):
                list(scorer.score_files(files[:2]))


def test_memory_does_not_grow_with_the_number_of_files(scorer: Scorer, files: list[Path]) -> None:
    pulled = 0

    def paths() -> Iterator[Path]:
        nonlocal pulled
        for path in itertools.islice(itertools.cycle(files), 96):
            pulled += 1
            yield path

    ahead = [pulled - given for given, _ in enumerate(scorer.score_files(paths(), workers=2), start=1)]
    assert len(ahead) == 96
    # What `score_stream` holds: a batch for each run under way or waiting, one in the making, one a decoding thread.
    assert max(ahead) <= (scorer.backend.parallel + 4) * scorer.batch_size + 2


def test_paths_of_an_iterator(plain: Scorer, files: list[Path]) -> None:
    assert [r.path for r in plain.score_files(path for path in files)] == [str(path) for path in files]


def test_no_workers_are_refused(plain: Scorer, files: list[Path]) -> None:
    for workers in (0, -1):
        with pytest.raises(UsageError, match="workers must be at least 1"):
            plain.score_files(files, workers=workers)


FORK = """
import multiprocessing, sys
from glia_rt import Scorer
from glia_rt.errors import UsageError

def use() -> None:
    try:
        scorer.score(sys.argv[2])
    except UsageError as error:
        print(error)

scorer = Scorer.open(sys.argv[1], "openvino")
scorer.score(sys.argv[2])
child = multiprocessing.get_context("fork").Process(target=use)
child.start()
child.join()
"""


def test_a_scorer_stays_in_its_process(plain: Scorer, tiny_bundle: Path, files: list[Path]) -> None:
    with pytest.raises(UsageError, match="cannot be sent to another process"):
        pickle.dumps(plain)
    command = [sys.executable, "-W", "ignore", "-c", FORK, str(tiny_bundle), str(files[0])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    assert done.stdout == "this scorer was opened before the process forked: open one in the process that uses it\n"
