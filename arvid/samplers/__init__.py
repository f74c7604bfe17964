"""The order in which chunks and noise levels are denoised and committed."""

from .base import SAMPLER, Denoiser, Emit, NoiseSource, Sampler
from .few_step import FewStep
from .schedule import shift_sigma, unshift_sigma, warp

__all__ = ["SAMPLER", "Denoiser", "Emit", "FewStep", "NoiseSource", "Sampler", "shift_sigma", "unshift_sigma", "warp"]
