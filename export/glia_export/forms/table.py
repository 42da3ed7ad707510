"""The table of the families' rewriting, and the function that applies it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Final

from glia_export.forms.backbones import rewrite_backbone
from glia_export.forms.glianet import pack_glia_blocks
from glia_train.models.base import Model
from glia_train.models.glianet import GLIANet

#: The function that rewrites a family's own modules in place, by the family's name. A family without an entry keeps its
#: modules as they are.
FORMS: Final[Mapping[str, Callable[[Model], None]]] = {GLIANet.family: pack_glia_blocks}


def export_form(model: Model) -> Model:
    """Return a copy of the model to trace, in eval mode. It computes the same."""
    form = copy.deepcopy(model)
    rewrite_backbone(form)
    if form.family in FORMS:
        FORMS[form.family](form)
    return form.eval()
