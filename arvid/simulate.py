"""The passes of a rollout and what each sees of its history, from a configuration alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

from arvid.cache.base import Chunk, Group, Kind, Pass, Plan, Ref, Role, after_commit, make_plan
from arvid.geometry import chunk_layout

if TYPE_CHECKING:
    from arvid.config import PipelineConfig
    from arvid.models.specs import Card

__all__ = ["FLYING", "ROLES", "Seen", "Slot", "views"]

FLYING = "in flight"
ROLES = (*get_args(Role), FLYING)

Slot = tuple[int, float]
"""A frame, and the time it is seen at."""


@dataclass(frozen=True)
class Seen:
    """Consecutive passes of a lane over the same frames that see the same.

    `kind` is "denoise", "commit", or "both" where a commit sees what the passes before it saw. `step` counts the lane's
    commits before them: the chunk, with samplers that denoise one at a time. `held` frames are held once they are done.
    """

    kind: str
    chunks: tuple[Chunk, ...]
    plan: Plan
    lane: int
    step: int
    held: int

    @property
    def group(self) -> Group:
        """What is seen."""
        return self.plan.groups[0]

    @property
    def frames(self) -> range:
        """The frames in flight."""
        return range(self.chunks[0].start, self.chunks[-1].end)

    @property
    def visible(self) -> int:
        """Frames' worth of tokens seen, those in flight included."""
        return self.group.visible + len(self.group.queries)

    def slots(self, role: str) -> list[Slot]:
        """What is seen in a role, sorted by time."""
        if role == FLYING:
            return [*zip(self.frames, self.group.times, strict=True)]
        refs = zip(self.group.refs, self.group.ref_times, strict=True)
        slots = [(ref.frame, time) for ref, time in refs if ref.role == role]
        return sorted(slots, key=lambda slot: (slot[1], slot[0]))


def views(config: PipelineConfig, frames: int, card: Card | None = None) -> list[Seen]:
    """The passes of a rollout of `frames` latent frames under one prompt, in order, all lanes.

    The passes are those of the sampler's own trace, the plans those of `make_plan`. Raises `ValueError` for fewer than
    1 frame, and for what neither `config` nor `card` says.
    """
    from arvid.testing import trace  # which needs torch

    config = config.resolve(card)
    cache, time, sampler, chunk = config.cache, config.time, config.sampler, config.chunk
    assert cache and time and sampler and chunk
    _, layout = chunk_layout(frames, chunk)
    chunks = [Chunk(start, n, index=i) for i, (start, n) in enumerate(layout)]
    held: dict[int, tuple[Ref, ...]] = dict.fromkeys(range(sampler.lanes), ())
    step, last, seen = dict.fromkeys(held, 0), dict[int, int](), list[Seen]()
    for kind, flying, lane in trace(sampler, chunks):
        if kind == "emit":
            continue
        new = Pass(Kind(kind), flying, lane)
        plan = make_plan(cache, time, held[lane], new)
        if new.kind is Kind.COMMIT:
            held[lane] = after_commit(cache, held[lane], new)
        same = seen[last[lane]] if lane in last else None
        if same and same.plan.groups == plan.groups and same.frames == new.frames:
            seen[last[lane]] = replace(same, kind=kind if kind == same.kind else "both", held=len(held[lane]))
        else:
            last[lane] = len(seen)
            seen.append(Seen(kind, flying, plan, lane, step[lane], len(held[lane])))
        step[lane] += new.kind is Kind.COMMIT
    return seen
