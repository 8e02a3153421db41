"""What the parts of benchmarks/gpu.py share: where and how it is measured, and live models with random weights."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import transformers

from profiles import Hardware, load_hardware, load_profile
from profiles.model import ModelProfile

Table = Iterator[tuple[str, dict[str, Any]]]
"""Rows as they are measured: the title of the table that each belongs to, and its cells."""
MB, GB, CPU = 1e6, 1e9, torch.device("cpu")
QWEN: dict[str, Any] = {
    "hidden_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64,
    "vocab_size": 8192, "num_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": 512,
    "intermediate_size": 2048, "decoder_sparse_step": 1,
}  # fmt: skip
LITE: dict[str, Any] = {
    "hidden_size": 2048, "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16,
    "vocab_size": 102400, "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6,
    "moe_intermediate_size": 1408, "intermediate_size": 10944, "first_k_dense_replace": 1, "q_lora_rank": None,
    "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "head_dim": 64,
    "topk_method": "greedy", "n_group": 1, "topk_group": 1, "norm_topk_prob": False,
}  # fmt: skip
"""DeepSeek-V2-Lite."""
SHORT = LITE | {
    "num_hidden_layers": 3, "hidden_size": 1024, "vocab_size": 8192, "intermediate_size": 2048,
    "moe_intermediate_size": 512, "n_routed_experts": 32,
}  # fmt: skip
NARROW = {
    "hidden_size": 256, "moe_intermediate_size": 64, "intermediate_size": 256, "vocab_size": 512,
    "num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 64,
}  # fmt: skip
"""So little work that only fixed prices are left."""
STOP = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": 0, "max_position_embeddings": 4096}


@dataclass(frozen=True)
class Bench:
    """Where the plans' cuda:0 is: the real one, or the CPU in a dry run, whose figures mean nothing."""

    device: torch.device

    @property
    def real(self) -> bool:
        return self.device.type == "cuda"

    def machine(self) -> Hardware:
        return load_hardware("local" if self.real else "H100,ram=16GB")

    def listed(self) -> Hardware:
        """The same GPU as the catalogue has it."""
        return load_hardware(self.machine().gpus[0].model or "H100")

    def wait(self) -> None:
        if self.real:
            torch.cuda.synchronize()

    def held(self, what: str = "allocated", when: str = "current") -> int:
        """Bytes of live tensors on the GPU, now or at their `peak` since `restart`.

        "requested" is what was asked of torch, "allocated" the blocks it gave. Both count cuBLAS's workspace.
        """
        return int(torch.cuda.memory_stats()[f"{what}_bytes.all.{when}"]) if self.real else 0

    def restart(self) -> int:
        """Forget garbage and peaks; the bytes that are held."""
        gc.collect()
        if self.real:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        return self.held()

    def times(
        self, run: Callable[[], object], most_s: float = 0.3, least: int = 3, calls: int = 1, warm_up: int = 2
    ) -> list[float]:
        """Seconds of a call until the GPU is done, by the host's clock, several times.

        `calls` in a row are timed as one: what the host does for the next may then hide what the GPU does.
        """
        for _ in range(warm_up):
            run()
        found: list[float] = []
        deadline = time.monotonic() + most_s
        while len(found) < least or (len(found) < 50 and time.monotonic() < deadline):
            self.wait()
            begin = time.perf_counter()
            for _ in range(calls):
                run()
            self.wait()
            found.append((time.perf_counter() - begin) / calls)
        return found

    def seconds(self, run: Callable[[], object], **how: Any) -> float:
        """The median of `times`."""
        return median(self.times(run, **how))


def random_model(kind: str, shape: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    """A live model with random weights, made on `device`, and its profile."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**shape, **STOP)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        for weight in (p for p in model.parameters() if p.ndim > 1):  # routers start at zero, where all experts tie
            weight.data.normal_(std=weight.shape[-1] ** -0.5)
    described = {**config.to_dict(), "architectures": [f"{kind}ForCausalLM"], "dtype": name_of(dtype)}
    profile: ModelProfile = load_profile(described)
    return model, profile


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def prompt(model: Any, tokens: int = 512) -> torch.Tensor:
    return torch.randint(1, model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(1))


def generated(model: Any, ids: torch.Tensor, new: int) -> list[int]:
    """Greedy tokens."""
    given = ids.to(model.device)
    with torch.inference_mode():
        out = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=new, do_sample=False)
    found: list[int] = out[0, ids.shape[1] :].tolist()
    return found
