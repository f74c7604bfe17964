"""Which weights are meant: what is left open is refused, and what is likely a mistake is said."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from small_published import (
    SMALL,
    STUDENT,
    TUNED,
    lora_of,
    states,
    write_checkpoint,
    write_diffusers,
    write_official,
)

from arvid.models.finding import find
from arvid.models.weights import BUNDLED, Parts

pytestmark = pytest.mark.usefixtures("small_cards")


@pytest.fixture(scope="module")
def folder(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An official folder; not to be changed."""
    return write_official(tmp_path_factory.mktemp("official") / "Wan", parts)


def said(*given: Any, **more: Any) -> list[str]:
    """The warnings of `find`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        find(*given, **more)
    return [str(each.message) for each in caught]


def headed(path: Path, parts: Parts, **header: str) -> Path:
    save_file(states(parts)["dit"], path, metadata=header)
    return path


# LoRA


def test_a_lora_is_for_its_checkpoint_and_once(folder: Path, tmp_path: Path, parts: Parts) -> None:
    dit = states(parts)["dit"]
    base, lora = tmp_path / "small_base.pt", tmp_path / "lora.safetensors"
    write_checkpoint(base, dit, "bare")
    save_file(lora_of(dit, 3), lora)
    assert find(folder, base, lora=lora).lora == lora
    with pytest.raises(FileNotFoundError, match=r"no LoRA at .*none\.pt; give a \.pt"):
        find(folder, base, lora=tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"belongs to small_base\.pt, not to a folder's own DiT: give the checkpoint"):
        find(folder, card="small_tuned", lora=lora)
    merged = headed(tmp_path / "merged.safetensors", parts, card="small_tuned", lora="lora.pt")
    assert find(folder, merged) == find(folder, merged, card="small_tuned")
    with pytest.raises(ValueError, match=r"merged\.safetensors has a LoRA in it already, lora\.pt: leave lora=.* out"):
        find(folder, merged, lora=lora)
    own = replace(TUNED, files=())  # nobody says that its base is a file
    assert find(folder, card=own, lora=lora).lora == lora


# Names that contradict each other


def test_a_checkpoint_of_another_card_than_the_one_asked_for_warns(folder: Path, tmp_path: Path, parts: Parts) -> None:
    named = write_checkpoint(tmp_path / "small_student.pt", states(parts)["dit"], "ema")
    written = headed(tmp_path / "any.safetensors", parts, card="small_student")
    for file in (named, written):
        assert said(folder, file, card="small") == [
            f"{file} is of the card 'small_student' by its name or header, and runs as 'small'"]  # fmt: skip
        assert said(folder, file) == said(folder, file, card="small_student") == []
        assert said(folder, file, card=SMALL) == []  # a Card is no slip of the pen


def test_a_student_needs_its_checkpoint(folder: Path, tmp_path: Path, parts: Parts) -> None:
    assert said(folder, student="small_student") == [
        f"{folder}: its own DiT is taken for that of 'small_student'; give a checkpoint if it is not"]  # fmt: skip
    file = write_checkpoint(tmp_path / "mine.pt", states(parts)["dit"], "ema")
    assert said(folder, file, student="small_student") == []
    assert said(folder, card="small_student") == []  # which says that it is
    assert find(folder, file, student="small_student").card == STUDENT


def test_nothing_that_is_not_run_is_warned_of(folder: Path) -> None:
    assert said(folder) != []
    assert said(folder, runs=False) == said(folder, student="small_student", runs=False) == []


def test_a_card_that_only_the_header_knows_is_named(folder: Path, tmp_path: Path, parts: Parts) -> None:
    file = headed(tmp_path / "any.safetensors", parts, card="my_own")
    with pytest.raises(ValueError, match=r"any\.safetensors: its header names the card 'my_own', none of arvid's"):
        find(folder, file)
    assert find(folder, file, card=replace(SMALL, name="my_own")).checkpoint == file


def test_a_published_checkpoint_needs_its_folder_and_not_the_bundled_one(tmp_path: Path, parts: Parts) -> None:
    file = write_checkpoint(tmp_path / "small_student.pt", states(parts)["dit"], "ema")
    for card in (None, "small_student"):
        with pytest.raises(ValueError, match="its own card, 'tiny', for its own weights, and not 'small_student': "
                                             "leave that card out, or give the folder of its model"):  # fmt: skip
            find(BUNDLED, file, card)
    assert find(BUNDLED, file.rename(tmp_path / "mine.pt")).card.name == "tiny"


# Folders


def test_a_model_of_two_dits_is_refused(tmp_path: Path, parts: Parts) -> None:
    folder = write_diffusers(tmp_path / "Wan2.2", parts)
    assert find(folder, runs=False).card == SMALL
    (folder / "transformer_2").mkdir()
    with pytest.raises(ValueError, match=r"Wan2\.2 is of two DiTs, transformer and transformer_2"):
        find(folder)


def test_shards_without_their_index_miss_the_index(tmp_path: Path, parts: Parts) -> None:
    folder = write_official(tmp_path / "m", parts, sharded=True)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    assert find(folder, runs=False).folder.dit == index
    index.unlink()
    assert find(folder, runs=False).folder.dit == index


def test_sizes_are_shown_as_they_are_written(tmp_path: Path, parts: Parts) -> None:
    folder = write_official(tmp_path / "m", parts)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dim": "16"}))
    with pytest.raises(ValueError, match=r"config\.json is not of the card 'small': dim '16' \(the card: 16\)"):
        find(folder, card="small")


def test_what_is_no_folder_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file.pth").write_text("")
    for name, what in (("file.pth", "it is a file"), ("none", "nothing is there")):
        with pytest.raises(FileNotFoundError, match=rf"{name} is not a folder .*, nor of others: {what};"):
            find(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"card\.json, .* missing"):
        find(tmp_path)
