"""Code of the documentation runs."""

import importlib.util
import re
from pathlib import Path
from unittest import mock

import pytest

import skvae
from skvae.estimators import ESTIMATORS

ROOT = Path(__file__).parents[1]
PAGES = [
    path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if "```python\n" in path.read_text()
]


def blocks(path):
    """Return the code blocks of a page."""
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


@pytest.mark.first
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_code_of_a_page_runs(path, tmp_path, monkeypatch):
    """Run the blocks in one namespace and an empty folder; estimators that a page registers are removed again."""
    monkeypatch.chdir(tmp_path)
    namespace = {}
    with mock.patch.dict(ESTIMATORS):
        for block in blocks(path):
            exec(compile(block, path.name, "exec"), namespace)


def test_there_are_pages():
    assert {"README.md", "mixtures.md"} <= {path.name for path in PAGES}


def test_links_lead_somewhere():
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}, which is not there."


def test_code_of_others_is_python():
    """Blocks that show other packages do not run, but can be parsed."""
    for page in sorted((ROOT / "docs").glob("*.md")):
        for block in re.findall(r"```py\n(.*?)```", page.read_text(), re.DOTALL):
            compile(block, page.name, "exec")


def test_design_names_every_module():
    tree = (ROOT / "docs" / "design.md").read_text().split("```")[1]
    modules = {path.stem for path in (ROOT / "skvae").rglob("*.py")} - {"__init__", "_version"}
    assert set(re.findall(r"(\w+)\.py\b", tree)) == modules


def test_design_names_the_modules_of_each_folder():
    tree = (ROOT / "docs" / "design.md").read_text().split("```")[1]
    for folder, lines in re.findall(r"^  (\w+)/.*\n((?:    .*\n)+)", tree, re.MULTILINE):
        modules = {path.stem for path in (ROOT / "skvae" / folder).glob("*.py")} - {"__init__"}
        assert set(re.findall(r"(\w+)\.py\b", lines)) == modules, folder


def test_every_public_name_is_on_the_page_of_the_api():
    """Names by module, as directives of Sphinx list them."""
    listed, module = set(), ""
    for line in (ROOT / "docs" / "api.md").read_text().splitlines():
        if match := re.fullmatch(r"\.\. currentmodule:: (\S+)", line):
            module = match[1]
        elif match := re.fullmatch(r"(?:\.\. py:data::|  ) (\w\S*)", line):
            name = match[1]
            listed.add(name if name.startswith("skvae.") else f"{module}.{name}")
    modules = [importlib.import_module(f"skvae.{name}") for name in (*skvae._MODULES, "models")]
    public = {f"{module.__name__}.{name}" for module in (skvae, *modules) for name in module.__all__}
    # What the package itself offers is listed there.
    reexported = {f"{module.__name__}.{name}" for module in modules for name in module.__all__ if name in skvae.__all__}
    assert listed == public - reexported


def script(name):
    """Import a script of the documentation."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_chart_of_estimators_is_up_to_date():
    draw_chart = script("draw_chart")
    assert (ROOT / "docs" / "images" / "choosing.svg").read_text() == "\n".join(draw_chart.chart()) + "\n"
    assert {name for _, _, answers in draw_chart.TASKS for _, _, name in answers} == set(ESTIMATORS)


def test_broken_links_of_a_built_site_are_found(tmp_path):
    """Run the script that checks the built site on two small pages."""
    check_links = script("check_links")
    (tmp_path / "a.html").write_text(
        '<h1 id="top-of-a">A</h1><a href="b.html#here">b</a><a href="https://other.org">o</a>'
    )
    (tmp_path / "b.html").write_text('<p id="here"></p><img src="a.html">')
    assert check_links.broken_links(tmp_path) == []
    (tmp_path / "b.html").write_text(
        '<a href="c.html">c</a><a href="a.html#x">a</a><script src="https://cdn.org/m.js">'
    )
    problems = "\n".join(check_links.broken_links(tmp_path))
    assert len(problems.splitlines()) == 4
    for problem in ("b.html#here has no such", "c.html is not", "a.html#x has no such", "loads https://cdn.org/m.js"):
        assert problem in problems
