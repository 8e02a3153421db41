"""sglang-kt's command line without sglang-kt: which GPU and which experts on it a text means."""

from __future__ import annotations

import re
import shlex

from profiles.document import one_line, short
from profiles.errors import TargetError
from runtime_adapter.targets.sglang_kt.masks import Mask, Shape, experts_of_ratio, front_loading, ratio_of, uniform
from runtime_adapter.targets.sglang_kt.script import SCRIPT, marked

MAX_CHARACTERS = 2**18
"""Every other one of 384 experts in each of 200 layers, all layers different, takes less."""
MAX_COMMAND = 2**14
RATIO, COUNT = "--kt-gpu-experts-ratio", "--kt-num-gpu-experts"
STRATEGY, FILE = "--kt-expert-placement-strategy", "--init-expert-location"
_LAUNCH = re.compile(r"sglang(?:\.launch_server|\s+serve)|--kt-")
_DIVIDES = {"--tensor-parallel-size", "--tp-size", "--pipeline-parallel-size", "--pp-size", "--nnodes"}
_DIVIDES |= {"--data-parallel-size", "--dp-size", "--expert-parallel-size", "--ep-size", "--ep"}
_MOVES = {"--kt-enable-dynamic-expert-update", "--enable-eplb"}
_OFFLOADS = {"--cpu-offload-gb", "--offload-group-size"}
_ENGINE = {"--kt-weight-path", "--kt-method", "--kt-cpuinfer", "--kt-threadpool-count", "--kt-numa-nodes"}
_ENGINE |= {"--kt-max-deferred-experts-per-token", "--kt-gpu-prefill-token-threshold"}
_ENGINE |= {"--kt-lora-path", "--kt-expert-lora-path"}
"""Options of kt-kernel's that say nothing about where experts are held."""
Options = dict[str, list[str]]


def resolve(text: str, shape: Shape, where: str) -> tuple[str, Mask]:
    """The GPU of all else, and the experts that are on it. Raises TargetError for what `sglang_kt.read` names."""
    if len(text) > MAX_CHARACTERS:
        raise TargetError(f"{where}: {len(text)} characters, more than {MAX_CHARACTERS}; give the command alone")
    try:
        options = _options(text)
        _check(options)
        return f"cuda:{_whole(options, '--base-gpu-id', 0)}", _mask(options, marked(text, shape), shape)
    except TargetError as problem:
        raise TargetError(one_line(f"{where}: {_line(str(problem), text)}{problem}")) from None


def _line(problem: str, text: str) -> str:
    """Where the option is that a message begins with."""
    option = re.match(r"--[a-z-]+", problem)
    at = text.find(option[0]) if option else -1
    return f"line {text.count(chr(10), 0, at) + 1}: " if at >= 0 else ""


def _options(text: str) -> Options:
    """The options of the one command that launches sglang, each with what follows it; of doubled ones the last."""
    lines = [line for line in SCRIPT.sub("", text).split("\n") if not line.lstrip().startswith("#")]
    commands = [line for line in "\n".join(lines).replace("\\\n", " ").split("\n") if _LAUNCH.search(line)]
    if len(commands) != 1:
        raise TargetError(f"{len(commands)} lines launch sglang; give the one command, its lines ending in \\")
    if len(commands[0]) > MAX_COMMAND:
        raise TargetError(f"the command has {len(commands[0])} characters, more than {MAX_COMMAND}; shorten it")
    try:
        words = shlex.split(commands[0], comments=True)
    except ValueError as problem:
        raise TargetError(f"the command cannot be read: {problem}; mend its quotes") from None
    found: Options = {}
    values: list[str] = []
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            found[name] = values = [value] if equals else []
        else:
            values.append(word)
    return found


def _check(options: Options) -> None:
    """Raise TargetError for what no placement says, and where kt-kernel stays off."""
    for option in options:
        if option in _DIVIDES and _whole(options, option, 1) != 1:
            raise TargetError(f"{option} divides the model between GPUs, which no placement says; make it 1")
        if option in _MOVES:
            raise TargetError(f"{option} moves experts while the model runs; take it out")
        if option in _OFFLOADS and options[option] != ["0"]:
            raise TargetError(f"{option} keeps other weights on the CPU too; take it out")
        if option.startswith("--kt-") and option not in {*_ENGINE, RATIO, COUNT, STRATEGY}:
            raise TargetError(f"{option} is not known; take it out")
    for option in ("--kt-weight-path", _share(options)):
        if option not in options:
            raise TargetError(f"{option} is missing: without it kt-kernel is off, all experts on the GPU; add it")


def _mask(options: Options, script: tuple[str, Mask] | None, shape: Shape) -> Mask:
    """The experts that the strategy takes."""
    count = _count(options, shape)
    strategy = _value(options, STRATEGY, "uniform")
    if strategy == "uniform":
        return uniform(shape, count)
    if strategy == "front-loading":
        return front_loading(shape, count)
    if strategy != "frequency":
        reason = "depends on torch's random numbers" if strategy == "random" else "is not known"
        raise TargetError(f"{STRATEGY} {short(strategy)} {reason}; use frequency, uniform or front-loading")
    file = _value(options, FILE, "trivial")
    if script is None or script[0] != file:
        wanted = f"the counts in {short(file)}" if file.endswith(".pt") else f"counts, which {FILE} names"
        raise TargetError(f"{STRATEGY} frequency depends on {wanted}; give the script by moeplan that writes them")
    mask = script[1]
    marks = sum(map(len, mask))
    if marks != count:
        chance = f"takes {count} experts, the file marks {marks}, and which of equals are taken is left to chance"
        raise TargetError(f"{_share(options)} {chance}; write {RATIO} {ratio_of(shape, marks)}")
    return mask


def _share(options: Options) -> str:
    """The option that says how many experts are on the GPU: the ratio, where both do."""
    return COUNT if COUNT in options and RATIO not in options else RATIO


def _count(options: Options, shape: Shape) -> int:
    """How many experts are on the GPU, over all layers."""
    if _share(options) == COUNT:
        return min(_whole(options, COUNT, 0), shape.experts) * (shape.layers - shape.dense)
    text = _value(options, RATIO, "")
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise TargetError(f"{RATIO} {short(text)} is no share from 0 to 1; mend it")
    return experts_of_ratio(shape, ratio)


def _value(options: Options, option: str, default: str) -> str:
    values = options.get(option, [default])
    if len(values) != 1:
        raise TargetError(f"{option} has {len(values)} values; give one")
    return values[0]


def _whole(options: Options, option: str, default: int) -> int:
    value = _value(options, option, str(default))
    if not re.fullmatch(r"[0-9]{1,6}", value):
        raise TargetError(f"{option} {short(value)} is no whole number; mend it")
    return int(value)
