"""README and documents: pages that can be scanned, links that lead somewhere, and code that runs as written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from run_fixtures import ROOT, environment

PAGES = [ROOT / "README.md", ROOT / "checkpoints" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LONGEST = 100  # characters of a line of prose
LONGEST_SUMMARY = 8  # lines

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def prose(page: Path) -> list[tuple[int, str]]:
    """The lines of a page that are neither code, table nor picture, with their numbers."""
    lines, code = [], False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            code = not code
        elif not code and not line.startswith(("|", "!", "    ")):
            lines.append((number, line))
    return lines


def anchors(page: Path) -> set[str]:
    """The names of a page's headings in links, as GitHub makes them."""
    headings = [line.lstrip("# ").lower() for _, line in prose(page) if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


@pages
def test_lines_of_prose_end_at_about_100_characters(page: Path) -> None:
    long = [f"{number}: {line}" for number, line in prose(page) if len(line) > LONGEST]
    assert not long, "\n".join(long)


@pages
def test_a_page_begins_with_a_summary_of_a_few_lines(page: Path) -> None:
    title, blank, *rest = page.read_text(encoding="utf-8").splitlines()
    summary = rest[: rest.index("")]
    assert title.startswith("# ") and blank == ""
    assert 1 <= len(summary) <= LONGEST_SUMMARY and not summary[0].startswith(("#", "|", "-", "```", "!"))


@pages
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [" ".join(link.split()) for link in re.findall(r"\]\(([^)]+)\)", text)]
    lost = []
    for link in links:
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert not lost


def test_the_python_of_the_readme_runs_as_written() -> None:
    found = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found
    for code in found:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environment(PYTHONPATH=str(ROOT)),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(r"cup-spin, the first 10 decisions: return \d\.\d\n", done.stdout)


def test_the_python_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """As a notebook of its blocks would: in one process, in an empty folder."""
    page = ROOT / "docs" / "python.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) > 5
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    agent, first, evaluated, *_, student = done.stdout.splitlines()
    assert agent.startswith("Agent(quickstart, 3 tasks; ") and student.startswith("Agent(pendulum-spin; ")
    assert first.startswith("20 decisions: return ") and evaluated.startswith("{'pendulum-spin': [")
    assert {path.name for path in tmp_path.iterdir()} == {
        "data",
        "runs",
        "agent",
        "evaluation.json",
        "copy.safetensors",
    }


def test_the_first_screen_of_the_readme() -> None:
    """Three lines, the picture, the two commands, a table."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = text.partition("\n## ")[0].split("\n\n")
    assert len(first) == 6 and len(first[1].splitlines()) == 3
    assert first[2].startswith("![") and first[3].startswith("```bash\nmake quickstart") and first[4].startswith("|")
    assert len(text.partition("\n## ")[0].splitlines()) <= 30
