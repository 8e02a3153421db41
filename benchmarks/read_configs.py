"""Claim: a config.json of any family that is built in is read in under 0.2 s and 150 MiB, without torch.

Each file is read in a process of its own in which torch cannot be imported: seconds of `load_profile`, seconds of the
whole process (Python's start and imports with it) and its largest memory. With `--before COMMIT` that commit reads the
same files too, with torch, in turn with this one, and the ratio is printed.

Run: python benchmarks/read_configs.py FOLDER [--before d107504] [--only NAME …] [--rounds 3]
FOLDER has a folder with a config.json for each checkpoint.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
MEASURE = """
import sys, time
if sys.argv[2] == "without torch":
    sys.modules["torch"] = None
from pathlib import Path
from profiles import load_profile
start = time.perf_counter()
load_profile(sys.argv[1], quant=sys.argv[3] or None)
seconds = time.perf_counter() - start
status = Path("/proc/self/status").read_text().splitlines()
print(seconds, next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


@dataclass(frozen=True)
class Reading:
    """Seconds of `load_profile` and of the process, and its largest memory."""

    seconds: float
    process_s: float
    peak_mib: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--before", metavar="COMMIT")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    configs = [path for path in sorted(asked.folder.glob("*/config.json")) if _is_asked(path, asked.only)]
    print(f"{platform.machine()}, Python {platform.python_version()}, {len(configs)} files, {asked.rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        before = _checkout(asked.before, Path(folder)) if asked.before else None
        rows = [_row(path, asked.rounds, before) for path in configs]
    read = [row for row in rows if row is not None]
    if read:
        print(f"{len(read)} of {len(configs)} read; median {statistics.median(r.seconds for r in read):.3f} s,")
        print(f"process {statistics.median(r.process_s for r in read):.2f} s,", end=" ")
        print(f"{statistics.median(r.peak_mib for r in read):.0f} MiB (most {max(r.peak_mib for r in read):.0f})")


def _is_asked(path: Path, only: list[str]) -> bool:
    return not only or any(name.lower() in path.parent.name.lower() for name in only)


def _checkout(commit: str, folder: Path) -> Path:
    """The tree of `commit`, below `folder`."""
    archive = subprocess.run(["git", "archive", commit], cwd=HERE, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x"], cwd=folder, input=archive, check=True)
    return folder


def _row(path: Path, rounds: int, before: Path | None) -> Reading | None:
    name = path.parent.name
    ours: list[Reading] = []
    theirs: list[Reading] = []
    for _ in range(rounds):
        reading = _read(HERE, path, torch=False)
        if isinstance(reading, str):
            print(f"{name:62} refused: {reading}")
            return None
        ours.append(reading)
        if before is not None:
            earlier = _read(before, path, torch=True)
            theirs += [earlier] if isinstance(earlier, Reading) else []
    best = Reading(*(statistics.median(getattr(r, key) for r in ours) for key in Reading.__annotations__))
    line = f"{name:62} {best.seconds:6.3f} s  process {best.process_s:5.2f} s  {best.peak_mib:4.0f} MiB"
    if theirs:
        ratios = [their.seconds / our.seconds for their, our in zip(theirs, ours, strict=False)]
        line += (
            f"   before {statistics.median(t.seconds for t in theirs):6.2f} s: {statistics.median(ratios):5.0f} times"
        )
    elif before is not None:
        line += "   before: refused"
    print(line)
    return best


def _read(tree: Path, path: Path, *, torch: bool) -> Reading | str:
    """One reading in a process of its own; the last line of its error where it failed."""
    words = [sys.executable, "-c", MEASURE, str(path.absolute()), "with torch" if torch else "without torch"]
    start = time.perf_counter()
    done = subprocess.run([*words, "bf16" if torch else ""], cwd=tree, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    own, peak = done.stdout.split()
    return Reading(float(own), seconds, int(peak) / 1024)


if __name__ == "__main__":
    main()
