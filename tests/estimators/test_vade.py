"""VaDEClusterer's own promises."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from helpers import fit_quietly, global_states, mirrored, same_weights, weights_of
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.datasets import load_digits, make_blobs
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback, EarlyStopping, GradientNormClipping
from torch import nn

from skvae import AutoencoderEmbedder, TorchGMM, VaDEClusterer, VAEEmbedder
from skvae.data.weights import resample_by_weight
from skvae.estimators import vade as module
from skvae.fitting.vade import held_out_terms
from skvae.models import LIKELIHOODS, NETWORKS
from skvae.models.networks import NetworkConfig

pytestmark = pytest.mark.usefixtures("short_embedding")
SMALL = {
    "latent_dim": 2,
    "hidden_layer_sizes": (16,),
    "n_init": 3,
    "pretrain_epochs": 5,
    "max_epochs": 5,
    "batch_size": 64,
    "random_state": 0,
}
IMAGES = SMALL | {"image_shape": (8, 8), "channels": (4,)}
FROZEN = {
    "optimizer": "sgd",
    "lr": 1e-12,
    "max_epochs": 1,
    "batch_norm": False,
    "consistency": 0,
}  # what it starts from
LIMITS_OF_MEMORY = ("skvae.data.inputs.MAX_HELD_BYTES", "skvae.data.inputs.MAX_DENSE_BYTES")
WEIGHTED_FORMS = {
    "plain": SMALL,
    "diagonal": SMALL | {"covariance_type": "diag"},
    "sampled": SMALL | {"responsibilities": "sampled"},
}


@pytest.fixture(scope="module")
def groups():
    """Four well separated clusters in twenty dimensions."""
    return make_blobs(n_samples=400, centers=4, n_features=20, random_state=0)


@pytest.fixture(scope="module")
def fitted(groups):
    return VaDEClusterer(4, **SMALL | {"pretrain_epochs": 20, "max_epochs": 20}).fit(groups[0])


@pytest.fixture(scope="module")
def images():
    return load_digits().data[:200] / 16


def test_shapes_and_attributes(fitted, groups):
    X, _ = groups
    assert fitted.labels_.shape == (400,)
    assert fitted.predict_proba(X).shape == (400, 4)
    assert fitted.transform(X).shape == (400, 2)
    assert fitted.score_samples(X).shape == fitted.log_likelihood(X, 2).shape == (400,)
    assert fitted.posterior_variance(X).shape == (400, 2)
    assert fitted.cluster_centers_.shape == (4, 20)
    assert fitted.weights_.shape == (4,)
    assert fitted.means_.shape == (4, 2)
    assert fitted.covariances_.shape == (4, 2, 2)
    assert fitted.n_features_in_ == 20
    assert fitted.n_iter_ == len(fitted.history_) == len(fitted.lower_bounds_) == len(fitted.loss_curve_) == 20
    assert len(fitted.pretrain_history_) == 20
    assert fitted.lower_bound_ == fitted.lower_bounds_[-1]
    assert fitted.consistency_ == 0.4 * 20
    assert list(fitted.held_out_scores_) == list(module.AUTO_INITS)
    assert list(fitted.held_out_scores_.values()) == [-loss for loss in fitted.init_losses_[0]]
    assert [len(losses) for losses in fitted.init_losses_[:2]] == [4, 2]
    assert_array_equal(fitted.get_feature_names_out(), ["vadeclusterer0", "vadeclusterer1"])


def test_finds_the_groups_and_describes_them(fitted, groups):
    X, y = groups
    assert adjusted_rand_score(y, fitted.labels_) > 0.95
    assert fitted.n_effective_clusters_ == pytest.approx(4, abs=0.1)
    assert_allclose(fitted.weights_, 0.25, atol=0.05)
    assert_allclose(fitted.cluster_centers_, fitted.inverse_transform(fitted.means_), rtol=1e-6)
    means = np.array([X[fitted.labels_ == c].mean(0) for c in range(4)])
    assert_array_equal(cdist(fitted.cluster_centers_, means).argmin(1), range(4))
    assert fitted.lower_bounds_[-1] > fitted.lower_bounds_[0]
    assert fitted.lower_bound_ == pytest.approx(fitted.score(X), abs=2)
    assert (fitted.weights_ > 0).all()
    assert fitted.weights_.sum() == pytest.approx(1)


def test_labels_are_predictions(groups):
    X, _ = groups
    for settings in (SMALL, SMALL | {"covariance_type": "diag"}):
        vade = fit_quietly(VaDEClusterer(4, **settings), X)
        assert_array_equal(vade.labels_, vade.predict(X))
        assert_array_equal(vade.labels_, vade.predict_proba(X).argmax(1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            assert_array_equal(clone(vade).fit_predict(X), vade.labels_)


def test_labels_do_not_go_stale(groups):
    """After a pass over other rows, they are of these, or gone."""
    X, _ = groups
    vade = fit_quietly(VaDEClusterer(4, **SMALL), X).partial_fit(X[:150])
    assert not hasattr(vade, "labels_") or np.array_equal(vade.labels_, vade.predict(X[:150]))


@pytest.mark.parametrize("settings", [SMALL, IMAGES | {"dropout": 0.2}], ids=["table", "images"])
def test_seeds(settings, groups, images):
    X = images if "image_shape" in settings else groups[0]
    one, two, other = (fit_quietly(VaDEClusterer(4, **settings | {"random_state": seed}), X) for seed in (0, 0, 1))
    assert same_weights(one, two)
    assert one.history_[-1]["train_loss"] == two.history_[-1]["train_loss"]
    assert_array_equal(one.labels_, two.labels_)
    assert not same_weights(one, other)


def test_labels_of_the_data_are_ignored(groups):
    X, y = groups
    shuffled = np.random.default_rng(0).permutation(y)
    fits = [fit_quietly(VaDEClusterer(4, **SMALL), X, y=labels) for labels in (None, y, shuffled)]
    assert same_weights(fits[0], fits[1])
    assert same_weights(fits[1], fits[2])


def test_rows_do_not_see_each_other(fitted, groups):
    X, _ = groups
    order = np.random.default_rng(0).permutation(len(X))
    for name in ("predict_proba", "predict", "transform", "score_samples", "posterior_variance", "reconstruct"):
        function = getattr(fitted, name)
        found = function(X)
        assert_array_equal(function(X), found, err_msg=name)
        for rows in (slice(20, 90), slice(5, 6), slice(None, None, -1), order):
            assert_allclose(function(X[rows]), found[rows], rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_probabilities_are_those_of_the_published_mixture(covariance_type, groups):
    X, _ = groups
    vade = fit_quietly(VaDEClusterer(4, **SMALL | {"covariance_type": covariance_type}), X)
    parts = vade.weights_, vade.means_, vade.covariances_
    gmm = TorchGMM.from_parameters(*parts, covariance_type=covariance_type)
    assert_allclose(vade.predict_proba(X), gmm.predict_proba(vade.transform(X)), atol=1e-4)


@pytest.mark.parametrize("responsibilities", ["exact", "sampled"])
def test_bounds_are_in_order(responsibilities, groups):
    X = groups[0][:100]
    settings = SMALL | {"responsibilities": responsibilities}
    vade = fit_quietly(VaDEClusterer(4, **settings), X)
    few, many = (np.mean([vade.log_likelihood(X, n, random_state=seed) for seed in range(5)]) for n in (5, 200))
    assert vade.score(X) <= few <= many


@pytest.mark.parametrize("cluster", range(4))
def test_draws_of_a_cluster_belong_to_it(cluster, fitted):
    X, y = fitted.sample(200, cluster=cluster, random_state=0)
    assert X.shape == (200, 20)
    assert set(y) == {cluster}
    assert (fitted.predict(X) == cluster).mean() > 0.5, "more belong to the others together"
    assert_array_equal(X, fitted.sample(200, cluster=cluster, random_state=0)[0])
    assert not np.array_equal(X, fitted.sample(200, cluster=cluster, random_state=1)[0])


def test_draws_of_all_clusters(fitted, groups):
    X, y = fitted.sample(2_000, random_state=0)
    assert_allclose(np.bincount(y, minlength=4) / 2_000, fitted.weights_, atol=0.05)
    assert (fitted.predict(X) == y).mean() > 0.9
    assert_allclose(X.mean(0), groups[0].mean(0), atol=1.5)
    assert_array_equal(fitted.sample(3, cluster=np.int64(1))[1], [1, 1, 1])


@pytest.mark.parametrize("cluster", [-1, 4, 1.5, "1", [0]])
def test_no_such_cluster(cluster, fitted):
    with pytest.raises(ValueError, match="should be None or an integer from 0 to 3"):
        fitted.sample(3, cluster=cluster)


def test_networks_for_images(images):
    """Convolutions in, perceptrons out."""
    vade = fit_quietly(VaDEClusterer(3, consistency=0, **IMAGES), images)
    kinds = [{type(part) for part in net.modules()} for net in (vade.module_.encoder, vade.module_.decoder)]
    assert nn.Conv2d in kinds[0]
    assert nn.BatchNorm2d in kinds[0]
    assert kinds[1] & {nn.Conv2d, nn.ConvTranspose2d} == set()
    default = fit_quietly(VaDEClusterer(3, **IMAGES | {"hidden_layer_sizes": "auto", "consistency": 0}), images)
    widths = [part.out_features for part in default.module_.decoder.modules() if isinstance(part, nn.Linear)]
    assert widths == [256, 512, 64]


@pytest.mark.parametrize("n_outputs", [1, 64, 100])
@pytest.mark.parametrize(("settings", "heads"), [({}, ()), ({"channels": (3,), "kernel_size": 3}, ()), ({}, (5,))])
def test_shapes_of_hybrid_networks(n_outputs, settings, heads):
    generator = torch.Generator().manual_seed(0)
    config = NetworkConfig("relu", generator, hidden_layer_sizes=(7, 5), head_layer_sizes=heads)
    encoder, decoder = NETWORKS["hybrid"](64, 2, n_outputs, config, image_shape=(8, 8), **settings)
    codes = encoder(torch.zeros(3, 64))
    assert codes.shape == (3, 4)
    assert decoder(codes[:, :2]).shape == (3, n_outputs)


def test_consistency_needs_pairs(groups):
    with pytest.raises(ValueError, match=r"consistency=1 compares pairs of samples, but there are none: .*set augment"):
        VaDEClusterer(4, consistency=1.0, n_neighbors=0, **SMALL).fit(groups[0])
    with pytest.raises(ValueError, match="but there are none"):
        VaDEClusterer(4, consistency=1.0, augment=None, n_neighbors=0, **IMAGES).fit(np.zeros((20, 64)))


@pytest.mark.parametrize("n_samples", [4, 5, 7])
def test_few_samples_are_not_paired(n_samples, groups):
    """With one held out, fewer samples than clusters could be left."""
    X = groups[0][:n_samples]
    assert fit_quietly(VaDEClusterer(4, **SMALL), X).consistency_ == 0
    with pytest.raises(ValueError, match="fewer than two samples for each cluster"):
        VaDEClusterer(4, consistency=1.0, **SMALL).fit(X)
    assert fit_quietly(VaDEClusterer(4, **SMALL), groups[0][:8]).consistency_ > 0
    vade = fit_quietly(VaDEClusterer(4, **SMALL), groups[0]).partial_fit(X)
    assert vade.n_iter_ == 6


@pytest.mark.parametrize("init", ["kmeans", "neighbor_kmeans", "neighbor_gmm"])
def test_partitions_need_neighbors(init, groups):
    with pytest.raises(ValueError, match=f"init='{init}' needs the neighbours of samples"):
        VaDEClusterer(4, init=init, n_neighbors=0, **SMALL).fit(groups[0])


@pytest.mark.usefixtures("whole_embedding")
@pytest.mark.parametrize("weight", ["auto", 0.0])
@pytest.mark.parametrize("init", ["gmm", "kmeans", "neighbor_kmeans", "neighbor_gmm", "random"])
def test_every_initialization(init, weight, groups):
    X, y = groups
    settings = SMALL | {"pretrain_epochs": 20, "max_epochs": 20, "n_init": 10}
    vade = fit_quietly(VaDEClusterer(4, init=init, consistency=weight, **settings), X)
    assert vade.init_ == init
    assert vade.held_out_scores_ == {}
    assert [len(losses) for losses in vade.init_losses_] == ([10, 3] if init == "random" else [])
    assert adjusted_rand_score(y, vade.labels_) > 0.9


@pytest.mark.usefixtures("whole_embedding")
@pytest.mark.parametrize("init", ["kmeans", "neighbor_kmeans", "neighbor_gmm"])
def test_partitions_are_the_initial_clusters(init, groups):
    X, y = groups
    vade = fit_quietly(VaDEClusterer(4, init=init, **SMALL | FROZEN), X)
    assert adjusted_rand_score(y, vade.labels_) > 0.9
    counts = np.bincount(vade.labels_) / len(X)
    assert_allclose(vade.weights_, counts, atol=0.02)


def test_pairs_of_tables_and_of_images(images):
    vade = fit_quietly(VaDEClusterer(3, **IMAGES), images)
    assert vade.consistency_ == 0.4 * 64
    assert list(vade.held_out_scores_) == [*module.AUTO_INITS, "random"]
    assert vade.init_ in vade.held_out_scores_
    assert len(vade.module_.prior.means) == 1
    table = fit_quietly(VaDEClusterer(3, augment=None, **IMAGES), images)
    assert table.consistency_ == 0.4 * 64
    assert [len(losses) for losses in table.init_losses_[:2]] == [4, 2]
    assert list(table.held_out_scores_) == list(module.AUTO_INITS)
    views = fit_quietly(VaDEClusterer(3, n_neighbors=0, **IMAGES), images)
    assert views.held_out_scores_ == {}
    assert views.init_ == "random"
    plain = fit_quietly(VaDEClusterer(3, n_neighbors=0, augment=None, **IMAGES), images)
    assert (plain.consistency_, plain.init_) == (0.0, "gmm")


def test_held_out_scores_are_agreement_of_neighbors_and_divergence(groups, monkeypatch):
    scores = []

    def terms(model, held_out, data, view_of):
        near = cdist(held_out.rows, data.rows).argsort(1)[:, :5]
        assert_array_equal(held_out.neighbors, data.rows[near.ravel()])
        kl, agreement = held_out_terms(model, held_out, data, view_of)
        scores.append((0.25 * 0.4 * 20 * agreement - kl).mean(0))
        return kl, agreement

    monkeypatch.setattr(module, "held_out_terms", terms)
    vade = fit_quietly(VaDEClusterer(4, **SMALL), groups[0])
    assert_allclose(list(vade.held_out_scores_.values()), scores[0], rtol=1e-5)
    assert_allclose(vade.init_losses_[1], -scores[1], rtol=1e-5)


@pytest.mark.parametrize("best", [0, 3])
def test_the_highest_score_of_held_out_samples_decides(best, images, monkeypatch):
    sizes = []

    def terms(model, held_out, data, view_of):
        assert len(data.rows) == 180
        sizes.append(len(held_out.rows))
        n_mixtures = len(model.prior.means)
        index = {4: best, 2: 0}.get(n_mixtures, 0) if len(sizes) < 3 else 0
        return torch.zeros(1, n_mixtures), torch.eye(n_mixtures)[[index]]

    monkeypatch.setattr(module, "held_out_terms", terms)
    vade = fit_quietly(VaDEClusterer(3, augment=None, **IMAGES), images)
    assert vade.init_ == module.AUTO_INITS[best]
    assert set(sizes) == {20}


@pytest.mark.parametrize("better", [0, 1])
def test_held_out_samples_choose_between_trainings_of_images(better, images, monkeypatch):
    objectives = iter([1.0 - better, float(better)])
    models = []

    def objective(model, rows, data, weight, view_of):
        assert weight == 0.4 * 64
        assert (len(rows), len(data.rows)) == (20, 180)
        assert view_of is not None
        models.append({name: value.clone() for name, value in model.state_dict().items()})
        return next(objectives)

    monkeypatch.setattr(module, "held_out_objective", objective)
    vade = fit_quietly(VaDEClusterer(3, **IMAGES), images)
    assert (vade.init_ == "random") == bool(better)
    assert same_weights(vade, models[better])
    random_scores = [-loss for loss in vade.init_losses_[0]]
    assert vade.held_out_scores_["random"] in random_scores or not better
    assert len(random_scores) == (IMAGES["n_init"] if better else 4)
    assert len(vade.history_) == IMAGES["max_epochs"]


def test_progress_bars_name_the_trainings(images, capsys):
    vade = fit_quietly(VaDEClusterer(3, verbose=1, **IMAGES), images)
    out, err = capsys.readouterr()
    assert out == f"VaDEClusterer: held-out samples chose init={vade.init_!r}\n"
    for phase in ("pretraining", "from gmm, kmeans, neighbor_kmeans, neighbor_gmm", "from random"):
        assert f"VaDEClusterer, {phase}: 100%" in err
    fit_quietly(VaDEClusterer(3, verbose=1, consistency=0, **IMAGES), images)
    out, err = capsys.readouterr()
    assert out == ""
    assert "VaDEClusterer, from gmm: 100%" in err


@pytest.mark.parametrize("weight", [0, 2.5])
def test_weight_of_the_consistency(weight, images):
    vade = fit_quietly(VaDEClusterer(3, consistency=weight, **IMAGES), images)
    assert vade.consistency_ == weight
    assert len(vade.module_.prior.means) == 1
    assert bool(vade.held_out_scores_) == bool(weight)
    assert ("train_agreement" in vade.history_[0]) == bool(weight)


def test_views_of_tables(groups):
    def view(u, generator):
        return u + 0.1 * torch.randn(u.shape, generator=generator)

    vade = fit_quietly(VaDEClusterer(4, augment=view, **SMALL), groups[0])
    assert len(vade.held_out_scores_) == 5
    one, two = (fit_quietly(VaDEClusterer(4, augment=view, consistency=c, **SMALL), groups[0]) for c in (0, 3))
    assert not same_weights(one, two)
    assert two.history_[-1]["train_agreement"] > 0.5


def test_files_have_no_neighbors(groups, tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    for limit in LIMITS_OF_MEMORY:
        monkeypatch.setattr(limit, 0)
    with h5py.File(tmp_path / "X.h5", "w") as file:
        X = file.create_dataset("X", data=groups[0])
        vade = fit_quietly(VaDEClusterer(4, **SMALL), X)
        assert (vade.consistency_, vade.init_) == (0.0, "gmm")
        with pytest.raises(ValueError, match="neighbours are not searched in files"):
            VaDEClusterer(4, consistency=1.0, **SMALL).fit(X)


def test_sparse_samples_have_the_neighbors_of_dense_ones(groups, monkeypatch):
    X = np.maximum(groups[0], 0)
    dense = fit_quietly(VaDEClusterer(4, **SMALL), X)
    for limit in LIMITS_OF_MEMORY:
        monkeypatch.setattr(limit, 0)
    sparse = fit_quietly(VaDEClusterer(4, **SMALL), csr_array(X))
    assert sparse.init_ == dense.init_
    assert_array_equal(sparse.labels_, dense.labels_)


@pytest.mark.parametrize("n_rows", [30, 64, 150])
def test_short_trainings_end_with_one_mixture(n_rows, images):
    """Draws, predictions and scores then use the same mixture."""
    for how in ("fit", "partial_fit"):
        vade = VaDEClusterer(3, consistency=1.0, **IMAGES | {"n_init": 10, "max_epochs": 1})
        vade = fit_quietly(vade, images[:n_rows]) if how == "fit" else vade.partial_fit(images[:n_rows])
        assert len(vade.module_.prior.means) == 1


def test_stopped_trainings_end_with_one_mixture(images):
    stop = EarlyStopping(monitor="train_loss", patience=1, threshold=1e9, threshold_mode="abs")
    vade = VaDEClusterer(3, consistency=1.0, callbacks=[stop], **IMAGES | {"n_init": 10, "max_epochs": 20})
    assert fit_quietly(vade, images).n_iter_ < 20
    assert len(vade.module_.prior.means) == 1


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_codes_in_fewer_dimensions_than_they_have(covariance_type, images):
    """A narrow layer makes codes linearly dependent."""
    settings = {"hidden_layer_sizes": (2,), "latent_dim": 6, "architecture": "mlp", "covariance_type": covariance_type}
    vade = fit_quietly(VaDEClusterer(3, consistency=1.0, **IMAGES | settings), images)
    assert np.isfinite(vade.score(images))


@pytest.mark.parametrize("consistency", [0, 1.0])
def test_equal_rows(consistency):
    vade = fit_quietly(VaDEClusterer(3, consistency=consistency, **IMAGES), np.full((30, 64), 0.5))
    assert_allclose(vade.predict_proba(np.full((3, 64), 0.5)).sum(1), 1)


def test_as_many_rows_as_clusters(images):
    """Those that are held out are no reason to fail."""
    vade = fit_quietly(VaDEClusterer(10, **IMAGES), images[:10])
    assert vade.labels_.shape == (10,)


PRETRAINED = {
    "AutoencoderEmbedder": AutoencoderEmbedder(2, hidden_layer_sizes=(16,), max_epochs=20, random_state=0),
    "VAEEmbedder": VAEEmbedder(2, hidden_layer_sizes=(16,), max_epochs=20, random_state=0),
}
over_pretrained = pytest.mark.parametrize("name", PRETRAINED)


@over_pretrained
def test_pretrained_networks_are_where_it_starts(name, groups):
    X, _ = groups
    given = clone(PRETRAINED[name]).fit(X)
    before, expected = weights_of(given), given.transform(X)
    vade = fit_quietly(VaDEClusterer(4, pretrained=given, **SMALL | FROZEN), X)
    assert vade.pretrain_history_ == []
    assert vade.likelihood_ == given.likelihood_
    assert_allclose(vade.transform(X), (expected - expected.mean(0)) / expected.std(0), atol=1e-3)
    assert_allclose(vade.reconstruct(X), given.reconstruct(X), rtol=1e-3, atol=1e-2)
    trained = fit_quietly(VaDEClusterer(4, pretrained=given, **SMALL), X)
    assert trained.score(X) > vade.score(X)
    assert same_weights(given, before)
    assert_array_equal(given.transform(X), expected)
    assert vade.pretrained is given


@over_pretrained
def test_pretrained_embedders_are_checked(name, groups):
    X, _ = groups
    given = clone(PRETRAINED[name]).set_params(max_epochs=1)
    for epochs in ({}, {"max_epochs": "auto", "pretrain_epochs": "auto"}):
        with pytest.raises(NotFittedError):
            VaDEClusterer(4, pretrained=given, **SMALL | epochs).fit(X)
    given.fit(X)
    with pytest.raises(ValueError, match="pretrained embeds 20 features in 2 dimensions, but X has 20 .* is 3"):
        VaDEClusterer(4, pretrained=given, **SMALL | {"latent_dim": 3}).fit(X)
    with pytest.raises(ValueError, match="pretrained embeds 20 features in 2 dimensions, but X has 5 features"):
        VaDEClusterer(4, pretrained=given, **SMALL).fit(X[:, :5])


def test_pretrained_by_something_else_is_a_clear_error(groups):
    X, _ = groups
    with pytest.raises((TypeError, ValueError), match="pretrained"):
        VaDEClusterer(4, pretrained=PCA(2).fit(X), **SMALL).fit(X)


def test_pretrained_by_the_same_kind(groups):
    """Its mixture is not kept, only its networks."""
    X, _ = groups
    given = fit_quietly(VaDEClusterer(3, **SMALL), X)
    assert fit_quietly(VaDEClusterer(4, pretrained=given, **SMALL), X).predict_proba(X).shape == (400, 4)


def test_pretrained_images(images):
    given = AutoencoderEmbedder(2, image_shape=(8, 8), channels=(4,), max_epochs=3, random_state=0).fit(images)
    vade = fit_quietly(VaDEClusterer(3, pretrained=given, **IMAGES), images)
    assert len(vade.held_out_scores_) == 5


def test_no_pretraining(groups):
    """Untrained networks compute as they will in prediction: nothing is dropped."""
    X, _ = groups
    for settings in ({}, {"batch_norm": False}, {"dropout": 0.3}):
        vade = fit_quietly(VaDEClusterer(4, **SMALL | {"pretrain_epochs": 0} | settings), X)
        assert vade.pretrain_history_ == []
        assert np.isfinite(vade.score(X))
    vade = VaDEClusterer(4, **SMALL | FROZEN | {"pretrain_epochs": 0})
    codes = fit_quietly(vade, X).transform(X)
    assert_allclose(codes.mean(0), 0, atol=1e-3)
    assert_allclose(codes.std(0), 1, atol=1e-3)


def test_warm_start_goes_on(groups):
    X, _ = groups
    vade = fit_quietly(VaDEClusterer(4, warm_start=True, consistency=0.0, **SMALL), X)
    first, history = vade.score(X), vade.pretrain_history_
    net = weights_of(vade)
    fit_quietly(vade, X)
    assert vade.n_iter_ == len(vade.history_) == len(vade.lower_bounds_) == 10
    assert [row["epoch"] for row in vade.history_] == list(range(1, 11))
    assert vade.pretrain_history_ == history
    assert vade.score(X) > first
    assert not same_weights(vade, net)
    cold = fit_quietly(VaDEClusterer(4, consistency=0.0, **SMALL), X)
    assert same_weights(fit_quietly(cold, X), net)


def test_warm_start_with_agreement(images):
    vade = fit_quietly(VaDEClusterer(3, warm_start=True, consistency=2.0, **IMAGES), images)
    fit_quietly(vade, images)
    assert vade.consistency_ == 2.0
    assert "train_agreement" in vade.history_[-1]
    assert len(vade.held_out_scores_) == 5, "mixtures were chosen in the first training"


@pytest.mark.parametrize(
    "change", [{"n_clusters": 6}, {"covariance_type": "diag"}, {"latent_dim": 3}], ids=lambda change: next(iter(change))
)
def test_warm_start_with_another_mixture_is_an_error(change, groups):
    X, _ = groups
    vade = fit_quietly(VaDEClusterer(4, warm_start=True, **SMALL), X)
    with pytest.raises(ValueError, match=next(iter(change))):
        fit_quietly(vade.set_params(**change), X)


def test_warm_start_without_views(images):
    vade = fit_quietly(VaDEClusterer(3, warm_start=True, consistency=2.0, **IMAGES), images)
    with pytest.raises(ValueError, match="views"):
        fit_quietly(vade.set_params(augment=None, n_neighbors=0), images)


def test_passes_over_batches(groups):
    X, _ = groups
    vade = VaDEClusterer(4, **SMALL)
    for number in range(1, 4):
        assert vade.partial_fit(X) is vade
        assert vade.n_iter_ == number
    assert len(vade.pretrain_history_) == 5
    assert vade.predict(X).shape == (400,)
    one, two = (VaDEClusterer(4, **SMALL).partial_fit(X[:200]).partial_fit(X[200:]) for _ in range(2))
    assert same_weights(one, two)
    after = fit_quietly(VaDEClusterer(4, **SMALL), X).partial_fit(X)
    assert after.n_iter_ == 6


def test_first_pass_needs_a_row_for_each_cluster(groups):
    X, _ = groups
    with pytest.raises(ValueError, match="n_clusters=10 is larger than n_samples=5"):
        VaDEClusterer(10, **SMALL).partial_fit(X[:5])
    wide = SMALL | {"latent_dim": 10}
    fit_quietly(VaDEClusterer(2, **wide), X[:5])
    assert VaDEClusterer(2, **wide).partial_fit(X[:5]).n_iter_ == 1


@pytest.mark.parametrize("form", WEIGHTED_FORMS)
def test_whole_weights_are_repeated_rows(form, groups):
    X, rng = groups[0][:120], np.random.default_rng(0)
    weight = rng.integers(0, 4, len(X))
    order = rng.permutation(weight.sum())
    vade = VaDEClusterer(4, **WEIGHTED_FORMS[form])
    weighted = fit_quietly(vade, X, sample_weight=weight)
    repeated = fit_quietly(clone(vade), np.repeat(X, weight, axis=0)[order])
    assert same_weights(weighted, repeated)
    assert_array_equal(weighted.labels_, repeated.predict(X))


def test_rows_of_no_weight_are_not_seen(groups):
    X = groups[0][:120].copy()
    weight = np.ones(len(X))
    weight[::3] = 0
    X[::3] *= 1e6
    one = fit_quietly(VaDEClusterer(4, **SMALL), X, sample_weight=weight)
    two = fit_quietly(VaDEClusterer(4, **SMALL), X[weight > 0])
    assert same_weights(one, two)


def test_order_of_rows_does_not_matter(groups, images):
    order = np.random.default_rng(0).permutation(200)
    for X, settings in ((groups[0][:200], SMALL), (images, IMAGES)):
        one, two = (fit_quietly(VaDEClusterer(4, **settings), rows) for rows in (X, X[order]))
        assert same_weights(one, two)
        assert_array_equal(one.labels_[order], two.labels_)


def test_fractional_weights(groups):
    X, weight = groups[0], np.random.default_rng(0).uniform(0, 3, len(groups[0]))
    vade = fit_quietly(VaDEClusterer(4, **SMALL), X, sample_weight=weight)
    assert np.isfinite(vade.score(X))
    halves, ones = (fit_quietly(VaDEClusterer(4, **SMALL), X, sample_weight=np.full(400, w)) for w in (0.5, 1.0))
    assert same_weights(halves, ones), "weights below one on average are scaled up"


@pytest.mark.parametrize("seed", range(5))
def test_weights_are_rounded_at_random(seed):
    """To one of the two whole numbers beside them; the sum is kept."""
    X, rng = np.arange(200.0)[:, None], np.random.default_rng(seed)
    weight = rng.uniform(0, 5, 200)
    counts = np.bincount(resample_by_weight(X, weight, seed).ravel().astype(int), minlength=200)
    assert (np.abs(counts - weight) < 1).all()
    assert abs(counts.sum() - weight.sum()) < 1
    order = rng.permutation(200)
    assert_array_equal(resample_by_weight(X[order], weight[order], seed), resample_by_weight(X, weight, seed))
    mean = np.mean(
        [np.bincount(resample_by_weight(X, weight, s).ravel().astype(int), minlength=200) for s in range(200)], 0
    )
    assert np.abs(mean - weight).max() < 0.2


@pytest.mark.parametrize(
    ("weight", "match"),
    [
        (np.full(400, -1.0), "Negative values"),
        (np.zeros(400), "zero"),
        (np.full(400, np.nan), "NaN"),
        (np.full(400, np.inf), "infinity"),
        (np.ones(399), "399"),
        (np.ones((400, 2)), "Sample weights must be 1D"),
    ],
)
def test_wrong_weights(weight, match, groups):
    with pytest.raises(ValueError, match=match):
        VaDEClusterer(4, **SMALL).fit(groups[0], sample_weight=weight)


def test_fewer_weighted_rows_than_clusters(groups):
    weight = np.zeros(400)
    weight[:3] = 1
    with pytest.raises(ValueError, match="n_clusters=4 is larger than n_samples=3"):
        VaDEClusterer(4, **SMALL).fit(groups[0], sample_weight=weight)


@pytest.mark.parametrize("sample_weight", [None, np.ones(400)], ids=["no weights", "weights"])
def test_rows_that_can_not_be_written(sample_weight, groups):
    """There is no warning of torch's, which pytest would raise."""
    X = groups[0].copy()
    X.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ConvergenceWarning)
        VaDEClusterer(4, **SMALL).fit(X, sample_weight=sample_weight)


def test_dead_clusters_are_named(groups):
    X = np.repeat(groups[0][:3], 40, axis=0)
    with pytest.warns(ConvergenceWarning, match=r"Clusters \[.*\] have almost no samples \(\d+ of 12\)") as caught:
        VaDEClusterer(12, **SMALL).fit(X)
    assert [warning.filename for warning in caught] == [__file__], "it does not point at the caller"


def test_clusters_that_are_all_alike_are_told():
    """Random mixtures begin so, and nothing was learned."""
    X = np.random.default_rng(0).normal(size=(200, 4))
    vade = VaDEClusterer(5, init="random", **SMALL | FROZEN)
    with pytest.warns(ConvergenceWarning, match="Clusters overlap: the mean of the largest resp"):
        vade.fit(X)


def test_good_fits_are_silent(groups):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        VaDEClusterer(4, **SMALL | {"pretrain_epochs": 20, "max_epochs": 20}).fit(groups[0])


def test_one_cluster_is_a_variational_autoencoder(groups):
    X, _ = groups
    vade = VaDEClusterer(1, **SMALL).fit(X)
    assert_array_equal(vade.labels_, 0)
    assert_allclose(vade.predict_proba(X), 1)
    assert vade.n_effective_clusters_ == pytest.approx(1)


def test_bytes(images):
    X = (255 * images).astype(np.uint8)
    one, two = (fit_quietly(VaDEClusterer(3, **IMAGES), rows) for rows in (X, X.astype(np.float64)))
    assert_array_equal(one.predict(X), one.predict(X.astype(np.float64)))
    assert one.score(X) == pytest.approx(two.score(X), rel=1e-3)
    assert one.predict_proba(X).dtype == one.means_.dtype == np.float64
    assert fit_quietly(VaDEClusterer(3, **IMAGES), X, sample_weight=np.full(200, 2)).n_features_in_ == 64


@pytest.mark.parametrize("factor", [1e3, 1e10, 1e25])
def test_far_rows_belong_somewhere(factor, groups, fitted):
    X = (groups[0][:20] * factor).astype(np.float32)
    resp = fitted.predict_proba(X)
    assert_allclose(resp.sum(1), 1, rtol=1e-5)
    assert_array_equal(resp.argmax(1), fitted.predict(X))


def plain_network(n_inputs, n_outputs):
    return nn.Linear(n_inputs, n_outputs)


AGREEING = {"image_shape": (8, 8), "channels": (4,), "consistency": 1.0}
# Other values of every parameter, and what else has to be set for them to matter.
CHANGES = {
    "n_clusters": (4, {}),
    "latent_dim": (3, {}),
    "covariance_type": ("diag", {}),
    "responsibilities": ("sampled", {}),
    "architecture": ("mlp", {"image_shape": (8, 8)}),
    "hidden_layer_sizes": ((8, 8), {}),
    "head_layer_sizes": ((8,), {}),
    "activation": ("tanh", {}),
    "batch_norm": (False, {}),
    "layer_norm": (True, {}),
    "dropout": (0.5, {}),
    "image_shape": ((8, 8), {}),
    "channels": ((4,), {"image_shape": (8, 8)}),
    "encoder": (plain_network, {}),
    "decoder": (plain_network, {}),
    "likelihood": ("gaussian", {}),
    "beta": (5.0, {}),
    "augment": (mirrored, {"consistency": 0}),
    "consistency": (5.0, AGREEING),
    "n_neighbors": (3, {}),
    "init": ("random", {}),
    "n_init": (1, {"init": "random"}),
    "pretrain_epochs": (2, {}),
    "max_epochs": (2, {}),
    "batch_size": (32, {}),
    "pretrain_lr": (1e-2, {}),
    "lr": (1e-2, {}),
    "optimizer": ("sgd", {}),
    "weight_decay": (1.0, {}),
    "max_grad_norm": (1e-3, {"optimizer": "sgd"}),
    "callbacks": ([GradientNormClipping(1e-3)], {"optimizer": "sgd"}),
    "random_state": (1, {}),
}


SCORES = {}  # of fits that several parameters are compared with


@pytest.mark.parametrize("name", CHANGES)
def test_every_parameter_changes_the_fit(name, images):
    value, others = CHANGES[name]
    base = VaDEClusterer(3, **SMALL | others)
    if str(others) not in SCORES:
        SCORES[str(others)] = fit_quietly(base, images).score(images)
    other = clone(base).set_params(**{name: value})
    assert SCORES[str(others)] != fit_quietly(other, images).score(images)


def test_the_other_parameters_are_tested_elsewhere():
    rest = set(VaDEClusterer().get_params()) - set(CHANGES)
    tested = {"device", "verbose", "precision", "compile", "warm_start", "checkpoint", "pretrained", "size_factor"}
    assert rest == tested


def test_beta_weighs_the_divergence(groups):
    kls = []
    for beta in (0.0, 1.0, 20.0):
        vade = fit_quietly(VaDEClusterer(4, beta=beta, **SMALL | {"max_epochs": 20}), groups[0])
        kls.append(vade.history_[-1]["train_kl"])
    assert kls[0] > kls[1] > kls[2]


def test_automatic_epochs():
    """Few rows that are always the same are learned by heart, but not views of them."""
    sizes, steps = (100, 1_000, 10_000, 1_000_000), {"n_iterations": 800, "min_epochs": 6}
    assert [VaDEClusterer()._choose_epochs("auto", n, **steps) for n in sizes] == [60, 100, 20, 6]
    for views in ({"image_shape": (8, 8)}, {"augment": lambda x, generator: x}):
        assert [VaDEClusterer(**views)._choose_epochs("auto", n, **steps) for n in sizes] == [300, 100, 20, 6]
    for none in ({"augment": None}, {"likelihood": "poisson"}, {"likelihood": LIKELIHOODS["categorical"]}):
        assert VaDEClusterer(image_shape=(8, 8), **none)._choose_epochs("auto", 100, **steps) == 60
    assert VaDEClusterer()._choose_epochs(7, 10_000, **steps) == 7


class Interrupts(Callback):
    """Ctrl-C in the joint training of this number, counted over copies."""

    count = 0

    def __init__(self, number):
        self.number = number

    def on_train_begin(self, net, **kwargs):
        Interrupts.count += 1

    def on_epoch_end(self, net, **kwargs):
        if Interrupts.count == self.number:
            raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["pretraining", "first training", "second training", "labels"])
def test_interrupts_leave_everything_as_it_was(moment, images, monkeypatch):
    Interrupts.count = 0
    vade = fit_quietly(VaDEClusterer(3, **IMAGES), images)
    before, weights, expected = dict(vars(vade)), weights_of(vade), vade.predict_proba(images)

    def interrupted(method):
        def wrapper(*args, **kwargs):
            method(*args, **kwargs)
            raise KeyboardInterrupt

        return wrapper

    if moment in ("first training", "second training"):
        vade.set_params(callbacks=[Interrupts(1 + (moment == "second training"))])
    else:
        name = {"pretraining": "_pretrain", "labels": "_set_latent_statistics"}[moment]
        monkeypatch.setattr(VaDEClusterer, name, interrupted(getattr(VaDEClusterer, name)))
    with pytest.raises(KeyboardInterrupt):
        vade.set_params(random_state=1).fit(images[:100])
    vade.set_params(callbacks=None, random_state=0)
    assert vars(vade).keys() == before.keys()
    assert all(vars(vade)[name] is before[name] for name in before)
    assert same_weights(vade, weights)
    assert_array_equal(vade.predict_proba(images), expected)


def test_interrupted_first_fits_leave_nothing(groups, monkeypatch):
    vade = VaDEClusterer(4, callbacks=[Interrupts(1)], **SMALL)
    Interrupts.count = 0
    with pytest.raises(KeyboardInterrupt):
        vade.fit(groups[0])
    assert vars(vade) == vade.get_params(deep=False)


def test_copies(images):
    vade = fit_quietly(VaDEClusterer(3, **IMAGES), images)
    for other in (pickle.loads(pickle.dumps(vade)), copy.deepcopy(vade)):
        assert_array_equal(other.predict_proba(images), vade.predict_proba(images))
        assert_array_equal(other.sample(5, cluster=1)[0], vade.sample(5, cluster=1)[0])
        assert other.held_out_scores_ == vade.held_out_scores_
        other.partial_fit(images)
        assert other.n_iter_ == 6
    assert vade.n_iter_ == 5
    twin = clone(vade)
    assert vars(twin) == twin.get_params()
    assert same_weights(fit_quietly(twin, images), vade)


def test_clones_of_what_is_pretrained(groups):
    """scikit-learn clones what is inside, too, which is then not fitted; frozen, it stays."""
    X, _ = groups
    given = clone(PRETRAINED["AutoencoderEmbedder"]).set_params(max_epochs=1).fit(X)
    vade = VaDEClusterer(4, pretrained=FrozenEstimator(given), **SMALL)
    assert same_weights(fit_quietly(vade, X), fit_quietly(VaDEClusterer(4, pretrained=given, **SMALL), X))
    assert same_weights(fit_quietly(clone(vade), X), vade)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        GridSearchCV(vade, {"beta": [1.0]}, cv=2, error_score="raise").fit(X)
    with pytest.raises(NotFittedError):
        clone(vade.set_params(pretrained=given)).fit(X)


@pytest.mark.usefixtures("whole_embedding")
def test_pipelines(groups):
    X, y = groups
    pipeline = make_pipeline(StandardScaler(), VaDEClusterer(4, **SMALL | {"pretrain_epochs": 20, "max_epochs": 20}))
    labels = pipeline.fit_predict(X)
    assert_array_equal(labels, pipeline.predict(X))
    assert adjusted_rand_score(y, labels) > 0.9
    assert pipeline.transform(X).shape == (400, 2)
    pipeline.fit(X, vadeclusterer__sample_weight=np.ones(400))
    assert_array_equal(pipeline.predict(X), labels)
    before = make_pipeline(VaDEClusterer(4, **SMALL | {"pretrain_epochs": 20, "max_epochs": 20}), TorchGMM(4)).fit(X)
    assert before.predict(X).shape == (400,)


def test_searches(groups):
    X, y = groups
    vade = VaDEClusterer(**SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        grid = {"n_clusters": [2, 4], "covariance_type": ["full", "diag"]}
        search = GridSearchCV(vade, grid, cv=2).fit(X)
        with_labels = GridSearchCV(vade, grid, cv=2, scoring="adjusted_rand_score").fit(X, y)
    for found in (search, with_labels):
        assert np.isfinite(found.cv_results_["mean_test_score"]).all()
        assert found.best_estimator_.predict(X).shape == (400,)


@pytest.mark.parametrize("random_state", [None, 0])
def test_global_random_states_are_untouched(random_state, images):
    before = global_states()
    settings = {"dropout": 0.2, "responsibilities": "sampled", "random_state": random_state}
    vade = fit_quietly(VaDEClusterer(3, **IMAGES | settings), images, sample_weight=np.full(200, 1.3))
    vade.sample(5), vade.log_likelihood(images, 2), vade.score(images), vade.partial_fit(images)
    assert global_states() == before


def test_pretrained_networks_that_draw_are_private_too(groups):
    """Dropout of the user's own draws from the global state, if nothing stops it."""
    X, _ = groups
    encoder = nn.Sequential(nn.Linear(20, 8), nn.Dropout(0.5), nn.Linear(8, 4))
    given = VAEEmbedder(2, encoder=encoder, max_epochs=2, random_state=0).fit(X)
    vade = VaDEClusterer(4, pretrained=given, **SMALL)
    before = global_states()
    one = fit_quietly(clone(vade).set_params(pretrained=given), X)
    assert global_states() == before
    torch.manual_seed(123)
    assert same_weights(fit_quietly(vade, X), one)


@pytest.mark.usefixtures("whole_embedding")
def test_nearly_every_seed_finds_the_groups():
    X, y = make_blobs(n_samples=400, centers=4, n_features=20, random_state=1)
    settings = {"hidden_layer_sizes": (32,), "n_init": 5, "pretrain_epochs": 15, "max_epochs": 15, "batch_size": 64}
    found = [fit_quietly(VaDEClusterer(4, random_state=seed, **settings), X).labels_ for seed in range(10)]
    assert sum(adjusted_rand_score(y, labels) > 0.95 for labels in found) >= 9
