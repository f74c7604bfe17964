"""Files of torch.save: the table that is asked for, no code run, and damage never loaded as something else."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import tracemalloc
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_files import SHAPES, STATE, refused, write

from arvid.models.files import load_exactly, open_tensors

OTHER = {name: value + 1 for name, value in STATE.items()}


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


# Tables


@pytest.mark.parametrize(("content", "key", "expected"), [
    (STATE, None, STATE),
    (STATE, "", STATE),
    ({"generator_ema": STATE, "step": 600, "config": {"dim": 3}}, None, STATE),
    ({"generator": OTHER, "generator_ema": STATE, "critic": OTHER}, "generator_ema", STATE),
    ({"generator": OTHER, "generator_ema": STATE, "critic": OTHER}, "critic", OTHER),
    ({"step": torch.tensor(1), "model": STATE}, "model", STATE),
    ({name: torch.nn.Parameter(value) for name, value in STATE.items()}, None, STATE),
])  # fmt: skip
def test_the_table_that_is_asked_for(tmp_path: Path, content: Any, key: str | None, expected: Any) -> None:
    with open_tensors(saved(tmp_path / "model.pt", content), key) as tensors:
        state = load_exactly(tensors, SHAPES)
    assert all(state[name].equal(value) and not state[name].requires_grad for name, value in expected.items())


@pytest.mark.parametrize(("content", "key", "message"), [
    ({"generator": STATE, "critic": {"x": torch.ones(1)}}, None,
     r"several tables of tensors; choose one with key, .*: 'generator' \(4 tensors\), 'critic' \(1 tensors\)$"),
    ({"step": torch.tensor(1), "model": STATE}, None,
     r"choose one with key, .*: '' \(1 tensors\), 'model' \(4 tensors\); '' is the file's own table$"),
    ({"generator": STATE}, "generator_ema", r"no table of tensors called 'generator_ema'; it has 'generator' \(4"),
    (STATE, "generator", r"called 'generator'; it has '' \(4 tensors\); '' is the file's own table"),
    ({"step": torch.tensor(1), "model": STATE}, "", "model not a dense tensor"),
    ({"model": STATE | {"step": 3}}, None, "step not a dense tensor"),
    ({"step": 3, "config": {}}, None, r"holds no table of tensors \(its keys: 'step', 'config'\)"),
    ({"a": {"b": {"c": torch.ones(1)}}}, None, r"holds no table of tensors \(its keys: 'a'\)"),
    ({}, None, "holds no table of tensors"),
    ([torch.ones(1)], None, r"holds no table of tensors \(list\)"),
    (torch.ones(1), None, r"holds no table of tensors \(Tensor\)"),
    ({0: torch.ones(1)}, None, "0 not a dense tensor"),
    ({"x": torch.ones(2).to_sparse()}, None, "x not a dense tensor"),
    ({"x": torch.ones(2, device="meta")}, None, "x not a dense tensor"),
])  # fmt: skip
def test_no_table_or_too_many_is_refused(tmp_path: Path, content: Any, key: str | None, message: str) -> None:
    refused(saved(tmp_path / "model.pt", content), message, key)


# Code


class Payload:
    """Leaves a file behind when it is unpickled by a reader that runs what it is told to."""

    def __init__(self, run: Callable[..., Any], *arguments: Any) -> None:
        self.call = run, arguments

    def __reduce__(self) -> Any:
        return self.call


def bare(path: Path, payload: Any, protocol: int) -> None:
    path.write_bytes(pickle.dumps({"model": STATE, "x": payload}, protocol))


def zipped(path: Path, payload: Any, protocol: int) -> None:
    torch.save({"model": STATE, "x": payload}, path, pickle_protocol=protocol)


def legacy(path: Path, payload: Any, protocol: int) -> None:
    torch.save({"x": payload}, path, _use_new_zipfile_serialization=False, pickle_protocol=protocol)


def data_pkl(path: Path, payload: Any, protocol: int) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(payload, protocol))
        archive.writestr("archive/version", "3\n")


def tar(path: Path, payload: Any, protocol: int) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in ("pickle", "storages", "tensors"):
            content = pickle.dumps(payload, protocol)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("container", [bare, zipped, legacy, data_pkl, tar])
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_no_code_runs(tmp_path: Path, container: Any, protocol: int, suffix: str) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / f"model{suffix}"
    for run, *arguments in ((os.system, f"touch {marker}"), (eval, f"open({str(marker)!r}, 'w')"), (marker.touch,)):
        container(path, Payload(run, *arguments), protocol)
        refused(path, "is refused|is not read|is damaged")
        assert not marker.exists()
    if container is data_pkl:  # the payload works where nothing holds it back
        with zipfile.ZipFile(path) as archive:
            pickle.loads(archive.read("archive/data.pkl"))
        assert marker.exists()


def test_no_code_runs_even_where_the_list_of_globals_misses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arvid.models.torch_files.get_unsafe_globals_in_checkpoint", lambda path: [])
    marker, path = tmp_path / "marker", tmp_path / "model.pt"
    zipped(path, Payload(os.system, f"touch {marker}"), 2)
    refused(path, rf"refused: Trying to load unsupported GLOBAL {os.name}\.system whose module {os.name} is blocked")
    zipped(path, Payload(eval, f"open({str(marker)!r}, 'w')"), 2)
    refused(path, "refused: Unsupported global: GLOBAL eval was not an allowed global by default; get safetensors")
    assert not marker.exists()


def test_unknown_globals_are_named(tmp_path: Path) -> None:
    content = {"generator": STATE, "args": Namespace(lr=1), "x": Payload(os.system, "true")}
    names = rf"'argparse\.Namespace', '{os.name}\.system'"
    path = saved(tmp_path / "model.pt", content)
    refused(path, f"asks to run {names} and is refused: weights need no code", "generator")


def test_a_torch_that_is_not_safe_reads_no_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "model.pt")

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("read all the same")

    monkeypatch.setattr(torch, "load", load)
    for version in ("2.9.1+cu128", "2.10.0a0", "2.9", "1.13"):
        monkeypatch.setattr(torch, "__version__", version)
        refused(path, "before 2.10 .*GHSA-63cw-57p8-fm3p.*; update torch")
    monkeypatch.setattr(torch, "__version__", "2.10.0")
    refused(path, "read all the same")


# Archives


def rewritten(path: Path, compress: int = zipfile.ZIP_STORED, twice: str = "") -> Path:
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compress) as archive:
        warnings.simplefilter("ignore", UserWarning)  # zipfile's, about the double name
        for name, content in records.items():
            archive.writestr(name, content)
            if name.endswith(twice or "\n"):
                archive.writestr(name, content)
    return path


def test_archives_that_torch_did_not_write_so_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "model.pt")
    with open_tensors(rewritten(path)) as tensors:
        assert load_exactly(tensors, SHAPES)["conv.weight"].equal(STATE["conv.weight"])
    refused(rewritten(path, zipfile.ZIP_DEFLATED), "compressed; give the file as torch.save wrote it")
    refused(rewritten(write(path), twice="data/0"), "holds a record twice")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(200 << 20))
    tracemalloc.start()
    refused(path, "data.pkl compressed; give the file as torch.save wrote it")
    assert tracemalloc.get_traced_memory()[1] < 20 << 20  # refused before it is unpacked
    tracemalloc.stop()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(path, "is damaged; get it again")
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path)
    refused(path, "holds a TorchScript program, not weights")


def test_bare_pickles_and_old_archives_are_told_apart_from_damage(tmp_path: Path) -> None:
    for content in (saved(tmp_path / "a.pt", STATE, _use_new_zipfile_serialization=False).read_bytes(),
                    pickle.dumps({"x": 1}, 2)):
        (tmp_path / "a.pt").write_bytes(content)
        refused(tmp_path / "a.pt", "is a bare pickle or an archive of torch before 1.6, which is not read")


def test_any_change_of_the_pickle_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "model.pt")
    good = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        content = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    start = good.index(content)
    for at in range(start, start + len(content), 7):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        refused(path, r"is incomplete or damaged; get it again: BadZipFile Bad CRC-32")


CHANGES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from(["flip", "cut", "add"]),
                             st.binary(min_size=1, max_size=8)), min_size=1, max_size=4)


def damaged(content: bytes, changes: list[tuple[float, str, bytes]]) -> bytes:
    for where, how, extra in changes:
        at = int(where * len(content))
        rest = content[at + len(extra) :]
        if how == "flip":
            rest = bytes(a ^ b for a, b in zip(content[at : at + len(extra)], extra, strict=False)) + rest
        content = content[:at] + (extra + content[at:] if how == "add" else rest)
    return content


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["model.safetensors", "model.pt"]), CHANGES)
def test_damaged_bytes_are_refused_or_the_same_names_and_shapes(tmp_path: Path, name: str, changes: Any) -> None:
    path = write(tmp_path / name)
    path.write_bytes(damaged(path.read_bytes(), changes))
    check_damaged(path)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CHANGES)
def test_damaged_pickles_with_right_checksums_are_refused_or_the_same(tmp_path: Path, changes: Any) -> None:
    path = write(tmp_path / "model.pt")
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, damaged(content, changes) if name.endswith("data.pkl") else content)
    check_damaged(path)


def check_damaged(path: Path) -> None:
    try:
        with open_tensors(path) as tensors:
            state = load_exactly(tensors, SHAPES)
    except ValueError as error:
        said = str(error)
    else:
        assert {name: tuple(value.shape) for name, value in state.items()} == SHAPES
        assert all(value.isfinite().all() for value in state.values())
        return
    assert str(path) in said


def test_tables_may_be_ordered(tmp_path: Path) -> None:
    nested = OrderedDict(generator=OrderedDict(STATE))
    with open_tensors(saved(tmp_path / "model.pt", nested)) as tensors:
        assert tensors.names == list(STATE)
