"""Embeddings of prompts that were encoded beforehand, and an encoder that is in memory only while it encodes.

Both stand where a `TextEncoder` does in a pipeline: they have `encode`. umT5-XXL takes 11 GB in bfloat16.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from .file_faults import listed
from .files import WIDE, open_tensors
from .names import to_wan
from .text import TextEncoder, key_of
from .writing import write_safetensors

__all__ = ["Embeddings", "FreedEncoder", "encoder_hash"]

FORMAT = "arvid prompt embeddings 1"
SAMPLE = 1024


class Embeddings:
    """Embeddings by cleaned prompt, made by `arvid encode`: for every prompt the rows [tokens, D] of its tokens.

    `encoder` is the hash of the encoder they come from, `length` the rows of `text_BLD`, zero past the last token.
    """

    def __init__(self, rows: Mapping[str, Tensor], encoder: str, length: int, grammar: str | None, source: str) -> None:
        self.rows, self.encoder, self.length, self.grammar, self.source = dict(rows), encoder, length, grammar, source

    @classmethod
    def of(cls, text: TextEncoder, prompts: Sequence[str], encoder: str) -> Embeddings:
        """Encode prompts, one at a time; raises as `TextEncoder.encode`."""
        rows = {}
        for prompt in prompts:
            count = int(text.tokenize([prompt])[1].sum())
            rows[key_of(prompt, text.grammar)] = text.encode([prompt])[0, :count].cpu()
        return cls(rows, encoder, text.length, text.grammar, "these embeddings")

    @classmethod
    def read(cls, path: str | Path) -> Embeddings:
        """The embeddings of a file. Raises `FileNotFoundError`, and `ValueError` for a file of another kind."""
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"no embeddings at {path}; make them with `arvid encode PROMPT -o FILE`")
        if path.suffix != ".safetensors":
            raise ValueError(f"{path} is no .safetensors file; give one of `arvid encode PROMPT -o FILE.safetensors`")
        with open_tensors(path) as tensors:
            narrow = [name for name in tensors.names if tensors.dtype(name) not in WIDE]
            rows = [tensors[name].clone() for name in sorted(tensors.names, key=lambda name: (len(name), name))]
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
        if about.get("format") != FORMAT:
            raise ValueError(f"{path} holds no embeddings of prompts; make them with `arvid encode PROMPT -o FILE`")
        try:
            prompts, length, grammar = (json.loads(about[key]) for key in ("prompts", "length", "grammar"))
            named = dict(zip(prompts, rows, strict=True))
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"{path} contradicts itself; make it again: {error}") from error
        texts = [*named, "" if grammar is None else grammar]
        if narrow or len(named) < len(rows) or type(length) is not int or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"{path} contradicts itself; make it again: it needs one prompt for each row, a number of "
                             "rows, and floating point")
        widths = {row.shape[1:] for row in rows}
        if any(row.ndim != 2 or not 0 < len(row) <= length for row in rows) or len(widths) != 1:
            raise ValueError(f"{path} contradicts itself; make it again: rows are [tokens, D], at most {length} tokens")
        if bad := [prompt for prompt, row in named.items() if not row.isfinite().all()]:
            raise ValueError(f"{path}: {listed([*map(repr, bad)])} with values that are not finite; make it again")
        return cls(named, about.get("encoder", ""), length, grammar, str(path))

    def write(self, path: str | Path) -> None:
        """Write what `read` reads, under a temporary name and then renamed."""
        about = {"format": FORMAT, "encoder": self.encoder, "length": json.dumps(self.length),
                 "grammar": json.dumps(self.grammar), "prompts": json.dumps([*self.rows])}  # fmt: skip
        rows = {str(i): row for i, row in enumerate(self.rows.values())}
        write_safetensors(path, {name: (row.dtype, tuple(row.shape)) for name, row in rows.items()},
                          rows.__getitem__, about)  # fmt: skip

    def merged(self, other: Embeddings) -> Embeddings:
        """Those of `other` too, and instead where both have a prompt. Raises `ValueError` for another encoder's."""
        if (self.encoder, self.length) != (other.encoder, other.length):
            raise ValueError(f"{self.source} is of another encoder ({self.encoder[:12]}, here {other.encoder[:12]}); "
                             "write to another file, or delete it")
        return Embeddings(self.rows | other.rows, self.encoder, self.length, self.grammar, self.source)

    def check(self, encoder: str | None, length: int, dim: int) -> None:
        """Raise `ValueError` unless they are of this encoder (None: it is not there) and of these sizes."""
        if encoder is not None and encoder != self.encoder:
            raise ValueError(f"{self.source} was encoded with another text encoder ({self.encoder[:12]}, the model's "
                             f"is {encoder[:12]}); encode the prompts again with `arvid encode --model`")
        widths = {row.shape[1] for row in self.rows.values()}
        if widths != {dim} or self.length != length:
            raise ValueError(f"{self.source} has {self.length} rows of width {listed([*map(str, widths)])} a prompt, "
                             f"the model reads {length} of width {dim}: it is of another model")

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """`text_BLD` of prompts, on the CPU. Raises `ValueError` naming those that are not there."""
        keys = [key_of(prompt, self.grammar) for prompt in prompts]
        if lost := [prompt for prompt, key in zip(prompts, keys, strict=True) if key not in self.rows]:
            raise ValueError(f"{self.source} has no embedding of {listed([*map(repr, lost)])}; it has "
                             f"{listed([*map(repr, self.rows)])}; add it with `arvid encode`")
        return padded([self.rows[key] for key in keys], self.length)


class FreedEncoder:
    """A text encoder that `load` reads when a prompt is new, and that is freed as soon as prompts are encoded."""

    def __init__(self, load: Callable[[], TextEncoder]) -> None:
        self.load = load
        self.known: dict[str, Tensor] = {}

    def remember(self, prompts: Iterable[str]) -> None:
        """Encode those of the prompts that are new, with the encoder in memory once."""
        if not (new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]):
            return
        text = self.load()
        _, mask_BL = text.tokenize(new)  # every prompt is checked before the first is encoded
        for prompt, count in zip(new, mask_BL.sum(1).tolist(), strict=True):
            self.known[prompt] = text.encode([prompt])[0, :count].cpu()
        self.length = text.length

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """`text_BLD` of prompts, on the CPU. Raises as `TextEncoder.encode`, and as reading the encoder does."""
        if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts) or not prompts:
            raise TypeError(f"prompts must be a list of strings, got {prompts!r}")
        self.remember(prompts)
        return padded([self.known[prompt] for prompt in prompts], self.length)


def padded(rows: Sequence[Tensor], length: int) -> Tensor:
    """[B, length, D], each row of tokens followed by zeros."""
    text_BLD = torch.zeros(len(rows), length, rows[0].shape[1], dtype=rows[0].dtype)
    for text_LD, row in zip(text_BLD, rows, strict=True):
        text_LD[: len(row)] = row
    return text_BLD


def encoder_hash(weights: Path, tokenizer: Path) -> str:
    """Which text encoder this is, whatever its file's format, names and dtype.

    SHA-256 of the tokenizer and of every tensor's name, shape and first and last 1024 values in bfloat16: reading all
    of umT5-XXL would take minutes. Raises as `open_tensors` and `to_wan`.
    """
    digest = hashlib.sha256(tokenizer.read_bytes())
    with open_tensors(weights) as tensors:
        names = {wan: name for name, wan in to_wan("text", tensors.names).items()}
        for wan in sorted(names):
            flat = tensors[names[wan]].reshape(-1)
            ends = torch.cat((flat[:SAMPLE], flat[-SAMPLE:])).bfloat16()
            digest.update(f"{wan} {tensors.shape(names[wan])}".encode() + ends.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
