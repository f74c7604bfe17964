"""arvid: long video from short-horizon autoregressive video diffusion models.

Importing this package loads neither torch nor numpy: each public name loads its module on first use (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arvid import testing as testing
    from arvid.cache import CACHE as CACHE
    from arvid.config import PipelineConfig as PipelineConfig
    from arvid.evaluation.metrics import METRIC as METRIC
    from arvid.lint import lint as lint
    from arvid.noise import NOISE as NOISE
    from arvid.pipeline import Pipeline as Pipeline
    from arvid.plan import plan as plan
    from arvid.positional import ROTARY as ROTARY
    from arvid.positional import TIME as TIME
    from arvid.presets import preset as preset
    from arvid.resumable import resumable as resumable
    from arvid.samplers import SAMPLER as SAMPLER
    from arvid.streams import State as State
    from arvid.video import Video as Video
    from arvid.video import VideoWriter as VideoWriter

__version__ = "0.1.0"

_HOME = {
    "CACHE": "arvid.cache",
    "METRIC": "arvid.evaluation.metrics",
    "NOISE": "arvid.noise",
    "Pipeline": "arvid.pipeline",
    "PipelineConfig": "arvid.config",
    "ROTARY": "arvid.positional",
    "SAMPLER": "arvid.samplers",
    "State": "arvid.streams",
    "TIME": "arvid.positional",
    "Video": "arvid.video",
    "VideoWriter": "arvid.video",
    "preset": "arvid.presets",
    "resumable": "arvid.resumable",
}
_MODULES = ("geometry", "lint", "plan", "presets", "registry", "testing")

__all__ = [
    "CACHE",
    "METRIC",
    "NOISE",
    "ROTARY",
    "SAMPLER",
    "TIME",
    "Pipeline",
    "PipelineConfig",
    "State",
    "Video",
    "VideoWriter",
    "__version__",
    "lint",
    "plan",
    "preset",
    "resumable",
    "testing",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"arvid.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'arvid' has no attribute {name!r}; it has {', '.join(sorted(_public()))}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_public()})


def _public() -> set[str]:
    return {*_HOME, *_MODULES, "__version__"}
