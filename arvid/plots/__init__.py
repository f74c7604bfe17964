"""Pictures of what a configuration does, computed on the host; matplotlib is loaded when one is drawn."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from arvid.video import check_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from arvid.models.specs import Card

__all__ = ["blank", "check_png", "length", "save_png"]


def blank(width: float, height: float) -> Figure:
    """An empty figure of so many inches, no part of pyplot's state. Raises `RuntimeError` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise RuntimeError(f"pictures need matplotlib ({error}): pip install 'arvid[plots]'") from error
    return Figure((width, height), layout="constrained")


def length(frames: int, card: Card) -> str:
    """Latent frames and what they are in seconds, as text."""
    return f"{frames} latent frames ({frames * card.vae.time_stride / card.fps:.4g} s)"


def check_png(path: str | os.PathLike[str]) -> Path:
    """The path, once a picture can be saved there. Raises `ValueError` unless it ends in .png, and as
    `arvid.video.check_output`."""
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"cannot save {str(path)!r}: the name must end in .png")
    return check_output(path)


def save_png(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure and return its path. The file appears when it is complete, replacing an older one. Raises as
    `check_png`."""
    path = check_png(path)
    unfinished = path.parent / f".arvid-{uuid4().hex}.png"  # in the same folder, so that the replacement is atomic
    try:
        figure.savefig(unfinished, dpi=150)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path
