"""The rooms keep their order: imports point down only, each outside library has its door, nothing runs foreign code."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("moeplan", "runtime_adapter", "solver", "cost_models", "profiles")
"""From the top down: a room may import itself and those after it."""
DOORS = {
    "ortools": ("solver",),
    "torch": ("runtime_adapter",),
    "transformers": ("runtime_adapter",),
    "accelerate": ("runtime_adapter",),
    "yaml": ("profiles",),
    "huggingface_hub": ("profiles", "runtime_adapter"),
}
"""Outside libraries that only these rooms may import."""
OUTDOORS = {"tests", "benchmarks", "docs", *(file.stem for file in (ROOT / "tests").glob("*.py"))}
"""Not installed with the packages."""
HEAVY = ("torch", "transformers", "accelerate", "matplotlib", "plotly", "huggingface_hub")
"""Not imported until something needs them."""
FOREIGN_MODULES = ("pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib")
UNSAFE_YAML = {
    *("load", "load_all", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all"),
    *("Loader", "UnsafeLoader", "FullLoader", "CLoader", "CFullLoader", "CUnsafeLoader"),
}
MAX_LINES = 450
FILES = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def room_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0]


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def imports(tree: ast.AST) -> Iterator[tuple[int, Any]]:
    """(line, module) of every import, wherever it stands: lazy, for type checkers, or by name in a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module or ""
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            yield from ((node.lineno, arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def against_the_order(room: str, tree: ast.AST) -> list[str]:
    """Imports that the room may not make, as `line: module: why`."""
    found = []
    for line, module in imports(tree):
        top = module.partition(".")[0]
        if top in ROOMS and ROOMS.index(top) < ROOMS.index(room):
            found.append(f"{line}: {module}: {room} is below {top}")
        elif top in OUTDOORS:
            found.append(f"{line}: {module}: is not installed with the packages")
        elif room not in DOORS.get(top, (room,)):
            found.append(f"{line}: {module}: only {', '.join(DOORS[top])} may import {top}")
    return found


def foreign_code(tree: ast.AST) -> list[str]:
    """Ways to run code that came with a file, as `line: what`."""
    found = [(line, module) for line, module in imports(tree) if module.partition(".")[0] in FOREIGN_MODULES]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                found.append((node.lineno, node.func.id))
            found += [(node.lineno, key.arg) for key in node.keywords if key.arg and not harmless(key)]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "yaml":
            found += [(node.lineno, f"yaml.{node.attr}")] if node.attr in UNSAFE_YAML else []
        elif isinstance(node, ast.ImportFrom) and node.module == "yaml":
            found += [(node.lineno, f"yaml.{alias.name}") for alias in node.names if alias.name in UNSAFE_YAML]
    return [f"{line}: {what}" for line, what in sorted(found)]


def harmless(keyword: ast.keyword) -> bool:
    """False for trust_remote_code=<anything but False> and weights_only=<anything but True>."""
    needed = {"trust_remote_code": False, "weights_only": True}.get(keyword.arg or "")
    return needed is None or (isinstance(keyword.value, ast.Constant) and keyword.value.value is needed)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_point_down(file: Path) -> None:
    assert against_the_order(room_of(file), tree_of(file)) == []


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_nothing_runs_code_out_of_files(file: Path) -> None:
    assert foreign_code(tree_of(file)) == []


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_are_small(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_every_room_is_looked_at() -> None:
    assert {room_of(file) for file in FILES} == set(ROOMS)


@pytest.mark.parametrize(
    ("room", "source", "said"),
    [
        ("profiles", "import cost_models.links", "profiles is below cost_models"),
        ("solver", "def f():\n    from runtime_adapter import apply", "solver is below runtime_adapter"),
        ("profiles", "import importlib\nimportlib.import_module('solver')", "profiles is below solver"),
        ("moeplan", "from ortools.sat.python import cp_model", "only solver may import ortools"),
        ("solver", "import torch.nn", "only runtime_adapter may import torch"),
        ("runtime_adapter", "import yaml", "only profiles may import yaml"),
        ("solver", "from tests import strategies", "is not installed"),
    ],
)
def test_the_order_is_noticed(room: str, source: str, said: str) -> None:
    (found,) = against_the_order(room, ast.parse(source))
    assert said in found


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec('1')",
        "import pickle",
        "from_config(c, trust_remote_code=True)",
        "from_config(c, trust_remote_code=x)",
        "torch.load(f, weights_only=False)",
        "yaml.load(t, Loader=yaml.SafeLoader)",
        "from yaml import FullLoader",
    ],
)
def test_foreign_code_is_noticed(source: str) -> None:
    assert len(foreign_code(ast.parse(source))) == 1


def test_harmless_code_passes() -> None:
    harmless_source = "model.eval()\nyaml.safe_load(t)\nfrom_config(c, trust_remote_code=False)\nre.compile('x')"
    assert foreign_code(ast.parse(harmless_source)) == []


def python(source: str) -> str:
    """What a fresh Python prints for `source`, in which the rooms can be imported."""
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("room", [*ROOMS, "moeplan.cli"])
def test_importing_a_room_imports_nothing_heavy(room: str) -> None:
    """Every room alone, so also: none needs another to have been imported first."""
    assert python(f"import sys, {room}; print([name for name in {HEAVY} if name in sys.modules])") == "[]"


def test_solving_needs_no_torch() -> None:
    missing = "".join(f"sys.modules[{name!r}] = None; " for name in HEAVY)
    solving = "import moeplan; print(moeplan.solve('qwen3-30b-a3b', '1xRTX4090,ram=96GB').status)"
    assert python(f"import sys; {missing}{solving}") == "optimal"


def test_the_folders_of_the_solver_need_each_other_in_one_direction() -> None:
    """what_if > solve > split > search > feasibility, heuristics > cp_sat > column_generation > files at the top."""
    needs: dict[str, set[str]] = {}
    for file in (file for file in FILES if room_of(file) == "solver" and file.name != "__init__.py"):
        here = file.parent.name if file.parent.name != "solver" else file.stem
        for _, module in imports(tree_of(file)):
            parts = str(module).split(".")
            if parts[0] == "solver" and len(parts) > 1 and parts[1] != here:
                needs.setdefault(here, set()).add(parts[1])
    assert needs["split"] >= {"search", "heuristics"}
    assert list(graphlib.TopologicalSorter(needs).static_order())[-1] in ("compare", "solve", "what_if")
