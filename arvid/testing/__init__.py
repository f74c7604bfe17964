"""Tools for tests, of arvid and of strategies written elsewhere: the checkers of cache policies and of time maps,
recorded noise, traces, and the masked oracle."""

from .cache import check_cache
from .masked import MaskedAttention
from .recorded import RecordedNoise, trace
from .time import check_time

__all__ = ["MaskedAttention", "RecordedNoise", "check_cache", "check_time", "trace"]
