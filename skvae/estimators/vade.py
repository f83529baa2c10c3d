"""Deep clustering: an embedding and a Gaussian mixture over it, learned together."""

import copy
import functools
import math
import warnings
from dataclasses import replace
from numbers import Integral, Real
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from sklearn.base import ClusterMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from skorch import NeuralNet

from ..data.arrays import float_dtype
from ..data.weights import repeated_rows
from ..fitting.batches import standardized
from ..fitting.distributed import current_group
from ..fitting.lazy_rows import select_rows
from ..fitting.parallel import count_batches, count_steps
from ..fitting.training import Plan, mean_elbo
from ..fitting.vade import LAST_WEIGHT, ConsistencyDecay, PruneMixtures, one_cycle, soft_mixtures, standardize_codes
from ..fitting.warnings import warn
from ..models import (
    COVARIANCES,
    LIKELIHOODS,
    Flat,
    GaussianMixturePrior,
    LatentModel,
    MaskedLikelihood,
    Mixture,
    Support,
)
from ..models.networks import LogScaleHead
from ._base import fit_method
from ._bounds import BoundMixin, draw_rows
from ._checks import check_enough_rows, check_index, row_count
from ._embedding import NOT_NEGATIVE, POSITIVE_INT, Embedder
from ._trainings import history_of
from .export import EncoderWithClusters
from .gmm import TorchGMM

AFFINE_LIMITS = {"rotation": 15.0, "shift": 0.09, "log_scale": 0.15, "shear": 0.3}  # of views in the joint phase
CONSISTENCY = 0.4  # weight of the agreement of views for each feature, in nats
PRUNED = ((1 / 6, 0.3), (5 / 12, 0.0))  # share of the steps, share of the mixtures that stay (at least one)
REG_COVAR = 1e-3  # of a mixture over codes of unit scale
HELD_OUT_SHARE, MOST_HELD_OUT = 0.1, 5_000  # rows that decide whether views help
FEW_ROWS = 1_000  # fewer are trained on for fewer epochs
DEAD_SHARE = 0.1  # of the rows that a cluster would have if all had as many, below which it is dead


class VaDEClusterer(BoundMixin, ClusterMixin, Embedder):
    """Variational deep embedding: a variational autoencoder whose prior is a Gaussian mixture.

    The networks and the mixture maximise one evidence lower bound (Jiang et al. 2017). An autoencoder is trained first,
    and the mixture starts from its codes. With ``consistency``, views of a row that `augment` makes shall also fall
    into the same cluster; whether this helps is decided by held-out rows, without labels.

    Parameters
    ----------
    n_clusters : int, default=10
        Number of clusters.

    latent_dim : int, default=10
        Size of the codes.

    covariance_type : {"full", "diag"}, default="full"
        Covariances of the mixture; "diag" is the published model.

    responsibilities : {"exact", "sampled"}, default="exact"
        How components are weighed in the bound: by the weights that make it largest, or, as in the paper, by their
        probabilities at the code that was drawn.

    architecture : {"auto", "mlp", "conv", "hybrid"}, default="auto"
        Multi-layer perceptrons, convolutions, or convolutions in the encoder and perceptrons in the decoder. "auto" is
        "hybrid" if there is an ``image_shape``, else "mlp".

    hidden_layer_sizes : int, tuple of int or "auto", default="auto"
        Widths of the encoder's hidden layers; the decoder has them in reverse. "auto" is (500, 500, 2000) for "mlp",
        none for "conv" and, in the decoder alone, (512, 256) for "hybrid".

    head_layer_sizes : int or tuple of int, default=()
        Widths of further layers, which the means and the log-scales of codes have each for themselves.

    activation : str, default="relu"
        Activation of the hidden layers, as for `VAEEmbedder`.

    batch_norm : bool, default=True
        Whether hidden layers are followed by batch normalisation.

    layer_norm : bool, default=False
        Whether hidden layers are followed by layer normalisation.

    dropout : float, default=0.0
        Share of hidden units that are left out at random in a gradient step.

    image_shape : tuple of int, default=None
        (height, width) or (channels, height, width) of the images that rows hold; (height, width, channels) is an
        error.

    channels : tuple of int or "auto", default="auto"
        Channels of the encoder's convolutions; "auto" is (16, 32, 64) for "hybrid", (32, 64) for "conv".

    encoder, decoder : Module, class or callable, default=None
        Your own networks, as for `VAEEmbedder`.

    likelihood : str or object, default="auto"
        Observation model, as for `VAEEmbedder`.

    beta : float, default=1.0
        Weight of the divergence from the prior.

    augment : {"auto", "affine"}, callable or None, default="auto"
        Random views of the rows for the encoder in training, as for `VAEEmbedder`. "auto" is "affine" if there is an
        ``image_shape``.

    consistency : float or "auto", default="auto"
        Weight of the mutual information between the clusters of two views of a row, in nats. It assumes that the
        wanted clusters survive the views, and are of similar size. 0 is plain VaDE. "auto" trains with 0.4 for each
        feature and with 0, both from the same autoencoder, and keeps what does better on held-out rows at what the end
        of the training maximises (the bound, and a tenth of that weight times the mutual information); it is 0 if there
        are no views.

    n_init : int, default=20
        Mixtures to start from. With ``consistency`` all are trained side by side on the same codes and the worst are
        dropped; otherwise it is the number of EM starts.

    pretrained : AutoencoderEmbedder or VAEEmbedder, default=None
        A fitted embedder to start from, instead of pretraining; it is copied. The networks and the likelihood are then
        those of the embedder. Clones forget what was fitted: in a search, wrap it in
        `sklearn.frozen.FrozenEstimator`.

    pretrain_epochs : int or "auto", default="auto"
        Passes over the data of the autoencoder. "auto" makes about 800 gradient steps, but at least 4 epochs, and at
        most 100; at most 60 of fewer than 1,000 rows without views, which would be learned by heart, and with views at
        most 300 steps, if these are more epochs.

    max_epochs : int or "auto", default="auto"
        Passes over the data of networks and mixture together. "auto" makes about 1,600 gradient steps, but at least 8
        epochs, with the same upper limits.

    batch_size : int, default=256
        Rows in a gradient step.

    pretrain_lr : float, default=2e-3
        Largest learning rate of the autoencoder.

    lr : float, default=1e-3
        Largest learning rate of networks and mixture.

    optimizer : {"adam", "adamw", "sgd"} or torch optimizer class, default="adam"
        What makes the gradient steps.

    weight_decay : float, default=0.0
        Decay of the weights, as the optimizer understands it.

    max_grad_norm : float, default=None
        Largest norm of the gradient of a step.

    callbacks : list of skorch callbacks, default=None
        Instances, classes, or pairs of a name and one of these. Copies of them are notified of every epoch and batch of
        each training of networks and mixture. ``callbacks__<name>__<parameter>`` are parameters of the estimator.

    warm_start : bool, default=False
        Whether `fit` goes on with the networks and the mixture of the last fit.

    checkpoint : str or path-like, default=None
        File to which the training is written after every epoch. If a fit was interrupted, the same fit goes on from the
        file, to the same result; the file is removed at the end.

    precision : {"float32", "bf16"}, default="float32"
        In which the networks compute while training.

    compile : bool or {"reduce-overhead", "max-autotune"}, default=False
        Whether to train the networks compiled by torch, as for `VAEEmbedder`.

    device : str or torch.device, default="auto"
        Where to compute: "auto" is the first of cuda, mps and cpu that is there. Where mps lacks what the training
        needs, "auto" trains on the cpu and emits a RuntimeWarning.

    random_state : int, RandomState instance or None, default=None
        Seeds everything that is random.

    verbose : int, default=0
        Whether to show progress bars.

    Attributes
    ----------
    labels_ : ndarray of shape (n_samples,)
        Cluster of each training row, equal to ``predict(X)``.

    cluster_centers_ : ndarray of shape (n_clusters, n_features)
        Decoded means of the clusters.

    weights_ : ndarray of shape (n_clusters,)
        Weights of the mixture.

    means_ : ndarray of shape (n_clusters, latent_dim)
        Means of the mixture.

    covariances_ : ndarray of shape (n_clusters, latent_dim, latent_dim) or (n_clusters, latent_dim)
        Covariances of the mixture; variances for "diag".

    n_effective_clusters_ : float
        Exponential of the entropy of the mean responsibilities of training rows: as many clusters of equal size.

    consistency_ : float
        The weight that was used.

    held_out_scores_ : dict of float to float
        With ``consistency="auto"``, how good each weight that was tried is for held-out rows, in nats: their mean
        bound, and a tenth of the larger weight times the mutual information of their views.

    init_losses_ : list of list of float
        Losses of the mixtures, without the reconstruction that they share, each time that some were dropped.

    lower_bound_ : float
        Mean evidence lower bound of the training rows at the last epoch, while training.

    lower_bounds_ : list of float
        The same of each epoch of joint training.

    history_ : list of dict
        What is known of each epoch of joint training.

    pretrain_history_ : list of dict
        The same of the autoencoder.

    loss_curve_ : list of float
        Training loss of each epoch of joint training.

    n_iter_ : int
        Epochs of joint training.

    likelihood_ : str
        Name of the likelihood.

    module_ : LatentModel
        The trained model.

    n_features_in_ : int
        Number of features.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, if X has string names.

    References
    ----------
    Z. Jiang, Y. Zheng, H. Tan, B. Tang and H. Zhou, Variational deep embedding: an unsupervised and generative approach
    to clustering, IJCAI 2017. X. Ji, J. F. Henriques and A. Vedaldi, Invariant information clustering for unsupervised
    image classification and segmentation, ICCV 2019 (equation 3, the agreement of views).

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> from sklearn.metrics import v_measure_score
    >>> from skvae import VaDEClusterer
    >>> X, y = make_blobs(300, 20, centers=4, random_state=0)
    >>> vade = VaDEClusterer(4, latent_dim=3, hidden_layer_sizes=(32,), random_state=0).fit(X)
    >>> vade.predict_proba(X).shape, vade.cluster_centers_.shape
    ((300, 4), (4, 20))
    >>> round(v_measure_score(y, vade.labels_), 2)
    1.0
    """

    _size_parameter = "latent_dim"
    _image_architecture = "hybrid"
    _auto_sizes: ClassVar[dict] = {"mlp": (500, 500, 2000), "conv": (), "hybrid": (512, 256)}

    _parameter_constraints: ClassVar[dict] = {
        **Embedder._parameter_constraints,
        "n_clusters": [POSITIVE_INT],
        "latent_dim": [POSITIVE_INT],
        "covariance_type": [StrOptions({"full", "diag"})],
        "responsibilities": [StrOptions({"exact", "sampled"})],
        "channels": ["array-like", StrOptions({"auto"})],
        "beta": [NOT_NEGATIVE],
        "augment": [*Embedder._parameter_constraints["augment"], StrOptions({"auto"})],
        "consistency": [NOT_NEGATIVE, StrOptions({"auto"})],
        "n_init": [POSITIVE_INT],
        "pretrained": [HasMethods(["transform", "inverse_transform"]), None],
        "pretrain_epochs": [Interval(Integral, 0, None, closed="left"), StrOptions({"auto"})],
        "pretrain_lr": [Interval(Real, 0.0, None, closed="neither")],
    }
    _fitted_schema: ClassVar[dict] = {
        **{"weights_": "k", "means_": "km", "covariances_": "...", "cluster_centers_": "kd", "labels_": ("n", "iu")},
        **{"lower_bound_": float, "lower_bounds_": list, "n_effective_clusters_": float, "_confidence": float},
        **{"pretrain_history_": list, "init_losses_": list, "held_out_scores_": dict, "consistency_": float},
    }

    def _export_module(self, dtype):
        return EncoderWithClusters(self.module_, dtype)

    def __init__(
        self,
        n_clusters=10,
        *,
        latent_dim=10,
        covariance_type="full",
        responsibilities="exact",
        architecture="auto",
        hidden_layer_sizes="auto",
        head_layer_sizes=(),
        activation="relu",
        batch_norm=True,
        layer_norm=False,
        dropout=0.0,
        image_shape=None,
        channels="auto",
        encoder=None,
        decoder=None,
        likelihood="auto",
        beta=1.0,
        augment="auto",
        consistency="auto",
        n_init=20,
        pretrained=None,
        pretrain_epochs="auto",
        max_epochs="auto",
        batch_size=256,
        pretrain_lr=2e-3,
        lr=1e-3,
        optimizer="adam",
        weight_decay=0.0,
        max_grad_norm=None,
        callbacks=None,
        warm_start=False,
        checkpoint=None,
        precision="float32",
        compile=False,
        device="auto",
        random_state=None,
        verbose=0,
    ):
        self.n_clusters = n_clusters
        self.latent_dim = latent_dim
        self.covariance_type = covariance_type
        self.responsibilities = responsibilities
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
        self.augment = augment
        self.consistency = consistency
        self.n_init = n_init
        self.pretrained = pretrained
        self.pretrain_epochs = pretrain_epochs
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.pretrain_lr = pretrain_lr
        self.lr = lr
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.max_grad_norm = max_grad_norm
        self.callbacks = callbacks
        self.warm_start = warm_start
        self.checkpoint = checkpoint
        self.precision = precision
        self.compile = compile
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @fit_method
    def fit(self, X, y=None, sample_weight=None):
        """Train an autoencoder, start mixtures on its codes, and train both together.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data.
        y : Ignored
            Present for API consistency.
        sample_weight : array-like of shape (n_samples,), default=None
            How often each row is seen in an epoch: whole numbers are repeated rows, others are rounded at random to
            whole numbers that have the same sum. Smaller weights than one on average are scaled up first.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            If X is not a finite numeric table of at least ``n_clusters`` rows, if it does not fit the likelihood or
            the image shape, or if the training diverges.

        Notes
        -----
        A fit that is interrupted, by Ctrl-C or an exception of a callback, leaves the estimator as it was. If it goes
        on from the last fit (``warm_start``), it leaves it as it would be after its last whole epoch; but with a
        ``checkpoint`` as it was, because the file goes on from there.
        """
        X = self._validate(X, reset=True, min_samples=2)
        seed = self._first_seed = self._draw_seed()
        rows = repeated_rows(X, sample_weight, seed)
        self._check_enough_rows(rows)
        going_on = self.warm_start and hasattr(self, "module_")
        self._train(rows, None, seed, max_epochs=self._epochs(row_count(rows)), going_on=going_on, given=X)
        self._warn_if_collapsed()
        return self

    def fit_predict(self, X, y=None, sample_weight=None):
        """Fit, and return ``labels_``; for a tensor, what `predict` gives.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data.
        y : Ignored
            Present for API consistency.
        sample_weight : array-like of shape (n_samples,), default=None
            As for `fit`.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            Clusters.
        """
        fitted = self.fit(X, y, sample_weight=sample_weight)
        return fitted.predict(X) if isinstance(X, torch.Tensor) else fitted.labels_

    def predict(self, X):
        """Most probable cluster of each row.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            Clusters.
        """
        return self._encode(most_probable, self._validate(X, reset=False))

    def predict_proba(self, X):
        """Probabilities of the clusters: those of the mixture at the codes that `transform` gives.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        resp : ndarray of shape (n_samples, n_clusters)
            Probabilities.
        """
        X = self._validate(X, reset=False)
        return self._encode(cluster_probabilities, X)

    def sample(self, n_samples=1, cluster=None, random_state=None):
        """Draw new rows: a cluster, a code from its component, then data from the likelihood.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows.
        cluster : int, default=None
            The cluster of all rows; None draws clusters by their weights.
        random_state : int, RandomState instance or None, default=None
            Seeds the draw; None uses the estimator's own ``random_state``.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Rows, in the units and the dtype of the training data.
        y : ndarray of shape (n_samples,)
            Their clusters.

        Raises
        ------
        ValueError
            If there is no such cluster.
        """
        generator = self._draws(n_samples, random_state)
        if cluster is None:
            weights = torch.from_numpy(self.weights_.astype(np.float64))
            labels = torch.multinomial(weights, n_samples, replacement=True, generator=generator)
        else:
            labels = torch.full((n_samples,), check_index("cluster", cluster, len(self.weights_)))
        X = draw_rows(self, lambda model, noise: model.prior.sample(noise, labels), n_samples, generator)
        return X, labels.numpy()

    def _choose_likelihood(self, columns):
        return super()._choose_likelihood(columns) if self.pretrained is None else self._pretrained_module().likelihood

    def _pretrained_module(self):
        """The networks to start from.

        Raises
        ------
        NotFittedError, TypeError
            If they were not trained, or if there are none.
        """
        check_is_fitted(self.pretrained)
        if not isinstance(getattr(self.pretrained, "module_", None), LatentModel):
            raise TypeError(
                f"pretrained should be a fitted AutoencoderEmbedder or VAEEmbedder, but is {self.pretrained!r}."
            )
        return self.pretrained.module_

    def _build(self, likelihood, n_features, generator):
        if self.pretrained is None:
            return super()._build(likelihood, n_features, generator)
        given, sizes = self.pretrained.module_, (n_features, self.latent_dim)
        if isinstance(likelihood, MaskedLikelihood) != isinstance(given.likelihood, MaskedLikelihood):
            raise ValueError(
                "X has missing values, but pretrained was fitted to rows without any, and its encoder has no mask of "
                "them; fit it to such rows too, or leave pretrained out."
            )
        found = (self.pretrained.n_features_in_, self.pretrained._n_features_out)
        if found != sizes:
            raise ValueError(
                f"pretrained embeds {found[0]} features in {found[1]} dimensions, but X has {n_features} features and "
                f"latent_dim is {self.latent_dim}; they should be the same."
            )
        encoder, decoder = copy.deepcopy(given.encoder), copy.deepcopy(given.decoder)
        if given.prior.n_statistics == 1:
            encoder = LogScaleHead(encoder, self.latent_dim)
        return LatentModel(encoder, decoder, likelihood, self._make_prior())

    def _make_prior(self):
        return Flat(n_statistics=2)

    def _check_enough_rows(self, X):
        check_enough_rows(X, self.n_clusters, name="n_clusters")

    def _describe(self, X):
        self.labels_ = self._map_array(most_probable, X)

    def _check_same_sizes(self, X):
        super()._check_same_sizes(X)
        prior = self.module_.prior
        if prior.means.shape[1] != self.n_clusters or prior.family != COVARIANCES[self.covariance_type]:
            raise ValueError(
                f"The mixture to go on with has {prior.means.shape[1]} clusters and covariances of shape "
                f"{tuple(self.covariances_.shape)}, but n_clusters is {self.n_clusters} and covariance_type "
                f"{self.covariance_type!r}; fit a clone."
            )

    def _has_own_modules(self):
        return self.pretrained is not None or super()._has_own_modules()

    def _epochs(self, n_rows):
        return self._passes(self.max_epochs, n_rows, n_steps=1_600, least=8)

    def _passes(self, given, n_rows, n_steps, least):
        """Resolve "auto": about ``n_steps`` gradient steps, in at least ``least`` epochs."""
        if given != "auto":
            return given
        n_batches = count_batches(n_rows, self.batch_size)
        # Few rows, that are always the same, are soon known by heart.
        most = max(100, math.ceil(300 / n_batches)) if self._sees_views() else 100 if n_rows >= FEW_ROWS else 60
        return max(least, min(math.ceil(n_steps / n_batches), most))

    def _sees_views(self):
        """Whether the networks will see random views of the rows, by the parameters alone."""
        if not isinstance(self.augment, str):
            return self.augment is not None
        likelihood = self.likelihood if self.pretrained is None else self._pretrained_module().likelihood
        likelihood = LIKELIHOODS.get(likelihood) if isinstance(likelihood, str) else likelihood
        return self.image_shape is not None and not Support(*getattr(likelihood, "support", ())).integers

    def _fit_networks(self, model, task):
        """Pretrain, start mixtures, train and prune them, and keep what explains held-out rows better."""
        views = self._view_of(task, **AFFINE_LIMITS)
        if task.going_on:
            check_views(self.consistency_, views)
            net, _ = self._train_jointly(model, task, views, self.consistency_)
            return net
        weights, held_out = self._weights_to_try(views, row_count(task.rows)), None
        if len(weights) > 1:
            task, held_out = split_rows(task)
        net = self._pretrain(model, task)
        self.pretrain_history_ = [] if net is None else history_of(net, 0)
        task = within_memory(task, net, self.batch_size)
        z, tried = start_codes(model, task), {}
        for weight in weights:
            candidate = copy.deepcopy(model)
            candidate.prior = self._start_prior(z, task, weight)
            net, losses = self._train_jointly(candidate, task, views, weight)
            task = within_memory(task, net, self.batch_size)
            score = None if held_out is None else held_out_score(candidate, held_out, task, views, max(weights))
            tried[weight] = Tried(candidate, net, losses, score)
        self.consistency_ = weights[0] if held_out is None else max(weights, key=lambda weight: tried[weight].score)
        best = tried[self.consistency_]
        self.held_out_scores_ = {weight: found.score for weight, found in tried.items() if found.score is not None}
        self.init_losses_ = best.losses
        for name in ("encoder", "decoder", "likelihood", "prior"):
            setattr(model, name, getattr(best.model, name))
        return best.net

    def _weights_to_try(self, views, n_rows):
        """Weights of the agreement of views; held-out rows choose if there are several."""
        if self.consistency == "auto":
            too_few = n_rows < 2 * self.n_clusters  # to hold out any
            return (0.0,) if views is None or too_few else (0.0, CONSISTENCY * self.n_features_in_)
        check_views(self.consistency, views)
        return (float(self.consistency),)

    def _pretrain(self, model, task):
        """Train the networks as an autoencoder, in place; return the net, or None if there is nothing to train."""
        epochs = self._passes(self.pretrain_epochs, row_count(task.rows), n_steps=800, least=4)
        if self.pretrained is not None or epochs == 0:
            return None
        plan = Plan(
            epochs,
            lr=self.pretrain_lr,
            lr_name="pretrain_lr",
            lr_schedule=one_cycle,
            view_of=self._view_of(task),
            see_rows=False,  # the training that follows sees views again
            **self._general_plan() | {"callbacks": ()},
        )
        return task.train(model, plan, self.latent_dim)

    def _start_prior(self, z, task, consistency):
        """Mixtures over codes: many soft ones where views will choose, else one from EM."""
        family = COVARIANCES[self.covariance_type]
        if consistency:
            generator = torch.Generator().manual_seed(task.seed)
            mixtures = soft_mixtures(z, self.n_init, self.n_clusters, family, generator, REG_COVAR, current_group())
        else:
            mixtures = [self._em_mixture(z, task.seed)]
        return GaussianMixturePrior(mixtures, family, sampled=self.responsibilities == "sampled")

    def _em_mixture(self, z, seed):
        device = "cpu" if z.device.type == "mps" else z.device  # which has no float64
        settings = {"covariance_type": self.covariance_type, "n_init": self.n_init, "reg_covar": REG_COVAR}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # it is a start
            gmm = TorchGMM(self.n_clusters, **settings, device=device, random_state=seed).fit(z.cpu().numpy())
        parts = (np.log(gmm.weights_), gmm.means_, gmm.covariances_, gmm.precisions_cholesky_)
        return Mixture(*(torch.as_tensor(part, dtype=z.dtype, device=z.device) for part in parts))

    def _train_jointly(self, model, task, views, consistency):
        """Train networks and mixtures in place; return the net, and the losses at which mixtures were dropped."""
        n_mixtures = len(model.prior.means)
        group = current_group()
        n_steps = task.max_epochs * count_steps(group.all_gather_int(len(task.rows)), self.batch_size)
        stages = [(max(1, round(share * n_steps)), max(1, round(kept * n_mixtures))) for share, kept in PRUNED]
        prune = PruneMixtures(model.prior, stages if n_mixtures > 1 else [], group)
        general, one_pass = self._general_plan(), task.going_on and task.max_epochs == 1  # of a stream of rows
        ours = (prune, ConsistencyDecay(n_steps)) if consistency and not one_pass else (prune,)
        plan = Plan(
            task.max_epochs,
            lr=self.lr,
            lr_schedule=None if one_pass else one_cycle,
            beta=self.beta,
            consistency=consistency,
            view_of=functools.partial(two_views, views) if consistency else views,
            **general | {"callbacks": (*ours, *general["callbacks"])},
        )
        # A generator of its own, so that a result does not depend on what else was tried.
        generator = group.rank_generator(torch.Generator(task.device).manual_seed(task.seed + 1))
        return task.train(model, plan, self.latent_dim, generator=generator), prune.scores_

    def _diagnose(self, q):
        model, mixture, dtype = self.module_, self.module_.prior.mixture, float_dtype(self._fit_dtype)
        resp = model.prior.log_responsibilities(q.mean)[:, 0].exp().cpu().double()
        shares = resp.mean(0)
        self.weights_, self.means_, self.covariances_ = (
            part.cpu().double().numpy().astype(dtype) for part in (mixture.log_weights.exp(), *mixture[1:3])
        )
        self.cluster_centers_ = self.inverse_transform(self.means_)
        self.n_effective_clusters_ = float(torch.special.entr(shares).sum().exp())
        self._confidence = float(resp.max(1).values.mean())
        self.lower_bounds_ = [row["train_log_likelihood"] - row["train_kl"] for row in self.history_]
        self.lower_bound_ = self.lower_bounds_[-1]

    def _warn_if_collapsed(self):
        (counts,) = current_group().all_reduce_sum(
            torch.from_numpy(np.bincount(self.labels_, minlength=self.n_clusters))
        )
        dead = np.flatnonzero(counts < DEAD_SHARE * int(counts.sum()) / self.n_clusters)
        if current_group().rank > 0:
            return
        if self.n_clusters > 1 and self._confidence < min(0.6, 2 / self.n_clusters):
            problem = "Rows belong to all clusters alike: the mean of their largest responsibility is "
            problem += f"{self._confidence:.2g}"
        elif len(dead):
            problem = f"Clusters {dead.tolist()} have almost no rows ({len(dead)} of {self.n_clusters})"
        else:
            return
        warn(
            f"{problem}. Train longer (pretrain_epochs, max_epochs), try another random_state or a larger n_init, or "
            "decrease n_clusters.",
            ConvergenceWarning,
        )


def check_views(consistency, views):
    """Raise if there are no views that could agree."""
    if consistency > 0 and views is None:
        raise ValueError(
            f"consistency={consistency:g} compares views of rows, but there are none; set augment ('affine' for images "
            "with an image_shape, or a callable), or consistency=0."
        )


class Tried(NamedTuple):
    """A model that was trained, and what is known of it."""

    model: LatentModel
    net: NeuralNet
    losses: list
    score: float | None


def split_rows(task):
    """The task without some of its rows, and these, drawn at random."""
    n_held_out = min(MOST_HELD_OUT, max(1, round(HELD_OUT_SHARE * len(task.rows))))
    order = torch.randperm(len(task.rows), generator=torch.Generator().manual_seed(task.seed)).to(task.rows.device)
    return replace(task, rows=select_rows(task.rows, order[n_held_out:])), select_rows(task.rows, order[:n_held_out])


def within_memory(task, net, batch_size):
    """The task, with fewer rows at once if the memory of the device was too small for the batches of a training."""
    is_short = net is not None and net.batch_size < batch_size
    return replace(task, n_together=min(task.n_together, net.batch_size)) if is_short else task


def held_out_score(model, rows, task, views, weight):
    """What the end of the training maximises, of rows that were not trained on: the bound, and agreement of views."""
    generator = torch.Generator(task.device).manual_seed(task.seed)
    means = [[], []]
    with torch.inference_mode():
        for stored in rows.split(task.n_together):
            seen = two_views(views, standardized(model, stored.to(task.device)), generator)
            for which, found in enumerate(means):
                found.append(model.posterior(seen[:, which]).mean)
        group = current_group()
        agreement = model.prior.agreement(*(group.all_gather(torch.cat(found)) for found in means))[0].item()
    bound = mean_elbo(model, rows, task.device, batch_size=task.n_together, group=group)
    return bound + LAST_WEIGHT * weight * agreement


def start_codes(model, task):
    """Give the model codes of unit scale; return those of all rows (n, k)."""
    model.eval()
    with torch.inference_mode():
        parts = [
            model.posterior(standardized(model, rows.to(task.device))) for rows in task.rows.split(task.n_together)
        ]
    mean, log_scale = (torch.cat([getattr(part, name) for part in parts]) for name in ("mean", "log_scale"))
    mean, log_scale = mean.clone(), log_scale.clone()
    return standardize_codes(model, mean, log_scale, current_group())


def two_views(view_of, u, generator):
    """Two views of each row (n, 2, d)."""
    return view_of(u.repeat(2, 1), generator).unflatten(0, (2, len(u))).transpose(0, 1)


def most_probable(model, x):
    """The most probable cluster of rows (n,)."""
    return cluster_probabilities(model, x).argmax(1)


def cluster_probabilities(model, x):
    """Probabilities of the clusters of rows (n, k)."""
    return model.prior.log_responsibilities(model.posterior(model.standardize(x)).mean)[:, 0].exp()
