"""The backends on a GPU, each as far as its package is installed; nothing of this runs without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from glia_engines.build import build
from glia_rt import Scorer
from glia_rt.backends.choose import GPU_BACKENDS, unavailable
from glia_rt.backends.cuda.device import Gpu, why_no_gpu
from glia_rt.backends.cuda.engine import find_engines
from glia_rt.backends.cuda.lanes import GpuBackend
from glia_rt.bundle import Bundle
from glia_rt.errors import BackendError, UsageError
from glia_rt.pixels.decode import read_image
from glia_rt.pixels.views import make_inputs
from glia_rt.verify import SCORE_LIMITS, require, selftest
from glia_train.models.glianet import FRAGMENTS, GLOBAL_VIEW, GLIANet

pytestmark = pytest.mark.gpu

INSTALLED = [name for name in GPU_BACKENDS if why_no_gpu() is not None or unavailable(name) is None]
#: 7.5 is not in the portable set of tensorrt_rtx, 9.0 not in its list at all: there 8.0 is tried.
RTX_CAPABILITIES = {"7.5": "7.5", "9.0": "8.0"}
SPAN = 4.0  # of the tiny model's range, 1 to 5

Views = dict[str, npt.NDArray[np.uint8]]


@pytest.fixture(scope="module")
def bundle(tiny_engine: Path) -> Path:
    if "tensorrt" in INSTALLED:
        build(tiny_engine, "tensorrt")
    if (capability := RTX_CAPABILITIES.get(Gpu.open(0).capability)) is not None:
        build(tiny_engine, "tensorrt-rtx", capabilities=[capability], overwrite=True)
    return tiny_engine


@pytest.fixture(scope="module", params=INSTALLED)
def scorer(request: pytest.FixtureRequest, bundle: Path) -> Iterator[Scorer]:
    with Scorer.open(bundle, request.param, batch_size=8) as opened:
        yield opened


@pytest.fixture
def backend(scorer: Scorer) -> GpuBackend:
    assert isinstance(scorer.backend, GpuBackend)
    return scorer.backend


@pytest.fixture(scope="module")
def views(tiny_bundle: Path, selftest_pictures: list[Path]) -> Views:
    contract = Bundle.open(tiny_bundle).contract
    sampled = [make_inputs(read_image(path), contract) for path in selftest_pictures]
    sampled += [make_inputs(np.full((300, 400, 3), level, np.uint8), contract) for level in (0, 255)]
    return {name: np.stack([inputs[name] for inputs in sampled]) for name in (GLOBAL_VIEW, FRAGMENTS)}


def taken(views: Views, which: Any) -> Views:
    return {name: array[which] for name, array in views.items()}


def on_gpu(views: Views) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array).cuda() for name, array in views.items()}


def test_some_backend_is_installed() -> None:
    assert INSTALLED, "a GPU, and nothing of glia-rt[gpu,rtx,tensorrt] to run on it"


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_scores_are_those_of_pytorch(backend: GpuBackend, views: Views, tiny_model: GLIANet, batch: int) -> None:
    with torch.inference_mode():
        reference = tiny_model.score(*(torch.from_numpy(views[name]) for name in (GLOBAL_VIEW, FRAGMENTS))).numpy()
    scores = np.concatenate([backend.run(taken(views, np.s_[i : i + batch])) for i in range(0, 8, batch)])
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, reference, rtol=0, atol=SCORE_LIMITS[backend.precision] * SPAN)


def test_the_selftest_passes(scorer: Scorer) -> None:
    require(selftest(scorer))


def test_a_score_is_the_same_at_every_place_of_a_batch(backend: GpuBackend, views: Views) -> None:
    scores = backend.run(views)
    for shift in range(1, 8):
        moved = backend.run(taken(views, np.roll(np.arange(8), shift)))
        np.testing.assert_array_equal(np.roll(moved, -shift), scores)


def test_a_padded_batch_scores_as_a_full_one(backend: GpuBackend, views: Views) -> None:
    """Five pictures run as eight; what fills the batch does not matter, and later runs are not disturbed."""
    full = backend.run(views)
    np.testing.assert_array_equal(backend.run(taken(views, np.s_[:5])), full[:5])
    np.testing.assert_array_equal(backend.run(views), full)


def test_threads_share_a_backend(backend: GpuBackend, views: Views) -> None:
    expected = [backend.run(taken(views, [i, i])) for i in range(8)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda i: backend.run(taken(views, [i % 8, i % 8])), range(48)))
    for i, scores in enumerate(found):
        np.testing.assert_array_equal(scores, expected[i % 8])


def test_the_pipeline_gives_the_same_scores(scorer: Scorer, pictures: Path) -> None:
    files = sorted(pictures.iterdir())
    expected = np.concatenate([scorer.score_batch(files[i : i + 8]) for i in range(0, len(files), 8)])
    found = [result.score for result in scorer.score_files([pictures])]
    np.testing.assert_array_equal(found, expected)


# Data on the GPU


def test_arrays_on_the_gpu_are_read_where_they_lie(scorer: Scorer, views: Views) -> None:
    expected = scorer.score_views(**views)
    there = on_gpu(views)
    for _ in range(3):
        np.testing.assert_array_equal(scorer.score_views(**there), expected)


class Interface:
    """The same by __cuda_array_interface__ alone, as PyCUDA has it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.shape, self.dtype = tensor, tuple(tensor.shape), np.dtype(np.uint8)
        self.__cuda_array_interface__ = dict(tensor.__cuda_array_interface__)


def test_the_older_interface_does_as_well(scorer: Scorer, views: Views) -> None:
    expected = scorer.score_views(**views)
    there = {name: Interface(tensor) for name, tensor in on_gpu(views).items()}
    np.testing.assert_array_equal(scorer.score_views(**there), expected)


def test_work_queued_before_is_waited_for(scorer: Scorer, views: Views) -> None:
    """The arrays are filled on torch's own stream, behind much work, just before they are scored."""
    expected = scorer.score_views(**views)
    there, work = on_gpu(views), torch.randn(4096, 4096, device="cuda")
    filled = {name: torch.zeros_like(tensor) for name, tensor in there.items()}
    torch.cuda.synchronize()
    for _ in range(20):
        work = work @ work
    for name, tensor in there.items():
        filled[name].copy_(tensor)
    np.testing.assert_array_equal(scorer.score_views(**filled), expected)


def test_pictures_on_the_gpu_are_sampled_there(scorer: Scorer, selftest_pictures: list[Path]) -> None:
    pixels = [read_image(path) for path in selftest_pictures] * 3  # more than one batch
    expected = np.concatenate([scorer.score_batch(pixels[i : i + 8]) for i in range(0, len(pixels), 8)])
    found = scorer.score_batch([torch.from_numpy(array).cuda() for array in pixels])  # type: ignore[misc]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda view: view.cpu(), "is not in the memory of GPU 0: move it there"),
        (lambda view: view.float(), "must be uint8"),
        (lambda view: view.permute(0, 2, 1, 3), "must be C-contiguous"),
    ],
    ids=["on the host", "float", "transposed"],
)
def test_other_arrays_are_refused(
    scorer: Scorer, views: Views, spoil: Callable[[torch.Tensor], torch.Tensor], reason: str
) -> None:
    there = on_gpu(views)
    with pytest.raises(UsageError, match=reason):
        scorer.score_views(**there | {GLOBAL_VIEW: spoil(there[GLOBAL_VIEW])})
    assert len(scorer.score_views(**there)) == 8


# Errors and ends


def test_too_large_a_batch(backend: GpuBackend, views: Views) -> None:
    count = 5000
    with pytest.raises(BackendError, match=f"a batch of {count} is over the engine's largest"):
        backend.run(taken(views, np.zeros(count, np.intp)))


@pytest.mark.parametrize("name", INSTALLED)
def test_a_closed_backend_says_so(bundle: Path, views: Views, name: str) -> None:
    scorer = Scorer.open(bundle, name, batch_size=8)
    scorer.backend.run(views)
    scorer.close()
    scorer.close()
    with pytest.raises(BackendError, match=f"backend {name}: closed"):
        scorer.backend.run(views)


@pytest.mark.parametrize("name", INSTALLED)
def test_a_full_gpu_is_an_error_that_says_what_to_do(bundle: Path, name: str) -> None:
    free, _ = torch.cuda.mem_get_info()
    taken_up = torch.empty(free - (64 << 20), dtype=torch.uint8, device="cuda")
    try:
        with pytest.raises(BackendError, match="memory"):
            Scorer.open(bundle, name, batch_size=8)
    finally:
        del taken_up
        torch.cuda.empty_cache()
    with Scorer.open(bundle, name, batch_size=8) as scorer:
        assert scorer.backend.name == name


def test_what_rtx_compiled_is_found_again(bundle: Path) -> None:
    if "tensorrt-rtx" not in INSTALLED:
        return
    from glia_rt.backends.cuda.tensorrt import driver_version, runtime_cache_file

    [(_, record)] = find_engines(Bundle.open(bundle), "tensorrt-rtx", "views", "fp16")
    gpu = Gpu.open(0)
    cache = runtime_cache_file(record, gpu.name, driver_version(gpu))
    assert cache is not None
    cache.unlink(missing_ok=True)
    Scorer.open(bundle, "tensorrt-rtx", batch_size=8).close()
    written = cache.stat()
    Scorer.open(bundle, "tensorrt-rtx", batch_size=8).close()
    assert (cache.stat().st_size, cache.stat().st_mtime_ns) == (written.st_size, written.st_mtime_ns)
