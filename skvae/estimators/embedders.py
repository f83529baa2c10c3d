"""Embeddings learned by autoencoders."""

import copy
import math
from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from ..fitting.training import count_batches, fit_module
from ..models import ACTIVATIONS, LIKELIHOODS, LatentModel, StandardNormal
from ..models.networks import NETWORKS
from ._base import (
    LatentMixin,
    TorchEstimator,
    check_enough_rows,
    check_sample_size,
    compute_dtype,
    fit_method,
    generator_from,
    resolve_device,
    to_dtype,
)
from ._likelihoods import build_likelihood, check_support, choose_likelihood, standardized_rows

N_SCORE_DRAWS = 16


class VAEEmbedder(LatentMixin, TorchEstimator):
    """Variational autoencoder as a transformer.

    Learns a nonlinear embedding of the rows of X in ``n_components`` dimensions whose distribution is close to a
    standard normal, with a network that maps codes back to data.

    Parameters
    ----------
    n_components : int, default=10
        Size of the embedding.

    hidden_layer_sizes : int or tuple of int, default=(256, 128)
        Widths of the encoder's hidden layers; the decoder has them in reverse.

    activation : {"relu", "tanh", "elu", "gelu", "silu", "leaky_relu", "sigmoid"}, default="relu"
        Activation of the hidden layers.

    batch_norm : bool, default=False
        Whether hidden layers are followed by batch normalisation.

    likelihood : {"auto", "bernoulli", "gaussian"}, default="auto"
        Observation model. "bernoulli" takes data in [0, 1], such as grey values; for values between 0 and 1 its
        log-likelihood is the usual cross-entropy, which compares only with that of other Bernoulli models. "gaussian"
        standardises the features inside and learns the noise. "auto" is "bernoulli" for data in [0, 1], otherwise
        "gaussian".

    beta : float, default=1.0
        Weight of the KL term in the training loss.

    max_epochs : int or "auto", default="auto"
        Passes over the data. "auto" chooses them from the number of rows, so that the number of gradient steps grows
        with its square root.

    batch_size : int, default=128
        Rows in a gradient step.

    lr : float, default=1e-3
        Learning rate of Adam.

    device : str or torch.device, default="auto"
        Where to compute; "auto" takes cuda, then mps, then cpu.

    random_state : int, RandomState instance or None, default=None
        Seeds the networks, the batches and the noise. No global random state is used, also with None. The same seed
        gives the same result on the same machine.

    verbose : int, default=0
        Show a progress bar over the epochs.

    Attributes
    ----------
    module_ : torch.nn.Module
        The fitted model, in evaluation mode.
    net_ : skorch.NeuralNet
        What trained it. It is not part of a pickle.
    likelihood_ : str
        The observation model that was used.
    history_ : list of dict
        ``train_loss``, ``train_log_likelihood``, ``train_kl`` (nats per row) and ``dur`` (seconds) of each epoch.
    loss_curve_ : list of float
        Training loss of each epoch: minus the evidence lower bound if ``beta=1``, in nats per row.
    n_iter_ : int
        Number of epochs.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features, if X has names that are all strings.

    See Also
    --------
    TorchGMM : Clusters the codes.
    sklearn.decomposition.PCA : The linear embedding.

    Notes
    -----
    Training is in float32. Fitted models answer in the precision of their input: float64 rows are embedded in float64.

    References
    ----------
    D. P. Kingma and M. Welling, Auto-Encoding Variational Bayes, 2014 (equation 10).

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skvae import VAEEmbedder
    >>> X = load_digits().data / 16
    >>> vae = VAEEmbedder(n_components=2, max_epochs=5, random_state=0).fit(X)
    >>> vae.transform(X).shape
    (1797, 2)
    >>> vae.inverse_transform(vae.transform(X)).shape
    (1797, 64)
    >>> vae.loss_curve_[-1] < vae.loss_curve_[0]
    True
    """

    _parameter_constraints: ClassVar[dict] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "batch_norm": ["boolean"],
        "likelihood": [StrOptions({"auto", *LIKELIHOODS})],
        "beta": [Interval(Real, 0.0, None, closed="left")],
        "max_epochs": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "batch_size": [Interval(Integral, 2, None, closed="left")],
        "lr": [Interval(Real, 0.0, None, closed="neither")],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        n_components=10,
        *,
        hidden_layer_sizes=(256, 128),
        activation="relu",
        batch_norm=False,
        likelihood="auto",
        beta=1.0,
        max_epochs="auto",
        batch_size=128,
        lr=1e-3,
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.n_components = n_components
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.batch_norm = batch_norm
        self.likelihood = likelihood
        self.beta = beta
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @fit_method
    def fit(self, X, y=None):
        """Train the networks on X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data.
        y : Ignored
            Present for API consistency.

        Returns
        -------
        self : VAEEmbedder
            The fitted estimator.

        Raises
        ------
        ValueError
            If X is not a finite numeric table of at least two rows and ``n_components`` rows, if it does not fit the
            likelihood, or if the training diverges.
        """
        X = self._validate(X, reset=True, min_samples=2)
        check_enough_rows(X, self.n_components)
        name = choose_likelihood(self.likelihood, X)
        X = check_support(name, X)
        device = resolve_device(self.device)

        seeds = generator_from(self.random_state)
        generator = torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=seeds)))

        likelihood = build_likelihood(name, X)
        rows = standardized_rows(likelihood, X, device)
        model = self._build(likelihood, X.shape[1], seeds)
        model = to_device(model, device)
        net = fit_module(
            model,
            rows,
            noise_size=self.n_components,
            generator=generator,
            beta=self.beta,
            max_epochs=choose_epochs(self.max_epochs, len(X), self.batch_size),
            batch_size=self.batch_size,
            lr=self.lr,
            device=device,
            progress=type(self).__name__ if self.verbose else None,
        )

        self.net_, self.module_, self.likelihood_ = net, model, name
        self._n_features_out, self._fit_dtype = self.n_components, X.dtype
        self.history_ = [{key: row[key] for key in HISTORY_KEYS} for row in net.history]
        self.loss_curve_ = [float(row["train_loss"]) for row in self.history_]
        self.n_iter_ = len(self.history_)
        return self

    def transform(self, X):
        """Embed rows: the mean of q(z | x). It is never random.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components)
            Codes.
        """
        return self._map_model(lambda model, x: model.posterior(model.standardize(x)).mean, X)

    def inverse_transform(self, Z):
        """Decode codes into expected data.

        Parameters
        ----------
        Z : array-like of shape (n_samples, n_components)
            Codes.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Expected rows, in the units of the training data.
        """
        Z = self._validate_codes(Z)
        return self._map_array(lambda model, z: model.decode(z.to(model.decoder[0].weight.dtype)), Z)

    def score_samples(self, X):
        """Evidence lower bound on the log-likelihood of each row.

        The expectation over codes is taken at a fixed set of quasi-random points, the same for every row, so that the
        result is reproducible and does not depend on the other rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        elbo : ndarray of shape (n_samples,)
            In nats, in the units of the data (the Jacobian of the internal standardisation is in it). For the
            Bernoulli likelihood on values between 0 and 1, the log-likelihood in it is minus the cross-entropy.

        Raises
        ------
        ValueError
            If X has values that the likelihood can not produce.
        """
        X = self._validate(X, reset=False)
        X = check_support(self.likelihood_, X)
        points = normal_points(N_SCORE_DRAWS, self._n_features_out)

        def elbo(model, x):
            u = model.standardize(x)
            q = model.posterior(u)
            terms = [model.elbo(u, q, noise.expand_as(q.mean)) for noise in points.to(u)]
            return sum(term.log_likelihood - term.kl for term in terms) / len(terms)

        return self._map_array(elbo, X)

    def sample(self, n_samples=1, random_state=None):
        """Draw new rows: codes from the prior, then data from the likelihood.

        Rows have the noise of the likelihood: those of a Bernoulli are 0 or 1. For expected rows, such as grey values,
        decode codes of your own with `inverse_transform`.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows.
        random_state : int, RandomState instance or None, default=None
            Seeds the draw; None uses the estimator's own ``random_state``.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Rows, in the units and the dtype of the training data.
        """
        check_is_fitted(self)
        check_sample_size(n_samples)
        generator = generator_from(self.random_state if random_state is None else random_state)
        noise = torch.randn(n_samples, self._n_features_out, dtype=torch.float64, generator=generator)
        model = copy.deepcopy(self.module_).to("cpu", torch.float64)
        with torch.inference_mode():
            X = model.likelihood.sample(model.decoder(model.prior.sample(noise)), generator).numpy()
        return to_dtype(X, self._fit_dtype)

    def _build(self, likelihood, n_features, generator):
        encoder, decoder = NETWORKS["mlp"](
            n_features,
            self.n_components,
            likelihood.n_outputs(n_features),
            hidden_layer_sizes=check_layer_sizes(self.hidden_layer_sizes),
            activation=self.activation,
            batch_norm=self.batch_norm,
            generator=generator,
        )
        return LatentModel(encoder, decoder, likelihood, StandardNormal())

    def _map_model(self, function, X):
        return self._map_array(function, self._validate(X, reset=False))

    def _map_array(self, function, X):
        """Apply a function of the model and rows to chunks, in the precision of the rows."""
        device = resolve_device(self.device)
        model = to_device(copy.deepcopy(self.module_).cpu(), device)
        for network in (model.encoder, model.decoder):
            network.to(compute_dtype(X.dtype, device))
        widths = [parameter.shape[0] for parameter in model.parameters() if parameter.ndim == 2]
        # Units need the full precision, whatever the networks compute in: offsets may be large.
        dtype = compute_dtype(np.float64, device)
        return self._map(lambda x: function(model, x), X, dtype=dtype, device=device, width=2 * max(widths))


HISTORY_KEYS = ("epoch", "train_loss", "train_log_likelihood", "train_kl", "dur")


def to_device(model, device):
    """The model on a device, its buffers in float64 where there is float64."""
    return model.to(torch.float32).to(device) if device.type == "mps" else model.to(device)


def choose_epochs(max_epochs, n_samples, batch_size):
    """Resolve "auto": about ``64 sqrt(n_samples)`` gradient steps."""
    if max_epochs == "auto":
        return math.ceil(64 * math.sqrt(n_samples) / count_batches(n_samples, batch_size))
    return max_epochs


def check_layer_sizes(sizes):
    """The widths as a tuple of positive integers."""
    sizes = (sizes,) if isinstance(sizes, Integral) else tuple(sizes)
    if not all(isinstance(size, Integral) and not isinstance(size, bool) and size > 0 for size in sizes):
        raise ValueError(f"hidden_layer_sizes should be positive integers, but got {sizes}.")
    return sizes


def normal_points(n_points, n_components):
    """Quasi-random standard normal points in pairs z and -z: scrambled Sobol points with a fixed seed."""
    sobol = torch.quasirandom.SobolEngine(n_components, scramble=True, seed=0)
    half = torch.special.ndtri(sobol.draw(n_points // 2, dtype=torch.float64).clamp(1e-12, 1 - 1e-12))
    return torch.cat([half, -half])
