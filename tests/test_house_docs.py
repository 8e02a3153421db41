"""The documents' links lead somewhere and their examples run; the checker notices when they do not."""

from __future__ import annotations

from pathlib import Path

import docs_check
import nbformat
import pytest

PAGES = docs_check.pages()


def ids(page: Path) -> str:
    return page.relative_to(docs_check.ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    assert docs_check.broken_links(page) == []


@pytest.mark.parametrize("page", [page for page in PAGES if docs_check.script(page)], ids=ids)
def test_examples_run(page: Path) -> None:
    problems = docs_check.failed_examples(page)
    assert not problems, "\n".join(problems)


def test_notebooks_hold_no_output() -> None:
    assert [line for path in docs_check.notebooks() for line in docs_check.notebook_output(path)] == []


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_broken_links_are_found(tmp_path: Path) -> None:
    write(tmp_path / "there.md", "# A `small` Heading\n## Twice\n## Twice\n")
    good = "[a](there.md) [b](there.md#a-small-heading) [c](there.md#twice-1)\n[d](https://x.y/z) ![e](<there.md>)"
    code = "`[code](gone.md)`\n```text\n[block](gone.md)\n```\n"
    bad = '[g](gone.md)\n[h](there.md#gone)\n[i]: lost.md\n<img src="lost.png">\n[j](../../out.md)\n'
    page = write(tmp_path / "page.md", f"# Here\n{good} [f](#here)\n{code}{bad}")
    found = [line.split(": ", 1)[1] for line in docs_check.broken_links(page)]
    assert found == [
        "gone.md: no such file",
        "there.md#gone: no such heading",
        "lost.md: no such file",
        "lost.png: no such file",
        "../../out.md: leads out of the project",
    ]


def test_examples_share_names_and_failures_name_the_line(tmp_path: Path) -> None:
    first = "# P\n```python\nx = 1\n```\ntext\n- item\n  ```python\n  y = x + 1\n  ```\n"
    left_out = "<!-- not run: needs a GPU -->\n```python\nraise SystemExit(1)\n```\n```text\nnot python\n```\n"
    page = write(tmp_path / "page.md", first + left_out + "```python\nassert y == 2\n```\n")
    assert docs_check.failed_examples(page) == []
    page = write(tmp_path / "page.md", first + "```python\nassert y == 3\n```\n")
    (problem,) = docs_check.failed_examples(page)
    assert 'page.md", line 11' in problem


def test_notebooks_are_run_and_stripped(tmp_path: Path) -> None:
    path = tmp_path / "note.ipynb"
    cell = nbformat.v4.new_code_cell("1 / 0", outputs=[nbformat.v4.new_output("stream", text="hi")])
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Hi"), cell]), path)
    assert len(docs_check.notebook_output(path)) == 1
    docs_check.strip(path)
    assert docs_check.notebook_output(path) == []
    (problem,) = docs_check.failed_notebook(path)
    assert "ZeroDivisionError" in problem
