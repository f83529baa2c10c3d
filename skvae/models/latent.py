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


class LatentModel(nn.Module):
    """Latent variable model p(x | decoder(z)) p(z) with q(z | x) from the encoder (Kingma and Welling 2014).

    The autoencoder, the variational autoencoder and VaDE are this model with different priors. Its inputs are
    standardized samples ``u = likelihood.standardize(x)``.

    Parameters
    ----------
    encoder, decoder : Module
    likelihood : Likelihood
    prior : Prior
    """

    def __init__(self, encoder, decoder, likelihood, prior):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood
        self.prior = prior
        self.autocast = None  # lower precision of the networks during training

    @property
    def dtype(self):
        """Dtype of the networks."""
        parameters = chain(self.encoder.parameters(), self.decoder.parameters())
        return next((parameter.dtype for parameter in parameters), torch.float32)

    def standardize(self, x):
        """Return samples in the units of the model and the dtype of the networks."""
        return self.likelihood.standardize(x).to(self.dtype)

    def posterior(self, u):
        """Return q(z | x) of each sample."""
        mean, *raw = self._run(self.encoder, self.likelihood.inputs(u)).chunk(self.prior.n_statistics, dim=-1)
        if not raw:
            return Posterior(mean, torch.full_like(mean, -torch.inf))
        # Bounded smoothly: a sample far from the training data cannot overflow exp, and gradients do not vanish.
        return Posterior(mean, LOG_SCALE_BOUND * (raw[0] / LOG_SCALE_BOUND).tanh())

    def elbo(self, u, q, noise):
        """Return the ELBO at latent codes drawn with this noise, (n, k) or (n, m, k) for the mean over m draws."""
        if noise.ndim == 2:
            z = self.prior.draw(q, noise)
            return ELBO(self.likelihood.log_prob(u, self._run(self.decoder, z)), self.prior.kl_parts(q, z))
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
        return self.likelihood.log_prob(u, self.decoder(z)) + self.prior.log_prob(z) - log_q

    def decode(self, z):
        """Return expected samples in the units of the data."""
        return self.likelihood.mean(self.decoder(z))

    def _run(self, network, x):
        if self.autocast is None:
            return network(x)
        with torch.autocast(x.device.type, dtype=self.autocast):
            return network(x).to(x.dtype)
