"""Makes the pictures in docs/images that docs/looking.md shows: `python tests/page_pictures.py [folder]`."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import browser as chrome
from PIL import Image

from moeplan import plots, solve, what_if
from moeplan.explorer import write_explorer
from moeplan.report import write_report

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
WINDOWS = {
    "report": ("report", {"high": 1130}),
    "report_dark": ("report", {"high": 900, "dark": True}),
    "explorer": ("explorer", {"high": 1000}),
    "explorer_phone": ("explorer", {"wide": 390, "high": 1400}),
}


def main(folder: Path) -> None:
    plan = solve("deepseek-v2-measured", "7xL40-46GB")
    table = what_if(
        "qwen3-235b-a22b", "1xRTX4090,cpu=EPYC-9654,ram=64GB", gpus=range(1, 13), context=[4096, 32768],
        quant=["q4_k_m", "q8_0"], target="llama.cpp", relative_gap=0.01,
    )  # fmt: skip
    for name, chart in {
        "layer_map": plots.layer_map(plan),
        "breakdown": plots.breakdown(plan),
        "speed": plots.speed(table),
        "frontier": plots.frontier(table),
    }.items():
        chart.savefig(folder / f"{name}.png", dpi=80)
    with tempfile.TemporaryDirectory() as pages, chrome.chromium() as browser:
        files = {name: Path(pages) / f"{name}.html" for name in ("report", "explorer")}
        write_report(plan, files["report"])
        write_explorer(table, files["explorer"])
        for name, (page, window) in WINDOWS.items():
            chrome.show(browser, files[page], **window)
            shot = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
            shot.quantize(128).save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
