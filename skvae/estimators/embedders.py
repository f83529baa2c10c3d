"""Embeddings learned by autoencoders."""

from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import Interval

from ..fitting.distributed import current_group
from ..fitting.training import Plan
from ..fitting.warnings import warn
from ..models import Flat, StandardNormal
from ._bounds import BoundMixin, draw_rows, elbo_at_points, fill_missing
from ._embedding import NOT_NEGATIVE, POSITIVE_INT
from ._one_phase import OnePhaseEmbedder

MIN_STEPS = 500  # gradient steps after which codes should say something
ACTIVE_VARIANCE = 0.01  # of posterior means, above which a latent dimension is in use (Burda et al. 2016)


class VAEEmbedder(BoundMixin, OnePhaseEmbedder):
    """Variational autoencoder as a transformer.

    Learns a nonlinear embedding of the rows of X in ``n_components`` dimensions whose distribution is close to a
    standard normal, with a network that maps codes back to data.

    Parameters
    ----------
    n_components : int, default=10
        Size of the embedding.

    architecture : {"auto", "mlp", "conv", "hybrid"}, default="auto"
        Multi-layer perceptrons, convolutions, or convolutions in the encoder and perceptrons in the decoder, which take
        less time. "auto" is "conv" if there is an ``image_shape``.

    hidden_layer_sizes : int, tuple of int or "auto", default="auto"
        Widths of the encoder's hidden layers; the decoder has them in reverse. With "conv" they come between the
        convolutions and the codes. "auto" is (256, 128) for "mlp" and, in the decoder alone, for "hybrid"; none
        for "conv".

    head_layer_sizes : int or tuple of int, default=()
        Widths of further layers, which the means and the log-scales of codes have each for themselves; the decoder
        has them once.

    activation : {"relu", "tanh", "elu", "gelu", "silu", "leaky_relu", "sigmoid"}, default="relu"
        Activation of the hidden layers.

    batch_norm : bool, default=False
        Whether hidden layers are followed by batch normalisation.

    layer_norm : bool, default=False
        Whether hidden layers are followed by layer normalisation.

    dropout : float, default=0.0
        Share of hidden units that are left out at random in a gradient step.

    image_shape : tuple of int, default=None
        (height, width) or (channels, height, width) of the images that rows hold, for "conv" and ``augment``; (height,
        width, channels) is an error.

    channels : tuple of int, default=(32, 64)
        Channels of the encoder's convolutions, each of which halves height and width.

    encoder : Module, class or callable, default=None
        Your own network from rows (n, n_inputs) to (n, 2 * n_components): means and log-scales of codes.
        A class or function is called with both sizes. A module is copied, never trained in place.

    decoder : Module, class or callable, default=None
        Your own network from codes (n, n_components) to the parameters of the likelihood (n, n_outputs): one for each
        feature, for most.

    likelihood : str or object, default="auto"
        Observation model: "bernoulli" (data in [0, 1]), "continuous_bernoulli" (the same, normalised over [0, 1]),
        "gaussian" (one learned noise scale), "gaussian_fixed", "gaussian_features" (a noise scale for each feature),
        "gaussian_samples" (one for each row), "poisson", "negative_binomial" (counts), "categorical" (codes 0, 1, ...),
        or an object with the same methods. "auto" is "bernoulli" for data in [0, 1], otherwise "gaussian". Gaussian
        ones standardise the features inside. A UserWarning tells where "auto" takes "gaussian" for what look like
        counts: whole numbers that come close to 0 in nearly all features, whose largest is more than three times the
        mean of those above 0, at most 2 % of which are within a tenth of it; ratings and pixels are not like that.

    beta : float, default=1.0
        Weight of the KL term in the training loss.

    kl_warmup_epochs : int, default=0
        Epochs in which this weight grows from nothing.

    free_bits : float, default=0.0
        Nats of KL that each latent dimension may have without cost, in the mean over a batch.

    n_draws : int, default=1
        Codes drawn for each row in a gradient step.

    max_epochs : int or "auto", default="auto"
        Passes over the data. "auto" chooses them from the number of rows, so that the number of gradient steps grows
        with its square root; small tables, which would be overfitted, get 100.

    batch_size : int, default=128
        Rows in a gradient step.

    lr : float, default=1e-3
        Learning rate.

    optimizer : {"adam", "adamw", "sgd"} or torch optimizer class, default="adam"
        What makes the gradient steps.

    weight_decay : float, default=0.0
        Decay of the weights, as the optimizer understands it.

    lr_schedule : {"cosine", "exponential", "linear"} or callable, default=None
        How the learning rate falls over the epochs: along a cosine to zero, exponentially or in a line to a hundredth.
        A callable gives the factor for the share of the training, in [0, 1], that is done.

    max_grad_norm : float, default=None
        Largest norm of the gradient of a step.

    early_stopping : bool, default=False
        Stop when the validation loss has not improved by ``tol`` for ``n_iter_no_change`` epochs, and take the best
        weights.

    validation_fraction : float, default=0.1
        Share of the rows that early stopping holds out, if `fit` gets no ``X_val``.

    n_iter_no_change : int, default=10
        Epochs without improvement before stopping early.

    tol : float, default=1e-4
        Smallest improvement, in nats per row.

    callbacks : list of skorch callbacks, default=None
        Instances, classes, or pairs of a name and one of these. Copies of them are notified of every epoch and batch.
        ``callbacks__<name>__<parameter>`` are parameters of the estimator.

    augment : {"affine"} or callable, default=None
        Random views of the rows for the encoder in training; the decoder has to give the rows themselves. "affine"
        turns, shifts, scales and shears images a little and needs ``image_shape``; a callable takes rows (n, d) as a
        tensor and a torch.Generator.

    warm_start : bool, default=False
        Whether `fit` goes on with the networks, and the state of the optimizer, of the last fit.

    checkpoint : str or path-like, default=None
        File to which the training is written after every epoch. If a fit was interrupted, the same fit goes on from the
        file, to the same result; the file is removed at the end.

    precision : {"float32", "bf16"}, default="float32"
        In which the networks compute while training; "bf16" is refused where the device has no instructions for it.

    compile : bool or {"reduce-overhead", "max-autotune"}, default=False
        Whether to train the networks compiled by torch, and in which of its modes; the named ones use CUDA graphs on a
        GPU. It takes a while before the first step, and gains little on a CPU.

    device : str or torch.device, default="auto"
        Where to compute; "auto" takes cuda, then mps, then cpu. Where mps lacks what the training needs, "auto" trains
        on the cpu and emits a RuntimeWarning.

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
        ``train_loss``, ``train_log_likelihood``, ``train_kl`` (nats per row), ``dur`` (seconds) and, with validation
        rows, ``valid_loss``, ``valid_log_likelihood`` and ``valid_kl`` of each epoch, and what callbacks recorded.
    loss_curve_ : list of float
        Training loss of each epoch, in nats per row.
    n_iter_ : int
        Number of epochs.
    kl_per_dimension_ : ndarray of shape (n_components,)
        KL of each latent dimension, in nats, in the mean over (a sample of) the training rows.
    active_units_ : int
        Number of dimensions in use: the posterior means vary by more than 0.01 (Burda et al. 2016).
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if X has names that are all strings.

    See Also
    --------
    AutoencoderEmbedder : The same networks without a prior.
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
        **OnePhaseEmbedder._parameter_constraints,
        "beta": [NOT_NEGATIVE],
        "kl_warmup_epochs": [Interval(Integral, 0, None, closed="left")],
        "free_bits": [NOT_NEGATIVE],
        "n_draws": [POSITIVE_INT],
    }
    _fitted_schema: ClassVar[dict] = {"kl_per_dimension_": "q", "active_units_": int}

    def _latent_distribution(self):
        """Return weights, means and covariances of the prior, which is N(0, I)."""
        return np.ones(1), np.zeros((1, self._n_features_out)), np.eye(self._n_features_out)[None]

    def __init__(
        self,
        n_components=10,
        *,
        architecture="auto",
        hidden_layer_sizes="auto",
        head_layer_sizes=(),
        activation="relu",
        batch_norm=False,
        layer_norm=False,
        dropout=0.0,
        image_shape=None,
        channels=(32, 64),
        encoder=None,
        decoder=None,
        likelihood="auto",
        beta=1.0,
        kl_warmup_epochs=0,
        free_bits=0.0,
        n_draws=1,
        max_epochs="auto",
        batch_size=128,
        lr=1e-3,
        optimizer="adam",
        weight_decay=0.0,
        lr_schedule=None,
        max_grad_norm=None,
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=10,
        tol=1e-4,
        callbacks=None,
        augment=None,
        warm_start=False,
        checkpoint=None,
        precision="float32",
        compile=False,
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.n_components = n_components
        self.architecture = architecture
        self.hidden_layer_sizes = hidden_layer_sizes
        self.head_layer_sizes = head_layer_sizes
        self.activation = activation
        self.batch_norm = batch_norm
        self.layer_norm = layer_norm
        self.dropout = dropout
        self.image_shape = image_shape
        self.channels = channels
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood
        self.beta = beta
        self.kl_warmup_epochs = kl_warmup_epochs
        self.free_bits = free_bits
        self.n_draws = n_draws
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.lr_schedule = lr_schedule
        self.max_grad_norm = max_grad_norm
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.callbacks = callbacks
        self.augment = augment
        self.warm_start = warm_start
        self.checkpoint = checkpoint
        self.precision = precision
        self.compile = compile
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

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
        generator = self._draws(n_samples, random_state)
        return draw_rows(self, lambda model, noise: model.prior.sample(noise), n_samples, generator)

    def _make_prior(self):
        return StandardNormal()

    def _plan(self, max_epochs, view_of):
        settings = {"beta": self.beta, "kl_warmup_epochs": self.kl_warmup_epochs, "free_bits": self.free_bits}
        return Plan(
            max_epochs, view_of=view_of, n_draws=self.n_draws, **settings, **self._stopping(), **self._general_plan()
        )

    def _diagnose(self, q):
        parts = StandardNormal().kl_parts(q, q.mean)
        self.kl_per_dimension_ = parts.cpu().double().mean(0).numpy()
        self.active_units_ = int((q.mean.cpu().double().var(0, correction=0) > ACTIVE_VARIANCE).sum())

    def _warn_if_collapsed(self):
        if self.active_units_ == 0 and self._n_steps >= MIN_STEPS and current_group().rank == 0:
            warn(
                f"The codes carry nothing of X: all {self.n_components} latent dimensions are at the prior (posterior "
                f"collapse, KL {self.kl_per_dimension_.sum():.2g} nats). Train longer (max_epochs, lr), decrease "
                "beta, or set kl_warmup_epochs or free_bits.",
                ConvergenceWarning,
            )


class AutoencoderEmbedder(OnePhaseEmbedder):
    """Autoencoder as a transformer: the variational autoencoder without a prior.

    The code of a row is a point, and nothing holds codes together but the data. With ``corruption`` it is a denoising
    autoencoder.

    Parameters
    ----------
    n_components : int, default=10
        Size of the embedding.

    architecture : {"auto", "mlp", "conv", "hybrid"}, default="auto"
        Multi-layer perceptrons, convolutions, or convolutions in the encoder and perceptrons in the decoder, which take
        less time. "auto" is "conv" if there is an ``image_shape``.

    hidden_layer_sizes : int, tuple of int or "auto", default="auto"
        Widths of the encoder's hidden layers; the decoder has them in reverse. With "conv" they come between the
        convolutions and the codes. "auto" is (256, 128) for "mlp" and, in the decoder alone, for "hybrid"; none
        for "conv".

    head_layer_sizes : int or tuple of int, default=()
        Widths of further layers between those and the codes, as `VAEEmbedder` has them.

    activation : {"relu", "tanh", "elu", "gelu", "silu", "leaky_relu", "sigmoid"}, default="relu"
        Activation of the hidden layers.

    batch_norm : bool, default=False
        Whether hidden layers are followed by batch normalisation.

    layer_norm : bool, default=False
        Whether hidden layers are followed by layer normalisation.

    dropout : float, default=0.0
        Share of hidden units that are left out at random in a gradient step.

    image_shape : tuple of int, default=None
        (height, width) or (channels, height, width) of the images that rows hold, for "conv" and ``augment``; (height,
        width, channels) is an error.

    channels : tuple of int, default=(32, 64)
        Channels of the encoder's convolutions, each of which halves height and width.

    encoder : Module, class or callable, default=None
        Your own network from rows (n, n_inputs) to codes (n, n_components).
        A class or function is called with both sizes. A module is copied, never trained in place.

    decoder : Module, class or callable, default=None
        Your own network from codes (n, n_components) to the parameters of the likelihood (n, n_outputs): one for each
        feature, for most.

    likelihood : str or object, default="auto"
        Observation model: "bernoulli" (data in [0, 1]), "continuous_bernoulli" (the same, normalised over [0, 1]),
        "gaussian" (one learned noise scale), "gaussian_fixed", "gaussian_features" (a noise scale for each feature),
        "gaussian_samples" (one for each row), "poisson", "negative_binomial" (counts), "categorical" (codes 0, 1, ...),
        or an object with the same methods. "auto" is "bernoulli" for data in [0, 1], otherwise "gaussian". Gaussian
        ones standardise the features inside. A UserWarning tells where "auto" takes "gaussian" for what look like
        counts: whole numbers that come close to 0 in nearly all features, whose largest is more than three times the
        mean of those above 0, at most 2 % of which are within a tenth of it; ratings and pixels are not like that.

    max_epochs : int or "auto", default="auto"
        Passes over the data. "auto" chooses them from the number of rows, so that the number of gradient steps grows
        with its square root; small tables, which would be overfitted, get 100.

    batch_size : int, default=128
        Rows in a gradient step.

    lr : float, default=1e-3
        Learning rate.

    optimizer : {"adam", "adamw", "sgd"} or torch optimizer class, default="adam"
        What makes the gradient steps.

    weight_decay : float, default=0.0
        Decay of the weights, as the optimizer understands it.

    lr_schedule : {"cosine", "exponential", "linear"} or callable, default=None
        How the learning rate falls over the epochs: along a cosine to zero, exponentially or in a line to a hundredth.
        A callable gives the factor for the share of the training, in [0, 1], that is done.

    max_grad_norm : float, default=None
        Largest norm of the gradient of a step.

    early_stopping : bool, default=False
        Stop when the validation loss has not improved by ``tol`` for ``n_iter_no_change`` epochs, and take the best
        weights.

    validation_fraction : float, default=0.1
        Share of the rows that early stopping holds out, if `fit` gets no ``X_val``.

    n_iter_no_change : int, default=10
        Epochs without improvement before stopping early.

    tol : float, default=1e-4
        Smallest improvement, in nats per row.

    callbacks : list of skorch callbacks, default=None
        Instances, classes, or pairs of a name and one of these. Copies of them are notified of every epoch and batch.
        ``callbacks__<name>__<parameter>`` are parameters of the estimator.

    augment : {"affine"} or callable, default=None
        Random views of the rows for the encoder in training; the decoder has to give the rows themselves. "affine"
        turns, shifts, scales and shears images a little and needs ``image_shape``; a callable takes rows (n, d) as a
        tensor and a torch.Generator.

    corruption : float, default=None
        Share of the standardised entries that the encoder sees as zero in training, at random.

    warm_start : bool, default=False
        Whether `fit` goes on with the networks, and the state of the optimizer, of the last fit.

    checkpoint : str or path-like, default=None
        File to which the training is written after every epoch. If a fit was interrupted, the same fit goes on from the
        file, to the same result; the file is removed at the end.

    precision : {"float32", "bf16"}, default="float32"
        In which the networks compute while training; "bf16" is refused where the device has no instructions for it.

    compile : bool or {"reduce-overhead", "max-autotune"}, default=False
        Whether to train the networks compiled by torch, and in which of its modes; the named ones use CUDA graphs on a
        GPU. It takes a while before the first step, and gains little on a CPU.

    device : str or torch.device, default="auto"
        Where to compute; "auto" takes cuda, then mps, then cpu. Where mps lacks what the training needs, "auto" trains
        on the cpu and emits a RuntimeWarning.

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
        ``train_loss``, ``train_log_likelihood``, ``train_kl`` (nats per row), ``dur`` (seconds) and, with validation
        rows, ``valid_loss``, ``valid_log_likelihood`` and ``valid_kl`` of each epoch, and what callbacks recorded.
    loss_curve_ : list of float
        Training loss of each epoch, in nats per row.
    n_iter_ : int
        Number of epochs.
    code_mean_ : ndarray of shape (n_components,)
        Mean of the codes of (a sample of) the training rows.
    code_covariance_ : ndarray of shape (n_components, n_components)
        Their covariance.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if X has names that are all strings.

    See Also
    --------
    VAEEmbedder : Codes with a prior, and a bound on the log-likelihood.

    References
    ----------
    P. Vincent, H. Larochelle, Y. Bengio and P.-A. Manzagol, Extracting and composing robust features with denoising
    autoencoders, 2008.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skvae import AutoencoderEmbedder
    >>> X = load_digits().data / 16
    >>> autoencoder = AutoencoderEmbedder(n_components=2, max_epochs=5, random_state=0).fit(X)
    >>> autoencoder.reconstruct(X).shape
    (1797, 64)
    """

    _parameter_constraints: ClassVar[dict] = {
        **OnePhaseEmbedder._parameter_constraints,
        "corruption": [Interval(Real, 0.0, 1.0, closed="neither"), None],
    }
    _fitted_schema: ClassVar[dict] = {"code_mean_": "q", "code_covariance_": "qq"}

    def _latent_distribution(self):
        """Return weights, means and covariances of the normal with the moments of the training codes."""
        return np.ones(1), self.code_mean_[None], self.code_covariance_[None]

    def __init__(
        self,
        n_components=10,
        *,
        architecture="auto",
        hidden_layer_sizes="auto",
        head_layer_sizes=(),
        activation="relu",
        batch_norm=False,
        layer_norm=False,
        dropout=0.0,
        image_shape=None,
        channels=(32, 64),
        encoder=None,
        decoder=None,
        likelihood="auto",
        max_epochs="auto",
        batch_size=128,
        lr=1e-3,
        optimizer="adam",
        weight_decay=0.0,
        lr_schedule=None,
        max_grad_norm=None,
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=10,
        tol=1e-4,
        callbacks=None,
        augment=None,
        corruption=None,
        warm_start=False,
        checkpoint=None,
        precision="float32",
        compile=False,
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.n_components = n_components
        self.architecture = architecture
        self.hidden_layer_sizes = hidden_layer_sizes
        self.head_layer_sizes = head_layer_sizes
        self.activation = activation
        self.batch_norm = batch_norm
        self.layer_norm = layer_norm
        self.dropout = dropout
        self.image_shape = image_shape
        self.channels = channels
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.lr_schedule = lr_schedule
        self.max_grad_norm = max_grad_norm
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.callbacks = callbacks
        self.augment = augment
        self.corruption = corruption
        self.warm_start = warm_start
        self.checkpoint = checkpoint
        self.precision = precision
        self.compile = compile
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def impute(self, X):
        """Fill in missing values (NaN) by reconstructions.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data, like that of training in what is missing.

        Returns
        -------
        X_filled : ndarray of shape (n_samples, n_features)
            The rows; values that were there are unchanged.

        Raises
        ------
        ValueError
            If values are missing, but none were in the training data.
        """
        return self._map_array(fill_missing, self._within_support(self._validate(X, reset=False)))

    def score_samples(self, X):
        """Log-likelihood of each row at its own code: how well it is reconstructed.

        It is no bound on a log-likelihood, because the code costs nothing, and does not compare with other models.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        log_likelihood : ndarray of shape (n_samples,)
            In nats, in the units of the data.

        Raises
        ------
        ValueError
            If X has values that the likelihood can not produce.
        """
        return self._score_valid(self._validate(X, reset=False))

    def _score_valid(self, X):
        X = self._within_support(X)
        return self._map_array(elbo_at_points(torch.zeros(1, self._n_features_out, dtype=torch.float64)), X)

    def sample(self, n_samples=1, random_state=None):
        """Draw new rows: codes from a normal with the moments of the training codes, then data from the likelihood.

        An autoencoder does not say how codes are distributed; those drawn may lie where no data are.

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

        def codes_of(model, noise):
            variances, axes = np.linalg.eigh(self.code_covariance_)
            root = torch.tensor(axes * np.sqrt(variances.clip(0)))
            return torch.tensor(self.code_mean_) + noise @ root.T

        return draw_rows(self, codes_of, n_samples, self._draws(n_samples, random_state))

    def _make_prior(self):
        return Flat()

    def _plan(self, max_epochs, view_of):
        return Plan(max_epochs, view_of=corrupted(view_of, self.corruption), **self._stopping(), **self._general_plan())

    def _diagnose(self, q):
        codes = q.mean.cpu().double().numpy()
        self.code_mean_ = codes.mean(0)
        self.code_covariance_ = np.atleast_2d(np.cov(codes.T, bias=True))


def corrupted(view_of, share):
    """A view in which a share of the entries is zero, of another view if there is one."""
    if share is None:
        return view_of

    def view(u, generator):
        u = u if view_of is None else view_of(u, generator)
        return u * (torch.rand(u.shape, generator=generator, device=u.device) >= share)

    return view
