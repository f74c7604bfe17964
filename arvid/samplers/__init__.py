"""The order in which chunks and noise levels are denoised and committed."""

from .base import SAMPLER, Denoiser, Emit, NoiseSource, Sampler
from .diffusion_forcing import DiffusionForcing
from .few_step import FewStep
from .hierarchical import Hierarchical
from .multistep import Multistep
from .rolling_forcing import RollingForcing
from .schedule import shift_sigma, unshift_sigma, warp

__all__ = [
    "SAMPLER", "Denoiser", "DiffusionForcing", "Emit", "FewStep", "Hierarchical", "Multistep", "NoiseSource",
    "RollingForcing", "Sampler", "shift_sigma", "unshift_sigma", "warp",
]
