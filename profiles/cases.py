"""A measured run as a case that a cost model can be asked about: model, machine, placement, workload."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from profiles.document import Noun, one_line
from profiles.errors import MoeplanError, ProfileError
from profiles.hardware import Hardware
from profiles.model import Layer, ModelProfile
from profiles.placement import Placement
from profiles.run import Engine, Run
from profiles.run_machine import RamSource, machine_of, uses_gpus
from profiles.run_model import LEAST_SCALE, MOST_SCALE, profile_of, scaled
from profiles.run_placement import placement_of

DEFAULT_GENERATED = 128
"""llama-bench's default; half of it is added to the depth, so the guess hardly matters."""
DEFAULT_UBATCH = {"llama.cpp": 512, "ik_llama.cpp": 512}
"""Tokens of a prompt in one step where a run does not say: the default of these engines; the others read it in one."""
MOST_CHUNKS = 100_000


class Case(Noun):
    """One run, ready to be predicted. Devices are cuda:0, cuda:1, … and cpu; the placement has every layer.

    A decode step has `decode_context` tokens in the cache of each of `batch_size` sequences, the mean while the answer
    was written. `prefill_chunks` are (new tokens, tokens in the cache) of each step of the prompt, none where no prompt
    was measured. What was measured stands in `run`: decode and prefill tokens/s, either may be None.

    `ram_source` says where the CPU's bytes/s are from ("stated" and "catalogue" are theoretical peaks); `sockets` are
    those that were used. `tensor_parallel` GPUs share the work of cuda:0 (SGLang), which the placement does not say.
    `assumptions` are the facts that the source did not give, one a line.
    """

    run: Run
    profile: ModelProfile
    hardware: Hardware
    placement: Placement
    decode_context: Annotated[float, Field(ge=0)]
    prefill_chunks: tuple[tuple[int, int], ...]
    batch_size: int
    engine: Engine
    threads: int | None
    prefill_threads: int | None
    sockets: int | None
    ram_source: RamSource
    tensor_parallel: int
    assumptions: tuple[str, ...]


def case_of(run: Run) -> Case:
    """The case of a run; MoeplanError, one line with the run's id, the fact that is missing and how to give it.

    >>> gpu = {"model": "RTX 4090", "memory_bytes": "24564 MiB"}
    >>> case = case_of(Run(id="mine", model="Qwen3-30B-A3B", quant="Q4_K_M", engine="llama.cpp", gpus=[gpu],
    ...                    cpu="Ryzen 9 7950X", n_cpu_moe=20, context_depth=4096, prompt_tokens=1024,
    ...                    decode_tokens_per_s=60, prefill_tokens_per_s=1500))
    >>> case.placement.layers[19].experts, case.placement.layers[20].experts
    ({'cpu': 'all'}, {'cuda:0': 'all'})
    >>> case.decode_context, case.prefill_chunks
    (4160.0, ((512, 4096), (512, 4608)))
    """
    try:
        return _case(run)
    except MoeplanError as problem:
        raise type(problem)(one_line(f"{run.id}: {problem}")) from None


def _case(run: Run) -> Case:
    if run.engine is None:
        raise ProfileError("engine: not known; say which, e.g. engine='llama.cpp'")
    profile = profile_of(run)
    machine = machine_of(run)
    placed = placement_of(run, profile, machine.hardware)
    notes = [*machine.notes, *placed.notes]
    profile = _with_loaded_bytes(run, profile, placed.placement)
    return Case(
        run=run,
        profile=_with_hits(run, profile, placed.placement),
        hardware=machine.hardware,
        placement=placed.placement,
        decode_context=_decode_context(run, notes),
        prefill_chunks=tuple(_prefill_chunks(run, notes)),
        batch_size=run.batch_size or 1,
        engine=run.engine,
        threads=run.threads,
        prefill_threads=run.prefill_threads or run.threads,
        sockets=run.sockets_used or run.sockets,
        ram_source=machine.ram_source,
        tensor_parallel=max(1, len(machine.hardware.gpus)) if run.engine == "sglang-kt" and uses_gpus(run) else 1,
        assumptions=tuple(notes),
    )


def _decode_context(run: Run, notes: list[str]) -> float:
    """Depth and half of what was generated; a request's depth is its prompt."""
    depth = run.context_depth if run.context_depth is not None else run.prompt_tokens
    if depth is None:
        notes.append("neither depth nor prompt stated: an empty cache is assumed")
    generated = run.generated_tokens if run.generated_tokens is not None else DEFAULT_GENERATED
    return (depth or 0) + generated / 2


def _prefill_chunks(run: Run, notes: list[str]) -> Iterator[tuple[int, int]]:
    if not run.prompt_tokens or run.prefill_tokens_per_s is None:
        return
    depth = run.prefill_depth if run.prefill_depth is not None else run.context_depth or 0
    chunk = run.ubatch or DEFAULT_UBATCH.get(run.engine or "", run.prompt_tokens)
    if run.ubatch is None:
        notes.append(f"tokens of the prompt in one step not stated: {chunk} are assumed")
    if run.prompt_tokens > chunk * MOST_CHUNKS:
        raise ProfileError(f"ubatch: {chunk} cuts a prompt of {run.prompt_tokens} into too many steps; raise it")
    for start in range(0, run.prompt_tokens, chunk):
        yield min(chunk, run.prompt_tokens - start), depth + start


def _with_loaded_bytes(run: Run, profile: ModelProfile, placement: Placement) -> ModelProfile:
    """The experts on the CPU as heavy as the loader said, less the embedding, which lies there too.

    Only where GPUs hold the rest: a loader's figure for a machine without is the whole file.
    """
    on_cpu = [i for i, layer in enumerate(placement.layers) if layer.experts_device == "cpu"]
    if run.cpu_weight_bytes is None or not uses_gpus(run) or not on_cpu or "cpu" in _attention_of(placement):
        return profile
    stored = sum(experts.weight_bytes.cpu for i in on_cpu if (experts := profile.layers[i].experts) is not None)
    embedding = profile.embedding.weight_bytes.cpu if placement.embedding == "cpu" else 0
    factor = (run.cpu_weight_bytes - embedding) / stored
    if not LEAST_SCALE <= factor <= MOST_SCALE:
        value = f"{run.cpu_weight_bytes} for {len(on_cpu)} layers"
        raise ProfileError(f"cpu_weight_bytes: {value}, but {run.quant} has about {stored}; mend it")
    layers = list(profile.layers)
    for i in on_cpu:
        layers[i] = scaled(layers[i], factor)
    return profile.replace(layers=tuple(layers))


def _attention_of(placement: Placement) -> set[str]:
    return {layer.attention for layer in placement.layers}


def _with_hits(run: Run, profile: ModelProfile, placement: Placement) -> ModelProfile:
    """Frequencies with which the GPU's part of each split layer is hit as often as the source reports."""
    if run.hot_hit_rate is None:
        return profile
    layers = [
        _hit(layer, [len(ids) for device, ids in placed.experts.items() if device != "cpu"], run.hot_hit_rate)
        if placed.experts_device is None and layer.experts is not None
        else layer
        for layer, placed in zip(profile.layers, placement.layers, strict=True)
    ]
    return profile.replace(layers=tuple(layers))


def _hit(layer: Layer, on_gpu: list[int], rate: float) -> Layer:
    """The first experts are the GPU's (`placement_of`)."""
    experts = layer.experts
    assert experts is not None
    hot, cold = sum(on_gpu), experts.count - sum(on_gpu)
    hits = [rate * experts.active / hot] * hot + [(1 - rate) * experts.active / cold] * cold
    if max(hits) > 1:
        chosen = f"{rate} of a token's {experts.active} experts cannot be among {hot} of {experts.count}"
        raise ProfileError(f"hot_hit_rate: {chosen}; mend it")
    return layer.replace(experts=experts.replace(frequencies=tuple(hits)))
