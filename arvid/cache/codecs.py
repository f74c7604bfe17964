"""How pages of keys and values are stored: as they are, or as code words of one byte with scales that groups share.

Code words are made once, when a page is written. Pages move, and are saved and restored, as code words, so that nothing
is rounded twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from .base import CODECS

__all__ = ["Codec", "Exact", "Fp8", "Int8", "Pages", "codecs"]

DIMS = tuple(range(5))  # of what is encoded: [B, F, tokens, h, d]


class Codec(ABC):
    """From [B, F, tokens, h, d] to code words and back. Neither way waits for the device."""

    @property
    @abstractmethod
    def layout(self) -> tuple[tuple[torch.dtype, tuple[int, ...]], ...]:
        """The code tensors, each as (dtype, dimensions of what is encoded that it keeps; the others have size 1)."""

    @abstractmethod
    def encode(self, x_BFNhd: Tensor) -> tuple[Tensor, ...]:
        """The code tensors of `x_BFNhd`."""

    @abstractmethod
    def decode(self, codes: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """[B, F, tokens, h, d] in `dtype`, from what `encode` gave."""


@dataclass(frozen=True)
class Exact(Codec):
    """Numbers as they are, rounded to `dtype` at most."""

    dtype: torch.dtype

    @property
    def layout(self) -> tuple[tuple[torch.dtype, tuple[int, ...]], ...]:
        return ((self.dtype, DIMS),)

    def encode(self, x_BFNhd: Tensor) -> tuple[Tensor, ...]:
        return (x_BFNhd.to(self.dtype),)

    def decode(self, codes: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        return codes[0].to(dtype)


class Scaled(Codec):
    """One byte a number, times a float32 scale that a group shares: the group's largest magnitude / `top`.

    A scale that float32 cannot hold in full precision is 0, and its group, magnitudes below 1e-35, decodes to 0. A
    group with a number that is not finite, or beyond float32, decodes to NaN throughout, whichever number it was.

    What was decoded to the dtype it had encodes to the same code words again. Decoded to a coarser one, the scale is
    rounded with the largest number, and int8 words may then differ by 1.
    """

    byte: ClassVar[torch.dtype]
    top: ClassVar[float]

    @property
    @abstractmethod
    def over(self) -> tuple[int, ...]:
        """The dimensions of [B, F, tokens, h, d] along which a group extends."""

    @property
    def layout(self) -> tuple[tuple[torch.dtype, tuple[int, ...]], ...]:
        return (self.byte, DIMS), (torch.float32, tuple(dim for dim in DIMS if dim not in self.over))

    def encode(self, x_BFNhd: Tensor) -> tuple[Tensor, ...]:
        x = x_BFNhd.float()
        scale = x.abs().amax(self.over, keepdim=True) / self.top
        # Infinite scales would do, were what NaN is as a whole number the same everywhere.
        scale = scale.masked_fill(scale < torch.finfo(scale.dtype).tiny, 0).masked_fill(scale.isinf(), torch.nan)
        words = x / scale.masked_fill(scale == 0, 1)
        return (words if self.byte.is_floating_point else words.round()).to(self.byte), scale

    def decode(self, codes: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        words, scale = codes
        return (words.to(dtype) * scale).to(dtype)  # words are exact in any dtype, products at least float32


@dataclass(frozen=True)
class Int8(Scaled):
    """Whole numbers -127 .. 127: off by at most half a scale, before rounding to the dtype decoded to.

    A scale is shared by the tokens of a page, for each channel of each head, or by the channels, for each token of each
    head. Raises `ValueError` for anything else. Keys have outliers in channels that stay the same from token to token
    until they are rotated, so theirs is shared by tokens; values have none, so theirs is shared by channels (KIVI,
    arXiv 2402.02750, and KVQuant, arXiv 2401.18079; here symmetric).
    """

    byte: ClassVar[torch.dtype] = torch.int8
    top: ClassVar[float] = 127
    shared: Literal["tokens", "channels"]

    def __post_init__(self) -> None:
        if self.shared not in ("tokens", "channels"):
            raise ValueError(f"shared={self.shared!r}: a scale is shared by 'tokens' or by 'channels'")

    @property
    def over(self) -> tuple[int, ...]:
        return (2,) if self.shared == "tokens" else (4,)


@dataclass(frozen=True)
class Fp8(Scaled):
    """Floats of four exponent and three mantissa bits (arXiv 2209.05433), a scale for each page and head: off by at
    most 2^-4 of the number, or 2^-10 of the scale where that is more, before rounding to the dtype decoded to."""

    byte: ClassVar[torch.dtype] = torch.float8_e4m3fn
    top: ClassVar[float] = 448

    @property
    def over(self) -> tuple[int, ...]:
        return 2, 4


def codecs(name: str | None, dtype: torch.dtype) -> tuple[Codec, Codec]:
    """The codecs of keys, unrotated in time, and of values; None stores `dtype`. Raises `ValueError` for an unknown
    name."""
    known: dict[str | None, tuple[Codec, Codec]] = {
        None: (Exact(dtype), Exact(dtype)),
        "bf16": (Exact(torch.bfloat16), Exact(torch.bfloat16)),
        "int8": (Int8("tokens"), Int8("channels")),
        "fp8": (Fp8(), Fp8()),
    }
    if name not in known:
        raise ValueError(f"no codec is called {name!r}: pages are stored as {', '.join(CODECS)}, or None for the "
                         "model's dtype")
    return known[name]


class Pages:
    """Frames of one layer's keys, or values, as a codec stores them: logically [B, pages, tokens, h, d].

    An `index` is a slice of pages, or a tensor of their numbers. New pages are zero.
    """

    def __init__(
        self, codec: Codec, batch: int, tokens: int, heads: int, dim: int, count: int, device: torch.device | str
    ) -> None:
        self.codec, size = codec, (batch, count, tokens, heads, dim)
        self.codes = tuple(
            torch.zeros([n if i in kept else 1 for i, n in enumerate(size)], dtype=dtype, device=device)
            for dtype, kept in codec.layout
        )

    @property
    def count(self) -> int:
        """Pages allocated."""
        return self.codes[0].shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all code tensors."""
        return sum(code.nbytes for code in self.codes)

    def grow(self, more: int) -> None:
        """Append `more` zero pages."""
        self.codes = tuple(
            torch.cat((code, code.new_zeros(len(code), more, *code.shape[2:])), 1) for code in self.codes)

    def write(self, index: slice | Tensor, x_BFNhd: Tensor) -> None:
        """Encode `x_BFNhd` into these pages, in place. Raises `ValueError` for another shape."""
        self.put(index, self.codec.encode(x_BFNhd))

    def read(self, index: slice | Tensor, dtype: torch.dtype) -> Tensor:
        """These pages decoded, [B, F, tokens, h, d]; a view for a slice of an exact codec's of that dtype."""
        return self.codec.decode(self.raw(index), dtype)

    def raw(self, index: slice | Tensor) -> tuple[Tensor, ...]:
        """The code words of these pages: views for a slice, copies for a tensor."""
        return tuple(code[:, index] for code in self.codes)

    def put(self, index: slice | Tensor, codes: Sequence[Tensor]) -> None:
        """Write code words, as `raw` gives them, bit by bit. Raises `ValueError` for other shapes or dtypes."""
        pages = len(range(*index.indices(self.count))) if isinstance(index, slice) else len(index)
        wanted = [((len(own), pages, *own.shape[2:]), own.dtype) for own in self.codes]
        if (got := [(tuple(code.shape), code.dtype) for code in codes]) != wanted:
            raise ValueError(f"{pages} pages of {self.codec} take code words {wanted}, got {got}")
        for own, code in zip(self.codes, codes, strict=True):
            own[:, index] = code
