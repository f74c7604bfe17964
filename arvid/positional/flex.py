from __future__ import annotations

from dataclasses import dataclass

from .base import ROTARY
from .ntk_by_parts import NTKByParts


@ROTARY.register("flex")
@dataclass(frozen=True)
class Flex(NTKByParts):
    """FLEX's frequency-aware modulation: ntk_by_parts with thresholds for models trained on few frames.

    arXiv 2602.14027, eq. 6 to 9. Of 22 planes trained on 21 frames the first is kept, 8 are blended and 13 divided by
    S. For LongLive, trained on 240 frames, the paper sets alpha 1 and beta 15.
    """

    alpha: float = 0.1
    beta: float = 2.5
