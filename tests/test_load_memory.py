"""Peak memory of loading; and, slow, the published 1.3B model at its full size, once in every format.

`pytest -m slow -s tests/test_load_memory.py` needs 16 GB of memory and 12 GB of disk, and prints times and peaks.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_published import (
    SMALL,
    config,
    fsdp,
    model_,
    renamed,
    source,
    states,
    write_checkpoint,
    write_official,
)

from arvid.models.dit import CausalDiT
from arvid.models.embeddings import Embeddings
from arvid.models.names import to_diffusers
from arvid.models.specs import Card, card
from arvid.models.vae import WanVAE
from arvid.models.writing import write_safetensors

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's accounts of memory")

LOAD = """
import json, sys, threading, time, torch
from arvid.models.loading import DTYPES, card_named, find, load

def now(field):
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return int(line.split()[1]) * 1024

def poll():
    global peak
    while True:
        peak = max(peak, now("RssAnon"))
        time.sleep(0.003)

model, checkpoint, card, text, dtype = sys.argv[1:6]
import transformers.models.umt5.modeling_umt5
found = find(model, checkpoint or None, card_named(card))
peak = before = now("RssAnon")
threading.Thread(target=poll, daemon=True).start()
began = time.perf_counter()
loaded = load(found, text, dtype=DTYPES[dtype])
seconds = time.perf_counter() - began
networks = [n for n in loaded[:3] if isinstance(n, torch.nn.Module)]
kept = sum(x.nbytes for n in networks for x in {v.data_ptr(): v for v in n.state_dict().values()}.values())
print(json.dumps({"kept": kept, "peak": peak - before, "resident": now("VmHWM"), "seconds": seconds}))
"""


def loaded(
    model: Path, checkpoint: Path | None, of: Card, dtype: str, text: str = "keep", more: str = ""
) -> dict[str, Any]:
    """What loading kept and took at most in a process of its own, in bytes: memory that is no copy of a file."""
    described = model / "mine.json"
    described.write_text(json.dumps(of.to_dict()))
    argv = [str(model), str(checkpoint or ""), str(described), text, dtype]
    ran = subprocess.run([sys.executable, "-c", LOAD + more, *argv], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize(("dtype", "style"), [("fp32", "fsdp"), ("bf16", None)])
def test_loading_takes_little_more_than_what_is_kept(tmp_path: Path, dtype: str, style: str | None) -> None:
    wide = replace(SMALL, name="wide", dit=replace(SMALL.dit, dim=256, ffn_dim=2048, num_heads=8, num_blocks=12),
                   checkpoint_key="generator_ema")  # fmt: skip
    parts = source(wide)
    folder = write_official(tmp_path / "m", parts)
    file = style and write_checkpoint(tmp_path / "x.pt", states(parts)["dit"], style)
    found = loaded(folder, file or None, wide, dtype)
    assert found["kept"] > 35e6
    assert found["peak"] <= 1.15 * found["kept"]


# Full size


def values(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Random weights that depend on their name alone, about as large as those of a trained network."""
    draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    flat = torch.randn(min(torch.Size(shape).numel(), 1 << 20), generator=draw) * 0.02
    return flat.repeat(-(-torch.Size(shape).numel() // len(flat)))[: torch.Size(shape).numel()].reshape(shape)


def shapes(kind: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        network = CausalDiT(CARD.dit) if kind == "dit" else WanVAE(CARD.vae)
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


CARD = replace(card("self_forcing"), checkpoint_key="generator_ema")
FORMATS = ("official", "sharded", "ema", "fsdp", "diffusers")
CHECK = """
import zlib
sys.path.insert(0, "tests")
from test_load_memory import values
for i, (name, value) in enumerate(loaded.dit.state_dict().items()):
    if i % 25 == 0:
        assert value.equal(values(name, tuple(value.shape)).bfloat16().to(value.dtype)), name
print(json.dumps({"kept": kept, "peak": peak - before, "resident": now("VmHWM"), "seconds": seconds}))
"""


def write_full(folder: Path, style: str) -> Path | None:
    """The model at full size; fp32 but for "sharded" and "diffusers", which are bf16. Returns the checkpoint."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(CARD)))
    dit, half = shapes("dit"), torch.bfloat16

    def stream(path: Path, names: dict[str, str], dtype: torch.dtype) -> None:
        write_safetensors(path, {theirs: (dtype, dit[own]) for theirs, own in names.items()},
                          lambda theirs: values(names[theirs], dit[names[theirs]]).to(half).to(dtype), {})  # fmt: skip

    if style == "official":
        stream(folder / "diffusion_pytorch_model.safetensors", {name: name for name in dit}, torch.float32)
    elif style in ("ema", "fsdp"):
        state = {name: values(name, shape).to(half).float() for name, shape in dit.items()}
        torch.save({"generator_ema": renamed(state, model_ if style == "ema" else fsdp)}, folder / "student.pt")
        return folder / "student.pt"
    else:
        home = folder / "transformer" if style == "diffusers" else folder
        home.mkdir(exist_ok=True)
        theirs = to_diffusers("dit", dit) if style == "diffusers" else {name: name for name in dit}
        homes = {theirs[name]: f"diffusion_pytorch_model-0000{1 + i % 2}-of-00002.safetensors"
                 for i, name in enumerate(dit)}  # fmt: skip
        for file in sorted({*homes.values()}):
            stream(home / file, {theirs[name]: name for name in dit if homes[theirs[name]] == file}, half)
        (home / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    return None


def write_rest(folder: Path, style: str) -> Path:
    """The VAE at full size, and embeddings of one prompt in place of the text encoder. Returns the embeddings."""
    vae = {name: values(name, shape) for name, shape in shapes("vae").items()}
    if style == "diffusers":
        names = to_diffusers("vae", vae)
        (folder / "vae").mkdir()
        write_safetensors(folder / "vae" / "diffusion_pytorch_model.safetensors",
                          {names[name]: (value.dtype, tuple(value.shape)) for name, value in vae.items()},
                          renamed(vae, names.__getitem__).__getitem__, {})  # fmt: skip
        (folder / "transformer" / "config.json").write_text(json.dumps(diffusers_config()))
    else:
        torch.save(vae, folder / "Wan2.1_VAE.pth")
    rows = {"a fox runs": torch.randn(6, CARD.dit.text_dim).bfloat16()}
    path = folder / "fox.safetensors"
    Embeddings(rows, "none", CARD.dit.text_length, None, str(path)).write(path)
    return path


def diffusers_config() -> dict[str, Any]:
    d = CARD.dit
    return {"attention_head_dim": d.head_dim, "ffn_dim": d.ffn_dim, "num_layers": d.num_blocks,
            "num_attention_heads": d.num_heads, "in_channels": d.in_channels, "patch_size": list(d.patch)}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("style", FORMATS)
def test_full_size(tmp_path: Path, style: str) -> None:
    try:
        checkpoint = write_full(tmp_path / "m", style)
        text = write_rest(tmp_path / "m", style)
        found = loaded(tmp_path / "m", checkpoint, CARD, "bf16", str(text), CHECK)
        gb = {name: f"{value / 1e9:.2f} GB" for name, value in found.items()}
        print(f"\n{style}: {found['seconds']:.0f} s, kept {gb['kept']}, peak {gb['peak']} "
              f"({found['peak'] / found['kept']:.3f}), resident with the mapped file {gb['resident']}")
        assert found["kept"] == 2 * (1_418_996_800 + 126_892_531)
        assert found["peak"] <= 1.15 * found["kept"]
    finally:
        for path in sorted((tmp_path / "m").rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()


PASS = """
from arvid import Pipeline, PipelineConfig
pipe = Pipeline.from_parts(loaded.dit, PipelineConfig(sampler={"name": "few_step", "steps": [1000]}), loaded.vae,
                           loaded.text, found.card)
began = time.perf_counter()
x = pipe.latents(prompt="a fox runs", frames=pipe.config.chunk)
seconds = time.perf_counter() - began
assert x.isfinite().all() and x.float().std() > 0.01
print(json.dumps({"shape": list(x.shape), "peak": peak, "resident": now("VmHWM"), "seconds": seconds}))
"""


@pytest.mark.slow
def test_a_pass_at_full_size(tmp_path: Path) -> None:
    """1.3B in bfloat16 at the card's pixels: one chunk, one step and its commit."""
    try:
        write_full(tmp_path / "m", "sharded")
        text = write_rest(tmp_path / "m", "sharded")
        found = loaded(tmp_path / "m", None, CARD, "bf16", str(text), PASS)
        print(f"\none chunk, one step: {found['seconds']:.0f} s, peak {found['peak'] / 1e9:.2f} GB, resident with the "
              f"mapped file {found['resident'] / 1e9:.2f} GB")
        assert found["shape"] == [1, CARD.chunk, 16, CARD.size[0] // 8, CARD.size[1] // 8]
        assert found["resident"] < 24e9
    finally:
        for path in sorted((tmp_path / "m").rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
