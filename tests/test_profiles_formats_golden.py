"""What config.json says beside what is in the file: tiny checkpoints written by the formats' own libraries.

tests/golden/formats holds their config.json and headers; `make.py` there wrote them and says with which versions.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from profiles.hf_config.reader import read_hf_config
from profiles.model import ModelProfile
from profiles.safetensors.header import DTYPE_BITS
from profiles.safetensors.names import home_of

FOLDER = Path(__file__).parent / "golden" / "formats"
GOLDEN = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}
MOST_OFF = {"bnb_nf4_double": 4}
"""Bytes a matrix may be off by: bitsandbytes writes a number with as many digits as it takes."""


def read(golden: dict[str, Any]) -> ModelProfile:
    return read_hf_config(golden["config"], "golden", beside=golden["beside"].get)


def in_file(golden: dict[str, Any]) -> Counter[tuple[str, int]]:
    """(block, layer) -> bytes of the tensors in the file."""
    sums: Counter[tuple[str, int]] = Counter()
    for name, (dtype, shape) in golden["tensors"].items():
        n_bytes = DTYPE_BITS[dtype] // 8
        for size in shape:
            n_bytes *= size
        home = home_of(name)
        part = {"layer": "attention", "lm_head": "head"}.get(home.part, home.part)
        assert part in ("attention", "experts", "embedding", "head"), name
        sums[part, home.layer] += n_bytes
    return sums


@pytest.mark.parametrize("name", GOLDEN)
def test_config_says_what_is_in_the_file(name: str) -> None:
    golden = GOLDEN[name]
    profile, sums = read(golden), in_file(golden)
    found = {("embedding", -1): profile.embedding.weight_bytes.gpu, ("head", -1): profile.head.weight_bytes.gpu}
    for index, layer in enumerate(profile.layers):
        found["attention", index] = layer.attention.weight_bytes.gpu
        if layer.experts:
            found["experts", index] = layer.experts.weight_bytes.gpu
    off = {block: (n_bytes, sums[block]) for block, n_bytes in found.items() if n_bytes != sums[block]}
    most = 8 * MOST_OFF.get(name, 0)
    assert not {block: pair for block, pair in off.items() if abs(pair[0] - pair[1]) > most}, golden["by"]
    assert profile.packed_by


def test_libraries_and_variants_are_many() -> None:
    libraries = {golden["by"].split(" ")[0] for golden in GOLDEN.values()}
    assert len(GOLDEN) >= 25, sorted(GOLDEN)
    assert libraries >= {"compressed-tensors", "modelopt", "gptqmodel", "autoawq", "mlx-lm", "transformers"}
