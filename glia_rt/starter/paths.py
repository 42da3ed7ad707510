"""Where the starter lies, and the name that stands for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from glia_rt.errors import BundleError

#: The name that stands for the shipped model. A file or folder of this name goes before it.
STARTER: Final = "starter"
FOLDER: Final = Path(__file__).parent
BUNDLE: Final = FOLDER / "starter.glia"
CHECKPOINT: Final = FOLDER / "checkpoint.pt"
#: What its bundles say of it, for their manifests.
CARD: Final = FOLDER / "card.json"


def resolve_bundle(path: str | os.PathLike[str]) -> Path:
    """Return the path of a bundle that is named by its path or as the starter."""
    return BUNDLE if _is_name(path) else Path(path)


def resolve_checkpoint(path: str | os.PathLike[str]) -> Path:
    """Return the path of a checkpoint that is named by its path or as the starter."""
    return CHECKPOINT if _is_name(path) else Path(path)


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """Return whether a path, or the starter, is a bundle, which is a folder, and not a checkpoint, which is a file.

    Raises:
        BundleError: There is nothing of this name.
    """
    resolved = resolve_bundle(path)
    if not resolved.exists():
        raise BundleError(f"{os.fspath(path)}: no such bundle or checkpoint")
    return resolved.is_dir()


def _is_name(path: str | os.PathLike[str]) -> bool:
    return os.fspath(path) == STARTER and not os.path.lexists(STARTER)
