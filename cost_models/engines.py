"""How fast a runtime's own code is, whatever the machine: what it reaches of the hardware, and what each block costs.

The figures are in `data/engines.yaml`, each with its source or with the command that fits it to published measurements.
Two runtimes on one machine differ by more than two machines do: llama.cpp launches a block in 15 us, plain torch in
1 ms, and KTransformers' archived GPU operators visit every expert of a layer one by one.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Annotated

from pydantic import Field

from profiles.document import Document, Noun, SchemaOne, parse_document
from profiles.errors import TargetError
from profiles.units import BytesPerSecond, Seconds, Share

Positive = Annotated[Share, Field(gt=0)]
Ratio = Annotated[Share, Field(gt=0, le=1)]


class Launches(Noun):
    """Seconds that running one block takes before it reads or computes anything.

    `latent` is of attention with a compressed cache (MLA), which is many small products in most runtimes. `each_expert`
    is paid for every expert of the layer that is on the device, used or not.
    """

    attention: Seconds
    latent: Seconds
    experts: Seconds
    each_expert: Seconds = 0.0
    ends: Seconds = 0.0


class ByModel(Noun):
    """A figure for devices whose model's name `model`, a regular expression, is found in."""

    model: str
    value: Positive


class Unpacking(Noun):
    """Weights of fewer than `below_bits` bits a parameter are unpacked by a core no faster than this."""

    below_bits: Positive
    params_per_core_s: Positive


class Habits(Noun):
    """A runtime on one kind of device.

    *Reading weights.* `bandwidth_efficiency` of the bandwidth; of a CPU's bandwidth beyond `knee_bytes_per_s` a socket
    only the power `bandwidth_exponent`, and of `sockets` the power `sockets_exponent`.
    *Reading the cache* for one new token: at `cache_efficiency` of the bandwidth, or so many FLOPs of scores a second
    (`latent_scores_per_s` with a latent cache), or as weights.
    *Products.* `flops_efficiency` of the peak, times `products` of the first model that fits; or `flops_per_cycle` a
    core, of n cores 32 (n / 32)^`cores_exponent` counting.
    `sync_s` is the fixed price of handing a layer's experts to such a device.
    """

    launch_s: Launches
    bandwidth_efficiency: Ratio
    knee_bytes_per_s: Positive | None = None
    bandwidth_exponent: Ratio = 1.0
    sockets_exponent: Ratio = 1.0
    cache_efficiency: Positive | None = None
    scores_per_s: Positive | None = None
    latent_scores_per_s: Positive | None = None
    flops_efficiency: Ratio
    products: tuple[ByModel, ...] = ()
    flops_per_cycle: Positive | None = None
    cores_exponent: Ratio = 1.0
    unpacking: tuple[Unpacking, ...] = ()
    sync_s: Seconds


class Copies(Noun):
    """How a runtime copies experts from RAM to the GPU that computes them, for steps of at least `from_tokens` tokens,
    times experts / active where `per_expert`. Memory that is not pinned is copied no faster than `most_bytes_per_s`, on
    hosts of `hosts` than the figure there; None where it is pinned."""

    from_tokens: Annotated[int, Field(ge=1)]
    per_expert: bool = False
    most_bytes_per_s: BytesPerSecond | None = None
    hosts: tuple[ByModel, ...] = ()


class Spread(Noun):
    """How far a machine is from an engine's habits, as the standard deviation of a logarithm: what calibration may
    change. The noises are what remains between one run and the next."""

    launch: Positive
    sync: Positive
    bandwidth: Positive
    cache: Positive
    flops: Positive
    link: Positive
    decode_noise: Positive
    prefill_noise: Positive


class Engine(Noun):
    """One runtime. `sources` says of every figure where it is from: a publication, a measurement of ours, or `fit`."""

    name: str
    gpu: Habits
    cpu: Habits
    copies: Copies | None = None
    sources: dict[str, str]


class Engines(Document):
    """All runtimes known. `targets` says which of them runs a target's plans."""

    schema_: Annotated[SchemaOne, Field(alias="schema")] = 1
    targets: dict[str, str]
    spread: dict[str, Spread]
    engines: tuple[Engine, ...]


@cache
def engines() -> Engines:
    """The runtimes that moeplan knows, read once."""
    where = "engines.yaml"
    text = files("cost_models").joinpath("data/engines.yaml").read_text(encoding="utf-8")
    return Engines.from_dict(parse_document(text, where), where)


def engine_of(target: str) -> Engine:
    """The runtime of a target, or the one of that name. Raises TargetError where there is neither.

    >>> engine_of("accelerate").name
    'torch'
    """
    known = engines()
    wanted = known.targets.get(target, target)
    found = next((engine for engine in known.engines if engine.name == wanted), None)
    if found is None:
        names = dict.fromkeys((*known.targets, *(engine.name for engine in known.engines)))
        raise TargetError(f"engine: {target!r} is not known; use one of {', '.join(names)}")
    return found


def by_model(rules: tuple[ByModel, ...], model: str | None) -> float | None:
    """The figure of the first rule whose pattern is found in the model's name; None where there is none."""
    return next((rule.value for rule in rules if re.search(rule.model, model or "", re.IGNORECASE)), None)
