"""Docstrings document the parameters of signatures, and their first lines stand alone."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import skvae

ROOT = Path(skvae.__file__).parent
MODULES = sorted(".".join(path.relative_to(ROOT.parent).with_suffix("").parts) for path in ROOT.rglob("*.py"))
DOCUMENTED = (ast.FunctionDef, ast.ClassDef, ast.Module)
SECTION = re.compile(r"^Parameters\n-+\n(.*?)(?=^\S[^\n]*\n-+$|\Z)", re.DOTALL | re.MULTILINE)


def documented_parameters(docstring):
    """Return the names in the section "Parameters" of a docstring, None without the section."""
    section = SECTION.search(inspect.cleandoc(docstring or ""))
    if section is None:
        return None
    lines = [line.split(" : ")[0] for line in section[1].splitlines() if re.match(r"\S", line)]
    return [name.strip().lstrip("*") for line in lines for name in line.split(",")]


def mismatch(function):
    """Return how the documented parameters of a function or class differ from its signature, None if they agree."""
    documented = documented_parameters(vars(function).get("__doc__") or function.__doc__)
    if documented is None:
        return None
    parameters = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]
    name = f"{function.__module__}.{function.__qualname__}"
    return None if documented == parameters else f"{name} documents {documented}, but has the parameters {parameters}."


def functions_of(module):
    """Yield the functions and classes of a module, and the methods of its classes."""
    for value in vars(module).values():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            yield value
        for member in vars(value).values() if inspect.isclass(value) else ():
            function = inspect.unwrap(getattr(member, "__func__", member))
            if inspect.isfunction(function):
                yield function


def bad_first_lines(source):
    """Return the first lines of docstrings that do not stand alone as a sentence of one line."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, DOCUMENTED)]
    docstrings = [docstring.splitlines() for docstring in map(ast.get_docstring, nodes) if docstring]
    return [
        first
        for first, *rest in docstrings
        if first.startswith("What") or not first.endswith(".") or "".join(rest[:1]).strip()
    ]


@pytest.mark.parametrize("name", MODULES)
def test_documented_parameters_are_those_of_the_signature(name):
    functions = functions_of(importlib.import_module(name.removesuffix(".__init__")))
    assert [message for message in map(mismatch, functions) if message] == []


@pytest.mark.parametrize("name", MODULES)
def test_first_lines_stand_alone(name):
    assert bad_first_lines((ROOT.parent / name.replace(".", "/")).with_suffix(".py").read_text()) == []


class Misnamed:
    """A class.

    Parameters
    ----------
    alpha, beta : float
        Two numbers.
    **settings : dict
    """

    def __init__(self, alpha, gamma, **settings):
        pass

    def call(self, a, *rest):
        """Call it.

        Parameters
        ----------
        a : str
            A text: of two lines,

            and a paragraph.
        *rest : float

        Returns
        -------
        b : str
        """

    @staticmethod
    def swap(a, b):
        """Swap them.

        Parameters
        ----------
        b : str
        a : str
        """

    def undocumented(self, a):
        """Call it without a section."""


def test_the_checker_sees_misnamed_parameters():
    assert "documents ['alpha', 'beta', 'settings'], but has the parameters ['alpha', 'gamma'" in mismatch(Misnamed)
    assert mismatch(Misnamed.call) is None
    assert mismatch(Misnamed.undocumented) is None
    assert "documents ['b', 'a']" in mismatch(Misnamed.swap)


def test_the_walk_sees_functions_and_methods():
    names = {function.__qualname__ for function in functions_of(importlib.import_module("skvae.estimators.gmm"))}
    assert {"TorchGMM", "TorchGMM.fit", "TorchGMM.sample"} <= names
    assert documented_parameters(skvae.TorchGMM.__doc__)[:2] == ["n_components", "covariance_type"]


def test_the_checker_sees_first_lines():
    lines = ["What it is.", "A line without a period", "A sentence of\n    two lines."]
    source = "\n".join(f'def f{i}():\n    """{line}"""' for i, line in enumerate([*lines, "Return it.\n\n    More."]))
    assert bad_first_lines(source) == [line.splitlines()[0] for line in lines]
