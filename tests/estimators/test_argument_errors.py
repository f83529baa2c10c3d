"""Errors about arguments name what was given, the public class, and what may be meant."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.metrics import mean_squared_error
from sklearn.pipeline import make_pipeline

from skvae import (
    AutoencoderEmbedder,
    ClusterLabelClassifier,
    TorchGMM,
    TorchMiniBatchKMeans,
    TorchPPCA,
    VaDEClusterer,
    VAEEmbedder,
)
from skvae.metrics import clustering_accuracy_score

pytestmark = [
    pytest.mark.usefixtures("short_embedding"),
    pytest.mark.filterwarnings("ignore:Clusters .* have almost no samples", "ignore:Clusters overlap"),
]
SMALL = {"hidden_layer_sizes": (8,), "max_epochs": 1, "random_state": 0}
ESTIMATORS = [
    VAEEmbedder(2, **SMALL),
    AutoencoderEmbedder(2, **SMALL),
    VaDEClusterer(2, latent_dim=2, pretrain_epochs=1, **SMALL),
    TorchGMM(2, random_state=0),
    TorchMiniBatchKMeans(2, random_state=0),
    TorchPPCA(1),
]
over_estimators = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda one: type(one).__name__)
over_embedders = pytest.mark.parametrize("embedder", ESTIMATORS[:2], ids=lambda one: type(one).__name__)


@pytest.fixture
def X():
    return np.random.default_rng(0).random((40, 4))


def changed(X, value):
    X = X.copy()
    X[3, 1] = value
    return X


WRONG = {
    "features": (lambda X: X[:, :3], "^X_val has 3 features, but .* is expecting 4"),
    "features of a sparse matrix": (lambda X: sparse.csr_matrix(X[:, :3]), "^X_val has 3 features"),
    "NaN": (lambda X: changed(X, np.nan), "^X_val has missing values"),
    "NaN in a tensor": (lambda X: torch.tensor(changed(X, np.nan)), "^X_val has missing values"),
    "infinite": (lambda X: changed(X, np.inf), "^Input X_val contains infinity"),
    "infinite in a frame": (
        lambda X: pd.DataFrame(changed(X, np.inf), columns=[*"XYZW"]),
        r"Column.* \['Y'\] of X_val",
    ),
    "text": (lambda X: [["a", "b", "c", "d"]], "^X_val: could not convert string"),
    "one row": (lambda X: X[0], "^X_val: Expected 2D array"),
    "no rows": (lambda X: X[:0], "^X_val: Found array with 0 sample"),
    "images": (lambda X: X.reshape(10, 4, 4), "X_val.reshape"),
    "complex": (lambda X: X.astype(complex), "^X_val: Complex data"),
    "range": (lambda X: 3 * X, "but X_val has values from .*; scale X_val"),
}


@over_embedders
@pytest.mark.filterwarnings("ignore:X has feature names")
@pytest.mark.parametrize(("wrong", "match"), WRONG.values(), ids=WRONG)
def test_validation_rows_are_named(embedder, wrong, match, X):
    with pytest.raises(ValueError, match=match):
        clone(embedder).set_params(likelihood="bernoulli").fit(X, X_val=wrong(X))


def test_names_of_columns_stay(X):
    """A column may have the name of the argument."""
    frame = pd.DataFrame(X, columns=[*"WXYZ"])
    with pytest.raises(ValueError, match=r"\['X'\] of X_val"):
        VAEEmbedder(2, **SMALL).fit(frame, X_val=frame.assign(X=np.inf))


def test_other_arrays_are_named(X):
    vae = VAEEmbedder(2, **SMALL).fit(X)
    with pytest.raises(ValueError, match="^X_from has 3 features"):
        vae.interpolate(X[:, :3], X)
    with pytest.raises(ValueError, match="^X_to contains NaN"):
        vae.interpolate(X, changed(X, np.nan))
    with pytest.raises(ValueError, match="^sample_weight: could not convert"):
        vae.fit(X, sample_weight=["a"] * len(X))
    with pytest.raises(ValueError, match="^means_init: could not convert"):
        TorchGMM(2, means_init=[[*"abcd"]] * 2).fit(X)
    with pytest.raises(ValueError, match="^init_params: Complex data"):
        TorchGMM(2, init_params=np.ones((len(X), 2), complex)).fit(X)
    with pytest.raises(ValueError, match="^init: could not convert"):
        TorchMiniBatchKMeans(2, init=[[*"abcd"]] * 2).fit(X)
    with pytest.raises(ValueError, match="Input labels_pred contains NaN"):
        clustering_accuracy_score([0, 1], [0, np.nan])
    with pytest.raises(ValueError, match="Input labels_true contains NaN"):
        clustering_accuracy_score([0, np.nan], [0, 1])


@over_estimators
def test_unknown_arguments_name_the_public_class(estimator, X):
    name = type(estimator).__name__
    fitted = clone(estimator).fit(X)
    methods = ["fit", "partial_fit", "transform", "inverse_transform", "reconstruct", "interpolate", "sample", "impute"]
    methods += ["score", "score_samples", "log_likelihood", "posterior_variance", "predict", "predict_proba", "bic"]
    for method in methods:
        if hasattr(fitted, method):
            with pytest.raises(TypeError, match=rf"^{name}\.{method}\(\) got an unexpected keyword argument 'colour'"):
                getattr(fitted, method)(X, colour=3)
            with pytest.raises(TypeError, match=rf"^{name}\.{method}\(\) "):
                getattr(fitted, method)(*range(9))
    with pytest.raises(TypeError, match=rf"^{name}.fit\(\) got an unexpected keyword argument 'colour'"):
        fitted.fit_transform(X, colour=3)


def test_inherited_methods_work_under_their_new_names(X):
    vae = VAEEmbedder(2, **SMALL).set_output(transform="pandas").fit(X)
    assert isinstance(vae.transform(X), pd.DataFrame)
    assert VAEEmbedder.transform.__qualname__ == "VAEEmbedder.transform"

    class Own(VAEEmbedder):
        def transform(self, X):
            return 2 * super().transform(X)

    assert "reconstruct" not in vars(Own)
    twice = Own(2, **SMALL).fit(X).transform(X)
    np.testing.assert_allclose(twice, 2 * vae.transform(X).to_numpy(), rtol=1e-5)


HINTS = {
    "epochs": "max_epochs is a parameter of the estimator: VAEEmbedder(max_epochs=...)",
    "batch_size": "batch_size is a parameter of the estimator: VAEEmbedder(batch_size=...)",
    "X_valid": "X_val is one of its arguments",
    "weights": "sample_weight is one of its arguments",
    "colour": "its arguments are X, y, sample_weight, X_val",
}


@pytest.mark.parametrize(("argument", "hint"), HINTS.items(), ids=HINTS)
def test_what_may_be_meant(argument, hint, X):
    vae = VAEEmbedder(2, **SMALL)
    with pytest.raises(TypeError, match=f"'{argument}'; {re.escape(hint)}"):
        vae.fit(X, **{argument: 3})
    with pytest.raises(TypeError, match=f"'{argument}'; {re.escape(hint)}"):
        make_pipeline(vae).fit(X, **{f"vaeembedder__{argument}": 3})


def test_calls_without_rows_name_the_public_class(X):
    with pytest.raises(TypeError, match=r"VAEEmbedder.fit\(\).*'X'"):
        VAEEmbedder(2).fit()
    with pytest.raises(TypeError, match=r"TorchGMM.partial_fit\(\).*'X'"):
        TorchGMM(2).partial_fit()
    vae = VAEEmbedder(2, **SMALL).partial_fit(X=X, sample_weight=np.ones(len(X)))
    assert vae.n_iter_ == 1


def test_further_arguments_of_a_classifier_reach_its_clusterer(X):
    classifier = ClusterLabelClassifier(VAEAndMixture())
    classifier.fit(X, np.arange(len(X)) % 2, X_val=X[:5])
    assert classifier.estimator_.seen_ == 5


class VAEAndMixture(TorchGMM):
    """Takes another argument in its fit."""

    def __init__(self):
        super().__init__(2, random_state=0)

    def fit(self, X, y=None, sample_weight=None, X_val=None):
        self.seen_ = len(X_val)
        return super().fit(X, y, sample_weight)


LAST = [(28, 28, 3), (28, 28, 1), (12, 20, 4), [8, 8, 3], (5, 7, 3), np.array([8, 8, 3])]
FIRST = [(3, 8, 8), (1, 8, 8), (4, 8, 8), (3, 8, 3), (8, 8, 8), (8, 8, 2), (6, 64, 1), (64, 4, 4), (8, 3, 3), (8, 8)]


@pytest.mark.parametrize("shape", LAST, ids=str)
@pytest.mark.parametrize("form", ["rows", "images", "partial_fit", "mlp"])
@pytest.mark.parametrize("cls", [VAEEmbedder, AutoencoderEmbedder, VaDEClusterer])
def test_image_shapes_with_channels_last_are_refused(cls, form, shape):
    height, width, channels = map(int, shape)
    X = np.random.default_rng(0).random((10, height, width, channels))
    X = X if form == "images" else X.reshape(10, -1)
    embedder = cls(2, image_shape=shape, architecture="mlp" if form == "mlp" else "auto", **SMALL)
    match = re.escape(f"channels last; give image_shape={(channels, height, width)}, ")
    with pytest.raises(ValueError, match=f"{match}.*np.moveaxis"):
        (embedder.partial_fit if form == "partial_fit" else embedder.fit)(X)


@pytest.mark.parametrize("shape", FIRST, ids=str)
def test_image_shapes_with_channels_first_are_taken(shape):
    X = np.random.default_rng(0).random((10, *shape))
    vae = VAEEmbedder(2, image_shape=shape, channels=(2,), **SMALL).fit(X)
    assert mean_squared_error(vae.reconstruct(X), vae.reconstruct(X.reshape(10, -1))) < 1e-9


def test_images_with_channels_last_are_refused():
    X = np.random.default_rng(0).random((10, 6, 7, 3))
    vae = VAEEmbedder(2, image_shape=(3, 6, 7), channels=(2,), **SMALL)
    moved = np.moveaxis(X, -1, 1)
    for rows in (X, torch.tensor(X), X.tolist()):
        with pytest.raises(ValueError, match=r"^X has images of shape .*channels last.*give np.moveaxis\(X, -1, 1\)"):
            clone(vae).fit(rows)
    with pytest.raises(ValueError, match=r"give np.moveaxis\(X_val, -1, 1\)"):
        vae.fit(moved, X_val=X)
    with pytest.raises(ValueError, match=r"give np.moveaxis\(X, -1, 1\)"):
        vae.fit(moved).transform(X)
    with pytest.raises(ValueError, match=r"give image_shape=\(3, 6, 7\) and np.moveaxis\(X, -1, 1\)"):
        VAEEmbedder(2, **SMALL).fit(X)
    with pytest.raises(ValueError, match=r"shape \(6, 7, 1\), with channels last"):
        VAEEmbedder(2, image_shape=(6, 7), **SMALL).fit(X[..., :1])
