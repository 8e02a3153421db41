"""Where a plan is cut between ranks, and that a model's stages in a row are the model. In one process, on the CPU."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest

from profiles.errors import ApplyError
from profiles.placement import Placement
from runtime_adapter.distributed import stages_of
from runtime_adapter.distributed.stages import local_devices, stage_plan

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from distributed_orders import LAYERS, plan_on, prompts  # noqa: E402
from tiny_models import FAMILIES, tiny_model  # noqa: E402

from runtime_adapter.distributed.cut import StageModel, cut  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # such small tensors gain nothing from more, and tests may run beside each other
    yield
    torch.set_num_threads(before)


# --- where a plan is cut, without torch


def written(*attention: str, embedding: str = "cuda:0", head: str = "cuda:0", **experts: dict[str, Any]) -> Placement:
    layers = [
        {"attention": device, "experts": experts.get(f"experts_{i}", {device: "all"})}
        for i, device in enumerate(attention)
    ]
    return Placement(embedding=embedding, head=head, layers=layers)


def test_stages_are_the_runs_of_blocks_on_one_rank() -> None:
    rng = random.Random(0)
    for _ in range(200):
        size = rng.randint(1, 4)
        owners = [rng.randrange(size) for _ in range(rng.randint(3, 9))]
        size = len(set(owners))
        owners = [sorted(set(owners)).index(owner) for owner in owners]
        plan = written(*(f"cuda:{o}" for o in owners[1:-1]), embedding=f"cuda:{owners[0]}", head=f"cuda:{owners[-1]}")
        stages = stages_of(plan, [[f"cuda:{i}"] for i in range(size)])
        blocks = []
        for index, stage in enumerate(stages):
            assert stage.index == index
            blocks += [("embedding", stage.rank)] * stage.embedding
            blocks += [(i, stage.rank) for i in stage.layers]
            blocks += [("head", stage.rank)] * stage.head
        assert blocks == list(zip(["embedding", *range(len(plan.layers)), "head"], owners, strict=True))
        assert all(a.rank != b.rank for a, b in pairwise(stages))


@pytest.mark.parametrize(
    ("hosts", "ranks"),
    [
        ([["cuda:0"], ["cuda:1"]], [0, 0, 0, 1, 1, 1]),  # every rank has a CPU: its blocks stay with their neighbours
        ([["cuda:0", "cpu"], ["cuda:1", "cpu"]], [0, 0, 0, 1, 1, 1]),
        ([["cuda:0"], ["cuda:1", "cpu"]], [1, 0, 1, 1, 1, 1]),  # one has: its blocks go there
        ([["cuda:0"], ["cuda:1"], ["cpu"]], [2, 0, 2, 1, 2, 2]),
    ],
)
def test_blocks_on_the_cpu(hosts: list[list[str]], ranks: list[int]) -> None:
    plan = written("cuda:0", "cpu", "cuda:1", "cpu", embedding="cpu", head="cpu")
    found = [
        stage.rank for stage in stages_of(plan, hosts) for _ in range(stage.embedding + len(stage.layers) + stage.head)
    ]
    assert found == ranks


def test_experts_on_the_cpu_are_on_that_of_their_layers_rank() -> None:
    plan = written("cuda:0", "cuda:1", head="cuda:1", experts_0={"cpu": "all"}, experts_1={"cpu": [0], "cuda:1": [1]})
    first, second = stages_of(plan, [["cuda:0"], ["cuda:1"]])
    assert (first.rank, second.rank) == (0, 1)
    part = stage_plan(plan, second)
    assert (part.embedding, part.head) == ("cuda:1", "cuda:1")
    assert part.layers[0] == plan.layers[1].replace(experts={})
    assert part.layers[1] == plan.layers[1]


TWO = written("cuda:0", "cuda:1")


@pytest.mark.parametrize(
    ("plan", "hosts", "message"),
    [
        (TWO, [["cuda:0"]], "hosts: cuda:1, which the plan uses, is on no rank"),
        (TWO, [["cuda:0"], ["cuda:1", "cuda:0"]], r"hosts\[1\]: cuda:0 is on rank 0, too"),
        (TWO, [["cuda:0"], ["cuda:1"], ["cuda:2"]], r"hosts\[2\]: has no attention, embedding or head"),
        (TWO, [["cuda:0"], ["gpu1"]], r"hosts\[1\]: 'gpu1' is not a device of a plan"),
        (TWO, ["cuda:0", "cuda:1"], r"hosts\[0\]: 'cuda:0' is not a list"),
        (
            written("cuda:0", "cuda:0", experts_1={"cuda:1": "all"}),
            [["cuda:0"], ["cuda:1"]],
            r"hosts\[1\]: has no attention",
        ),
        (
            written("cuda:0", "cuda:1", experts_0={"cuda:0": [0], "cuda:1": [1]}),
            [["cuda:0"], ["cuda:1"]],
            r"layers\[0\].experts: on cuda:1 of rank 1, its attention on cuda:0 of rank 0",
        ),
        (
            written("cuda:0", "cuda:1", experts_0={"cpu": "all"}),
            [["cuda:0"], ["cuda:1", "cpu"]],
            r"layers\[0\].experts: on the CPU of rank 0, but hosts\[0\] lacks 'cpu'",
        ),
        (
            written("cuda:0", "cpu", "cuda:1", "cuda:2"),
            [["cuda:0"], ["cuda:1", "cpu"], ["cuda:2", "cpu"]],
            r"layers\[1\].attention: on the CPU next to rank 0, but hosts\[0\] has no 'cpu'",
        ),
    ],
)
def test_plans_that_do_not_fit_their_hosts_are_refused(plan: Placement, hosts: Any, message: str) -> None:
    with pytest.raises(ApplyError, match=message) as caught:
        stages_of(plan, hosts)
    assert "\n" not in str(caught.value)


def test_gpus_are_counted_on_each_host() -> None:
    hosts = [["cuda:1"], ["cuda:0", "cpu"], ["cuda:5", "cuda:4"]]
    two_and_one = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert local_devices(hosts, 1, two_and_one) == {"cuda:0": "cuda:0"}
    assert local_devices(hosts, 0, {**two_and_one, "LOCAL_RANK": "0"}) == {"cuda:1": "cuda:1"}
    alone = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    assert local_devices(hosts, 2, alone) == {"cuda:5": "cuda:1", "cuda:4": "cuda:0"}
    for one_host in ({}, {"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "3"}):
        assert local_devices(hosts, 2, one_host) == {"cuda:5": "cuda:5", "cuda:4": "cuda:4"}


# --- a model in stages, in one process


def stage_models(model: Any, owners: Sequence[int]) -> list[StageModel]:
    plan = Placement(**plan_on(model, owners))
    parts = []
    for stage in stages_of(plan, [[f"cuda:{i}"] for i in range(max(owners) + 1)]):
        part = copy.deepcopy(model)
        cut(part, stage)
        parts.append(StageModel(part, stage, CPU))
    return parts


@pytest.mark.parametrize("owners", [[0, 0, 0, 1, 1, 0, 2, 2], [0, 1, 0, 1, 2, 2, 1, 0], [1, 1, 1, 1, 1, 1, 1, 0]])
@pytest.mark.parametrize("family", FAMILIES)
def test_stages_in_a_row_are_the_model(family: str, owners: list[int]) -> None:
    """Bitwise: each layer does the same on the same numbers, whatever stage it is in."""
    model = tiny_model(family, num_hidden_layers=LAYERS)
    ids, mask = prompts()
    parts = stage_models(model, owners)
    sizes = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert sum(sizes) == sum(p.numel() for p in model.parameters())
    cache = transformers.DynamicCache(config=model.config)
    for part in parts:
        part.start()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for _ in range(8):
        with torch.no_grad():
            places = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache}
            logits = model(ids, **places, logits_to_keep=1).logits[:, -1]
            hidden = ids
            for part in parts:
                assert part.shapes(*ids.shape)[0].shape == hidden.shape
                hidden = part(hidden, mask, positions)
                made = part.shapes(*ids.shape)[1]
                assert (made.shape, made.dtype) == (hidden.shape, hidden.dtype)
        assert torch.equal(hidden, logits)
        ids, positions = logits.argmax(-1)[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=-1)
    held = sum(len(part.cache.layers) for part in parts)
    assert held == LAYERS
    assert all(
        layer.keys.shape == other.keys.shape
        for layer, other in zip([layer for part in parts for layer in part.cache.layers], cache.layers, strict=True)
    )


def test_a_tied_embedding_is_in_the_first_and_the_last_stage() -> None:
    model = tiny_model("qwen3_moe", tie_word_embeddings=True, num_hidden_layers=LAYERS)
    first, _, last = stage_models(model, [0, 0, 0, 1, 1, 0, 0, 0])
    assert first.model.get_output_embeddings() is not last.model.get_output_embeddings()
    assert last.model.lm_head.weight is last.model.model.embed_tokens.weight
    assert torch.equal(last.model.lm_head.weight, first.model.model.embed_tokens.weight)


def test_architectures_that_cannot_be_cut_are_refused() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = transformers.GraniteMoeConfig(**sizes, num_key_value_heads=4, vocab_size=96, embedding_multiplier=2.0)
    scaled = transformers.GraniteMoeForCausalLM(config).eval()
    with pytest.raises(ApplyError, match="GraniteMoeModel: changes hidden states outside its layers"):
        stage_models(scaled, [0, 0, 1, 1, 1])
    odd = tiny_model("mixtral")
    kind = type(odd.model.layers[1])
    odd.model.layers[1].__class__ = type("Odd", (kind,), {"forward": lambda self, hidden_states, input_ids: None})
    with pytest.raises(ApplyError, match="Odd: takes input_ids, which stages do not send"):
        stage_models(odd, [0, 0, 1, 1, 1])
    assert len(stage_models(odd, [0, 0, 0, 0, 0])) == 1  # nothing is cut
    shared = tiny_model("mixtral")
    shared.model.layers[2].self_attn.layer_idx = 1
    with pytest.raises(ApplyError, match="MixtralDecoderLayer: has more than one KV cache"):
        stage_models(shared, [0, 0, 1, 1, 1])
