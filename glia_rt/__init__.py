"""glia-rt: image quality scores from a bundle, without torch.

from glia_rt import Scorer

with Scorer.open("model.glia") as scorer:
    print(scorer.score("photo.jpg"))
"""

from glia_rt.contract import Contract
from glia_rt.errors import GliaError
from glia_rt.results import Result
from glia_rt.scorer import Scorer
from glia_rt.versions import __version__

__all__ = ["Contract", "GliaError", "Result", "Scorer", "__version__"]
