"""The API: open a bundle, score pictures.

with Scorer.open("model.glia") as scorer:
    scorer.score("photo.jpg")
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import numpy.typing as npt

from glia_rt.backends.base import Backend, BackendOptions
from glia_rt.backends.choose import AUTO, open_backends
from glia_rt.budget import Budget, Reserve
from glia_rt.bundle import Bundle
from glia_rt.contract import DTYPE, IMAGE, Contract, GraphKind
from glia_rt.errors import BackendError, BadImageError, MachineError, UsageError
from glia_rt.faults import Gate, reported
from glia_rt.listing.missing import Trail
from glia_rt.listing.pieces import Picture
from glia_rt.listing.sources import Sources
from glia_rt.machine import cpu_count, memory_size
from glia_rt.pipeline import check_finite, ordered_map, score_stream
from glia_rt.pixels.bicubic import Pixels
from glia_rt.pixels.decode import DEFAULT_MAX_PIXELS, decoder, read_image
from glia_rt.pixels.names import ImageSource
from glia_rt.pixels.views import make_inputs
from glia_rt.results import Result
from glia_rt.samples import Found, Inputs, Sample, read_sample, stack
from glia_rt.versions import __version__

if TYPE_CHECKING:
    from glia_rt.backends.cuda.lanes import GpuBackend


#: The numbers of the host's memory in DLPack: plain, pinned for CUDA or ROCm, and managed by CUDA.
_DLPACK_HOST: Final = (1, 3, 11, 13)


def on_host(array: Any) -> Any:
    """Return an array of another library as numpy's, without a copy, if it lies in the host's memory.

    Returns:
        The array of numpy; or what was given, if it is anything else or lies in a GPU's memory.

    Raises:
        UsageError: The library does not give the array away.
    """
    if isinstance(array, np.ndarray) or not hasattr(array, "__dlpack_device__"):
        return array
    try:
        if array.__dlpack_device__()[0] not in _DLPACK_HOST:
            return array
        return np.from_dlpack(array)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"{type(array).__name__} cannot be read as an array of numpy: {error}") from error


def is_foreign(image: Any) -> bool:
    """Return whether this is an array of another library, in a GPU's memory."""
    if isinstance(image, np.ndarray):
        return False
    return hasattr(image, "__cuda_array_interface__") or hasattr(image, "__dlpack__")


class Scorer:
    """A bundle on an engine.

    Threads may share it, processes may not. All their calls share the streams of the engine. Those with several
    pictures share the threads that decode; one picture is decoded by its caller. Close it, or use it as a context
    manager.

    Attributes:
        bundle: What was opened.
        contract: The inputs of the model, and what its score means.
        backend: The engine, with its name, precision and device.
        passed_over: Why "auto" did not take each faster backend.
        input: "views" or "image": what the engine is given.
        batch_size: Pictures in a run of the engine.
        max_pixels: The largest picture that is decoded, width times height.
        memory: Bytes that pictures may take while they are decoded. Each call of `score_files` has so many of its own,
            and with input="image" so has each list of `score_batch`. All other calls share so many.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        *,
        input: GraphKind,
        batch_size: int,
        max_pixels: int,
        memory: int | None = None,
        passed_over: Sequence[str] = (),
    ) -> None:
        self.bundle = bundle
        self.contract: Contract = bundle.contract
        self.backend = backend
        self.batch_size = batch_size
        self.passed_over = tuple(passed_over)
        self.input = input
        self.max_pixels = max_pixels
        self.memory = memory_size() // 2 if memory is None else memory
        self._budget = Budget(self.memory)
        self._process = os.getpid()
        self._closed = False
        self._gate = Gate()  # those that score beside each other, and the one that closes alone
        # Of `score_batch` and `score_views`. A thread starts when it is first needed.
        self._readers = ThreadPoolExecutor(cpu_count(), "scorer-read")
        self._runners = ThreadPoolExecutor(backend.parallel, "scorer-run")

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        backend: str = AUTO,
        input: GraphKind = "views",
        *,
        precision: str | None = None,
        batch_size: int | None = None,
        device: int | Sequence[int] | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        memory: int | None = None,
    ) -> Scorer:
        """Open a bundle.

        Args:
            path: The bundle, NAME.glia.
            backend: A key of `backends.choose.BACKENDS`, or "auto" for the fastest that works here.
            input: "views": the host makes the model's inputs, and pictures of any size share a batch. "image": the
                graph makes them, and the pictures of a batch have one size.
            precision: "fp32", "fp16" or "bf16"; None for the backend's default on this machine.
            batch_size: Pictures in a run of the engine: at most so many for arrays, exactly so many for files. None for
                the backend's default: 4 on a CPU, 32 on a GPU, or what the engine was built for.
            device: The GPU, by index, or several of one type, which share the work. None for the first GPU, or for the
                CPU where there is no GPU.
            max_pixels: The largest picture that is decoded, width times height.
            memory: Bytes that pictures may take while they are decoded; None for half of the machine's, or of the
                container's. Decoding waits for others to end. A picture that is over it is decoded alone.

        Raises:
            BundleError: This is not a bundle, or it is damaged.
            BackendError: The backend cannot be used here. The message says why, and what to install.
            UsageError: There is no such backend, the batch size is below 1, or a device is named twice.
        """
        if input not in ("views", "image"):
            raise UsageError(f'input must be "views" or "image", not {input!r}')
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"batch size must be at least 1, not {batch_size}")
        if memory is not None and memory < 1:
            raise UsageError(f"memory must be at least 1 byte, not {memory}")
        bundle = Bundle.open(path)
        opened, passed_over = open_backends(backend, bundle, BackendOptions(input, precision, batch_size), device)
        return cls(
            bundle,
            opened,
            input=input,
            batch_size=opened.batch_size,
            max_pixels=max_pixels,
            memory=memory,
            passed_over=passed_over,
        )

    @property
    def resolved(self) -> dict[str, Any]:
        """What is written beside scores: the identity of the bundle, and how the scores are computed."""
        return {
            "bundle": self.bundle.path.name,
            "bundle_identity": self.bundle.identity,
            "contract": self.contract.to_dict(),
            "backend": self.backend.name,
            "precision": self.backend.precision,
            "device": self.backend.device_type,
            "input": self.input,
            "batch_size": self.batch_size,
            "max_pixels": self.max_pixels,
            "decoder": decoder(),
            "versions": {"glia_rt": __version__, "backend": self.backend.library, "numpy": np.__version__},
        }

    def score(self, image: ImageSource) -> float:
        """Score one picture.

        Args:
            image: A path, the bytes of an encoded file, an open file, a PIL image, or pixels: uint8 (H, W, 3), RGB, of
                numpy or of any library with DLPack. On a GPU backend also pixels in the GPU's memory, from anything
                with DLPack or `__cuda_array_interface__`: torch, CuPy, PyCUDA; the GPU then makes the views.

        Returns:
            The score, on the model's scale: within rounding of `contract.score.range` for pictures like the training
            set's.

        Raises:
            BadImageError: It cannot be turned into pixels; the message names it and the reason.
            MachineError: The machine failed: it has no memory left, for example, or too many files are open.
            BackendError: The scorer is closed, or the engine failed.
        """
        return float(self.score_batch([image])[0])

    def score_batch(self, images: Iterable[ImageSource]) -> npt.NDArray[np.float32]:
        """Score pictures, as many as there are, on all cores.

        They are decoded in threads, and the engine takes them in batches of `batch_size`. The last batch is as short as
        it is, and is not padded.

        Args:
            images: As `score` takes them; of any sizes. With input="image" those of one size share a run.

        Returns:
            float32 (N,), in order.

        Raises:
            BadImageError: One cannot be turned into pixels. There are no scores then. The message has its path, or its
                number from 0.
            MachineError: The machine failed, as for `score`.
            BackendError: The scorer is closed, or the engine failed.
            UsageError: `images` is one picture, not several; or some are in a GPU's memory and the others are not, or
                the backend does not run there.
        """
        is_one = isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike)) or hasattr(images, "read")
        if is_one or not isinstance(images, Iterable) or getattr(images, "ndim", 4) == 3:
            raise UsageError("score_batch takes a list of pictures; score takes one")
        images = [on_host(image) for image in images]
        with self._scoring():
            if any(is_foreign(image) for image in images):
                return check_finite(self._score_on_gpu(images))
            if len(images) == 1:  # which needs no other thread
                with self._budget.hold() as reserve:
                    inputs = self._inputs(read_image(images[0], max_pixels=self.max_pixels, reserve=reserve))
                return check_finite(self.backend.run(stack([inputs])))
            if self.input == "image":
                return self._score_whole(images)

            def read(numbered: tuple[int, ImageSource]) -> Inputs:
                number, image = numbered
                with self._budget.hold() as reserve, _naming(image, number):
                    return self._inputs(read_image(image, max_pixels=self.max_pixels, reserve=reserve))

            ahead = self.batch_size * self.backend.parallel
            with closing(ordered_map(self._readers, read, enumerate(images), ahead=ahead)) as samples:
                return self._run_each(stack(batch) for batch in _in_batches(samples, self.batch_size))

    def score_views(self, /, **inputs: Any) -> npt.NDArray[np.float32]:
        """Score pictures whose inputs were made elsewhere.

        Args:
            inputs: By name, each of `contract.inputs`: uint8 (N, *shape), RGB; of numpy, or on a GPU backend in the
                GPU's memory, from anything with DLPack or `__cuda_array_interface__`. It is read where it lies.

        Returns:
            float32 (N,), in order. The engine takes arrays of numpy in batches of `batch_size`, on all its streams, and
            arrays in a GPU's memory on one of them.

        Raises:
            UsageError: The scorer was opened with input="image", or these are not the model's inputs.
        """
        if self.input != "views":
            raise UsageError('score_views needs a scorer opened with input="views"')
        shapes = self.contract.shapes("views")
        inputs = {name: on_host(array) for name, array in inputs.items()}
        if set(inputs) != set(shapes):
            raise UsageError(f"score_views takes {', '.join(shapes)} by name, not {', '.join(inputs) or 'nothing'}")
        if wrong := [name for name, array in inputs.items() if not hasattr(array, "shape")]:
            raise UsageError(f"{wrong[0]} is a {type(inputs[wrong[0]]).__name__}; it must be an array")
        counts = {array.shape[0] if len(array.shape) else 0 for array in inputs.values()}
        for name, shape in shapes.items():
            array = inputs[name]
            if tuple(array.shape[1:]) != shape or len(counts) > 1:
                wanted = ", ".join(["N", *map(str, shape)])
                raise UsageError(f"{name} is {tuple(array.shape)}; it must be ({wanted}), N alike for all inputs")
            if is_foreign(array):
                self._require_gpu()
            elif array.dtype != DTYPE:
                raise UsageError(f"{name} is {array.dtype}; inputs are {DTYPE}")
        ordered = {name: inputs[name] for name in shapes}
        [count] = counts
        with self._scoring():
            if count == 0:
                return np.zeros(0, np.float32)
            if count <= self.batch_size or any(is_foreign(array) for array in inputs.values()):
                return check_finite(self.backend.run(ordered))
            return self._run_each(
                {name: array[first : first + self.batch_size] for name, array in ordered.items()}
                for first in range(0, count, self.batch_size)
            )

    def score_files(
        self, paths: Iterable[str | os.PathLike[str]] | Sources, *, workers: int | None = None
    ) -> Generator[Result]:
        """Score files, folders, tar files and Parquet lazily, in order, decoding in threads while the engine runs.

        With input="views" a picture's score is the same to the bit wherever it stands and whatever it travels with:
        every batch has `batch_size` pictures, the last one padded. With input="image" pictures of one size share a
        batch, which is not padded. Close the generator to stop early. `runs.run.score_to_file` does this into a file,
        resumably.

        Args:
            paths: Any iterable of paths, each as `Sources` takes it; or `Sources` itself, which also knows lists,
                columns and shards.
            workers: Decoding threads; None for one per core.

        Yields:
            A result for each picture, in order; status "bad_image" for one that cannot be read, "machine_error" for one
            at which the machine fails, if the next one can be read.

        Raises:
            BackendError: The engine failed.
            MachineError: The machine failed at two pictures in a row, each tried again with nothing else in flight.
            SourceError: What is to be scored has gone.
            UsageError: A pattern matches nothing, or a list or Parquet file is none.
        """
        if isinstance(paths, (str, bytes, os.PathLike)):
            raise UsageError(f"score_files takes a list of paths: give [{paths!r}]")
        listings = [paths] if isinstance(paths, Sources) else (Sources([path]) for path in paths)
        pictures = (picture for listing in listings for picture in listing.pictures())
        return self.score_pictures(pictures, workers=workers)

    def score_pictures(
        self, pictures: Iterable[Picture], *, workers: int | None = None, read_from: Iterable[str] = ()
    ) -> Generator[Result]:
        """Score encoded pictures lazily, in order. This is `score_files` for a stream that a program makes itself.

        It is made for throughput. Pictures are pulled batches ahead, in the thread that asks for results, so no result
        comes while the iterator of pictures blocks. A service that answers one request after the other calls
        `score_batch` instead. To stop early, close the generator in the thread that iterates.

        Args:
            pictures: Paths or bytes, with the names that their results get. They are pulled only as far ahead as the
                engine needs.
            workers: Decoding threads, as in `score_files`; so are results and errors.
            read_from: Folders that an earlier part of this run read pictures from, the last one last. Where such a
                folder has gone, the whole source has gone, and not one file.
        """
        self._require_usable()
        if workers is not None and workers < 1:
            raise UsageError(f"workers must be at least 1, not {workers}")
        return score_stream(
            pictures,
            read=partial(self._read, Trail(read_from)),
            run=self.backend.run,
            batch_size=self.batch_size,
            parallel=self.backend.parallel,
            workers=workers or cpu_count(),
            memory=self.memory,
            whole_pictures=self.input == "image",
            size=lambda picture: len(picture.source) if isinstance(picture.source, bytes) else 0,
        )

    def warm_up(self) -> None:
        """Compile now what calls with any number of pictures need, so that none of them waits for it.

        A service calls this before it takes requests. TensorRT for RTX compiles for each of a few sizes of batch on its
        first start on a GPU; later starts find the result in the user's cache. With input="image" a new size of picture
        may still cost a compilation.

        Raises:
            BackendError: The scorer is closed, or the engine failed.
        """
        with self._scoring():
            self.backend.warm_up()

    def close(self) -> None:
        """Free the engine. Lists that other threads are having scored are finished first.

        Raises:
            UsageError: A signal handler calls it, within a call that scores. Let the handler raise an exception, and
                close the scorer behind that call.
        """
        if self._gate.is_inside():
            raise UsageError("a scorer cannot be closed within its own call, as by a signal handler: close it behind")
        with self._gate.alone():
            self._closed = True
            self._readers.shutdown()
            self._runners.shutdown()
            self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> str:
        raise UsageError("a scorer cannot be sent to another process: open one there")

    def _require_usable(self) -> None:
        if os.getpid() != self._process:
            # The engine's threads stayed in the other process, so a run would never end here.
            raise UsageError("this scorer was opened before the process forked: open one in the process that uses it")
        if self._closed:
            raise BackendError(f"backend {self.backend.name}: closed")

    @contextmanager
    def _scoring(self) -> Iterator[None]:
        """Keep the scorer open while a list is scored, and report what the machine lacks."""
        self._require_usable()
        with self._gate.beside_others(), reported("the pictures"):
            self._require_usable()
            yield

    def _score_whole(self, images: Sequence[ImageSource]) -> npt.NDArray[np.float32]:
        """Return the scores of pictures that go whole into the graph, and hold their memory until they are scored."""

        def read(numbered: tuple[int, ImageSource], reserve: Reserve) -> Sample:
            number, image = numbered
            with _naming(image, number):
                pixels = read_image(image, max_pixels=self.max_pixels, reserve=lambda size: reserve(2 * size))
            height, width, _ = pixels.shape
            return Sample(f"images[{number}]", width, height, self._inputs(pixels))

        scores = []
        with closing(
            score_stream(
                enumerate(images),
                read=read,
                run=self.backend.run,
                batch_size=self.batch_size,
                parallel=self.backend.parallel,
                workers=cpu_count(),
                memory=self.memory,
                whole_pictures=True,
            )
        ) as results:
            for result in results:
                if result.score is None:
                    raise MachineError(str(result.error), result.path)
                scores.append(result.score)
        return np.asarray(scores, np.float32)

    def _read(self, trail: Trail, picture: Picture, reserve: Reserve) -> Found:
        if self.input == "image":  # which holds the pixels, and then once more in a batch

            def reserve_twice(size: int) -> None:
                reserve(2 * size)

            return read_sample(picture, reserve_twice, trail=trail, make=self._inputs, max_pixels=self.max_pixels)
        return read_sample(picture, reserve, trail=trail, make=self._inputs, max_pixels=self.max_pixels)

    def _inputs(self, pixels: Pixels) -> Inputs:
        return {IMAGE: pixels} if self.input == "image" else make_inputs(pixels, self.contract)

    def _score_on_gpu(self, images: Sequence[Any]) -> npt.NDArray[np.float32]:
        backend = self._require_gpu()
        if not all(is_foreign(image) for image in images):
            raise UsageError("some pictures are in a GPU's memory and others are not: score them apart")
        parts = (images[i : i + self.batch_size] for i in range(0, len(images), self.batch_size))
        return np.concatenate([backend.run_images(part) for part in parts])

    def _require_gpu(self) -> GpuBackend:
        from glia_rt.backends.cuda.lanes import GpuBackend
        from glia_rt.backends.several import SeveralBackend

        if isinstance(self.backend, SeveralBackend):
            raise UsageError("several devices take arrays on the host: open a scorer for the device these are on")
        if not isinstance(self.backend, GpuBackend):
            raise UsageError(
                f"backend {self.backend.name} does not run on a GPU and takes numpy arrays: give it numpy.asarray "
                "of a copy on the host"
            )
        return self.backend

    def _run_each(self, batches: Iterable[Inputs]) -> npt.NDArray[np.float32]:
        """Return the scores of batches, which run on all streams of the engine."""
        with closing(ordered_map(self._runners, self.backend.run, batches, ahead=self.backend.parallel)) as scores:
            found = list(scores)
        return check_finite(np.concatenate(found)) if found else np.zeros(0, np.float32)


@contextmanager
def _naming(image: ImageSource, number: int) -> Iterator[None]:
    """Let an error name a picture of a list by its number from 0, unless it has a path."""
    try:
        yield
    except (BadImageError, MachineError) as error:
        if isinstance(image, (str, os.PathLike)):
            raise
        raise type(error)(error.reason, f"images[{number}] ({error.name})") from error


def _in_batches(samples: Iterator[Inputs], size: int) -> Iterator[list[Inputs]]:
    while batch := list(islice(samples, size)):
        yield batch
