"""Settings of all tests, and fixtures."""

import os

os.environ["SCIPY_ARRAY_API"] = "1"  # before scikit-learn is imported, which otherwise skips its array API checks
if "PYTEST_XDIST_WORKER" in os.environ:  # each has a core
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import numpy as np
import pytest
import scipy
import torch
from hypothesis import settings
from sklearn.datasets import make_blobs
from sklearn.utils.fixes import parse_version
from standin import TOO_OLD, accelerator
from threadpoolctl import threadpool_limits

from skvae.persistence.onnx import OLDEST_TORCH

if "PYTEST_XDIST_WORKER" in os.environ:  # plugins may have imported NumPy before
    threadpool_limits(int(os.environ["OMP_NUM_THREADS"]))

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
pytest.register_assert_rewrite("helpers")

OLD_TORCH = torch.__version__ < OLDEST_TORCH
OLD_SCIPY = parse_version(scipy.__version__) < parse_version("1.14")
NEED_MORE = {  # parts of names of tests that need more than the package does -> why they cannot run, or None
    ("test_onnx.py", "onnx.to_onnx", "[saving.md"): "to_onnx needs a newer torch" if OLD_TORCH else None,
    ("[data.md",): "scikit-learn does not work on tensors with this SciPy" if OLD_SCIPY else None,
}


def pytest_collection_modifyitems(items):
    """Skip the tests that cannot run with the oldest versions, and begin with those that are marked."""
    items.sort(key=lambda item: item.get_closest_marker("first") is None)
    for item in items:
        for parts, reason in NEED_MORE.items():
            if reason and any(part in item.nodeid for part in parts) and "too_old" not in item.nodeid:
                item.add_marker(pytest.mark.skip(reason=reason))


def is_available(name):
    """Return whether this machine has an accelerator."""
    return torch.cuda.is_available() if name == "cuda" else torch.backends.mps.is_available()


@pytest.fixture(params=["cuda", "mps", "cuda (stand-in)", "mps (stand-in)"])
def device(request):
    """Name of an accelerator, real or simulated."""
    name, is_real = request.param.split()[0], "(" not in request.param
    if is_real != is_available(name):
        pytest.skip(f"There is no {name} device." if is_real else f"This machine has {name} itself.")
    if is_real:
        yield name
        return
    if TOO_OLD:
        pytest.skip(TOO_OLD)
    with accelerator(name):
        yield name


@pytest.fixture
def is_real(request):
    """Return whether the device is real, so that its random numbers differ from those of the CPU."""
    return "(" not in request.node.callspec.params["device"]


@pytest.fixture
def short_embedding(monkeypatch):
    """Take a few of the steps that most of the time of a short fit of VaDE goes to, where its result is not judged."""
    monkeypatch.setattr("skvae.fitting.neighbors.EMBEDDING_STEPS", 20)


@pytest.fixture
def whole_embedding(short_embedding, monkeypatch):
    """Take all steps, for a test in a module whose other tests take few."""
    monkeypatch.undo()


@pytest.fixture
def generator():
    """A generator of torch with seed 0."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def blobs():
    """Three well separated clusters and their labels."""
    return make_blobs(n_samples=300, centers=3, n_features=4, cluster_std=0.7, random_state=1)


@pytest.fixture
def few_blobs(blobs):
    """Every other sample of the clusters."""
    return blobs[0][::2], blobs[1][::2]


@pytest.fixture
def correlated():
    """Samples of a mixture of three correlated Gaussians, overlapping, far from the origin."""
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(200, 3)) @ rng.normal(size=(3, 3)) + 4 * rng.normal(size=3) for _ in range(3)]
    return np.concatenate(parts) + 10
