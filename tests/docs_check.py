"""Documents keep their word: links lead somewhere, python blocks run, notebooks are stripped and run.

`python tests/docs_check.py` checks everything (`make check`); test_house_docs.py holds the pages with the same
functions. `python tests/docs_check.py --strip` empties the notebooks of output.

The python blocks of a page run from top to bottom as one script, in an empty folder. A line
`<!-- not run: why -->` right above a block leaves it out.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^(\s*)(`{3,}|~{3,})\s*(\w*)")
NOT_RUN = re.compile(r"^\s*<!-- not run: .+ -->\s*$")
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)|^\s*\[[^\]]+\]:\s*(\S+)|\b(?:src|href)=\"([^\"]+)\"")
ELSEWHERE = re.compile(r"^([a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)
EXAMPLE_SECONDS, CELL_SECONDS = 180, 180


def pages() -> list[Path]:
    """Every Markdown page of the project."""
    folders = (ROOT / name for name in ("docs", "benchmarks", "tests"))
    return sorted([*ROOT.glob("*.md"), *(page for folder in folders for page in folder.rglob("*.md"))])


def notebooks() -> list[Path]:
    return sorted(path for path in (ROOT / "docs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


def broken_links(page: Path) -> list[str]:
    """What is wrong with the page's links to files and headings of this project, one line each."""
    return [
        f"{_name(page)}:{number}: {target}: {reason}"
        for number, target in _links(page)
        if (reason := _broken(page, target)) is not None
    ]


def script(page: Path) -> str:
    """The page's python blocks as one script in which every line keeps its number; empty if there are none."""
    lines = page.read_text(encoding="utf-8").splitlines()
    kept = {number: text for number, text, language, run in _lines(lines) if language in ("python", "py") and run}
    return "\n".join(kept.get(number, "") for number in range(1, max(kept) + 1)) + "\n" if kept else ""


def failed_examples(page: Path) -> list[str]:
    """Run the page's python blocks; what they say if they fail."""
    source = script(page)
    if not source:
        return []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "script" / page.name  # the traceback then names the page and the line in it
        file.parent.mkdir()
        file.write_text(source, encoding="utf-8")
        try:
            done = subprocess.run(
                [sys.executable, str(file)],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=EXAMPLE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return [f"{_name(page)}: its examples took over {EXAMPLE_SECONDS} s"]
    return [] if done.returncode == 0 else [f"{_name(page)}: an example fails\n{done.stderr.strip()}"]


def notebook_output(path: Path) -> list[str]:
    """Cells that were saved with what they printed: that belongs in no repository."""
    cells = enumerate(nbformat.read(path, as_version=4).cells, start=1)
    return [
        f"{_name(path)}: cell {number} holds output; run python tests/docs_check.py --strip"
        for number, cell in cells
        if cell.cell_type == "code" and (cell.outputs or cell.execution_count is not None)
    ]


def failed_notebook(path: Path) -> list[str]:
    """Run the notebook in an empty folder; what it says if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        resources: dict[str, Any] = {"metadata": {"path": folder}}
        notebook = nbformat.read(path, as_version=4)
        try:
            client = NotebookClient(notebook, timeout=CELL_SECONDS, kernel_name="python3", resources=resources)
            client.extra_arguments = ["--log-level=ERROR"]  # its warnings are about ports, not about the notebook
            client.execute()
        except (CellExecutionError, CellTimeoutError) as problem:
            return [f"{_name(path)}: {problem}"]
    return []


def strip(path: Path) -> None:
    """Empty the notebook of output, in place."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, path)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def _lines(lines: list[str]) -> Iterator[tuple[int, str, str | None, bool]]:
    """(number, text, language, run) of each line: language is None for prose, "" for a plain block; no fences."""
    fence, indent, language, run, before = "", 0, "", True, ""
    for number, line in enumerate(lines, start=1):
        mark = FENCE.match(line)
        if not fence and mark:
            fence, indent, language, run = mark[2], len(mark[1]), mark[3], not NOT_RUN.match(before)
        elif fence and mark and mark[2].startswith(fence) and line.strip() == mark[2]:
            fence = ""
        elif fence:
            yield number, line[min(indent, len(line) - len(line.lstrip())) :], language, run
        else:
            yield number, line, None, False
        before = line if line.strip() else before


def _prose(page: Path) -> Iterator[tuple[int, str]]:
    lines = page.read_text(encoding="utf-8").splitlines()
    return ((number, text) for number, text, language, _ in _lines(lines) if language is None)


def _links(page: Path) -> Iterator[tuple[int, str]]:
    for number, text in _prose(page):
        for found in LINK.finditer(re.sub(r"`[^`]*`", "`", text)):
            target = found[1] or found[2] or found[3]
            if not ELSEWHERE.match(target):
                yield number, target


def _broken(page: Path, target: str) -> str | None:
    path, _, heading = target.partition("#")
    file = (page.parent / unquote(path)).resolve() if path else page
    if not file.is_relative_to(ROOT) and not file.is_relative_to(page.parent):
        return "leads out of the project"
    if not file.exists():
        return "no such file"
    if heading and file.suffix == ".md" and unquote(heading) not in _headings(file):
        return "no such heading"
    return None


def _headings(page: Path) -> set[str]:
    """The anchors that a Markdown viewer gives the page's headings."""
    anchors: set[str] = set()
    for _, text in _prose(page):
        if heading := re.match(r"#{1,6}\s+(.*?)\s*#*$", text):
            words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            anchor = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            again = (f"{anchor}-{n}" for n in range(1, 100))
            anchors.add(anchor if anchor not in anchors else next(name for name in again if name not in anchors))
    return anchors


def main() -> int:
    if "--strip" in sys.argv[1:]:
        for path in notebooks():
            strip(path)
        return 0
    problems: list[str] = []
    for page in pages():
        problems += broken_links(page) + failed_examples(page)
    for path in notebooks():
        problems += notebook_output(path) + failed_notebook(path)
    for problem in problems:
        print(problem, file=sys.stderr)
    examples = sum(bool(script(page)) for page in pages())
    print(f"docs: {len(pages())} pages ({examples} with examples), {len(notebooks())} notebooks", end="")
    print(f", {len(problems)} problems" if problems else ", fine")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
