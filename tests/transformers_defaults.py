"""The declared defaults of transformers' config classes, for every family that is built in.

`python tests/transformers_defaults.py` writes profiles/data/transformers_defaults.json anew.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "profiles" / "data" / "transformers_defaults.json"
SHAPELESS = (
    *("initializer_range", "rope", "dropout", "token_id", "_coef", "_eps", "jitter", "max_position", "epsilon"),
    *("hidden_act", "use_cache", "_router_", "topk_prob"),
)
"""Parts of keys that no shape depends on."""


def read() -> dict[str, Any]:
    """version; known, every model_type; families: model_type -> its defaults and aliases. Of the installed library."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from profiles.hf_config.families import FAMILIES

    general = {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)} - {"tie_word_embeddings"}
    families = {}
    for family in sorted(FAMILIES):
        if family not in CONFIG_MAPPING:
            continue
        kind = CONFIG_MAPPING[family]
        found = {field.name: _default(field) for field in dataclasses.fields(kind) if field.name not in general}
        kept = {key: value for key, value in found.items() if _is_shape(key, value)}
        families[family] = {"defaults": kept, "aliases": dict(kind.attribute_map)}
    return {"version": transformers.__version__, "known": sorted(CONFIG_MAPPING.keys()), "families": families}


def _default(field: Any) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def _is_shape(key: str, value: Any) -> bool:
    plain = isinstance(value, (int, str)) or (
        isinstance(value, (list, tuple)) and all(isinstance(v, (int, str)) for v in value)
    )
    return plain and not any(part in key for part in SHAPELESS)


def text(data: dict[str, Any]) -> str:
    """One line a family, so that a change reads well."""
    lines = [f"    {json.dumps(family)}: {json.dumps(values)}" for family, values in data["families"].items()]
    head = f'  "version": {json.dumps(data["version"])},\n  "known": {json.dumps(data["known"])},\n'
    return "{\n" + head + '  "families": {\n' + ",\n".join(lines) + "\n  }\n}\n"


if __name__ == "__main__":
    DATA.write_text(text(read()), encoding="utf-8")
