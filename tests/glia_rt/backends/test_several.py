"""Several engines as one: here on the CPU, as on GPUs of one type."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from glia_rt import Scorer
from glia_rt.backends.base import Backend, BackendOptions
from glia_rt.backends.choose import GPU_BACKENDS, open_backend
from glia_rt.backends.several import SeveralBackend
from glia_rt.bundle import Bundle
from glia_rt.cli.main import main
from glia_rt.errors import BackendError, UsageError
from glia_rt.pixels.decode import DEFAULT_MAX_PIXELS


class Watched:
    """A real engine that counts its runs, and says on what it runs."""

    def __init__(self, backend: Backend, device_type: str = "cpu") -> None:
        self.name, self.precision, self.library = backend.name, backend.precision, backend.library
        self.device, self.device_type = f"{device_type}:0", device_type
        self.batch_size, self.parallel = backend.batch_size, backend.parallel
        self.runs = 0
        self.asked = BackendOptions()
        self.is_closed = False
        self._backend = backend
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, npt.NDArray[np.uint8]]) -> npt.NDArray[np.float32]:
        with self._lock:
            self.runs += 1
        return self._backend.run(inputs)

    def warm_up(self) -> None:
        self._backend.warm_up()

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
    assert min(two[0].runs, two[1].runs) >= 1
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
    with pytest.raises(BackendError) as refusal:
        Scorer.open(tiny_bundle, device=[0, 1])
    assert [reason.partition(": ")[0] for reason in str(refusal.value).split("here. ")[1].split("; ")] == [
        *GPU_BACKENDS,
        "without --device the CPU is taken",
    ]


@pytest.mark.parametrize("device", [[], [1, 1], [0, -1], -1, "0,1", ["0"]])
def test_what_names_no_gpus(tiny_bundle: Path, device: Any) -> None:
    with pytest.raises(UsageError, match=r"device is the number of a GPU, or a list of different ones"):
        Scorer.open(tiny_bundle, "onnxruntime", device=device)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """Makes --device open an engine on the CPU for each GPU that is named, and keeps them."""
    engines: list[Watched] = []

    def on_the_cpu(name: str, bundle: Bundle, options: BackendOptions) -> tuple[Backend, list[str]]:
        if options.device == 9:
            raise RuntimeError("no such GPU, and no error of ours")
        engines.append(Watched(open_backend(name, bundle, dataclasses.replace(options, device=None))[0]))
        engines[-1].asked = dataclasses.replace(options)
        return engines[-1], []

    monkeypatch.setattr("glia_rt.backends.choose.open_backend", on_the_cpu)
    return engines


def test_the_command_line_shares_the_work(
    opened: list[Watched], tiny_bundle: Path, pictures: Path, tmp_path: Path
) -> None:
    score = ["score", str(tiny_bundle), str(pictures), "--backend", "onnxruntime", "--batch-size", "2", "-o"]
    assert main([*score, str(tmp_path / "one.csv")]) == 0
    assert main([*score, str(tmp_path / "two.csv"), "--device", "0,1"]) == 0
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    one, first, second = opened
    assert [engine.asked.device for engine in opened] == [None, 0, 1]
    assert (second.asked.precision, second.asked.batch_size) == ("fp32", 2)
    assert first.runs + second.runs == one.runs
    assert min(first.runs, second.runs) > 0
    assert all(engine.is_closed for engine in opened)


def test_engines_that_were_opened_are_closed_if_another_cannot_be(opened: list[Watched], tiny_bundle: Path) -> None:
    with pytest.raises(RuntimeError, match="no such GPU"):
        Scorer.open(tiny_bundle, "onnxruntime", device=[0, 1, 9])
    assert [engine.is_closed for engine in opened] == [True, True]


class OnGpu:
    """What a library says of an array in a GPU's memory."""

    shape, dtype = (1, 224, 224, 3), "uint8"

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("read on the host")


def test_arrays_on_a_gpu_are_for_one_gpu(two: tuple[Watched, Watched], tiny_bundle: Path) -> None:
    scorer = scorer_of(SeveralBackend(two), tiny_bundle)
    tensor: Any = OnGpu()
    for call in (lambda: scorer.score_views(global_view=tensor, fragments=tensor), lambda: scorer.score(tensor)):
        with pytest.raises(UsageError, match="several devices take arrays on the host"):
            call()
