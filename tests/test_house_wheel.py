"""The wheel is whole: built from a copy, installed where no checkout is in sight, and used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from profiles import hardware_presets, load_profile, profile_presets

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ROOMS = sorted({package.partition(".")[0] for package in PROJECT["tool"]["setuptools"]["packages"]})


def run(command: list[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run outside the checkout, without variables that would lead Python back into it."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        [str(part) for part in command], cwd=folder, env=kept, capture_output=True, text=True, check=False
    )


@dataclass(frozen=True)
class Installed:
    """A wheel, and an environment that has it beside the libraries of the running one."""

    wheel: Path
    folder: Path

    def python(self, source: str) -> Any:
        """What `source` prints, read as JSON."""
        done = run([self.folder / "bin" / "python", "-c", source], self.folder)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def moeplan(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run([self.folder / "bin" / "moeplan", *arguments], self.folder)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    wheel = build_wheel(folder)
    environment = folder / "environment"
    must(run([sys.executable, "-m", "venv", "--without-pip", environment], folder))
    python = environment / "bin" / "python"
    pip: list[str | Path] = [sys.executable, "-m", "pip", "-q", "--python", python]
    must(run([*pip, "install", "--no-deps", "--no-index", "--disable-pip-version-check", wheel], folder))
    # Folders that a .pth names are searched last and have no say in .pth files: an editable install stays unseen.
    site = next((environment / "lib").glob("python3.*/site-packages"))
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    return Installed(wheel, environment)


def build_wheel(folder: Path) -> Path:
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    must(run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source], folder))
    (wheel,) = folder.glob("*.whl")
    return wheel


def must(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_holds_every_file_of_the_tree(installed: Installed) -> None:
    tree = {
        file.relative_to(ROOT).as_posix()
        for room in ROOMS
        for file in (ROOT / room).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and not file.name.startswith(".")
    }
    with zipfile.ZipFile(installed.wheel) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        info = {name.partition(".dist-info/")[2] for name in wheel.namelist()} - {""}
    assert names == tree
    assert {f"{room}/py.typed" for room in ROOMS} <= names
    assert "licenses/LICENSE" in info


def test_the_installed_packages_plan(installed: Installed) -> None:
    found = installed.python(
        "import json, cost_models, moeplan, profiles, runtime_adapter, solver\n"
        "from importlib.metadata import entry_points, version\n"
        "rooms = [cost_models, moeplan, profiles, runtime_adapter, solver]\n"
        "plan = moeplan.solve(profiles.load_profile('deepseek-v2-measured'), profiles.load_hardware('8xL40-46GB'))\n"
        "print(json.dumps({\n"
        "    'files': [room.__file__ for room in rooms],\n"
        "    'presets': [profiles.profile_presets(), profiles.hardware_presets()],\n"
        "    'status': plan.status,\n"
        "    'readers': [entry.value for entry in entry_points(group='moeplan.config_readers')],\n"
        "    'version': version('moeplan'),\n"
        "}))"
    )
    assert all(Path(file).is_relative_to(installed.folder) for file in found["files"]), found["files"]
    assert found["presets"] == [list(profile_presets()), list(hardware_presets())]
    assert found["status"] == "optimal"
    assert found["readers"] == ["runtime_adapter.meta.profile:read_config"]
    assert found["version"] == PROJECT["project"]["version"]


def test_the_command_answers(installed: Installed) -> None:
    version = installed.moeplan("--version")
    assert (version.returncode, version.stdout.strip()) == (0, PROJECT["project"]["version"])
    shown = installed.moeplan("profile", "deepseek-v2-lite", "--json")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert json.loads(shown.stdout) == load_profile("deepseek-v2-lite").to_dict()


def test_the_command_refuses_in_one_line(installed: Installed) -> None:
    refused = installed.moeplan("profile", "no-such-model")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert len(refused.stderr.splitlines()) == 1
    assert "no-such-model" in refused.stderr
