"""Feed-forward networks: dense ones, and routed experts with their router and shared experts."""

from __future__ import annotations

from profiles.errors import ProfileError
from profiles.hf_config.fields import MAX_EXPERTS, Fields
from profiles.hf_config.parts.basic import FeedForward, kept, linear
from profiles.tensors import RoutedExperts, Tensor, Tensors, under

UNCOUNTED_BUFFERS = "router score-correction biases are buffers, not parameters, and are not counted"


def gated_mlp(fields: Fields, width: int, *, bias: bool = False, name: str = "mlp") -> FeedForward:
    """A dense feed-forward network with a gate."""
    hidden = fields.size("hidden_size")
    tensors = linear("gate_proj", width, hidden, bias=bias) + linear("up_proj", width, hidden, bias=bias)
    return FeedForward(under(f"{name}.", tensors + linear("down_proj", hidden, width, bias=bias)))


def plain_mlp(fields: Fields, width: int, *, bias: bool = False, name: str = "mlp") -> FeedForward:
    """A dense feed-forward network without a gate."""
    hidden = fields.size("hidden_size")
    tensors = linear("up_proj", width, hidden, bias=bias) + linear("down_proj", hidden, width, bias=bias)
    return FeedForward(under(f"{name}.", tensors))


def mixture(
    fields: Fields,
    *,
    count: str,
    width: int,
    shared_width: int = 0,
    shared_name: str = "shared_experts",
    router: str = "gate",
    router_bias: bool = False,
    router_fp32: bool = False,
    shared_gate: bool = False,
    expert_bias: bool = False,
    transposed: bool = False,
    active: str = "num_experts_per_tok",
    router_weight_bytes: int = 4,
    shared_bias: bool = False,
    name: str = "mlp",
    zero_experts: int = 0,
    expert_hidden: int | None = None,
    gated: bool = True,
) -> FeedForward:
    """Routed experts with gate and up projection fused, their router, and shared experts of `shared_width` if any.

    Experts that are not `gated` have no gate projection, nor have the shared ones.
    `count` and `active` are the config's keys for the number of experts and of those that a token uses.
    `zero_experts` more can be chosen that compute nothing: `active` of the routed experts is then what a token uses on
    average. `expert_hidden` is the width that experts work in where it is not the model's (their projections to and
    from it are the caller's).
    """
    hidden = fields.size("hidden_size")
    experts, used = fields.size(count, most=MAX_EXPERTS), fields.size(active)
    if used > experts:
        key = active.split("|")[0]
        raise ProfileError(f"{fields.prefix}{key}: {used} is more than the {experts} experts there are; mend one")
    around = kept(f"{router}.weight", experts + zero_experts, hidden, fp32=router_fp32)
    around += kept(f"{router}.bias", experts + zero_experts) if router_bias else ()
    if shared_width:
        dense = gated_mlp if gated else plain_mlp
        around += dense(fields, shared_width, bias=shared_bias, name=shared_name).tensors
        around += kept("shared_expert_gate.weight", 1, hidden) if shared_gate else ()
    outside = expert_hidden or hidden
    first, inner = ("gate_up_proj", 2 * width) if gated else ("up_proj", width)
    up = (experts, outside, inner) if transposed else (experts, inner, outside)
    down = (experts, width, outside) if transposed else (experts, outside, width)
    inside: Tensors = (
        Tensor(first, up, True, transposed, stacked=inner // width),
        Tensor("down_proj", down, True, transposed),
    )
    if expert_bias:
        inside += kept("gate_up_proj_bias", experts, 2 * width) + kept("down_proj_bias", experts, outside)
    used = max(1, round(used * experts / (experts + zero_experts)))
    prefix = f"{name}." if name else ""
    routed = RoutedExperts(under(f"{prefix}experts.", inside), experts, used, width, router_weight_bytes)
    return FeedForward(under(prefix, around), routed)
