r"""A command line of llama.cpp's programs, from text to options and back: only what a shell and its parser do.

The text may be a command with or without a program, over several lines with `\`, behind variables (`A=1 llama-server`)
or in a script beside comments; or the line that llama-fit-params prints.

>>> command = parse_command("CUDA_VISIBLE_DEVICES=1 ./llama-server -ngl 99 \\\n  --n-cpu-moe 4")
>>> command.program, command.environment, [(option.name, option.value) for option in command.options]
('llama-server', {'CUDA_VISIBLE_DEVICES': '1'}, [('-ngl', '99'), ('-ncmoe', '4')])
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from profiles.document import one_line, short
from profiles.errors import TargetError

MAX_TEXT = 2**16
"""Characters of a text that are read at all: a pattern for each tensor of DeepSeek-R1 takes 40 000."""
NAMES = {
    "-ngl": ("--gpu-layers", "--n-gpu-layers"), "-sm": ("--split-mode",), "-ts": ("--tensor-split",),
    "-ot": ("--override-tensor", "--override-tensors"), "-ncmoe": ("--n-cpu-moe",), "-mg": ("--main-gpu",),
    "-dev": ("--device",), "-c": ("--ctx-size",), "-ub": ("--ubatch-size",), "-b": ("--batch-size",),
    "-np": ("--parallel",), "-ctk": ("--cache-type-k",), "-ctv": ("--cache-type-v",), "-m": ("--model",),
    "-md": ("--model-draft", "--spec-draft-model"), "--mmproj": ("-mm",), "--rpc": (),
}  # fmt: skip
"""Options that take a value, whatever it looks like: short name -> other names."""
FLAGS = {
    "-cmoe": ("--cpu-moe",), "-nkvo": ("--no-kv-offload",), "--no-mmap": (), "--mmap": (), "--mlock": (),
}  # fmt: skip
"""Options that take none. Of any other option, what follows is its value unless that is an option too."""
_MAYBE = {"-fit": ("--fit",)}
CANONICAL = {spelt: name for table in (NAMES, FLAGS, _MAYBE) for name, more in table.items() for spelt in (name, *more)}
VARIABLES = {
    "LLAMA_ARG_N_GPU_LAYERS": "-ngl", "LLAMA_ARG_SPLIT_MODE": "-sm", "LLAMA_ARG_TENSOR_SPLIT": "-ts",
    "LLAMA_ARG_OVERRIDE_TENSOR": "-ot", "LLAMA_ARG_N_CPU_MOE": "-ncmoe", "LLAMA_ARG_CPU_MOE": "-cmoe",
    "LLAMA_ARG_MAIN_GPU": "-mg", "LLAMA_ARG_DEVICE": "-dev", "LLAMA_ARG_CTX_SIZE": "-c", "LLAMA_ARG_UBATCH": "-ub",
    "LLAMA_ARG_CACHE_TYPE_K": "-ctk", "LLAMA_ARG_CACHE_TYPE_V": "-ctv", "LLAMA_ARG_FIT": "-fit",
    "LLAMA_ARG_RPC": "--rpc", "LLAMA_ARG_NO_KV_OFFLOAD": "-nkvo",
}  # fmt: skip
"""Variables that llama.cpp reads before its options -> the option that each stands for."""
_PROGRAM = re.compile(r"(?:.*[/\\])?(llama-[a-z-]+)(?:\.exe)?|.*[/\\](main|server)(?:\.exe)?")
_ASSIGNMENT = re.compile(r"(?:export +)?([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
_SHELL_VARIABLE = re.compile(r"\$\{?[A-Za-z_]|\$\(|`")
_GOES_ON = ("\\", " ^", " `")
_JOINT = re.compile(r"(?:\\| \^| `)\n")
"""How a line goes on in the next: in a Unix shell, cmd and PowerShell."""
_WINDOWS = re.compile(r"\.exe\b|(?:^|[\s\"'])(?:[A-Za-z]:|\.)\\")
_SPLIT_BY_US = ("-ngl", "-ts", "-ot", "-ncmoe", "-cmoe", "-fit", "-sm", "-dev")
"""Options that make a line a command even where it names no program."""


@dataclass(frozen=True)
class Option:
    """One option under its short name; `line` is where it stands in the text."""

    name: str
    value: str | None
    line: int


@dataclass(frozen=True)
class Command:
    """What one command says, in its order; variables that stand for options come first. `notes` say what was left."""

    program: str | None
    options: tuple[Option, ...]
    environment: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def is_bench(self) -> bool:
        return self.program is not None and "bench" in self.program and "sweep" not in self.program

    def last(self, name: str) -> Option | None:
        """The option of that name that counts: the last one."""
        return next((option for option in reversed(self.options) if option.name == name), None)


def parse_command(text: str) -> Command:
    """The command in the text. Raises TargetError, with the line, where there is none or more than one, quotes are left
    open, a value is missing or a shell variable stands for it."""
    if len(text) > MAX_TEXT:
        raise TargetError(f"{len(text)} characters, more than the {MAX_TEXT} of any command; give only that")
    lines = list(_logical_lines(text))
    commands = [(number, line) for number, line in lines if _looks_like_command(line)]
    if len(commands) != 1:
        problem = "no llama.cpp command" if not commands else f"commands in lines {commands[0][0]} and {commands[1][0]}"
        raise TargetError(f"{problem}; give one, such as: llama-server -m MODEL.gguf -ngl 99 -ts 1,1")
    number, line = commands[0]
    exported: dict[str, str] = {}
    notes: list[str] = []
    for other, content in (rest for rest in lines if rest != commands[0]):
        if (found := _assignment(content)) is not None:
            exported[found[0]] = found[1]
        else:
            notes.append(f"line {other} is no part of the command and was not read: {short(content)}")
    return _command(_words(line, number), exported, tuple(notes))


@contextmanager
def located(where: str) -> Iterator[None]:
    """Puts `where` in front of the message of any TargetError."""
    try:
        yield
    except TargetError as problem:
        raise TargetError(one_line(f"{where}: {problem}")) from None


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """(number, line) of every line with something on it, joined where one goes on; comments left out."""
    pending, start = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        start = start if pending else number
        pending += line.strip() if not pending else f"\n{line.strip()}"
        if pending.endswith(_GOES_ON):
            continue
        if pending and not pending.startswith("#"):
            yield start, pending
        pending = ""
    if pending:
        yield start, pending


def _looks_like_command(line: str) -> bool:
    words = line.split()
    known = any(CANONICAL.get(_spelling(word)) in _SPLIT_BY_US for word in words)
    return known or any(_program(word) for word in words[:8])


def _program(word: str) -> str | None:
    match = None if word.startswith("-") else _PROGRAM.fullmatch(word.strip("\"'"))
    return (match[1] or match[2]) if match else None


def _spelling(word: str) -> str:
    """Long options may be written with underscores."""
    return word.replace("_", "-") if word.startswith("--") else word


def _assignment(line: str) -> tuple[str, str] | None:
    match = _ASSIGNMENT.fullmatch(line)
    return (match[1], match[2].strip("\"'")) if match and " " not in match[2].strip() else None


def _words(line: str, number: int) -> list[tuple[str, int]]:
    """The words as a shell makes them, each with the number of the line on which it begins."""
    found: list[tuple[str, int]] = []
    lexer = shlex.shlex(_JOINT.sub(" \n", line), posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    if _WINDOWS.search(line):
        lexer.escape = ""
    try:
        while (word := lexer.get_token()) is not None:
            found.append((word, number + lexer.lineno - 1))
    except ValueError as problem:
        raise TargetError(f"line {number}: {problem}; close the quotes") from None
    return found


def _command(words: Sequence[tuple[str, int]], exported: dict[str, str], notes: tuple[str, ...]) -> Command:
    start, program = _start(words)
    assigned = [(word, _assignment(word)) for word, _ in words[:start]]
    environment = exported | dict(found for _, found in assigned if found is not None)
    line = words[0][1] if words else 1
    if program is None and (strange := [word for word, found in assigned if found is None]):
        notes = (*notes, f"line {line}: not read before the options: {short(' '.join(strange))}")
    variables = [
        Option(name, environment[variable], line)
        for variable, name in VARIABLES.items()
        if variable in environment and not (name in FLAGS and environment[variable] in ("0", "off", "false"))
    ]
    return Command(program, (*variables, *_options(words[start:])), environment, notes)


def _start(words: Sequence[tuple[str, int]]) -> tuple[int, str | None]:
    """Where the options begin: behind a program of llama.cpp's, whose name comes with it, or at the first known one."""
    for place, (word, _) in enumerate(words):
        if CANONICAL.get(_spelling(word)):
            return place, None
        if (program := _program(word)) is not None:
            return place + 1, program
    return len(words), None


def _options(words: Sequence[tuple[str, int]]) -> Iterator[Option]:
    """The options in order. What may or may not be a value is one unless it looks like an option."""
    rest = list(words)
    while rest:
        word, line = rest.pop(0)
        name = CANONICAL.get(_spelling(word), _spelling(word))
        if not word.startswith("-"):
            what = (
                "is a shell variable; write its value"
                if _SHELL_VARIABLE.search(word)
                else "belongs to no option; take it out"
            )
            raise TargetError(f"line {line}: {short(word)} {what}")
        if CANONICAL.get(_spelling(word.partition("=")[0])) and "=" in word:
            raise TargetError(f"line {line}: {short(word)}: llama.cpp wants a space where the first = is; write one")
        if name in FLAGS or (name not in NAMES and (not rest or _is_option(rest[0][0]))):
            yield Option(name, None, line)
            continue
        if not rest:
            raise TargetError(f"line {line}: {word} has no value; add it")
        value = rest.pop(0)[0]
        if name in NAMES and name != "-m" and _SHELL_VARIABLE.search(value):
            raise TargetError(f"line {line}: {word} {short(value)} is a shell variable; write its value")
        yield Option(name, value, line)


def _is_option(word: str) -> bool:
    return re.match(r"-[^\d.]", word) is not None


def command_line(program: str, groups: Iterable[Sequence[str]]) -> str:
    r"""A command that a shell reads back as these words, each group on a line of its own.

    >>> print(command_line("llama-server", [["-m", "a b.gguf"], ["-ot", r"^blk\.1\.=CPU"]]), end="")
    llama-server -m 'a b.gguf' \
      -ot '^blk\.1\.=CPU'
    """
    lines = (" ".join(shlex.quote(word) for word in group) for group in groups if group)
    return f"{program} " + " \\\n  ".join(lines) + "\n"
