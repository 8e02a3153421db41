"""Writes docs/models.md: what is read of real checkpoints' config files, and what the presets are.

Run: python benchmarks/models_table.py FOLDER, which has a folder with a config.json (and what lies beside it) for each
checkpoint. Nothing but those files is read; torch cannot be imported meanwhile.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from profiles import ModelProfile, ProfileError, load_profile, profile_presets

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
HEAD = """# Models

What `load_profile` makes of the config files of {count} checkpoints of 2024 to autumn 2026, without torch, and of the
presets that come with moeplan. Parameters are those of the text model, without multi-token prediction; *active* counts
for every layer the experts that one token uses. Weights are as stored, block by block; what a runtime makes of them
after loading may differ ([quantisation.md](quantisation.md)). Written by `python benchmarks/models_table.py FOLDER`.

## Checkpoints

| checkpoint | parameters | active | format | weights | MTP |
|---|--:|--:|---|--:|--:|
"""
PRESETS = """
## Presets

Names for `load_profile` and the command line (`moeplan models` lists them with their repositories).

| preset | parameters | active | format | weights |
|---|--:|--:|---|--:|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    sys.modules["torch"] = None  # type: ignore[assignment]
    folders = sorted(path.parent for path in parser.parse_args().folder.glob("*/config.json"))
    rows, refused = [], []
    for folder in folders:
        name = folder.name.replace("--", "/")
        try:
            profile = load_profile(folder)
        except ProfileError as problem:
            refused.append(f"- {name}: {str(problem).removeprefix(f'{folder}/config.json: ')}")
            continue
        mtp = f"{profile.mtp.weight_bytes.gpu / 1e9:.1f} GB" if profile.mtp else ""
        rows.append(f"| {name} | {_figures(profile)} | {mtp} |")
    text = HEAD.format(count=len(folders)) + "\n".join(rows) + "\n"
    if refused:
        text += "\nRefused, each with the line that is printed:\n\n" + "\n".join(refused) + "\n"
    text += PRESETS + "\n".join(f"| {name} | {_figures(load_profile(name))} |" for name in profile_presets()) + "\n"
    PAGE.write_text(text, encoding="utf-8")
    print(f"{PAGE}: {len(rows)} of {len(folders)} read, {len(refused)} refused, {len(profile_presets())} presets")


def _figures(profile: ModelProfile) -> str:
    """Parameters, active ones, format and bytes, as cells."""
    counts = " | ".join(f"{n / 1e9:.2f} B" if n else "-" for n in (profile.params, profile.active_params))
    return f"{counts} | {profile.quant} | {profile.weight_bytes / 1e9:.1f} GB"


if __name__ == "__main__":
    main()
