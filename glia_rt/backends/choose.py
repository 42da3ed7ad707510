"""The list of backends, and the choice of one of them."""

from __future__ import annotations

import dataclasses
import pkgutil
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final

from glia_rt.backends.base import Backend, BackendOptions
from glia_rt.backends.several import SeveralBackend
from glia_rt.bundle import Bundle
from glia_rt.errors import BackendError, EngineError, UsageError
from glia_rt.steps import step

# Fastest first. Each value names a module, or an object in one, that has open(bundle, options), unavailable() and
# default_precision().
GPU_BACKENDS: Final = {
    "tensorrt": "glia_rt.backends.cuda.tensorrt:TENSORRT",
    "tensorrt-rtx": "glia_rt.backends.cuda.tensorrt:RTX",
    "onnxruntime-cuda": "glia_rt.backends.cuda.onnxruntime",
}
CPU_BACKENDS: Final = {
    "openvino": "glia_rt.backends.openvino",
    "onnxruntime": "glia_rt.backends.onnxruntime",
}
#: Every backend, fastest first. `auto` takes the first one that works on this machine.
BACKENDS: Final = GPU_BACKENDS | CPU_BACKENDS
AUTO: Final = "auto"


def open_backend(name: str, bundle: Bundle, options: BackendOptions) -> tuple[Backend, list[str]]:
    """Load a bundle's graph into a backend.

    Args:
        name: "auto", or a key of `BACKENDS`. A named backend is never replaced by another one.
        bundle: The bundle to load.
        options: How to open the backend.

    Returns:
        The backend, and for each faster backend the reason why "auto" passed over it.

    Raises:
        BackendError: The named backend cannot be used here, or with "auto" no backend can.
        UsageError: There is no backend of this name.
        BundleError: The bundle's file is not the one that was exported.
        EngineError: The engine of the named backend is missing or cannot be used here.
    """
    if name != AUTO:
        if name not in BACKENDS:
            raise UsageError(f"no backend {name!r}; there are {AUTO}, {', '.join(BACKENDS)}")
        if reason := unavailable(name):
            raise BackendError(f"backend {name}: {reason}")
        with step(f"load {bundle.path.name} into {name}"):
            backend: Backend = _module(name).open(bundle, options)
        return backend, []
    passed_over: list[str] = []
    for candidate in BACKENDS if options.device is None else GPU_BACKENDS:
        reason = unavailable(candidate)
        if reason is None:
            try:
                with step(f"load {bundle.path.name} into {candidate}"):
                    return _module(candidate).open(bundle, options), passed_over
            except (BackendError, EngineError) as error:
                reason = str(error)
        passed_over.append(f"{candidate}: {reason}")
    if options.device is not None:
        passed_over.append("without --device the CPU is taken")
    raise BackendError("no backend works here. " + "; ".join(passed_over))


def open_backends(
    name: str, bundle: Bundle, options: BackendOptions, device: int | Sequence[int] | None
) -> tuple[Backend, list[str]]:
    """Open a backend on each device. The first decides what "auto" and the defaults mean for the others."""
    if device is None:
        return open_backend(name, bundle, options)
    devices = [device] if isinstance(device, int) else list(device)
    if not all(isinstance(d, int) and d >= 0 for d in devices) or not 0 < len(set(devices)) == len(devices):
        raise UsageError(f"device is the number of a GPU, or a list of different ones, as [0, 1], not {device!r}")
    first, passed_over = open_backend(name, bundle, dataclasses.replace(options, device=devices[0]))
    if len(devices) == 1:
        return first, passed_over
    with ExitStack() as stack:
        backends = [first]
        stack.callback(first.close)
        for number in devices[1:]:
            same = dataclasses.replace(options, precision=first.precision, batch_size=first.batch_size, device=number)
            backends.append(open_backend(first.name, bundle, same)[0])
            stack.callback(backends[-1].close)
        several = SeveralBackend(backends)
        stack.pop_all()
    return several, passed_over


def unavailable(name: str) -> str | None:
    """Return why a backend cannot be used on this machine and what to do about it, in words; None if it can."""
    backend = _module(name)
    try:
        reason: str | None = backend.unavailable()
        if reason is None:
            backend.default_precision()  # a package that is installed in half may fail only when it is used
    except Exception as error:  # noqa: BLE001 - code of others, which may raise anything
        return f"its package does not work ({' '.join(str(error).split()) or type(error).__name__}): install it again"
    return reason


def default_precision(name: str) -> str:
    """Return the precision that a backend computes in by default on this machine, for inputs made on the host."""
    return str(_module(name).default_precision())


def _module(name: str) -> Any:
    return pkgutil.resolve_name(BACKENDS[name])
