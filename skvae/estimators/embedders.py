"""Autoencoders as transformers: the variational and the plain one."""

from dataclasses import dataclass
from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from sklearn.utils._param_validation import Interval, StrOptions

from ..fitting.distributed import current_group
from ..fitting.latent_norm import begin_latent_norm, end_latent_norm
from ..fitting.training import fit_module
from ..models import Flat, StandardNormal
from ._conditional import ConditionalMixin
from ._elbo import draw_generator, draw_samples, elbo_at_points, fill_missing
from ._embedder import NOT_NEGATIVE, POSITIVE_INT, SinglePhaseEmbedder
from ._embedder_training import augmentation, user_callbacks
from ._fit import row_count

MIN_SAMPLES = 1_000  # from which a training begins, by default, as `INITIAL_SHARE` says
INITIAL_SHARE = 10  # one in so many epochs has, by default, a smaller weight of the KL and normalized codes
MIN_STEPS = 500  # iterations after which latent codes should carry information
ACTIVE_VARIANCE = 0.01  # of posterior means, above which a latent dimension is in use (Burda et al. 2016)


@dataclass(eq=False, repr=False, kw_only=True)
class VAEEmbedder(ConditionalMixin):
    """Variational autoencoder as a transformer.

    Learns a nonlinear embedding in ``n_components`` dimensions whose distribution is close to a standard normal, and a
    decoder that maps latent codes back to data.

    Parameters
    ----------
    n_components : int, default=10
        Size of the embedding.

    architecture : {"auto", "mlp", "conv", "hybrid"}, default="auto"
        Multi-layer perceptrons, convolutions, or convolutions in the encoder and perceptrons in the decoder, which take
        less time. "auto" is "conv" if there is an ``image_shape``.

    hidden_layer_sizes : int, tuple of int or "auto", default="auto"
        Widths of the encoder's hidden layers; the decoder has them in reverse. With "conv" they come between the
        convolutions and the latent codes. "auto" is (256, 128) for "mlp" and, in the decoder alone, for "hybrid"; none
        for "conv".

    head_layer_sizes : int or tuple of int, default=()
        Widths of further layers, separate for the means and the log-scales of latent codes; the decoder has them once.

    activation : {"relu", "tanh", "elu", "gelu", "silu", "leaky_relu", "sigmoid"}, default="relu"
        Activation of the hidden layers.

    batch_norm : bool, default=False
        Whether hidden layers are followed by batch normalization.

    layer_norm : bool, default=False
        Whether hidden layers are followed by layer normalization.

    dropout : float, default=0.0
        Probability of dropping a hidden unit in an iteration.

    image_shape : tuple of int, default=None
        (height, width) or (channels, height, width) of the images in the rows of X, for "conv" and
        ``augment``; (height, width, channels) is an error.

    channels : tuple of int, default=(32, 64)
        Channels of the encoder's convolutions, each of which halves height and width.

    encoder : Module, class or callable, default=None
        Your own network from rows (n, n_inputs) to (n, 2 * n_components): means and log-scales of latent codes.
        A class or function is called with both sizes. A module is copied, never trained in place.

    decoder : Module, class or callable, default=None
        Your own network from codes (n, n_components) to the parameters of the likelihood (n, n_outputs): one for each
        feature, for most.

    likelihood : str, object or list, default="auto"
        Observation model: "bernoulli" (data in [0, 1]), "continuous_bernoulli" (the same, normalized over [0, 1]),
        "gaussian" (one learned noise scale), "gaussian_fixed", "gaussian_features" (a noise scale for each feature),
        "gaussian_samples" (one for each sample), "poisson", "negative_binomial", "zero_inflated_negative_binomial"
        (counts), "categorical" (integers 0, 1, ...), or an object with the same methods. "auto" is "bernoulli" for data
        in [0, 1], else "gaussian". Gaussian ones standardize the features internally; principal components, which are
        centred and uncorrelated, keep the ratios of their scales. A UserWarning is emitted where "auto" takes
        "gaussian" for likely counts: whole numbers that come close to 0 in nearly all features, whose largest is more
        than three times the mean of those above 0, at most 2 % of which are within a tenth of it; ratings and pixels
        are not like that. In a data frame with strings or categories, "auto" chooses for each column; a list of
        (name, likelihood, columns), as of `sklearn.compose.ColumnTransformer`, does it by hand.

    size_factor : {"total"}, default=None
        Size factors of counts: "total" multiplies the expected counts of a sample by its total, in units of the mean
        total, so that latent codes describe shares. Scores are those given the totals; `reconstruct`,
        `inverse_transform` and `sample` are for the mean total.

    dispersion : {"feature", "covariates"}, default="feature"
        Dispersions of negative binomial counts: one for each feature, or "covariates" for each feature and level of the
        ``covariates`` that `fit` gets (their logs are sums over covariates).

    beta : float, default=1.0
        Weight of the KL term in the training loss.

    kl_warmup_epochs : int or "auto", default="auto"
        Epochs over which this weight grows linearly from zero. "auto" is a tenth of ``max_epochs``, rounded down, and 0
        with fewer than 1,000 samples or if the training continues from earlier networks. Without it, latent dimensions
        collapse to the prior in the first epochs, before the decoder uses them, and many never come back.

    latent_norm_epochs : int or "auto", default="auto"
        Epochs at the beginning in which batch normalization gives the mean of q(z | x) variance 1/2 in each latent
        dimension (Zhu et al. 2020); afterwards this map is fixed, and nothing keeps a dimension in use that costs more
        than it explains. More dimensions remain in use, and clusters of the latent codes agree better with classes.
        The held-out evidence lower bound is about the same for images, and lower for some small tables.
        "auto" is a tenth of ``max_epochs``, rounded down, and 0 with fewer than 1,000 samples, which networks overfit
        sooner. Networks that are trained further are not normalized again, and an ``encoder`` of your own never is.

    free_bits : float, default=0.0
        Nats of KL that each latent dimension may have without cost, in the mean over a batch.

    n_draws : int, default=1
        Latent codes drawn for each sample in an iteration.

    max_epochs : int or "auto", default="auto"
        Number of epochs. "auto" chooses it from the number of samples, so that the number of iterations grows with its
        square root, with at most 100 epochs, or 300 iterations, to avoid overfitting. With 100 to 999 samples, networks
        are first trained on four fifths of them; if the loss of the others rises again by more than half of its
        decrease, the number of epochs is that until its minimum.

    batch_size : int, default=128
        Samples in an iteration.

    lr : float, default=1e-3
        Learning rate.

    optimizer : {"adam", "adamw", "sgd"} or torch optimizer class, default="adam"
        Optimizer.

    weight_decay : float, default=0.0
        Weight decay, as the optimizer defines it.

    lr_schedule : {"cosine", "exponential", "linear"} or callable, default=None
        Schedule of the learning rate: along a cosine to zero, exponentially or linearly to a hundredth. A callable
        returns the factor for the share of the training, in [0, 1], that is done.

    max_grad_norm : float, default=None
        Maximum norm of the gradient; larger ones are clipped.

    early_stopping : bool, default=False
        Whether to stop when the validation loss has not improved by ``tol`` for ``n_iter_no_change`` epochs, and to
        restore the best weights.

    validation_fraction : float, default=0.1
        Fraction of the samples that early stopping holds out, if `fit` gets no ``X_val``.

    n_iter_no_change : int, default=10
        Epochs without improvement before stopping early.

    tol : float, default=1e-4
        Smallest improvement, in nats per sample.

    callbacks : list of skorch callbacks, default=None
        Instances, classes, or pairs of a name and one of these. Copies of them are notified of every epoch and batch.
        ``callbacks__<name>__<parameter>`` are parameters of the estimator.

    augment : {"affine"} or callable, default=None
        Augmentation of the encoder's input in training; the decoder has to reconstruct the samples themselves. "affine"
        rotates, shifts, scales and shears images a little and needs ``image_shape``; a callable takes samples (n, d)
        as a tensor and a torch.Generator.

    warm_start : bool, default=False
        Whether `fit` continues from the networks, and the state of the optimizer, of the last fit.

    checkpoint : str or path-like, default=None
        File to which the state of the training is written after every epoch. If a fit was interrupted, the same fit
        resumes from the file, with the same result; the file is removed at the end.

    precision : {"float32", "bf16"}, default="float32"
        Floating-point precision of the networks during training; "bf16" raises an error where the device has no
        instructions for it.

    compile : bool or {"reduce-overhead", "max-autotune"}, default=False
        Whether to compile the networks for training by `torch.compile`, and in which of its modes; the named ones use
        CUDA graphs on a GPU. Compilation takes a while, and gains little on a CPU.

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
        The net that trained it; it is not part of a pickle.
    likelihood_ : str
        The observation model that was used; "mixed" if columns have different ones.
    column_likelihoods_ : dict
        Names of the likelihoods, by the name or index of the feature.
    covariate_levels_ : dict
        Levels of the covariates that `fit` got, by name or index, and None for those that are numbers.
    history_ : list of dict
        ``train_loss``, ``train_log_likelihood``, ``train_kl`` (nats per sample), ``dur`` (seconds) and, with validation
        samples, ``valid_loss``, ``valid_log_likelihood`` and ``valid_kl`` of each epoch, and records of callbacks.
    loss_curve_ : list of float
        Training loss of each epoch, in nats per sample.
    n_iter_ : int
        Number of epochs.
    kl_per_dimension_ : ndarray of shape (n_components,)
        Mean KL divergence of each latent dimension over (a subsample of) the training samples, in nats.
    active_units_ : int
        Number of latent dimensions whose posterior means have a variance above 0.01 (Burda et al. 2016).
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if X has names that are all strings.

    See Also
    --------
    AutoencoderEmbedder : The same networks without a prior.
    TorchGMM : Gaussian mixture, to cluster the latent codes.
    sklearn.decomposition.PCA : The linear embedding.

    Notes
    -----
    Training is in float32. Fitted models compute in the precision of their input: float64 samples are embedded in
    float64.

    References
    ----------
    D. P. Kingma and M. Welling, Auto-Encoding Variational Bayes, 2014 (equation 10).

    Q. Zhu et al., A batch normalized inference network keeps the KL vanishing away, 2020.

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
        **SinglePhaseEmbedder._parameter_constraints,
        "dispersion": [StrOptions({"feature", "covariates"})],
        "beta": [NOT_NEGATIVE],
        "kl_warmup_epochs": [Interval(Integral, 0, None, closed="left"), StrOptions({"auto"})],
        "latent_norm_epochs": [Interval(Integral, 0, None, closed="left"), StrOptions({"auto"})],
        "free_bits": [NOT_NEGATIVE],
        "n_draws": [POSITIVE_INT],
    }
    _fitted_schema: ClassVar[dict] = {"kl_per_dimension_": "q", "active_units_": int}

    def _latent_distribution(self):
        """Return weights, means and covariances of the prior, which is N(0, I)."""
        return np.ones(1), np.zeros((1, self._n_features_out)), np.eye(self._n_features_out)[None]

    dispersion: str = "feature"
    beta: float = 1.0
    kl_warmup_epochs: int | str = "auto"
    latent_norm_epochs: int | str = "auto"
    free_bits: float = 0.0
    n_draws: int = 1

    def _make_prior(self):
        return StandardNormal()

    def _fit_networks(self, model, data, max_epochs):
        # Networks that were trained before know how to use the codes, and those of few samples overfit sooner.
        is_plain = data.resume or row_count(data.rows) < MIN_SAMPLES
        n_auto = 0 if is_plain else max_epochs // INITIAL_SHARE
        warmup = n_auto if self.kl_warmup_epochs == "auto" else self.kl_warmup_epochs
        n_normalized = n_auto if self.latent_norm_epochs == "auto" else self.latent_norm_epochs
        n_normalized = 0 if data.resume or self.encoder is not None else n_normalized
        callbacks = user_callbacks(self)
        if n_normalized:
            callbacks = (begin_latent_norm(model, self.n_components, n_normalized), *callbacks)
        plan = self._plan(
            max_epochs,
            callbacks=callbacks,
            view_of=augmentation(self, model.likelihood),
            beta=self.beta,
            kl_warmup_epochs=warmup,
            free_bits=self.free_bits,
            n_draws=self.n_draws,
        )
        net = fit_module(model, plan, data)
        if n_normalized:
            end_latent_norm(model)
        return net

    def _set_latent_statistics(self, q, X):
        self.kl_per_dimension_ = StandardNormal().kl_parts(q, q.mean).cpu().double().mean(0).numpy()
        self.active_units_ = int((q.mean.cpu().double().var(0, correction=0) > ACTIVE_VARIANCE).sum())
        if self.active_units_ or self._n_steps < MIN_STEPS or current_group().rank:
            return None
        return (
            f"Posterior collapse: the latent codes carry no information about X, since all {self.n_components} latent "
            f"dimensions are at the prior (KL {self.kl_per_dimension_.sum():.2g} nats). Train longer (max_epochs, lr), "
            "decrease beta, or set kl_warmup_epochs or free_bits."
        )


@dataclass(eq=False, repr=False, kw_only=True)
class AutoencoderEmbedder(SinglePhaseEmbedder):
    """Autoencoder as a transformer: the variational autoencoder without a prior.

    The latent code of a sample is a point, without a prior. With ``corruption`` it is a denoising autoencoder.

    Parameters
    ----------
    n_components : int, default=10
        Size of the embedding.

    architecture : {"auto", "mlp", "conv", "hybrid"}, default="auto"
        Multi-layer perceptrons, convolutions, or convolutions in the encoder and perceptrons in the decoder, which take
        less time. "auto" is "conv" if there is an ``image_shape``.

    hidden_layer_sizes : int, tuple of int or "auto", default="auto"
        Widths of the encoder's hidden layers; the decoder has them in reverse. With "conv" they come between the
        convolutions and the latent codes. "auto" is (256, 128) for "mlp" and, in the decoder alone, for "hybrid"; none
        for "conv".

    head_layer_sizes : int or tuple of int, default=()
        Widths of further layers between the hidden layers and the latent codes.

    activation : {"relu", "tanh", "elu", "gelu", "silu", "leaky_relu", "sigmoid"}, default="relu"
        Activation of the hidden layers.

    batch_norm : bool, default=False
        Whether hidden layers are followed by batch normalization.

    layer_norm : bool, default=False
        Whether hidden layers are followed by layer normalization.

    dropout : float, default=0.0
        Probability of dropping a hidden unit in an iteration.

    image_shape : tuple of int, default=None
        (height, width) or (channels, height, width) of the images in the rows of X, for "conv" and
        ``augment``; (height, width, channels) is an error.

    channels : tuple of int, default=(32, 64)
        Channels of the encoder's convolutions, each of which halves height and width.

    encoder : Module, class or callable, default=None
        Your own network from rows (n, n_inputs) to codes (n, n_components).
        A class or function is called with both sizes. A module is copied, never trained in place.

    decoder : Module, class or callable, default=None
        Your own network from codes (n, n_components) to the parameters of the likelihood (n, n_outputs): one for each
        feature, for most.

    likelihood : str, object or list, default="auto"
        Observation model: "bernoulli" (data in [0, 1]), "continuous_bernoulli" (the same, normalized over [0, 1]),
        "gaussian" (one learned noise scale), "gaussian_fixed", "gaussian_features" (a noise scale for each feature),
        "gaussian_samples" (one for each sample), "poisson", "negative_binomial", "zero_inflated_negative_binomial"
        (counts), "categorical" (integers 0, 1, ...), or an object with the same methods. "auto" is "bernoulli" for data
        in [0, 1], else "gaussian". Gaussian ones standardize the features internally; principal components, which are
        centred and uncorrelated, keep the ratios of their scales. A UserWarning is emitted where "auto" takes
        "gaussian" for likely counts: whole numbers that come close to 0 in nearly all features, whose largest is more
        than three times the mean of those above 0, at most 2 % of which are within a tenth of it; ratings and pixels
        are not like that. In a data frame with strings or categories, "auto" chooses for each column; a list of
        (name, likelihood, columns), as of `sklearn.compose.ColumnTransformer`, does it by hand.

    size_factor : {"total"}, default=None
        Size factors of counts: "total" multiplies the expected counts of a sample by its total, in units of the mean
        total, so that latent codes describe shares. Scores are those given the totals; `reconstruct`,
        `inverse_transform` and `sample` are for the mean total.

    max_epochs : int or "auto", default="auto"
        Number of epochs. "auto" chooses it from the number of samples, so that the number of iterations grows with its
        square root, with at most 100 epochs, or 300 iterations, to avoid overfitting. With 100 to 999 samples, networks
        are first trained on four fifths of them; if the loss of the others rises again by more than half of its
        decrease, the number of epochs is that until its minimum.

    batch_size : int, default=128
        Samples in an iteration.

    lr : float, default=1e-3
        Learning rate.

    optimizer : {"adam", "adamw", "sgd"} or torch optimizer class, default="adam"
        Optimizer.

    weight_decay : float, default=0.0
        Weight decay, as the optimizer defines it.

    lr_schedule : {"cosine", "exponential", "linear"} or callable, default=None
        Schedule of the learning rate: along a cosine to zero, exponentially or linearly to a hundredth. A callable
        returns the factor for the share of the training, in [0, 1], that is done.

    max_grad_norm : float, default=None
        Maximum norm of the gradient; larger ones are clipped.

    early_stopping : bool, default=False
        Whether to stop when the validation loss has not improved by ``tol`` for ``n_iter_no_change`` epochs, and to
        restore the best weights.

    validation_fraction : float, default=0.1
        Fraction of the samples that early stopping holds out, if `fit` gets no ``X_val``.

    n_iter_no_change : int, default=10
        Epochs without improvement before stopping early.

    tol : float, default=1e-4
        Smallest improvement, in nats per sample.

    callbacks : list of skorch callbacks, default=None
        Instances, classes, or pairs of a name and one of these. Copies of them are notified of every epoch and batch.
        ``callbacks__<name>__<parameter>`` are parameters of the estimator.

    augment : {"affine"} or callable, default=None
        Augmentation of the encoder's input in training; the decoder has to reconstruct the samples themselves. "affine"
        rotates, shifts, scales and shears images a little and needs ``image_shape``; a callable takes samples (n, d)
        as a tensor and a torch.Generator.

    corruption : float, default=None
        Probability of setting a standardized entry of the encoder's input to zero in training.

    warm_start : bool, default=False
        Whether `fit` continues from the networks, and the state of the optimizer, of the last fit.

    checkpoint : str or path-like, default=None
        File to which the state of the training is written after every epoch. If a fit was interrupted, the same fit
        resumes from the file, with the same result; the file is removed at the end.

    precision : {"float32", "bf16"}, default="float32"
        Floating-point precision of the networks during training; "bf16" raises an error where the device has no
        instructions for it.

    compile : bool or {"reduce-overhead", "max-autotune"}, default=False
        Whether to compile the networks for training by `torch.compile`, and in which of its modes; the named ones use
        CUDA graphs on a GPU. Compilation takes a while, and gains little on a CPU.

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
        The net that trained it; it is not part of a pickle.
    likelihood_ : str
        The observation model that was used; "mixed" if columns have different ones.
    column_likelihoods_ : dict
        Names of the likelihoods, by the name or index of the feature.
    history_ : list of dict
        ``train_loss``, ``train_log_likelihood``, ``train_kl`` (nats per sample), ``dur`` (seconds) and, with validation
        samples, ``valid_loss``, ``valid_log_likelihood`` and ``valid_kl`` of each epoch, and records of callbacks.
    loss_curve_ : list of float
        Training loss of each epoch, in nats per sample.
    n_iter_ : int
        Number of epochs.
    code_mean_ : ndarray of shape (n_components,)
        Mean of the latent codes of (a subsample of) the training samples.
    code_covariance_ : ndarray of shape (n_components, n_components)
        Their covariance.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if X has names that are all strings.

    See Also
    --------
    VAEEmbedder : Latent codes with a prior, and a lower bound on the log-likelihood.

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
        **SinglePhaseEmbedder._parameter_constraints,
        "corruption": [Interval(Real, 0.0, 1.0, closed="neither"), None],
    }
    _fitted_schema: ClassVar[dict] = {"code_mean_": "q", "code_covariance_": "qq"}

    def _latent_distribution(self):
        """Return weights, means and covariances of the normal with the moments of the training codes."""
        return np.ones(1), self.code_mean_[None], self.code_covariance_[None]

    corruption: float | None = None

    def impute(self, X):
        """Fill in missing values (NaN) by reconstructions.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data, with values missing as in the training data.

        Returns
        -------
        X_filled : ndarray of shape (n_samples, n_features)
            The samples; observed values are unchanged.

        Raises
        ------
        ValueError
            If values are missing, but none were in the training data.
        """
        samples = self._within_support(self._validate(X, reset=False))
        return self._filled(X, self._map_model(fill_missing, samples))

    def score_samples(self, X):
        """Compute the log-likelihood of each sample at its own latent code: how well it is reconstructed.

        It is not a bound on a log-likelihood, because the code costs nothing, and is not comparable with other models.

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
            If X has values that the likelihood cannot produce.
        """
        return self._score_valid(self._validate(X, reset=False))

    def _score_valid(self, X):
        at_mean = elbo_at_points(torch.zeros(1, self._n_features_out, dtype=torch.float64))
        return self._map_model(at_mean, self._within_support(X))

    def sample(self, n_samples=1, random_state=None):
        """Draw samples: latent codes from a normal with the moments of the training codes, then the likelihood.

        An autoencoder does not model the distribution of latent codes; drawn codes may lie where no data are.

        Parameters
        ----------
        n_samples : int, default=1
            Number of samples.
        random_state : int, RandomState instance or None, default=None
            Seeds the draw; None uses the estimator's own ``random_state``.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Samples, in the units and the dtype of the training data.
        """

        def codes_of(model, noise):
            variances, axes = np.linalg.eigh(self.code_covariance_)
            root = torch.tensor(axes * np.sqrt(variances.clip(0)))
            return torch.tensor(self.code_mean_) + noise @ root.T

        return draw_samples(self, codes_of, n_samples, draw_generator(self, n_samples, random_state))

    def _make_prior(self):
        return Flat()

    def _fit_networks(self, model, data, max_epochs):
        view_of = corrupted(augmentation(self, model.likelihood), self.corruption)
        return fit_module(model, self._plan(max_epochs, view_of=view_of), data)

    def _set_latent_statistics(self, q, X):
        codes = q.mean.cpu().double().numpy()
        self.code_mean_ = codes.mean(0)
        self.code_covariance_ = np.atleast_2d(np.cov(codes.T, bias=True))


def corrupted(view_of, share):
    """Return a function that sets a share of the entries of augmented views, or of rows, to zero."""
    if share is None:
        return view_of

    def view(u, generator):
        u = u if view_of is None else view_of(u, generator)
        return u * (torch.rand(u.shape, generator=generator, device=u.device) >= share)

    return view
