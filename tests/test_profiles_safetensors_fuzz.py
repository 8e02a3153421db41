"""Mutated headers and indices: a profile, or one line; never another error."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import safetensors
from checkpoint_files import TINY, TINY_ITEMS, check, header_of, write_checkpoint, write_raw

from profiles import ProfileError
from profiles.safetensors.reader import read_safetensors

VALUES = (0, 1, -1, 2, 64, 2**31, 2**63, 2**64, 10**40, 1.5, "", "U8", "F4", "BF16", "x", None, True, [], {}, [0, 4])


def flip(rng: random.Random, raw: bytes) -> bytes:
    made = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(made))
        made[at] = rng.randrange(256) if rng.random() < 0.5 else made[at] ^ (1 << rng.randrange(8))
    return bytes(made)


def cut(rng: random.Random, raw: bytes) -> bytes:
    at = rng.randrange(len(raw))
    return raw[:at] if rng.random() < 0.5 else raw[:at] + raw[at + rng.randrange(1, 40) :]


def swap(rng: random.Random, header: dict[str, Any]) -> None:
    """One edit of the header's JSON."""
    name = rng.choice([name for name in header if name != "__metadata__"])
    kind = rng.randrange(6)
    if kind == 0:
        header[name][rng.choice(("dtype", "shape", "data_offsets", "more"))] = copy.deepcopy(rng.choice(VALUES))
    elif kind == 1:
        key = rng.choice(("shape", "data_offsets"))
        header[name][key][rng.randrange(len(header[name][key]))] = copy.deepcopy(rng.choice(VALUES))
    elif kind == 2:
        header[name] = copy.deepcopy(rng.choice(VALUES))
    elif kind == 3:
        del header[name]
    elif kind == 4:
        header[flip_text(rng, name)] = header.pop(name)
    else:
        header[rng.choice(("__metadata__", "", "model.layers.", name + ".x"))] = copy.deepcopy(rng.choice(VALUES))


def flip_text(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text))
    return text[:at] + rng.choice(("", ".", "9", "\ud800", "\0", "experts", "é", "..")) + text[at + rng.randrange(3) :]


def mutated(rng: random.Random) -> tuple[bytes, int, int | None]:
    """A header, the bytes after it and the length it claims, of which something is wrong (or, by luck, nothing)."""
    header, size = header_of(TINY_ITEMS)
    for _ in range(rng.choice((0, 1, 1, 2))):
        with contextlib.suppress(TypeError, IndexError, ValueError):  # an edit of what another one spoilt
            swap(rng, header)
    raw = json.dumps(header).encode()
    raw = rng.choice((flip, cut, lambda _, same: same))(rng, raw) if rng.random() < 0.6 else raw
    size += rng.choice((0, 0, 0, -1, 1, -size))
    length = rng.choice((None,) * 8 + (0, len(raw) - 1, len(raw) + 1, rng.getrandbits(64)))
    return raw, max(0, size), length


def problem_of(path: Path) -> str | None:
    """What ProfileError says about the checkpoint at `path`; None where a profile comes out. Anything else escapes."""
    try:
        check(read_safetensors(path, "m"), TINY_ITEMS)
    except ProfileError as problem:
        return str(problem)
    except AssertionError:  # read, but a mutation took or added bytes
        return None
    return None


@pytest.mark.parametrize("seed", range(4))
def test_mutated_headers_give_a_profile_or_one_line(seed: int, tmp_path: Path) -> None:
    """4 x 600 headers; whatever is read nevertheless is what the library reads too."""
    rng = random.Random(seed)
    path = write_checkpoint(tmp_path, TINY, TINY_ITEMS) / "model.safetensors"
    fine = 0
    for case in range(600):
        header, size, length = mutated(rng)
        write_raw(path, header, size, length=length)
        problem = problem_of(path)
        if problem is None:
            fine += 1
            with safetensors.safe_open(path, "numpy") as file:
                assert len(file.keys()) >= len(TINY_ITEMS) - 1, case
        else:
            assert problem.isprintable(), (case, problem)
            assert len(problem) < 400, (case, problem)
            assert path.name in problem or "layer" in problem or "head" in problem or "embedding" in problem, problem
    assert fine < 300


@pytest.mark.parametrize("seed", range(2))
def test_mutated_indices_give_a_profile_or_one_line(seed: int, tmp_path: Path) -> None:
    """2 x 300 indices."""
    rng = random.Random(seed)
    folder = write_checkpoint(tmp_path, TINY, TINY_ITEMS, 3)
    path = folder / "model.safetensors.index.json"
    text = path.read_bytes()
    for _ in range(300):
        path.write_bytes(rng.choice((flip, cut))(rng, text))
        problem = problem_of(folder) or "fine"
        assert problem.isprintable(), problem
        assert len(problem) < 400, problem
