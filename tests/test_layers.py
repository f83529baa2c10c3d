"""Imports point down: models <- fitting <- data <- estimators <- displays, and nothing imports datasets."""

import ast
import sys
from pathlib import Path

import pytest

import skvae

ROOT = Path(skvae.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))
LEVELS = {"_version": 0, "models": 0, "fitting": 1, "data": 2, "estimators": 3, "metrics": 3, "selection": 3}
LEVELS |= {"callbacks": 3, "displays": 4, "persistence": 4, "datasets": 4}
TOP = 5
LIBRARIES = {  # beside the standard library
    "models": {"torch"},
    "fitting": {"torch", "skorch", "tqdm"},
    "metrics": {"numpy", "scipy", "sklearn", "skimage"},
    "selection": {"numpy", "sklearn"},
    "callbacks": {"numpy", "torch", "sklearn", "skorch"},
}


def layer_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(path):
    """Layers of skvae and foreign libraries that a file imports."""
    layers, libraries = set(), set()
    package = path.relative_to(ROOT.parent).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = node.module.split(".") if node.module else []
            names = [base + module + [alias.name] for alias in node.names]
        else:
            continue
        for name in names:
            if name[0] == "skvae":
                layers.add(name[1])
            else:
                libraries.add(name[0])
    return layers, libraries


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    here = layer_of(path)
    layers, libraries = imports_of(path)
    above = {layer for layer in layers if LEVELS.get(layer, TOP) > LEVELS.get(here, TOP)}
    assert not above, f"{path.name} imports {above}: move the code, or the import, down a layer."
    assert "datasets" not in layers - {here}
    foreign = libraries - LIBRARIES.get(here, libraries) - set(sys.stdlib_module_names)
    assert not foreign, f"{path.name} imports {foreign}, which its layer should not know."


def test_the_walk_sees_imports():
    layers, libraries = imports_of(ROOT / "estimators" / "gmm.py")
    assert {"models", "fitting", "estimators"} <= layers
    assert {"numpy", "torch", "sklearn"} <= libraries


def test_public_names_exist():
    assert all(hasattr(skvae, name) for name in skvae.__all__)
