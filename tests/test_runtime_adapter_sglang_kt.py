"""Scripts are run, commands parsed by argparse and experts picked by kt-kernel's own function where it is installed."""

from __future__ import annotations

import argparse
import random
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import strategies

from profiles import Workload, load_profile
from profiles.errors import TargetError
from profiles.placement import LayerPlacement, Placement
from runtime_adapter.targets.sglang_kt.command import obstacles, read, simulate, write
from runtime_adapter.targets.sglang_kt.masks import Shape, ratio_of
from runtime_adapter.targets.target import Outline
from solver import solve

GOLDEN = Path(__file__).parent / "golden" / "sglang_kt_deepseek_v2_lite.sh"
MODELS = ("deepseek-v2", "deepseek-r1", "qwen3-235b-a22b", "mixtral-8x7b", "gpt-oss-120b")
SMALL = Outline("small", "deepseek_v3", (0, 8, 8, 8))


def outline_of(model: str) -> Outline:
    return Outline.of_profile(load_profile(model))


def layer(gpu: str, part: list[int], count: int) -> LayerPlacement:
    """A layer with that part of its experts on the GPU."""
    rest = sorted({*range(count)} - {*part})
    both: dict[str, Any] = {gpu: part, "cpu": rest}
    whole: dict[str, Any] = {gpu if part else "cpu": "all"}
    return LayerPlacement(attention=gpu, experts=(both if part and rest else whole) if count else {})


def plan_of(outline: Outline, gpu: str, parts: list[list[int]], **more: Any) -> Placement:
    layers = [layer(gpu, part, count or 0) for part, count in zip(parts, outline.experts, strict=True)]
    names = {"model": outline.model, "architecture": outline.architecture}
    return Placement(**names, embedding=gpu, head=gpu, layers=layers, **more)


def random_plan(outline: Outline, seed: int) -> Placement:
    """Any experts of any layers on the GPU; runs of layers alike, whole layers, and nothing are common."""
    rng = random.Random(seed)
    parts: list[list[int]] = []
    for count in outline.experts:
        if parts and rng.random() < 0.4 and max(parts[-1], default=0) < (count or 0):
            parts.append(parts[-1])
            continue
        share = rng.choice((0.0, 1.0, rng.random()))
        parts.append(sorted(rng.sample(range(count or 0), round(share * (count or 0)))))
    return plan_of(outline, f"cuda:{rng.choice((0, 0, 3, 11))}", parts)


@pytest.mark.parametrize("model", MODELS)
def test_reading_back_gives_the_plan(model: str) -> None:
    outline = outline_of(model)
    for seed in range(300):
        plan = random_plan(outline, seed)
        found = read(write(plan, outline), outline)
        assert (found.embedding, found.head, found.layers) == (plan.embedding, plan.head, plan.layers)


def run_script(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the Python between the EOF marks as the shell would, in `folder`; the counts of the file that it writes."""
    torch = pytest.importorskip("torch")
    program = re.search(r"<<'EOF'\n(.*?)\nEOF\n", text, re.DOTALL)
    assert program is not None
    monkeypatch.chdir(folder)
    exec(program[1], {})
    (file,) = folder.iterdir()
    return torch.load(file, weights_only=True)["logical_count"]


def arguments(text: str) -> argparse.Namespace:
    """The command as argparse reads it, with the options of sglang-kt 0.7.2 that it uses."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for option in ("model-path", "kt-weight-path", "kt-method", "init-expert-location"):
        parser.add_argument(f"--{option}", required=True)
    parser.add_argument("--kt-expert-placement-strategy", choices=["frequency", "front-loading", "uniform", "random"])
    parser.add_argument("--kt-gpu-experts-ratio", type=float)
    for option in ("tensor-parallel-size", "base-gpu-id", "max-running-requests", "max-total-tokens"):
        parser.add_argument(f"--{option}", type=int)
    parser.add_argument("--chunked-prefill-size", type=int)
    for option in ("kt-cpuinfer", "kt-threadpool-count"):
        parser.add_argument(f"--{option}")
    parser.add_argument("--disable-shared-experts-fusion", action="store_true")
    command = text[text.index("python3 -m sglang.launch_server") :]
    return parser.parse_args(shlex.split(command.replace("\\\n", " "))[3:])


def picked(counts: Any, k: int) -> Any:
    """The mask that kt-kernel makes of counts; by torch.topk, as it does, where it is not installed."""
    import torch

    from runtime_adapter.cpu_experts import missing

    table = counts.sum(dim=0).float()
    if missing("kt-kernel"):  # loads it, if it is there, so that it does not change this thread's arithmetic
        mask = torch.zeros(table.numel(), dtype=torch.bool)
        mask[torch.topk(table.view(-1), k).indices] = True
        return mask.view(table.shape)
    from kt_kernel.experts_base import generate_gpu_experts_masks

    return generate_gpu_experts_masks(table, k)


@pytest.mark.parametrize("model", MODELS)
def test_kt_kernel_picks_the_experts_of_the_plan(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outline = outline_of(model)
    experts = max(count or 0 for count in outline.experts)
    for seed in range(10):
        plan = random_plan(outline, seed)
        text = write(plan, outline)
        (tmp_path / str(seed)).mkdir()
        counts = run_script(text, tmp_path / str(seed), monkeypatch)
        given = arguments(text)
        assert given.init_expert_location.endswith(".pt")
        assert (tmp_path / str(seed) / given.init_expert_location).is_file()
        assert list(counts.shape) == [1, len(plan.layers), experts]
        n_moe = sum(1 for count in outline.experts if count)
        mask = picked(counts, int(n_moe * experts * given.kt_gpu_experts_ratio))
        for index, place in enumerate(plan.layers):
            on_gpu = place.experts.get(plan.head, ())
            ids = list(range(experts)) if on_gpu == "all" else list(on_gpu)
            assert mask[index].nonzero().flatten().tolist() == ids
        assert (given.kt_expert_placement_strategy, given.tensor_parallel_size) == ("frequency", 1)
        assert f"cuda:{given.base_gpu_id}" == plan.head


@pytest.mark.parametrize(
    "shape", [Shape(61, 3, 256), Shape(60, 1, 160), Shape(32, 0, 8), Shape(36, 0, 128), Shape(1, 0, 1)]
)
def test_every_ratio_means_just_so_many(shape: Shape) -> None:
    for count in range(shape.total + 1):
        ratio = ratio_of(shape, count)
        assert int((shape.layers - shape.dense) * shape.experts * float(ratio)) == count
        assert 0 <= float(ratio) <= 1
        assert len(ratio) <= 8


COMMAND = "python -m sglang.launch_server --model-path M --kt-weight-path W --kt-method AMXINT4"


def on_gpu(text: str, outline: Outline = SMALL) -> list[list[int]]:
    """The experts on the GPU, by what the target's simulator says of each."""
    devices = simulate(text, outline)
    names = [f"model.layers.{i}.mlp.experts." for i in range(len(outline.experts))]
    return [
        [
            int(name.removeprefix(start))
            for name, device in devices.items()
            if name.startswith(start) and device != "cpu"
        ]
        for start in names
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--kt-num-gpu-experts 2", [[], [0, 1], [0, 1], [0, 1]]),
        ("--kt-num-gpu-experts 0", [[], [], [], []]),
        ("--kt-num-gpu-experts 99 --kt-expert-placement-strategy uniform", [[], *[[*range(8)]] * 3]),
        ("--kt-gpu-experts-ratio 0.3", [[], [0, 1, 2], [0, 1], [0, 1]]),  # int(24 * 0.3) is 7
        ("--kt-gpu-experts-ratio=0.34 --kt-num-gpu-experts 1", [[], [0, 1, 2], [0, 1, 2], [0, 1]]),
        ("--kt-num-gpu-experts 3 --kt-expert-placement-strategy front-loading", [[], [*range(8)], [0], []]),
        ("--kt-gpu-experts-ratio 1 --kt-expert-placement-strategy front-loading", [[], *[[*range(8)]] * 3]),
        ("--tp 1 --kt-num-gpu-experts 1 --port 8000 --cpu-offload-gb 0 # --tp 8", [[], [0], [0], [0]]),
        ("--kt-num-gpu-experts 1 --kt-num-gpu-experts 0", [[], [], [], []]),
    ],
)
def test_strategies_without_data(options: str, expected: list[list[int]]) -> None:
    assert on_gpu(f"{COMMAND} {options}") == expected
    spread = f"# a comment about --kt-num-gpu-experts\nexport A=1\n{COMMAND} \\\n  " + options.replace(" --", " \\\n--")
    assert on_gpu(spread) == expected


def test_the_gpu_and_all_else() -> None:
    plan = read(f"{COMMAND} --kt-num-gpu-experts 8 --base-gpu-id 2", SMALL)
    assert plan == plan_of(SMALL, "cuda:2", [[], *[[*range(8)]] * 3], target="sglang-kt")


def script_of(parts: list[list[int]]) -> str:
    return write(plan_of(SMALL, "cuda:0", parts), SMALL)


MARKED = [[], [0, 1, 2, 7], [], [0, 1, 2, 7]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (COMMAND, "--kt-gpu-experts-ratio is missing: without it kt-kernel is off"),
        ("python -m sglang.launch_server --kt-num-gpu-experts 1", "--kt-weight-path is missing"),
        ("", "0 lines launch sglang"),
        (f"{COMMAND}\n{COMMAND}", "2 lines launch sglang"),
        (f"{COMMAND} --kt-method 'x", "cannot be read: No closing quotation"),
        (f"{COMMAND} --kt-num-gpu-experts 1 \\\n --tp-size 4", "line 2: --tp-size divides the model between GPUs"),
        (f"{COMMAND} --kt-num-gpu-experts 1 --pp-size=2", "--pp-size divides"),
        (f"{COMMAND} --kt-num-gpu-experts 1 --ep 2", "--ep divides"),
        (f"{COMMAND} --kt-num-gpu-experts 1 --kt-enable-dynamic-expert-update", "moves experts while the model runs"),
        (f"{COMMAND} --kt-num-gpu-experts 1 --enable-eplb", "moves experts"),
        (f"{COMMAND} --kt-num-gpu-experts 1 --cpu-offload-gb 8", "keeps other weights on the CPU"),
        (f"{COMMAND} --kt-num-gpu-experts 1 --kt-new-thing", "--kt-new-thing is not known"),
        (f"{COMMAND} --kt-num-gpu-experts -1", "--kt-num-gpu-experts '-1' is no whole number"),
        (f"{COMMAND} --kt-num-gpu-experts", "--kt-num-gpu-experts has 0 values"),
        (f"{COMMAND} --kt-num-gpu-experts 1 2", "--kt-num-gpu-experts has 2 values"),
        (f"{COMMAND} --kt-num-gpu-experts $N", "no whole number"),
        (f"{COMMAND} --kt-gpu-experts-ratio 10", "--kt-gpu-experts-ratio '10' is no share from 0 to 1"),
        (f"{COMMAND} --kt-gpu-experts-ratio nan", "no share"),
        (f"{COMMAND} --kt-gpu-experts-ratio ten", "no share"),
        (
            f"{COMMAND} --kt-num-gpu-experts 1 --kt-expert-placement-strategy random",
            "'random' depends on torch's random",
        ),
        (f"{COMMAND} --kt-num-gpu-experts 1 --kt-expert-placement-strategy best", "'best' is not known"),
        (
            f"{COMMAND} --kt-num-gpu-experts 1 --kt-expert-placement-strategy frequency",
            "depends on counts, which --init",
        ),
        (
            f"{COMMAND} --kt-num-gpu-experts 1 --kt-expert-placement-strategy frequency --init-expert-location a.pt",
            "depends on the counts in 'a.pt'; give the script",
        ),
        (script_of(MARKED).replace("location experts", "location b"), "depends on the counts in 'b_on_gpu.pt'"),
        (script_of(MARKED).replace("] = 1\n", "] = 2\n"), "depends on the counts in 'experts_on_gpu.pt'"),
        (
            script_of(MARKED).replace("ratio 0.3", "ratio 0.2"),
            r"takes 6 experts, the file marks 8, .* chance; write .* 0\.35",
        ),
        (script_of(MARKED).replace("1,3:", "1,4:"), "row '1,4:0-2,7': '4' is not the next number, or range, below 4"),
        (script_of(MARKED).replace("1,3:", "0,3:"), "layer 0 is dense"),
        (script_of(MARKED).replace("1,3:", "3,1:"), "'1' is not the next number"),
        (script_of(MARKED).replace("1,3:", "1-3:0\n3:"), "layer 3 has a row already"),
        (script_of(MARKED).replace("0-2,7", "0-2,2"), "'2' is not the next number"),
        (script_of(MARKED).replace("0-2,7", "7-2"), "'7-2' is not"),
        (script_of(MARKED).replace("0-2,7", "0-8"), "below 8"),
        (script_of(MARKED).replace("0-2,7", ""), "'' is not"),
        (
            script_of(MARKED).replace("zeros(1, 4, 8)", "zeros(1, 4, 9)"),
            "4 layers with 9 experts, the model has 4 with 8",
        ),
    ],
)
def test_mistakes_are_named(text: str, words: str) -> None:
    with pytest.raises(TargetError, match=words) as caught:
        read(text, SMALL, "mine")
    assert str(caught.value).startswith("mine: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "x" * 10**7,
        f"{COMMAND} {'--kt-num-gpu-experts 1 ' * 10**4}",
        "python3 - <<'EOF'\nimport torch\n" * 7000,
        script_of(MARKED).replace("1,3:", "1,3:" + "0-7," * 50_000),
        script_of(MARKED).replace("1,3:", "0-3:0-7\n" * 20_000),
        f"{COMMAND} --kt-num-gpu-experts {'9' * 10_000}",
    ],
)
def test_hostile_text_is_refused(text: str) -> None:
    with pytest.raises(TargetError, match="mine") as caught:
        read(text, SMALL, "mine")
    assert len(str(caught.value)) < 400


def test_what_cannot_be_said_is_refused_with_a_remedy() -> None:
    parts: list[list[int]] = [[], [0], [0], [0]]
    plan = plan_of(SMALL, "cuda:0", parts)
    assert obstacles(plan, SMALL) == []
    elsewhere = plan.layers[2].replace(experts={"cuda:1": "all"})
    for changes, words in (
        ({"head": "cuda:1"}, "must be on one GPU, not on cuda:0, cuda:1; solve with target 'sglang-kt'"),
        ({"embedding": "cpu"}, "must be on one GPU, not on cpu, cuda:0"),
        ({"layers": (*plan.layers[:3], elsewhere)}, "layers 3 have experts neither on cuda:0 nor on cpu"),
        ({"layers": (*plan.layers[:3], layer("cuda:0", [0], 7))}, "layer 3 does not place each of experts 0 to 7"),
    ):
        with pytest.raises(TargetError, match=re.escape(words)):
            write(plan.replace(**changes), SMALL)
    on_cpu = Placement(embedding="cpu", head="cpu", layers=[LayerPlacement(attention="cpu", experts={"cpu": "all"})])
    assert "must be on one GPU, not on cpu" in obstacles(on_cpu, Outline(None, None, (8,)))[0]
    for counts, words in (
        ((0, None), "name the model"),
        ((0, 0), "no experts"),
        ((8, 0, 8), "only the first layers may be dense, not 1"),
        ((8, 16), "equally many"),
    ):
        with pytest.raises(TargetError, match=words):
            read(f"{COMMAND} --kt-num-gpu-experts 1", Outline(None, None, counts))


@pytest.mark.parametrize("seed", [0, 2, 6, 8, 10, 14])
def test_every_plan_for_sglang_kt_can_be_written(seed: int) -> None:
    instance = strategies.random_instance(random.Random(seed), loose=True)
    moe = next(each for each in instance.profile.layers if each.experts is not None)
    profile = instance.profile.replace(layers=(moe,) * len(instance.profile.layers))
    assert_writable(profile, instance.hardware, instance.workload)


@pytest.mark.parametrize("model", ["deepseek-v2-lite", "qwen3-30b-a3b"])
def test_plans_for_one_card_can_be_written(model: str) -> None:
    plan = assert_writable(load_profile(model), "1xRTX4090,ram=128GB", None)
    assert any(len(each.experts) == 2 for each in plan.layers)


def assert_writable(profile: Any, hardware: Any, workload: Any) -> Placement:
    plan = solve(profile, hardware, workload, target="sglang-kt", granularity="expert", time_limit=5)
    outline = Outline.of_profile(profile)
    found = read(write(plan, outline), outline)
    assert [expert_devices(each) for each in found.layers] == [expert_devices(each) for each in plan.layers]
    assert (found.embedding, found.head) == (plan.embedding, plan.head)
    return plan


def expert_devices(place: LayerPlacement) -> dict[int, str]:
    """The device of each expert, whether a device has all or a list."""
    return {i: at for at, part in place.experts.items() for i in (range(1000) if part == "all" else part)}


def golden_plan() -> Placement:
    """DeepSeek-V2-Lite: layers in full, a hot half and two layers on the CPU."""
    whole, hot = list(range(64)), [0, 1, 2, 3, *range(8, 32), 40, 42, 44, 63]
    parts = [[], *[whole] * 12, *[hot] * 12, [], []]
    return plan_of(
        outline_of("deepseek-v2-lite"),
        "cuda:0",
        parts,
        quant="bf16",
        workload=Workload(batch_size=2),
        hardware="a card",
    )


def golden_text() -> str:
    return write(golden_plan(), outline_of("deepseek-v2-lite"), "/models/DeepSeek V2 Lite")


def test_the_golden_file() -> None:
    """Refresh with: PYTHONPATH=. .venv/bin/python tests/test_runtime_adapter_sglang_kt.py"""
    assert golden_text() == GOLDEN.read_text()
    given = arguments(golden_text())
    assert (given.model_path, given.kt_weight_path) == ("/models/DeepSeek V2 Lite",) * 2
    assert (given.max_total_tokens, given.chunked_prefill_size) == (2 * 640, 2 * 512)


if __name__ == "__main__":
    GOLDEN.write_text(golden_text())
