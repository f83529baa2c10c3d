"""Deep clustering: an embedding and a Gaussian mixture over it, trained jointly."""

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import chain
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from sklearn.base import ClusterMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from skorch import NeuralNet

from ..data.arrays import float_dtype
from ..fitting.batches import count_batches, count_steps
from ..fitting.distributed import current_group
from ..fitting.training import fit_module
from ..fitting.vade import (
    ConsistencyDecay,
    HeldOut,
    Proposals,
    PruneMixtures,
    held_out_objective,
    held_out_terms,
    limit_inference_batches,
    neighbor_views,
    one_cycle,
    scale_codes,
    two_views,
)
from ..fitting.warnings import warn
from ..models import COVARIANCES, LIKELIHOODS, Flat, GaussianMixturePrior, LatentModel, Support
from ._elbo import ELBOMixin, draw_generator, draw_samples
from ._embedder import NOT_NEGATIVE, POSITIVE_INT, BaseEmbedder
from ._embedder_training import augmentation, history_of, prepare_samples, train, training_plan, user_callbacks
from ._fit import check_index, fit_method, row_count
from ._networks import pretrained_model
from ._split_merge import N_PRESENT, SplitMerge
from ._vade_init import INITS, Initialization, Neighborhood, neighborhood
from .export import EncoderWithClusters

AFFINE_LIMITS = {"rotation": 15.0, "shift": 0.09, "log_scale": 0.15, "shear": 0.3}  # of views in joint training
CONSISTENCY = 0.4  # weight of the consistency of pairs for each feature, in nats
PRUNED = ((1 / 6, 0.3), (5 / 12, 0.0))  # share of the iterations, share of random mixtures that stay (at least one)
PRUNED_INITS = ((1 / 6, 0.5), (1 / 3, 0.0))  # the same of other initializations
PROPOSED = (1 / 12, 1 / 8)  # share of the iterations until the best proposal stays, and then until one mixture does
N_ROUNDS = 2  # of proposals
SELECTION_SHARE = 0.25  # of the weight of consistency, where held-out samples choose among mixtures of one training
AUTO_INITS = ("gmm", "kmeans", "neighbor_kmeans", "neighbor_gmm")  # that are tried where there are neighbours
SMALL_DATASET = 1_000  # samples: below, there are fewer epochs
MIN_CLUSTER_SHARE = 0.1  # of the mean size of clusters, below which one counts as empty


@dataclass(eq=False, repr=False, kw_only=True)
class VaDEClusterer(ELBOMixin, ClusterMixin, BaseEmbedder):
    """Variational deep embedding: a variational autoencoder whose prior is a Gaussian mixture.

    The networks and the mixture maximize one evidence lower bound (Jiang et al. 2017). An autoencoder is trained first,
    and mixtures are initialized on its latent codes. With ``consistency``, a sample and one of its nearest neighbours
    should also fall into the same cluster, after augmentation if there is one; held-out samples choose among the
    initializations, and among clusters that are split and merged, without labels.

    Parameters
    ----------
    n_clusters : int, default=10
        Number of clusters.

    latent_dim : int, default=10
        Size of the latent space.

    covariance_type : {"full", "diag"}, default="full"
        Covariances of the mixture; "diag" is the published model.

    responsibilities : {"exact", "sampled"}, default="exact"
        Responsibilities in the ELBO: those that maximize it, or, as in the paper, the probabilities of the components
        at the drawn latent code.

    architecture : {"auto", "mlp", "conv", "hybrid"}, default="auto"
        Multi-layer perceptrons, convolutions, or convolutions in the encoder and perceptrons in the decoder. "auto" is
        "hybrid" if there is an ``image_shape``, else "mlp".

    hidden_layer_sizes : int, tuple of int or "auto", default="auto"
        Widths of the encoder's hidden layers; the decoder has them in reverse. "auto" is (256, 256) for "mlp",
        none for "conv" and, in the decoder alone, (512, 256) for "hybrid".

    head_layer_sizes : int or tuple of int, default=()
        Widths of further layers, separate for the means and the log-scales of latent codes.

    activation : str, default="relu"
        Activation of the hidden layers, as for `VAEEmbedder`.

    batch_norm : bool, default=True
        Whether hidden layers are followed by batch normalization.

    layer_norm : bool, default=False
        Whether hidden layers are followed by layer normalization.

    dropout : float, default=0.0
        Probability of dropping a hidden unit in an iteration.

    image_shape : tuple of int, default=None
        (height, width) or (channels, height, width) of the images in the rows of X; (height, width, channels)
        is an error.

    channels : tuple of int or "auto", default="auto"
        Channels of the encoder's convolutions; "auto" is (16, 32, 64) for "hybrid", (32, 64) for "conv".

    encoder, decoder : Module, class or callable, default=None
        Your own networks, as for `VAEEmbedder`.

    likelihood : str, object or list, default="auto"
        Observation model, as for `VAEEmbedder`.

    size_factor : {"total"}, default=None
        Size factors of counts, as for `VAEEmbedder`.

    beta : float, default=1.0
        Weight of the divergence from the prior.

    augment : {"auto", "affine"}, callable or None, default="auto"
        Augmentation of the encoder's input in training, as for `VAEEmbedder`. "auto" is "affine" if there is an
        ``image_shape``.

    consistency : float or "auto", default="auto"
        Weight of the mutual information between the clusters of the two samples of a pair, in nats: of a sample and one
        of its nearest neighbours, of two augmented views of a sample, or, with both, of augmented views of a sample and
        of itself or a neighbour. It assumes that clusters are regions of close samples, invariant to the augmentation,
        and of similar size. 0 is plain VaDE. "auto" is 0.4 for each feature, or 0 without pairs.

    n_neighbors : int, default=15
        Number of nearest neighbours, by Euclidean distance between the inputs of the encoder, or between their first 50
        principal components if there are more features. They are searched among all samples, or among 10,000 at random
        if there are more. 0 makes pairs of augmented views alone, as for samples that are read from files.

    init : {"auto", "gmm", "kmeans", "neighbor_kmeans", "neighbor_gmm", "random"}, default="auto"
        Initial mixture: of latent codes, by EM ("gmm"), or with the means and covariances of a partition, that of the
        samples by k-means ("kmeans"), or that of an embedding of their neighbours, as UMAP makes it, by k-means
        or by a Gaussian mixture ("neighbor_kmeans", "neighbor_gmm"); "random" are ``n_init`` mixtures of wide
        components at random codes, the worst of which are dropped. "auto" trains the first four together and drops the
        worst by scores of held-out samples; then mixtures in which a cluster is split and two others are merged compete
        with the one that stayed, as with no other ``init``. With augmentation it does the same with "random", in a
        second training, and held-out samples choose between both. It is "gmm" with ``consistency=0``, and "random"
        without neighbours.

    n_init : int, default=20
        Number of initializations of EM for "gmm", or of mixtures for "random".

    pretrained : AutoencoderEmbedder or VAEEmbedder, default=None
        A fitted embedder whose networks and likelihood are copied, instead of pretraining. Clones are not fitted: in a
        search, wrap it in
        `sklearn.frozen.FrozenEstimator`.

    pretrain_epochs : int or "auto", default="auto"
        Epochs of pretraining the autoencoder. "auto" makes about 800 iterations, but at least 4 epochs, and at most
        100; capped at 60 epochs below 1,000 samples without augmentation, to avoid overfitting, and with augmentation
        at most 300 iterations, if these are more epochs.

    max_epochs : int or "auto", default="auto"
        Epochs of training networks and mixture jointly. "auto" makes about 1,600 iterations, but at least 8 epochs,
        with the same upper limits.

    batch_size : int, default=256
        Samples in an iteration.

    pretrain_lr : float, default=2e-3
        Largest learning rate of the autoencoder.

    lr : float, default=1e-3
        Largest learning rate of networks and mixture.

    optimizer : {"adam", "adamw", "sgd"} or torch optimizer class, default="adam"
        Optimizer.

    weight_decay : float, default=0.0
        Weight decay, as the optimizer defines it.

    max_grad_norm : float, default=None
        Maximum norm of the gradient; larger ones are clipped.

    callbacks : list of skorch callbacks, default=None
        Instances, classes, or pairs of a name and one of these. Copies of them are notified of every epoch and batch of
        each training of networks and mixture. ``callbacks__<name>__<parameter>`` are parameters of the estimator.

    warm_start : bool, default=False
        Whether `fit` continues from the networks and the mixture of the last fit.

    checkpoint : str or path-like, default=None
        File to which the state of the training is written after every epoch. If a fit was interrupted, the same fit
        resumes from the file, with the same result; the file is removed at the end.

    precision : {"float32", "bf16"}, default="float32"
        Floating-point precision of the networks during training.

    compile : bool or {"reduce-overhead", "max-autotune"}, default=False
        Whether to compile the networks for training by `torch.compile`, as for `VAEEmbedder`.

    device : str or torch.device, default="auto"
        Where to compute: "auto" is the first available of cuda, mps and cpu. Where mps lacks what the training
        needs, "auto" trains on the cpu and emits a RuntimeWarning.

    random_state : int, RandomState instance or None, default=None
        Seeds the networks, the mixtures, the batches and the noise.

    verbose : int, default=0
        Whether to show progress bars of pretraining and of joint training, and to print the initialization that was
        chosen.

    Attributes
    ----------
    labels_ : ndarray of shape (n_samples,)
        Cluster of each training sample, equal to ``predict(X)``.

    cluster_centers_ : ndarray of shape (n_clusters, n_features)
        Decoded means of the clusters.

    weights_ : ndarray of shape (n_clusters,)
        Weights of the mixture.

    means_ : ndarray of shape (n_clusters, latent_dim)
        Means of the mixture.

    covariances_ : ndarray of shape (n_clusters, latent_dim, latent_dim) or (n_clusters, latent_dim)
        Covariances of the mixture; variances for "diag".

    n_effective_clusters_ : float
        Exponential of the entropy of the mean responsibilities of training samples: an effective number of clusters.

    consistency_ : float
        The weight that was used.

    init_ : str
        The initialization that was used, or chosen.

    held_out_scores_ : dict of str to float
        If initializations were compared, their scores on held-out samples, in nats, when the first were dropped: a
        quarter of ``consistency_`` times the mutual information of the clusters of samples and of their neighbours,
        both augmented if training is, less the divergence from the prior. That of "random" is the best of its mixtures.

    init_losses_ : list of list of float
        Losses of the mixtures, without the reconstruction that they share, each time that some were dropped; if
        initializations were compared, these are negative scores of held-out samples.

    lower_bound_ : float
        Mean evidence lower bound (ELBO) of the training samples at the last epoch, during training.

    lower_bounds_ : list of float
        The same of each epoch of joint training.

    history_ : list of dict
        Records of each epoch of joint training.

    pretrain_history_ : list of dict
        The same of the autoencoder.

    loss_curve_ : list of float
        Training loss of each epoch of joint training.

    n_iter_ : int
        Epochs of joint training.

    likelihood_ : str
        Name of the likelihood; "mixed" if columns have different ones.

    column_likelihoods_ : dict
        Names of the likelihoods, by the name or index of the feature.

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
    image classification and segmentation, ICCV 2019 (equation 3, the mutual information). L. McInnes, J. Healy and J.
    Melville, UMAP: uniform manifold approximation and projection for dimension reduction, 2018 (section 3, the graph of
    neighbours and its embedding). L. Yang, N.-M. Cheung, J. Li and J. Fang, Deep clustering by Gaussian mixture
    variational autoencoders with graph embedding, ICCV 2019. N. Ueda, R. Nakano, Z. Ghahramani and G. E. Hinton, SMEM
    algorithm for mixture models, Neural Computation 12(9), 2000 (splits and merges).

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

    _latent_dim_parameter = "latent_dim"
    _min_samples = "n_clusters"
    _image_architecture = "hybrid"
    _auto_sizes: ClassVar[dict] = {"mlp": (256, 256), "conv": (), "hybrid": (512, 256)}

    _parameter_constraints: ClassVar[dict] = {
        **BaseEmbedder._parameter_constraints,
        "n_clusters": [POSITIVE_INT],
        "latent_dim": [POSITIVE_INT],
        "covariance_type": [StrOptions({"full", "diag"})],
        "responsibilities": [StrOptions({"exact", "sampled"})],
        "channels": ["array-like", StrOptions({"auto"})],
        "beta": [NOT_NEGATIVE],
        "augment": [*BaseEmbedder._parameter_constraints["augment"], StrOptions({"auto"})],
        "consistency": [NOT_NEGATIVE, StrOptions({"auto"})],
        "n_neighbors": [Interval(Integral, 0, None, closed="left")],
        "init": [StrOptions({"auto", *INITS})],
        "n_init": [POSITIVE_INT],
        "pretrained": [HasMethods(["transform", "inverse_transform"]), None],
        "pretrain_epochs": [Interval(Integral, 0, None, closed="left"), StrOptions({"auto"})],
        "pretrain_lr": [Interval(Real, 0.0, None, closed="neither")],
    }
    _fitted_schema: ClassVar[dict] = {
        **{"weights_": "k", "means_": "km", "covariances_": "...", "cluster_centers_": "kd", "labels_": ("n", "iu")},
        **{"lower_bound_": float, "lower_bounds_": list, "n_effective_clusters_": float, "_confidence": float},
        **{
            "pretrain_history_": list,
            "init_losses_": list,
            "held_out_scores_": dict,
            "consistency_": float,
            "init_": str,
        },
    }

    def _export_module(self, dtype):
        self._check_exportable()
        return EncoderWithClusters(self.module_, dtype)

    n_clusters: int = field(default=10, kw_only=False)
    latent_dim: int = 10
    covariance_type: str = "full"
    responsibilities: str = "exact"
    batch_norm: bool = True
    channels: tuple | str = "auto"
    beta: float = 1.0
    augment: str | Callable | None = "auto"
    consistency: float | str = "auto"
    n_neighbors: int = 15
    init: str = "auto"
    n_init: int = 20
    pretrained: Any = None
    pretrain_epochs: int | str = "auto"
    batch_size: int = 256
    pretrain_lr: float = 2e-3

    @fit_method
    def fit(self, X, y=None, sample_weight=None):
        """Train an autoencoder, initialize mixtures on its latent codes, and train both jointly.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data.
        y : Ignored
            Present for API consistency.
        sample_weight : array-like of shape (n_samples,), default=None
            How often each sample is seen in an epoch: whole numbers are repeated samples, others are rounded at random
            to whole numbers that have the same sum. Weights with a mean below one are scaled up first.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            If X is not a finite numeric table of at least ``n_clusters`` samples, if it is outside the support of the
            likelihood, if it has another image shape, or if the training diverges.

        Notes
        -----
        A fit that is interrupted, by Ctrl-C or an exception of a callback, leaves the estimator as it was. If it
        continues from the last fit (``warm_start``), it leaves it as it would be after its last whole epoch; but with a
        ``checkpoint`` as it was, because the next fit resumes from the file.
        """
        X = self._validate(X, reset=True, min_samples=2)
        samples = prepare_samples(self, X, sample_weight)
        max_epochs = self._choose_epochs(self.max_epochs, row_count(samples.X), n_iterations=1_600, min_epochs=8)
        problem = train(self, samples, max_epochs)
        if problem:
            warn(problem, ConvergenceWarning)
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
        """Predict the most probable cluster of each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            Clusters.
        """
        return self._encode(most_probable_cluster, self._validate(X, reset=False))

    def predict_proba(self, X):
        """Predict the probabilities of the clusters: those of the mixture at the latent codes of `transform`.

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
        """Draw samples: a cluster, a latent code from its component, then data from the likelihood.

        Parameters
        ----------
        n_samples : int, default=1
            Number of samples.
        cluster : int, default=None
            The cluster of all samples; None draws clusters by their weights.
        random_state : int, RandomState instance or None, default=None
            Seeds the draw; None uses the estimator's own ``random_state``.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Samples, in the units and the dtype of the training data.
        y : ndarray of shape (n_samples,)
            Their clusters.

        Raises
        ------
        ValueError
            If there is no such cluster.
        """
        generator = draw_generator(self, n_samples, random_state)
        if cluster is None:
            weights = torch.from_numpy(self.weights_.astype(np.float64))
            labels = torch.multinomial(weights, n_samples, replacement=True, generator=generator)
        else:
            labels = torch.full((n_samples,), check_index("cluster", cluster, len(self.weights_)))
        X = draw_samples(self, lambda model, noise: model.prior.sample(noise, labels), n_samples, generator)
        return X, labels.numpy()

    @property
    def _pretrained(self):
        return self.pretrained

    def _make_prior(self):
        return Flat(n_statistics=2)

    def _fit_networks(self, model, data, max_epochs):
        """Pretrain, initialize mixtures, and train them together until held-out samples have chosen one."""
        view_of = augmentation(self, model.likelihood, **AFFINE_LIMITS)
        relation = self._choose_relation(view_of, data)
        if data.resume:
            check_same_mixture(self)
            data, relation = self._search_neighbors(model, data, relation, holds_out=False)
            return self._train_jointly(model, data, max_epochs, relation)[0]
        trainings, self.consistency_ = self._choose_inits(relation), relation.weight
        holds_out = len(list(chain(*trainings))) > 1
        data, relation = self._search_neighbors(model, data, relation, holds_out)
        data = self._pretrain(model, data)
        settings = {"n_clusters": self.n_clusters, "covariance_type": self.covariance_type, "n_init": self.n_init}
        z = scale_codes(model, data)
        init = Initialization(**settings, z=z, seed=data.seed, group=data.group, neighborhood=relation.neighborhood)
        trained = []
        for names in trainings:
            copied = copy.deepcopy(model) if len(trainings) > 1 else model
            trained.append(self._train_inits(copied, data, max_epochs, relation, init, names))
            data = limit_inference_batches(data, trained[-1].net, self.batch_size)
        best = self._choose_trained(trained, relation, data)
        self.init_, self.init_losses_, self.held_out_scores_ = best.init, best.losses, best.scores
        if self.verbose and relation.held_out is not None and data.group.rank == 0:
            print(f"VaDEClusterer: held-out samples chose init={best.init!r}")
        for name in ("encoder", "decoder", "likelihood", "prior"):
            setattr(model, name, getattr(best.model, name))
        return best.net

    def _train_inits(self, model, data, max_epochs, relation, init, names):
        """Train networks with the mixtures of some initializations, of which one stays."""
        mixtures = {name: init.make(name) for name in names}
        is_sampled, family = self.responsibilities == "sampled", COVARIANCES[self.covariance_type]
        model.prior = GaussianMixturePrior(list(chain(*mixtures.values())), family, sampled=is_sampled)
        references = init.references if relation.held_out is not None else None
        net, prune = self._train_jointly(model, data, max_epochs, relation, references, names)
        names = list(chain(*([name] * len(mixtures[name]) for name in names)))
        scores = {} if references is None else best_scores(names, prune.scores_[0])
        return Trained(model, net, names[prune.survivor_], prune.scores_, scores)

    def _choose_trained(self, trained, relation, data):
        """Return the training with the best objective of held-out samples, if there are several."""
        if len(trained) == 1:
            return trained[0]

        def objective(each):
            return held_out_objective(each.model, relation.held_out.rows, data, relation.weight, relation.view_of)

        scores = dict(chain(*(each.scores.items() for each in trained)))
        return max(trained, key=objective)._replace(scores=scores)

    def _pretrain(self, model, data):
        """Train the networks as an autoencoder, in place; return the data, in smaller batches if memory was short."""
        n_samples, self.pretrain_history_ = row_count(data.rows), []
        epochs = self._choose_epochs(self.pretrain_epochs, n_samples, n_iterations=800, min_epochs=4)
        if self.pretrained is not None or epochs == 0:
            return data
        plan = training_plan(
            self,
            epochs,
            phase="pretraining",
            lr=self.pretrain_lr,
            lr_name="pretrain_lr",
            lr_schedule=one_cycle,
            view_of=augmentation(self, model.likelihood),
            recompute_batch_norm=False,  # the joint training sees views again
        )
        net = fit_module(model, plan, data)
        self.pretrain_history_ = history_of(net, 0)
        return limit_inference_batches(data, net, self.batch_size)

    def _choose_relation(self, view_of, data):
        """Return the pairs whose clusters should agree, and the weight of this; without neighbours yet."""
        n_samples = sum(data.group.all_gather_int(len(data.rows)))
        is_enough = data.resume or n_samples >= 2 * self.n_clusters  # to hold out some
        has_neighbors = is_enough and self.n_neighbors > 0 and getattr(data.rows, "run_length", 1) == 1
        weight = self.consistency_ if data.resume else self.consistency
        if weight == "auto":
            can_pair = is_enough and (has_neighbors or view_of is not None)
            weight = CONSISTENCY * self.n_features_in_ if can_pair else 0.0
        elif weight > 0 and not has_neighbors and view_of is None:
            raise ValueError(
                f"consistency={weight:g} compares pairs of samples, but there are none: neighbours are not searched in "
                "files, with n_neighbors=0, or among fewer than two samples for each cluster, and there are no "
                "augmented views; set augment ('affine' for images with an image_shape, or a callable), or "
                "consistency=0."
            )
        if self.init not in ("auto", "gmm", "random") and not has_neighbors:
            raise ValueError(
                f"init={self.init!r} needs the neighbours of samples, which are not searched in files, with "
                "n_neighbors=0, or among fewer than two samples for each cluster; set n_neighbors, or init='gmm'."
            )
        return Relation(float(weight), view_of, has_neighbors)

    def _choose_inits(self, relation):
        """Return the names of the initializations to try, those that share networks in a tuple."""
        if self.init != "auto":
            return ((self.init,),)
        if relation.weight == 0:
            return (("gmm",),)
        if not relation.has_neighbors:
            return (("random",),)
        return (AUTO_INITS,) if relation.view_of is None else (AUTO_INITS, ("random",))

    def _search_neighbors(self, model, data, relation, holds_out):
        """Return the data without samples held out, and the relation with the neighbours of the others."""
        names = () if data.resume else chain(*self._choose_inits(relation))
        if not relation.has_neighbors or (relation.weight == 0 and set(names) <= {"gmm", "random"}):
            return data, relation._replace(has_neighbors=False)
        data, neighbors, held_out = neighborhood(model, data, self.n_neighbors, holds_out)
        return data, relation._replace(neighborhood=neighbors, held_out=held_out)

    def _train_jointly(self, model, data, max_epochs, relation, references=None, names=()):
        """Train networks and mixtures in place, and drop all mixtures but one; return the net and what dropped them."""
        weight, view_of, group = relation.weight, relation.view_of, data.group
        n_steps = max_epochs * count_steps(group.all_gather_int(len(data.rows)), self.batch_size)
        prune = self._make_pruning(model, data, n_steps, relation, references)
        is_one_epoch = data.resume and max_epochs == 1  # of a stream of batches
        ours = (prune, ConsistencyDecay(n_steps)) if weight and not is_one_epoch else (prune,)
        if weight:
            view_of = functools.partial(neighbor_views if relation.has_neighbors else two_views, view_of)
        plan = training_plan(
            self,
            max_epochs,
            phase=f"from {', '.join(names)}" if names else "",
            lr=self.lr,
            lr_schedule=None if is_one_epoch else one_cycle,
            beta=self.beta,
            consistency=weight,
            view_of=view_of,
            callbacks=(*ours, *user_callbacks(self)),
        )
        pairs = relation.neighborhood.pairs.to(data.device) if weight and relation.has_neighbors else None
        generator = group.rank_generator(torch.Generator(data.device).manual_seed(data.seed + 1))
        net = fit_module(model, plan, replace(data, generator=generator, neighbors=pairs))
        return net, prune

    def _make_pruning(self, model, data, n_steps, relation, references):
        """Return the callback that drops mixtures: by held-out samples and with proposals, if there are references."""
        n_mixtures, score, proposals = len(model.prior.means), None, None
        if references is not None:

            def score():
                kl, agreement = held_out_terms(model, relation.held_out, data, relation.view_of)
                return SELECTION_SHARE * relation.weight * agreement - self.beta * kl

            steps = tuple(max(1, round(share * n_steps)) for share in PROPOSED)
            proposals = Proposals(SplitMerge(model, data, references), N_PRESENT, steps, N_ROUNDS)
        pruned = PRUNED if references is None else PRUNED_INITS
        stages = [(max(1, round(share * n_steps)), max(1, round(part * n_mixtures))) for share, part in pruned]
        return PruneMixtures(model.prior, stages if n_mixtures > 1 else [], data.group, score, proposals)

    def _choose_epochs(self, epochs, n_samples, n_iterations, min_epochs):
        """Resolve "auto": about ``n_iterations``, in at least ``min_epochs``."""
        if epochs != "auto":
            return epochs
        n_batches = count_batches(n_samples, self.batch_size)
        if uses_views(self):
            max_epochs = max(100, math.ceil(300 / n_batches))
        else:
            max_epochs = 100 if n_samples >= SMALL_DATASET else 60  # to avoid overfitting
        return max(min_epochs, min(math.ceil(n_iterations / n_batches), max_epochs))

    def _set_latent_statistics(self, q, X):
        model, mixture, dtype = self.module_, self.module_.prior.mixture, float_dtype(self._fit_dtype)
        resp = model.prior.log_responsibilities(q.mean)[:, 0].exp().cpu().double()
        parts = mixture.log_weights.exp(), mixture.means, mixture.covariances
        self.weights_, self.means_, self.covariances_ = (part.cpu().double().numpy().astype(dtype) for part in parts)
        self.cluster_centers_ = self._decode(self.means_)
        self.n_effective_clusters_ = float(torch.special.entr(resp.mean(0)).sum().exp())
        self._confidence = float(resp.max(1).values.mean())
        self.lower_bounds_ = [record["train_log_likelihood"] - record["train_kl"] for record in self.history_]
        self.lower_bound_ = self.lower_bounds_[-1]
        self.labels_ = self._map_model(most_probable_cluster, X)
        sizes = torch.from_numpy(np.bincount(self.labels_, minlength=self.n_clusters))
        (sizes,) = current_group().all_reduce_sum(sizes)
        empty = (sizes < MIN_CLUSTER_SHARE * int(sizes.sum()) / self.n_clusters).nonzero().flatten().tolist()
        if current_group().rank > 0:
            return None
        if self.n_clusters > 1 and self._confidence < min(0.6, 2 / self.n_clusters):
            problem = f"Clusters overlap: the mean of the largest responsibilities is {self._confidence:.2g}"
        elif empty:
            problem = f"Clusters {empty} have almost no samples ({len(empty)} of {self.n_clusters})"
        else:
            return None
        return (
            f"{problem}. Train longer (pretrain_epochs, max_epochs), try another random_state or a larger n_init, or "
            "decrease n_clusters."
        )


class Relation(NamedTuple):
    """Pairs of samples that should fall into the same cluster."""

    weight: float  # of the mutual information of the clusters of pairs
    view_of: Callable | None  # augmented views
    has_neighbors: bool  # whether pairs are neighbours
    neighborhood: Neighborhood | None = None
    held_out: HeldOut | None = None


class Trained(NamedTuple):
    """A trained model, and how its mixture was chosen."""

    model: LatentModel
    net: NeuralNet
    init: str
    losses: list  # of the mixtures, each time that some were dropped
    scores: dict  # of the initializations, on held-out samples, when the first mixtures were dropped


def best_scores(names, losses):
    """Return the best score of each initialization, from its name and its loss for each mixture."""
    return {
        name: -min(loss for each, loss in zip(names, losses, strict=True) if each == name)
        for name in dict.fromkeys(names)
    }


def check_same_mixture(estimator):
    """Raise if the fitted mixture does not have the clusters and the covariances that the parameters describe."""
    prior = estimator.module_.prior
    n_clusters, family = prior.means.shape[1], COVARIANCES[estimator.covariance_type]
    if n_clusters != estimator.n_clusters or prior.family != family:
        raise ValueError(
            f"The mixture to continue from has {n_clusters} clusters and covariances of shape "
            f"{tuple(estimator.covariances_.shape)}, but n_clusters is {estimator.n_clusters} and covariance_type "
            f"{estimator.covariance_type!r}; fit a clone."
        )


def uses_views(estimator):
    """Return whether the networks will see augmented views, by the parameters alone."""
    if not isinstance(estimator.augment, str):
        return estimator.augment is not None
    likelihood = estimator.likelihood if estimator.pretrained is None else pretrained_model(estimator).likelihood
    likelihood = LIKELIHOODS.get(likelihood) if isinstance(likelihood, str) else likelihood
    return estimator.image_shape is not None and not np.any(Support(*getattr(likelihood, "support", ())).integers)


def most_probable_cluster(model, x):
    """Return the most probable cluster of rows (n,)."""
    return cluster_probabilities(model, x).argmax(1)


def cluster_probabilities(model, x):
    """Return the probabilities of the clusters of rows (n, k)."""
    return model.prior.log_responsibilities(model.posterior(model.standardize(x)).mean)[:, 0].exp()
