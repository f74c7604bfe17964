"""Text: umT5 encoder, Wan's prompt cleaning, tokenizers, and the sentences the bundled model knows.

Transformers takes seconds to import, so only the functions that need it import it.
"""

from __future__ import annotations

import html
import io
import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .names import from_wan_names, to_wan_names
from .specs import TextSpec

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from transformers import UMT5Config, UMT5EncoderModel

__all__ = [
    "BUNDLED_GRAMMAR", "BUNDLED_TOKENIZER", "TextEncoder", "build_umt5", "clean", "from_wan_names",
    "key_of", "load_tokenizer", "sentences", "to_wan_names", "train_tokenizer", "umt5_config",
]

BUNDLED_TOKENIZER = Path(__file__).parent / "bundled" / "tokenizer.model"

_THING = (
    "a {red|green|blue|yellow|orange|purple|pink|cyan} {ball|square|triangle} "
    "{bounces around|moves left and right|moves up and down|moves in a circle|grows and shrinks}"
)
_GROUND = "on a {black|white|gray|brown|navy|beige} background"

BUNDLED_GRAMMAR = f"{_THING} {_GROUND}\n{_THING} and {_THING} {_GROUND}"
"""Every prompt of the bundled model, of one object or of two: a pattern a line, one choice from each brace."""


def umt5_config(spec: TextSpec) -> UMT5Config:
    """Transformers' configuration of the encoder `spec` describes.

    Raises `ValueError` when the attention width is not a multiple of the number of heads.
    """
    from transformers import UMT5Config

    if spec.attention_dim % spec.num_heads:
        raise ValueError(f"attention_dim={spec.attention_dim} must be a multiple of num_heads={spec.num_heads}")
    return UMT5Config(
        vocab_size=spec.vocab_size,
        d_model=spec.dim,
        d_kv=spec.attention_dim // spec.num_heads,
        d_ff=spec.ffn_dim,
        num_layers=spec.num_layers,
        num_heads=spec.num_heads,
        relative_attention_num_buckets=spec.num_buckets,
        relative_attention_max_distance=128,
        feed_forward_proj="gated-gelu",
        layer_norm_epsilon=1e-6,
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
    )


def build_umt5(spec: TextSpec) -> UMT5EncoderModel:
    """A umT5 encoder with fresh random weights (arXiv 2304.09151); under `torch.device("meta")` it holds no memory."""
    from transformers import UMT5EncoderModel

    return UMT5EncoderModel(umt5_config(spec))


# Full-width and half-width forms, the ideographic space and Latin ligatures become plain characters, quotes straight.
_COMPATIBLE = (0x3000, *range(0xFB00, 0xFB07), *range(0xFF01, 0xFFEF))
_PLAIN = {code: unicodedata.normalize("NFKC", chr(code)) for code in _COMPATIBLE}
_PLAIN |= {ord(quote): "'" for quote in "\u02bc\u2018\u2019\u201a\u201b"} | {ord(quote): '"' for quote in "“”„‟"}


def clean(prompt: str) -> str:
    """`prompt` as Wan cleans it: plain quotes and widths, HTML entities unescaped twice, single spaces, no case change.

    Wan's code runs the ftfy package first, which also repairs wrongly decoded text ("âœ”") and drops control codes.
    This function never uses it, so that a prompt means the same on every machine; repair such text beforehand.
    """
    text = unicodedata.normalize("NFC", prompt.translate(_PLAIN))
    return " ".join(html.unescape(html.unescape(text)).split())


def key_of(prompt: str, grammar: str | None) -> str:
    """The text that is encoded for a prompt, which is the same for prompts that mean the same to the encoder."""
    text = clean(prompt)
    if grammar is not None:
        text = text.lower().removesuffix(".").rstrip()  # its captions are lower case, without a full stop
    return text


def load_tokenizer(path: str | Path) -> SentencePieceProcessor:
    """A sentencepiece model from its file: the bundled one, or `google/umt5-xxl/spiece.model` of a Wan checkpoint.

    Raises `FileNotFoundError` when there is no such file, `ValueError` when it is no sentencepiece model or has no
    padding, end or unknown piece.
    """
    from sentencepiece import SentencePieceProcessor

    if not Path(path).is_file():
        raise FileNotFoundError(f"no tokenizer at {path}; give the path of a sentencepiece model (spiece.model)")
    try:
        tokenizer = SentencePieceProcessor(model_file=str(path))
    except RuntimeError as error:
        raise ValueError(f"{path} is not a sentencepiece model; give the file called spiece.model") from error
    if min(tokenizer.pad_id(), tokenizer.eos_id(), tokenizer.unk_id()) < 0:
        raise ValueError(f"the tokenizer {path} lacks a <pad>, </s> or <unk> piece; umT5 needs all three")
    return tokenizer


class TextEncoder(nn.Module):
    """A umT5 encoder with its tokenizer: prompts to `text_BLD`, `length` rows a prompt, zero past its last token.

    `grammar` is the sentence pattern of a model with a closed vocabulary (see `sentences`): prompts with words that are
    not in it are refused. Without one, the tokenizer alone decides.
    Raises `ValueError` when the tokenizer has more pieces than the model embeds, or lacks a word of the grammar.
    """

    def __init__(
        self, model: UMT5EncoderModel, tokenizer: SentencePieceProcessor, length: int, grammar: str | None = None
    ) -> None:
        super().__init__()
        if tokenizer.vocab_size() > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size()} pieces but the encoder embeds {model.config.vocab_size}; "
                "use the tokenizer that belongs to the weights"
            )
        if length < 1:
            raise ValueError(f"length={length} must be at least 1 token")
        strange = [word for word in _words(grammar or "") if tokenizer.unk_id() in tokenizer.encode(word)]
        if strange:
            raise ValueError(f"the tokenizer does not know {strange} of the grammar; use the one trained on it")
        self.model = model
        self.tokenizer = tokenizer
        self.length = length
        self.grammar = grammar

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask of cleaned prompts, both int64 [B, length]; the mask is 1 up to and including </s>.

        Raises `TypeError` for anything but a sequence of strings, `ValueError` for no prompt, an empty or too long
        prompt (nothing is ever cut off), or words outside `grammar`.
        """
        if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
            raise TypeError(f"prompts must be a list of strings, got {prompts!r}")
        if not prompts:
            raise ValueError("no prompt given; pass at least one")
        ids_BL = torch.full((len(prompts), self.length), self.tokenizer.pad_id(), dtype=torch.long)
        mask_BL = torch.zeros_like(ids_BL)
        for row, prompt in enumerate(prompts):
            ids = self._ids(prompt)
            ids_BL[row, : len(ids)] = torch.tensor(ids)
            mask_BL[row, : len(ids)] = 1
        return ids_BL, mask_BL

    def _ids(self, prompt: str) -> list[int]:
        text = key_of(prompt, self.grammar)
        if not text:
            raise ValueError(f"the prompt {prompt!r} is empty; describe the video in words")
        if self.grammar is not None:
            unknown = sorted(set(text.split()) - set(_words(self.grammar)))
            if unknown:
                raise ValueError(
                    f"this model does not know the words {', '.join(map(repr, unknown))} of {prompt!r}; "
                    f"its prompts are: {self.grammar}"
                )
        ids = self.tokenizer.encode(text, add_eos=True)
        if len(ids) > self.length:
            raise ValueError(
                f"the prompt has {len(ids)} tokens, end mark included, but the model reads {self.length}; shorten it: "
                f"{prompt!r}"
            )
        # Two objects take no other words than one: only their number tells that a model of one does not know them.
        words, most = len(text.split()), _most_words(self.grammar or text)
        if words > most:
            raise ValueError(
                f"the prompt {prompt!r} has {words} words, and no prompt of this model more than {most}; "
                f"its prompts are: {self.grammar}"
            )
        return ids

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """`text_BLD` of tokens, in the encoder's dtype; rows where the mask is 0 are 0."""
        text_BLD = self.model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        return text_BLD.masked_fill(mask_BL[:, :, None] == 0, 0.0)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """`text_BLD` of prompts, on the encoder's device; keeps a graph only in train mode. Raises as `tokenize`."""
        ids_BL, mask_BL = self.tokenize(prompts)
        device = self.model.device
        with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
            return self(ids_BL.to(device), mask_BL.to(device))


def sentences(grammar: str) -> list[str]:
    """Every sentence of the patterns of a grammar, one a line: one choice from each brace of "a {red|green} ball"."""
    return ["".join(choice) for choices in _choices(grammar) for choice in itertools.product(*choices)]


def _choices(grammar: str) -> list[list[list[str]]]:
    """For each pattern the choices of its parts, in order; of a part outside braces there is one."""
    patterns = (re.split(r"(\{.*?\})", line) for line in grammar.splitlines())
    return [[part.strip("{}").split("|") for part in parts] for parts in patterns]


def _most_words(grammar: str) -> int:
    """How many words the longest sentence has."""
    longest = ("".join(max(part, key=lambda text: len(text.split())) for part in parts) for parts in _choices(grammar))
    return max((len(sentence.split()) for sentence in longest), default=0)


def _words(grammar: str) -> list[str]:
    return re.findall(r"[^\s{}|]+", grammar)


def train_tokenizer(captions: Iterable[str], path: str | Path) -> None:
    """Write a sentencepiece model with one piece for each word of `captions`, and umT5's <pad> 0, </s> 1, <unk> 2.

    The file depends on the set of captions only. Raises `ValueError` when there are none.
    """
    from sentencepiece import SentencePieceTrainer

    lines = sorted({clean(caption) for caption in captions} - {""})
    if not lines:
        raise ValueError("no captions to train a tokenizer on")
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="word",
        vocab_size=len({word for line in lines for word in line.split()}) + 3,
        normalization_rule_name="identity",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    Path(path).write_bytes(model.getvalue())
