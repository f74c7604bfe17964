"""Noise priors: how the Gaussian draws of a chunk's frames depend on each other."""

from .ans import ANS
from .base import (
    APPLY_TO,
    NOISE,
    ChunkLike,
    Domain,
    Floats,
    Key,
    Kind,
    NoisePrior,
    Recipe,
    Scope,
    Source,
    Span,
    gaussian,
    seeds,
)
from .constant import Constant
from .freenoise import FreeNoise
from .grouped import Grouped
from .iid import IID
from .mixed import Mixed
from .progressive import Progressive
from .repeat import Repeat

__all__ = [
    "ANS", "APPLY_TO", "IID", "NOISE", "ChunkLike", "Constant", "Domain", "Floats", "FreeNoise", "Grouped", "Key",
    "Kind", "Mixed", "NoisePrior", "Progressive", "Recipe", "Repeat", "Scope", "Source", "Span", "gaussian", "seeds",
]
