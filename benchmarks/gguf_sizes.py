"""Claim: a GGUF file that nobody has downloaded is predicted from config.json to within 0.25 % of its published size.

Prints every published size of tests/published_gguf_sizes.yaml beside the prediction and, with --write, puts the table
into docs/quantisation.md. Run: python benchmarks/gguf_sizes.py [--write]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from profiles import load_profile

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "quantisation.md"
BEGIN, END = "<!-- sizes: begin -->", "<!-- sizes: end -->"
LIMIT = 0.0025


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"update the table in {PAGE.relative_to(ROOT)}")
    write = parser.parse_args().write
    entries = yaml.safe_load((ROOT / "tests" / "published_gguf_sizes.yaml").read_text(encoding="utf-8"))["sizes"]
    lines = ["| model | type | published | predicted | off by |", "|---|---|--:|--:|--:|"]
    close = 0
    standard = [entry for entry in entries if not entry.get("own_mix")]
    for entry in standard:
        predicted = load_profile(entry["preset"], entry["quant"]).file_bytes
        off = predicted / entry["bytes"] - 1
        close += abs(off) <= LIMIT
        lines.append(f"| {entry['file']} | {entry['quant']} | {entry['bytes']:,} | {predicted:,} | {off:+.3%} |")
    summary = f"{close} of {len(standard)} within {LIMIT:.2%}."
    print("\n".join([*lines, "", summary]))
    if write:
        text = PAGE.read_text(encoding="utf-8")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        PAGE.write_text("\n".join([before + BEGIN, *lines, "", summary, END + after]), encoding="utf-8")


if __name__ == "__main__":
    main()
