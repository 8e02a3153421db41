"""State-space layers (Mamba and Mamba-2): no cache by the token, but a convolution's and a recurrence's state."""

from __future__ import annotations

from dataclasses import dataclass

from profiles.errors import ProfileError
from profiles.hf_config.parts.basic import Mixer, convolution, kept, linear, norm
from profiles.tensors import Cache, under


@dataclass(frozen=True)
class StateSpace:
    """Sizes of a Mamba-2 layer, whatever a config calls them."""

    heads: int
    head_size: int
    groups: int
    state: int
    kernel: int

    @property
    def inner(self) -> int:
        return self.heads * self.head_size


def mamba2(name: str, hidden: int, sizes: StateSpace, *, bias: bool = False, conv_bias: bool = True) -> Mixer:
    """Mamba-2, under `name`. `bias` is that of the two projections.

    transformers keeps `kernel` columns of what is convolved (inputs and, for each group, what goes into and comes out
    of the state) and, in fp32, a state of `state` values for every inner channel.
    """
    inner, state = sizes.inner, sizes.state
    if sizes.heads % sizes.groups:
        raise ProfileError(f"{sizes.groups} groups do not divide {sizes.heads} Mamba heads; mend one")
    convolved = inner + 2 * sizes.groups * state
    tensors = kept("dt_bias", sizes.heads) + kept("A_log", sizes.heads) + kept("D", sizes.heads)
    tensors += convolution("conv1d", convolved, sizes.kernel, bias=conv_bias)
    tensors += linear("in_proj", inner + convolved + sizes.heads, hidden, bias=bias)
    tensors += norm("norm", inner) + linear("out_proj", hidden, inner, bias=bias)
    cache = Cache(state_values=convolved * sizes.kernel, state_fp32_values=inner * state)
    return Mixer(under(f"{name}.", tensors), cache)


def mamba(
    name: str,
    hidden: int,
    *,
    inner: int,
    state: int,
    rank: int,
    kernel: int,
    bias: bool = False,
    conv_bias: bool = True,
) -> Mixer:
    """The first Mamba as Jamba has it, with norms of the step (of low `rank`) and of both sides of the state."""
    tensors = kept("A_log", inner, state) + kept("D", inner) + convolution("conv1d", inner, kernel, bias=conv_bias)
    tensors += linear("in_proj", 2 * inner, hidden, bias=bias) + linear("x_proj", rank + 2 * state, inner)
    tensors += linear("dt_proj", inner, rank, bias=True) + linear("out_proj", hidden, inner, bias=bias)
    tensors += norm("dt_layernorm", rank) + norm("b_layernorm", state) + norm("c_layernorm", state)
    return Mixer(under(f"{name}.", tensors), Cache(state_values=inner * kernel, state_fp32_values=inner * state))
