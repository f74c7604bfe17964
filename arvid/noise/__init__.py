"""Noise priors: how the Gaussian draws of a chunk's frames depend on each other."""

from .ans import ANS
from .base import (
    APPLY_TO,
    NOISE,
    ChunkLike,
    Domain,
    Key,
    Kind,
    NoisePrior,
    Recipe,
    Source,
    Span,
    gaussian,
    seeds,
)
from .iid import IID

__all__ = [
    "ANS", "APPLY_TO", "IID", "NOISE", "ChunkLike", "Domain", "Key", "Kind", "NoisePrior", "Recipe", "Source", "Span",
    "gaussian", "seeds",
]
