"""Tools for tests, of arvid and of strategies written elsewhere: the checker of cache policies, recorded noise, traces,
and the masked oracle."""

from .cache import check_cache
from .masked import MaskedAttention
from .recorded import RecordedNoise, trace

__all__ = ["MaskedAttention", "RecordedNoise", "check_cache", "trace"]
