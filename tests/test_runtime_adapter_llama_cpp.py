"""Command lines are judged by a loader of their own (names by hand, Python's `re`, whole numbers), not by moeplan's."""

from __future__ import annotations

import random
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profiles.errors import TargetError
from profiles.load import load_profile, profile_presets
from profiles.placement import Placement
from profiles.workload import Workload
from runtime_adapter.targets.llama_cpp.patterns import Pattern
from runtime_adapter.targets.llama_cpp.target import IK_LLAMA_CPP, LLAMA_CPP, LlamaCpp, experts_pattern
from runtime_adapter.targets.llama_cpp.tensors import tensors_of
from runtime_adapter.targets.target import Outline
from solver.solve import solve

GOLDEN = Path(__file__).parent / "golden"
MODELS = ("deepseek-v2", "deepseek-r1", "qwen3-235b-a22b", "mixtral-8x7b", "gpt-oss-120b")
TARGETS = {"llama.cpp": LLAMA_CPP, "ik_llama.cpp": IK_LLAMA_CPP}
# Tensors of one MoE layer as GGUF files have them (tensor lists of the published files: unsloth/DeepSeek-V3-0324-GGUF,
# Qwen/Qwen3-235B-A22B-GGUF, TheBloke/Mixtral-8x7B-v0.1-GGUF, ggml-org/gpt-oss-120b-GGUF).
LATENT = ["attn_kv_a_mqa", "attn_kv_a_norm", "attn_k_b", "attn_v_b", "attn_norm", "attn_output"]
LATENT += ["attn_q_a", "attn_q_a_norm", "attn_q_b"]
SHARED = ["ffn_down_shexp", "ffn_gate_shexp", "ffn_up_shexp"]
ROUTED = ["ffn_down_exps", "ffn_gate_exps", "ffn_up_exps"]
PLAIN = ["attn_q", "attn_k", "attn_v", "attn_output", "attn_norm"]
AROUND = {
    "deepseek-v2": [f"{stem}.weight" for stem in (*LATENT, *SHARED, "ffn_norm", "ffn_gate_inp")],
    "deepseek-r1": [*(f"{stem}.weight" for stem in (*LATENT, *SHARED, "ffn_norm", "ffn_gate_inp")), "exp_probs_b.bias"],
    "qwen3-235b-a22b": [f"{s}.weight" for s in (*PLAIN, "attn_q_norm", "attn_k_norm", "ffn_norm", "ffn_gate_inp")],
    "mixtral-8x7b": [f"{stem}.weight" for stem in (*PLAIN, "ffn_norm", "ffn_gate_inp")],
    "gpt-oss-120b": [
        *(f"{stem}.weight" for stem in (*PLAIN, "attn_sinks", "post_attention_norm", "ffn_gate_inp")),
        *(f"{stem}.bias" for stem in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate_inp")),
    ],
}
DENSE = ["ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"]
FUSED = ["ffn_gate_up_exps.weight", "ffn_gate_chexps.weight", "ffn_up_chexps.weight", "ffn_down_chexps.weight"]


@cache
def outline(model: str) -> Outline:
    return Outline.of_profile(load_profile(model))


def layer(attention: str, experts: str | None = None) -> dict[str, Any]:
    return {"attention": attention, "experts": {experts: "all"} if experts else {}}


def placement(layers: list[dict[str, Any]], head: str = "cuda:0", **more: Any) -> Placement:
    return Placement(**{"embedding": "cpu", "head": head, "layers": layers, **more})


def random_plan(model: str, seed: int, ik: bool) -> Placement:
    """Any plan the target allows: runs of layers in order, some GPUs left out, guests, the first layers on the CPU."""
    rng = random.Random(f"{model} {seed} {ik}")
    counts = outline(model).experts
    gpus = rng.choice([1, 2, 3, 4, 8, 15])
    order = sorted(rng.choices(range(0 if rng.random() < 0.7 else -1, gpus), k=len(counts)))
    name = {-1: "cpu"} | {i: f"cuda:{i}" for i in range(gpus)}
    experts, layers = "cpu", []
    for rank, count in zip(order, counts, strict=True):
        if rng.random() < rng.choice([0.1, 0.9]):
            experts = rng.choice(["cpu", name[rank], f"cuda:{rng.randrange(16)}"])
        layers.append(layer(name[rank], experts if count else None))
    head = name[rng.choice([order[-1], *range(max(0, order[-1]), gpus)])]
    if ik and -1 in order:
        head = "cpu"
    work = Workload(prompt_tokens=rng.choice([100, 4096]), batch_size=rng.choice([1, 4]))
    return placement(layers, head, workload=work, kv_quant=rng.choice([None, "fp16", "q8_0"]))


def names(model: str) -> Iterator[tuple[int, str, str]]:
    """(layer, part, name) of the model's tensors, by hand; experts' also fused, as some files have them."""
    yield -1, "embedding", "token_embd.weight"
    for i, count in enumerate(outline(model).experts):
        around = AROUND[model]
        if not count:
            around = [s for s in around if "shexp" not in s and "gate_inp" not in s and "probs" not in s] + DENSE
        yield from ((i, "attention", f"blk.{i}.{stem}") for stem in around)
        experts = [f"{stem}.weight" for stem in ROUTED] + FUSED
        experts += [f"{stem}.bias" for stem in ROUTED] if model == "gpt-oss-120b" else []
        yield from ((i, "experts", f"blk.{i}.{stem}") for stem in experts if count)
    yield from ((-1, "head", name) for name in ("output_norm.weight", "output.weight"))


def follow(text: str, model: str, ik: bool) -> dict[str, str]:
    """Where llama.cpp puts every tensor: the last -ngl slots by -ts, with the output as the last of them."""
    words = shlex.split(text.replace("\\\n", " "))
    said = dict(zip(words[1::2], words[2::2], strict=True))
    assert words[0] == "llama-server"
    assert ik or said["-fit"] == "off"
    layers, count = len(outline(model).experts), int(said["-ngl"])
    spread = [f"cuda:{gpu}" for gpu, n in enumerate(said.get("-ts", "0").split(",")) for _ in range(int(n))]
    assert len(spread) == count
    slots = ["cpu"] * (layers + 1 - count) + spread
    if ik and count <= layers:
        slots = ["cpu"] * (layers - count) + spread + ["cpu"]
    rules = [rule.split("=") for rule in said["-ot"].split(",")] if "-ot" in said else []
    device = {"CPU": "cpu"} | {f"CUDA{i}": f"cuda:{i}" for i in range(20)}
    found = {}
    for i, part, name in names(model):
        home = "cpu" if part == "embedding" else slots[i]
        found[name] = next((device[to] for pattern, to in rules if re.search(pattern, name)), home)
    return found


def assert_follows(plan: Placement, model: str, found: dict[str, str]) -> None:
    for i, part, name in names(model):
        if part == "experts":
            assert found[name] == plan.layers[i].experts_device, name
        else:
            wanted = {"embedding": plan.embedding, "head": plan.head}.get(part, plan.layers[i].attention)
            assert found[name] == wanted, name


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model", MODELS)
def test_every_tensor_is_where_the_plan_says_and_reading_gives_the_plan(model: str, target: str) -> None:
    for seed in range(60):
        plan = random_plan(model, seed, ik=target == "ik_llama.cpp")
        text = TARGETS[target].write(plan, outline(model))
        assert_follows(plan, model, follow(text, model, ik=target == "ik_llama.cpp"))
        back = TARGETS[target].read(text, outline(model))
        assert (back.embedding, back.head, back.layers) == (plan.embedding, plan.head, plan.layers)
        assert (back.kv_quant, back.notes) == (plan.kv_quant, None)


@pytest.mark.parametrize("model", MODELS)
def test_the_tensors_known_by_hand_are_known_with_their_blocks(model: str) -> None:
    known = {tensor.name: (tensor.index, tensor.part) for tensor in tensors_of(outline(model))}
    usual = [found for found in names(model) if not found[2].endswith(tuple(FUSED))]
    assert {name: known.get(name) for _, _, name in usual} == {name: (i, part) for i, part, name in usual}
    experts = {name for name, (_, part) in known.items() if part == "experts"}
    assert experts == {name for _, part, name in usual if part == "experts"}


@given(st.sets(st.integers(0, 199), min_size=1))
def test_patterns_catch_their_layers_experts_and_nothing_else(layers: set[int]) -> None:
    pattern = experts_pattern(sorted(layers))
    assert "," not in pattern
    assert "=" not in pattern
    for i in range(200):
        for stem in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_up_exps", "ffn_up_chexps"):
            assert bool(re.search(pattern, f"blk.{i}.{stem}.weight")) == (i in layers)
        for stem in ("ffn_gate_inp", "ffn_gate_inp_shexp", "ffn_up_shexp", "ffn_down", "attn_q", "exp_probs_b"):
            assert not re.search(pattern, f"blk.{i}.{stem}.weight")


# --- refusals of the writer


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (placement([{"attention": "cuda:0", "experts": {"cuda:0": [0], "cpu": [1]}}]), "layers 0 split their experts"),
        (placement([layer("cuda:0", "cpu")], embedding="cuda:0"), "embedding is on cuda:0"),
        (placement([layer("cuda:1", "cpu"), layer("cuda:0", "cpu")], "cuda:1"), "layers 1 goes back"),
        (placement([layer("cuda:0", "cpu"), layer("cpu", "cpu")], "cpu"), "layers 1 goes back"),
        (placement([layer("cuda:1", "cpu")], "cuda:0"), "the head is on cuda:0"),
        (placement([layer("cuda:0", "cpu")], "cpu"), "the head is on cpu"),
        (placement([layer("cuda:15", "cpu")], "cuda:15"), "15 GPUs"),
        (placement([layer("cuda:0", "cpu")], kv_quant="fp8"), "kv_quant fp8"),
    ],
)
def test_what_no_command_can_mean_is_refused_with_a_remedy(plan: Placement, said: str) -> None:
    (problem,) = LLAMA_CPP.obstacles(plan, Outline.of_plan(plan))
    assert problem.startswith("llama.cpp: ")
    assert said in problem
    with pytest.raises(TargetError, match=r"^llama\.cpp: "):
        LLAMA_CPP.write(plan, Outline.of_plan(plan))


def test_ik_llama_cpp_leaves_the_head_on_the_cpu_with_layers_there() -> None:
    on_cpu = placement([layer("cpu", "cpu"), layer("cuda:0", "cpu")], "cpu")
    assert IK_LLAMA_CPP.obstacles(on_cpu, Outline.of_plan(on_cpu)) == []
    assert "-ngl 1 -sm layer -ts 1 " in IK_LLAMA_CPP.write(on_cpu, Outline.of_plan(on_cpu))
    head = placement([layer("cpu", "cpu"), layer("cuda:0", "cpu")], "cuda:0")
    assert "pin the head to cpu" in IK_LLAMA_CPP.obstacles(head, Outline.of_plan(head))[0]
    assert LLAMA_CPP.obstacles(head, Outline.of_plan(head)) == []
    assert "-ngl 2 " in LLAMA_CPP.write(head, Outline.of_plan(head))


def test_a_plan_of_another_model_is_refused() -> None:
    with pytest.raises(TargetError, match="60"):
        LLAMA_CPP.write(placement([layer("cuda:0", "cpu")]), outline("deepseek-v2"))


@pytest.mark.parametrize(
    ("model", "machine"),
    [("mixtral-8x7b", "1xRTX3090,ram=64GB"), ("qwen3-30b-a3b", "1xRTX3090+1xRTX4070-12GB,ram=64GB")],
)
def test_what_is_solved_for_llama_cpp_can_be_written(model: str, machine: str) -> None:
    profile = load_profile(model, quant="q4_k_m")
    plan = solve(profile, machine, target="llama.cpp", time_limit=2)
    for target in TARGETS.values():
        text = target.write(plan, Outline.of_profile(profile))
        assert target.read(text, Outline.of_profile(profile)).layers == plan.layers


OTHER_EXPERTS = {"gemma-4": ["ffn_down_exps", "ffn_gate_up_exps"], "nemotron": ["ffn_down_exps", "ffn_up_exps"]}
"""Experts whose gate and up projections are one tensor, or that have no gate."""


@pytest.mark.parametrize("model", profile_presets())
def test_every_preset_can_be_written(model: str) -> None:
    half = len(outline(model).experts) // 2
    layers = [layer(f"cuda:{int(i >= half)}", "cpu" if n else None) for i, n in enumerate(outline(model).experts)]
    for target in TARGETS.values():
        assert target.write(placement(layers, "cuda:1"), outline(model))
    experts = [tensor.rest for tensor in tensors_of(outline(model)) if tensor.part == "experts" and tensor.is_matrix]
    stems = next((own for family, own in OTHER_EXPERTS.items() if model.startswith(family)), ROUTED)
    assert set(experts) == ({f"{stem}.weight" for stem in stems} if any(outline(model).experts) else set())


# --- the text


def test_context_batch_and_cache_come_from_the_plan() -> None:
    work = Workload(prompt_tokens=3000, generated_tokens=96, batch_size=4, prefill_chunk=1024)
    plan = placement([layer("cuda:0", "cuda:0")], workload=work, kv_quant="q8_0")
    text = LLAMA_CPP.write(plan, Outline.of_plan(plan), "/m/a b.gguf")
    assert text == (
        "llama-server -m '/m/a b.gguf' \\\n  -fit off -ngl 2 -sm layer -ts 2 \\\n"
        "  -c 12384 -np 4 -b 4096 -ub 4096 -fa on -ctk q8_0 -ctv q8_0\n"
    )


def test_everything_on_the_cpu() -> None:
    plan = placement([layer("cpu", "cpu"), layer("cpu", "cuda:2")], "cpu")
    for target in TARGETS.values():
        text = target.write(plan, Outline.of_plan(plan))
        assert "-ngl 0 " in text
        assert "=CUDA2" in text
        assert target.read(text, Outline.of_plan(plan)).layers == plan.layers


def test_a_block_for_multi_token_prediction_is_a_slot() -> None:
    """GLM-4.5-Air: 46 layers, and a 47th block that llama.cpp counts: it reports "offloaded 48/48 layers"."""
    glm = outline("glm-4.5-air")
    plan = placement(
        [layer("cuda:0" if i < 20 else "cuda:1", "cpu" if n else None) for i, n in enumerate(glm.experts)], "cuda:1"
    )
    for target in TARGETS.values():
        assert "-ngl 48 -sm layer -ts 20,28 " in target.write(plan, glm)
    assert LLAMA_CPP.read("llama-server -fit off -ngl 47 -ts 1", glm).layers[0].attention == "cpu"
    assert LLAMA_CPP.read("llama-server -fit off -ngl 48 -ts 1", glm).layers[0].attention == "cuda:0"


def golden_plan(model: str, cards: int, **more: Any) -> Placement:
    """Layers in equal runs; of each run the last third of the experts on the CPU, one on the next card."""
    counts = outline(model).experts
    run = -(-len(counts) // cards)
    layers = []
    for i, count in enumerate(counts):
        card, place = divmod(i, run)
        guest = f"cuda:{(card + 1) % cards}" if place == run // 2 else f"cuda:{card}"
        layers.append(layer(f"cuda:{card}", None if not count else "cpu" if 3 * place > 2 * run else guest))
    return placement(layers, f"cuda:{cards - 1}", **more)


@pytest.mark.parametrize(
    ("file", "target", "model", "cards"),
    [
        ("llama_cpp_deepseek_r1.sh", LLAMA_CPP, "deepseek-r1", 8),
        ("ik_llama_cpp_glm_4_5.sh", IK_LLAMA_CPP, "glm-4.5", 3),
    ],
)
def test_golden(file: str, target: LlamaCpp, model: str, cards: int) -> None:
    """To renew: write `text` to the file."""
    plan = golden_plan(model, cards, kv_quant="q8_0", workload=Workload(prompt_tokens=32000, generated_tokens=768))
    text = target.write(plan, outline(model), "/models/model.gguf")
    assert text == (GOLDEN / file).read_text(encoding="utf-8")


# --- reading others' commands


def read(text: str, model: str = "qwen3-235b-a22b", target: LlamaCpp = LLAMA_CPP) -> Placement:
    return target.read(text, outline(model), "run.sh")


def experts(plan: Placement) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for i, home in enumerate(plan.layers):
        found.setdefault(home.experts_device or "none", []).append(i)
    return found


def test_n_cpu_moe_counts_from_the_first_layer_in_llama_cpp_and_from_the_last_in_its_fork() -> None:
    assert experts(read("llama-server -ngl 99 --n-cpu-moe 4"))["cpu"] == [0, 1, 2, 3]
    assert experts(read("llama-server -ngl 99 --n-cpu-moe 4", target=IK_LLAMA_CPP))["cpu"] == [90, 91, 92, 93]
    assert experts(read("--n-cpu-moe 4"))["cpu"] == [0, 1, 2, 3]
    assert experts(read("-ncmoe 500 -ngl 99", target=IK_LLAMA_CPP)) == {"cpu": list(range(94))}
    assert experts(read("llama-cli -ngl 99 --cpu-moe")) == {"cpu": list(range(94))}


def test_the_fork_takes_from_each_gpu_in_proportion() -> None:
    """94 layers, 71 and 23 of them (and the output) on the GPUs: of 4 layers 3.02 and 0.98, so 3 and 1."""
    plan = read("llama-server -ngl 99 -ts 71,24 --n-cpu-moe 4", target=IK_LLAMA_CPP)
    assert experts(plan)["cpu"] == [68, 69, 70, 93]
    assert [home.attention for home in plan.layers].count("cuda:0") == 71


def test_dense_layers_are_counted_by_n_cpu_moe() -> None:
    """DeepSeek-R1's first three layers have no experts."""
    assert experts(read("llama-server -ngl 99 -ncmoe 5", "deepseek-r1"))["cpu"] == [3, 4]


def test_the_first_match_in_the_commands_order_wins() -> None:
    own = r"-ot 'blk\.[0-3]\.ffn_.*_exps=CUDA0'"
    assert experts(read(f"llama-server -ngl 99 {own} --cpu-moe"))["cuda:0"] == [0, 1, 2, 3]
    late = read(f"llama-server -ngl 99 --cpu-moe {own}")
    assert experts(late) == {"cpu": list(range(94))}
    assert any("earlier patterns" in note for note in late.notes or ())
    fork = read(f"llama-server -ngl 99 --cpu-moe {own}", target=IK_LLAMA_CPP)
    assert experts(fork)["cuda:0"] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "text",
    [
        r"./build/bin/llama-server -m M.gguf -ngl 99 -fit off -ts 1,1 -ot 'blk\.(0|1)\.ffn_.*_exps\.=CPU'",
        "#!/bin/bash\n# experts\nexport OMP_NUM_THREADS=8\n\nnumactl --interleave=all ./llama-server --model M.gguf "
        "--n-gpu-layers 99 \\\n  --tensor-split 1,1 --fit off\\\n"
        r'  --override-tensor "blk\.[01]\..*_exps=CPU" -c 0 -fa --temp -1',
        r"-c 4096 -ngl 95 -ts 47,48 -ot "
        r'"blk\.0\.ffn_(up|down|gate_up|gate)_(ch|)exps=CPU,blk\.1\.ffn_(up|down|gate_up|gate)_(ch|)exps=CPU"',
        "FOO=1 llama-cli -ngl all -ts 3/3 -ncmoe 2 -fit 0 -p 'a prompt with -ot in it'",
        r"llama-bench.exe -m M.gguf -ngl 99 -ts 1/1 -ot 'blk\.0\.ffn_.*_exps=CPU;blk\.1\.ffn_.*_exps=CPU' -p 512",
        "LLAMA_ARG_N_CPU_MOE=2 LLAMA_ARG_TENSOR_SPLIT=1,1 LLAMA_ARG_CPU_MOE=0 llama-server -ngl -1 --fit off",
        'C:\\llama\\llama-server.exe -m "C:\\a b.gguf" -ngl 99 -ts 1,1 ^\n -fit off -ot "blk\\.[01]\\.ffn_.*_exps=CPU"',
        ".\\llama-cli.exe -m .\\a.gguf `\n  -ngl 99 -ts 1,1 -fit off `\n  -ncmoe 2",
    ],
)
def test_ways_to_write_the_same(text: str) -> None:
    plan = read(text)
    assert experts(plan)["cpu"] == [0, 1]
    homes = [home.attention for home in plan.layers]
    assert homes in (["cuda:0"] * 48 + ["cuda:1"] * 46, ["cuda:0"] * 47 + ["cuda:1"] * 47)
    assert (plan.head, plan.embedding, plan.target, plan.notes) == ("cuda:1", "cpu", "llama.cpp", None)


def test_layers_off_the_gpus_are_the_first_ones() -> None:
    plan = read("llama-server -fit off -ngl 90 -ts 1")
    assert [home.attention for home in plan.layers] == ["cpu"] * 5 + ["cuda:0"] * 89
    fork = read("llama-server -ngl 90 -ts 1", target=IK_LLAMA_CPP)
    assert [home.attention for home in fork.layers] == ["cpu"] * 4 + ["cuda:0"] * 90
    assert (plan.head, fork.head) == ("cuda:0", "cpu")


def test_devices_are_counted_anew_and_in_the_order_given() -> None:
    assert read("CUDA_VISIBLE_DEVICES=3 llama-server -fit off -ngl 99 -ncmoe 1").layers[5].attention == "cuda:3"
    assert read("llama-server -fit off -dev CUDA1,CUDA0 -ts 1,1 -ngl 99").layers[0].attention == "cuda:1"
    moved = read("CUDA_VISIBLE_DEVICES=2,0 llama-server -fit off -ngl 99 -ts 1,1 -ot 'blk.0.ffn_.*exps=CUDA1'")
    assert (moved.layers[0].attention, moved.layers[0].experts_device) == ("cuda:2", "cuda:0")
    assert read("llama-server -fit off -ngl 99 -sm none -mg 1").head == "cuda:1"
    assert experts(read("llama-server -fit off -ngl 99 -dev CUDA0 -ot exps=CUDA1")) == {"cuda:1": list(range(94))}


def test_uneven_shares_divide_as_llama_cpp_divides() -> None:
    """Slot i of 95 goes to the first GPU with i / 95 below its end: ends at 0.3 (28.5) and 0.9 (85.5)."""
    homes = [home.attention for home in read("llama-server -fit off -ngl 99 -ts 0.3,0.6,0.1").layers]
    assert [homes.count(f"cuda:{i}") for i in range(3)] == [29, 57, 8]


def test_context_and_cache_are_read() -> None:
    plan = read("llama-server -fit off -ngl 99 -c 32768 -ub 2048 -ctk q8_0 -ctv q8_0 -ts 1")
    assert plan.workload is not None
    assert (plan.workload.context_tokens, plan.workload.prefill_chunk, plan.kv_quant) == (32768, 2048, "q8_0")
    assert "give kv_quant" in str(read("llama-server -fit off -ngl 99 -ts 1 -ctk q8_0").notes)


def test_the_embedding_and_the_head_follow_overrides() -> None:
    plan = read("llama-server -fit off -ngl 99 -ts 1,1 -ot token_embd=CUDA0,^output=CUDA0")
    assert (plan.embedding, plan.head, plan.notes) == ("cuda:0", "cuda:0", None)
    assert "output_norm.weight is on cuda:1" in str(read("-fit off -ngl 99 -ts 1,1 -ot ^output.weight=CUDA0").notes)


@pytest.mark.parametrize(
    ("pattern", "caught"),
    [
        (r"blk\.1.*exps", "layers 10-19"),
        (r"blk.(2|3).*_exps", "layers 20-39"),
        (r"9\.ffn_.*_exps", "layers 19,29,39,49,59,69,79,89"),
        (r"blk\.1.ffn_.*_exps", None),
        (r"blk\.(1|2)\.ffn_.*_exps", None),
        (r"blk\.\d+\.ffn_.*_exps", None),
        (r"blk\.[^.]*\.ffn_.*_exps", None),
        (r"\.1[0-9]?\.ffn_.*_exps", None),
        ("exps", None),
    ],
)
def test_layers_that_a_pattern_catches_by_a_part_of_their_number_are_reported(pattern: str, caught: str | None) -> None:
    notes = read(f"llama-server -fit off -ngl 99 -ts 1 -ot '{pattern}=CPU'").notes or ()
    assert [caught in note for note in notes] == ([True] if caught else []) if caught else notes == ()


def test_patterns_that_find_nothing_are_reported_with_their_line() -> None:
    notes = read("llama-server -fit off -ngl 99 -ts 1 \\\n -ot 'blk\\.94\\.ffn_up_exps=CPU'").notes
    assert notes is not None
    assert notes[0].startswith("line 2: -ot `blk\\.94\\.ffn_up_exps=CPU`: ")
    assert "finds no tensor" in notes[0]


def test_dropping_the_line_that_turns_fit_off_is_reported() -> None:
    assert "add -fit off" in str(read("llama-server -ngl 99 -ts 1").notes)
    assert read("llama-server -ngl 99 -ts 1", target=IK_LLAMA_CPP).notes is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("llama-server -m M.gguf", "it is --fit that places"),
        ("llama-server -m M.gguf --fit on -ngl auto", "it is --fit that places"),
        ("llama-server -ngl 99 -fit off -ot 'exps=CUDA1'", "add -ts"),
        ("llama-server -ngl 99 -fit off -dev CUDA0,CUDA1", "add -ts"),
        ("llama-server -ngl 99 -fit off -ts 1,1,1 -dev CUDA0,CUDA1", "3 shares for 2 devices"),
        ("llama-server -ngl 99 -fit off -ts 1,x", "-ts '1,x'"),
        ("llama-server -ngl 99 -fit off -ts 1,nan", "-ts '1,nan'"),
        ("llama-server -ngl many", "-ngl 'many'"),
        ("llama-server -ngl", "-ngl has no value"),
        ("llama-server -ngl 99 -sm row -ts 1,1", "-sm 'row'"),
        ("llama-server -ngl 99 -nkvo -ts 1", "-nkvo keeps the cache in RAM"),
        ("llama-server -ngl 99 --rpc 10.0.0.1:5 -ts 1", "--rpc puts layers"),
        ("llama-server -ngl 99 -dev none", "-dev none"),
        ("llama-server -ngl 99 -ot exps=GPU", "'GPU' is no device"),
        ("CUDA_VISIBLE_DEVICES=1 llama-server -ngl 99 -ot exps=CUDA1", "'CUDA1' is no device"),
        ("CUDA_VISIBLE_DEVICES=GPU-0b llama-server -ngl 99 -ot exps=CUDA1", "CUDA_VISIBLE_DEVICES='GPU-0b'"),
        ("llama-server -ngl 99 -ot exps", "no `=`"),
        ("llama-server -ngl 99 -ot '[0-9]{1,2}.exps=CPU'", "no pattern may have a comma"),
        ("llama-server -ngl 99 -ot '(?!blk.1).*exps=CPU'", "`(?!`"),
        ("llama-server -ngl 99 -ot ffn_up=CPU", "blk.0.ffn_up_exps.weight"),
        ("llama-server -ngl 99 -ot 'blk.2.ffn_(up|gate)_exps=CPU'", "parts the experts of layer 2"),
        ("llama-server -ngl 99 -ot 'blk.5.ffn=CPU'", "blk.5.ffn_norm.weight on cpu"),
        ("llama-server -ngl 99 -ot ffn_gate_inp=CPU", "blk.0.ffn_gate_inp.weight on cpu"),
        ("llama-server -ngl 99 -ot 'output.weight=CPU'", "blk.0.attn_output.weight on cpu"),
        ("llama-server -ngl 99 -ot $EXPERTS", "'$EXPERTS' is a shell variable"),
        ("llama-server -ngl 99 -v $EXPERTS $MORE", "'$MORE' is a shell variable"),
        ("llama-server -ngl 99 -ot 'exps=CPU", "close the quotes"),
        ("llama-server -ngl=99", "wants a space"),
        ("llama-server -ngl 99 left over", "'left' belongs to no option"),
        ("llama-server -ngl 9\nllama-server -ngl 8", "commands in lines 1 and 2"),
        ("hello", "no llama.cpp command"),
        ("", "no llama.cpp command"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(text: str, said: str) -> None:
    if said == "blk.0.ffn_up_exps.weight":
        said = "parts the experts of layer 0"
    with pytest.raises(TargetError) as problem:
        read(text)
    assert str(problem.value).startswith("run.sh: ")
    assert said in str(problem.value)
    assert "\n" not in str(problem.value)


def test_the_fork_needs_ngl_and_refuses_its_fit() -> None:
    with pytest.raises(TargetError, match="no -ngl"):
        read("llama-server -ot exps=CPU", target=IK_LLAMA_CPP)
    with pytest.raises(TargetError, match="--fit that places"):
        read("llama-server -m M.gguf -ngl 99 --fit --fit-margin 2000", target=IK_LLAMA_CPP)
    with pytest.raises(TargetError, match="takes no value; drop it"):
        read("llama-server -ngl 99 -fit off", target=IK_LLAMA_CPP)
    with pytest.raises(TargetError, match="refuses -ncmoe"):
        read("llama-server -ngl 80 -ts 1,1 -ncmoe 10", target=IK_LLAMA_CPP)
    assert experts(read("llama-server -ngl 80 -ts 1 -ncmoe 2", target=IK_LLAMA_CPP))["cpu"] == [*range(14), 92, 93]


# --- patterns


NAMES = [
    *(
        f"blk.{i}.ffn_{part}.weight"
        for i in (0, 1, 9, 11, 21)
        for part in ("up_exps", "gate_inp", "gate_up_exps", "down")
    ),
    *("blk.1.attn_output.weight", "output.weight", "token_embd.weight", "blk.12.ffn_down_shexp.bias"),
]
ATOMS = ["b", ".", "1", "k", r"\.", "_", "[0-9]", "[^.]", "[a-c_-]", r"\d", r"\w", r"\D", r"[\w.]", "(?:fn)", "(p)"]
WHOLE = ["blk", "ffn_", "_exps", "(ch|)", "(?:up|gate)", "(1|2)?", r"(\.1.)?", "(?:^b|t)"]
pieces = st.one_of(
    st.sampled_from(WHOLE),
    st.builds(str.__add__, st.sampled_from(ATOMS), st.sampled_from(["", "*", "+", "?", "{2}", "+?"])),
)
runs = st.builds(
    "{0}{1}{2}".format,
    st.sampled_from(["", "", "^"]),
    st.lists(pieces, max_size=4).map("".join),
    st.sampled_from(["", "", "$"]),
)
patterns = st.lists(runs, min_size=1, max_size=2).map("|".join)


def found(pattern: Pattern, name: str) -> bool:
    match = re.match(r"blk\.\d+\.", name)
    cut = match.end() if match else 0
    return bool(pattern.found_among(name[:cut], (name[cut:],)))


@given(patterns)
@settings(max_examples=400, deadline=None)
def test_patterns_are_found_as_python_finds_them(pattern: str) -> None:
    try:
        ours = Pattern(pattern)
    except TargetError as problem:
        assert "anchor twice" in str(problem)  # noqa: PT017 - the one thing of these patterns that is refused
        return
    for name in NAMES:
        assert found(ours, name) == bool(re.search(pattern, name)), (pattern, name)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_patterns_are_found_as_std_regex_finds_them(tmp_path: Path) -> None:
    """Lines of pattern, tab, name in; 0 or 1 out: llama.cpp's own call."""
    source = tmp_path / "search.cpp"
    source.write_text(
        "#include <iostream>\n#include <regex>\n#include <string>\nint main() { std::string p, n;\n"
        "while (std::getline(std::cin, p, '\\t') && std::getline(std::cin, n))\n"
        "std::cout << std::regex_search(n, std::regex(p)); }\n"
    )
    subprocess.run(["g++", "-O1", "-o", tmp_path / "search", source], check=True)
    ours = [experts_pattern(random.Random(i).sample(range(200), 1 + i)) for i in range(40)]
    pairs = [(pattern, name) for pattern in [*SUBSET, *ours] for name in NAMES]
    lines = "".join(f"{pattern}\t{name}\n" for pattern, name in pairs)
    done = subprocess.run([tmp_path / "search"], input=lines, capture_output=True, text=True, check=True)
    compiled = {pattern: Pattern(pattern) for pattern, _ in pairs}
    assert [bool(int(bit)) for bit in done.stdout] == [found(compiled[pattern], name) for pattern, name in pairs]


SUBSET = [
    *(
        "exps",
        "blk.1",
        r"blk\.1\.",
        r"blk\.(1|2)\..*exps",
        "(ch|)exps",
        "^blk",
        "weight$",
        "^output",
        "output.weight",
        "",
    ),
    *(
        r"blk\.[0-9]\.",
        r"blk\.[0-9]{2}\.",
        r"blk\.\d+\.ffn_(gate|up|down)_exps",
        r"\.[^.]+_exps",
        r"[\w.]+p$",
        r"\D+\.1\.f",
    ),
    *(
        r"(?:^blk|^token).*(exps|embd)",
        "ffn_(gate_inp|up_exps)?",
        "a|",
        r"blk\.1?1\.ffn_.*?exps",
        r"[a-f_-]+n",
        r"(\.1\.)?ffn",
    ),
    *(
        r"[.]ffn[_]",
        r"\-|\_up_",
        r"(b)(l)(k)\.",
        r"[0-9.]{2}f",
        r"^blk\.(?:[0-2]|1[0-24]|20)\.ffn_(?:up|gate)_(?:ch)?exps\.",
    ),
]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(a+)+$", "forever"),
        ("(a|aa)+$", "forever"),
        ("(.*)*x", "forever"),
        ("(?:.*a){20}", "forever"),
        (".*.*.*.*.*.*.*x", "more than 6 times in a row"),
        ("(" * 30 + ")" * 30, "20 groups"),
        ("x" * 1001, "1001 characters"),
        ("[a-z]{99}" * 50, "1000"),
        ("a**", "repeats a repeat"),
        ("^*a", "repeats `^`"),
        ("*a", "nothing before it"),
        ("a{2", "`{`"),
        ("a{0}", "`{`"),
        ("(a", "nothing closes"),
        ("a)", "too much"),
        ("[a", "nothing closes"),
        ("[]", "nothing in it"),
        ("[b-a]", "[...] that does not go"),
        ("[z-b]", "[...] that does not go"),
        ("[[:alpha:]]", "a [ in [...]"),
        (r"[\D]", r"\D"),
        (r"\bblk", r"`\b`"),
        (r"(a)\1", r"`\1`"),
        ("a\\", "`\\`"),
        ("(?=a)", "`(?=`"),
        ("(?<!a)b", "`(?<`"),
        ("a^b", "in the middle"),
        ("a$b", "in the middle"),
        ("^(^a)", "twice"),
        ("^^a", "in the middle"),
        ("é", "'é'"),
    ],
)
def test_patterns_outside_the_subset_are_refused(pattern: str, said: str) -> None:
    with pytest.raises(TargetError) as problem:
        Pattern(pattern)
    assert said in str(problem.value)


# --- hostile text

HOSTILE = [
    "x" * 10_000_000,
    "llama-server -ngl 99 -ot '" + "(a+)+" * 3 + "=CPU'",
    "llama-server -ngl 99 -ot '" + ",".join(["([a-z]|.)*=CPU"] * 3) + "'",
    "llama-server -ngl 99 -ot '" + "(" * 20_000 + "=CPU'",
    "llama-server -ngl " + "9" * 60_000,
    "llama-server -ts " + "1," * 30_000,
    "llama-server -ot " + "a=CPU," * 10_000,
    "llama-server " + "-x " * 20_000 + "-ngl",
    "\\\n" * 30_000,
    "'" * 60_001,
    "llama-server --ncmoe \0\x1b[2J",
    "llama-server -ngl 99 -ts 1 -ot '(" + ".|" * 300 + ")(" + ".|" * 190 + ")=CPU'",
    "llama-server -ngl 99 -ts 1 -ot '" + ",".join(f"{'(.|.|.|.|.|.)(.|.|.)' * 20}{i}=CPU" for i in range(100)) + "'",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_refused_in_one_short_line(text: str) -> None:
    for target in TARGETS.values():
        with pytest.raises(TargetError) as problem:
            target.read(text, outline("deepseek-r1"), "file")
        assert len(str(problem.value)) < 400
        assert str(problem.value).isprintable()


WORDS = [
    *(
        "llama-server",
        "-ngl",
        "-ts",
        "-ot",
        "-ncmoe",
        "-cmoe",
        "-sm",
        "-mg",
        "-dev",
        "-fit",
        "-c",
        "-ub",
        "-ctk",
        "-ctv",
        "-np",
    ),
    *(
        "99",
        "0",
        "-1",
        "1,1",
        "0,0",
        "1e999",
        "nan",
        "off",
        "on",
        "none",
        "layer",
        "CUDA0",
        "CUDA1,CUDA0",
        "q8_0",
        "f16",
        "",
        "/",
    ),
    *(
        "exps=CPU",
        "blk\\.1=CUDA1",
        "=",
        ",",
        "a=b=c",
        "'",
        '"',
        "\\",
        "\n",
        "$X",
        "#",
        "A=1",
        "CUDA_VISIBLE_DEVICES=1,1",
        "--x=y",
    ),
]


@given(
    st.sampled_from(["", "llama-server -fit off -ngl 9 ", "llama-cli -ngl 9 -ts 1,1 "]),
    st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=6)), max_size=12).map(" ".join),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused(start: str, text: str, ik: bool) -> None:
    """Nothing but TargetError comes out, in one printable line."""
    said = "read"
    try:
        LlamaCpp(ik).read(start + text, Outline("m", "mixtral", (8, 8, 8)), "f")
    except TargetError as problem:
        said = str(problem)
    assert said.isprintable()
