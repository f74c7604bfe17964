"""What may import what: one direction between the parts, and nothing heavy where it is not needed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import arvid

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "arvid").rglob("*.py"))

BASIS = {"registry", "shapes", "geometry"}
CHOICES = {"positional", "noise", "cache", "samplers"}
TOP = {
    "pipeline", "requests", "streams", "video", "video_files", "testing", "evaluation", "training", "plots", "lint",
    "simulate", "costs", "plan", "locking", "resumable",
}  # fmt: skip
BELOW_TOP = BASIS | CHOICES | {"models", "config", "presets", "prompts"}

# What each part of arvid may import from arvid besides itself; "part.module" allows that module only.
MAY_IMPORT = {
    **dict.fromkeys(BASIS, BASIS),
    "positional": BASIS,
    "noise": BASIS,
    "cache": BASIS | {"positional"},
    "models": BASIS | {"positional", "cache"},
    "samplers": BASIS | {"cache.base", "noise.base"},
    "prompts": BASIS,
    "config": BELOW_TOP,
    "presets": BELOW_TOP,
    **dict.fromkeys(TOP, BELOW_TOP | TOP),
    "cli": BELOW_TOP | TOP,
    "__main__": {"cli"},
    "__init__": BELOW_TOP | TOP,  # for type checkers; at run time it imports nothing, which is tested below
}

LIGHT = BASIS | CHOICES | {"config", "presets", "prompts"}
# The files of LIGHT parts that hold or rotate tensors, and so import torch.
TENSOR_FILES = {
    *(f"arvid/cache/{name}.py" for name in ("codecs", "history", "store", "views")), "arvid/positional/rotation.py"
}

# Sizes of published models: tokens a frame, tokens a window, tokens a chunk, width and height in pixels.
MODEL_NUMBERS = {1560, 32760, 4680, 832, 480}


@dataclass(frozen=True)
class Import:
    module: str  # "arvid.cache.store"; names imported from a package of arvid count as modules where they are some
    line: int
    at_load: bool  # runs when the module is loaded, rather than in a function or for a type checker


def imports(path: Path) -> Iterator[Import]:
    def visit(node: ast.AST, at_load: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, at_load) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parent.parts
            parent = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*parent, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{module}.{alias.name}"
                yield Import(name if is_module(name) else module, node.lineno, at_load)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for child in node.body:
                yield from visit(child, False)
            for child in node.orelse:
                yield from visit(child, at_load)
        else:
            deferred = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for child in ast.iter_child_nodes(node):
                yield from visit(child, at_load and not deferred)

    yield from visit(ast.parse(path.read_text()), True)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or path.is_dir()


def part(path: Path) -> str:
    return path.relative_to(ROOT / "arvid").parts[0].removesuffix(".py")


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def allowed(own: str, module: str) -> bool:
    inside = module.removeprefix("arvid.")
    return inside.split(".")[0] == own or any(
        inside == other or inside.startswith(f"{other}.") for other in MAY_IMPORT[own])


@pytest.mark.parametrize("path", FILES, ids=short)
def test_imports_flow_one_way(path):
    own = part(path)
    assert own in MAY_IMPORT, f"arvid/{own} is new: give it a row in MAY_IMPORT, and its place in the order"
    wrong = [f"{short(path)}:{found.line} imports {found.module}" for found in imports(path)
             if found.module.startswith("arvid.") and not allowed(own, found.module)]
    assert not wrong, f"{', '.join(wrong)}; arvid.{own} may import {sorted(MAY_IMPORT[own]) or 'nothing of arvid'}"


@pytest.mark.parametrize("path", [path for path in FILES if part(path) in LIGHT], ids=short)
def test_strategies_load_with_numpy_at_most(path):
    if short(path) in TENSOR_FILES:
        return
    heavy = [f"{short(path)}:{found.line} imports {found.module}" for found in imports(path)
             if found.at_load and found.module.split(".")[0] not in {*sys.stdlib_module_names, "arvid", "numpy"}]
    assert not heavy, (f"{', '.join(heavy)} when it is loaded; do so under TYPE_CHECKING or in a function, or, if the "
                       "file exists to hold tensors, list it in TENSOR_FILES")


@pytest.mark.parametrize("path", [path for path in FILES if short(path) != "arvid/models/specs.py"], ids=short)
def test_numbers_of_models_live_in_their_specs(path):
    literal = [f"{short(path)}:{node.lineno} says {node.value}" for node in ast.walk(ast.parse(path.read_text()))
               if isinstance(node, ast.Constant) and type(node.value) is int and node.value in MODEL_NUMBERS]
    assert not literal, f"{', '.join(literal)}; take it from a spec in arvid/models/specs.py"


def loaded_by(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_import_arvid_is_lazy():
    loaded = loaded_by("import arvid; arvid.__version__; dir(arvid)")
    assert not loaded & {"torch", "numpy", "transformers", "diffusers", "imageio", "matplotlib"}
    assert {name for name in loaded if name.startswith("arvid.")} == set()


def test_strategies_and_configs_load_without_torch():
    light = [name for name in sorted(LIGHT) if is_module(f"arvid.{name}") and (
        (ROOT / "arvid" / f"{name}.py").exists() or (ROOT / "arvid" / name / "__init__.py").exists())]
    loaded = loaded_by("\n".join(f"import arvid.{name}" for name in light))
    assert not loaded & {"torch", "transformers", "diffusers"}, f"one of {light} loads them"


@pytest.mark.parametrize("name", arvid.__all__)
def test_every_public_name_of_arvid_exists(name):
    assert getattr(arvid, name)
    assert name in dir(arvid)


def test_an_unknown_name_lists_the_known():
    with pytest.raises(AttributeError, match=r"no attribute 'Pipelin'; it has .*Pipeline"):
        arvid.Pipelin  # noqa: B018
