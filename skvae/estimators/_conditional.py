"""Methods of autoencoders with covariates and size factors."""

from sklearn.utils.validation import check_is_fitted

from ..data.conditions import Given
from ._elbo import ELBOMixin, draw_generator, draw_samples
from ._embedder import SinglePhaseEmbedder, posterior_mean
from ._embedder_training import condition_codec
from ._fit import fit_method


class ConditionalMixin(ELBOMixin, SinglePhaseEmbedder):
    """Autoencoder with a prior, with covariates and size factors beside the features of samples.

    Covariates are given to the decoder alone: the latent code of a sample does not depend on them. Size factors are
    given to both.
    """

    @fit_method
    def fit(self, X, y=None, sample_weight=None, *, X_val=None, covariates=None, size_factors=None):
        """Train the networks on X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data.
        y : Ignored
            Present for API consistency.
        sample_weight : array-like of shape (n_samples,), default=None
            How often each sample is seen in an epoch: whole numbers are repeated samples, others are rounded at random
            to whole numbers that have the same sum. Weights with a mean below one are scaled up first.
        X_val : array-like of shape (n_validation_samples, n_features), default=None
            Samples whose loss is recorded for each epoch, and decides with ``early_stopping=True``. Without them, early
            stopping holds out ``validation_fraction`` of X.
        covariates : array-like or data frame of shape (n_samples,) or (n_samples, n_covariates), default=None
            Variables that the decoder is conditioned on, so that latent codes need not describe them, such as batches.
            Numbers with a decimal point are numbers; everything else, integers too, are levels.
        size_factors : array-like of shape (n_samples,), default=None
            Positive factors by which the counts of samples are multiplied, such as times of observation; samples are
            expected for their mean. ``size_factor="total"`` computes them from the counts.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            If X is not a table of finite numbers (or, in a data frame, of numbers and categories), if it has fewer than
            two samples or ``n_components`` samples, if it is outside the support of the likelihood, if it has another
            image shape, if covariates or size factors are not there for every sample, or if the training diverges.

        Notes
        -----
        A fit that is interrupted, by Ctrl-C or an exception of a callback, leaves the estimator as it was. If it
        continues from the last fit (``warm_start``), it leaves it as it would be after its last whole epoch; but with a
        ``checkpoint`` as it was, because the next fit resumes from the file.
        """
        if covariates is None and size_factors is None and not self._continues_with_conditions():
            return self._fit(X, sample_weight, X_val)
        if X_val is not None:
            raise ValueError(
                "X_val has no covariates or size_factors; leave it out, and early_stopping=True holds out samples."
            )
        if size_factors is not None and self.size_factor is not None:
            raise ValueError(
                f"size_factors are given, and size_factor={self.size_factor!r} computes others; leave one of them out."
            )
        if self.augment is not None:
            raise ValueError("augment changes features alone; leave it out where there are covariates or size_factors.")
        return self._fit(Given(X, covariates, size_factors, sample_weight), sample_weight, X_val)

    def fit_transform(self, X, y=None, **fit_params):
        """Fit to samples, and return their latent codes.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data.
        y : Ignored
            Present for API consistency.
        **fit_params : dict
            Arguments of `fit`.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components)
            Latent codes.
        """
        return self.fit(X, y, **fit_params).transform(X, size_factors=fit_params.get("size_factors"))

    def transform(self, X, size_factors=None):
        """Encode samples as the means of q(z | x); it is deterministic.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.
        size_factors : array-like of shape (n_samples,), default=None
            Those of the samples, if `fit` got some.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components)
            Latent codes.
        """
        samples = self._validate(Given(X, size_factors=size_factors, has_decoder=False), reset=False)
        return self._encode(posterior_mean, samples)  # not of the base class, whose output scikit-learn has wrapped

    def posterior_variance(self, X, size_factors=None):
        """Return the variances of q(z | x).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.
        size_factors : array-like of shape (n_samples,), default=None
            Those of the samples, if `fit` got some.

        Returns
        -------
        variance : ndarray of shape (n_samples, n_components)
            Variances of the latent codes, whose means are ``transform(X)``.
        """
        return super().posterior_variance(Given(X, size_factors=size_factors, has_decoder=False))

    def inverse_transform(self, Z, covariates=None):
        """Decode latent codes into expected data.

        Parameters
        ----------
        Z : array-like of shape (n_samples, n_components)
            Latent codes.
        covariates : scalar, dict, array-like or data frame, default=None
            If `fit` got covariates, a level for all codes (with several covariates, a dict of them), or those of each.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Expected samples, in the units of the training data; a data frame if that was one with categories.
        """
        return self._in_frame(self._decode(Z, covariates))

    def reconstruct(self, X, covariates=None, size_factors=None):
        """Encode samples and decode their latent codes.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.
        covariates : scalar, dict, array-like or data frame, default=None
            If `fit` got covariates, those of the samples; or a level for all of them, at which they are expected then.
        size_factors : array-like of shape (n_samples,), default=None
            Those of the samples, if `fit` got some.

        Returns
        -------
        X_hat : ndarray of shape (n_samples, n_features)
            Expected samples; counts for the mean size factor of the training data. A data frame if the training data
            was one with categories.
        """
        return super().reconstruct(Given(X, covariates, size_factors))

    def interpolate(self, X_from, X_to, n_steps=10, covariates=None):
        """Decode latent codes at equal steps between those of pairs of samples.

        Parameters
        ----------
        X_from, X_to : array-like of shape (n_samples, n_features)
            The two ends.
        n_steps : int, default=10
            Number of samples on each path, the reconstructions of both ends among them.
        covariates : scalar or dict, default=None
            If `fit` got covariates, a level for all paths.

        Returns
        -------
        X : ndarray of shape (n_samples, n_steps, n_features)
            Expected samples. If the training data was a data frame with categories, a frame of ``n_samples * n_steps``
            rows, one path after the other.

        Raises
        ------
        ValueError
            If the numbers of samples differ, or ``n_steps`` is less than two.
        """
        self._refuse_size_factors("interpolate", "decode codes of transform, inverse_transform(Z)")
        return self._interpolate(X_from, X_to, n_steps, covariates)

    def sample(self, n_samples=1, random_state=None, covariates=None):
        """Draw samples: latent codes from the prior, then data from the likelihood.

        Samples have the noise of the likelihood: those of a Bernoulli are 0 or 1. For expected values, such as grey
        values, decode latent codes of your own with `inverse_transform`.

        Parameters
        ----------
        n_samples : int, default=1
            Number of samples.
        random_state : int, RandomState instance or None, default=None
            Seeds the draw; None uses the estimator's own ``random_state``.
        covariates : scalar, dict, array-like or data frame, default=None
            If `fit` got covariates, a level for all samples (with several covariates, a dict of them), or those of
            each.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Samples, in the units and the dtype of the training data; counts for the mean size factor of it.
        """
        generator = draw_generator(self, n_samples, random_state)
        columns = self._encode_covariates(covariates, n_samples)
        return draw_samples(self, lambda model, noise: model.prior.sample(noise), n_samples, generator, columns)

    def score_samples(self, X, covariates=None, size_factors=None):
        """Compute the evidence lower bound (ELBO) on the log-likelihood of each sample.

        The expectation over latent codes is taken at fixed quasi-random points, the same for every sample, so that the
        result is deterministic and does not depend on the other samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.
        covariates : scalar, dict, array-like or data frame, default=None
            Those of the samples, if `fit` got some.
        size_factors : array-like of shape (n_samples,), default=None
            The same.

        Returns
        -------
        elbo : ndarray of shape (n_samples,)
            In nats, in the units of the data (the Jacobian of the internal standardization is included), given
            covariates and size factors. For the Bernoulli likelihood on values between 0 and 1, its log-likelihood is
            minus the cross-entropy.

        Raises
        ------
        ValueError
            If X has values that the likelihood cannot produce.
        """
        return super().score_samples(X if isinstance(X, Given) else Given(X, covariates, size_factors))

    def score(self, X, y=None, sample_weight=None, covariates=None, size_factors=None):
        """Mean of `score_samples` over the samples; higher is better.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.
        y : Ignored
            Present for API consistency.
        sample_weight : array-like of shape (n_samples,), default=None
            Nonnegative weights of the samples; an integer weight is as many equal samples, and a weight of zero none.
        covariates : scalar, dict, array-like or data frame, default=None
            Those of the samples, if `fit` got some.
        size_factors : array-like of shape (n_samples,), default=None
            The same.

        Returns
        -------
        score : float
            In nats per sample.

        Raises
        ------
        ValueError
            If the weights are not finite, negative, all zero, or not one for each sample.
        """
        return super().score(Given(X, covariates, size_factors), y, sample_weight)

    def log_likelihood(self, X, n_importance_samples=100, random_state=None, covariates=None, size_factors=None):
        """Compute the importance-weighted bound on the log-likelihood of each sample (Burda et al. 2016, equation 8).

        It lies between the ELBO and the log-likelihood, and is closer to the latter with more importance samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data.
        n_importance_samples : int, default=100
            Latent codes drawn for each sample.
        random_state : int, RandomState instance or None, default=None
            Seeds the draws, which are the same for every sample; None uses the estimator's own ``random_state``.
        covariates : scalar, dict, array-like or data frame, default=None
            Those of the samples, if `fit` got some.
        size_factors : array-like of shape (n_samples,), default=None
            The same.

        Returns
        -------
        log_likelihood : ndarray of shape (n_samples,)
            In nats, in the units of the data, given covariates and size factors. Higher is better.

        References
        ----------
        Y. Burda, R. Grosse and R. Salakhutdinov, Importance weighted autoencoders, 2016.
        """
        return super().log_likelihood(Given(X, covariates, size_factors), n_importance_samples, random_state)

    def impute(self, X, n_importance_samples=100, covariates=None):
        """Fill in missing values (NaN) by their conditional means.

        The mean of p(x | z) is averaged over latent codes of a sample, with importance weights by the observed values
        (Mattei and Frellsen 2019, equation 13). Codes are at quasi-random points: the result is deterministic.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Data, with values missing as in the training data.
        n_importance_samples : int, default=100
            Latent codes for each sample.
        covariates : scalar, dict, array-like or data frame, default=None
            Those of the samples, if `fit` got some.

        Returns
        -------
        X_filled : ndarray of shape (n_samples, n_features)
            The samples; observed values are unchanged. Of a data frame, one with the same index and dtypes.

        Raises
        ------
        ValueError
            If values are missing, but none were in the training data.

        References
        ----------
        P.-A. Mattei and J. Frellsen, MIWAE: deep generative modelling and imputation of incomplete data sets, 2019.
        """
        self._refuse_size_factors("impute", "nothing can be missing where the model was fitted with them")
        return super().impute(Given(X, covariates), n_importance_samples)

    def _shifts_dispersions(self):
        return self.dispersion == "covariates"

    def _refuse_size_factors(self, method, advice):
        codec = condition_codec(self)
        if codec is not None and codec.n_sizes:
            raise ValueError(f"{method} takes no size_factors, with which the model was fitted; {advice}.")

    def _continues_with_conditions(self):
        """Return whether a fit would continue from networks that had covariates or size factors."""
        return self.warm_start and hasattr(self, "module_") and hasattr(self, "_conditions")

    def _example_conditions(self):
        """Return arguments for one sample, by the names of methods that need some."""
        codec = condition_codec(self)
        example = {each.name: each.center if each.levels is None else each.levels[0] for each in codec.covariates}
        covariates = {"covariates": example} if example else {}
        sizes = {"size_factors": [1.0]} if codec.n_sizes else {}
        return {"transform": sizes, "score_samples": covariates | sizes, "sample": covariates}

    @property
    def covariate_levels_(self):
        """Levels of the covariates that `fit` got, by name, and None for those that are numbers."""
        check_is_fitted(self)
        covariates = [] if condition_codec(self) is None else condition_codec(self).covariates
        return {each.name: None if each.levels is None else list(each.levels) for each in covariates}
