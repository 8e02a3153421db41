"""Claim: `load` holds at most 1.3 times the plan's CPU share plus one shard in host memory.

A checkpoint with a tensor for each expert, as published, is written shard by shard and then loaded in a process of its
own. What is measured is the growth of that process's peak resident set (VmHWM of /proc, which counts the mapped pages
of files, too) from just before the call, a tiny model having been loaded in the same way. The GPU is a virtual one
whose bytes are real copies that are given back to the system at once, so that host memory holds only what it would with
a GPU. Values are compared with the files afterwards, on the CPU.

The peer is transformers' from_pretrained with everything on the CPU, beside `load` with the same plan.

Run: python benchmarks/load.py [--gb 10] [--shards 5] [--folder DIR] [--keep] [--json]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
MOST_RATIO = 1.3
CONFIG: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "dtype": "bfloat16",
    "vocab_size": 8192,
    "hidden_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "intermediate_size": 2048,
    "moe_intermediate_size": 512,
    "num_experts": 64,
    "num_experts_per_tok": 8,
}
LAYER_BYTES = 2 * 3 * CONFIG["num_experts"] * CONFIG["hidden_size"] * CONFIG["moe_intermediate_size"]
TINY = {**CONFIG, "num_hidden_layers": 2, "vocab_size": 64, "hidden_size": 64, "num_experts": 8}
CASES = ("half", "some", "split", "all", "transformers")
"""Layers whose experts are on the CPU: every second one; one in eight; half the experts of each; all of everything, by
`load` and by the peer."""


@dataclass(frozen=True)
class Row:
    """One process: what it held at its peak beyond what it had before, and what the claim allows."""

    case: str
    checkpoint_bytes: int
    shard_bytes: int
    cpu_bytes: int
    peak_bytes: int
    before_bytes: int
    seconds: float
    equal: bool

    @property
    def allowed_bytes(self) -> int:
        return int(MOST_RATIO * self.cpu_bytes) + self.shard_bytes

    @property
    def within(self) -> bool:
        return self.equal and self.peak_bytes <= self.allowed_bytes


def write_checkpoint(folder: Path, settings: dict[str, Any], shards: int) -> None:
    """A checkpoint of this config in `shards` files, never more than one of them in memory."""
    (folder / "config.json").write_text(json.dumps(settings))
    shapes = dict(tensors(settings))
    total, index = sum(2 * torch.Size(shape).numel() for shape in shapes.values()), {}
    noise = torch.randn(2**24, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    shard: dict[str, torch.Tensor] = {}
    number = written = held = 0
    for i, (name, shape) in enumerate(shapes.items()):
        size = torch.Size(shape).numel()
        start = i * 7919 % (2**24 - size)  # no two tensors are alike
        shard[name] = noise[start : start + size].clone().view(shape)
        held += 2 * size
        if held + written >= total * (number + 1) // shards:
            number, written, held = number + 1, written + held, 0
            file = f"model-{number:05}-of-{shards:05}.safetensors"
            save_file(shard, folder / file)
            index |= dict.fromkeys(shard, file)
            shard = {}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def tensors(settings: dict[str, Any]) -> Any:
    """(name, shape) of each tensor, written down from published checkpoints of this family."""
    h, width, head = settings["hidden_size"], settings["moe_intermediate_size"], settings["head_dim"]
    q, kv = settings["num_attention_heads"] * head, settings["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", (settings["vocab_size"], h)
    for layer in range(settings["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        yield from ((f"{at}.self_attn.{name}.weight", (head,)) for name in ("q_norm", "k_norm"))
        projections = {"q_proj": (q, h), "k_proj": (kv, h), "v_proj": (kv, h), "o_proj": (h, q)}
        yield from ((f"{at}.self_attn.{name}.weight", shape) for name, shape in projections.items())
        yield from ((f"{at}.{name}.weight", (h,)) for name in ("input_layernorm", "post_attention_layernorm"))
        yield f"{at}.mlp.gate.weight", (settings["num_experts"], h)
        for expert in range(settings["num_experts"]):
            for name, shape in {"gate_proj": (width, h), "up_proj": (width, h), "down_proj": (h, width)}.items():
                yield f"{at}.mlp.experts.{expert}.{name}.weight", shape
    yield "model.norm.weight", (h,)
    yield "lm_head.weight", (settings["vocab_size"], h)


def plan_of(case: str, settings: dict[str, Any]) -> dict[str, Any]:
    count, home = settings["num_experts"], "cpu" if case in ("all", "transformers") else "cuda:0"
    layers: list[dict[str, Any]] = []
    for i in range(settings["num_hidden_layers"]):
        experts: dict[str, Any] = {home: "all"}
        if case == "split":
            experts = {"cuda:0": list(range(0, count, 2)), "cpu": list(range(1, count, 2))}
        elif i % {"half": 2, "some": 8}.get(case, 1) == 0:
            experts = {"cpu": "all"}
        layers.append({"attention": home, "experts": experts})
    return {"schema": 1, "embedding": home, "head": home, "layers": layers}


def measure(case: str, folder: Path) -> Row:
    """Load in this process, which does nothing else."""
    import transformers

    from runtime_adapter.load import load

    settings = json.loads((folder / "config.json").read_text())
    files, devices = sorted(folder.glob("*.safetensors")), {"cuda:0": sinking_device()}

    def loaded(settings: dict[str, Any], path: Path) -> Any:
        if case == "transformers":
            return transformers.AutoModelForCausalLM.from_pretrained(path, device_map={"": "cpu"})
        return load(plan_of(case, settings), path, devices=devices, progress=False)

    with tempfile.TemporaryDirectory() as tiny:  # what is imported on the way is not what is measured
        write_checkpoint(Path(tiny), TINY, shards=2)
        loaded(TINY, Path(tiny))
    before, started = status("VmRSS"), time.perf_counter()
    model = loaded(settings, folder)
    seconds, peak = time.perf_counter() - started, status("VmHWM") - before
    sizes = [file.stat().st_size for file in files]
    held = sum(p.numel() * p.element_size() for p in model.parameters() if p.device.type == "cpu")
    return Row(case, sum(sizes), max(sizes), held, peak, before, seconds, equal(model, files))


def sinking_device() -> str:
    """A virtual GPU whose bytes go back to the system as soon as they have been copied to it."""
    from runtime_adapter import virtual_gpus

    madvise, dont_need, page = ctypes.CDLL(None).madvise, 4, 4096
    copy = virtual_gpus._copy

    def sinking(func: Any, args: Any, kwargs: Any) -> Any:
        out = copy(func, args, kwargs)
        if isinstance(out, virtual_gpus.VTensor):
            begin = -(-out.elem.data_ptr() // page) * page
            end = (out.elem.data_ptr() + out.elem.numel() * out.elem.element_size()) // page * page
            if end > begin:
                madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), dont_need)
        return out

    virtual_gpus._copy = sinking
    return "vgpu:0"


def status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def equal(model: Any, files: list[Path]) -> bool:
    """Whether three experts of each layer, where they are on the CPU, have the values of the files."""
    where = {name: file for file in files for name in safe_open(file, "pt").keys()}  # noqa: SIM118 -- not a dict

    def stored(name: str) -> torch.Tensor:
        with safe_open(where[name], "pt") as file:
            values: torch.Tensor = file.get_tensor(name)
            return values

    looked_at, same = 0, True
    for i, layer in enumerate(model.model.layers):
        whole = layer.mlp.experts._modules.get("cpu", layer.mlp.experts)
        if whole.down_proj.device.type != "cpu":
            continue
        step = CONFIG["num_experts"] // whole.num_experts
        for row in (0, 7, whole.num_experts - 1):
            at = f"model.layers.{i}.mlp.experts.{row * step + step - 1}"
            gate_up = torch.cat([stored(f"{at}.gate_proj.weight"), stored(f"{at}.up_proj.weight")])
            same &= torch.equal(whole.gate_up_proj[row], gate_up)
            same &= torch.equal(whole.down_proj[row], stored(f"{at}.down_proj.weight"))
            looked_at += 1
    return same and looked_at > 0


def measured(case: str, folder: Path) -> Row:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--case", case, "--folder", str(folder)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=one_thread, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return Row(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=10, help="size of the checkpoint")
    parser.add_argument("--shards", type=int, default=5, help="files it is written in")
    parser.add_argument("--cases", default=",".join(CASES), help="some of them, separated by commas")
    parser.add_argument("--folder", type=Path, help="where to write it and leave it; one that is there is used")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON and nothing else")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(asdict(measure(options.case, options.folder))))
        return
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        folder.mkdir(exist_ok=True)
        if not (folder / "config.json").exists():
            layers = max(2, round(options.gb * 1e9 / LAYER_BYTES))
            write_checkpoint(folder, {**CONFIG, "num_hidden_layers": layers}, options.shards)
        rows = [measured(case, folder) for case in options.cases.split(",")]
    if options.json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        Console(width=130).print(table(rows))
    if not all(row.within for row in rows if row.case != "transformers"):
        raise SystemExit(1)


def table(rows: list[Row]) -> Table:
    """One row a case, in GB of 10^9."""
    made = Table("case", "checkpoint", "shard", "CPU share", "peak", "allowed", "peak / CPU share", "values", "GB/s")
    for row in rows:
        sizes = (row.checkpoint_bytes, row.shard_bytes, row.cpu_bytes, row.peak_bytes, row.allowed_bytes)
        ratio = f"{row.peak_bytes / row.cpu_bytes:.2f}"
        speed = f"{row.checkpoint_bytes / row.seconds / 1e9:.2f}"
        made.add_row(row.case, *(f"{n / 1e9:.2f}" for n in sizes), ratio, "equal" if row.equal else "DIFFERENT", speed)
    return made


if __name__ == "__main__":
    main()
