"""Several engines as one: here on the CPU, as on GPUs of one type."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from glia_rt import Scorer
from glia_rt.backends import Backend, BackendOptions, open_backend
from glia_rt.backends.several import SeveralBackend
from glia_rt.bundle import Bundle
from glia_rt.errors import BackendError, UsageError
from glia_rt.images import DEFAULT_MAX_PIXELS


class Watched:
    """A real engine that counts its runs, and says on what it runs."""

    def __init__(self, backend: Backend, device_type: str = "cpu") -> None:
        self.name, self.precision, self.library = backend.name, backend.precision, backend.library
        self.device, self.device_type = f"{device_type}:0", device_type
        self.batch_size, self.parallel = backend.batch_size, backend.parallel
        self.runs = 0
        self.is_closed = False
        self._backend = backend
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        with self._lock:
            self.runs += 1
        return self._backend.run(inputs)

    def close(self) -> None:
        self.is_closed = True
        self._backend.close()


@pytest.fixture
def two(tiny_bundle: Path) -> Iterator[tuple[Watched, Watched]]:
    bundle = Bundle.open(tiny_bundle)
    options = BackendOptions(batch_size=2)
    first, second = (Watched(open_backend("onnxruntime", bundle, options)[0]) for _ in range(2))
    yield first, second
    first.close()
    second.close()


def scorer_of(backend: Backend, bundle: Path) -> Scorer:
    return Scorer(
        Bundle.open(bundle), backend, input="views", batch_size=backend.batch_size, max_pixels=DEFAULT_MAX_PIXELS
    )


def test_they_share_the_work_and_the_order_is_kept(
    two: tuple[Watched, Watched], tiny_bundle: Path, pictures: Path
) -> None:
    with Scorer.open(tiny_bundle, "onnxruntime", batch_size=2) as one:
        expected = list(one.score_files([pictures]))
    several = SeveralBackend(two)
    assert (several.parallel, several.device, several.device_type) == (2, "cpu:0, cpu:0", "cpu")
    with scorer_of(several, tiny_bundle) as scorer:
        assert list(scorer.score_files([pictures])) == expected
    assert two[0].runs + two[1].runs == 16
    assert min(two[0].runs, two[1].runs) >= 4
    assert two[0].is_closed
    assert two[1].is_closed


def test_types_are_not_mixed(two: tuple[Watched, Watched]) -> None:
    two[1].device_type = "NVIDIA L4"
    with pytest.raises(UsageError, match=r"score would depend on whether NVIDIA L4 or cpu took it: .*--shard"):
        SeveralBackend(two)


def test_one_that_fails_is_an_error_and_goes_back(two: tuple[Watched, Watched], tiny_bundle: Path) -> None:
    several = SeveralBackend(two)
    views = {name: np.zeros((2, 224, 224, 3), np.uint8) for name in ("global_view", "fragments")}
    two[0]._backend.close()
    failed = 0
    for _ in range(4):
        try:
            several.run(views)
        except BackendError:
            failed += 1
    assert failed == 2
    assert several._idle.qsize() == 2


def test_a_machine_without_gpus_has_none_to_share(tiny_bundle: Path) -> None:
    with pytest.raises(BackendError, match="backend onnxruntime runs on the CPU; --device is for GPUs"):
        Scorer.open(tiny_bundle, "onnxruntime", device=[0, 1])
    with pytest.raises(UsageError, match=r"devices must be different GPUs, not \[1, 1\]"):
        Scorer.open(tiny_bundle, "onnxruntime", device=[1, 1])
