"""Tools for tests, of arvid and of strategies written elsewhere: the checkers of cache policies, frequency rules, time
maps, noise priors and samplers, frequencies of a rule, recorded noise, traces, and the masked oracle."""

from .cache import check_cache
from .masked import MaskedAttention
from .noise import check_noise
from .recorded import RecordedNoise, trace
from .rotary import check_rotary, inv_freq
from .sampler import check_sampler
from .time import check_time

__all__ = [
    "MaskedAttention", "RecordedNoise", "check_cache", "check_noise", "check_rotary", "check_sampler", "check_time",
    "inv_freq", "trace",
]
