"""Projections, norms and other single tensors, and what a layer is made of: a mixer and a feed-forward network."""

from __future__ import annotations

from dataclasses import dataclass, replace

from profiles.tensors import Cache, RoutedExperts, Tensor, Tensors, under


@dataclass(frozen=True)
class Mixer:
    """What mixes the tokens of a layer (attention or a recurrence): its tensors and what it caches."""

    tensors: Tensors = ()
    cache: Cache = Cache()

    def beside(self, *tensors: Tensor) -> Mixer:
        """The same with more tensors."""
        return replace(self, tensors=self.tensors + tensors)


@dataclass(frozen=True)
class FeedForward:
    """What follows: tensors that stay with the attention (a dense FFN, or router and shared experts), and experts."""

    tensors: Tensors = ()
    experts: RoutedExperts | None = None

    def under(self, prefix: str) -> FeedForward:
        """The same with `prefix` before every name."""
        experts = self.experts and replace(self.experts, tensors=under(prefix, self.experts.tensors))
        return FeedForward(under(prefix, self.tensors), experts)

    def beside(self, *tensors: Tensor) -> FeedForward:
        """The same with more tensors that stay with the attention."""
        return replace(self, tensors=self.tensors + tensors)


def linear(name: str, out_features: int, in_features: int, *, bias: bool = False) -> Tensors:
    """A projection and, perhaps, its bias."""
    weight = Tensor(f"{name}.weight", (out_features, in_features), quantisable=True)
    return (weight, Tensor(f"{name}.bias", (out_features,))) if bias else (weight,)


def kept(name: str, *shape: int, fp32: bool = False) -> Tensors:
    """A tensor that no format quantises: a norm, a router, a gate, a convolution. `fp32`: in fp32 whatever is asked."""
    return (Tensor(name, shape, fp32=fp32),)


def norm(name: str, size: int, *, bias: bool = False) -> Tensors:
    """A norm's weight and, perhaps, its bias."""
    return kept(f"{name}.weight", size) + (kept(f"{name}.bias", size) if bias else ())


def convolution(name: str, channels: int, kernel: int, *, bias: bool = False) -> Tensors:
    """A causal convolution of each channel with itself."""
    return kept(f"{name}.weight", channels, 1, kernel) + (kept(f"{name}.bias", channels) if bias else ())
