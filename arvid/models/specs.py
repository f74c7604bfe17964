"""Shapes of networks, and the cards that describe published and bundled weights.

Every number that belongs to a model (sizes, strides, window, steps, ...) lives in this file and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, get_type_hints

from .typed import wanted

__all__ = ["CARDS", "SETTINGS", "Card", "DiTSpec", "TextSpec", "VAESpec", "card"]

SETTINGS = ("chunk", "window", "sink", "steps", "shift", "context_noise", "train_horizon")
"""Fields of a card that a configuration takes over where its own field of that name is None."""


@dataclass(frozen=True)
class DiTSpec:
    """Sizes of a Wan-type diffusion transformer (Wan2.1 report, arXiv 2503.20314, section 4.2).

    `patch` is (time, height, width) in latent pixels; `freq_dim` the width of the sinusoidal time embedding.
    Raises `ValueError` when sizes contradict each other.
    """

    dim: int
    ffn_dim: int
    num_heads: int
    num_blocks: int
    in_channels: int
    out_channels: int
    text_dim: int
    text_length: int
    freq_dim: int
    patch: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch", tuple(self.patch))
        _whole(self, *(f.name for f in fields(self) if f.name != "eps"))
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise ValueError(f"dim={self.dim} must be num_heads={self.num_heads} times an even head width")
        if self.axes[0] < 2 or self.axes[1] < 2:
            raise ValueError(f"head width {self.head_dim} leaves no rotary plane for an axis; use at least 6")
        if self.patch[0] != 1:
            raise ValueError(f"patch={self.patch}: a patch spans exactly 1 latent frame; use (1, height, width)")
        if self.freq_dim % 2:
            raise ValueError(f"freq_dim={self.freq_dim} must be even")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.num_heads

    @property
    def axes(self) -> tuple[int, int, int]:
        """Real channels of a head rotated by (time, height, width); Wan gives each spatial axis 2 * (d // 6)."""
        space = 2 * (self.head_dim // 6)
        return self.head_dim - 2 * space, space, space


@dataclass(frozen=True)
class VAESpec:
    """Sizes of a Wan causal video VAE.

    `layout` "wan21" is Wan2.1's; "wan22" adds a pixel patch of size `patch` and averaging / duplicating shortcuts
    around each stage. `dim_mult` has one entry a stage, `temporal_downsample` one entry for each stage but the last.
    `mean` and `std` normalise latents, one value a channel. `decoder_dim` defaults to `dim`.
    Raises `ValueError` when sizes contradict each other.
    """

    dim: int
    z_dim: int
    dim_mult: tuple[int, ...]
    num_res_blocks: int
    temporal_downsample: tuple[bool, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: str = "wan21"
    decoder_dim: int | None = None
    patch: int = 1

    def __post_init__(self) -> None:
        for name in ("dim_mult", "temporal_downsample", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _whole(self, "dim", "z_dim", "dim_mult", "num_res_blocks", "patch")
        if self.decoder_dim is not None:
            _whole(self, "decoder_dim")
        if self.layout not in ("wan21", "wan22"):
            raise ValueError(f"layout={self.layout!r}; allowed: 'wan21', 'wan22'")
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            raise ValueError("temporal_downsample needs one entry for each stage but the last: "
                             f"{len(self.dim_mult) - 1}, got {len(self.temporal_downsample)}")
        if len(self.mean) != self.z_dim or len(self.std) != self.z_dim:
            raise ValueError(f"mean and std need z_dim={self.z_dim} values, got {len(self.mean)} and {len(self.std)}")
        if min(self.std) <= 0:
            raise ValueError(f"std={self.std}: give positive values")
        if self.patch != 1 and self.layout == "wan21":
            raise ValueError(f"patch={self.patch}: only layout 'wan22' patchifies pixels")

    @property
    def time_stride(self) -> int:
        """Pixel frames for each latent frame after the first."""
        return 2 ** sum(self.temporal_downsample)

    @property
    def space_stride(self) -> int:
        """Pixels for each latent pixel, along height and along width."""
        return self.patch * 2 ** (len(self.dim_mult) - 1)


@dataclass(frozen=True)
class TextSpec:
    """Sizes of a umT5 encoder (arXiv 2304.09151): gated GELU, pre-norm, a relative position bias in every layer.

    Raises `ValueError` for sizes that are not positive or contradict each other.
    """

    vocab_size: int
    dim: int
    attention_dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    num_buckets: int = 32

    def __post_init__(self) -> None:
        _whole(self, *(f.name for f in fields(self)))
        if self.attention_dim % self.num_heads:
            raise ValueError(f"attention_dim={self.attention_dim} must be a multiple of num_heads={self.num_heads}")


@dataclass(frozen=True)
class Card:
    """What comes with weights: sizes of the networks, and the settings they were trained to be sampled with.

    `window` and `sink` are latent frames, `steps` nominal (before `shift`), `context_noise` a timestep in 0..1000,
    `train_horizon` the latent frames of training clips, `fps` pixel frames a second, `size` (height, width) in pixels,
    `first_steps` are those of the first chunks, one entry a chunk, where they have their own. `checkpoint_key` is the
    entry of the student's file that holds the weights, `files` are the ends of the paths under which it is published,
    `lora` is (rank, alpha) of a LoRA that belongs to it. `grammar` is the sentence pattern of a model with a closed
    vocabulary, `source` where the numbers come from. `negative` is the prompt that guidance leads away from (None: no
    text).
    Raises `ValueError` for numbers that cannot be, and for networks that do not fit each other.
    """

    name: str
    dit: DiTSpec
    vae: VAESpec
    text: TextSpec
    chunk: int
    window: int
    sink: int
    steps: tuple[float, ...]
    shift: float
    context_noise: float
    train_horizon: int
    fps: int
    size: tuple[int, int]
    sampler: str = "few_step"
    checkpoint_key: str | None = None
    grammar: str | None = None
    source: str = ""
    first_steps: tuple[tuple[float, ...], ...] | None = ()  # None, in cards written before, is none
    files: tuple[str, ...] = ()
    lora: tuple[int, float] | None = None
    negative: str | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "size", "files", "lora"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        if not all(isinstance(steps, list | tuple) for steps in self.first_steps or ()):
            raise ValueError(f"first_steps={self.first_steps!r}: give a list of steps for each of the first chunks")
        object.__setattr__(self, "first_steps", tuple(map(tuple, self.first_steps or ())))
        _whole(self, "chunk", "window", "train_horizon", "size")
        if len(self.size) != 2:
            raise ValueError(f"size={self.size}: give (height, width) in pixels")
        if not 0 < self.fps < float("inf"):
            raise ValueError(f"fps={self.fps} must be positive and finite")
        if self.vae.z_dim != self.dit.out_channels:
            raise ValueError(f"vae.z_dim={self.vae.z_dim} must be dit.out_channels={self.dit.out_channels}")
        if self.text.dim != self.dit.text_dim:
            raise ValueError(f"text.dim={self.text.dim} must be dit.text_dim={self.dit.text_dim}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Card:
        """The inverse of `to_dict`. Raises `ValueError` naming fields that are missing, unknown or wrong."""
        parts = {"dit": DiTSpec, "vae": VAESpec, "text": TextSpec}
        _named(plain, cls, "a card")
        specs = {key: spec(**_named(plain[key], spec, f"its {key}")) for key, spec in parts.items()}
        return cls(**{**plain, **specs})


def _named(plain: Any, cls: type, what: str) -> dict[str, Any]:
    """`plain` again, a mapping with the fields of `cls`. Raises `ValueError` naming the fields that are not right."""
    if not isinstance(plain, Mapping):
        raise ValueError(f"{what} is a table of fields, not {plain!r}")
    needed = {f.name for f in fields(cls) if f.default is MISSING}
    if missing := sorted(needed - set(plain)):
        raise ValueError(f"{what} misses {', '.join(missing)}")
    if unknown := sorted(set(plain) - {f.name for f in fields(cls)}):
        raise ValueError(f"{what} has no field {', '.join(unknown)}")
    for name, hint in get_type_hints(cls).items():
        if name in plain and (words := wanted(hint, plain[name])):
            raise ValueError(f"{what} has {name}={plain[name]!r}: give {words}")
    return dict(plain)


def _whole(spec: Any, *names: str) -> None:
    """Raise `ValueError` unless these fields, or all their entries, are whole numbers of at least 1."""
    for name in names:
        value = getattr(spec, name)
        for entry in value if isinstance(value, tuple) else (value,):
            if isinstance(entry, bool) or not isinstance(entry, int) or entry < 1:
                raise ValueError(f"{name}={value!r}: give whole numbers, at least 1")


def _wan_dit(dim: int, ffn_dim: int, num_heads: int, num_blocks: int) -> DiTSpec:
    return DiTSpec(dim, ffn_dim, num_heads, num_blocks, 16, 16, text_dim=4096, text_length=512, freq_dim=256)


WAN21_VAE = VAESpec(
    dim=96, z_dim=16, dim_mult=(1, 2, 4, 4), num_res_blocks=2, temporal_downsample=(False, True, True),
    mean=(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
          0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    std=(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
         3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)  # fmt: skip
WAN22_VAE = VAESpec(
    dim=160, z_dim=48, dim_mult=(1, 2, 4, 4), num_res_blocks=2, temporal_downsample=(False, True, True),
    mean=(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
          0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
          -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
          -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
    std=(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
         0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
         0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
         0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
    layout="wan22", decoder_dim=256, patch=2,
)  # fmt: skip
UMT5_XXL = TextSpec(vocab_size=256384, dim=4096, attention_dim=4096, ffn_dim=10240, num_heads=64, num_layers=24)

WAN_NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
"""Wan's own default (its released configuration, `sample_neg_prompt`)."""

_T2V_1_3B = _wan_dit(1536, 8960, 12, 30)
_SELF_FORCING = Card(
    "self_forcing", _T2V_1_3B, WAN21_VAE, UMT5_XXL, chunk=3, window=21, sink=0, steps=(1000, 750, 500, 250), shift=5.0,
    context_noise=0.0, train_horizon=21, fps=16, size=(480, 832), checkpoint_key="generator_ema",
    files=("self_forcing_dmd.pt",), negative=WAN_NEGATIVE,
    source="Self Forcing, arXiv 2506.08009, and its released configuration self_forcing_dmd",
)  # fmt: skip
_CAUSAL_FORCING = replace(
    _SELF_FORCING, name="causal_forcing", checkpoint_key="generator", files=("chunkwise/causal_forcing.pt",),
    source="Causal Forcing, arXiv 2602.02214, and its released configuration causal_forcing_dmd_chunkwise (no EMA)",
)  # fmt: skip
_FRAMEWISE = replace(
    _CAUSAL_FORCING, name="causal_forcing_framewise", chunk=1, checkpoint_key="generator_ema",
    files=("framewise/causal_forcing.pt",),
    source="Causal Forcing, arXiv 2602.02214, and its released configuration causal_forcing_dmd_framewise",
)  # fmt: skip


def _plus_plus(number: int, steps: tuple[float, ...]) -> Card:
    return replace(
        _FRAMEWISE, name=f"causal_forcing_framewise_{number}step", steps=steps, first_steps=(_FRAMEWISE.steps,),
        files=(f"framewise-{number}step.pt",), source="Causal-Forcing++, arXiv 2605.15141, and its released "
        f"configuration causal_forcing_dmd_framewise_{number}step",
    )  # fmt: skip


_STUDENTS = (
    _SELF_FORCING,
    replace(
        _SELF_FORCING, name="causvid", steps=(1000, 757, 522), shift=1.0, checkpoint_key="generator",
        files=("autoregressive_checkpoint/model.pt",), source="CausVid, arXiv 2412.07772, and its released "
        "configuration, whose levels are final: steps of a table of shift 8, here with shift 1",
    ),
    _CAUSAL_FORCING,
    _FRAMEWISE,
    _plus_plus(2, (1000, 500)),
    _plus_plus(1, (1000,)),
    replace(
        _SELF_FORCING, name="rolling_forcing", sampler="rolling_forcing", steps=(1000, 800, 600, 400, 200), sink=3,
        train_horizon=27, files=("rolling_forcing_dmd.pt",), source="Rolling Forcing, arXiv 2509.25161, and its "
        "released configuration rolling_forcing_dmd",
    ),
    replace(
        _SELF_FORCING, name="hiar", sampler="hierarchical", files=("hiar.pt",),
        source="HiAR, arXiv 2603.08703, and its released inference code",
    ),
    replace(
        _SELF_FORCING, name="longlive", window=12, sink=3, train_horizon=240, checkpoint_key=None,
        files=("longlive_base.pt",), lora=(256, 256.0), source="LongLive, arXiv 2509.22622, and its released "
        "configuration of version 1 (tuned on 240 latent frames)",
    ),
    replace(
        _SELF_FORCING, name="diagonal", window=12, sink=3, steps=(1000, 100),
        first_steps=((1000, 750, 500, 100), (1000, 750, 100)), checkpoint_key=None, files=(),
        source="Diagonal Distillation, arXiv 2603.09488, and its released configuration diadistill_inference",
    ),
    replace(
        _SELF_FORCING, name="infinity_rope", window=6, sink=1, files=(),
        source="Infinity-RoPE, arXiv 2511.20649, and its released code; weights ema_model.pt",
    ),
)  # fmt: skip


def _base(name: str, **changes: Any) -> Card:
    """Weights that are no student's yet: Self Forcing's settings."""
    source = f"the published {name}, with the settings of Self Forcing, arXiv 2506.08009"
    return replace(_SELF_FORCING, name=name, checkpoint_key=None, files=(), source=source, **changes)


CARDS = {
    card.name: card
    for card in (
        _base("wan2.1-t2v-1.3b"),
        _base("wan2.1-t2v-14b", dit=_wan_dit(5120, 13824, 40, 40)),
        _base(
            "wan2.2-ti2v-5b", dit=replace(_wan_dit(3072, 14336, 24, 30), in_channels=48, out_channels=48),
            vae=WAN22_VAE, train_horizon=31, fps=24, size=(704, 1280),
        ),
        *_STUDENTS,
    )
}  # fmt: skip


def card(name: str) -> Card:
    """A published card by name. Raises `ValueError` listing the names."""
    if name not in CARDS:
        raise ValueError(f"no card is called {name!r}; cards: {', '.join(sorted(CARDS))}")
    return CARDS[name]
