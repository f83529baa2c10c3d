"""Tensors that require gradients, of bfloat16 and of float16 are accepted wherever an array is."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from skvae import ClusterLabelClassifier, TorchGMM, TorchMiniBatchKMeans, TorchPPCA, VAEEmbedder
from skvae.callbacks import EpochScores, LatentSnapshots
from skvae.displays import ClusterSamplesDisplay, LatentSpaceDisplay, ManifoldDisplay, ReconstructionDisplay
from skvae.metrics import (
    active_units,
    clustering_accuracy_score,
    match_clusters,
    reconstruction_error,
    structural_similarity_score,
)
from skvae.selection import select_mixture

RNG = np.random.default_rng(0)
X = np.round(4 * RNG.normal(size=(60, 25)))  # whole numbers, which every dtype holds
Y = np.arange(60) % 2
ONES = np.ones(60)
SHARES = RNG.dirichlet(np.ones(2), 60)
SMALL = {"hidden_layer_sizes": (4,), "max_epochs": 1, "random_state": 0}
TENSORS = {
    "grad": lambda values: torch.tensor(values, dtype=torch.float64).requires_grad_(),
    "bfloat16": lambda values: torch.tensor(values).bfloat16().requires_grad_(),
    "float16": lambda values: torch.tensor(values).half(),
    "list": lambda values: [torch.tensor(value, dtype=torch.float32, requires_grad=True) for value in values],
}
DIAG = {"covariance_type": "diag", "random_state": 0}


def scored(convert, **given):
    return TorchGMM(2, **DIAG, **{name: convert(value) for name, value in given.items()}).fit(convert(X)).score(X)


def vae_of(convert, **settings):
    return VAEEmbedder(2, **SMALL, **settings).fit(convert(X), sample_weight=convert(ONES))


CALLS = {  # of a function that converts arrays -> a number
    "means": lambda convert: scored(convert, means_init=X[:2]),
    "weights": lambda convert: scored(convert, weights_init=np.array([0.25, 0.75])),
    "precisions": lambda convert: scored(convert, precisions_init=np.full((2, 25), 0.25)),
    "responsibilities": lambda convert: scored(convert, init_params=np.eye(2)[Y]),
    "centers": lambda convert: TorchMiniBatchKMeans(2, init=convert(X[:2])).fit(X, None, convert(ONES)).inertia_,
    "centers of a callable": lambda convert: (
        TorchMiniBatchKMeans(2, init=lambda X, n_clusters, random_state: convert(X[:2]), n_init=1).fit(X).inertia_
    ),
    "known parameters": lambda convert: TorchGMM.from_parameters(
        convert(np.array([0.25, 0.75])), convert(X[:2]), convert(np.ones((2, 25))), covariance_type="diag"
    ).score(X),
    "score": lambda convert: TorchMiniBatchKMeans(2, random_state=0).fit(X).score(convert(X), None, convert(ONES)),
    "validation": lambda convert: VAEEmbedder(2, **SMALL).fit(X, X_val=convert(X)).history_[0]["valid_loss"],
    "labels": lambda convert: (
        ClusterLabelClassifier(TorchGMM(2, **DIAG))
        .fit(convert(X), convert(Y), sample_weight=convert(ONES))
        .score(convert(X), convert(Y), sample_weight=convert(ONES))
    ),
    "labels to start from": lambda convert: TorchGMM(2, init_params="labels", **DIAG).fit(X, convert(Y)).score(X),
    "reconstruction error": lambda convert: reconstruction_error(
        TorchPPCA(2).fit(X), convert(X), sample_weight=convert(ONES)
    ),
    "active units": lambda convert: active_units(convert(X)),
    "similarity": lambda convert: structural_similarity_score(
        convert(X), convert(X + 1), image_shape=(5, 5), data_range=9, win_size=3, sample_weight=convert(ONES)
    ),
    "accuracy": lambda convert: clustering_accuracy_score(convert(Y), convert(1 - Y)),
    "matching": lambda convert: match_clusters(convert(Y), convert(1 - Y))[1],
    "selection": lambda convert: select_mixture(
        TorchGMM(random_state=0), convert(X), n_components=[1, 2], covariance_type=["diag"]
    ).results["bic"],
    "snapshots": lambda convert: LatentSnapshots.of(vae_of(convert, callbacks=[LatentSnapshots(convert(X))])).codes,
    "epoch scores": lambda convert: vae_of(
        convert,
        callbacks=[EpochScores({"mse": lambda x, found: np.mean((x - found) ** 2)}, {"test": convert(X)})],
    ).history_[0]["test_mse"],
    "reconstructions": lambda convert: ReconstructionDisplay.from_estimator(vae_of(np.asarray), convert(X[:3])).errors,
    "codes": lambda convert: LatentSpaceDisplay.from_predictions(convert(X[:, :2]), convert(Y)).class_means_,
    "images": lambda convert: (
        ClusterSamplesDisplay.from_predictions(convert(X), convert(Y), image_shape=(5, 5)).weights
    ),
    "a grid": lambda convert: (
        ManifoldDisplay.from_predictions(
            convert(X[:4].reshape(2, 2, 25)), image_shape=(5, 5), x=convert(X[0, :2])
        ).images
    ),
    "a fixed code": lambda convert: (
        ManifoldDisplay.from_estimator(vae_of(np.asarray), n_grid=2, fixed=convert(np.array([0.0, 1.0]))).images
    ),
}


@pytest.mark.parametrize("convert", TENSORS.values(), ids=TENSORS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.filterwarnings("ignore:EM did not converge")
def test_tensors_are_taken_as_arrays(call, convert):
    assert_allclose(call(convert), call(np.asarray), rtol=1e-4, atol=1e-5)
    plt.close("all")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_shares_may_sum_to_one_in_their_own_precision(dtype):
    shares = torch.tensor(SHARES).to(dtype)
    exact = TorchGMM(2, init_params=SHARES, max_iter=0, **DIAG).fit(X)
    assert_allclose(TorchGMM(2, init_params=shares, max_iter=0, **DIAG).fit(X).weights_, exact.weights_, atol=1e-2)
    weights = torch.tensor([1 / 3, 2 / 3]).to(dtype)
    gmm = TorchGMM.from_parameters(weights, [[0.0], [1.0]], [1.0, 1.0], covariance_type="spherical")
    assert gmm.weights_.sum() == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match=r"sum to 1, but its values .* and sum to 0\.(9|899902)"):
        TorchGMM(2, weights_init=torch.tensor([0.4, 0.5]).to(dtype), **DIAG).fit(X)


def test_sparse_tensors_are_refused_everywhere():
    with pytest.raises(TypeError, match="Got a tensor of layout torch.sparse_coo; give tensor.to_dense"):
        TorchGMM(2, means_init=torch.tensor(X[:2]).to_sparse(), **DIAG).fit(X)
    with pytest.raises(TypeError, match="Got a tensor of layout torch.sparse_coo"):
        active_units(torch.tensor(X).to_sparse())
