"""skorch's callbacks as a parameter: names, parameters of their own, and records that there are not."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler
from skorch.callbacks import Callback, Checkpoint, EarlyStopping, EpochScoring, EpochTimer, LRScheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau

from skvae import AutoencoderEmbedder, ClusterLabelClassifier, VaDEClusterer, VAEEmbedder

pytestmark = [
    pytest.mark.usefixtures("short_embedding"),
    pytest.mark.filterwarnings("ignore:Clusters .* have almost no samples", "ignore:Clusters overlap"),
]
SMALL = {"hidden_layer_sizes": (8,), "max_epochs": 5, "random_state": 0}
EMBEDDERS = {
    "VAE": VAEEmbedder(2, **SMALL),
    "AE": AutoencoderEmbedder(2, **SMALL),
    "VaDE": VaDEClusterer(2, latent_dim=2, pretrain_epochs=1, **SMALL),
}
over_embedders = pytest.mark.parametrize("embedder", EMBEDDERS.values(), ids=EMBEDDERS)


@pytest.fixture
def X():
    return np.random.default_rng(0).random((60, 6))


def never_good_enough(patience=5):
    return EarlyStopping("train_loss", patience=patience, threshold=0.99)


def names(embedder):
    return [name for name, _ in embedder.net_.callbacks_]


@over_embedders
@pytest.mark.parametrize("form", [list, tuple])
def test_callbacks_are_named_as_in_skorch(embedder, form, X):
    callbacks = form([("early", never_good_enough(2)), EpochTimer, EpochTimer(), ["lr", LRScheduler], LRScheduler()])
    embedder = clone(embedder).set_params(callbacks=callbacks).fit(X)
    assert [name for name in names(embedder) if "skvae" not in name] == [
        *("epoch_timer", "train_loss", "valid_loss"),
        *("early", "EpochTimer_1", "EpochTimer_2", "lr", "LRScheduler"),
        "print_log",
    ]
    assert embedder.n_iter_ == 3  # the first epoch, and two that are not better
    assert embedder.callbacks is callbacks
    assert callbacks[0][1].misses_ == 0  # a copy was trained with


@over_embedders
def test_parameters_of_callbacks(embedder, X):
    early = never_good_enough()
    embedder = clone(embedder).set_params(callbacks=[("early", early), EpochTimer()])
    params = embedder.get_params()
    assert params["callbacks__early"] is early
    assert params["callbacks__early__patience"] == 5
    assert params["callbacks__early__monitor"] == "train_loss"
    assert params["callbacks__EpochTimer"] is embedder.callbacks[1]
    assert not [name for name in embedder.get_params(deep=False) if "__" in name]
    copied = clone(embedder)
    assert copied.set_params(callbacks__early__patience=1, max_epochs=4) is copied
    assert (early.patience, copied.get_params()["callbacks__early__patience"], copied.max_epochs) == (5, 1, 4)
    assert copied.fit(X).n_iter_ == 2
    assert pickle.loads(pickle.dumps(copied)).get_params()["callbacks__early__patience"] == 1
    assert embedder.set_params(**{name: params[name] for name in params if name.startswith("callbacks__")})
    assert "early" in repr(embedder)
    assert "early" in embedder._repr_html_()


def test_a_callback_is_turned_off_and_replaced(X):
    given = [EpochTimer(), EpochTimer(), never_good_enough(1)]
    vae = VAEEmbedder(2, callbacks=given, **SMALL).set_params(callbacks__EarlyStopping=None)
    assert vae.fit(X).n_iter_ == 5
    assert len(given) == 3
    assert isinstance(given[2], EarlyStopping)
    vae.set_params(callbacks__EpochTimer_1=None)
    assert [name for name in vae.get_params() if "__" in name] == [
        "callbacks__EpochTimer_1",
        "callbacks__EpochTimer_2",
        "callbacks__EarlyStopping",
    ]
    vae.set_params(callbacks__EarlyStopping=never_good_enough(), callbacks__EarlyStopping__patience=1)
    assert clone(vae).fit(X).n_iter_ == 2
    vae.set_params(callbacks=[("early", never_good_enough())], callbacks__early__patience=2)
    assert vae.fit(X).n_iter_ == 3


def test_parameters_of_a_class_of_callbacks(X):
    callbacks = [("early", EarlyStopping)]
    vae = VAEEmbedder(2, callbacks=callbacks, **SMALL)
    assert vae.get_params()["callbacks__early__patience"] == 5
    vae.set_params(callbacks__early__patience=1, callbacks__early__monitor="train_loss", callbacks__early__threshold=1)
    assert callbacks == [("early", EarlyStopping)]
    assert vae.fit(X).n_iter_ == 2
    with pytest.raises(ValueError, match="Invalid parameters .*patient.* for EarlyStopping.*Valid parameters"):
        VAEEmbedder(callbacks=callbacks).set_params(callbacks__early__patient=1)


UNKNOWN = {
    "name": ({"callbacks__late": None}, "Invalid parameter 'callbacks__late'.*named: .'early', 'off'"),
    "parameter of a name": ({"callbacks__late__patience": 2}, "Invalid parameter 'callbacks__late__patience'"),
    "parameter": ({"callbacks__early__patient": 2}, "Invalid parameter 'patient'.*Valid parameters are.*patience"),
    "parameter of None": ({"callbacks__off__patience": 2}, "Invalid parameter 'callbacks__off__patience'.*is None"),
    "no name": ({"callbacks__": None}, "Invalid parameter 'callbacks__'"),
}


@pytest.mark.parametrize(("params", "match"), UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_parameters(params, match):
    vae = VAEEmbedder(callbacks=[("early", EarlyStopping()), ("off", None)])
    with pytest.raises(ValueError, match=f"(?s){match}"):
        vae.set_params(**params)
    with pytest.raises(ValueError, match="(?s)Invalid parameter 'callbacks__early__patience'"):
        VAEEmbedder().set_params(callbacks__early__patience=2)


NAMES = {
    "twice": (["a", "a"], "2 callbacks have the name 'a'"),
    "of skorch": (["train_loss"], "has the name 'train_loss'"),
    "with underscores": (["a__b"], "has the name 'a__b'"),
    "empty": ([""], "has the name ''"),
}


@pytest.mark.parametrize(("given", "match"), NAMES.values(), ids=NAMES)
def test_names_that_can_not_be_used(given, match, X):
    with pytest.raises(ValueError, match=match):
        VAEEmbedder(2, callbacks=[(name, EpochTimer()) for name in given], **SMALL).fit(X)


def test_names_of_built_in_callbacks_are_free(X):
    callbacks = [("LRScheduler", LRScheduler()), ("ELBOTerms", EpochTimer()), ("GradientNormClipping", EpochTimer())]
    vae = VAEEmbedder(2, callbacks=callbacks, lr_schedule="cosine", max_grad_norm=1.0, **SMALL).fit(X)
    assert {"LRScheduler", "ELBOTerms", "GradientNormClipping"} < set(names(vae))


def test_searches_over_parameters_of_callbacks(X):
    vae = VAEEmbedder(2, callbacks=[("early", never_good_enough()), never_good_enough()], **SMALL)
    search = GridSearchCV(vae, {"callbacks__early__patience": [1, 3], "callbacks__EarlyStopping": [None]}, cv=2)
    best = search.fit(X).best_estimator_
    assert best.n_iter_ == search.best_params_["callbacks__early__patience"] + 1
    steps = Pipeline([("scale", MinMaxScaler(clip=True)), ("vae", vae)])
    search = GridSearchCV(steps, {"vae__callbacks__early__patience": [1, 2]}, cv=2, refit=False).fit(X)
    assert len(search.cv_results_["params"]) == 2
    assert vae.get_params()["callbacks__early__patience"] == 5


def test_parameters_of_callbacks_of_nested_estimators():
    vade = VaDEClusterer(2, pretrained=VAEEmbedder(2, callbacks=[EarlyStopping()]))
    outer = ClusterLabelClassifier(vade)
    outer.set_params(estimator__pretrained__callbacks__EarlyStopping__patience=7)
    assert vade.pretrained.callbacks[0].patience == 7
    assert outer.get_params()["estimator__pretrained__callbacks__EarlyStopping__patience"] == 7


class Asks(Callback):
    """Looks up a record in the history of an epoch."""

    def __init__(self, key):
        self.key = key

    def on_epoch_end(self, net, **kwargs):
        return net.history[-1][self.key]


ASKING = {
    "EarlyStopping": (EarlyStopping(), "'valid_loss'.*epoch are train_loss.*use monitor='train_loss'"),
    "Checkpoint": (Checkpoint(), "'valid_loss_best'.*use monitor='train_loss_best'"),
    "LRScheduler": (LRScheduler(ReduceLROnPlateau, monitor="valid_kl"), "'valid_kl'.*use monitor='train_kl'"),
    "LRScheduler by batch": (
        LRScheduler(ReduceLROnPlateau, monitor="valid_loss", step_every="batch"),
        "'valid_loss'.*batch are train_loss; use monitor='train_loss'",
    ),
    "function": (Checkpoint(lambda net: net.history[-1, "mine"]), "'mine'.*epoch are train_loss.*use one of these"),
    "score": (EarlyStopping(monitor="mine"), "'mine'.*callback before it that records 'mine'"),
    "own": (Asks("valid_loss"), "'valid_loss'.*use monitor='train_loss'"),
}


@over_embedders
@pytest.mark.parametrize(("callback", "match"), ASKING.values(), ids=ASKING)
def test_records_that_there_are_not(embedder, callback, match, X):
    embedder = clone(embedder).set_params(callbacks=[("asks", callback)])
    with pytest.raises(ValueError, match=f"The callback 'asks' asks for {match}") as caught:
        embedder.fit(X)
    with_validation = "valid_" in match and not isinstance(embedder, VaDEClusterer)
    assert ("early_stopping=True, or X_val" in str(caught.value)) == with_validation
    assert not hasattr(embedder, "net_")


@pytest.mark.parametrize("settings", [{"early_stopping": True}, {}])
def test_validation_samples_are_recorded(settings, X, tmp_path):
    callbacks = [EarlyStopping(), ("best", Checkpoint(dirname=str(tmp_path))), EarlyStopping("valid_kl", patience=9)]
    vae = VAEEmbedder(2, callbacks=callbacks, **settings, **SMALL)
    vae.fit(X, **({} if settings else {"X_val": X[:9]}))
    assert (tmp_path / "params.pt").exists()
    vae.set_params(callbacks=[EarlyStopping("valid_score")])
    with pytest.raises(ValueError, match=r"'valid_score'.*valid_loss.*records 'valid_score'\.$"):
        vae.fit(X, X_val=X[:9])


def test_scores_before_early_stopping(X):
    score = EpochScoring(lambda net, X, y: 1.0, name="mine", on_train=True)
    vae = VAEEmbedder(2, callbacks=[score, EarlyStopping("mine", patience=2)], **SMALL)
    assert vae.fit(X).n_iter_ == 3
    vae.set_params(callbacks=vae.callbacks[::-1])
    with pytest.raises(ValueError, match="asks for 'mine'.*a callback before it"):
        vae.fit(X)


def test_other_key_errors_of_callbacks_stay(X):
    with pytest.raises(KeyError, match="mine"):
        VAEEmbedder(2, callbacks=[Asks("mine")], **SMALL).fit(X)
