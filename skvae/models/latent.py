"""The latent variable model: networks, a likelihood and a prior."""

from typing import NamedTuple

from torch import Tensor, nn

from .priors import Posterior

LOG_SCALE_BOUND = 10.0


class ELBO(NamedTuple):
    """The two terms of the evidence lower bound of each row, in nats: it is log_likelihood - kl."""

    log_likelihood: Tensor  # (n,)
    kl: Tensor  # (n,)


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

    def standardize(self, x):
        """What the networks see of rows, in their precision."""
        return self.likelihood.standardize(x).to(next(self.encoder.parameters()).dtype)

    def posterior(self, u):
        """q(z | x) of each row."""
        mean, raw = self.encoder(u).chunk(2, dim=-1)
        # Bounded smoothly: a row far from the training data cannot overflow exp, and gradients do not vanish.
        return Posterior(mean, LOG_SCALE_BOUND * (raw / LOG_SCALE_BOUND).tanh())

    def elbo(self, u, q, noise):
        """ELBO of each row at the code drawn with this noise."""
        z = self.prior.draw(q, noise)
        return ELBO(self.likelihood.log_prob(u, self.decoder(z)), self.prior.kl(q, z))

    def forward(self, u, noise):
        """ELBO of each row (n, d) with one draw of its code, from standard normal noise (n, k)."""
        return self.elbo(u, self.posterior(u), noise)

    def decode(self, z):
        """Expected rows in the data's units."""
        return self.likelihood.mean(self.decoder(z))
