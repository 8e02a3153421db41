"""exl3 (exllamav3): a whole number of bits for each matrix, of which config.json has the mean only.

`quantization_config.json` beside it lists every matrix with its bits, so bytes are exact where that file is there.
Facts from public readers of such files: `tensor_storage.*.{quant_format, bits_per_weight, stored_tensors}`.
"""

from __future__ import annotations

from profiles.errors import ProfileError
from profiles.formats.methods.method import Method, named
from profiles.formats.module import Module, Rules
from profiles.formats.schemes import Scheme
from profiles.formats.settings import REMEDY, TENSOR_LIST_FILE, Settings


def _rules(settings: Settings) -> Rules:
    listed = settings.beside(TENSOR_LIST_FILE)
    storage = listed.get("tensor_storage") if listed is not None else None
    if not isinstance(storage, dict) or not storage:
        problem = f"names a mean of bits; what each matrix has is in {TENSOR_LIST_FILE}, which is not there"
        raise ProfileError(f"{settings.where} {problem}; put it beside config.json, or {REMEDY}")
    sizes = {name: _bytes(name, entry) for name, entry in storage.items()}
    fixed = {name: _fixed(n_bytes) for name, n_bytes in sizes.items()}

    def scheme_of(module: Module) -> Scheme | None:
        return next((fixed[name] for name in module.names if name in fixed), None)

    return Rules(scheme_of, one_by_one=True)


def _fixed(n_bytes: int) -> Scheme:
    return Scheme("exl3", lambda o, i: n_bytes)


def _bytes(name: str, entry: object) -> int:
    stored = entry.get("stored_tensors") if isinstance(entry, dict) else None
    listed = (
        [one.get("n_bytes") for one in stored.values() if isinstance(one, dict)] if isinstance(stored, dict) else []
    )
    sizes: list[int] = [size for size in listed if type(size) is int and 0 <= size < 2**50]
    if not sizes or len(sizes) < len(listed):
        raise ProfileError(f"{TENSOR_LIST_FILE}: tensor_storage of {name[:80]!r} has no n_bytes; {REMEDY}")
    return sum(sizes)


METHOD = Method("exl3", named("exl3"), _rules)
