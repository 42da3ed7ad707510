"""KADID-10k: 81 photographs, each distorted in 25 ways at five levels.

    ROOT/dmos.csv            dist_img,ref_img,dmos,var
    ROOT/images/I01.png      a photograph
    ROOT/images/I01_04_05.png    the same, distorted by distortion 4 at level 5

Source: Lin, Hosu and Saupe, "KADID-10k: A Large-scale Artificially Distorted IQA Database", QoMEX 2019. Its column is
called dmos, but it rises with quality.

`glia_train.synthetic` writes folders in this layout, too. Their labels come from a metric, and the name of the dataset
says so.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

from glia_rt.errors import UsageError
from glia_train.datasets.base import Dataset, FolderFiles, LabelledPicture, require_layout, require_scores
from glia_train.datasets.tables import read_rows

NAME: Final = "kadid10k"
TITLE: Final = "KADID-10k"
LABELS: Final = "dmos.csv"
IMAGES: Final = "images"
COLUMNS: Final = ("dist_img", "ref_img", "dmos", "var")
SCORE_RANGE: Final = (1.0, 5.0)
#: The record of a folder that `glia-rt data distort` wrote. KADID-10k has none.
RECORD: Final = "distort.json"

_NAME: Final = re.compile(r"[^/\\]+_(?P<distortion>\d\d)_(?P<level>\d\d)\.\w+", re.ASCII)


def read(root: Path) -> Dataset:
    """Return the rows of a folder in KADID-10k's layout. Whether the pictures are there is not looked at.

    Raises:
        UsageError: The folder is not in this layout. The message says what was expected where.
    """
    from glia_train.distortions import DISTORTIONS, LEVELS

    names = {distortion.number: distortion.name for distortion in DISTORTIONS.values()}
    metric = _metric(root)
    require_layout(root, TITLE, [LABELS, f"{IMAGES}/"])
    files = FolderFiles(root / IMAGES)
    pictures = []
    seen: dict[str, int] = {}
    for row in read_rows(root / LABELS, COLUMNS[:3], f"{TITLE}'s has {','.join(COLUMNS)}"):
        name, reference = row.text("dist_img"), row.text("ref_img")
        parts = _NAME.fullmatch(name)
        if parts is None or int(parts["distortion"]) not in names or not 1 <= int(parts["level"]) <= LEVELS:
            raise UsageError(
                f"{row.where}: {name[:60]!r} is not named REFERENCE_DISTORTION_LEVEL, as I01_04_05.png is, with "
                f"distortions 01 to {len(names):02} and levels 01 to {LEVELS:02}"
            )
        if (first := seen.setdefault(name.lower(), row.line)) != row.line:
            raise UsageError(f"{row.where}: {name} is in line {first} already")
        pictures.append(
            LabelledPicture(
                f"{IMAGES}/{name}",
                files.find(name),
                row.number("dmos"),
                reference=reference,
                distortion=names[int(parts["distortion"])],
            )
        )
    require_scores(f"{root / LABELS}", pictures, SCORE_RANGE)
    return Dataset(NAME if metric is None else f"{NAME} layout, {metric} labels", tuple(pictures), SCORE_RANGE)


def _metric(root: Path) -> str | None:
    """Return the metric that labelled a folder of `glia-rt data distort`; None for KADID-10k itself.

    Raises:
        UsageError: The folder has no labels, or its record cannot be read.
    """
    path = root / RECORD
    if not path.is_file():
        return None
    try:
        metric = json.loads(path.read_text(encoding="utf-8"))["metric"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not a record of `glia-rt data distort`; remove it if it is another file") from error
    if metric is None:
        raise UsageError(
            f"{root}: these pictures were distorted and not labelled: "
            "give --metric to `glia-rt data distort`, or a CSV of scores"
        )
    return str(metric)
