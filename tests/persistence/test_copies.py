"""Pickles, copies and files of skops: they are equal, small, and hold neither optimizers nor anything of a GPU."""

import copy
import io
import pickle

import cloudpickle
import joblib
import numpy as np
import pytest
import skops.io
import torch
from helpers import assert_same, outputs, over_estimators
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from skvae import TorchGMM, TorchPPCA, VaDEClusterer, VAEEmbedder
from skvae.estimators import ESTIMATORS
from skvae.persistence import TRUSTED_TYPES

pytestmark = pytest.mark.usefixtures("short_embedding")


def through_joblib(estimator):
    file = io.BytesIO()
    joblib.dump(estimator, file)
    file.seek(0)
    return joblib.load(file)


def through_skops(estimator):
    return skops.io.loads(skops.io.dumps(estimator), trusted=TRUSTED_TYPES)


COPIES = {
    "pickle": lambda estimator: pickle.loads(pickle.dumps(estimator)),
    "cloudpickle": lambda estimator: pickle.loads(cloudpickle.dumps(estimator)),
    "joblib": through_joblib,
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "skops": through_skops,
}
over_copies = pytest.mark.parametrize("through", COPIES.values(), ids=COPIES)


FITTED = {}  # estimators that all copies are made of, and what their methods return


def fitted(estimator, blobs):
    name = type(estimator).__name__
    if name not in FITTED:
        one = clone(estimator).fit(*blobs)
        FITTED[name] = one, outputs(one, blobs[0])
    return FITTED[name]


@over_copies
@over_estimators
def test_copies_are_themselves(estimator, through, blobs):
    estimator, expected = fitted(estimator, blobs)
    other = through(estimator)
    assert_same(outputs(other, blobs[0]), expected)
    if hasattr(other, "module_"):  # with memory of its own
        with torch.no_grad():
            next(other.module_.parameters()).zero_()
    assert_same(outputs(estimator, blobs[0]), expected)


@pytest.fixture(scope="module")
def pipeline_and_rows():
    X = np.random.default_rng(0).normal(size=(200, 6))
    X[100:] += 3
    vae = VAEEmbedder(2, hidden_layer_sizes=(8,), max_epochs=3, random_state=0, device=torch.device("cpu"))
    gmm = TorchGMM(2, random_state=np.random.RandomState(0))
    return Pipeline([("scale", StandardScaler()), ("vae", vae), ("gmm", gmm)]).fit(X), X


@over_copies
def test_a_pipeline(through, pipeline_and_rows):
    pipeline, X = pipeline_and_rows
    other = through(pipeline)
    assert_same(outputs(other, X), outputs(pipeline, X))
    assert_same(outputs(clone(other).fit(X), X), outputs(clone(pipeline).fit(X), X))


def test_skops_trusts_nothing_else(pipeline_and_rows):
    X = pipeline_and_rows[1]
    vade = VaDEClusterer(
        2, latent_dim=2, n_init=1, max_epochs=1, pretrained=FrozenEstimator(pipeline_and_rows[0]["vae"])
    )
    untrusted = set(skops.io.get_untrusted_types(data=skops.io.dumps([pipeline_and_rows[0], vade.fit(X)])))
    assert untrusted <= set(TRUSTED_TYPES)
    names = {f"{estimator.__module__}.{estimator.__name__}" for estimator in ESTIMATORS.values()}
    assert set(TRUSTED_TYPES) == names | {"numpy.dtype", "torch.device"}


def arrays_of(estimator):
    """Fitted arrays, those of networks among them."""
    found = [value for value in vars(estimator).values() if isinstance(value, np.ndarray)]
    return [*found, *estimator.module_.state_dict().values()] if hasattr(estimator, "module_") else found


@pytest.mark.parametrize(
    "estimator",
    [
        TorchGMM(10, max_iter=3),
        TorchPPCA(),
        VAEEmbedder(10, max_epochs=30, hidden_layer_sizes=(256, 128)),
        VAEEmbedder(10, max_epochs=1, image_shape=(8, 8), batch_norm=True),
        VaDEClusterer(10, hidden_layer_sizes=(256, 128), max_epochs=2, pretrain_epochs=2),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_pickles_are_as_large_as_their_arrays(estimator):
    estimator = clone(estimator).set_params(random_state=0).fit(np.random.default_rng(0).random((300, 64)))
    size = sum(array.nbytes for array in arrays_of(estimator))
    for dumps in (pickle.dumps, cloudpickle.dumps):
        assert size <= len(dumps(estimator)) < 1.2 * size


class Recorder(pickle._Pickler):
    """Records the types of everything that a pickle holds."""

    def __init__(self):
        super().__init__(io.BytesIO())
        self.types = set()

    def save(self, value, *args, **kwargs):
        """Look at a value, and write it."""
        self.types.add(type(value))
        return super().save(value, *args, **kwargs)


def test_pickles_of_networks_are_plain_data(blobs, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module, **settings: Compiled(module))
    vae = VAEEmbedder(2, hidden_layer_sizes=(8,), compile=True, max_epochs=2).fit(blobs[0])
    assert isinstance(vae.net_.module_, Compiled)
    recorder = Recorder()
    recorder.dump(vae)
    assert vae.__class__ in recorder.types
    foreign = {kind for kind in recorder.types if kind.__module__.split(".")[0] in ("torch", "skorch")}
    assert not foreign, "Optimizers, modules or tensors are in the pickle."


class Compiled(nn.Module):
    """Stands for what torch.compile makes."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


class Own(nn.Module):
    """A network of a user's."""

    def __init__(self, n_inputs, n_outputs):
        super().__init__()
        self.layer = nn.Linear(n_inputs, n_outputs)

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize("name", ["pickle", "joblib", "deepcopy"])
def test_networks_of_the_users_are_pickled_as_they_are(name, blobs):
    vae = VAEEmbedder(2, encoder=Own, hidden_layer_sizes=(8,), max_epochs=1, random_state=0).fit(blobs[0])
    other = COPIES[name](vae)
    assert type(other.module_.encoder) is Own
    assert_same(outputs(other, blobs[0]), outputs(vae, blobs[0]))


def test_pickles_from_a_device_hold_nothing_of_it(blobs, device):
    recorder = Recorder()
    recorder.dump(VAEEmbedder(2, hidden_layer_sizes=(8,), max_epochs=1, device=device).fit(blobs[0]))
    assert not {kind for kind in recorder.types if kind.__module__.split(".")[0] == "torch"}
