"""The model that glia-rt ships: a small GLIANet, trained on human ratings of photographs.

In: the name "starter", where a bundle or a checkpoint is asked for. Out: the path of the one in this folder.
`starter.glia` is the bundle, without the FP16 graphs and with `checkpoint.pt` beside it. NOTICE says what they come
from, and docs/starter.md how good they are.

Other folders use: everything here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

#: The name that stands for the shipped model. A file or folder of this name goes before it.
NAME: Final = "starter"
FOLDER: Final = Path(__file__).parent
BUNDLE: Final = FOLDER / "starter.glia"
CHECKPOINT: Final = FOLDER / "checkpoint.pt"


def bundle_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a bundle that is named by its path or as the starter."""
    return BUNDLE if _is_name(path) else Path(path)


def checkpoint_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a checkpoint that is named by its path or as the starter."""
    return CHECKPOINT if _is_name(path) else Path(path)


def _is_name(path: str | os.PathLike[str]) -> bool:
    return os.fspath(path) == NAME and not os.path.lexists(NAME)
