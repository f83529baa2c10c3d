"""The latent variable model: networks, a likelihood and a prior."""

from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .covariances import LOG_2PI
from .priors import Posterior

LOG_SCALE_BOUND = 10.0


class ELBO(NamedTuple):
    """Terms of the evidence lower bound (ELBO) of each sample in nats: log_likelihood - kl."""

    log_likelihood: Tensor  # (n,)
    kl_parts: Tensor  # (n, m): one for each latent dimension where the prior has independent ones
    agreement: Tensor | None = None  # (h,), not in the ELBO: mutual information of clusters between augmented views

    @property
    def kl(self):
        """Divergence of the posterior from the prior (n,)."""
        return self.kl_parts.sum(-1)

    @property
    def value(self):
        """The ELBO (n,)."""
        return self.log_likelihood - self.kl


class CovariateInputs(nn.Module):
    """Inputs of a decoder for covariates: one-hot codes of levels, and numbers as they are.

    Parameters
    ----------
    n_features : int
        Columns of a row before those of the covariates.
    n_levels : list of int
        Number of levels of each covariate, which are coded 0, 1, ...; zero for a number.
    n_dispersions : int, default=0
        Number of features whose dispersions depend on the covariates.
    """

    def __init__(self, n_features, n_levels, n_dispersions=0):
        super().__init__()
        self.n_features, self.n_levels, self.n_dispersions = n_features, list(n_levels), n_dispersions
        if n_dispersions:
            self.dispersion = nn.Parameter(torch.zeros(self.n_outputs, n_dispersions))

    @property
    def n_outputs(self):
        """Number of inputs of the decoder."""
        return sum(max(1, n) for n in self.n_levels)

    def forward(self, columns):
        """Return the inputs (n, n_outputs) of columns of covariates (n, number of covariates)."""
        if columns is None or columns.shape[-1] != len(self.n_levels):
            raise ValueError(f"The decoder needs {len(self.n_levels)} covariates; give those of each sample.")
        parts = zip(self.n_levels, columns.split(1, -1), strict=True)
        return torch.cat([self._codes(column, n) if n else column for n, column in parts], -1)

    @staticmethod
    def _codes(column, n_levels):
        return (column == torch.arange(n_levels, device=column.device)).to(column.dtype)


class LatentModel(nn.Module):
    """Latent variable model p(x | decoder(z)) p(z) with q(z | x) from the encoder (Kingma and Welling 2014).

    The autoencoder, the variational autoencoder and VaDE are this model with different priors. Its inputs are
    standardized samples ``u = likelihood.standardize(x)``.

    With covariates c, the likelihood is p(x | decoder(z, c)): codes need not describe covariates (Sohn et al. 2015,
    with an encoder of x alone). Rows are samples followed by the columns of the covariates then; what needs
    no covariates takes samples alone, too.

    Parameters
    ----------
    encoder, decoder : Module
    likelihood : Likelihood
    prior : Prior
    covariates : CovariateInputs, optional

    References
    ----------
    K. Sohn, H. Lee and X. Yan, Learning structured output representation using deep conditional generative models,
    2015.
    """

    def __init__(self, encoder, decoder, likelihood, prior, covariates=None):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood
        self.prior = prior
        self.covariates = covariates
        self.autocast = None  # lower precision of the networks during training

    def __setstate__(self, state):
        super().__setstate__(state)
        if not hasattr(self, "covariates"):  # a pickle of version 0.1.0
            self.covariates = None

    @property
    def dtype(self):
        """Dtype of the networks."""
        parameters = chain(self.encoder.parameters(), self.decoder.parameters())
        return next((parameter.dtype for parameter in parameters), torch.float32)

    def standardize(self, x):
        """Return samples in the units of the model and the dtype of the networks; covariates stay as they are."""
        u = self.likelihood.standardize(self.features(x))
        u = u if self.covariates is None else torch.cat([u, x[..., u.shape[-1] :].to(u)], -1)
        return u.to(self.dtype)

    def features(self, u):
        """Return rows without covariates."""
        return u if self.covariates is None else u[..., : self.covariates.n_features]

    def encoder_inputs(self, u):
        """Return the inputs of the encoder."""
        return self.likelihood.inputs(self.features(u))

    def covariates_of(self, u):
        """Return the columns of the covariates of rows, None if there are none."""
        return None if self.covariates is None else u[..., self.covariates.n_features :]

    def decoder_inputs(self, z, columns):
        """Return the inputs of the decoder: codes z, followed by those for columns of covariates."""
        return z if self.covariates is None else torch.cat([z, self.covariates(columns).to(z)], -1)

    def params(self, z, columns=None):
        """Return the parameters of the likelihood at codes z, with columns of covariates if there are any.

        They are the outputs of the decoder, and then what covariates add to the logs of dispersions.
        """
        inputs = self.decoder_inputs(z, columns)
        outputs = self._run(self.decoder, inputs)
        if self.covariates is None or not self.covariates.n_dispersions:
            return outputs
        return torch.cat([outputs, inputs[..., z.shape[-1] :] @ self.covariates.dispersion.to(outputs)], -1)

    def n_inputs(self, n_features, n_components):
        """Return the numbers of inputs of the encoder and of the decoder."""
        n_covariates = 0 if self.covariates is None else self.covariates.n_outputs
        return self.likelihood.n_inputs(n_features), n_components + n_covariates

    def posterior(self, u):
        """Return q(z | x) of each sample."""
        mean, *raw = self._run(self.encoder, self.encoder_inputs(u)).chunk(self.prior.n_statistics, dim=-1)
        if not raw:
            return Posterior(mean, torch.full_like(mean, -torch.inf))
        # Bounded smoothly: a sample far from the training data cannot overflow exp, and gradients do not vanish.
        return Posterior(mean, LOG_SCALE_BOUND * (raw[0] / LOG_SCALE_BOUND).tanh())

    def elbo(self, u, q, noise):
        """Return the ELBO at latent codes drawn with this noise, (n, k) or (n, m, k) for the mean over m draws."""
        if noise.ndim == 2:
            z = self.prior.draw(q, noise)
            return ELBO(self._log_prob(u, z), self.prior.kl_parts(q, z))
        parts = [self.elbo(u, q, noise[:, draw])[:2] for draw in range(noise.shape[1])]
        return ELBO(*(torch.stack(terms).mean(0) for terms in zip(*parts, strict=True)))

    def forward(self, u, noise, view=None):
        """Return the ELBO of each sample, from standard normal noise (n, k) or (n, m, k).

        The input of the encoder is ``view`` instead of the samples, if it is not None: an augmented or corrupted view.
        Of two views (n, 2, d), the first is decoded, and the prior returns their mutual information.
        """
        if view is None or view.ndim == 2:
            return self.elbo(u, self.posterior(u if view is None else view), noise)
        q = self.posterior(view.transpose(0, 1).flatten(0, 1))
        (mean, other), log_scale = q.mean.chunk(2), q.log_scale[: len(u)]
        return self.elbo(u, Posterior(mean, log_scale), noise)._replace(agreement=self.prior.agreement(mean, other))

    def log_weights(self, u, q, noise):
        """Return log p(x, z) / q(z | x) at latent codes drawn with this noise (n, k); the mean of the ratio is p(x)."""
        z = self.prior.draw(q, noise)
        log_q = -0.5 * (noise.square() + LOG_2PI).sum(-1) - q.log_scale.sum(-1)
        return self._log_prob(u, z) + self.prior.log_prob(z) - log_q

    def decode(self, z, columns=None):
        """Return expected samples in the units of the data: of codes z, and columns of covariates if there are any."""
        return self.likelihood.mean(self.params(z, columns))

    def _log_prob(self, u, z):
        """Return log p(x | z) of each row."""
        return self.likelihood.log_prob(self.features(u), self.params(z, self.covariates_of(u)))

    def _run(self, network, x):
        if self.autocast is None:
            return network(x)
        with torch.autocast(x.device.type, dtype=self.autocast):
            return network(x).to(x.dtype)
