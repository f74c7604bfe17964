"""Low-rank changes of weights (LoRA, arXiv 2106.09685, section 4.1), as PEFT names them, added to the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping

import torch
from torch import Tensor

from .file_faults import listed
from .names import to_wan

__all__ = ["merge_lora"]

PEFT = "base_model.model."
FACTOR = re.compile(r"(.+)\.lora_([AB])(?:\.([^.]+))?\.weight")


def merge_lora(state: MutableMapping[str, Tensor], lora: Mapping[str, Tensor], rank: int, alpha: float) -> list[str]:
    """Replace weights W of a DiT by W + (alpha / rank) B A (equation 3), and return their names.

    `state` has Wan's names, as `arvid.models.files.load_exactly` gives it; W is [out, in]. `lora` has PEFT's names, of
    either naming, wrapped or not: `base_model.model.NAME.lora_A.weight` [rank, in] and `lora_B.weight` [out, rank],
    with or without the name of the one adapter after `lora_A`. Sums are in float32 at least, then in W's dtype again.
    Raises `ValueError` naming what is not such a pair, meets no weight, has another shape or rank, or is not finite,
    before anything is changed; and for a sum that overflows W's dtype, after which `state` is of no use.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1 or not 0 < abs(alpha) < float("inf"):
        raise ValueError(f"rank={rank!r}, alpha={alpha!r}: give a rank of at least 1 and a finite alpha that is not 0")
    pairs = _pairs(lora)
    if lost := [name for name in pairs if name not in state]:
        raise ValueError(f"the LoRA changes {listed(lost)}, which the weights lack; it belongs to another model")
    shapes = [
        f"{name}: A {tuple(a.shape)}, B {tuple(b.shape)} for {tuple(state[name].shape)}"
        for name, (a, b) in pairs.items()
        if state[name].ndim != 2 or a.shape != (rank, state[name].shape[1]) or b.shape != (state[name].shape[0], rank)
    ]
    if shapes:
        raise ValueError(f"LoRA factors of rank {rank} do not fit their weights: {listed(shapes)}")
    if bad := [name for name, (a, b) in pairs.items() if not (a.isfinite().all() and b.isfinite().all())]:
        raise ValueError(f"the LoRA for {listed(bad)} has values that are not finite")
    for name, (a, b) in pairs.items():
        merged = _merged(state[name], a, b, alpha / rank)
        if not merged.isfinite().all():
            raise ValueError(f"with the LoRA, {name} is not finite in {merged.dtype}; some weights are changed already")
        state[name] = merged
    return list(pairs)


def _merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    wide = torch.promote_types(weight.dtype, torch.float32)
    a, b = a.to(weight.device, wide), b.to(weight.device, wide)
    return torch.addmm(weight.to(wide), b, a, alpha=scale).to(weight.dtype)


def _pairs(lora: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """The factors (A, B) of each weight, by Wan's name for it."""
    found = {name: FACTOR.fullmatch(name.removeprefix(PEFT)) for name in lora}
    if strange := [name for name, m in found.items() if m is None]:
        raise ValueError(f"not LoRA factors under PEFT's names: {listed(strange)}")
    factors = {name: m for name, m in found.items() if m}
    adapters = [*map(str, {m[3] for m in factors.values()})]
    if len(adapters) != 1:
        raise ValueError(f"a LoRA file needs factors of one adapter; this has {listed(adapters) or 'none'}")
    wan = to_wan("dit", dict.fromkeys(f"{m[1]}.weight" for m in factors.values()))
    sides: dict[str, list[tuple[str, str]]] = {}
    for name, m in factors.items():
        sides.setdefault(wan[f"{m[1]}.weight"], []).append((m[2], name))
    if wrong := [name for name, pair in sides.items() if sorted(side for side, _ in pair) != ["A", "B"]]:
        raise ValueError(f"not one factor A and one B for {listed(wrong)}; get the file again")
    return {name: (lora[dict(pair)["A"]], lora[dict(pair)["B"]]) for name, pair in sides.items()}
