"""The length of a training: epochs by the number of samples, or by the loss of samples held out."""

import copy
import hashlib
import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import uniform_filter1d

from ..data.samples import select_samples, tensor_or_stream
from ..fitting.batches import count_batches
from ..fitting.distributed import current_group
from ..fitting.rows import blocks_of
from ._embedder_training import train
from ._fit import row_count

HELD_OUT = 0.2  # share of the distinct samples of a small table that chooses the number of epochs
MIN_CHOOSING, MAX_CHOOSING = 100, 1_000  # numbers of samples; fewer are too few to hold out, more are hardly overfitted
MIN_DISTINCT = 10  # samples of a process, of which some are held out
N_SMOOTHED = 5  # epochs whose validation losses are averaged, which are those of few samples
MIN_EPOCHS = 2 * N_SMOOTHED  # that show whether the validation loss rises
MAX_LOST = 0.5  # share of the decrease of a validation loss that may be lost again


def training_length(estimator, samples):
    """Return the number of epochs of a fit.

    With ``max_epochs="auto"``, networks can overfit a small table badly, above all one with many features. A training
    of a copy of the estimator on four fifths of the samples shows it: if the loss of the others rises again by a large
    share of what it had fallen, the number of epochs is that of its minimum. Smaller rises are hardly told from noise.

    Parameters
    ----------
    estimator : SinglePhaseEmbedder
    samples : TrainingSamples

    Returns
    -------
    max_epochs : int
    """
    n_samples = row_count(samples.X)
    max_epochs = choose_epochs(estimator.max_epochs, n_samples, estimator.batch_size)
    is_given = estimator.max_epochs != "auto" or estimator.lr_schedule is not None or samples.X_val is not None
    if is_given or estimator.early_stopping or samples.resume or not MIN_CHOOSING <= n_samples < MAX_CHOOSING:
        return max_epochs
    samples = hold_out_distinct(samples, HELD_OUT)
    if samples.X_val is None:
        return max_epochs
    n_epochs = choose_epochs("auto", row_count(samples.X), estimator.batch_size)
    probe = copy.copy(estimator)
    vars(probe).pop("_callback_fit_ctx", None)
    probe.callbacks, probe.checkpoint, probe.verbose = None, None, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the training of all samples will say the same
        train(probe, samples, n_epochs)
    curve = validation_curve(probe)
    return max(1, round(curve.best_epoch / n_epochs * max_epochs)) if curve.is_overfitted else max_epochs


class ValidationCurve(NamedTuple):
    """Extremes of the validation losses of a training, smoothed over epochs, in nats."""

    best_epoch: int  # number of epochs after which the loss was lowest
    fallen: float  # from the first epochs to the lowest loss
    risen: float  # from the lowest loss to the last epochs

    @property
    def is_overfitted(self):
        """Whether the loss rose again by a large share of what it had fallen."""
        return self.risen > MAX_LOST * self.fallen


def validation_curve(estimator):
    """Return the `ValidationCurve` of a trained estimator; the epochs of the KL warm-up do not count."""
    n_warmup = getattr(estimator, "kl_warmup_epochs", 0)
    n_warmup = 0 if n_warmup == "auto" else min(n_warmup, estimator.n_iter_ - 1)
    losses = [record["valid_loss"] for record in estimator.history_[n_warmup:]]
    smoothed = uniform_filter1d(losses, N_SMOOTHED, mode="nearest")
    best = int(smoothed.argmin())
    return ValidationCurve(n_warmup + best + 1, *(float(smoothed[end] - smoothed[best]) for end in (0, -1)))


def overfitting(estimator):
    """Return a warning if the validation loss rose again by a large share of what it had fallen; or None."""
    curve = validation_curve(estimator)
    if estimator.n_iter_ < MIN_EPOCHS or not curve.is_overfitted:
        return None
    return (
        f"The networks overfit: the validation loss was lowest after {curve.best_epoch} of {estimator.n_iter_} epochs, "
        f"and rose by {curve.risen:.3g} nats until the last. Give early_stopping=True, max_epochs={curve.best_epoch}, "
        "or narrower hidden layers."
    )


def choose_epochs(max_epochs, n_samples, batch_size):
    """Resolve "auto": about ``64 sqrt(n_samples)`` iterations, but at most 100 epochs or 300 iterations."""
    if max_epochs == "auto":
        n_batches = count_batches(n_samples, batch_size)
        # More epochs overfit small tables: the ELBO of held-out samples falls.
        return min(math.ceil(64 * math.sqrt(n_samples) / n_batches), max(100, math.ceil(300 / n_batches)))
    return max_epochs


def hold_out(samples, fraction):
    """Return the samples with a random share of them held out for validation."""
    n_samples = len(samples.X)
    n_held_out = max(1, round(fraction * n_samples))
    if n_samples - n_held_out < 2:
        raise ValueError(
            f"validation_fraction={fraction} of {n_samples} rows leaves fewer than two for training; decrease it, or "
            "give more rows."
        )
    order = torch.randperm(n_samples, generator=torch.Generator().manual_seed(samples.seed)).numpy()
    X, X_val = (select_samples(samples.X, part) for part in (order[n_held_out:], order[:n_held_out]))
    return samples._replace(X=X, X_val=X_val, whole=samples.X)


def hold_out_distinct(samples, fraction):
    """Return the samples with a random share of the distinct ones held out, if there are enough of these.

    Repeated samples, as those of large weights, are on one side.
    """
    x = tensor_or_stream(samples.X)
    digests = [hashlib.blake2b(row.tobytes()).digest() for block in blocks_of(x) for row in x[block].numpy()]
    _, groups = np.unique(digests, return_inverse=True)
    n_groups = len(set(groups))
    if min(current_group().all_gather_int(n_groups)) < MIN_DISTINCT:
        return samples
    order = torch.randperm(n_groups, generator=torch.Generator().manual_seed(samples.seed)).numpy()
    is_held_out = np.isin(groups, order[: round(fraction * n_groups)])
    X, X_val = (select_samples(samples.X, np.flatnonzero(part)) for part in (~is_held_out, is_held_out))
    return samples._replace(X=X, X_val=X_val, whole=samples.X)
