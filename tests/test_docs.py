"""The Python of the documentation runs as it stands there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if "```python\n" in path.read_text()
]


def blocks(path):
    """Code blocks of a page."""
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_code_of_a_page_runs(path, tmp_path, monkeypatch):
    """One block after another, in one namespace, elsewhere."""
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in blocks(path):
        exec(compile(block, path.name, "exec"), namespace)


def test_there_are_pages():
    assert {"README.md", "mixtures.md"} <= {path.name for path in PAGES}


def test_links_lead_somewhere():
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}, which is not there."
