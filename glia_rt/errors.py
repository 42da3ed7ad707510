"""Every error glia-rt raises on purpose, and the exit status each one stands for.

The message of a `GliaError` says what is wrong and what to do about it. `glia_rt.cli.main.main` prints it as one line
on stderr, and exits with `exit_status`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from glia_rt.versions import install_command


class GliaError(Exception):
    """Base of all errors raised on purpose."""

    exit_status: ClassVar[int] = 1


class UsageError(GliaError, ValueError):
    """An argument, an option or an input file, for example a CSV of labels, is not what was asked for."""

    exit_status = 2


class OutputExistsError(UsageError):
    """The output is there already and overwriting was not asked for."""


class SourceError(GliaError):
    """What is to be scored has gone, or cannot be read any more."""


class BadImageError(GliaError):
    """A picture cannot be turned into RGB pixels; the message names it and the reason.

    Attributes:
        reason: The message without the picture's name.
        name: The picture's name, None if it has none.
    """

    exit_status = 3

    def __init__(self, reason: str, name: str | None = None) -> None:
        super().__init__(reason if name is None else f"{name}: {reason}")
        self.reason = reason
        self.name = name


class MachineError(GliaError):
    """The machine failed while a picture was read, so that nothing is known of the picture: see `glia_rt.faults`.

    Attributes:
        reason: The message without the picture's name.
        name: The picture's name.
    """

    def __init__(self, reason: str, name: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.reason = reason
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.name)  # errors cross processes, for example on a Ray cluster


class ParityError(GliaError):
    """Scores differ from the reference by more than the limit.

    Attributes:
        rows: The comparisons that were made, passed ones too: each a `glia_rt.verify.Parity`.
    """

    exit_status = 4

    def __init__(self, message: str, rows: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.rows = tuple(rows)


class BundleError(GliaError):
    """A checkpoint, bundle or engine is missing, damaged, or of another version."""

    exit_status = 5


class EngineError(BundleError):
    """A TensorRT engine is missing, damaged, or not for this bundle, library or GPU."""


class BackendError(GliaError):
    """An inference engine cannot be used here, or failed."""

    exit_status = 6


class MissingPackageError(BackendError):
    """A package of an extra is not installed; the message is the command that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: {install_command(extra)}")
        self.package = package
        self.extra = extra

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.package, self.extra)  # errors cross processes, for example on a Ray cluster
