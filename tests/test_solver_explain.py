"""When nothing fits: what is short, by how few bytes, and changes that help and are the smallest of their kind."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from strategies import Instance, random_instance

from cost_models import CostModel
from profiles import (
    Device,
    Experts,
    Hardware,
    InfeasiblePlacement,
    Layer,
    LayerPlacement,
    ModelProfile,
    Placement,
    Workload,
    load_hardware,
    load_profile,
)
from solver import solve
from solver.evaluate import judge
from solver.feasibility import explain
from solver.feasibility.changes import _largest, _smallest
from solver.feasibility.explain import infeasible
from solver.feasibility.fits import Budget, Missing, fits, least_missing
from solver.feasibility.needs import Demand, demand_of
from solver.problem import Problem, build_problem
from solver.rules import Allowed, Pins, breaks
from solver.shared import Room

PLENTY = 1e6


@pytest.fixture
def thorough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solver.feasibility.fits.ONE_ANSWER", PLENTY)
    monkeypatch.setattr("solver.feasibility.fits.ONE_ATTEMPT", PLENTY)
    monkeypatch.setattr("solver.feasibility.fits.LONG_RUNS", 1)
    monkeypatch.setattr("solver.feasibility.explain.WORK", PLENTY)


# ---- everything tried out ----


class Trial:
    """One instance with all its placements."""

    def __init__(
        self, instance: Instance, granularity: str = "module", target: str = "torch", pins: Pins | None = None
    ) -> None:
        self.instance, self.granularity, self.target, self.pins = instance, granularity, target, pins
        self.costs = CostModel(instance.profile, instance.hardware, instance.workload, target=target)
        self.allowed = Allowed(self.costs, target, pins)

    @property
    def demand(self) -> Demand:
        whole_layers, split = self.granularity == "layer", self.granularity == "expert"
        return demand_of(self.costs, self.allowed, whole_layers=whole_layers, split=split)

    @property
    def problem(self) -> Problem:
        granularity: Any = self.granularity
        return build_problem(self.costs, objective="request", granularity=granularity, allowed=self.allowed)

    @property
    def usable(self) -> list[int]:
        return [max(0, self.costs.usable_bytes(d) - self.costs.overhead_bytes(d)) for d in self.costs.device]

    @property
    def room(self) -> Room:
        return Room.of(self.costs.hardware, self.costs.safety_margin)

    def placements(self) -> Iterator[Placement]:
        """All that the granularity, the target and the pins allow."""
        names = list(self.costs.device)
        options = [list(self._layer(layer, names)) for layer in self.instance.profile.layers]
        for embedding, head, *layers in product(names, names, *options):
            placement = Placement(embedding=embedding, head=head, layers=layers)
            if breaks(placement, self.allowed, names) is None:
                yield placement

    def _layer(self, layer: Layer, names: list[str]) -> Iterator[LayerPlacement]:
        for attention in names:
            if layer.experts is None:
                yield LayerPlacement(attention=attention, experts={})
                continue
            for experts in [{attention: "all"}] if self.granularity == "layer" else self._experts(layer.experts, names):
                yield LayerPlacement(attention=attention, experts=experts)

    def _experts(self, experts: Experts, names: list[str]) -> Iterator[dict[str, Any]]:
        if self.granularity == "module":
            yield from ({name: "all"} for name in names)
            return
        for homes in product(names, repeat=experts.count):
            if experts.expert_weight_bytes or list(homes) == sorted(homes):
                yield {name: [i for i, home in enumerate(homes) if home == name] for name in dict.fromkeys(homes)}

    def fits(self) -> bool | None:
        return fits(self.demand, self.room, Budget(PLENTY))

    def fewest_missing(self) -> int | None:
        """Of all placements the least sum of what devices lack; None where nothing is allowed at all."""
        return min((sum(judge(found, self.costs).short_bytes.values()) for found in self.placements()), default=None)


def tiny(seed: int, gpus: int = 2, **options: Any) -> Trial:
    return Trial(random_instance(random.Random(seed), layers=(2, 2), gpus=(1, gpus)), **options)


def check_against(trial: Trial) -> bool:
    """Whether it fits, and the fewest bytes missing, as found by trying everything; returns whether it fits."""
    least = trial.fewest_missing()
    assert least is not None
    answer = trial.fits()
    assert answer is (least == 0) or (answer is None and len(trial.demand.enough) > 1)
    if least:
        missing = least_missing(trial.demand, trial.room, Budget(PLENTY))
        assert missing is not None
        check_missing(missing, least, trial)
    return least == 0


def check_missing(missing: Missing, least: int, trial: Trial) -> None:
    assert missing.least <= least <= sum(missing.bytes)
    assert missing.proved or len(trial.demand.enough) > 1
    helped = with_budgets(trial, [room + more for room, more in zip(trial.usable, missing.bytes, strict=True)])
    assert helped.fewest_missing() == 0


@pytest.mark.usefixtures("thorough")
@pytest.mark.parametrize("granularity", ["module", "layer"])
def test_the_shortage_is_the_least_of_all_placements(granularity: str) -> None:
    answers = [check_against(tiny(seed, granularity=granularity)) for seed in range(100, 125)]
    assert 3 < sum(answers) < 22, "some fit, some do not"


@pytest.mark.usefixtures("thorough")
def test_experts_that_may_be_divided() -> None:
    answers = []
    for seed in range(200, 240):
        trial = tiny(seed, granularity="expert", gpus=1)
        if all(layer.experts is None or layer.experts.count <= 4 for layer in trial.instance.profile.layers):
            answers.append(check_against(trial))
    assert 0 < sum(answers) < len(answers)


@pytest.mark.usefixtures("thorough")
@pytest.mark.parametrize("target", ["ktransformers", "llama.cpp", "accelerate"])
def test_what_targets_forbid_and_keep_counts(target: str) -> None:
    granularity = "layer" if target == "accelerate" else "module"
    trials = [tiny(s, target=target, granularity=granularity) for s in range(300, 312)]
    assert len({check_against(trial) for trial in trials}) == 2


@pytest.mark.usefixtures("thorough")
@pytest.mark.parametrize(
    "pins", [{"cuda:0": "first", "head": "cpu"}, {"cpu": "last"}, {"layers.0": "cpu", "experts": ["cuda:0", "cpu"]}]
)
def test_pins_count(pins: Pins) -> None:
    trials = [tiny(seed, pins=pins) for seed in range(400, 408)]
    assert len({check_against(trial) for trial in trials}) == 2


# ---- every suggestion, at its word ----


def changed(trial: Trial, **changes: Any) -> Trial:
    return Trial(replace(trial.instance, **changes), trial.granularity, trial.target, trial.pins)


def with_devices(trial: Trial, replaced: Callable[[Device], Device]) -> Trial:
    hardware = trial.instance.hardware
    return changed(trial, hardware=hardware.replace(devices=tuple(map(replaced, hardware.devices))))


def with_margin(trial: Trial, margin: float) -> Trial:
    """The margin on every GPU that has none of its own."""
    general = {d.name for d in trial.instance.hardware.gpus if d.safety_margin is None}
    return with_devices(trial, lambda d: d.replace(safety_margin=margin) if d.name in general else d)


def with_memory(trial: Trial, kind: str, more: int) -> Trial:
    return with_devices(trial, lambda d: d.replace(memory_bytes=d.memory_bytes + more) if d.kind == kind else d)


def with_budgets(trial: Trial, usable: Sequence[int]) -> Trial:
    """Just so many bytes usable on each device."""
    room = dict(zip(trial.costs.device, usable, strict=True))
    return with_devices(trial, lambda d: d.replace(budget_bytes=room[d.name], memory_bytes=10**15, context_bytes=None))


def with_gpus(trial: Trial, name: str, number: int) -> Trial:
    """More of one GPU, each with a copy of its links."""
    hardware = trial.instance.hardware
    twin, links = hardware.device(name), [link for link in hardware.links if name in link.between]
    devices, more = list(hardware.devices), list(hardware.links)
    for n in range(number):
        new = f"cuda:{len(hardware.gpus) + n}"
        devices.append(twin.replace(name=new))
        more += [k.replace(between=tuple(new if end == name else end for end in k.between)) for k in links]
    return changed(trial, hardware=hardware.replace(devices=tuple(devices), links=tuple(more)))


def followed(suggestion: str, trial: Trial) -> tuple[Trial, list[Trial]]:
    """With the change made, and with the next smaller ones of its kind."""
    asked = trial.instance.workload
    if match := re.fullmatch(r"add (\d+) GPUs? like (\S+)(?: \(.+\))?", suggestion):
        number, name = int(match[1]), match[2]
        return with_gpus(trial, name, number), [with_gpus(trial, name, number - 1)]
    if match := re.fullmatch(r"add (\d+) GB (of RAM|to each GPU)", suggestion):
        number, kind = int(match[1]), "cpu" if match[2] == "of RAM" else "gpu"
        return with_memory(trial, kind, number * 10**9), [with_memory(trial, kind, (number - 1) * 10**9)]
    if match := re.fullmatch(r"lower safety_margin to (0\.\d+)", suggestion):
        margin = float(match[1])
        assert margin >= 0.02
        assert round(margin * 200, 9).is_integer()
        return with_margin(trial, margin), [with_margin(trial, round(margin + 0.005, 3))]
    if match := re.fullmatch(r"lower (context_tokens|batch_size|prefill_chunk) to (\d+)", suggestion):
        field, number = match[1], int(match[2])
        assert number < getattr(asked, field)
        more = [changed(trial, workload=asked.replace(**{field: n})) for n in (number, number + 1)]
        return more[0], more[1:]
    match = re.fullmatch("use quant (.+)", suggestion)
    assert match, suggestion
    profile = trial.instance.profile
    ladder = ("bf16", "fp8", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k")
    finer = [load_profile(profile.model, quant) for quant in ladder[: ladder.index(match[1])]]
    finer = [other for other in finer if other.weight_bytes < profile.weight_bytes]
    return changed(trial, profile=load_profile(profile.model, match[1])), [changed(trial, profile=p) for p in finer]


def explained(trial: Trial) -> InfeasiblePlacement:
    found = infeasible(trial.problem, trial.costs, trial.pins)
    assert found.proven
    assert "\n" not in str(found)
    assert all(suggestion in str(found) for suggestion in found.suggestions)
    assert all(n > 0 for n in found.short_bytes.values())
    return found


@pytest.mark.usefixtures("thorough")
@pytest.mark.parametrize("granularity", ["module", "layer"])
def test_small_models_fit_once_a_suggestion_is_followed_and_not_before(granularity: str) -> None:
    """Tried out, except where the change adds so many GPUs that there is too much to try."""
    kinds: set[str] = set()
    for seed in range(500, 560):
        trial = tiny(seed, granularity=granularity, gpus=1)
        if not trial.fewest_missing():
            continue
        for suggestion in explained(trial).suggestions:
            enough, too_little = followed(suggestion, trial)
            kinds.add(" ".join(re.findall("[A-Za-z_]+", suggestion)[:4]))
            few = len(enough.instance.hardware.devices) <= 4
            assert (enough.fewest_missing() == 0) if few else enough.fits(), suggestion
            for smaller in too_little:
                assert smaller.fewest_missing() if few else smaller.fits() is False, suggestion
    assert len(kinds) >= 5, kinds


NAMED = [
    ("deepseek-r1", "bf16", "8xL40-46GB,ram=1TB", {}),
    ("kimi-k2-instruct", "bf16", "8xH100,ram=1TB", {}),
    ("deepseek-v2-measured", None, "1xL40-46GB,ram=8GB", {}),
    ("deepseek-r1", "q5_k_m", "4xL40-46GB+2xA100-80GB,ram=64GB", {}),
    ("deepseek-v2", "bf16", "8xL40-46GB,ram=155GB", {"context_tokens": 131072, "batch_size": 4}),
    ("qwen3-30b-a3b", "bf16", "2xRTX4090-6GB,ram=60GB", {"prompt_tokens": 999, "prefill_chunk": 4096, "batch_size": 9}),
]


def named(model: str, quant: str | None, machine: str, asked: dict[str, int], **options: Any) -> Trial:
    return Trial(Instance(load_profile(model, quant), load_hardware(machine), Workload(**asked)), **options)


@pytest.mark.parametrize(("model", "quant", "machine", "asked"), NAMED)
def test_large_models_fit_once_a_suggestion_is_followed_and_not_before(
    model: str, quant: str | None, machine: str, asked: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = named(model, quant, machine, asked)
    budgets: list[Budget] = []
    monkeypatch.setattr(explain, "Budget", lambda work: budgets.append(Budget(work)) or budgets[0])
    found = explained(trial)
    assert 10 < budgets[0].asked <= 150
    for suggestion in found.suggestions:
        enough, too_little = followed(suggestion, trial)
        assert enough.fits(), suggestion
        assert not any(smaller.fits() for smaller in too_little), suggestion


@pytest.mark.parametrize(("machine", "context"), [("1xL40-46GB,ram=8GB", None), ("4xL40-46GB,ram=64GB", 16384)])
def test_solve_agrees_with_each_suggestion(machine: str, context: int | None) -> None:
    asked = {"context_tokens": context} if context else {}
    trial = named("deepseek-v2-measured", None, machine, asked)
    with pytest.raises(InfeasiblePlacement) as problem:
        solve(trial.instance.profile, trial.instance.hardware, trial.instance.workload)
    assert problem.value.suggestions == explained(trial).suggestions
    for suggestion in problem.value.suggestions:
        enough, _ = followed(suggestion, trial)
        solve(enough.instance.profile, enough.instance.hardware, enough.instance.workload, relative_gap=0.9)


# ---- what is said ----


def test_the_answer_names_bytes_and_changes() -> None:
    trial = named("deepseek-r1", "bf16", "8xL40-46GB,ram=1TB", {})
    found = explained(trial)
    assert str(found) == str(explained(trial)), "the same each time"
    assert sum(found.short_bytes.values()) == 64_413_120_000
    assert str(found).startswith("deepseek-r1 does not fit 8xL40-46GB,ram=1TB: short of 64.41 GB (64413120000 bytes)")
    assert "even the 640 tokens of prompt and answer do not fit" in str(found)
    said = ("add 8 GPUs like cuda:0 (L40)", "add 188 GB of RAM", "add 10 GB to each GPU", "use quant fp8")
    assert found.suggestions == said


def test_a_byte_is_told_as_a_byte() -> None:
    trial = named("deepseek-v2-measured", None, "1xL40-46GB,ram=64GB", {})
    missing = explained(trial).short_bytes
    enough = [room + missing.get(name, 0) for name, room in zip(trial.costs.device, trial.usable, strict=True)]
    found = explained(with_budgets(trial, [*enough[:-1], enough[-1] - 1]))
    assert found.short_bytes == {"cpu": 1}
    assert "short of 1 byte at best on cpu" in str(found)


def test_no_bytes_help_where_a_block_may_be_nowhere() -> None:
    pins: Pins = {"attention": "cuda:0", "experts": "cpu"}
    found = explained(named("qwen3-30b-a3b", None, "1xRTX4090,ram=96GB", {}, granularity="layer", pins=pins))
    assert (found.short_bytes, found.suggestions) == ({}, ())
    assert str(found).endswith("granularity, target and pins together leave some block no device; loosen one of them")


def test_pins_limit_the_suggestions() -> None:
    """Another card would not help experts that may only be on this one."""
    options: Any = {"pins": {"experts": "cuda:0"}}
    trial = named("deepseek-v2-measured", None, "1xL40-46GB,ram=512GB", {}, **options)
    kinds = [re.sub(r"\d+", "n", suggestion) for suggestion in explained(trial).suggestions]
    assert kinds == ["add n GB to each GPU"]
    unsaid = infeasible(trial.problem, trial.costs)
    assert unsaid.short_bytes == explained(trial).short_bytes
    assert unsaid.suggestions == ()


def test_a_chunk_as_long_as_the_prompt_may_fit_where_no_shorter_one_does() -> None:
    """A second chunk would meet a cache and need more at once than a long first one."""
    nothing = {"weight_bytes": 0, "workspace_bytes": 0}
    then = {"per_sequence": 6 * 10**9, "after_first_chunk": True}
    attention = {"weight_bytes": "5 GB", "workspace_bytes": {"per_token": 10**7, "other_moments": [then]}}
    fields = {"model": "one", "source": "made up", "hidden_size": 64, "embedding": nothing, "head": nothing}
    profile = ModelProfile.from_dict({**fields, "layers": [{"attention": attention, "experts": None}]}, "one")
    cpu = load_hardware("cpu=EPYC-9654,ram=20GB").cpu.replace(budget_bytes=10_300_000_000)
    machine = Hardware(name="no card", devices=[cpu])
    found = explained(Trial(Instance(profile, machine, Workload(prefill_chunk=600))))
    assert found.suggestions == ("lower prefill_chunk to 530",)


def test_a_model_that_is_no_preset_keeps_its_bytes() -> None:
    trial = named("mixtral-8x7b", "bf16", "1xRTX4090,ram=16GB", {})
    assert "use quant q5_k_m" in explained(trial).suggestions
    other = changed(trial, profile=trial.instance.profile.replace(model="mine"))
    heavier = changed(trial, profile=trial.instance.profile.replace(notes=("by hand",)))
    for own in (other, heavier):
        assert not any("quant" in suggestion for suggestion in explained(own).suggestions)


def test_where_work_runs_out_nothing_false_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = named("deepseek-r1", "q4_k_m", "8xL40-46GB,ram=64GB", {})
    monkeypatch.setattr(explain, "WORK", 0.0)
    found = explained(trial)
    assert found.suggestions == ()
    assert set(found.short_bytes) == {"all devices"}
    assert "short of at least" in str(found)
    monkeypatch.setattr(explain, "WORK", 0.02)
    for suggestion in explained(trial).suggestions:
        assert followed(suggestion, trial)[0].fits()


# ---- searching one number ----


@pytest.mark.parametrize("most", [0, 1, 2, 3, 7, 64, 1000])
def test_the_smallest_number_is_found_with_few_questions(most: int) -> None:
    for least in range(1, most + 2):
        asked: list[int] = []

        def answer(n: int, least: int = least, asked: list[int] = asked) -> bool:
            assert 1 <= n <= most
            asked.append(n)
            return n >= least

        assert _smallest(most, answer) == (least if least <= most else None)
        assert len(asked) <= 2 * most.bit_length() + 1
        assert _largest(0, most - 1, lambda n, least=least: n < least) == (min(least, most) - 1 if most else None)


def test_missing_answers_make_a_number_larger_or_none() -> None:
    assert _smallest(100, lambda n: None) is None
    assert _smallest(100, lambda n: None if n < 40 else True) is None, "1 might do as well"
    assert _smallest(100, lambda n: n >= 40 if not 16 < n < 50 else None) == 50
    assert _smallest(1, lambda n: True) == 1
