"""Loaded estimators equal the saved ones; other values raise an error, and change no file."""

import importlib
import json
import os
import pickle
import pkgutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import QUICK, TINY, assert_same, outputs, over_estimators
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.utils._param_validation import InvalidParameterError
from skorch.callbacks import EpochScoring
from torch import nn

import skvae
from skvae import (
    AutoencoderEmbedder,
    ClusterLabelClassifier,
    TorchGMM,
    TorchPPCA,
    VaDEClusterer,
    VAEEmbedder,
)
from skvae.fitting.net import NegativeELBO
from skvae.models import ACTIVATIONS, COVARIANCES, LIKELIHOODS, NETWORKS, MaskedLikelihood
from skvae.models.likelihoods import FixedGaussian
from skvae.models.networks import NetworkConfig
from skvae.models.serialize import NAMES, foreign_part, module_from_dict, module_to_dict
from skvae.persistence import container
from skvae.persistence.files import encode_estimator
from skvae.persistence.fitted import fitted_schema, fitted_state
from skvae.persistence.values import ValueDecoder, ValueEncoder

pytestmark = pytest.mark.usefixtures("short_embedding")
SHORT = {"max_epochs": 1, "random_state": 0}
WITH_DEVICE = [estimator for estimator in QUICK if hasattr(estimator, "device")]
over_devices = pytest.mark.parametrize("estimator", WITH_DEVICE, ids=lambda estimator: type(estimator).__name__)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "estimator.skvae"


@pytest.fixture
def binary():
    """Rows of zeros and ones, which every likelihood takes: images of 4 x 4 pixels."""
    return np.random.default_rng(0).integers(0, 2, (60, 16)).astype(np.float64)


def through_a_file(estimator, path):
    skvae.save(estimator, path)
    return skvae.load(path)


def content(estimator):
    """Return the content of the file of an estimator."""
    encoder = ValueEncoder(encode_estimator)
    tree = encoder.encode(estimator, "")
    return json.dumps(tree), [(array.dtype, array.shape, array.tobytes()) for array in encoder.arrays.values()]


def assert_itself(estimator, path, X):
    other = through_a_file(estimator, path)
    assert type(other) is type(estimator)
    assert content(other) == content(estimator)
    assert_same(outputs(other, X), outputs(estimator, X))
    return other


# Saved and loaded.


@over_estimators
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_loaded_estimators_equal_saved_ones(estimator, dtype, blobs, path):
    X = blobs[0].astype(dtype)
    estimator = clone(estimator).fit(pd.DataFrame(X, columns=list("abcd")), blobs[1] % 2)
    other = assert_itself(estimator, path, pd.DataFrame(X, columns=list("abcd")))
    assert vars(other).keys() == vars(estimator).keys() - {"net_"}
    assert_array_equal(other.feature_names_in_, list("abcd"))


@over_estimators
def test_fitted_attributes_are_declared(estimator, blobs):
    state = fitted_state(clone(estimator).fit(pd.DataFrame(blobs[0], columns=list("abcd")), blobs[1] % 2))
    types, arrays = fitted_schema(type(estimator))
    of_any_type = {"_sklearn_version", "estimator_", "_mark", "_precision"}
    assert state.keys() - of_any_type <= types.keys() | arrays.keys()


@over_estimators
def test_parameters_alone(estimator, path):
    assert str(through_a_file(estimator, path)) == str(estimator)


@pytest.mark.parametrize("estimator", [e for e in QUICK if hasattr(e, "partial_fit")], ids=lambda e: type(e).__name__)
def test_training_continues(estimator, blobs, path):
    """As it does with a pickle, which has no optimizer either."""
    X, _ = blobs
    estimator = clone(estimator).partial_fit(X)
    assert_same(
        outputs(through_a_file(estimator, path).partial_fit(X), X),
        outputs(pickle.loads(pickle.dumps(estimator)).partial_fit(X), X),
    )


@pytest.mark.parametrize("estimator", [e for e in QUICK if hasattr(e, "warm_start")], ids=lambda e: type(e).__name__)
def test_warm_starts_continue(estimator, blobs, path):
    X, _ = blobs
    estimator = clone(estimator).set_params(warm_start=True).fit(X)
    found, expected = through_a_file(estimator, path).fit(X), pickle.loads(pickle.dumps(estimator)).fit(X)
    assert_same(outputs(found, X), outputs(expected, X))
    assert found.n_iter_ == expected.n_iter_


@pytest.mark.parametrize("covariance_type", COVARIANCES)
def test_every_covariance_type(covariance_type, blobs, path):
    gmm = TorchGMM(2, covariance_type=covariance_type, init_params="k-means++", random_state=0).fit(blobs[0])
    assert_itself(gmm, path, blobs[0])


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_likelihood(likelihood, binary, path):
    vae = VAEEmbedder(2, hidden_layer_sizes=(5,), likelihood=likelihood, **SHORT).fit(binary)
    assert foreign_part(vae.module_) is None
    assert_itself(vae, path, binary)


@pytest.mark.parametrize("architecture", NETWORKS)
@pytest.mark.parametrize(
    "layers", [{}, {"batch_norm": True, "layer_norm": True, "dropout": 0.1, "head_layer_sizes": 4}]
)
def test_every_architecture(architecture, layers, binary, path):
    image = {"image_shape": (4, 4), "channels": (2, 3)}
    vae = VAEEmbedder(2, architecture=architecture, hidden_layer_sizes=(5,), **image, **layers, **SHORT).fit(binary)
    assert_itself(vae, path, binary)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation):
    config = NetworkConfig(activation, torch.Generator(), hidden_layer_sizes=(4,))
    for network in NETWORKS["mlp"](3, 2, 3, config):
        assert str(module_from_dict(module_to_dict(network))) == str(network)


def modules_of_the_package():
    """Classes of modules that models may hold, but for those that others inherit from."""
    for package in (skvae.models, skvae.fitting):
        for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            for cls in vars(importlib.import_module(info.name)).values():
                if isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__module__ == info.name:
                    yield cls


def test_every_module_has_a_description():
    classes = set(modules_of_the_package())
    bases = {base for cls in classes for base in cls.__mro__[1:]}
    assert classes - bases - set(NAMES) == {NegativeELBO}  # a loss, and no part of a model


@pytest.mark.parametrize("likelihood", LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_likelihoods_with_missing_values(likelihood):
    ones = torch.ones(3, dtype=torch.float64)
    module = MaskedLikelihood(likelihood.from_data(SimpleNamespace(mean=ones, scale=ones, maximum=ones)))
    other = module_from_dict(module_to_dict(module))
    assert other.support == module.support
    assert str(other.state_dict()) == str(module.state_dict())


@pytest.mark.parametrize("settings", [{"covariance_type": "diag"}, {"responsibilities": "sampled"}, {"augment": None}])
def test_settings_of_vade(settings, blobs, path):
    assert_itself(VaDEClusterer(2, **TINY | settings, random_state=0).fit(blobs[0]), path, blobs[0])


@pytest.mark.parametrize("wrap", [FrozenEstimator, lambda estimator: estimator])
def test_estimators_as_parameters(wrap, blobs, path):
    X = blobs[0]
    given = AutoencoderEmbedder(2, hidden_layer_sizes=(5,), **SHORT).fit(X)
    vade = assert_itself(VaDEClusterer(2, pretrained=wrap(given), latent_dim=2, n_init=1, **SHORT).fit(X), path, X)
    assert type(vade.pretrained) is type(wrap(given))
    assert_array_equal(vade.pretrained.transform(X), given.transform(X))


def test_estimators_in_estimators(blobs, path):
    X, y = blobs
    inner = VaDEClusterer(2, pretrained=AutoencoderEmbedder(2, **SHORT).fit(X), latent_dim=2, n_init=1, **SHORT)
    classifier = ClusterLabelClassifier(inner.set_params(pretrained=FrozenEstimator(inner.pretrained))).fit(
        X, np.array(["one", "two", "two"])[y]
    )
    other = through_a_file(classifier, path)
    assert content(other) == content(classifier)
    assert_array_equal(other.predict(X), classifier.predict(X))
    assert_array_equal(other.predict_proba(X), classifier.predict_proba(X))


def test_parameters_of_many_types(blobs, path):
    X, means = blobs[0], np.asfortranarray(blobs[0][:3])
    state = np.random.RandomState(3)
    state.normal()  # leaves half of a pair behind
    gmm = TorchGMM(
        np.int64(3), covariance_type=np.str_("diag"), tol=np.float32(1e-3), means_init=means,
        weights_init=[0.25, 0.25, 0.5], random_state=state, device=torch.device("cpu"),
    ).fit(X)  # fmt: skip
    other = through_a_file(gmm, path)
    for name, value in gmm.get_params().items():
        assert type(other.get_params()[name]) is type(value)
    assert other.means_init.flags.f_contiguous
    assert (other.tol, other.n_components, other.weights_init) == (gmm.tol, 3, gmm.weights_init)
    assert_array_equal(other.random_state.normal(size=5), gmm.random_state.normal(size=5))
    assert str(other.device) == "cpu"


def test_networks_of_known_layers_as_parameters(blobs, path):
    X = blobs[0]
    encoder = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.1), nn.SiLU(), nn.LayerNorm(5), nn.Linear(5, 4))
    encoder[0].weight.requires_grad_(False)
    likelihood = FixedGaussian(torch.zeros(4), torch.ones(4), noise_scale=0.5)
    vae = VAEEmbedder(2, encoder=encoder, likelihood=likelihood, hidden_layer_sizes=(5,), **SHORT).fit(X)
    other = assert_itself(vae, path, X)
    assert str(other.encoder) == str(encoder)
    assert not other.encoder[0].weight.requires_grad
    assert other.encoder.training
    assert_same(outputs(other.fit(X), X), outputs(vae, X))


def test_memory_order_of_convolutions(binary, path):
    """Sums in convolutions are taken in this order."""
    vae = VAEEmbedder(2, image_shape=(4, 4), **SHORT).fit(binary)
    expected = [parameter.stride() for parameter in vae.module_.parameters()]
    assert expected != [torch.empty(parameter.shape).stride() for parameter in vae.module_.parameters()]
    for other in (through_a_file(vae, path), pickle.loads(pickle.dumps(vae))):
        assert [parameter.stride() for parameter in other.module_.parameters()] == expected


@over_estimators
def test_files_touch_no_global_random_state(estimator, blobs, path):
    estimator = clone(estimator).fit(*blobs)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    through_a_file(estimator, path)
    assert_array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


def test_equal_estimators_are_equal_files(blobs, path):
    gmm = TorchGMM(2, random_state=0).fit(blobs[0])
    skvae.save(gmm, path)
    first = path.read_bytes()
    skvae.save(skvae.load(path), path)
    assert path.read_bytes() == first


def test_other_programs_read_the_arrays(blobs, path):
    from safetensors.numpy import load_file

    gmm = TorchGMM(2, random_state=0).fit(blobs[0])
    skvae.save(gmm, path)
    assert any(np.array_equal(array, gmm.means_) for array in load_file(path).values())


ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
ARRAYS = arrays(
    st.sampled_from([bool, np.uint8, np.int64, np.float16, np.float32, np.float64]), array_shapes(min_side=0)
)
TEXTS = arrays("U3", array_shapes(), elements=st.text("abc", max_size=3))
VALUES = st.recursive(
    ATOMS | ARRAYS | TEXTS,
    lambda some: st.lists(some) | st.lists(some).map(tuple) | st.dictionaries(st.text() | st.integers(), some),
    max_leaves=8,
)


def assert_equal_values(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray):
        assert found.dtype.kind == expected.dtype.kind
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal_values(one, other)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        assert_equal_values(list(found.values()), list(expected.values()))
    else:
        assert found == expected or expected != expected
        assert str(found) == str(expected)  # also of -0.0 and nan


@given(VALUES)
def test_values_are_decoded_as_they_were(value):
    encoder = ValueEncoder(encode_estimator)
    tree = encoder.encode(value, "it")
    tree, found = container.unpack(container.pack({"it": tree}, encoder.arrays))
    decoder = ValueDecoder(found, None)
    assert_equal_values(decoder.decode(tree["it"]), value)
    decoder.check_all_used()


@over_devices
def test_unavailable_devices(estimator, blobs, path):
    """A file from another machine loads; what computes says that the device is missing."""
    estimator = clone(estimator).fit(blobs[0])
    expected = outputs(estimator, blobs[0])
    other = through_a_file(estimator.set_params(device="cuda:99"), path)
    assert other.device == "cuda:99"
    with pytest.raises(ValueError, match="device='cuda:99' cannot be used here"):
        other.predict(blobs[0]) if hasattr(other, "predict") else other.transform(blobs[0])
    assert_same(outputs(other.set_params(device="cpu"), blobs[0]), expected)


@over_devices
def test_from_a_device(estimator, blobs, path, device):
    estimator = clone(estimator).set_params(device=device)
    if device == "mps" and isinstance(estimator, TorchGMM | TorchPPCA):
        pytest.skip("mps has no float64.")
    X = blobs[0].astype(np.float32)
    other = through_a_file(estimator.fit(X), path)
    assert other.device == device
    assert_same(outputs(other, X), outputs(estimator, X), rtol=1e-6, atol=1e-6)
    if hasattr(other, "module_"):
        assert {parameter.device.type for parameter in other.module_.parameters()} == {"cpu"}


# Values that files cannot store.


class Own(nn.Module):
    """A network that only its code can make."""

    def __init__(self, n_inputs=4, n_outputs=4):
        super().__init__()
        self.layer = nn.Linear(n_inputs, n_outputs)

    def forward(self, x):
        return self.layer(x)


class OwnGMM(TorchGMM):
    """A class of the user's."""


def with_hook():
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda *args: None)
    return layer


def with_shared_layers():
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, layer)


UNWRITABLE = {
    "module": (
        VAEEmbedder(2, encoder=Own()),
        r"VAEEmbedder.encoder is a module of your own \(the module is a .*\.Own\)",
    ),
    "module within": (VAEEmbedder(2, encoder=nn.Sequential(Own())), r"encoder is a module of your own \(0 is a .*Own"),
    "class": (VAEEmbedder(2, encoder=Own), "VAEEmbedder.encoder is <class .*Own"),
    "hooks": (VAEEmbedder(2, encoder=with_hook()), "has hooks"),
    "shared layers": (VAEEmbedder(2, encoder=with_shared_layers()), "parts of it occur twice"),
    "bfloat16": (VAEEmbedder(2, encoder=nn.Linear(4, 4, dtype=torch.bfloat16)), "values of the type torch.bfloat16"),
    "likelihood": (VAEEmbedder(2, likelihood=FixedGaussian), "VAEEmbedder.likelihood is <class .*FixedGaussian"),
    "optimizer": (VAEEmbedder(2, optimizer=torch.optim.Adam), "VAEEmbedder.optimizer is <class .*Adam"),
    "callbacks": (
        VAEEmbedder(2, callbacks=[EpochScoring("loss")]),
        r"VAEEmbedder.callbacks is a EpochScoring.*set_params\(callbacks=None\)",
    ),
    "named callbacks": (
        VAEEmbedder(2, callbacks=[("score", EpochScoring("loss"))]),
        r"VAEEmbedder.callbacks is a EpochScoring.*set_params\(callbacks=None\)",
    ),
    "function": (VAEEmbedder(2, augment=lambda x, generator: x), "VAEEmbedder.augment is <function"),
    "clusterer": (TorchGMM(2, init_params=KMeans(2)), "TorchGMM.init_params is a KMeans.*use one of"),
    "subclass": (OwnGMM(2), "The estimator is a OwnGMM"),
    "own class in a pipeline": (
        make_pipeline(OwnGMM(2)),
        r"The Pipeline is .* holds [\w.]*OwnGMM",
    ),
    "nested": (
        ClusterLabelClassifier(make_pipeline(TorchGMM(2))),
        "ClusterLabelClassifier.estimator is a Pipeline",
    ),
    "no estimator": ({"a": 1}, "The estimator is a dict"),
    "random state": (TorchGMM(random_state=np.random.RandomState(np.random.PCG64(0))), "TorchGMM.random_state is Rand"),
    "complex": (TorchGMM(1, means_init=np.zeros((1, 1), complex)), "TorchGMM.means_init is an array of complex128"),
    "data frame": (TorchGMM(1, means_init=pd.DataFrame([[1.0]])), "TorchGMM.means_init is"),
}


@pytest.mark.parametrize(("estimator", "match"), UNWRITABLE.values(), ids=UNWRITABLE)
def test_code_cannot_be_saved(estimator, match, path):
    path.write_text("what was there")
    with pytest.raises(TypeError, match=f"(?s){match}.*joblib.dump"):
        skvae.save(estimator, path)
    assert path.read_text() == "what was there"


def test_fitted_modules_of_the_users_are_refused(blobs, path):
    vae = VAEEmbedder(2, encoder=Own, **SHORT).fit(blobs[0]).set_params(encoder=None)
    with pytest.raises(TypeError, match=r"VAEEmbedder.module_ is a module of your own \(encoder is a .*Own"):
        skvae.save(vae, path)


def test_invalid_parameters_are_refused(path):
    with pytest.raises(InvalidParameterError, match="The 'n_components' parameter of TorchGMM must be"):
        skvae.save(TorchGMM("three"), path)
    values = []
    values.append(values)
    with pytest.raises(ValueError, match="TorchGMM.means_init: values are nested too deep"):
        skvae.save(TorchGMM(means_init=values), path)
    assert not path.exists()


def test_too_much_text_is_refused(path, monkeypatch):
    monkeypatch.setattr(container, "MAX_HEADER", 2_000)
    skvae.save(TorchGMM(means_init=[[0.0]]), path)
    with pytest.raises(ValueError, match="Everything but arrays takes .* bytes of text, and the maximum is 2000"):
        skvae.save(TorchGMM(means_init=[[float(i)] for i in range(500)]), path)
    assert skvae.load(path).means_init == [[0.0]]


def test_inconsistent_estimators_are_not_written(blobs, path):
    gmm = TorchGMM(2, random_state=0).fit(blobs[0])
    skvae.save(gmm, path)
    before = path.read_bytes()
    gmm.means_ = gmm.means_[:, :2]
    with pytest.raises(ValueError, match="This TorchGMM could not be read back from a file"):
        skvae.save(gmm, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_an_interrupted_save_leaves_the_old_file(function, blobs, path, monkeypatch):
    skvae.save(TorchGMM(2), path)
    before = path.read_bytes()

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, function, interrupt)
    with pytest.raises(KeyboardInterrupt):
        skvae.save(TorchGMM(3), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_where_files_go(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    skvae.save(TorchGMM(2), str(link))
    assert link.is_symlink()
    assert skvae.load(target).n_components == 2
    with pytest.raises(FileNotFoundError, match="There is no such folder .*missing'$"):
        skvae.save(TorchGMM(2), tmp_path / "missing" / "file")
    with pytest.raises(IsADirectoryError, match="This is a folder; name a file in it: .*[^t]'$"):
        skvae.save(TorchGMM(2), tmp_path)
    with pytest.raises(TypeError, match="stores instances, but got the class TorchGMM itself"):
        skvae.save(TorchGMM, target)
    assert {entry.name for entry in tmp_path.iterdir()} == {"target", "link"}


@pytest.mark.parametrize(
    ("module", "name"),
    [("skvae.models.missing", "Observed"), ("skvae.fitting.vade", "WithLogScales"), ("skvae.fitting.vade", "Affine")],
)
def test_pickles_of_earlier_versions_find_their_modules(module, name):
    """Pickles hold modules by their classes where networks of the user's are among them."""
    assert issubclass(getattr(importlib.import_module(module), name), torch.nn.Module)
