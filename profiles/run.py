"""One measured run: what ran where, and how fast. What a source does not say is None."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from profiles.document import Document, Noun, SchemaOne
from profiles.errors import HardwareError, MoeplanError
from profiles.units import ByteCount, BytesPerSecond, Share

Engine = Literal["llama.cpp", "ik_llama.cpp", "ktransformers", "sglang-kt", "torch", "other"]
"""Programs that were measured. `ktransformers` is the old engine (V0.2, V0.3), `sglang-kt` is SGLang with kt-kernel;
`other` are changed versions of these and systems of papers."""

Text = Annotated[str, Field(min_length=1, max_length=4000)]
Tokens = Annotated[int, Field(ge=0, le=10**8, strict=True)]
Few = Annotated[int, Field(ge=1, le=10**6, strict=True)]
Layers = Annotated[int, Field(ge=0, le=10_000, strict=True)]
Speed = Annotated[Share, Field(gt=0, le=1e9)]
Part = Annotated[Share, Field(ge=0, le=1)]

SPEEDS = ("decode_tokens_per_s", "prefill_tokens_per_s", "total_tokens_per_s")


class RunGpu(Noun):
    """`count` equal GPUs as the source calls them; `pcie` is how they are connected, in its words ("4.0 x16")."""

    error: ClassVar[type[MoeplanError]] = HardwareError

    model: Text
    count: Annotated[int, Field(ge=1, le=64, strict=True)] = 1
    memory_bytes: ByteCount | None = None
    pcie: Text | None = None


class Run(Noun):
    """One measured run. Runs of one `machine` ran on one machine; those of one `sweep` differ in one thing only.

    *The model.* `model` and `quant` as the source spells them, `file_bytes` of all its tensors, `moe_layers` with
    experts, `top_k` where it is not the model's own.

    *The machine.* `gpus` is empty where there are none and None where nobody says. `sockets` and `cores` are the whole
    machine's, as is `ram_peak_bytes_per_s`, the theoretical figure; `sockets_used` are those that the run kept to.
    `threads` decode, `prefill_threads` read the prompt.

    *The placement.* Any one of these says where the experts were: `cpu_layers`, how many MoE layers had theirs on the
    CPU, and whether these were the first or the last (`cpu_layers_at`); `n_cpu_moe`, llama.cpp's flag, which counts
    dense layers as well and means the first; `tensor_overrides`, its -ot, as "pattern=device"; `gpu_expert_share`, the
    share of every layer's experts on GPUs, chosen by `expert_strategy` and hit by `hot_hit_rate` of the tokens'
    choices. `gpu_layers` is llama.cpp's -ngl. Bytes by device are the loader's own figures.

    *The workload.* `context_depth` tokens were in the cache when decoding began, and as many when the prompt of
    `prompt_tokens` was begun unless `prefill_depth` says otherwise. Without a `context_depth` the run was a request:
    the prompt from nothing, then `generated_tokens`. `ubatch` is how many tokens of the prompt went in one step.

    *The speed.* Decode counts the tokens of all `batch_size` sequences; `total_tokens_per_s` is what a server or a test
    of prompt and answer together reports. `grade` says how much is known of the run (A is all), `regime` whether it ran
    as meant ("normal") or not ("vram_overflow").

    >>> run = Run(id="r1", model="Qwen3-30B-A3B", ram_peak_bytes_per_s="89.6 GB/s", decode_tokens_per_s=21)
    >>> run.ram_peak_bytes_per_s, run.gpus
    (89600000000.0, None)
    """

    id: Text
    machine: Text | None = None
    sweep: Text | None = None
    model: Text | None = None
    quant: Text | None = None
    file_bytes: Annotated[ByteCount, Field(gt=0)] | None = None
    engine: Engine | None = None

    gpus: Annotated[tuple[RunGpu, ...], Field(max_length=64)] | None = None
    cpu: Text | None = None
    sockets: Annotated[int, Field(ge=1, le=16, strict=True)] | None = None
    sockets_used: Annotated[int, Field(ge=1, le=16, strict=True)] | None = None
    cores: Few | None = None
    threads: Few | None = None
    prefill_threads: Few | None = None
    numa: Text | None = None
    ram_type: Text | None = None
    ram_bytes: Annotated[ByteCount, Field(gt=0)] | None = None
    ram_peak_bytes_per_s: BytesPerSecond | None = None
    ram_measured_bytes_per_s: BytesPerSecond | None = None

    moe_layers: Layers | None = None
    cpu_layers: Layers | None = None
    cpu_layers_at: Literal["first", "last", "unknown"] = "unknown"
    n_cpu_moe: Layers | None = None
    gpu_layers: Annotated[int, Field(ge=-1, le=100_000, strict=True)] | None = None
    tensor_overrides: Annotated[tuple[Text, ...], Field(max_length=1000)] = ()
    attention: Literal["gpu", "cpu"] | None = None
    gpu_expert_share: Part | None = None
    expert_strategy: Text | None = None
    hot_hit_rate: Part | None = None
    cpu_weight_bytes: Annotated[ByteCount, Field(gt=0)] | None = None
    gpu_weight_bytes: Annotated[ByteCount, Field(gt=0)] | None = None

    batch_size: Few | None = None
    prompt_tokens: Tokens | None = None
    generated_tokens: Tokens | None = None
    context_depth: Tokens | None = None
    prefill_depth: Tokens | None = None
    ubatch: Few | None = None
    top_k: Annotated[int, Field(ge=1, le=10_000, strict=True)] | None = None

    decode_tokens_per_s: Speed | None = None
    prefill_tokens_per_s: Speed | None = None
    total_tokens_per_s: Speed | None = None
    regime: Text = "normal"
    grade: Literal["A", "B", "C"] | None = None
    placement_text: Text | None = None
    source: Text | None = None
    notes: Text | None = None

    @model_validator(mode="after")
    def _says_a_speed(self) -> Self:
        if all(getattr(self, name) is None for name in SPEEDS):
            raise ValueError(f"a run without a speed; give one of {', '.join(SPEEDS)}")
        return self

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        if self.moe_layers is not None and (self.cpu_layers or 0) > self.moe_layers:
            raise ValueError(f"cpu_layers {self.cpu_layers} is more than moe_layers {self.moe_layers}; lower it")
        if self.sockets is not None and (self.sockets_used or 0) > self.sockets:
            raise ValueError(f"sockets_used {self.sockets_used} is more than sockets {self.sockets}; lower it")
        return self


class Runs(Document):
    """A file of runs in our own words: `runs`, a list of `Run`s. Units are allowed as everywhere.

    >>> runs = Runs(runs=[Run(id="r1", file_bytes="17.5 GiB", decode_tokens_per_s=21)])
    >>> Runs.from_dict(runs.to_dict()).runs[0].file_bytes
    18790481920
    """

    schema_: Annotated[SchemaOne, Field(alias="schema")] = 1
    runs: Annotated[tuple[Run, ...], Field(min_length=1, max_length=100_000)]
