"""Callbacks for the ``callbacks`` parameter of embedders, which monitor training without changing its results."""

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
from .fitting.checkpoint import Resumable
from .fitting.devices import preserved_rng_state
from .fitting.net import unwrapped_module
from .fitting.vade import PruneMixtures
from .models import GaussianMixturePrior

__all__ = ["EpochScores", "LatentSnapshots", "Snapshots"]
CHUNK_SIZE = 1_024
RESERVED_NAMES = {"loss", "log_likelihood", "kl", "agreement", "batch_count"}  # recorded by the training itself


class EpochScores(Callback):
    """Scores of reconstructions at the end of each epoch, in ``history_``.

    Samples are encoded and decoded by the networks after the epoch, without noise and in evaluation mode. Training
    results are identical with and without this callback.

    Parameters
    ----------
    scores : dict of str to callable
        Functions of samples and their reconstructions, two ndarrays of shape (n_samples, n_features) in the units of
        the data, that return a number. `sklearn.metrics.mean_squared_error` gives the
        :func:`skvae.metrics.reconstruction_error` of a fitted embedder;
        :func:`skvae.metrics.structural_similarity_score` needs ``functools.partial`` for its parameters.
    rows : dict of str to array-like of shape (n_samples, n_features)
        The samples, such as ``{"train": X_train[:1000], "test": X_test}``. Names are without underscores.
    every : int, default=1
        Number of epochs between scores; those of the first and the last planned epoch are always computed.

    Notes
    -----
    The score ``"mse"`` of the samples ``"test"`` is ``history_[epoch]["test_mse"]``, and in ``net_.history`` as well.
    Copies, pickles and files keep ``history_``; :class:`skvae.displays.TrainingCurveDisplay` plots it. The score is NaN
    where the reconstructions are not finite.

    Raises
    ------
    TypeError
        By the fit, if ``scores`` or ``rows`` is not a dict, or a score is not callable.
    ValueError
        By the fit, if a name is reserved or invalid, or samples have another number of features than the training data.

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
        """Check the parameters."""
        for name in ("scores", "rows"):
            if not isinstance(getattr(self, name), Mapping):
                raise TypeError(f"{name} of EpochScores should be a dict by name, but is {getattr(self, name)!r:.80}.")
        for name, score in self.scores.items():
            if not callable(score):
                raise TypeError(f"The score {name!r} should be a function of X and its reconstruction, not {score!r}.")
            if not isinstance(name, str) or name in RESERVED_NAMES:
                raise ValueError(f"Invalid score name {name!r}; use a string other than {sorted(RESERVED_NAMES)}.")
        for name in self.rows:
            if not isinstance(name, str) or not name or "_" in name:
                raise ValueError(f"Invalid name in rows: {name!r}; use a string without underscores.")
        check_scalar(self.every, "every", Integral, min_val=1)
        if unwrapped_module(net).covariates is not None:
            raise ValueError(
                "EpochScores decodes samples, whose covariates it does not have, but the model has some; leave it out "
                "(early_stopping=True records the loss of samples held out)."
            )
        self.rows_ = {name: check_samples(samples, X, f"rows[{name!r}]", net) for name, samples in self.rows.items()}

    def on_epoch_end(self, net, **kwargs):
        """Record the scores in the history."""
        epoch = len(net.history)
        if epoch % self.every and epoch not in (1, net.max_epochs):
            return
        for subset, samples in self.rows_.items():
            decoded = evaluate(net, samples, lambda model, u: model.decode(model.posterior(u).mean)).numpy()
            is_finite = np.isfinite(decoded).all()
            for name, score in self.scores.items():
                net.history.record(f"{subset}_{name}", float(score(samples, decoded)) if is_finite else np.nan)


@dataclass(frozen=True)
class Snapshots:
    """Latent codes of the same samples after several epochs of training, and the mixture if the prior is one.

    Attributes
    ----------
    epochs : ndarray of shape (n_snapshots,)
        Epochs of the fit; 0 is before the first.
    codes : ndarray of shape (n_snapshots, n_samples, n_components)
        Posterior means.
    weights : ndarray of shape (n_snapshots, n_clusters) or None
        Weights of the mixture.
    means : ndarray of shape (n_snapshots, n_clusters, n_components) or None
        Means of its components.
    covariances : ndarray of shape (n_snapshots, n_clusters, n_components, n_components) or None
        Covariances of its components, as matrices for every covariance type.
    """

    epochs: np.ndarray
    codes: np.ndarray
    weights: np.ndarray | None = None
    means: np.ndarray | None = None
    covariances: np.ndarray | None = None


class LatentSnapshots(Resumable):
    """Latent codes of some samples, and the mixture of a `VaDEClusterer`, at several epochs of training.

    Training results are identical with and without this callback. Estimators train with copies of their callbacks, so
    that ``LatentSnapshots.of(estimator)`` returns the snapshots.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Samples to encode, such as a few hundred of the training or the test data.
    every : int, default=1
        Number of epochs between snapshots, in addition to those of the first and the last epoch.
    epochs : list of int, default=None
        Epochs of snapshots instead of ``every``, in addition to the first and the last. 0 is before the first epoch.

    Notes
    -----
    The last snapshot is of the fitted model: with early stopping, of that with the best weights. Epochs are those of
    one fit: a warm start counts from 0 again. If VaDE initially trains several mixtures, all snapshots are of the one
    that is selected in the end. A snapshot takes 4 bytes per number of the codes, and is stored in ``net_``, which is
    not part of pickles and files; the :class:`Snapshots` that `of` returns can be pickled by themselves.

    Raises
    ------
    ValueError
        By the fit, if ``every`` or ``epochs`` is invalid, or X has another number of features than the training data.

    See Also
    --------
    skvae.displays.ClusterEvolutionDisplay : Plots of the snapshots.

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
        """Return the snapshots of the last fit of an estimator.

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
            If the estimator had no such callback, or several, or is a copy or loaded from a pickle or a file.
        """
        check_is_fitted(estimator)
        steps = [step for _, step in estimator.steps] if isinstance(estimator, Pipeline) else [estimator]
        nets = [step.net_ for step in steps if hasattr(step, "net_")]
        callbacks = [call for net in nets for _, call in net.callbacks_ if isinstance(call, LatentSnapshots)]
        if not nets:
            raise ValueError(
                f"This {type(estimator).__name__} has no net_: it trains no networks, or it was copied or loaded, and "
                "snapshots are not part of copies. Call LatentSnapshots.of right after the fit."
            )
        if len(callbacks) != 1:
            raise ValueError(
                f"This {type(estimator).__name__} was fitted with {len(callbacks)} LatentSnapshots, but there should "
                "be one; give it as callbacks=[LatentSnapshots(X)], or take snapshots_ of one of net_.callbacks_."
            )
        return callbacks[0].snapshots_

    def on_train_begin(self, net, X=None, **kwargs):
        """Check the parameters, and store the snapshot before the first epoch."""
        check_scalar(self.every, "every", Integral, min_val=1)
        if self.epochs is not None:
            for epoch in self.epochs:
                check_scalar(epoch, "Each of epochs", Integral, min_val=0)
        self.X_, self.taken_ = check_samples(self.X, X, "X of LatentSnapshots", net), []
        if self.epochs is not None and 0 in self.epochs:
            self._take(net)

    def on_epoch_end(self, net, **kwargs):
        """Store a snapshot if one is due."""
        epoch = len(net.history)
        is_due = epoch % self.every == 0 if self.epochs is None else epoch in self.epochs
        if is_due or epoch == 1:
            self._take(net)

    def on_train_end(self, net, **kwargs):
        """Store the snapshot of the final model."""
        self._take(net)

    def state(self, net):
        """Return the state for `resume`."""
        return {"taken_": list(self.taken_)}

    def resume(self, net, state):
        """Resume from a state."""
        self.taken_ = list(state["taken_"])

    @property
    def snapshots_(self):
        """The snapshots so far, as `Snapshots`."""
        arrays = {name: np.stack([one[name].numpy() for one in self.taken_]) for name in ("epochs", "codes")}
        if "means" in self.taken_[0]:
            pairs = list(zip(self.taken_, track_mixture([parents_of(one) for one in self.taken_]), strict=True))
            for name in ("weights", "means", "covariances"):
                arrays[name] = np.stack([one[name][index].numpy() for one, index in pairs])
        return Snapshots(**arrays)

    def _take(self, net):
        """Store the latent codes and all mixtures."""
        epoch = len(net.history)
        codes = evaluate(net, self.X_, lambda model, u: model.posterior(u).mean)
        if not codes.isfinite().all():  # in an epoch that will be repeated
            return
        snapshot = {"epochs": torch.tensor(epoch), "codes": codes.float()}
        prior = unwrapped_module(net).prior
        if isinstance(prior, GaussianMixturePrior):
            pruning = [callback for _, callback in net.callbacks_ if isinstance(callback, PruneMixtures)]
            parents = [list(indices) for callback in pruning for indices in callback.parents_]
            snapshot |= mixtures_of(prior) | {"parents": parents}
        if self.taken_ and self.taken_[-1]["epochs"] == epoch:
            self.taken_.pop()
        self.taken_.append(snapshot)


def check_samples(X, dataset, name, net):
    """Return samples as a float array (n, d); raise unless they have as many features as the training data."""
    model = unwrapped_module(net)
    if getattr(model.likelihood, "size_factors", None) == "given":
        raise ValueError(f"{name} has no size_factors, which the training data have; leave the callback out.")
    X = check_array(host_array(X), dtype=np.float64, ensure_all_finite="allow-nan", allow_nd=True, input_name=name)
    X, n_features = X.reshape(len(X), -1), model.features(dataset.rows[:1]).shape[1]
    if X.shape[1] != n_features:
        raise ValueError(f"{name} has {X.shape[1]} features, but the training data have {n_features}.")
    return X


@contextmanager
def evaluation_mode(net):
    """Yield the model in evaluation mode and full precision, then restore its modes and the random states."""
    model, device = unwrapped_module(net), torch.device(net.device)
    modes, autocast = {module: module.training for module in model.modules()}, model.autocast
    model.autocast = None
    try:
        # User-defined networks may draw random numbers.
        with preserved_rng_state(device), torch.inference_mode():
            yield model.eval()
    finally:
        model.autocast = autocast
        for module, mode in modes.items():
            module.training = mode


def evaluate(net, X, function):
    """Apply a function of the model and standardized samples to chunks of X; return a CPU tensor."""
    results, dtype = [], torch.float32 if torch.device(net.device).type == "mps" else torch.float64
    with evaluation_mode(net) as model:
        for chunk in torch.from_numpy(X).split(CHUNK_SIZE):
            results.append(function(model, model.standardize(chunk.to(net.device, dtype))).cpu())
    return torch.cat(results)


def parents_of(snapshot):
    """Return the changes of the mixtures before a snapshot; in pickles of version 0.1.0 they are sorted by losses."""
    if "parents" in snapshot:
        return snapshot["parents"]
    return [torch.tensor(losses).argsort().tolist() for losses in snapshot["scores"]]


def track_mixture(parents):
    """Return the indices in all snapshots of the mixture that is the first in the last snapshot.

    Parameters
    ----------
    parents : list of list of list of int
        For each snapshot, the changes of the mixtures before it: the index of the parent of each mixture.
    """
    indices = [0]
    for earlier, later in zip(parents[-2::-1], parents[:0:-1], strict=True):
        index = indices[-1]
        for change in reversed(later[len(earlier) :]):
            index = change[index]
        indices.append(index)
    return indices[::-1]


def mixtures_of(prior):
    """Return all mixtures of a prior: weights (h, k), means (h, k, d) and covariances (h, k, d, d), in float64."""
    logits, means, log_factors = (
        part.detach().cpu().double() for part in (prior.logits, prior.means, prior.log_factors)
    )
    covariances = prior.family.covariances(prior.family.exp_factor(log_factors.flatten(0, 1)))
    covariances = covariances.unflatten(0, means.shape[:2])
    if covariances.ndim == 3:
        covariances = torch.diag_embed(covariances)
    return {"weights": logits.softmax(-1), "means": means, "covariances": covariances}
