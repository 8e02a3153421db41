"""Another engine for the experts on the CPU: used there and only there, near to the model's own, gone after undo."""

from __future__ import annotations

from typing import Any

import pytest

from profiles.errors import ApplyError
from profiles.placement import Placement
from runtime_adapter.apply import apply

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import vgpu  # noqa: E402, F401 -- these need torch
from tiny_models import EXPERTS, VOCABULARY, tiny_model  # noqa: E402

from runtime_adapter.anatomy import anatomy_of  # noqa: E402
from runtime_adapter.cpu_experts import ENGINES, missing  # noqa: E402

VIRTUAL = {f"cuda:{i}": f"vgpu:{i}" for i in range(2)}
HERE = [name for name in ENGINES if missing(name) is None]
ROUNDING = {"int8": 0.05, "int4": 0.5}
"""Relative distance of logits that engines of few bits may have; the others are near to exact."""


def plan_for(model: Any) -> Placement:
    """Layer 0 split between a GPU and the CPU, layer 1 on the CPU, layer 2 on the GPU."""
    split = {"cuda:1": [0, 2, 4, 6], "cpu": [1, 3, 5, 7]}
    layers = [{"attention": "cuda:0", "experts": e} for e in (split, {"cpu": "all"}, {"cuda:1": "all"})]
    return Placement(embedding="cuda:0", head="cuda:0", layers=layers)


@pytest.mark.parametrize("engine", HERE)
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe"])
def test_the_engine_computes_what_is_on_the_cpu(family: str, engine: str) -> None:
    model = tiny_model(family, hidden_size=256, intermediate_size=256, moe_intermediate_size=256).to(torch.bfloat16)
    ids = torch.randint(1, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(0))
    values = [(id(p), p.detach().clone()) for p in model.parameters()]
    attributes = [list(vars(module)) for module in model.modules()]
    with torch.no_grad():
        reference = model(ids).logits.float()
        try:
            applied = apply(plan_for(model), model, engine=engine, devices=VIRTUAL)
        except ApplyError as problem:
            pytest.skip(f"{engine} does not take so small experts: {problem}")
        used = [vars(module).get("forward") for module in model.modules()]
        assert sum(getattr(forward, "name", None) == engine for forward in used) == (0 if engine == "torch" else 2)
        logits = model(ids).logits.float()
        applied.undo()
    off = next((most for kind, most in ROUNDING.items() if engine.endswith(kind)), 0.02)
    assert float((logits - reference).norm() / reference.norm()) < off
    assert [id(p) for p in model.parameters()] == [key for key, _ in values]
    assert all(torch.equal(p, old) for p, (_, old) in zip(model.parameters(), values, strict=True))
    assert [list(vars(module)) for module in model.modules()] == attributes


def test_an_unknown_engine_is_refused_before_anything_moves() -> None:
    model = tiny_model("mixtral")
    with pytest.raises(ApplyError, match='engine "magic" is unknown; choose one of torch'):
        apply(plan_for(model), model, engine="magic", devices=VIRTUAL)
    assert all(p.device.type == "cpu" and p.numel() for p in model.parameters())


def test_an_engine_that_cannot_compute_the_experts_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = tiny_model("mixtral"), []

    def maker(experts: Any) -> Any:
        made.append(experts)
        if len(made) == 2:
            raise ApplyError("MixtralExperts: not this one")
        return ENGINES["torch"](experts)

    monkeypatch.setattr("runtime_adapter.cpu_experts.engine_of", lambda name: maker)
    before = [(id(p), p.detach().clone()) for p in model.parameters()]
    with pytest.raises(ApplyError, match="not this one"):
        apply(plan_for(model), model, engine="other", devices=VIRTUAL)
    assert all(id(p) == key and torch.equal(p, old) for p, (key, old) in zip(model.parameters(), before, strict=True))
    assert not any("forward" in vars(module) for module in model.modules())
    assert all(experts is not None for experts in anatomy_of(model).experts)
    assert EXPERTS == 8
