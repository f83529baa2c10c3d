"""The first epochs of a variational autoencoder, in which batch normalization keeps all latent dimensions in use."""

from skorch.callbacks import Callback
from torch import nn

from ..models.networks import LatentNorm


class FreezeLatentNorm(Callback):
    """Freeze a `LatentNorm` after the first epochs, also where a training resumes from a checkpoint.

    Parameters
    ----------
    norm : LatentNorm
    n_epochs : int
        Epochs of normalization.
    """

    def __init__(self, norm, n_epochs):
        self.norm, self.n_epochs = norm, n_epochs

    def on_epoch_begin(self, net, **kwargs):
        """Freeze the map if the epochs of normalization are over."""
        if len(net.history) > self.n_epochs:  # the history has a record of the new epoch
            self.norm.freeze()


def begin_latent_norm(model, n_components, n_epochs):
    """Normalize the posterior means of a model for its first epochs; return the callback that ends it.

    Parameters
    ----------
    model : LatentModel
        Changed in place.
    n_components, n_epochs : int
    """
    device = next(model.encoder.parameters()).device
    norm = LatentNorm(n_components).to(device)
    model.encoder = nn.Sequential(model.encoder, norm)
    return FreezeLatentNorm(norm, n_epochs)


def end_latent_norm(model):
    """Replace the `LatentNorm` of a trained model, in place, by the affine map that it has become."""
    model.encoder[-1] = model.encoder[-1].to_affine()
