"""Published files: read lazily and exactly, and damage, tricks and code of every kind refused by name."""

from __future__ import annotations

import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from arvid.models.files import DTYPES, load_exactly, open_tensors

STATE = {
    "conv.weight": torch.arange(24.0).reshape(2, 3, 4),
    "conv.bias": torch.tensor([1.5, -2.5], dtype=torch.bfloat16),
    "blocks.0.q": torch.linspace(-1, 1, 16, dtype=torch.float16).reshape(4, 4),
    "scalar": torch.tensor(3.0, dtype=torch.float64),
}
SHAPES = {name: tuple(value.shape) for name, value in STATE.items()}
INDEX = "model.safetensors.index.json"


def shard_of(name: str) -> str:
    return f"model-0000{1 + (name > 'c')}-of-00002.safetensors"


def write_shards(folder: Path) -> Path:
    for shard in sorted({*map(shard_of, STATE)}):
        save_file({name: value for name, value in STATE.items() if shard_of(name) == shard}, folder / shard)
    (folder / INDEX).write_text(json.dumps({"weight_map": {name: shard_of(name) for name in STATE}}))
    return folder / INDEX


def write(path: Path) -> Path:
    """`STATE` as a file of the kind that the suffix says, or in shards."""
    if path.name.endswith(INDEX):
        return write_shards(path.parent)
    save_file(STATE, path) if path.suffix == ".safetensors" else torch.save(OrderedDict(STATE), path)
    return path


def refused(path: Path, message: str, key: str | None = None, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=message) as caught, open_tensors(path, key):
        pass
    assert str(path) in str(caught.value) or path.is_dir()


FILES = ("model.safetensors", INDEX, "model.pt", "model.pth")


@pytest.mark.parametrize("name", FILES)
def test_every_tensor_as_it_was_saved(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    with open_tensors(str(path)) as tensors:
        assert (tensors.path, sorted(tensors.names)) == (path, sorted(STATE))
        for key, value in STATE.items():
            assert (tensors.shape(key), tensors.dtype(key)) == (tuple(value.shape), value.dtype)
            assert tensors[key].dtype == value.dtype
            assert tensors[key].equal(value)
        with pytest.raises(ValueError, match=r"has no tensor 'conv'; it has .*conv\.bias"):
            tensors["conv"]
        loaded = load_exactly(tensors, SHAPES)
    assert all(loaded[key].equal(value) for key, value in STATE.items())


def test_a_folder_is_its_index_or_its_one_file(tmp_path: Path) -> None:
    refused(tmp_path, r"has no \.safetensors", error=FileNotFoundError)
    single = write(tmp_path / "model.safetensors")
    with open_tensors(tmp_path) as tensors:
        assert tensors.path == single
    write(tmp_path / INDEX)
    refused(tmp_path, f"has {INDEX} and its weights in one file")
    single.unlink()
    with open_tensors(tmp_path) as tensors:
        assert (tensors.path, tensors.names) == (tmp_path / INDEX, list(STATE))
    (tmp_path / f"fp16.{INDEX}").write_text("{}")
    refused(tmp_path, rf"has 2 indexes: fp16\.{INDEX}, {INDEX}; give one's path")
    for index in (tmp_path / INDEX, tmp_path / f"fp16.{INDEX}"):
        index.unlink()
    refused(tmp_path, "has 2 files and no index: model-00001")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_opening_takes_no_memory_for_values(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"big{suffix}"
    state = {f"w{i}": torch.full((1 << 20,), float(i)) for i in range(24)}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    del state

    def resident() -> int:
        status = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in status if line.startswith("RssAnon")).split()[1]) << 10

    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    before = resident()
    with open_tensors(path) as tensors:
        assert sum(float(tensors[name][-1]) for name in tensors.names) == sum(range(24))
        assert resident() - before < 24 << 20  # of 96 MiB


@pytest.mark.parametrize(("name", "dtype"), DTYPES.items())
def test_every_dtype_of_safetensors(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    save_file({"x": torch.ones(3).to(dtype)}, tmp_path / "x.safetensors")
    assert f'"dtype":"{name}"'.encode() in (tmp_path / "x.safetensors").read_bytes()
    with open_tensors(tmp_path / "x.safetensors") as tensors:
        assert tensors.dtype("x") == tensors["x"].dtype == dtype


# Loading exactly


def test_loading_casts_renames_and_copies(tmp_path: Path) -> None:
    path = write(tmp_path / "model.pt")
    names = {name: f"own.{name}" for name in STATE}
    before = path.read_bytes()
    with open_tensors(path) as tensors:
        state = load_exactly(tensors, {f"own.{name}": shape for name, shape in SHAPES.items()}, names, "cpu",
                             torch.float32)
    for name, value in STATE.items():
        assert state[f"own.{name}"].equal(value.float())
        state[f"own.{name}"].zero_()
    assert path.read_bytes() == before


@pytest.mark.parametrize(("change", "message"), [
    (lambda wanted: wanted.pop("scalar"), "scalar unexpected"),
    (lambda wanted: wanted.update(more=(1,)), "more missing"),
    (lambda wanted: wanted.update({"conv.bias": (3,)}), r"conv\.bias \(2,\) instead of \(3,\) of another shape"),
])  # fmt: skip
@pytest.mark.parametrize("name", FILES[:3])
def test_other_names_and_shapes_are_refused(tmp_path: Path, name: str, change: Any, message: str) -> None:
    wanted = dict(SHAPES)
    change(wanted)
    with (
        open_tensors(write(tmp_path / name)) as tensors,
        pytest.raises(ValueError, match=f"{name} does not fit its card: {message}$"),
    ):
        load_exactly(tensors, wanted)


def test_a_tensor_that_the_names_leave_out_is_unexpected(tmp_path: Path) -> None:
    wanted = {name: shape for name, shape in SHAPES.items() if name != "scalar"}
    with open_tensors(write(tmp_path / "model.pt")) as tensors, pytest.raises(ValueError, match="scalar unexpected"):
        load_exactly(tensors, wanted, {name: name for name in wanted})


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_values_that_are_not_finite_are_named_and_counted(tmp_path: Path, suffix: str, bad: float) -> None:
    state = {name: value.clone() for name, value in STATE.items()}
    state["conv.weight"].view(-1)[[0, 23]] = bad
    path = tmp_path / f"model{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    with open_tensors(path) as tensors, pytest.raises(ValueError, match=r": conv\.weight \(2 of 24 values, .*finite$"):
        load_exactly(tensors, SHAPES)


def test_what_overflows_the_wanted_dtype_is_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.tensor([7e4, 1.0])}, tmp_path / "model.pt")
    with open_tensors(tmp_path / "model.pt") as tensors:
        assert load_exactly(tensors, {"x": (2,)}, dtype=torch.bfloat16)["x"].isfinite().all()
        with pytest.raises(ValueError, match=r"x \(1 of 2 values, read as torch\.float16\) with values that are not"):
            load_exactly(tensors, {"x": (2,)}, dtype=torch.float16)


def test_finite_values_whose_sum_overflows_are_finite(tmp_path: Path) -> None:
    big = torch.full((4,), 6e4, dtype=torch.float16)
    save_file({"x": big}, tmp_path / "x.safetensors")
    with open_tensors(tmp_path / "x.safetensors") as tensors:
        assert load_exactly(tensors, {"x": (4,)})["x"].equal(big)


def test_infinities_of_both_signs_do_not_cancel(tmp_path: Path) -> None:
    save_file({"x": torch.tensor([torch.inf, 1.0, -torch.inf])}, tmp_path / "x.safetensors")
    with open_tensors(tmp_path / "x.safetensors") as tensors, pytest.raises(ValueError, match="2 of 3 values"):
        load_exactly(tensors, {"x": (3,)})


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn,
                                   torch.float8_e5m2])  # fmt: skip
def test_no_weights_are_whole_numbers_or_of_eight_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.ones(2).to(dtype)}, path)
    match = rf"x \({dtype}\) not floating point of 16 bits or more$"
    with open_tensors(path) as tensors, pytest.raises(ValueError, match=match):
        load_exactly(tensors, {"x": (2,)}, dtype=torch.float32)


def test_all_that_is_wrong_is_one_report(tmp_path: Path) -> None:
    state = {**STATE, "more": torch.ones(1), "conv.weight": torch.full_like(STATE["conv.weight"], torch.nan)}
    del state["scalar"]
    state["conv.bias"] = torch.full((3,), torch.inf)  # of another shape: said once, not read
    torch.save(state, tmp_path / "model.pt")
    with open_tensors(tmp_path / "model.pt") as tensors, pytest.raises(ValueError, match=(
        r"model\.pt does not fit its card: scalar missing; more unexpected; conv\.bias \(3,\) instead of \(2,\) of "
        r"another shape; conv\.weight \(24 of 24 values, read as .*\) with values that are not finite$")):  # fmt: skip
        load_exactly(tensors, SHAPES)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(ValueError, match=r"pipe\.pt is no regular file"), open_tensors(tmp_path / "pipe.pt"):
        pass


def test_two_names_of_one_tensor_must_be_equal(tmp_path: Path) -> None:
    names = {"a": "x", "b": "x"}
    for other, good in ((torch.ones(2), True), (torch.zeros(2), False)):
        save_file({"a": torch.ones(2), "b": other}, tmp_path / "x.safetensors")
        with open_tensors(tmp_path / "x.safetensors") as tensors:
            if good:
                assert list(load_exactly(tensors, {"x": (2,)}, names)) == ["x"]
                continue
            with pytest.raises(ValueError, match="b not equal to their other name"):
                load_exactly(tensors, {"x": (2,)}, names)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_what_is_loaded_is_no_view_of_the_file(tmp_path: Path, suffix: str) -> None:
    with open_tensors(write(tmp_path / f"model{suffix}")) as tensors:
        for value in load_exactly(tensors, SHAPES).values():
            value.zero_()
        assert all(tensors[name].equal(value) for name, value in STATE.items())


# Files that are not what they should be


@pytest.mark.parametrize(("content", "message"), [
    (lambda good: good[:-7], r"is incomplete, {short} bytes of {size}|\({short} bytes\) is incomplete or damaged"),
    (lambda good: good[: len(good) // 2], r"is incomplete, {half} bytes of {size}|\({half} bytes\) is incomplete"),
    (lambda good: good[:5], r"\(5 bytes\) is incomplete"),
    (lambda good: b"", r"is empty \(0 bytes\)"),
    (lambda good: b"\n<!DOCTYPE html><html><body>404</body></html>", "is a web page, not weights; download"),
    (lambda good: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "run `git lfs pull`"),
    (lambda good: b"\0\1\2\3" * 99, "no safetensors file|no file of torch.save"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "model.pth"])
def test_a_file_that_is_not_whole_is_named(
    tmp_path: Path, name: str, content: Callable[[bytes], bytes], message: str
) -> None:
    path = write(tmp_path / name)
    good = path.read_bytes()
    path.write_bytes(content(good))
    refused(path, message.format(size=len(good), short=len(good) - 7, half=len(good) // 2))


def test_a_file_under_the_wrong_suffix_says_so(tmp_path: Path) -> None:
    shutil.move(write(tmp_path / "a.pt"), tmp_path / "b.safetensors")
    refused(tmp_path / "b.safetensors", "is a zip archive as torch saves it, not safetensors; name it .pt")
    shutil.move(write(tmp_path / "a.safetensors"), tmp_path / "b.pt")
    refused(tmp_path / "b.pt", "if it holds safetensors, name it .safetensors")
    shutil.move(write(tmp_path / "a.pt"), tmp_path / "b.ckpt")
    refused(tmp_path / "b.ckpt", "is no kind of weights known here")
    refused(tmp_path / "nowhere.pt", "no weights at .*nowhere.pt; give a", error=FileNotFoundError)
    refused(write(tmp_path / "c.safetensors"), "has no entries to choose 'generator' from", key="generator")


# Shards


def reindexed(index: Path, change: Callable[[dict[str, str]], Any]) -> None:
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))


def test_shards_that_contradict_their_index_are_refused(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    one, two = (tmp_path / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    reindexed(index, lambda homes: homes.pop("scalar"))
    refused(index, f"{two} holds scalar, which {index} does not place there")
    write_shards(tmp_path)
    reindexed(index, lambda homes: homes.update(more=one.name))
    refused(index, f"{one} lacks more, which {index} looks for there")
    write_shards(tmp_path)
    reindexed(index, lambda homes: homes.update(scalar=one.name))
    refused(index, f"{one} lacks scalar")
    write_shards(tmp_path)
    save_file(STATE, two)
    refused(index, r"both hold conv\.bias, conv\.weight|both hold blocks\.0\.q")
    write_shards(tmp_path)
    two.write_bytes(two.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{two} is incomplete"), open_tensors(index):
        pass
    two.unlink()
    refused(index, f"{two} is missing, but {index} wants it", error=FileNotFoundError)


@pytest.mark.parametrize("home", ["../x.safetensors", "/x.safetensors", "a/x.safetensors", "a\\x.safetensors",
                                  "c:x.safetensors", "..", "x.pt", "", "x\0.safetensors"])
def test_an_index_names_files_beside_it_only(tmp_path: Path, home: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": home}}))
    refused(folder / INDEX, "shards must be .safetensors files beside it")


@pytest.mark.parametrize(("content", "message"), [
    (b"", "is empty"),
    (b"<html>", "is a web page"),
    (b"{", r"\(1 bytes\) is not a readable index"),
    (b"\xff", "is not a readable index"),
    (b"[" * 100_000, "is not a readable index"),
    (b"null", "has no weight_map"),
    (b'{"weight_map": {}}', "has no weight_map"),
    (b'{"weight_map": {"x": 1}}', "has no weight_map"),
    (b'{"weight_map": {"x": "a.safetensors", "x": "b.safetensors"}}', "x given twice"),
])  # fmt: skip
def test_an_index_that_is_none_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / INDEX).write_bytes(content)
    refused(tmp_path / INDEX, message)
