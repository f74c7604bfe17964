"""Hub ids: from the local cache without a network, with clear errors, and compared with their hash when they come."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from random_model import RED
from small_published import SMALL_CARDS, states, write_checkpoint, write_official

from arvid import Pipeline
from arvid.models import hub
from arvid.models.specs import CARDS
from arvid.models.weights import Parts

pytestmark = pytest.mark.filterwarnings("ignore:.*the weights are of no student")
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that has Small/Wan and Small/Student, without a network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name, small in SMALL_CARDS.items():
        monkeypatch.setitem(CARDS, name, small)
    cached(tmp_path / "hub", "Small/Wan", write_official(tmp_path / "plain" / "Wan", parts))
    student = tmp_path / "plain" / "Student" / "checkpoints"
    student.mkdir(parents=True)
    write_checkpoint(student / "small_student.pt", states(parts)["dit"], "ema")
    cached(tmp_path / "hub", "Small/Student", student.parent)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def cached(cache: Path, name: str, folder: Path) -> None:
    """The files of a folder as the hub's cache holds them: blobs by SHA-256, and links to them."""
    home = cache / f"models--{name.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(REVISION)
    (home / "blobs").mkdir()
    for file in folder.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            blob = home / "blobs" / hashlib.sha256(content).hexdigest()
            blob.write_bytes(content)
            link = home / "snapshots" / REVISION / file.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))


def test_ids_come_from_the_cache_without_a_network(cache: Path, parts: Parts) -> None:
    pipe = Pipeline.load(model="Small/Wan", checkpoint="Small/Student/checkpoints/small_student.pt")
    assert pipe.card == CARDS["small_student"]
    direct = Pipeline.from_parts(parts.dit, None, parts.vae, parts.text, pipe.card)
    assert pipe.latents(prompt=RED, frames=2).equal(direct.latents(prompt=RED, frames=2))


def test_what_is_not_cached_is_refused_with_what_to_do(cache: Path) -> None:
    asked: tuple[dict[str, Any], ...] = ({"model": "Small/Nothing"},
                                         {"model": "Small/Wan", "checkpoint": "Small/Student/none.pt"})  # fmt: skip
    for given in asked:
        name = [*given.values()][-1]
        with pytest.raises(FileNotFoundError, match=f"no local path {name}, and the hub's {name} cannot be had .*; "
                                                    "give a local path, or download it"):  # fmt: skip
            Pipeline.load(**given)


def test_a_local_path_goes_before_an_id(cache: Path, parts: Parts, tmp_path: Path, monkeypatch: Any) -> None:
    write_official(tmp_path / "Small" / "Wan", parts)
    for name in ("snapshot_download", "hf_hub_download"):
        monkeypatch.setattr(huggingface_hub, name, lambda *_, **__: pytest.fail("asked the hub"))
    assert Pipeline.load(model="Small/Wan")
    with pytest.raises(FileNotFoundError, match=r"Small/Wen is not a folder"):  # a slip in a path is no id
        Pipeline.load(model="Small/Wen")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at Small/Wan/a\.pt"):
        Pipeline.load(model="Small/Wan", checkpoint="Small/Wan/a.pt")


def test_an_address_is_no_id(cache: Path) -> None:
    address = "https://huggingface.co/Small/Wan"
    with pytest.raises(ValueError, match=f"^{address} is an address; give a local folder, or the hub's id org/name"):
        Pipeline.load(model=address)


def test_what_came_just_now_is_compared_with_its_hash(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = cache / "models--Small--Wan" / "snapshots" / REVISION / "Wan2.1_VAE.pth"
    blob = link.resolve()
    content = bytearray(blob.read_bytes())
    content[-100] ^= 1
    blob.write_bytes(content)
    with pytest.raises(ValueError, match=rf"Wan2\.1_VAE\.pth has SHA-256 .*, the hub says {blob.name}; delete .*again"):
        hub.folder_of("Small/Wan")
    old = time.time() - 1000  # older files were compared when they came: 17 GB take a minute
    for each in (cache / "models--Small--Wan" / "blobs").iterdir():
        os.utime(each, (old, old))
    assert hub.folder_of("Small/Wan") == link.parent


def test_without_huggingface_hub_local_paths_are_all_there_is(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match="no local path Small/Wan; the hub's needs `pip install huggingface_"):
        Pipeline.load(model="Small/Wan")


def test_only_what_loading_needs_is_downloaded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, **given: Any) -> str:
        asked.update(given, name=name)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    hub.folder_of("Wan-AI/Wan2.1-T2V-1.3B")
    published = ("config.json", "diffusion_pytorch_model.safetensors", "models_t5_umt5-xxl-enc-bf16.pth",
                 "Wan2.1_VAE.pth", "google/umt5-xxl/spiece.model", "Wan2.2_VAE.pth", "transformer/config.json",
                 "model_index.json",
                 "text_encoder/model-00001-of-00005.safetensors", "vae/diffusion_pytorch_model.safetensors",
                 "transformer/diffusion_pytorch_model.safetensors.index.json", "tokenizer/spiece.model")  # fmt: skip
    assert asked["name"] == "Wan-AI/Wan2.1-T2V-1.3B"
    wanted = asked["allow_patterns"]
    assert [name for name in published if not any(fnmatch(name, pattern) for pattern in wanted)] == []
    for name in ("README.md", "assets/video.mp4", "examples/i2v.jpg", "optimizer.pt"):
        assert not any(fnmatch(name, pattern) for pattern in wanted)
