r"""A plan as a file of marked experts and a command for sglang-kt (SGLang with kt-kernel), and such text as a plan.

What was read in sglang-kt 0.7.2 (`layers/moe/kt_ep_wrapper.py`, `eplb/expert_location.py`, `server_args.py`):

- All but the experts is on the GPUs. `--kt-gpu-experts-ratio` of all experts are on the GPU too, the others on the CPU;
  `--kt-num-gpu-experts` is so many of each layer, where there is no ratio.
- Strategy `frequency` takes the experts with the largest counts in the file that `--init-expert-location` names, from
  all layers at once. With counts of one and zero, and a ratio for just as many as there are ones, it takes those.
- With `--kt-weight-path` SGLang's own load balancer leaves that file alone; else it would renumber experts by it.
- Several GPUs divide every tensor between them, which is nothing that a placement says: plans are for one GPU.

>>> layers = [{"attention": "cuda:0", "experts": {"cuda:0": [0, 1, 5], "cpu": [2, 3, 4, 6, 7]}}] * 2
>>> plan = Placement(embedding="cuda:0", head="cuda:0", layers=layers)
>>> [line for line in write(plan, Outline.of_plan(plan)).splitlines() if "0-1:" in line or "ratio" in line]
['0-1:0-1,5', '  --kt-gpu-experts-ratio 0.4 \\']
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from profiles.device_names import gpu_index
from profiles.errors import TargetError
from profiles.placement import LayerPlacement, Placement, in_short
from runtime_adapter.targets.sglang_kt.masks import Mask, Shape, ratio_of, shape_of
from runtime_adapter.targets.sglang_kt.script import script
from runtime_adapter.targets.sglang_kt.simulator import resolve
from runtime_adapter.targets.target import Outline, not_cuda

FILE = "experts_on_gpu.pt"
NATIVE = {"bf16": "BF16", "fp8": "FP8", "mxfp4": "MXFP4"}
"""Formats that kt-kernel reads from the model's own files, and its names for them."""


def obstacles(plan: Placement, outline: Outline) -> list[str]:
    """Why sglang-kt cannot follow the plan, with the remedies: experts whose number is not known or not regular,
    anything else off the one GPU, experts on another GPU, or an expert that is nowhere."""
    try:
        shape = shape_of(outline)
    except TargetError as problem:
        return [str(problem)]
    return list(_obstacles(plan, shape))


def _obstacles(plan: Placement, shape: Shape) -> Iterator[str]:
    yield from not_cuda(plan, "sglang-kt")
    homes = dict.fromkeys([plan.embedding, *(layer.attention for layer in plan.layers), plan.head])
    if len(homes) > 1 or plan.head == "cpu":
        found = ", ".join(homes)
        yield f"sglang-kt: all but the experts must be on one GPU, not on {found}; solve with target 'sglang-kt'"
    away = [i for i, layer in enumerate(plan.layers) if set(layer.experts) - {plan.head, "cpu"}]
    if away:
        devices = f"neither on {plan.head} nor on cpu"
        yield f"sglang-kt: layers {in_short(away)} have experts {devices}; solve with target 'sglang-kt'"
    for index, layer in enumerate(plan.layers):
        ids = sorted(expert for part in layer.experts.values() if part != "all" for expert in part)
        if ids and ids != list(range(shape.experts)):
            yield f"sglang-kt: layer {index} does not place each of experts 0 to {shape.experts - 1}; mend the plan"


def write(plan: Placement, outline: Outline, model_path: str | None = None) -> str:
    """Shell text: a script that writes the file of marked experts, and the command that serves the model with it.

    Words in capitals stand for what the plan does not say. Raises TargetError, in one line, for what sglang-kt cannot
    do; see `obstacles`.
    """
    for problem in obstacles(plan, outline):
        raise TargetError(problem)
    shape = shape_of(outline)
    mask = [_on_gpu(layer, plan.head, shape) for layer in plan.layers]
    text = "\n".join([_heading(plan, outline), script(mask, shape, FILE), _command(plan, shape, mask, model_path)])
    if resolve(text, shape, "the text written") != (plan.head, mask):
        raise TargetError("sglang-kt: the text written does not mean the plan; this is a bug in moeplan, report it")
    return text


def _on_gpu(layer: LayerPlacement, gpu: str, shape: Shape) -> frozenset[int]:
    part = layer.experts.get(gpu, ())
    return frozenset(range(shape.experts) if part == "all" else part)


def _heading(plan: Placement, outline: Outline) -> str:
    """Comment lines that say what the text is for."""
    facts = [f"sglang-kt by moeplan: {plan.model or outline.architecture or 'a model'} on {plan.hardware or 'one GPU'}"]
    if plan.prediction is not None:
        seconds = f"prefill {plan.prediction.prefill_s:.3g} s, decode step {plan.prediction.decode_step_s:.3g} s"
        facts.append(f"predicted: {seconds}, {plan.prediction.tokens_per_s:.3g} tokens/s")
    for device, held, used, free in plan.device_rows():
        facts.append(f"{device}: {held}" + (f"; {used} used, {free} free" if plan.memory else ""))
    return "".join(f"# {' '.join(fact.split())}\n" for fact in facts)


def _command(plan: Placement, shape: Shape, mask: Mask, model_path: str | None) -> str:
    method = NATIVE.get((plan.quant or "").partition(" experts")[0], "METHOD")
    model = shlex.quote(model_path or "MODEL_FOLDER")
    parts = [
        "python3 -m sglang.launch_server",
        f"--model-path {model}",
        f"--kt-weight-path {'WEIGHTS_FOLDER' if method == 'METHOD' else model}",
        f"--kt-method {method}",
        "--kt-cpuinfer \"$(lscpu -p=CORE,SOCKET | grep -v '^#' | sort -u | wc -l)\"",
        "--kt-threadpool-count \"$(lscpu -p=NODE | grep -v '^#' | sort -u | wc -l)\"",
        f"--kt-gpu-experts-ratio {ratio_of(shape, sum(map(len, mask)))}",
        "--kt-expert-placement-strategy frequency",
        f"--init-expert-location {FILE}",
        "--disable-shared-experts-fusion",
        "--tensor-parallel-size 1",
        f"--base-gpu-id {gpu_index(plan.head)}",
    ]
    if (work := plan.workload) is not None:
        parts.append(f"--max-running-requests {work.batch_size}")
        parts.append(f"--max-total-tokens {work.batch_size * work.context_tokens}")
        parts.append(f"--chunked-prefill-size {work.batch_size * work.prefill_chunk}")
    return " \\\n  ".join(parts) + "\n"


def simulate(text: str, outline: Outline, where: str = "command") -> dict[str, str]:
    """The device of every expert, and of all else of each layer, counted as sglang-kt does."""
    shape = shape_of(outline)
    gpu, mask = resolve(text, shape, where)
    found = {"model.embed_tokens": gpu}
    for index, part in enumerate(mask):
        found[f"model.layers.{index}"] = gpu
        ids = range(shape.experts if index >= shape.dense else 0)
        found.update({f"model.layers.{index}.mlp.experts.{i}": gpu if i in part else "cpu" for i in ids})
    return {**found, "lm_head": gpu}


def read(text: str, outline: Outline, where: str = "command") -> Placement:
    """The placement that moeplan's own text means, or a command line with a strategy that needs no data.

    Raises TargetError, with the line where there is one, for several GPUs, experts that move while the model runs,
    strategies that depend on numbers which the text does not have, and a command under which kt-kernel stays off.
    """
    shape = shape_of(outline)
    gpu, mask = resolve(text, shape, where)
    return Placement(
        model=outline.model,
        architecture=outline.architecture,
        target="sglang-kt",
        embedding=gpu,
        head=gpu,
        layers=tuple(_layer(part, gpu, shape if index >= shape.dense else None) for index, part in enumerate(mask)),
    )


def _layer(part: frozenset[int], gpu: str, shape: Shape | None) -> LayerPlacement:
    """A layer of that shape; a dense one where there is none."""
    if shape is None:
        return LayerPlacement(attention=gpu, experts={})
    if len(part) in (0, shape.experts):
        return LayerPlacement(attention=gpu, experts={gpu if part else "cpu": "all"})
    rest = tuple(i for i in range(shape.experts) if i not in part)
    return LayerPlacement(attention=gpu, experts={gpu: tuple(sorted(part)), "cpu": rest})
