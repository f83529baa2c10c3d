"""Callbacks to give to an embedder as ``callbacks=``: they watch a training, and do not change it by a single bit."""

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array, check_scalar
from sklearn.utils.validation import check_is_fitted
from skorch.callbacks import Callback

from .data.arrays import host_array
from .fitting.callbacks import Resumable
from .fitting.devices import preserved_rng_state
from .fitting.vade import PruneMixtures
from .models import GaussianMixturePrior

__all__ = ["EpochScores", "LatentSnapshots", "Snapshots"]
ROWS_AT_ONCE = 1_024
RESERVED_NAMES = {"loss", "log_likelihood", "kl", "agreement", "batch_count"}  # names of what is recorded anyway


class EpochScores(Callback):
    """Scores of reconstructions at the end of each epoch, in ``history_``.

    Rows are encoded and decoded by the networks as they are after the epoch, without noise and in evaluation mode. The
    training is the same, to the last bit, with this callback and without it.

    Parameters
    ----------
    scores : dict of str to callable
        What to compute: functions of rows and their reconstructions, two ndarrays of shape (n_samples, n_features) in
        the units of the data, that return a number. `sklearn.metrics.mean_squared_error` is what
        :func:`skvae.metrics.reconstruction_error` is of a fitted embedder;
        :func:`skvae.metrics.structural_similarity_score` needs ``functools.partial`` for its settings.
    rows : dict of str to array-like of shape (n_samples, n_features)
        Of which rows, such as ``{"train": X_train[:1000], "test": X_test}``. Names are without underscores.
    every : int, default=1
        Epochs between scores; those of the first and the last planned epoch are always computed.

    Notes
    -----
    The score ``"mse"`` of the rows ``"test"`` is ``history_[epoch]["test_mse"]``, and in ``net_.history`` as well. It
    stays in ``history_`` in copies, pickles and files; :class:`skvae.displays.TrainingCurveDisplay` draws it. Where the
    networks gave values that are not finite, it is NaN.

    Raises
    ------
    TypeError
        By the fit, if ``scores`` or ``rows`` is no dict, or a score is no function.
    ValueError
        By the fit, if a name is taken or not valid, or rows have another number of features than those of training.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.metrics import mean_squared_error
    >>> from skvae import VAEEmbedder
    >>> from skvae.callbacks import EpochScores
    >>> X = load_digits().data / 16
    >>> scores = EpochScores({"mse": mean_squared_error}, {"train": X[:1000], "test": X[1000:]})
    >>> vae = VAEEmbedder(2, max_epochs=5, callbacks=[scores], random_state=0).fit(X[:1000])
    >>> vae.history_[-1]["test_mse"] < vae.history_[0]["test_mse"]
    True
    """

    def __init__(self, scores, rows, *, every=1):
        self.scores, self.rows, self.every = scores, rows, every

    def on_train_begin(self, net, X=None, **kwargs):
        """Check what was given."""
        for name in ("scores", "rows"):
            if not isinstance(getattr(self, name), Mapping):
                raise TypeError(f"{name} of EpochScores should be a dict by name, but is {getattr(self, name)!r:.80}.")
        for name, score in self.scores.items():
            if not callable(score):
                raise TypeError(f"The score {name!r} should be a function of rows and reconstructions, not {score!r}.")
            if not isinstance(name, str) or name in RESERVED_NAMES:
                raise ValueError(f"A score can not be called {name!r}; use a text other than {sorted(RESERVED_NAMES)}.")
        for name in self.rows:
            if not isinstance(name, str) or not name or "_" in name:
                raise ValueError(f"Rows can not be called {name!r}; use a text without underscores.")
        check_scalar(self.every, "every", Integral, min_val=1)
        self.rows_ = {name: check_rows(rows, X, f"rows[{name!r}]") for name, rows in self.rows.items()}

    def on_epoch_end(self, net, **kwargs):
        """Put the scores into the history."""
        epoch = len(net.history)
        if epoch % self.every and epoch not in (1, net.max_epochs):
            return
        for part, rows in self.rows_.items():
            found = evaluated(net, rows, lambda model, u: model.decode(model.posterior(u).mean)).numpy()
            finite = np.isfinite(found).all()
            for name, score in self.scores.items():
                net.history.record(f"{part}_{name}", float(score(rows, found)) if finite else np.nan)


@dataclass(frozen=True)
class Snapshots:
    """Codes of the same rows after different epochs of a training, and the mixture if the prior is one.

    Attributes
    ----------
    epochs : ndarray of shape (n_snapshots,)
        Epochs of the fit, 0 before the first.
    codes : ndarray of shape (n_snapshots, n_samples, n_components)
        Posterior means.
    weights : ndarray of shape (n_snapshots, n_clusters) or None
        Weights of the mixture.
    means : ndarray of shape (n_snapshots, n_clusters, n_components) or None
        Its means.
    covariances : ndarray of shape (n_snapshots, n_clusters, n_components, n_components) or None
        Its covariances, as matrices for every covariance type.
    """

    epochs: np.ndarray
    codes: np.ndarray
    weights: np.ndarray | None = None
    means: np.ndarray | None = None
    covariances: np.ndarray | None = None


class LatentSnapshots(Resumable):
    """Codes of some rows, and the mixture of a `VaDEClusterer`, as they are at different epochs of a training.

    The training is the same, to the last bit, with this callback and without it. Estimators train with copies of their
    callbacks, so that what was found is asked of the estimator: ``LatentSnapshots.of(estimator)``.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Rows whose codes are kept, such as a few hundred of the training or the test data.
    every : int, default=1
        Epochs between snapshots. The first and the last epoch are always kept.
    epochs : list of int, default=None
        These epochs, the first and the last; ``every`` does not count then. 0 is before the first epoch.

    Notes
    -----
    The last snapshot is of the model that the fit publishes: with early stopping, that with the best weights. Epochs
    are those of one fit: a warm start begins anew. If VaDE trains several mixtures at first, the one that stays is
    shown from the beginning. Snapshots take 4 bytes for each number in a code, and are kept in ``net_``, which is not
    part of pickles and files; the :class:`Snapshots` that `of` gives can be pickled by itself.

    Raises
    ------
    ValueError
        By the fit, if ``every`` or ``epochs`` is not valid, or X has another number of features than in training.

    See Also
    --------
    skvae.displays.ClusterEvolutionDisplay : Pictures of it.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skvae import VAEEmbedder
    >>> from skvae.callbacks import LatentSnapshots
    >>> X = load_digits().data / 16
    >>> vae = VAEEmbedder(2, max_epochs=7, callbacks=[LatentSnapshots(X[:100], every=3)], random_state=0).fit(X)
    >>> snapshots = LatentSnapshots.of(vae)
    >>> snapshots.epochs
    array([1, 3, 6, 7])
    >>> snapshots.codes.shape
    (4, 100, 2)
    """

    def __init__(self, X, *, every=1, epochs=None):
        self.X, self.every, self.epochs = X, every, epochs

    @staticmethod
    def of(estimator):
        """What was kept during the last fit of an estimator.

        Parameters
        ----------
        estimator : estimator
            Fitted embedder with a `LatentSnapshots` among its callbacks, or a pipeline with one.

        Returns
        -------
        snapshots : Snapshots

        Raises
        ------
        ValueError
            If there are none: the estimator had no such callback, several of them, or comes from a pickle or a file.
        """
        check_is_fitted(estimator)
        steps = [step for _, step in estimator.steps] if isinstance(estimator, Pipeline) else [estimator]
        nets = [step.net_ for step in steps if hasattr(step, "net_")]
        found = [call for net in nets for _, call in net.callbacks_ if isinstance(call, LatentSnapshots)]
        if not nets:
            raise ValueError(
                f"This {type(estimator).__name__} has no net_: it trains no networks, or it was copied or loaded, and "
                "snapshots are not part of that. Keep what LatentSnapshots.of gives right after the fit."
            )
        if len(found) != 1:
            raise ValueError(
                f"This {type(estimator).__name__} was fitted with {len(found)} LatentSnapshots, but there should be "
                "one; give it as callbacks=[LatentSnapshots(X)], or take snapshots_ of one of net_.callbacks_."
            )
        return found[0].snapshots_

    def on_train_begin(self, net, X=None, **kwargs):
        """Check what was given, and begin."""
        check_scalar(self.every, "every", Integral, min_val=1)
        if self.epochs is not None:
            for epoch in self.epochs:
                check_scalar(epoch, "Each of epochs", Integral, min_val=0)
        self.rows_, self.taken_ = check_rows(self.X, X, "X of LatentSnapshots"), []
        if self.epochs is not None and 0 in self.epochs:
            self._take(net)

    def on_epoch_end(self, net, **kwargs):
        """Keep the codes if it is time."""
        epoch = len(net.history)
        due = epoch % self.every == 0 if self.epochs is None else epoch in self.epochs
        if due or epoch == 1:
            self._take(net)

    def on_train_end(self, net, **kwargs):
        """Keep the codes of the model as it will be published."""
        self._take(net)

    def state(self, net):
        """What `resume` needs."""
        return {"taken_": list(self.taken_)}

    def resume(self, net, state):
        """Go on from a state."""
        self.taken_ = list(state["taken_"])

    @property
    def snapshots_(self):
        """What was kept so far, as `Snapshots`."""
        found = {name: np.stack([one[name].numpy() for one in self.taken_]) for name in ("epochs", "codes")}
        if "means" in self.taken_[0]:
            kept = survivors([one["scores"] for one in self.taken_])
            for name in ("weights", "means", "covariances"):
                pairs = zip(self.taken_, kept, strict=True)
                found[name] = np.stack([one[name][index].numpy() for one, index in pairs])
        return Snapshots(**found)

    def _take(self, net):
        """Keep the codes and the mixtures."""
        epoch = len(net.history)
        codes = evaluated(net, self.rows_, lambda model, u: model.posterior(u).mean)
        if not codes.isfinite().all():  # of an epoch that will be repeated
            return
        found = {"epochs": torch.tensor(epoch), "codes": codes.float()}
        prior = plain_model(net).prior
        if isinstance(prior, GaussianMixturePrior):
            pruning = [call for _, call in net.callbacks_ if isinstance(call, PruneMixtures)]
            found |= mixtures_of(prior) | {"scores": [list(scores) for call in pruning for scores in call.scores_]}
        if self.taken_ and self.taken_[-1]["epochs"] == epoch:
            self.taken_.pop()
        self.taken_.append(found)


def check_rows(X, dataset, name):
    """Rows as a float array (n, d) with as many features as those of training."""
    X = check_array(host_array(X), dtype=np.float64, ensure_all_finite="allow-nan", allow_nd=True, input_name=name)
    X, n_features = X.reshape(len(X), -1), dataset.rows[:1].shape[1]
    if X.shape[1] != n_features:
        raise ValueError(f"{name} has {X.shape[1]} features, but the training data have {n_features}.")
    return X


def plain_model(net):
    """The model of a net, not its compiled form."""
    return getattr(net.module_, "_orig_mod", net.module_)


@contextmanager
def evaluation(net):
    """The model in evaluation mode and full precision; what it was in, and the random states, are as before then."""
    model, device = plain_model(net), torch.device(net.device)
    modes, autocast = {module: module.training for module in model.modules()}, model.autocast
    model.autocast = None
    try:
        # Networks of the user's may draw random numbers.
        with preserved_rng_state(device), torch.inference_mode():
            yield model.eval()
    finally:
        model.autocast = autocast
        for module, mode in modes.items():
            module.training = mode


def evaluated(net, X, function):
    """A function of the model and standardised rows, applied to rows of data in chunks; a CPU tensor."""
    parts, exact = [], torch.float32 if torch.device(net.device).type == "mps" else torch.float64
    with evaluation(net) as model:
        for rows in torch.from_numpy(X).split(ROWS_AT_ONCE):
            parts.append(function(model, model.standardize(rows.to(net.device, exact))).cpu())
    return torch.cat(parts)


def survivors(scores):
    """Which of the mixtures of each snapshot is the first of the last one.

    Parameters
    ----------
    scores : list of list of list of float
        For each snapshot, the losses of all mixtures each time that some were dropped before it.
    """
    found = [0]
    for one, later in zip(scores[-2::-1], scores[:0:-1], strict=True):
        index = found[-1]
        for losses in reversed(later[len(one) :]):  # those that stay are in the order of their losses
            index = int(torch.tensor(losses).argsort()[index])
        found.append(index)
    return found[::-1]


def mixtures_of(prior):
    """All mixtures of a prior: weights (h, k), means (h, k, d) and covariance matrices (h, k, d, d), float64."""
    logits, means, log_factors = (
        part.detach().cpu().double() for part in (prior.logits, prior.means, prior.log_factors)
    )
    covariances = prior.family.covariances(prior.family.exp_factor(log_factors.flatten(0, 1)))
    covariances = covariances.unflatten(0, means.shape[:2])
    if covariances.ndim == 3:
        covariances = torch.diag_embed(covariances)
    return {"weights": logits.softmax(-1), "means": means, "covariances": covariances}
