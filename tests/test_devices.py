"""Contract of every estimator on an accelerator: its results are those of the CPU.

Data are such that likelihoods have buffers (units of features, numbers of categories), which move with the networks.
"""

import copy
import pickle

import numpy as np
import pytest
import standin
import torch
from helpers import METHODS, assert_same, outputs, quietly
from numpy.testing import assert_allclose
from sklearn import config_context
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from skorch.callbacks import Callback
from torch import nn

import skvae
from skvae.estimators import (
    ESTIMATORS,
    AutoencoderEmbedder,
    ClusterLabelClassifier,
    TorchGMM,
    TorchMiniBatchKMeans,
    TorchPPCA,
    VaDEClusterer,
    VAEEmbedder,
    _likelihood_choice,
)

pytestmark = pytest.mark.usefixtures("short_embedding")
SMALL = {"hidden_layer_sizes": (8,), "max_epochs": 2, "batch_size": 64, "random_state": 0}
VADE = SMALL | {"latent_dim": 2, "pretrain_epochs": 1, "n_init": 2}
RNG = np.random.default_rng(0)
X = np.concatenate([RNG.normal(size=(40, 5)) @ RNG.normal(size=(5, 5)) + 4 * RNG.normal(size=5) for _ in range(3)])
Y = np.repeat([0, 1, 2], 40)
COUNTS = RNG.poisson(abs(X))
IMAGES = RNG.uniform(size=(96, 64))
MISSING = np.where(RNG.uniform(size=X.shape) < 0.05, np.nan, X)
WEIGHTS = np.arange(len(X)) % 3
CLOSE = {"rtol": 1e-6, "atol": 1e-6}
OTHERS = ("posterior_variance", "log_likelihood", "reconstruct", "impute")  # only called for some cases, to save time


class Case:
    """A fit: estimator, data, way of fitting and arguments."""

    def __init__(self, estimator, X, how, **given):
        self.estimator, self.X, self.how, self.given = estimator, X, how, given

    def __str__(self):
        return f"{type(self.estimator).__name__}: {self.how}"

    def on(self, device, folder):
        """Return the estimator fitted on a device."""
        made = clone(self.estimator)
        name = next(name for name in made.get_params() if name.split("__")[-1] == "device")
        made.set_params(**{name: device})
        if hasattr(made, "checkpoint"):
            made.set_params(checkpoint=folder / f"{device.replace(':', '_')}.pt" if self.how == "checkpoint" else None)
        return quietly(HOW.get(self.how, fit), made, self.X, self.given)

    @property
    def needs_float64(self):
        """Return whether the estimator computes in float64 whatever the data."""
        inner = getattr(self.estimator, "estimator", self.estimator)
        return isinstance(inner, TorchGMM | TorchPPCA)


def fit(estimator, X, given):
    return estimator.fit(X, **given)


def warm_start(estimator, X, given):
    return estimator.set_params(warm_start=True).fit(X, **given).fit(X, **given)


def partial_fit(estimator, X, given):
    return estimator.partial_fit(X[::2], **given).partial_fit(X[1::2], **given)


def fit_then_partial_fit(estimator, X, given):
    return estimator.fit(X, **given).partial_fit(X[::2], **given)


class StopOnce(Callback):
    """Interrupt the second epoch of the first training."""

    stopped = False

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == 2 and not StopOnce.stopped:
            StopOnce.stopped = True
            raise InterruptedError


def checkpoint(estimator, X, given):
    """Interrupt a fit, and resume it from its checkpoint."""
    StopOnce.stopped = False
    estimator.set_params(callbacks=[StopOnce()])
    with pytest.raises(InterruptedError):
        estimator.fit(X, **given)
    return estimator.fit(X, **given)


HOW = {
    "warm start": warm_start,
    "partial_fit": partial_fit,
    "fit, then partial_fit": fit_then_partial_fit,
    "checkpoint": checkpoint,
}


def cases():
    vae, vade = VAEEmbedder(2, **SMALL), VaDEClusterer(3, **VADE)
    images = {"image_shape": (8, 8), "architecture": "mlp", "augment": "affine"}
    autoencoder = AutoencoderEmbedder(2, corruption=0.1, **SMALL)  # which trains as the others do
    for how, data in (("fit", X), ("partial_fit", X), ("missing values", MISSING)):
        yield Case(autoencoder, data, how)
    for estimator in (vae, vade):
        for how in ("fit", "warm start", "partial_fit", "fit, then partial_fit", "checkpoint"):
            yield Case(estimator, X, how)
        yield Case(estimator, X, "weights", sample_weight=WEIGHTS)
        yield Case(estimator, MISSING, "missing values")
        yield Case(estimator, (X * 8 + 100).clip(0, 255).astype(np.uint8), "uint8")
        yield Case(estimator, X.astype(np.float32), "float32")
        yield Case(estimator, IMAGES, "views") if estimator is vade else Case(estimator, X, "X_val", X_val=X[:20])
    for name in ("poisson", "negative_binomial", "categorical", "gaussian_features", "gaussian_samples"):
        data = COUNTS.clip(0, 3) if name == "categorical" else X if name.startswith("g") else COUNTS
        yield Case(clone(vae).set_params(likelihood=name), data, "warm start")
    options = {"early_stopping": True, "max_epochs": 6, "n_iter_no_change": 1, "batch_norm": True, "dropout": 0.1}
    yield Case(clone(vae).set_params(**options, max_grad_norm=1.0, lr_schedule="cosine"), X, "early stopping")
    yield Case(clone(vae).set_params(n_draws=2, kl_warmup_epochs=1, free_bits=0.1), X, "draws, warm-up, free bits")
    yield Case(clone(vae).set_params(image_shape=(8, 8), channels=(2, 4), augment="affine"), IMAGES, "convolutions")
    yield Case(clone(vade).set_params(**images), IMAGES, "consistency is chosen")
    yield Case(clone(vade).set_params(**images, consistency=1.0, max_epochs=4), IMAGES, "pruned mixtures")
    yield Case(clone(vade).set_params(covariance_type="diag", responsibilities="sampled"), X, "sampled")
    for kind in ("full", "tied", "diag", "spherical", "tied_diag", "tied_spherical"):
        yield Case(TorchGMM(3, covariance_type=kind, random_state=0), X, f"fit, {kind}")
    gmm = TorchGMM(3, random_state=0)
    for how in ("warm start", "partial_fit", "fit, then partial_fit"):
        yield Case(gmm, X, how)
    yield Case(clone(gmm).set_params(acceleration="squarem", n_init=3, init_params="random"), X, "squarem")
    yield Case(gmm, X, "weights", sample_weight=WEIGHTS)
    yield Case(gmm, MISSING[::2], "missing values")
    yield Case(gmm, X.astype(np.float32), "float32")
    for data, how in ((X, "fit"), (MISSING, "missing values"), (X.astype(np.float32), "float32")):
        yield Case(TorchPPCA(2), data, how)
    yield Case(TorchPPCA(2), X, "weights", sample_weight=WEIGHTS)
    kmeans = TorchMiniBatchKMeans(3, batch_size=40, random_state=0)
    for how in ("fit", "partial_fit", "fit, then partial_fit"):
        yield Case(kmeans, X.astype(np.float32), how)
    yield Case(clone(kmeans).set_params(init="random", n_init=2, tol=1e-3), X.astype(np.float32), "tol")
    yield Case(kmeans, X.astype(np.float32), "weights", sample_weight=WEIGHTS)
    yield Case(ClusterLabelClassifier(gmm), X, "fit", y=Y)
    yield Case(ClusterLabelClassifier(kmeans), X.astype(np.float32), "fit", y=Y)


CASES = list(cases())
over_cases = pytest.mark.parametrize("case", CASES, ids=str)
FITS = [case for case in CASES if case.how in ("fit", "fit, full")]
over_fits = pytest.mark.parametrize("case", FITS, ids=str)


def test_every_estimator_is_in_the_cases():
    assert {type(case.estimator) for case in FITS} == set(ESTIMATORS.values())


def results_of(estimator, X, names=METHODS):
    """Return the results of methods, and fitted attributes, by name."""
    results = outputs(estimator, X, [*names, "inverse_transform"] if "transform" in names else names)
    for name in ("loss_curve_", "means_", "cluster_centers_", "weights_", "kl_per_dimension_", "consistency_"):
        if hasattr(estimator, name):
            results[name] = getattr(estimator, name)
    return results


def assert_close(results, expected, **tolerance):
    assert all(np.isfinite(value).all() for value in expected.values())
    assert_same(results, expected, **(CLOSE | tolerance))


CPU = {}  # results that those of every device are compared with


def results_on_the_cpu(case, names, folder):
    if case not in CPU:
        CPU[case] = results_of(case.on("cpu", folder), case.X, names)
    return CPU[case]


@over_cases
def test_results_are_those_of_the_cpu(case, device, is_real, tmp_path):
    if device == "mps" and case.needs_float64:
        with pytest.raises(ValueError, match="device='mps' cannot be used here; use 'auto' or one of .*float64"):
            case.on(device, tmp_path)
        return
    names = [*METHODS[:3], *(() if case.how in HOW else METHODS[3:]), *(OTHERS if case in FITS else ())]
    found = results_of(case.on(device, tmp_path), case.X, names)
    if not is_real or not hasattr(case.estimator, "hidden_layer_sizes"):  # networks draw on the device
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if device == "mps" or case.X.dtype == np.float32 else {}
        assert_close(found, results_on_the_cpu(case, names, tmp_path), **tolerance)


@over_fits
def test_fitted_on_a_device_and_used_elsewhere(case, device, tmp_path):
    if device == "mps" and case.needs_float64:
        pytest.skip("mps has no float64.")
    fitted = case.on(device, tmp_path)
    names = METHODS[:3]
    expected = results_of(fitted, case.X, names)
    n_pickled = standin.n_pickled()
    dumped = pickle.dumps(fitted)
    assert standin.n_pickled() == n_pickled, "a pickle holds tensors of the device"
    skvae.save(fitted, tmp_path / "fitted.skvae")
    others = [pickle.loads(dumped), copy.deepcopy(fitted), skvae.load(tmp_path / "fitted.skvae")]
    for other in others:
        assert_close(results_of(other, case.X, names), expected)
        inner = getattr(other, "estimator_", other)
        inner.set_params(device="cpu")
        assert_close(results_of(other, case.X, names), expected)
    if hasattr(inner, "partial_fit"):
        inner.partial_fit(case.X)
        inner.set_params(device=device).partial_fit(case.X)
        assert all(np.isfinite(value).all() for value in results_of(other, case.X, names).values())


@over_fits
def test_the_second_device(case, device, tmp_path):
    if device == "mps":
        pytest.skip("There is one mps.")
    if torch.cuda.device_count() < 2:
        pytest.skip("There is one GPU.")
    second = case.on("cuda:1", tmp_path)
    if hasattr(second, "module_"):
        assert {parameter.device for parameter in second.module_.parameters()} == {torch.device("cuda:1")}
    assert_close(results_of(second, case.X), results_of(case.on("cuda:0", tmp_path), case.X))


@pytest.mark.parametrize("case", [case for case in FITS if isinstance(case.estimator, ClusterLabelClassifier)], ids=str)
def test_tensors_of_the_device_in_and_out(case, device, tmp_path):
    if device == "mps" and case.needs_float64:
        pytest.skip("mps has no float64.")
    data = case.X.astype(np.float32)
    fitted, x = case.on(device, tmp_path), torch.tensor(data, device=device)
    expected = {name: getattr(fitted, name)(data) for name in METHODS[:4] if hasattr(fitted, name)}
    with config_context(array_api_dispatch=True):
        for name, value in expected.items():
            found = getattr(fitted, name)(x)
            assert found.device == x.device, name
            assert_allclose(found.cpu(), value, rtol=1e-5, atol=1e-5, err_msg=name)
    again = clone(fitted).fit(x, **{name: torch.tensor(value, device=device) for name, value in case.given.items()})
    assert not [name for name, value in vars(again).items() if isinstance(value, torch.Tensor)]


def test_grid_search_over_a_pipeline(device):
    pipeline = make_pipeline(VAEEmbedder(2, device=device, **SMALL), TorchGMM(3, random_state=0))
    search = GridSearchCV(pipeline, {"torchgmm__n_components": [2, 3]}, cv=2).fit(X)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.predict(X).shape == (len(X),)


def test_samples_larger_than_the_device(device, is_real, monkeypatch, tmp_path):
    """They stay on the CPU, and blocks of batches go to the device."""
    if is_real or device != "cuda":
        pytest.skip("Only CUDA says how much memory is free.")
    case = Case(VAEEmbedder(2, **SMALL | {"max_epochs": 3}), X, "fit", X_val=X[:20])
    expected = results_of(case.on("cpu", tmp_path), X)
    monkeypatch.setattr(standin.ACTIVE, "free_bytes", 1000)
    assert_close(results_of(case.on(device, tmp_path), X), expected)
    assert _likelihood_choice.stored_rows(case.on("cpu", tmp_path).module_.likelihood, X, torch.device(device)).is_cpu


class Draws(nn.Module):
    """Custom network that draws from torch's global generator."""

    def __init__(self, n_inputs, n_outputs):
        super().__init__()
        self.layer, self.dropout = nn.Linear(n_inputs, n_outputs), nn.Dropout(0.2)

    def forward(self, x):
        return self.layer(self.dropout(x) + 0.01 * torch.randn(x.shape, device=x.device))


def global_states(device):
    module = getattr(torch, device)
    there = [module.get_rng_state(index) for index in range(torch.cuda.device_count())] if device == "cuda" else []
    return [torch.get_rng_state(), *(there or [module.get_rng_state()])]


@pytest.mark.parametrize("fitted_on", ["cpu", "device", "second device"])
def test_global_random_states_are_untouched(fitted_on, device):
    if fitted_on == "second device" and (device == "mps" or torch.cuda.device_count() < 2):
        pytest.skip("There is one device.")
    before = global_states(device)
    where = {"cpu": "cpu", "device": device}.get(fitted_on, f"{device}:1")
    fits = [VAEEmbedder(2, encoder=Draws, device=where, **SMALL).fit(X) for _ in range(2)]
    for state, expected in zip(global_states(device), before, strict=True):
        assert torch.equal(state, expected)
    assert fits[0].loss_curve_ == fits[1].loss_curve_


def test_a_resumed_checkpoint_of_a_network_that_draws(device, tmp_path):
    case = Case(VAEEmbedder(2, encoder=Draws, **SMALL | {"max_epochs": 4}), X, "checkpoint")
    assert case.on(device, tmp_path).loss_curve_ == Case(case.estimator, X, "fit").on(device, tmp_path).loss_curve_


def test_a_checkpoint_of_another_kind_of_device(tmp_path):
    """Generators of other devices have states of other sizes, unlike those of the stand-in."""
    path = tmp_path / "vae.pt"
    vae = VAEEmbedder(2, checkpoint=path, callbacks=[StopOnce()], **SMALL | {"max_epochs": 4})
    StopOnce.stopped = False
    with pytest.raises(InterruptedError):
        vae.fit(X)
    content = torch.load(path, weights_only=True)
    content["current"]["generator"] = content["current"]["generator"][:16]
    torch.save(content, path)
    with pytest.raises(ValueError, match="another type of device.*set device as it was"):
        vae.fit(X)


SHORTAGES = {
    "cuda": lambda: torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
    "driver": lambda: RuntimeError("CUDA error: out of memory"),
    "cuBLAS": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "mps": lambda: RuntimeError("MPS backend out of memory (MPS allocated: 9 GB, max allowed: 9 GB)."),
}


class Short(nn.Module):
    """Network that runs out of memory with more than a number of samples, in training or always."""

    def __init__(self, n_inputs, n_outputs):
        super().__init__()
        self.layer, self.most, self.error, self.always = nn.Linear(n_inputs, n_outputs), 20, "cuda", False

    def forward(self, x):
        if len(x) > self.most and (self.always or self.training):
            raise SHORTAGES[self.error]()
        return self.layer(x)


@pytest.mark.parametrize("always", [False, True], ids=["in training", "always"])
@pytest.mark.parametrize("error", SHORTAGES)
def test_too_little_memory(error, always, device):
    encoder = Short(5, 4)
    encoder.error, encoder.always = error, always
    vae = VAEEmbedder(2, encoder=encoder, device=device, **SMALL | {"batch_size": 64})
    with pytest.warns(
        RuntimeWarning, match="ran out of memory with batches of 64 rows; the training continues"
    ) as warned:
        vae.fit(X)
    assert len(warned) == 1
    assert vae.net_.batch_size == 16
    assert np.isfinite(vae.loss_curve_).all()


@pytest.mark.filterwarnings("ignore:The device ran out of memory with chunks")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_too_little_memory_for_what_follows_a_training(device):
    """Initial codes, and the choice of the weight of consistency, use no larger batches than the training did."""
    encoder = Short(64, 4)
    encoder.always = True
    vade = VaDEClusterer(3, encoder=encoder, image_shape=(8, 8), augment="affine", device=device, **VADE)
    with pytest.warns(RuntimeWarning, match="ran out of memory with batches of 64 rows"):
        vade.fit(IMAGES)
    assert len(vade.held_out_scores_) == 5


def test_errors_that_only_look_like_shortages(device):
    class Broken(Short):
        def forward(self, x):
            if len(x) > self.most:
                raise RuntimeError("The size of tensor a must match the size of tensor b")
            return self.layer(x)

    with pytest.raises(RuntimeError, match="size of tensor a"):
        VAEEmbedder(2, encoder=Broken(5, 4), device=device, **SMALL).fit(X)


def test_memory_of_a_device_for_a_chunk(device, monkeypatch):
    if standin.ACTIVE is None:
        pytest.skip("Memory of a real device has another size.")
    if device == "mps":
        pytest.skip("What is asked of networks is computed on the CPU.")
    vae, many = VAEEmbedder(2, device=device, **SMALL).fit(X), np.tile(X, (50, 1))
    expected = vae.transform(many)
    monkeypatch.setattr(standin.ACTIVE, "largest_bytes", many.nbytes // 3)
    with pytest.warns(RuntimeWarning, match="ran out of memory with chunks"):
        assert_allclose(vae.transform(many), expected, **CLOSE)


class NotOnMPS(nn.Module):
    """Network with an operator for which mps has no kernel."""

    def __init__(self, n_inputs, n_outputs):
        super().__init__()
        self.layer = nn.Linear(n_inputs, n_outputs)

    def forward(self, x):
        return self.layer(torch.special.ndtri(x.sigmoid()))


class TooLarge(NotOnMPS):
    """Network with sizes that mps does not support."""

    def forward(self, x):
        if x.device.type == "mps":
            raise RuntimeError("Adaptive pool MPS: input sizes must be divisible by output sizes.")
        return self.layer(x)


class InFloat64(NotOnMPS):
    """Network that computes in float64."""

    def forward(self, x):
        return self.layer(x.double().sigmoid().to(x))


@pytest.mark.parametrize("network", [NotOnMPS, TooLarge, InFloat64])
def test_auto_takes_the_cpu_for_what_mps_lacks(network, device, is_real):
    if device != "mps":
        pytest.skip("CUDA has these kernels.")
    expected = VAEEmbedder(2, encoder=network, device="cpu", **SMALL).fit(X)
    with pytest.warns(RuntimeWarning, match=r"GPU of this Mac lacks .*MPS.*; device='auto' takes the CPU") as warned:
        found = VAEEmbedder(2, encoder=network, device="auto", **SMALL).fit(X)
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert_close(results_of(found, X), results_of(expected, X))
    with pytest.raises((RuntimeError, TypeError), match="MPS"):
        VAEEmbedder(2, encoder=network, device="mps", **SMALL).fit(X)


def test_auto_takes_the_device_that_can_do_it(device):
    used = set()

    class Devices(Callback):
        def on_epoch_end(self, net, **kwargs):
            used.add(next(net.module_.parameters()).device.type)

    vae = VAEEmbedder(2, device="auto", callbacks=[Devices()], **SMALL).fit(X)
    assert used == {device}
    assert torch.device(vae.net_.device).type == next(vae.net_.module_.parameters()).device.type
    gmm = TorchGMM(3, random_state=0).fit(X)
    assert_close(results_of(gmm, X), results_of(TorchGMM(3, device="cpu", random_state=0).fit(X), X))


def test_units_keep_their_digits_where_there_is_no_float64(device):
    """A column of time stamps: in float32 all of them are the same number."""
    stamps = np.column_stack([X, 1.7e9 + np.arange(len(X)) / 8])
    found = VAEEmbedder(2, device=device, **SMALL).fit(stamps)
    found = found.partial_fit(stamps)
    back = found.reconstruct(stamps)
    assert len(np.unique(back[:, -1])) > 100
    assert abs(back[:, -1] - 1.7e9).max() < 100


def test_the_cause_of_an_error_in_a_forked_process(monkeypatch):
    def empty(*size, **options):
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, ...")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(ValueError, match="device='cuda' cannot be used here.*forked.*'spawn'"):
        TorchGMM(2, device="cuda").fit(X)
