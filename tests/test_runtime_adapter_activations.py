"""Recorded counts become frequencies; files that are not that are refused in one line, and run nothing."""

from __future__ import annotations

import builtins
import json
import os
import random
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_models import CostModel, Step
from moeplan import cli as command
from moeplan import load_hardware, load_profile, read_activations, solve
from profiles import ApplyError, Experts, ModelProfile, ProfileError, load_workload
from runtime_adapter import activations

torch = pytest.importorskip("torch")

LAYERS, COUNT, ACTIVE = 4, 8, 2
"""Of `model`, whose first layer is dense."""


def model(**experts: Any) -> ModelProfile:
    block = {"weight_bytes": 1000}
    layer = {"attention": block, "experts": {"weight_bytes": 8000, "count": COUNT, "active": ACTIVE, **experts}}
    return ModelProfile(
        model="m",
        source="test",
        hidden_size=4,
        embedding=block,
        head=block,
        layers=[{"attention": block}, *[layer] * 3],
    )


def recorded(buffers: int = 3, seed: int = 1) -> Any:
    """Counts as a recorder makes them: in each buffer some tokens, each of which used ACTIVE experts of every layer."""
    rng = random.Random(seed)
    counts = torch.zeros(buffers, LAYERS, COUNT, dtype=torch.int32)
    for buffer in range(buffers):
        for layer in range(1, LAYERS):
            for _ in range(50):
                for expert in rng.sample(range(COUNT), ACTIVE):
                    counts[buffer, layer, expert] += 1
    return counts


def write_activations(path: Path, counts: Any, **more: Any) -> Path:
    torch.save({"logical_count": counts, **more}, path)
    return path


def used(profile: ModelProfile, layer: int) -> tuple[float, ...] | None:
    experts = profile.layers[layer].experts
    assert experts is not None
    return experts.frequencies


def refused(path: Path, profile: ModelProfile | None = None) -> str:
    with pytest.raises(ProfileError) as problem:
        read_activations(path, profile or model())
    said = str(problem.value)
    assert said.startswith(f"{path}: ") or "\x00" in str(path)
    assert "\n" not in said
    assert len(said) < 400
    return said


# ---- what is read ----


def test_frequencies_are_counts_over_tokens(tmp_path: Path) -> None:
    counts = recorded()
    found = read_activations(write_activations(tmp_path / "run.pt", counts), model())
    assert found.layers[0] == model().layers[0]
    for layer in range(1, LAYERS):
        tokens = 3 * 50
        expected = [int(n) / tokens for n in counts.sum(dim=0)[layer]]
        assert used(found, layer) == pytest.approx(expected, abs=1e-9)
        assert sum(used(found, layer) or ()) == pytest.approx(ACTIVE, abs=1e-7)
    assert found.source == "test; use of experts from run.pt"
    assert found.notes[-1] == "experts are used as run.pt counted: 900 uses in 3 buffers"
    assert found.replace(source="test", notes=(), layers=model().layers) == model()


def test_what_the_recorder_saves_beside_the_counts_does_not_matter(tmp_path: Path) -> None:
    counts = recorded(buffers=1)
    plain = read_activations(write_activations(tmp_path / "run.pt", counts), model())
    for kind in (torch.int64, torch.float32, torch.bfloat16):
        more = {"rank": 0, "average_utilization_rate_over_window": 0.7}
        assert read_activations(write_activations(tmp_path / "run.pt", counts.to(kind), **more), model()) == plain
    parameter = torch.nn.Parameter(counts.to(torch.float32))
    assert read_activations(write_activations(tmp_path / "run.pt", parameter), model()) == plain
    summed = write_activations(tmp_path / "run.pt", counts[0])
    assert read_activations(str(summed), model()) == plain, "a running sum has no buffers"


def test_layers_used_evenly_or_never_are_uniform(tmp_path: Path) -> None:
    counts = recorded()
    counts[:, 2] = 7
    counts[:, 3] = 0
    found = read_activations(write_activations(tmp_path / "run.pt", counts), model(frequencies=[0.25] * COUNT))
    assert used(found, 1) is not None
    assert used(found, 2) is None
    assert used(found, 3) is None
    assert found.notes[-1].endswith("; nothing was counted in layers 3, where experts are used equally")


def test_a_profile_with_frequencies_is_saved_and_read_back(tmp_path: Path) -> None:
    found = read_activations(write_activations(tmp_path / "run.pt", recorded()), model())
    for name in ("p.yaml", "p.json"):
        found.save(tmp_path / name)
        assert load_profile(tmp_path / name) == found


def test_the_longest_profile_is_no_longer_than_a_document_may_be(tmp_path: Path) -> None:
    """61 layers with 384 experts, as in Kimi K2."""
    block = {"weight_bytes": 1000}
    layer = {"attention": block, "experts": {"weight_bytes": 384, "count": 384, "active": 8}}
    profile = ModelProfile(model="k", source="t", hidden_size=4, embedding=block, head=block, layers=[layer] * 61)
    counts = torch.randint(1, 10**6, (2, 61, 384), generator=torch.Generator().manual_seed(1))
    found = read_activations(write_activations(tmp_path / "run.pt", counts), profile)
    found.save(tmp_path / "p.json")
    assert load_profile(tmp_path / "p.json") == found


# ---- the arithmetic ----


def experts(active: int, count: int) -> Experts:
    return Experts(weight_bytes=1, count=count, active=active)


@pytest.mark.parametrize(
    ("active", "counts", "expected"),
    [
        (2, [1, 1, 1, 1], None),
        (2, [0, 0, 0, 0], None),
        (1, [3, 1, 0, 0], [0.75, 0.25, 0, 0]),
        (2, [10, 3, 2, 1], [1, 0.5, 1 / 3, 1 / 6]),  # 1.25 is cut to 1; 1 is left for the six other counts
        (3, [100, 10, 1, 1], [1, 1, 0.5, 0.5]),  # after the first is cut, the second is above 1
        (2, [5, 0, 0, 0], [1, 1 / 3, 1 / 3, 1 / 3]),  # nobody else has counts to share by
        (4, [9, 1, 1, 1], [1, 1, 1, 1]),
    ],
)
def test_what_a_cap_cuts_off_goes_to_the_others(active: int, counts: list[float], expected: Any) -> None:
    found = activations.frequencies(experts(active, 4), counts)
    assert found == (expected if expected is None else pytest.approx(expected, abs=1e-9))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_frequencies_are_chances_that_sum_to_the_active_experts(data: st.DataObject) -> None:
    numbers = st.one_of(st.integers(0, 3), st.integers(0, 10**15), st.floats(0, 1e300))
    counts = data.draw(st.lists(numbers, min_size=1, max_size=9).filter(lambda row: min(row) < max(row)))
    active = data.draw(st.integers(1, len(counts)))
    found = activations.frequencies(experts(active, len(counts)), counts)
    assert found is not None
    assert all(0 <= f <= 1 for f in found)
    assert sum(found) == pytest.approx(active, abs=1e-8)
    in_order = sorted(range(len(counts)), key=counts.__getitem__)
    assert all(found[a] <= found[b] + 1e-9 for a, b in pairwise(in_order))
    below = [i for i, f in enumerate(found) if f < 1 and counts[i]]
    shares = [found[i] / counts[i] for i in below if found[i] > 1e-3]
    assert not shares or max(shares) == pytest.approx(min(shares), rel=1e-4)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ([1, 2], "logical_count: missing (a list of 2); record in mode stat, or save"),
        ({"records": [], "last_physical_to_logical_map": 1}, "logical_count: missing (has the keys 'records', 'last"),
        ({1: 2}, "logical_count: missing (has the keys 1)"),
        ({}, "logical_count: missing"),
        (torch.zeros(1, LAYERS, COUNT), "logical_count: missing"),
        ({"logical_count": [[1.0]]}, "logical_count: list is no plain tensor of numbers"),
        ({"logical_count": torch.ones(1, LAYERS, COUNT, dtype=torch.bool)}, "logical_count: torch.bool is no plain"),
        ({"logical_count": torch.ones(1, LAYERS, COUNT).to(torch.complex64)}, "torch.complex64 is no plain tensor"),
        ({"logical_count": torch.ones(1, LAYERS, COUNT).to_sparse()}, "is no plain tensor"),
        ({"logical_count": torch.ones(1, LAYERS, COUNT, device="meta")}, "is no plain tensor"),
        ({"logical_count": torch.ones(LAYERS + 1, COUNT)}, "has the shape [5, 8], not [buffers, 4, 8] of m; give the"),
        ({"logical_count": torch.ones(1, LAYERS - 1, COUNT)}, "has the shape [1, 3, 8], not"),
        ({"logical_count": torch.ones(1, LAYERS, COUNT + 1)}, "has the shape [1, 4, 9], not"),
        ({"logical_count": torch.ones(0, LAYERS, COUNT)}, "has the shape [0, 4, 8], not"),
        ({"logical_count": torch.ones(1, 1, LAYERS, COUNT)}, "has the shape [1, 1, 4, 8], not"),
        ({"logical_count": torch.ones(COUNT)}, "has the shape [8], not"),
        ({"logical_count": torch.tensor(3)}, "has the shape [], not"),
        ({"logical_count": torch.ones(1, 1, 1).expand(10**7, LAYERS, COUNT)}, "320000000 counts are too many"),
        ({"logical_count": torch.ones(1, LAYERS, COUNT)}, "layer 0 is dense, but 8 experts were counted"),
        ({"logical_count": -recorded()}, "is no count, it is negative"),
        ({"logical_count": recorded() * float("nan")}, "holds values that are not finite"),
        ({"logical_count": recorded() + float("inf")}, "holds values that are not finite"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_record_of_this_model_is_refused(tmp_path: Path, saved: Any, said: str) -> None:
    path = tmp_path / "run.pt"
    torch.save(saved, path)
    assert said in refused(path)


def test_a_model_without_experts_has_no_activations(tmp_path: Path) -> None:
    dense = model().replace(layers=model().layers[:1] * LAYERS)
    path = write_activations(tmp_path / "run.pt", torch.zeros(1, LAYERS, COUNT))
    assert "m has no layers with experts; leave activations out" in refused(path, dense)


class Bad:
    """Unpickled, it would make a file."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("made-by-a-pickle",)


def test_code_in_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"logical_count": Bad()}, tmp_path / "run.pt")
    assert "cannot be read as data" in refused(tmp_path / "run.pt")
    torch.save({"logical_count": Bad()}, tmp_path / "run.pt", _use_new_zipfile_serialization=False)
    assert "is no file of torch.save" in refused(tmp_path / "run.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]


def test_files_that_torch_did_not_save_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    for content in (b"", b"hello", b"PK\x03\x04", bytes(range(256)) * 9):
        path.write_bytes(content)
        assert "is no file of torch.save" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no pickle")
    assert "cannot be read as data" in refused(path)
    assert "no such file" in refused(tmp_path / "gone.pt")
    assert "is not a regular file" in refused(tmp_path)
    assert "no such file" in refused(Path("\x00"))
    os.mkfifo(tmp_path / "pipe.pt")
    assert "is not a regular file" in refused(tmp_path / "pipe.pt")
    with pytest.raises(ProfileError, match="activations: None is no path"):
        read_activations(None, model())  # type: ignore[arg-type]


def test_large_files_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    with path.open("wb") as file:
        file.truncate(activations.MAX_BYTES + 1)
    assert "1073741825 bytes, more than the 1073741824" in refused(path)


def test_small_files_that_unpack_to_large_ones_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "MAX_BYTES", 10**6)
    path = tmp_path / "run.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("run/data/0", bytes(10**6 + 1))
    assert path.stat().st_size < 10**4
    assert "1000001 bytes, more than the 1000000" in refused(path)


def test_damaged_files_are_refused_or_read(tmp_path: Path) -> None:
    """Whatever the damage: frequencies or one line."""
    rng, path, said = random.Random(3), tmp_path / "run.pt", []
    whole = write_activations(path, recorded()).read_bytes()
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(damaged))
            damaged[at : at + rng.choice((0, 1, 1, 4))] = rng.randbytes(rng.choice((0, 1, 1, 4)))
        path.write_bytes(damaged[: rng.choice((len(damaged), len(damaged), rng.randrange(len(damaged))))])
        try:
            found = read_activations(path, model())
        except ProfileError as problem:
            said.append(str(problem))
        else:
            assert found.layers[0] == model().layers[0]
    assert len(said) > 50
    assert not any("\n" in line for line in said)


def test_without_torch_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_activations(tmp_path / "run.pt", recorded())
    plain = builtins.__import__

    def without_torch(name: str, *rest: Any) -> Any:
        if name == "torch":
            raise ImportError(name)
        return plain(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    with pytest.raises(ApplyError, match=r"install moeplan\[torch\]"):
        read_activations(path, model())


# ---- what it is good for ----


def test_skewed_use_touches_fewer_experts_and_is_faster(tmp_path: Path) -> None:
    counts = torch.zeros(1, LAYERS, COUNT, dtype=torch.int64)
    counts[:, 1:] = torch.tensor([400, 400, 100, 50, 25, 15, 5, 5])
    skewed = read_activations(write_activations(tmp_path / "run.pt", counts), model())
    machine, request = load_hardware("1xRTX4090"), load_workload({"batch_size": 4})
    even, uneven = (CostModel(profile, machine, request) for profile in (model(), skewed))
    step = Step(1, 10)
    assert uneven.block_s("experts", 1, "cuda:0", step) < even.block_s("experts", 1, "cuda:0", step)
    assert solve(skewed, machine, request).status == "optimal"


# ---- the command ----


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["moeplan", *map(str, words)])
    status = 0
    try:
        command.main()
    except SystemExit as stop:
        status = int(stop.code or 0)
    told = capsys.readouterr()
    return status, told.out, told.err


def test_the_command_takes_activations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model().save(tmp_path / "m.yaml")
    path = write_activations(tmp_path / "run.pt", recorded())
    given = ("--activations", path, "--json")
    status, out, _ = run(monkeypatch, capsys, "profile", tmp_path / "m.yaml", *given)
    assert status == 0
    assert ModelProfile.from_dict(json.loads(out)) == read_activations(path, model())
    status, out, _ = run(monkeypatch, capsys, "solve", tmp_path / "m.yaml", "1xRTX4090", *given)
    assert (status, json.loads(out)["status"]) == (0, "optimal")
    status, out, err = run(monkeypatch, capsys, "solve", tmp_path / "m.yaml", "1xRTX4090", "--activations", "gone.pt")
    assert (status, out, err) == (1, "", "moeplan: gone.pt: no such file; give a .pt file that sglang recorded\n")
