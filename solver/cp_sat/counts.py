"""Counts: how many layers of each class go where, whatever their order.

Integers say how many layers of class c have their attention on a and their experts on d. Memory, blocks and hand-overs
depend on the counts alone, and a token that visits a set of devices pays at least the cheapest route through them once
(hops obey the triangle inequality), so the optimum is a lower bound over all placements, and an infeasible answer is a
proof. docs/model.md has the argument in full.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ortools.sat.python import cp_model

from solver.assignment import Counts
from solver.cp_sat.load import Held, keep_within, load_on
from solver.cp_sat.run import Limits, Outcome, at_least, bound_of, search, total
from solver.problem import BlockCosts, Problem


@dataclass
class CountsModel:
    """The variables; `arcs[a, b]`: the token's route goes from a to b; `first`, `last`: where it starts and ends."""

    problem: Problem
    cp: cp_model.CpModel
    attention: dict[tuple[int, int], cp_model.IntVar]
    experts: dict[tuple[int, int, int], cp_model.IntVar]
    sent: dict[tuple[int, int], cp_model.IntVar]
    taken: dict[tuple[int, int], cp_model.IntVar]
    embedding: list[cp_model.IntVar]
    head: list[cp_model.IntVar]
    used: list[cp_model.IntVar]
    first: list[cp_model.IntVar]
    last: list[cp_model.IntVar]
    arcs: dict[tuple[int, int], cp_model.IntVar] = field(default_factory=dict)
    start: list[cp_model.IntVar] = field(default_factory=list)

    @property
    def devices(self) -> range:
        return range(len(self.problem.devices))

    def attention_on(self, device: int) -> cp_model.LinearExpr:
        return total((1, self.attention[c, device]) for c in range(len(self.problem.classes)))

    def experts_on(self, c: int, device: int) -> cp_model.LinearExpr:
        """Layers of class c whose experts are on `device`, wherever their attention is."""
        pairs = [self.experts[c, a, device] for a in self.devices if (c, a, device) in self.experts]
        return total((1, var) for var in (*pairs, self.taken[c, device]))

    def experts_of(self, c: int, device: int) -> cp_model.LinearExpr:
        """Layers of class c whose attention is on `device`, wherever their experts are."""
        pairs = [self.experts[c, device, d] for d in self.devices if (c, device, d) in self.experts]
        return total((1, var) for var in (*pairs, self.sent[c, device]))


Cards = Mapping[int, Mapping[tuple[int, ...], int]]
"""For the first device of a group of equals: experts of each kind on a card -> number of such cards."""


def solve_counts(problem: Problem, limits: Limits, *, floor: int = 0, cards: Cards | None = None) -> Outcome:
    """The best counts and a bound over all placements; `infeasible` is proven for every order of layers.

    `floor` is a known lower bound in ticks. With `cards` only counts that load equal devices so are searched: then
    neither the bound, which stays `floor`, nor `infeasible` says anything about other placements.
    """
    model = counts_variables(problem)
    counts_constraints(model)
    for first, patterns in (cards or {}).items():
        _load_cards(model, first, patterns)
    minimise(model, floor=floor)
    solver, status = search(model.cp, limits)
    bound = max(floor, bound_of(solver, status)) if cards is None else floor
    if status in ("infeasible", "unknown"):
        return Outcome(status, bound)
    return Outcome(status, bound, counts=decode_counts(model, solver))


def _load_cards(model: CountsModel, first: int, patterns: Mapping[tuple[int, ...], int]) -> None:
    """Deal the patterns out to the devices equal to `first`."""
    members = [d for d in model.devices if model.problem.twins[d] == first]
    has = {(d, p): model.cp.new_bool_var("") for d in members for p in patterns}
    for d in members:
        model.cp.add_exactly_one(has[d, p] for p in patterns)
        for k, kind in enumerate(model.problem.expert_kinds):
            here = sum(model.experts_on(c, d) for c in kind.classes)
            model.cp.add(here == total((p[k], has[d, p]) for p in patterns))
    for pattern, number in patterns.items():
        model.cp.add(sum(has[d, pattern] for d in members) == number)


def least_shortage(problem: Problem, limits: Limits) -> list[int] | None:
    """The fewest bytes to add, per device and then per pool, so that some placement fits. None when nothing helps or
    nothing was found in time."""
    model = counts_variables(problem)
    most = sum(max(b.bytes) + b.workspace for b in _all_blocks(problem))
    added = [model.cp.new_int_var(0, most, "") for _ in (*model.devices, *problem.shared)]
    counts_constraints(model, added)
    model.cp.minimize(total((1, var) for var in added))
    solver, status = search(model.cp, limits)
    return None if status in ("infeasible", "unknown") else [solver.value(v) for v in added]


def _all_blocks(problem: Problem) -> list[BlockCosts]:
    inner = []
    for c, n in enumerate(problem.class_sizes):
        inner += [problem.classes[c].attention] * n
        experts = problem.classes[c].experts
        if experts is not None:
            inner += [BlockCosts(experts.bytes, experts.workspace, experts.busy, experts.allowed)] * n
    return [problem.embedding, problem.head, *inner]


def counts_variables(problem: Problem) -> CountsModel:
    cp, devices = cp_model.CpModel(), range(len(problem.devices))

    def choice(block: BlockCosts, name: str) -> list[cp_model.IntVar]:
        return [cp.new_int_var(0, int(block.allowed[d]), f"{name}[{d}]") for d in devices]

    attention, experts, sent, taken = {}, {}, {}, {}
    for c, (kind, n) in enumerate(zip(problem.classes, problem.class_sizes, strict=True)):
        for a in devices:
            attention[c, a] = cp.new_int_var(0, n * kind.attention.allowed[a], f"attention[{c},{a}]")
            if kind.experts is None:
                continue
            apart = n * (not problem.whole_layers and problem.twins.count(problem.twins[a]) > 1)
            sent[c, a] = cp.new_int_var(0, apart * kind.attention.allowed[a], f"sent[{c},{a}]")
            taken[c, a] = cp.new_int_var(0, apart * kind.experts.allowed[a], f"taken[{c},{a}]")
            for d in devices:
                if a == d or problem.twins[a] != problem.twins[d]:
                    open_ = (
                        kind.attention.allowed[a] and kind.experts.allowed[d] and (a == d or not problem.whole_layers)
                    )
                    experts[c, a, d] = cp.new_int_var(0, n * open_, f"experts[{c},{a},{d}]")
    return CountsModel(
        problem=problem,
        cp=cp,
        attention=attention,
        experts=experts,
        sent=sent,
        taken=taken,
        embedding=choice(problem.embedding, "embedding"),
        head=choice(problem.head, "head"),
        used=[cp.new_bool_var(f"used[{d}]") for d in devices],
        first=[cp.new_bool_var(f"first[{d}]") for d in devices],
        last=[cp.new_bool_var(f"last[{d}]") for d in devices],
    )


def counts_constraints(model: CountsModel, added: Sequence[cp_model.IntVar] | None = None) -> None:
    """Every block somewhere, every device and pool within its memory (plus `added` bytes, those of pools last), a route
    through the used devices."""
    problem, cp = model.problem, model.cp
    cp.add_exactly_one(model.embedding)
    cp.add_exactly_one(model.head)
    for c, (kind, n) in enumerate(zip(problem.classes, problem.class_sizes, strict=True)):
        cp.add(sum(model.attention[c, a] for a in model.devices) == n)
        if kind.experts is not None:
            for a in model.devices:
                cp.add(model.experts_of(c, a) == model.attention[c, a])
            _guests(model, c)
    keep_within(cp, [_load(model, d) for d in model.devices], problem.room, added)
    if problem.main is not None:
        d = problem.main
        held = [model.experts_on(c, d) for c, kind in enumerate(problem.classes) if kind.experts is not None]
        cp.add(model.attention_on(d) + model.embedding[d] + model.head[d] + sum(held) >= 1)
    _route(model)


def _guests(model: CountsModel, c: int) -> None:
    """Between interchangeable devices only the numbers of experts sent away and taken in matter, not the pairs: any
    numbers can be paired off as long as they agree in all and no device has to take what it sends itself."""
    twins = model.problem.twins
    for group in set(twins):
        members = [d for d in model.devices if twins[d] == group]
        taken = total((1, model.taken[c, d]) for d in members)
        model.cp.add(total((1, model.sent[c, a]) for a in members) == taken)
        for a in members:
            model.cp.add(model.sent[c, a] + model.taken[c, a] <= taken)


def _load(model: CountsModel, d: int) -> cp_model.LinearExpr:
    problem = model.problem
    held = []
    for c, (kind, n) in enumerate(zip(problem.classes, problem.class_sizes, strict=True)):
        held.append(Held.of(kind.attention, d, model.attention[c, d], n))
        if kind.experts is not None:
            held.append(Held.of(kind.experts, d, model.experts_on(c, d), n))
    to_cpu = {c: var for (c, a, e), var in model.experts.items() if (a, e) == (d, problem.cpu)}
    return load_on(problem, model.cp, d, model.embedding[d], model.head[d], held, to_cpu)


def _route(model: CountsModel) -> None:
    """The token's route visits every device with attention once. Interchangeable devices are used and visited in
    order, so between two of them only the arc to the very next one can be needed."""
    problem, cp = model.problem, model.cp
    outside, n_layers = len(problem.devices), len(problem.layer_class)
    arcs: list[tuple[int, int, cp_model.LiteralT]] = []
    for a in model.devices:
        cp.add(model.attention_on(a) >= model.used[a])
        cp.add(model.attention_on(a) <= n_layers * model.used[a])
        arcs += [(outside, a, model.first[a]), (a, outside, model.last[a]), (a, a, ~model.used[a])]
        cp.add(model.attention[problem.layer_class[0], a] >= model.first[a])
        later = [b for b in model.devices if b > a and problem.twins[b] == problem.twins[a]]
        if later:
            cp.add_implication(model.used[later[0]], model.used[a])
        for b in model.devices:
            if a != b and problem.in_order(a, b) and (problem.twins[a] != problem.twins[b] or b in later[:1]):
                model.arcs[a, b] = cp.new_bool_var(f"arc[{a},{b}]")
                arcs.append((a, b, model.arcs[a, b]))
    cp.add_circuit(arcs)


def minimise(model: CountsModel, *, floor: int) -> None:
    problem = model.problem
    if problem.bottleneck:
        objective: cp_model.LinearExpr = model.cp.new_int_var(0, _most_ticks(problem), "busiest")
        for d in model.devices:
            model.cp.add(objective >= _busy(model, d))
        _end_hops(model, model.head, model.last, in_order=problem.head_in_order)
    else:
        objective = _ticks(model)
    model.cp.minimize(at_least(model.cp, objective, floor))


def _most_ticks(problem: Problem) -> int:
    return sum(max(block.ticks) for block in _all_blocks(problem))


def _busy(model: CountsModel, d: int) -> cp_model.LinearExpr:
    problem = model.problem
    busy = total([(problem.embedding.ticks[d], model.embedding[d]), (problem.head.ticks[d], model.head[d])])
    for c, kind in enumerate(problem.classes):
        busy += kind.attention.ticks[d] * model.attention[c, d]
        if kind.experts is not None:
            busy += kind.experts.busy[d] * model.experts_on(c, d)
    return busy


def _ticks(model: CountsModel) -> cp_model.LinearExpr:
    """Blocks and hand-overs by count, hops along the route and to its two ends."""
    problem, devices = model.problem, model.devices
    ticks = total((problem.hop[a][b], arc) for (a, b), arc in model.arcs.items())
    ticks += _end_hops(model, model.embedding, model.first)
    ticks += _end_hops(model, model.head, model.last, in_order=problem.head_in_order)
    ticks += total((problem.embedding.ticks[d], model.embedding[d]) for d in devices)
    ticks += total((problem.head.ticks[d], model.head[d]) for d in devices)
    for (c, a), attention in model.attention.items():
        ticks += problem.classes[c].attention.ticks[a] * attention
    for (c, a, d), var in model.experts.items():
        experts = problem.classes[c].experts
        assert experts is not None
        ticks += experts.ticks[a][d] * var
    for (c, a), sent in model.sent.items():
        experts = problem.classes[c].experts
        assert experts is not None
        ticks += experts.ticks[a][problem.other_twin(a)] * sent
    return ticks


def _end_hops(
    model: CountsModel, block: Sequence[cp_model.IntVar], end: Sequence[cp_model.IntVar], in_order: bool = False
) -> cp_model.LinearExpr:
    """The hop between a block at one end and the route's device there, as a flow from one choice to the other; with
    `in_order` the block's device may not be one that the route may not go on to."""
    cp, devices = model.cp, model.devices
    flow = {
        (a, b): cp.new_int_var(0, int(not in_order or model.problem.in_order(b, a)), "")
        for a in devices
        for b in devices
    }
    for d in devices:
        cp.add(sum(flow[d, b] for b in devices) == block[d])
        cp.add(sum(flow[a, d] for a in devices) == end[d])
    return total((model.problem.hop[a][b], arc) for (a, b), arc in flow.items())


def decode_counts(model: CountsModel, solver: cp_model.CpSolver) -> Counts:
    onward = {a: b for (a, b), arc in model.arcs.items() if solver.value(arc)}
    route = [next(a for a in model.devices if solver.value(model.first[a]))]
    while route[-1] in onward:
        route.append(onward[route[-1]])
    return Counts(
        embedding=next(d for d in model.devices if solver.value(model.embedding[d])),
        head=next(d for d in model.devices if solver.value(model.head[d])),
        attention={key: solver.value(var) for key, var in model.attention.items()},
        experts={**{key: solver.value(var) for key, var in model.experts.items()}, **_pair_off(model, solver)},
        route=tuple(route),
    )


def _pair_off(model: CountsModel, solver: cp_model.CpSolver) -> dict[tuple[int, int, int], int]:
    """Name a taker for every layer's experts sent away between interchangeable devices.

    Each goes to the other device with most left to take from or send to, which never strands a device with itself.
    """
    pairs: dict[tuple[int, int, int], int] = {}
    twins = model.problem.twins
    for c, group in {(c, twins[a]) for c, a in model.sent}:
        members = [d for d in model.devices if twins[d] == group]
        sent = {d: solver.value(model.sent[c, d]) for d in members}
        taken = {d: solver.value(model.taken[c, d]) for d in members}
        while any(sent.values()):
            tightest = max(members, key=lambda d: (sent[d] + taken[d], -d))
            if sent[tightest]:
                a, d = tightest, max((d for d in members if d != tightest), key=lambda d: (taken[d], sent[d], -d))
            else:
                a, d = max((a for a in members if a != tightest), key=lambda a: (sent[a], taken[a], -a)), tightest
            sent[a], taken[d] = sent[a] - 1, taken[d] - 1
            pairs[c, a, d] = pairs.get((c, a, d), 0) + 1
    return pairs
