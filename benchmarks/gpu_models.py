"""Parts of benchmarks/gpu.py on whole models: does a plan give the same tokens within its bytes, and how fast?"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from gpu_bench import CPU, GB, LITE, MB, NARROW, QWEN, SHORT, Bench, Table, generated, name_of, prompt, random_model
from torch.nn.functional import scaled_dot_product_attention

from cost_models import CostModel
from profiles import ApplyError, Workload
from profiles.model import ModelProfile
from profiles.placement import Placement
from runtime_adapter import apply
from runtime_adapter.anatomy import experts_of
from solver import solve
from solver.evaluate import judge

NEW_TOKENS = 20
PLANS: dict[str, Callable[[int], str]] = {
    "all on the GPU": lambda i: "cuda:0",
    "experts on the CPU": lambda i: "cpu",
    "in turn": lambda i: ("cuda:0", "cpu")[i % 2],
}


def live(bench: Bench) -> Table:
    """Small models under fixed plans: logits, greedy tokens, peak bytes, undo, refusals."""
    for kind, shape in (("Qwen3Moe", QWEN), ("DeepseekV2", SHORT)):
        for dtype in (torch.float32, torch.bfloat16):
            model, profile = random_model(kind, shape if bench.real else shape | NARROW, dtype, bench.device)
            ids = prompt(model)
            with torch.inference_mode():
                on_gpu, gpu_tokens = model(ids.to(bench.device)).logits.cpu(), generated(model, ids, NEW_TOKENS)
                on_cpu, cpu_tokens = model.to(CPU)(ids).logits, generated(model, ids, NEW_TOKENS)
            what = {"model": kind, "dtype": name_of(dtype)}
            error, equal = apart(on_gpu, on_cpu), leading(gpu_tokens, cpu_tokens)
            yield "Unplaced, GPU against CPU", {**what, "logits, relative L2": error, "equal tokens": equal}
            for name, experts in PLANS.items():
                row = placed(bench, model, profile, plan_of(profile, experts), ids, on_gpu, gpu_tokens, on_cpu)
                yield "Placed", {**what, "plan": name, **row}
    yield from attention_bytes(bench)


def plan_of(profile: ModelProfile, experts: Callable[[int], str]) -> Placement:
    """Everything on cuda:0 but the experts, which are where `experts` says."""
    layers = [
        {"attention": "cuda:0", "experts": {experts(i): "all"} if layer.experts else {}}
        for i, layer in enumerate(profile.layers)
    ]
    return Placement(embedding="cuda:0", head="cuda:0", layers=layers)


def placed(
    bench: Bench,
    model: Any,
    profile: ModelProfile,
    plan: Placement,
    ids: torch.Tensor,
    on_gpu: torch.Tensor,
    gpu_tokens: list[int],
    on_cpu: torch.Tensor,
) -> dict[str, Any]:
    before = {name: (tensor, tensor.clone()) for name, tensor in model.named_parameters()}
    start = bench.restart()
    with apply(plan, model, devices={"cuda:0": bench.device}), torch.inference_mode():
        tokens = generated(model, ids, NEW_TOKENS)
        peaks = [bench.held(what, "peak") - start for what in ("requested", "allocated")]
        logits = model(ids).logits
    after = dict(model.named_parameters())
    same = all(after[name] is old and torch.equal(old, values) for name, (old, values) in before.items())
    work = Workload(prompt_tokens=ids.shape[1], generated_tokens=NEW_TOKENS)
    used = judge(plan, CostModel(profile, bench.machine(), work)).memory["cuda:0"].used_bytes
    return {
        "from GPU": apart(logits, on_gpu),
        "from CPU": apart(logits, on_cpu),
        "tokens as GPU's": leading(tokens, gpu_tokens),
        "predicted MB": used / MB,
        "peak asked for": peaks[0] / MB,
        "peak given": peaks[1] / MB,
        "asked / predicted": peaks[0] / used,
        "undo": ("exact" if same else "NOT EXACT") + f", {bench.restart() - start} bytes left",
    }


def refusals(bench: Bench) -> Table:
    """What cannot be done is refused, with the model as it was."""
    model, profile = random_model("DeepseekV2", SHORT if bench.real else SHORT | NARROW, torch.bfloat16, bench.device)
    model.to(CPU)
    plan = plan_of(profile, lambda i: "cuda:0")

    def refused(what: str, devices: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
        before = bench.held()
        try:
            apply(plan, model, devices=devices).undo()
            said = "NOT REFUSED"
        except ApplyError as problem:
            said = str(problem)
        gc.collect()
        whole = all(p.device == CPU and p.numel() for p in model.parameters())
        row = {"what": what, "said": said, "model as before": whole, "bytes left": bench.held() - before}
        return "Refused", row

    yield refused("a GPU that is not there", {"cuda:0": "cuda:7"})
    if bench.real:
        others = filled(bench)
        yield refused("a GPU that others have filled", {"cuda:0": "cuda:0"})
        del others


def filled(bench: Bench, step: int = 2**26) -> list[torch.Tensor]:
    """Tensors that leave less than two steps of the GPU, what torch keeps for later included."""
    bench.restart()
    taken: list[torch.Tensor] = []
    try:
        while True:
            taken.append(torch.empty(step, dtype=torch.uint8, device=bench.device))
    except torch.OutOfMemoryError:
        return taken[:-1]


def attention_bytes(bench: Bench) -> Table:
    """What torch's attention needs beside its inputs and output, 16 heads of 64 over 512 tokens."""
    for dtype in (torch.float32, torch.bfloat16):
        for heads in (16, 4):
            query = torch.randn(1, 16, 512, 64, device=bench.device, dtype=dtype)
            key = torch.randn(1, heads, 512, 64, device=bench.device, dtype=dtype)
            start = bench.restart()
            with torch.inference_mode():
                out = scaled_dot_product_attention(query, key, key, is_causal=True, enable_gqa=heads != 16)
            extra = bench.held("allocated", "peak") - start - out.numel() * out.element_size()
            cells = {"dtype": name_of(dtype), "key heads": heads, "MB beside inputs and output": extra / MB}
            yield "Attention's own memory", cells


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """||one - other|| / ||other||, in double precision."""
    return float((one.double() - other.double()).norm() / other.double().norm())


def leading(one: list[int], other: list[int]) -> int:
    """How many tokens agree before the first that does not."""
    return next((i for i, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), len(one))


# ---- one model, end to end -------------------------------------------------------------------------------------


def end_to_end(bench: Bench) -> Table:
    """DeepSeek-V2-Lite's shape with the GPU's budget cut to shares of its weights."""
    model, profile = random_model("DeepseekV2", LITE if bench.real else SHORT | NARROW, torch.bfloat16, bench.device)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    model.to(CPU)
    found, work, ids = bench.machine(), Workload(prompt_tokens=512, generated_tokens=NEW_TOKENS), prompt(model)
    gpu = found.gpus[0]
    for share in (0.5, 1.0, 0.25, 0.75):
        place = gpu if share == 1 else gpu.replace(budget_bytes=int(share * weights))
        plan = solve(profile, found.replace(devices=(place, found.cpu)), work, time_limit=5.0)
        on_cpu = sum(layer.experts_device == "cpu" for layer in plan.layers if layer.experts)
        start = bench.restart()
        with apply(plan, model, devices={"cuda:0": bench.device}, keep_host=True):
            row, peaks = speed(bench, model, ids)
        told = plan.prediction
        assert told is not None
        assert plan.memory is not None
        used = plan.memory["cuda:0"].used_bytes
        yield "Time", {
            "budget": share, "experts on the CPU": on_cpu, **row,
            "predicted prefill s": told.prefill_s, "prefill ratio": row["prefill s"] / told.prefill_s,
            "predicted step ms": told.decode_step_s * 1e3, "step ratio": row["step ms"] / told.decode_step_s / 1e3,
        }  # fmt: skip
        beyond = {f"{name}, beyond MB": (peak - start - used) / MB for name, peak in peaks.items()}
        yield "Peak bytes on the GPU", {"budget": share, "predicted GB": used / GB, **beyond}


def accelerate(bench: Bench) -> Table:
    """The same model within the same bytes, as accelerate places and runs it."""
    model, _ = random_model("DeepseekV2", LITE if bench.real else SHORT | NARROW, torch.bfloat16, bench.device)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    model.to(CPU)
    for share in (0.5, 0.25, 0.75):
        bench.restart()
        on_cpu, row = by_accelerate(bench, model, prompt(model), int(share * weights))
        yield "Time", {"budget": share, "layers on the CPU": on_cpu, **row}


def speed(
    bench: Bench, model: Any, ids: torch.Tensor, new: int = NEW_TOKENS, runs: int = 3
) -> tuple[dict[str, Any], dict[str, int]]:
    """Seconds of generate(): for one token, which is the prefill, and for each further one; and peaks of both.

    The first run of all steps has KV lengths that come for the first time, and is told apart.
    """
    generated(model, ids, 1)
    peaks = {"asked for in prefill": bench.held("requested", "peak")}
    prefill = bench.seconds(lambda: generated(model, ids, 1), most_s=0.0, least=min(3, runs), warm_up=0)
    with in_experts(model) as spent:
        both = bench.times(lambda: generated(model, ids, 1 + new), most_s=0.0, least=runs, warm_up=0)
    peaks |= {"asked for in all": bench.held("requested", "peak"), "given in all": bench.held("allocated", "peak")}
    first, *later = [(seconds - prefill) / new for seconds in both]
    step = median(later or [first])
    row = {"prefill s": prefill, "first steps ms": first * 1e3, "step ms": step * 1e3, "tokens/s": 1 / step}
    return row | {"of a step, experts on the CPU ms": sum(spent) / new / runs * 1e3}, peaks


@contextmanager
def in_experts(model: Any) -> Iterator[list[float]]:
    """Seconds of every call, with one token, of experts that are on the CPU."""
    spent, begun, handles = list[float](), [0.0], []

    def before(module: Any, args: Any) -> None:
        begun[0] = time.perf_counter()

    def after(module: Any, args: Any, output: Any) -> None:
        if len(args[0]) == 1:
            spent.append(time.perf_counter() - begun[0])

    for layer in model.model.layers:
        part = experts_of(layer)
        if part is not None and next(part.parameters()).device == CPU:
            handles.append(part.register_forward_pre_hook(before))
            handles.append(part.register_forward_hook(after, prepend=True))
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()


def by_accelerate(bench: Bench, model: Any, ids: torch.Tensor, budget: int) -> tuple[int, dict[str, Any]]:
    """Its own placement within the same bytes: what is on the CPU is copied to the GPU whenever it is used."""
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.hooks import remove_hook_from_submodules

    whole = [type(model.model.layers[0]).__name__]
    where = infer_auto_device_map(model, max_memory={0: budget, "cpu": 2**40}, no_split_module_classes=whole)
    dispatch_model(model, where)
    on_cpu = sum(name.startswith("model.layers.") and device == "cpu" for name, device in where.items())
    row, _ = speed(bench, model, ids, new=2, runs=1)
    remove_hook_from_submodules(model)
    for name in ("hf_device_map", "to", "cuda"):  # what dispatching left on the model itself
        vars(model).pop(name, None)
    model.to(CPU)
    return on_cpu, row
