"""Imports point down: models <- fitting <- data <- estimators <- displays; private modules stay in their package."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import skvae

ROOT = Path(skvae.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))
LEVELS = {"_version": 0, "models": 0, "fitting": 1, "data": 2, "estimators": 3, "metrics": 3, "selection": 3}
LEVELS |= {"callbacks": 3, "displays": 4, "persistence": 4, "datasets": 4}
TOP = 5
LIBRARIES = {  # besides the standard library
    "models": {"torch"},
    "fitting": {"torch", "scipy", "skorch", "tqdm"},
    "metrics": {"numpy", "scipy", "sklearn", "skimage"},
    "selection": {"numpy", "sklearn"},
    "callbacks": {"numpy", "torch", "sklearn", "skorch"},
}


def layer_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(path):
    """Return the modules of skvae, and the other libraries, that a file imports, as tuples and names."""
    modules, libraries = set(), set()
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
                modules.add(tuple(name))
            else:
                libraries.add(name[0])
    return modules, libraries


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    here = layer_of(path)
    modules, libraries = imports_of(path)
    layers = {module[1] for module in modules}
    above = {layer for layer in layers if LEVELS.get(layer, TOP) > LEVELS.get(here, TOP)}
    assert not above, f"{path.name} imports {above}: move the code, or the import, down a layer."
    assert "datasets" not in layers - {here}
    foreign = libraries - LIBRARIES.get(here, libraries) - set(sys.stdlib_module_names)
    assert not foreign, f"{path.name} imports {foreign}, which its layer should not know."


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_modules_are_imported_in_their_package_alone(path):
    package = path.relative_to(ROOT.parent).parts[:-1]
    modules = {module if is_file(module) else module[:-1] for module in imports_of(path)[0]}
    foreign = {module for module in modules if not is_within(package, module)}
    assert not foreign, f"{path.name} imports {foreign}: make the module public, or move the code."


def is_file(module):
    """Return whether an imported name is a module, not one of its members."""
    return ROOT.parent.joinpath(*module).with_suffix(".py").is_file()


def is_within(package, module):
    """Return whether a module is public, or its first private part lies in the package."""
    first = next((i for i, part in enumerate(module) if re.match("_[^_]", part)), 0)
    return package[:first] == module[:first]


def test_the_checker_sees_private_modules():
    assert is_file(("skvae", "estimators", "gmm"))
    assert not is_file(("skvae", "estimators", "gmm", "TorchGMM"))
    assert is_within(("skvae", "estimators"), ("skvae", "estimators", "_base"))
    assert not is_within(("skvae", "displays"), ("skvae", "estimators", "_base"))
    assert is_within(("skvae", "displays"), ("skvae", "_version"))
    assert is_within(("skvae", "displays"), ("skvae", "estimators", "gmm"))


def test_the_checker_sees_imports():
    modules, libraries = imports_of(ROOT / "estimators" / "gmm.py")
    assert {"models", "fitting", "estimators"} <= {module[1] for module in modules}
    assert {"numpy", "torch", "sklearn"} <= libraries


def test_public_names_exist():
    assert all(hasattr(skvae, name) for name in skvae.__all__)


@pytest.mark.first
def test_names_and_libraries_are_imported_when_they_are_used():
    code = """
import sys
import skvae
assert not {"torch", "sklearn", "skvae.estimators"} & set(sys.modules), "import skvae takes seconds"
assert skvae.VAEEmbedder.__name__ == "VAEEmbedder" and skvae.load.__name__ == "load"
assert skvae.metrics.__name__ == "skvae.metrics"
assert {"VAEEmbedder", "save", "metrics", "__version__"} <= set(dir(skvae))
from skvae import *
assert TorchGMM is skvae.TorchGMM
sys.modules["matplotlib"] = None  # which plots alone need
import numpy as np
import skvae.displays
from skvae.selection import select_mixture
X = np.random.default_rng(0).normal(size=(30, 2))
assert select_mixture(TorchGMM(random_state=0), X, n_components=[1]).best_params_["n_components"] == 1
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="module 'skvae' has no attribute 'nothing'"):
        _ = skvae.nothing
