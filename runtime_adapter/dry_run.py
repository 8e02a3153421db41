"""A plan tried out without a machine: the real forward of a full-size model on fake tensors, with bytes counted.

Importing this file does not import torch; calling `dry_run` does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from profiles.errors import ApplyError
from profiles.placement import Placement
from runtime_adapter.fakes.live_bytes import DryRun


def dry_run(
    plan: Placement,
    model: Any,
    prompt_tokens: int = 512,
    new_tokens: int = 1,
    *,
    batch_size: int = 1,
    prefill_chunk: int | None = None,
    caps: Mapping[str, int] | None = None,
) -> DryRun:
    """Apply `plan` to a model without weights and run its own forward: the prompt in chunks, then `new_tokens` steps.

    `model` is a parsed config.json, a transformers config, or a causal LM, of which only class and config are used:
    the run is in bf16 whatever they say of types and quantisation, with transformers' growing cache, fused attention
    where the model uses torch's, and logits of the last token. `prefill_chunk` None reads the prompt at once. `caps`
    are bytes by device, which may not be exceeded.

    Not modelled: workspaces inside kernels, the allocator's rounding and fragmentation, CUDA contexts, and that
    `generate()` may decode with another experts kernel than this forward.

    Raises ApplyError where the plan does not fit the model, the forward meets tensors on different devices or a cap is
    exceeded, and ProfileError where transformers cannot build the config.
    """
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        raise ApplyError("dry_run: needs torch and transformers; install moeplan[torch]")
    chunk = prompt_tokens if prefill_chunk is None else prefill_chunk
    numbers = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "batch_size": batch_size}
    for name, value in {**numbers, "prefill_chunk": chunk}.items():
        least = 0 if name == "new_tokens" else 1
        if type(value) is not int or value < least:
            raise ApplyError(f"{name}: {value!r} is not a whole number of at least {least}; mend it")
    return _run(plan, model, _steps(prompt_tokens, new_tokens, chunk), batch_size, caps or {})


def _steps(prompt: int, new: int, chunk: int) -> list[tuple[str, int]]:
    """(name, tokens) of each phase."""
    chunks = [min(chunk, prompt - start) for start in range(0, prompt, chunk)]
    return [(f"prefill {i + 1}", n) for i, n in enumerate(chunks)] + [(f"decode {i + 1}", 1) for i in range(new)]


def _run(
    plan: Placement, source: Any, steps: list[tuple[str, int]], batch_size: int, caps: Mapping[str, int]
) -> DryRun:
    from runtime_adapter.apply import apply
    from runtime_adapter.fakes.devices import fake_machine, fake_names
    from runtime_adapter.fakes.model import fake_model
    from runtime_adapter.fakes.run import Count, phases
    from runtime_adapter.meta.profile import offline_and_quiet

    names = {fake: name for name, fake in fake_names(plan.devices).items()}
    with offline_and_quiet(), fake_machine() as ledger:
        model = fake_model(source)
        apply(plan, model, devices={name: fake for fake, name in names.items()})  # never undone: it ends here
        return DryRun(tuple(phases(model, steps, batch_size, Count(model, ledger, names, caps))))
