"""Parts of benchmarks/gpu.py on what the cost model assumes: launches, hops, copies, experts' rates, overlap."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import cycle
from statistics import median
from typing import Any

import torch
from gpu_bench import CPU, GB, LITE, NARROW, QWEN, SHORT, Bench, Table, prompt, random_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from cost_models.engines import engine_of
from cost_models.experts import distinct_experts
from cost_models.roofline import Work, roofline_s
from profiles.model import ModelProfile
from runtime_adapter.anatomy import experts_of
from runtime_adapter.placing.hooks import moved

KERNELS = {"cuda:0": {"grouped_mm": 1024, "batched_mm": 16, "eager": 16}, "cpu": {"grouped_mm": 1024, "eager": 16}}
"""Up to how many tokens each kernel of transformers is tried; batched_mm gathers a copy of the weights a token."""

STEPS, ROUNDS = 20, 25

TORCH = engine_of("torch")


def constants(bench: Bench) -> Table:
    yield from copies(bench)
    yield from hops(bench)
    yield from experts_rates(bench)


def against(what: str, unit: str, measured: float, assumed: float) -> tuple[str, dict[str, Any]]:
    cells = {"what": what, "unit": unit, "assumed": assumed, "measured": measured, "ratio": measured / assumed}
    return "Assumed and measured", cells


def launches(bench: Bench) -> Table:
    """Narrow layers, one token: what eight layers more cost a step, and of that the experts called by themselves.

    All steps are done three times over the same KV lengths, the last time counts: the first also sets up kernels.
    """
    # With the kernels that generate() takes.
    for device, where, kernel in ((bench.device, "gpu", "batched_mm"), (CPU, "cpu", "grouped_mm")):
        for kind, shape in (("Qwen3Moe", QWEN), ("DeepseekV2", SHORT)):
            by_layers = []
            for layers in (3, 11):
                model, _ = random_model(kind, {**shape, **NARROW, "num_hidden_layers": layers}, torch.bfloat16, device)
                model.set_experts_implementation(kernel)
                by_layers.append(bench.times(steps_of(model, prompt(model, 64).to(device)), most_s=0.0, warm_up=0))
            part = experts_of(model.model.layers[-1])
            layer = (by_layers[1][-1] - by_layers[0][-1]) / STEPS / 8
            alone = bench.seconds(calls(part, device, 1, sets=1), calls=20)
            assumed = getattr(TORCH, where).launch_s
            rest = assumed.latent if kind == "DeepseekV2" else assumed.attention
            yield against(
                f"launch on the {where}: experts of {kind}, {kernel}", "us", alone * 1e6, assumed.experts * 1e6
            )
            yield against(f"launch on the {where}: the rest of a layer", "us", (layer - alone) * 1e6, rest * 1e6)
    yield from first_lengths(bench)


def steps_of(model: Any, ids: torch.Tensor) -> Callable[[], None]:
    """A call does STEPS decode steps behind the prompt `ids`."""
    with torch.inference_mode():
        cache = model(ids, use_cache=True).past_key_values

    def run() -> None:
        with torch.inference_mode():
            for _ in range(STEPS):
                model(ids[:, :1], past_key_values=cache)
            cache.crop(-STEPS)

    return run


def first_lengths(bench: Bench) -> Table:
    """Attention of one token, 16 heads of 128, over KV lengths that come for the first time, and for the second."""
    every = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    for name, backends, start in (("as torch chooses", every, 1000), ("without cuDNN", every[1:], 2000)):
        query = torch.randn(1, 16, 1, 128, device=bench.device, dtype=torch.bfloat16)
        keys = torch.randn(1, 16, start + STEPS, 128, device=bench.device, dtype=torch.bfloat16)
        views = [keys[:, :, : start + i] for i in range(STEPS)]
        scaled_dot_product_attention(query, keys, keys)
        times = bench.times(partial(attend, backends, query, views), most_s=0.0, warm_up=0)
        cells = {"kernel": name, "first us": times[0] / STEPS * 1e6, "again us": times[-1] / STEPS * 1e6}
        yield "Attention of one token, by KV length", cells


def attend(backends: list[SDPBackend], query: torch.Tensor, views: list[torch.Tensor]) -> None:
    with torch.inference_mode(), sdpa_kernel(backends):
        for view in views:
            scaled_dot_product_attention(query, view, view)


def copies(bench: Bench) -> Table:
    size, rate = 2**28, bench.listed().links[0].bandwidth_bytes_per_s
    host = torch.ones(size, dtype=torch.uint8)
    there = host.to(bench.device)
    for name, memory in (("pinned", host.pin_memory() if bench.real else host.clone()), ("pageable", host)):
        to = size / bench.seconds(partial(there.copy_, memory, non_blocking=True))
        back = size / bench.seconds(partial(memory.copy_, there, non_blocking=True))
        yield against(f"256 MiB to the GPU, {name}", "GB/s", to / GB, rate / GB)
        yield against(f"256 MiB to RAM, {name}", "GB/s", back / GB, rate / GB)


def hops(bench: Bench) -> Table:
    """Hidden states to RAM and back: plain `.to`, through pinned buffers, and all that `apply` moves for experts."""
    link = bench.listed().links[0]
    for tokens in (1, 16, 512):
        state = torch.randn(tokens, LITE["hidden_size"], device=bench.device).bfloat16()
        two = 2 * (link.latency_s + state.numel() * state.element_size() / link.bandwidth_bytes_per_s)
        for name, run in ways_to_hop(bench, state).items():
            assumed = two + (TORCH.cpu.sync_s if "apply" in name else 0.0)
            yield against(
                f"{tokens} hidden states to RAM and back, {name}", "us", bench.seconds(run) * 1e6, assumed * 1e6
            )

    def event() -> None:
        if bench.real:
            done = torch.cuda.Event()
            done.record()
            done.synchronize()

    yield against("sync on a gpu: an event, waited for", "us", bench.seconds(event) * 1e6, TORCH.gpu.sync_s * 1e6)


def ways_to_hop(bench: Bench, state: torch.Tensor) -> dict[str, Callable[[], object]]:
    choice, weight = torch.zeros(len(state), 6, dtype=torch.long), torch.rand(len(state), 6)
    given = [state, choice.to(bench.device), weight.to(bench.device)]
    buffer, back = torch.empty_like(state, device="cpu", pin_memory=bench.real), torch.empty_like(state)

    def pinned() -> None:
        buffer.copy_(state, non_blocking=True)
        bench.wait()
        back.copy_(buffer, non_blocking=True)

    return {
        "pageable": lambda: state.to(CPU).to(bench.device),
        "pinned": pinned,
        "with indices and router weights, as apply does": lambda: moved(moved(given, CPU)[0], bench.device),
    }


def one_layer(bench: Bench) -> tuple[Any, ModelProfile]:
    """The experts of one layer of DeepSeek-V2-Lite's shape, on the GPU, in bf16."""
    shape = LITE | {"num_hidden_layers": 2, "vocab_size": 512} | ({} if bench.real else NARROW)
    model, profile = random_model("DeepseekV2", shape, torch.bfloat16, bench.device)
    return experts_of(model.model.layers[1]), profile


def routed(experts: range, tokens: int, active: int, device: torch.device) -> torch.Tensor:
    """`active` different experts for each token, all equally likely."""
    return (torch.rand(tokens, len(experts)).argsort(1)[:, :active] + experts.start).to(device)


def calls(
    part: Any,
    device: torch.device,
    tokens: int,
    sets: int = 12,
    experts: range | None = None,
    active: int | None = None,
) -> Callable[[], Any]:
    """A call of experts with random tokens, other experts each time, so that a cache does not hold them."""
    active, experts = active or part.config.num_experts_per_tok, experts or range(part.num_experts)
    state = torch.randn(tokens, part.config.hidden_size, device=device).bfloat16()
    weights = torch.rand(tokens, active, device=device)
    turns = cycle([routed(experts, tokens, active, device) for _ in range(sets)])

    def call() -> Any:
        with torch.inference_mode():
            return part(state, next(turns), weights)

    return call


def experts_rates(bench: Bench) -> Table:
    part, profile = one_layer(bench)
    block, found = profile.layers[1].experts, bench.machine()
    assert block is not None
    assert block.params is not None
    for place, kernels in KERNELS.items():
        device = CPU if place == "cpu" else bench.device
        part.to(device)
        for kernel, most in kernels.items():
            part.config._experts_implementation = kernel
            for tokens in (t for t in (1, 4, 16, 64, 256, 1024) if t <= most):
                seconds = bench.seconds(calls(part, device, tokens))
                touched = distinct_experts(block, tokens) * block.weight_bytes.gpu / block.count
                flops = 2.0 * block.params / block.count * block.active * tokens
                habits = TORCH.cpu if place == "cpu" else TORCH.gpu
                work = Work("experts", touched, flops=flops, experts=block.count)
                predicted = roofline_s(found.device(place), habits, work)
                yield "Experts of one layer, DeepSeek-V2-Lite's shape, bf16, with the machine as measured", {
                    "on": place, "kernel": kernel, "tokens": tokens, "ms": seconds * 1e3,
                    "GB/s": touched / seconds / GB, "TFLOP/s": flops / seconds / 1e12,
                    "predicted ms": predicted * 1e3, "ratio": seconds / predicted,
                }  # fmt: skip


def overlap(bench: Bench) -> Table:
    """Do a CPU part and a GPU part of a layer work at the same time? Half of the experts, and of choices, on each.

    "GPU first" launches there, then fetches what the CPU needs; "sent first" fetches it, launches, and then computes.
    The last row gives the GPU more tokens than the CPU, so that both have as much to do.
    """
    (here, _), (there, _) = one_layer(bench), one_layer(bench)
    there.to(CPU)
    here.config._experts_implementation = there.config._experts_implementation = "grouped_mm"
    for own_tokens, far_tokens in ((1, 1), (16, 16), (512, 512), (131072 if bench.real else 512, 256)):
        yield "One layer's experts, half on each side", both_sides(bench, here, there, own_tokens, far_tokens)


def both_sides(bench: Bench, here: Any, there: Any, own_tokens: int, far_tokens: int) -> dict[str, Any]:
    """Experts on the GPU and on the CPU: each alone, and both, in either order."""
    half, active = here.num_experts // 2, here.config.num_experts_per_tok // 2
    on_gpu = calls(here, bench.device, own_tokens, experts=range(half), active=active)
    state = torch.randn(far_tokens, here.config.hidden_size, device=bench.device).bfloat16()
    weight = torch.rand(far_tokens, active, device=bench.device)
    turns = cycle([routed(range(half, 2 * half), far_tokens, active, bench.device) for _ in range(12)])

    def sent() -> list[torch.Tensor]:
        tensors: list[torch.Tensor] = moved([state, next(turns), weight], CPU)
        return tensors

    def on_cpu(inputs: list[torch.Tensor] | None = None) -> torch.Tensor:
        with torch.inference_mode():
            out: torch.Tensor = there(*(inputs or sent())).to(bench.device)
        return out

    def gpu_first() -> None:
        on_gpu()[:1].add(on_cpu()[:1])

    def sent_first() -> None:
        inputs = sent()
        on_gpu()[:1].add(on_cpu(inputs)[:1])

    def launched() -> float:
        bench.wait()
        begin = time.perf_counter()
        on_gpu()
        return time.perf_counter() - begin

    runs = (on_gpu, on_cpu, gpu_first, sent_first)
    # In turns, because the CPU is not steady.
    rounds = [[bench.times(run, most_s=0.0, least=1, warm_up=0)[0] for run in runs] for _ in range(ROUNDS)]
    gpu, cpu, late, early = (median(times) for times in zip(*rounds, strict=True))
    return {
        "tokens, GPU": own_tokens, "tokens, CPU": far_tokens, "GPU alone ms": gpu * 1e3,
        "of which launching": median(launched() for _ in range(9)) * 1e3, "CPU alone ms": cpu * 1e3,
        "max": max(gpu, cpu) * 1e3, "sum": (gpu + cpu) * 1e3,
        "GPU first": late * 1e3, "overlap": (gpu + cpu - late) / min(gpu, cpu),
        "sent first": early * 1e3, "overlap then": (gpu + cpu - early) / min(gpu, cpu),
    }  # fmt: skip
