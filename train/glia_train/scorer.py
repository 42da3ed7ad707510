"""Scorers of labelled pictures: a checkpoint through PyTorch, or a bundle through any backend."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch

from glia_rt.backends.choose import AUTO
from glia_rt.contract import Contract, GraphKind
from glia_rt.errors import BadImageError, UsageError
from glia_rt.listing.missing import Trail
from glia_rt.listing.pieces import Picture
from glia_rt.machine import cpu_count, memory_size
from glia_rt.pipeline import score_stream
from glia_rt.pixels.decode import decoder
from glia_rt.pixels.names import display_name
from glia_rt.pixels.views import make_inputs
from glia_rt.results import Result
from glia_rt.samples import Inputs, read_sample
from glia_rt.scorer import Scorer
from glia_rt.starter.paths import is_bundle
from glia_rt.steps import step
from glia_rt.versions import __version__
from glia_train.checkpoint import Checkpoint
from glia_train.datasets.base import LabelledPicture
from glia_train.machine import Machine, Precision

#: Pictures in a batch, by the type of the device. They are those of the bundle's backends.
_BATCH_SIZES: Final = {"cpu": 4, "cuda": 32}


@dataclass(frozen=True)
class Engine:
    """What computes the scores, and how. The defaults are the fastest that works here.

    Attributes:
        backend: For a bundle, as for `Scorer.open`. A checkpoint takes "auto" alone, which is PyTorch.
        input: For a bundle, likewise. A checkpoint takes "views" alone.
        precision: "fp32", "bf16" or "fp16". None for the fastest.
        batch_size: Pictures in a batch. None for 4 on a CPU, 32 on a GPU.
        device: For a bundle, as for `Scorer.open`. A checkpoint takes the first GPU, or the CPU where there is none.
        workers: Number of threads that decode. None for one per core.
        backbone_weights: For an adapter-only checkpoint, as for `Checkpoint.build_model`.
    """

    backend: str = AUTO
    input: GraphKind = "views"
    precision: str | None = None
    batch_size: int | None = None
    device: Sequence[int] | None = None
    workers: int | None = None
    backbone_weights: str | None = None


@dataclass(frozen=True)
class TorchBackend:
    """PyTorch, as `TorchScorer` shows it; the names are those of `glia_rt.backends.base.Backend`."""

    precision: Precision
    device: str
    device_type: Literal["cpu", "cuda"]
    name: str = "pytorch"


class TorchScorer:
    """A checkpoint that scores encoded pictures through PyTorch, as a `glia_rt.Scorer` scores them with a bundle.

    Attributes:
        checkpoint: What was opened.
        contract: The inputs of the model, and what its score means.
        backend: The device and the precision.
        batch_size: Pictures in a batch.
        passed_over: Empty; PyTorch is not chosen among others.
    """

    def __init__(self, checkpoint: Checkpoint, path: Path, machine: Machine, engine: Engine) -> None:
        self.checkpoint = checkpoint
        self.contract: Contract = checkpoint.contract
        device_type = cast(Literal["cpu", "cuda"], machine.device.type)
        self.backend = TorchBackend(machine.precision, machine.name, device_type)
        self.batch_size = engine.batch_size or _BATCH_SIZES[device_type]
        self.passed_over: tuple[str, ...] = ()
        self._running = threading.Lock()
        self._path = path
        self._machine = machine
        self._model = checkpoint.build_model(engine.backbone_weights).to(machine.device)

    @classmethod
    def open(cls, path: str | os.PathLike[str], engine: Engine | None = None) -> TorchScorer:
        """Open a checkpoint.

        Raises:
            BundleError: This is not a checkpoint, or it is damaged.
            UsageError: The checkpoint is adapter-only, and no backbone weights are given. Or the engine has options
                that are for bundles.
        """
        engine = engine or Engine()
        if engine.backend != AUTO or engine.input != "views":
            raise UsageError(f"{path} is a checkpoint, which PyTorch scores: drop --backend and --input, or export it")
        if engine.device is not None:
            raise UsageError(f"{path} is a checkpoint, which takes the first GPU: drop --device, or export it")
        with step(f"open {path}"):
            checkpoint = Checkpoint.load(path)
            return cls(checkpoint, Path(path), Machine.here(cast("Precision | None", engine.precision)), engine)

    @property
    def resolved(self) -> dict[str, Any]:
        """Return what is written beside scores: how they are computed."""
        return {
            "checkpoint": self._path.name,
            "contract": self.contract.to_dict(),
            "backend": self.backend.name,
            "precision": self.backend.precision,
            "device": self.backend.device_type,
            "input": "views",
            "batch_size": self.batch_size,
            "decoder": decoder(),
            "versions": {"glia_rt": __version__, "backend": f"torch {torch.__version__}", "numpy": np.__version__},
        }

    def score_pictures(self, pictures: Iterable[Picture], *, workers: int | None = None) -> Generator[Result]:
        """Score encoded pictures lazily, in order; arguments, results and errors as for `Scorer.score_pictures`."""
        return score_stream(
            pictures,
            read=partial(read_sample, trail=Trail(), make=lambda pixels: make_inputs(pixels, self.contract)),
            run=self._run,
            batch_size=self.batch_size,
            parallel=1,
            workers=workers or cpu_count(),
            memory=memory_size() // 2,
            size=lambda picture: len(picture.source) if isinstance(picture.source, bytes) else 0,
        )

    def close(self) -> None:
        """Free nothing: a model goes with the last reference to it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, inputs: Inputs) -> npt.NDArray[np.float32]:
        # The next batch is waiting in another thread. Two at once would take twice the memory and share the cores.
        with self._running, torch.inference_mode():
            tensors = [torch.from_numpy(inputs[one.name]) for one in self.contract.inputs]
            scores = self._model.calibrated(self._machine.raw_score(self._model, tensors))
            return cast("npt.NDArray[np.float32]", scores.float().cpu().numpy())


AnyScorer: TypeAlias = Scorer | TorchScorer


def open_scorer(path: str | os.PathLike[str], engine: Engine | None = None) -> AnyScorer:
    """Open a bundle, which is a folder, or a checkpoint, which is a file; "starter" is the bundle that glia-rt ships.

    Raises:
        BundleError: There is no such file or folder, or it is neither.
        BackendError: The backend cannot be used here.
        UsageError: The engine does not go with what is opened.
    """
    engine = engine or Engine()
    if not is_bundle(path):
        return TorchScorer.open(path, engine)
    if engine.backbone_weights is not None:
        raise UsageError(f"{path} is a bundle, which has its backbone's weights: drop --backbone-weights")
    return Scorer.open(
        path,
        engine.backend,
        engine.input,
        precision=engine.precision,
        batch_size=engine.batch_size,
        device=engine.device,
    )


def trained_on(scorer: AnyScorer) -> Mapping[str, Any]:
    """Return what a checkpoint or a bundle records about its training; empty if it records nothing."""
    if isinstance(scorer, TorchScorer):
        return scorer.checkpoint.trained_on
    record = scorer.bundle.manifest["checkpoint"].get("trained_on", {})
    return record if isinstance(record, dict) else {}


def score_labelled(
    scorer: AnyScorer, pictures: Sequence[LabelledPicture], *, workers: int | None = None
) -> Generator[Result]:
    """Score labelled pictures lazily, in order.

    Yields:
        A result for each picture; status "bad_image" for one that cannot be read.

    Raises:
        BackendError: The engine failed.
        SourceError: The folder of the pictures has gone.
    """
    with closing(scorer.score_pictures(map(_to_score, pictures), workers=workers)) as results:
        yield from results


def _to_score(picture: LabelledPicture) -> Picture:
    name = display_name(picture.name)
    try:
        source = picture.source()
    except BadImageError as error:
        return Picture(name, None, error.reason)
    return Picture(name, source if isinstance(source, bytes) else os.fspath(source))
