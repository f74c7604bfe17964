"""Networks of Wan's design, their cards, and the denoiser that runs them over a store. Names load on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .denoiser import CachedDenoiser as CachedDenoiser
    from .dit import CausalDiT as CausalDiT
    from .dit import TextKV as TextKV
    from .names import load_text_encoder_state as load_text_encoder_state
    from .specs import CARDS as CARDS
    from .specs import Card as Card
    from .specs import DiTSpec as DiTSpec
    from .specs import TextSpec as TextSpec
    from .specs import VAESpec as VAESpec
    from .specs import card as card
    from .text import TextEncoder as TextEncoder
    from .vae import WanVAE as WanVAE
    from .vae_stream import DecodeStream as DecodeStream
    from .vae_stream import EncodeStream as EncodeStream

_HOME = {
    "CARDS": "specs", "CachedDenoiser": "denoiser", "Card": "specs", "CausalDiT": "dit", "DecodeStream": "vae_stream",
    "DiTSpec": "specs", "EncodeStream": "vae_stream", "TextEncoder": "text", "TextKV": "dit", "TextSpec": "specs",
    "VAESpec": "specs", "WanVAE": "vae", "card": "specs",
    "load_text_encoder_state": "names",
}  # fmt: skip
__all__ = list(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'arvid.models' has no attribute {name!r}; it has {', '.join(_HOME)}")
    return getattr(import_module(f"arvid.models.{_HOME[name]}"), name)
