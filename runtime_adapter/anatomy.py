"""Find the parts of a live transformers causal LM by its structure: embedding, layers, routed experts, norm, head."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from profiles.errors import ApplyError

NORMS = ("norm", "embedding_norm", "final_layernorm", "norm_f")
"""What base models call the norm before the head."""


@dataclass(frozen=True)
class Anatomy:
    """The parts of a causal LM that a plan places. `experts` has one entry a layer, None for a dense one."""

    model: nn.Module
    base: nn.Module
    embedding: nn.Module
    layers: tuple[nn.Module, ...]
    experts: tuple[nn.Module | None, ...]
    norm: nn.Module
    head: nn.Module


def anatomy_of(model: nn.Module) -> Anatomy:
    """The parts of `model`, which is not changed.

    Raises ApplyError when it is not a decoder-only transformers model with a head, or keeps its experts in a way that
    cannot be placed as one module.
    """
    if not isinstance(model, nn.Module):
        raise ApplyError(f"model: expected a torch.nn.Module, got {type(model).__name__}; load one with transformers")
    kind = type(model).__name__
    base, embedding, head = _called(model, "base_model"), _called(model, "get_input_embeddings"), None
    if base is model:  # what transformers answers where the base has another name than the class says (Llama 4)
        base = getattr(model, "model", None)
    if isinstance(base, nn.Module):
        head = _called(model, "get_output_embeddings")
    if not isinstance(base, nn.Module) or not isinstance(embedding, nn.Module) or not isinstance(head, nn.Module):
        raise ApplyError(f"{kind}: no causal LM with an embedding and a head; load it with AutoModelForCausalLM")
    layers, norm = getattr(base, "layers", None), next((getattr(base, n) for n in NORMS if hasattr(base, n)), None)
    if not isinstance(layers, nn.ModuleList) or not isinstance(norm, nn.Module):
        raise ApplyError(
            f"{kind}: {type(base).__name__} has no `layers` and final norm; this architecture is not supported"
        )
    experts = tuple(experts_of(layer, f"{kind} layer {i}") for i, layer in enumerate(layers))
    return Anatomy(model, base, embedding, tuple(layers), experts, norm, head)


def experts_of(layer: nn.Module, where: str = "layer") -> nn.Module | None:
    """The module that holds a layer's routed experts as fused tensors, None for a dense layer.

    It is known by two or more parameters of its own with three dimensions and a common first one: the experts.
    Raises ApplyError, naming `where`, for a list of separate expert modules (they have no common forward to place) or
    for more than one set of experts.
    """
    found: list[tuple[str, nn.Module]] = [(name, m) for name, m in layer.named_modules() if expert_count(m)]
    around = {name.rpartition(".")[0] for name, _ in found}
    if len(found) > 1 and len(around) == 1:  # the parts of a module that a plan has divided
        whole = layer.get_submodule(around.pop())
        if all(type(part) is type(whole) for _, part in found):
            return whole
    if len(found) > 1:
        names = ", ".join(name for name, _ in found)
        raise ApplyError(f"{where}: several sets of routed experts ({names}); this architecture is not supported")
    if found:
        return found[0][1]
    for name, module in layer.named_modules():
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] == "experts":
            raise ApplyError(f"{where}: {name} is a list of modules, not fused tensors; load it with transformers >= 5")
    return None


def expert_count(module: nn.Module) -> int:
    """How many fused experts `module` itself holds; 0 when it holds none."""
    fused = [p for p in module.parameters(recurse=False) if p.ndim == 3]
    counts = {p.shape[0] for p in fused}
    return counts.pop() if len(fused) > 1 and len(counts) == 1 else 0


def _called(model: nn.Module, name: str) -> object:
    """The attribute `name`, called if it is a method; None where the model has none or says it has none."""
    try:
        value = getattr(model, name, None)
        return value() if callable(value) and not isinstance(value, nn.Module) else value
    except NotImplementedError:  # what transformers raises for models without token embeddings
        return None
