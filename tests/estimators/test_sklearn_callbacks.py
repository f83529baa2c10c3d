"""Callbacks of scikit-learn: they are called for fits and epochs."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvae import AutoencoderEmbedder, TorchGMM, TorchMiniBatchKMeans, TorchPPCA, VaDEClusterer, VAEEmbedder

callback = pytest.importorskip("sklearn.callback", reason="scikit-learn has callbacks from 1.9 on.")
pytestmark = pytest.mark.filterwarnings("ignore:Clusters .* have almost no samples", "ignore:Clusters overlap")
SMALL = {"hidden_layer_sizes": (8,), "max_epochs": 3, "random_state": 0}
EMBEDDERS = [
    VAEEmbedder(2, **SMALL),
    AutoencoderEmbedder(2, **SMALL),
    VaDEClusterer(2, latent_dim=2, n_init=2, n_neighbors=0, pretrain_epochs=2, **SMALL),
]
OTHERS = [TorchGMM(2, random_state=0), TorchPPCA(2), TorchMiniBatchKMeans(2, random_state=0)]
over_embedders = pytest.mark.parametrize("embedder", EMBEDDERS, ids=lambda embedder: type(embedder).__name__)
over_all = pytest.mark.parametrize("estimator", EMBEDDERS + OTHERS, ids=lambda estimator: type(estimator).__name__)


class Recorder:
    """Callback that records its calls."""

    max_propagation_depth = None

    def __init__(self, stop_after=None):
        self.events, self.scores, self.stop_after, self.n_over = [], [], stop_after, 0

    def setup(self, estimator, context):
        self.events.append("setup")

    def on_fit_task_begin(self, estimator, context):
        self.events.append(("begin", context.task_name))

    def on_fit_task_end(self, estimator, context, *, X, fitted_estimator):
        self.events.append(("end", context.task_name))
        self.scores.append(fitted_estimator.score(X) if hasattr(fitted_estimator, "score") else None)
        return self.stop_after is not None and len(self.scores) >= self.stop_after

    def teardown(self, estimator, context):
        self.events.append("teardown")
        self.n_over += 1


@pytest.fixture
def X():
    return np.random.default_rng(0).random((60, 4))


@over_all
def test_callbacks_are_called_for_fits_and_epochs(estimator, X):
    recorder = Recorder()
    estimator = clone(estimator).set_callbacks(recorder).fit(X)
    n_epochs = estimator.n_iter_ if hasattr(estimator, "max_epochs") else 0
    epochs = [("begin", "epoch"), ("end", "epoch")] * n_epochs
    assert recorder.events == ["setup", ("begin", "fit"), *epochs, ("end", "fit"), "teardown"]
    assert not [name for name in vars(estimator) if "callback_fit_ctx" in name]
    again = clone(estimator).set_callbacks().fit(X)
    assert recorder.scores[-1] == again.score(X)


@over_embedders
def test_epochs_are_scored_as_they_are(embedder, X):
    recorder = Recorder()
    clone(embedder).set_callbacks(recorder).fit(X)
    assert len(recorder.scores) == 4
    assert np.isfinite(recorder.scores).all()
    assert recorder.scores[2] == pytest.approx(recorder.scores[3], rel=1e-6)


@over_embedders
def test_a_callback_can_stop_the_training(embedder, X):
    recorder = Recorder(stop_after=2)
    embedder = clone(embedder).set_params(max_epochs=50).set_callbacks(recorder).fit(X)
    assert embedder.n_iter_ == 2


def test_callbacks_are_torn_down_after_a_failed_fit(X):
    recorder = Recorder()
    with pytest.raises(ValueError, match="likelihood='poisson' needs whole numbers"):
        VAEEmbedder(2, likelihood="poisson").set_callbacks(recorder).fit(X)
    assert recorder.events[-1] == "teardown"


@pytest.mark.filterwarnings("ignore:.*does not support callbacks")
def test_progress_bar_of_a_pipeline_in_a_grid_search(X):
    pytest.importorskip("rich", reason="scikit-learn's progress bar is made with rich.")
    bar = callback.ProgressBar()
    pipeline = make_pipeline(StandardScaler(), VAEEmbedder(2, **SMALL), TorchGMM(2, random_state=0))
    search = GridSearchCV(pipeline, {"vaeembedder__n_components": [1, 2]}, cv=2)
    assert np.isfinite(search.set_callbacks(bar).fit(X).best_score_)
