"""The latent variable model: networks, a likelihood and a prior."""

from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .covariances import LOG_2PI
from .priors import Posterior

LOG_SCALE_BOUND = 10.0


class ELBO(NamedTuple):
    """The terms of the evidence lower bound of each row, in nats: it is log_likelihood - kl."""

    log_likelihood: Tensor  # (n,)
    kl_parts: Tensor  # (n, m): one for each latent dimension where the prior has independent ones
    agreement: Tensor | None = None  # (h,), beside the bound: of two views of the rows about their clusters

    @property
    def kl(self):
        """Divergence of the posterior from the prior (n,)."""
        return self.kl_parts.sum(-1)

    @property
    def value(self):
        """The bound (n,)."""
        return self.log_likelihood - self.kl


class LatentModel(nn.Module):
    """p(x, z) = p(x | decoder(z)) p(z) with q(z | x) from the encoder (Kingma and Welling 2014).

    The autoencoder, the variational autoencoder and VaDE are this model with different priors. It works on
    standardised rows ``u = likelihood.standardize(x)``.
    """

    def __init__(self, encoder, decoder, likelihood, prior):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood
        self.prior = prior
        self.autocast = None  # a lower precision in which the networks, and they alone, compute while training

    @property
    def dtype(self):
        """The precision of the networks."""
        parameters = chain(self.encoder.parameters(), self.decoder.parameters())
        return next((parameter.dtype for parameter in parameters), torch.float32)

    def standardize(self, x):
        """What the model stores of rows, in the precision of the networks."""
        return self.likelihood.standardize(x).to(self.dtype)

    def posterior(self, u):
        """q(z | x) of each row."""
        mean, *raw = self._run(self.encoder, self.likelihood.inputs(u)).chunk(self.prior.n_statistics, dim=-1)
        if not raw:
            return Posterior(mean, torch.full_like(mean, -torch.inf))
        # Bounded smoothly: a row far from the training data cannot overflow exp, and gradients do not vanish.
        return Posterior(mean, LOG_SCALE_BOUND * (raw[0] / LOG_SCALE_BOUND).tanh())

    def elbo(self, u, q, noise):
        """ELBO of each row at the codes drawn with this noise, (n, k) or (n, m, k) for the mean over m codes."""
        if noise.ndim == 2:
            z = self.prior.draw(q, noise)
            return ELBO(self.likelihood.log_prob(u, self._run(self.decoder, z)), self.prior.kl_parts(q, z))
        parts = [self.elbo(u, q, noise[:, draw])[:2] for draw in range(noise.shape[1])]
        return ELBO(*(torch.stack(terms).mean(0) for terms in zip(*parts, strict=True)))

    def forward(self, u, noise, view=None):
        """ELBO of each row, from standard normal noise (n, k) or (n, m, k).

        The encoder sees ``view`` instead of the rows if it is given: an augmented or corrupted form of them. Of two
        views (n, 2, d) the first is reconstructed from, and the prior says how far they agree.
        """
        if view is None or view.ndim == 2:
            return self.elbo(u, self.posterior(u if view is None else view), noise)
        q = self.posterior(view.transpose(0, 1).flatten(0, 1))
        (mean, other), log_scale = q.mean.chunk(2), q.log_scale[: len(u)]
        return self.elbo(u, Posterior(mean, log_scale), noise)._replace(agreement=self.prior.agreement(mean, other))

    def log_weights(self, u, q, noise):
        """Log of p(x, z) / q(z | x) of each row, at the code drawn with this noise (n, k): its mean is p(x)."""
        z = self.prior.draw(q, noise)
        log_q = -0.5 * (noise.square() + LOG_2PI).sum(-1) - q.log_scale.sum(-1)
        return self.likelihood.log_prob(u, self.decoder(z)) + self.prior.log_prob(z) - log_q

    def decode(self, z):
        """Expected rows in the data's units."""
        return self.likelihood.mean(self.decoder(z))

    def _run(self, network, x):
        if self.autocast is None:
            return network(x)
        with torch.autocast(x.device.type, dtype=self.autocast):
            return network(x).to(x.dtype)
