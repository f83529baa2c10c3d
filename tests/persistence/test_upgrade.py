"""Models that version 0.1.0 saved load, and give the results that they gave then."""

from pathlib import Path

import numpy as np
import pytest

import skvae

FOLDER = Path(__file__).parent / "version_0_1_0"
NAMES = sorted(path.stem for path in FOLDER.glob("*.skvae"))


@pytest.fixture(scope="module")
def expected():
    with np.load(FOLDER / "expected.npz") as file:
        return dict(file)


def test_all_estimators_were_saved():
    classes = {type(skvae.load(FOLDER / f"{name}.skvae")).__name__ for name in NAMES}
    public = {name for name in skvae.__all__ if name.endswith(("Embedder", "Clusterer", "Classifier", "KMeans"))}
    assert classes == public | {"TorchGMM", "TorchPPCA"}


@pytest.mark.parametrize("name", NAMES)
def test_results_are_those_of_version_0_1_0(name, expected):
    model, X = skvae.load(FOLDER / f"{name}.skvae"), expected[f"{name} X"]
    methods = [key.split()[1] for key in expected if key.startswith(f"{name} ") and key != f"{name} X"]
    assert methods
    for method in methods:
        # Products differ by rounding between processors.
        np.testing.assert_allclose(getattr(model, method)(X), expected[f"{name} {method}"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_models_are_saved_again(name, expected, tmp_path):
    model, X = skvae.load(FOLDER / f"{name}.skvae"), expected[f"{name} X"]
    skvae.save(model, tmp_path / "model.skvae")
    again, method = skvae.load(tmp_path / "model.skvae"), "predict" if hasattr(model, "predict") else "transform"
    np.testing.assert_array_equal(getattr(again, method)(X), getattr(model, method)(X))


@pytest.mark.parametrize("name", ["vae", "vade", "gmm", "kmeans", "autoencoder"])
def test_training_continues(name, expected):
    model, X = skvae.load(FOLDER / f"{name}.skvae"), expected[f"{name} X"]
    assert model.partial_fit(np.tile(X, (5, 1))) is model
