"""Names of weights: Wan's own, which are arvid's, and those of Diffusers and transformers, one to one.

`part` is "dit", "vae" or "text". Diffusers calls the parts `WanTransformer3DModel` and `AutoencoderKLWan`; the text
encoder's other names are those of transformers' `UMT5EncoderModel`, which lists its token embedding twice.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from .file_faults import listed

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["from_wan_names", "load_text_encoder_state", "to_diffusers", "to_wan", "to_wan_names"]

TIED = "encoder.embed_tokens.weight"
"""Transformers' second name of the token embedding, besides `shared.weight`."""

def _each(modules: Mapping[str, str], *parameters: str) -> dict[str, str]:
    """The names of these parameters of modules, from those of the modules."""
    return {f"{wan}.{last}": f"{theirs}.{last}" for wan, theirs in modules.items() for last in parameters}


def _inverse(table: Mapping[str, str]) -> dict[str, str]:
    return {theirs: wan for wan, theirs in table.items()}


# Wan's names, and the others; of a whole model, and after the number of a block.
_DIT = {"head.modulation": "scale_shift_table"} | _each({
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "head.head": "proj_out",
}, "weight", "bias")  # fmt: skip
_ATTENTIONS = (("self_attn", "attn1"), ("cross_attn", "attn2"))
_LINEAR = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
_DIT_BLOCK = (
    {"modulation": "scale_shift_table", "cross_attn.norm_k_img.weight": "attn2.norm_added_k.weight"}
    | _each({"norm3": "norm2", "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2"}, "weight", "bias")
    | _each({"cross_attn.k_img": "attn2.add_k_proj", "cross_attn.v_img": "attn2.add_v_proj"}, "weight", "bias")
    | _each({f"{a}.{n}": f"{b}.{to}" for a, b in _ATTENTIONS for n, to in _LINEAR.items()}, "weight", "bias")
    | _each({f"{a}.{n}": f"{b}.{n}" for a, b in _ATTENTIONS for n in ("norm_q", "norm_k")}, "weight")
)
_TEXT = _each({"token_embedding": "shared", "norm": "encoder.final_layer_norm"}, "weight")
_TEXT_BLOCK = _each({
    "norm1": "layer.0.layer_norm",
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}, "weight")  # fmt: skip
_RESIDUAL = _each({"residual.0": "norm1", "residual.3": "norm2"}, "gamma") | _each(
    {"residual.2": "conv1", "residual.6": "conv2", "shortcut": "conv_shortcut"}, "weight", "bias")
_RESAMPLE = _each({"resample.1": "resample.1", "time_conv": "time_conv"}, "weight", "bias")
_CODER = (
    _each({"conv1": "conv_in", "head.2": "conv_out"}, "weight", "bias")
    | _each({"head.0": "norm_out", "middle.1.norm": "mid_block.attentions.0.norm"}, "gamma")
    | _each({f"middle.1.{name}": f"mid_block.attentions.0.{name}" for name in ("to_qkv", "proj")}, "weight", "bias")
    | {f"middle.{2 * i}.{wan}": f"mid_block.resnets.{i}.{name}" for i in (0, 1) for wan, name in _RESIDUAL.items()}
)
_VAE = _each({"conv1": "quant_conv", "conv2": "post_quant_conv"}, "weight", "bias") | {
    f"{side}.{wan}": f"{side}.{theirs}" for side in ("encoder", "decoder") for wan, theirs in _CODER.items()}

WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
PREFIXES = ("module.", "model.")

Rename = Callable[[str], "str | None"]


class _Renames(NamedTuple):
    """Both ways, the other name of a parameter, or None if the name is not of that naming."""

    to_wan: Rename
    to_diffusers: Rename


def to_wan(part: str, names: Iterable[str]) -> dict[str, str]:
    """Wan's name of each name in a file of `part`, whichever of the two namings the file has.

    Names may carry what training wraps around modules: FSDP's, checkpointing's and torch.compile's fragments anywhere,
    and one leading "module." and one "model." before all of them. transformers' two names of the token embedding share
    a Wan name. Raises `ValueError` listing names that are in neither naming, of both namings, or the same unwrapped.
    """
    bare = unwrapped(names)
    renames = renames_of(part, bare.values())
    other = {name: renames.to_wan(plain) for name, plain in bare.items()}
    is_wan = {name: renames.to_diffusers(plain) is not None for name, plain in bare.items()}
    if neither := [name for name in bare if not is_wan[name] and other[name] is None]:
        raise ValueError(f"no names of a Wan {part}, nor Diffusers' or transformers' for one: {listed(neither)}")
    own, others = [name for name in bare if other[name] is None], [name for name in bare if not is_wan[name]]
    if own and others:
        raise ValueError(f"names of a {part} in two namings: Wan's {listed(own)}; others {listed(others)}")
    found = {name: other[name] or plain for name, plain in bare.items()} if others else bare
    _refuse_twins({name: wan for name, wan in found.items() if bare[name] != TIED})
    return found


def to_diffusers(part: str, names: Iterable[str]) -> dict[str, str]:
    """The name Diffusers, or for "text" transformers, gives each name of a `part`; the inverse of `to_wan`.

    Takes what `to_wan` takes, and raises as it does. The token embedding is `shared.weight`.
    """
    wan = to_wan(part, names)
    renames = renames_of(part, wan.values())
    return {name: renames.to_diffusers(own) or own for name, own in wan.items()}


def load_text_encoder_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a umT5 encoder file for a strict `load_state_dict` of transformers' `UMT5EncoderModel`.

    Takes either naming, wrapped or not; the result has `shared.weight` and the tied `encoder.embed_tokens.weight`, one
    tensor. Raises `ValueError` naming what is missing or unexpected, or given under two names with different values.
    """
    found: dict[str, Tensor] = {}
    for name, wan in to_wan("text", state).items():
        first = found.setdefault(wan, state[name])
        if first is not state[name] and not first.equal(state[name]):
            raise ValueError(f"{name} differs from its other name, shared.weight; the two are one tensor")
    return from_wan_names(found)


def from_wan_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of Wan's umT5 file under transformers' names, for a strict `load_state_dict`.

    The token embedding appears twice, since transformers lists the tied `encoder.embed_tokens.weight` too.
    Raises `ValueError` naming the keys that are missing or unexpected.
    """
    names = _text_names(len({key.split(".")[1] for key in state if key.startswith("blocks.")}))
    _check_keys(state, names, "Wan's umT5 encoder")
    renamed = {ours: state[wan] for wan, ours in names.items()}
    return renamed | {TIED: renamed["shared.weight"]}


def to_wan_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `from_wan_names`: a `UMT5EncoderModel` state dict under the names of Wan's file."""
    names = _text_names(len({key.split(".")[2] for key in state if key.startswith("encoder.block.")}))
    _check_keys(state, {*names.values(), TIED}, "transformers' umT5 encoder")
    return {wan: state[ours] for wan, ours in names.items()}


def _text_names(num_blocks: int) -> dict[str, str]:
    """Transformers' name of every parameter of Wan's umT5 encoder."""
    return _TEXT | {
        f"blocks.{i}.{wan}": f"encoder.block.{i}.{ours}" for i in range(num_blocks) for wan, ours in _TEXT_BLOCK.items()
    }


def _check_keys(state: Iterable[str], expected: Iterable[str], what: str) -> None:
    missing, unexpected = sorted({*expected} - {*state}), sorted({*state} - {*expected})
    if missing or unexpected:
        raise ValueError(f"not the weights of {what}: missing {missing}, unexpected {unexpected}")


def unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Each name without what training wraps around modules."""
    bare = {}
    for name in names:
        plain = name
        for wrapper in WRAPPERS:
            plain = plain.replace(wrapper, "")
        bare[name] = plain
    for prefix in PREFIXES:
        if all(plain.startswith(prefix) for plain in bare.values()):
            bare = {name: plain.removeprefix(prefix) for name, plain in bare.items()}
    return bare


def _refuse_twins(found: Mapping[str, str]) -> None:
    sources = defaultdict(list)
    for name, wan in found.items():
        sources[wan].append(name)
    if twins := [" and ".join(names) for names in sources.values() if len(names) > 1]:
        raise ValueError(f"several names of one tensor: {listed(twins)}; keep one of each")


def renames_of(part: str, names: Iterable[str]) -> _Renames:
    if part == "dit":
        return _by_table(_DIT, _DIT_BLOCK, "blocks.", "blocks.")
    if part == "text":
        renames = _by_table(_TEXT, _TEXT_BLOCK, "blocks.", "encoder.block.")
        return renames._replace(to_wan=lambda name: renames.to_wan("shared.weight" if name == TIED else name))
    if part == "vae":
        return _vae_renames(names)
    raise ValueError(f"part {part!r}: allowed are 'dit', 'vae' and 'text'")


def _by_table(model: Mapping[str, str], block: Mapping[str, str], wan: str, theirs: str) -> _Renames:
    """Renames by tables, of which `block` holds what follows `wan` or `theirs` and the number of a block."""

    def rename(whole: Mapping[str, str], inner: Mapping[str, str], start: str, other_start: str) -> Rename:
        def renamed(name: str) -> str | None:
            if m := re.fullmatch(re.escape(start) + r"(\d+\.)(.+)", name):
                other = inner.get(m[2])
                return other and other_start + m[1] + other
            return whole.get(name)

        return renamed

    return _Renames(rename(_inverse(model), _inverse(block), theirs, wan), rename(model, block, wan, theirs))


_WAN_STAGE = re.compile(r"(encoder\.down|decoder\.up)samples\.(\d{1,4})\.(?:(?:down|up)samples\.(\d{1,4})\.)?(.+)")
_OTHER_STAGE = re.compile(
    r"(encoder\.down|decoder\.up)_blocks\.(\d{1,4})\.(?:resnets\.(\d{1,4})\.|((?:down|up)sampler(?:s\.0)?)\.)?(.+)"
)
_WAN22 = re.compile(r"\w+\.(down|up)samples\.\d+\.\1samples\.|\w+\.\w+_blocks\.\d+\.(down|up)sampler\.|"
                    r"encoder\.down_blocks\.\d+\.resnets\.")


def _vae_renames(names: Iterable[str]) -> _Renames:
    """Renames of a VAE whose layout and depth are those of `names`.

    Wan2.1 numbers all layers of a coder in one list, which Diffusers keeps for the encoder and splits into stages for
    the decoder; Wan2.2 numbers stages and the layers in them, of which the last resamples.
    """
    names = list(names)
    wan22, depth = any(map(_WAN22.match, names)), _depth(names)
    model, layers = _inverse(_VAE), _inverse(_RESIDUAL | _RESAMPLE)

    def to_diffusers(name: str) -> str | None:
        m = _WAN_STAGE.fullmatch(name)
        if m is None:
            return _VAE.get(name)
        side, stage, layer, rest = m.groups()
        if not wan22 and side == "decoder.up":
            stage, layer = divmod(int(stage), depth + 1)
        sampler = f"{side[8:]}sampler" if wan22 else "upsamplers.0"
        inner = f"resnets.{layer}." if rest in _RESIDUAL else f"{sampler}."
        other = (_RESIDUAL | _RESAMPLE).get(rest)
        return other and f"{side}_blocks.{stage}.{inner if layer is not None else ''}{other}"

    def to_wan(name: str) -> str | None:
        m = _OTHER_STAGE.fullmatch(name)
        if m is None:
            return model.get(name)
        side, stage, layer, sampler, rest = m.groups()
        number = int(layer or 0) if sampler is None else depth - (side == "encoder.down")
        if wan22:
            place = f"{stage}.{side[8:]}samples.{number}"
        else:
            place = stage if side == "encoder.down" else int(stage) * (depth + 1) + number
        other = layers.get(rest)
        return other and f"{side}samples.{place}.{other}"

    return _Renames(_checked(to_wan, to_diffusers), _checked(to_diffusers, to_wan))


def _checked(there: Rename, back: Rename) -> Rename:
    """`there`, without the names that do not come `back` as they were: those at places where no such layer is."""

    def renamed(name: str) -> str | None:
        other = there(name)
        return other if other is not None and back(other) == name else None

    return renamed


def _depth(names: Iterable[str]) -> int:
    """Residual blocks in each stage of a VAE's decoder; the encoder's have one less."""
    text = "\n".join(names)
    resample = re.findall(r"^decoder\.upsamples\.(\d{1,4})\.(?:resample|time_conv)\.", text, re.M)
    residual = re.findall(
        r"^decoder\.(?:upsamples(?:\.\d+\.upsamples)?|up_blocks\.\d+\.resnets)\.(\d{1,4})\.(?!resample|time_conv|up)",
        text, re.M)  # fmt: skip
    return min(map(int, resample), default=max(map(int, residual), default=0) + 1)
