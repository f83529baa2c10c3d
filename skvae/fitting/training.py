"""Gradient training of modules through skorch: the objective, the batches and the callbacks."""

import math

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback
from torch import nn
from torch.utils.data import TensorDataset
from tqdm import tqdm


class NegativeELBO(nn.Module):
    """The loss: mean over rows of ``beta * kl - log_likelihood``, in nats.

    With ``beta = 1`` it is minus the evidence lower bound; other values are the beta-VAE of Higgins et al. 2017.
    """

    def __init__(self, beta=1.0):
        super().__init__()
        self.beta = beta

    def forward(self, elbo, target):
        """Loss of a batch; the rows are already inside the ELBO, so the target is not used."""
        return (self.beta * elbo.kl - elbo.log_likelihood).mean()


class RowBatches:
    """Shuffled batches of rows and the noise for their codes, sliced from one tensor on its device.

    The rows are dealt to batches of nearly equal size, so that none is dropped and none has a single row (which
    batch normalisation could not use).
    """

    def __init__(self, dataset, batch_size, noise_size, generator):
        (self.rows,) = dataset.tensors
        self.n_batches = count_batches(len(self.rows), batch_size)
        self.noise_size = noise_size
        self.generator = generator

    def __len__(self):
        return self.n_batches

    def __iter__(self):
        order = torch.randperm(len(self.rows), generator=self.generator, device=self.generator.device)
        for indices in order.tensor_split(self.n_batches):
            noise = torch.randn(len(indices), self.noise_size, generator=self.generator, device=self.generator.device)
            yield {"u": self.rows[indices], "noise": noise}, self.rows[:0]


def count_batches(n_rows, batch_size):
    """Number of batches of about this size, none of them with a single row unless there is only one."""
    return max(1, min(math.ceil(n_rows / batch_size), n_rows // 2))


class ELBOTerms(Callback):
    """Record the mean log-likelihood and KL of each epoch, without waiting for the device at each batch."""

    def on_epoch_begin(self, net, **kwargs):
        """Forget the last epoch."""
        self.sums_, self.n_rows_ = 0.0, 0

    def on_batch_end(self, net, training, y_pred, **kwargs):
        """Add the terms of a batch."""
        if training:
            self.sums_ = self.sums_ + torch.stack([term.detach().sum() for term in y_pred])
            self.n_rows_ += len(y_pred.kl)

    def on_epoch_end(self, net, **kwargs):
        """Put the means into the history."""
        log_likelihood, kl = (self.sums_ / self.n_rows_).tolist()
        net.history.record("train_log_likelihood", log_likelihood)
        net.history.record("train_kl", kl)


class FiniteLoss(Callback):
    """Stop with an error as soon as an epoch's loss is not finite."""

    def on_epoch_end(self, net, **kwargs):
        """Look at the loss of the epoch."""
        last = net.history[-1]
        if not math.isfinite(last["train_loss"]):
            raise ValueError(
                f"The training loss became {last['train_loss']} in epoch {last['epoch']} (log-likelihood "
                f"{last['train_log_likelihood']}, KL {last['train_kl']}). Decrease lr, or scale the input data."
            )


class EpochProgress(Callback):
    """One progress bar over the epochs, with the loss beside it."""

    def __init__(self, description):
        self.description = description

    def on_train_begin(self, net, **kwargs):
        """Open the bar."""
        self.bar_ = tqdm(total=net.max_epochs, desc=self.description, unit="epoch")

    def on_epoch_end(self, net, **kwargs):
        """Advance the bar."""
        self.bar_.set_postfix(loss=f"{net.history[-1]['train_loss']:.4g}", refresh=False)
        self.bar_.update()

    def on_train_end(self, net, **kwargs):
        """Close the bar."""
        self.bar_.close()


def fit_module(model, rows, *, noise_size, generator, beta, max_epochs, batch_size, lr, device, progress=None):
    """Train a latent model in place with Adam.

    Parameters
    ----------
    model : LatentModel
    rows : Tensor of shape (n, d)
        Standardised rows, on the device.
    noise_size : int
        Size of a code.
    generator : torch.Generator
        Source of the shuffles and of the codes, on the device.
    progress : str, optional
        Show a progress bar with this description.

    Returns
    -------
    net : skorch.NeuralNet
        The trained net, with its history.
    """
    net = NeuralNet(
        model,
        criterion=NegativeELBO,
        criterion__beta=beta,
        optimizer=torch.optim.Adam,
        optimizer__lr=lr,
        # One kernel for all parameters: the largest single saving in an epoch.
        optimizer__fused=True,
        max_epochs=max_epochs,
        batch_size=batch_size,
        iterator_train=RowBatches,
        iterator_train__noise_size=noise_size,
        iterator_train__generator=generator,
        train_split=None,  # skorch would hold out a fifth of the rows
        callbacks=[ELBOTerms, FiniteLoss, *([] if progress is None else [EpochProgress(progress)])],
        device=device,
        verbose=0,
    )
    net.initialize()
    dataset = TensorDataset(rows)
    net.notify("on_train_begin", X=dataset, y=None)
    try:
        net.fit_loop(dataset)  # unlike fit, it lets Ctrl-C through
    finally:
        net.notify("on_train_end", X=dataset, y=None)
    model.eval()
    check_result(model, rows[:batch_size], noise_size)
    return net


def check_result(model, rows, noise_size):
    """Raise if the trained model is broken: the loss of an epoch is known only before its last step."""
    with torch.inference_mode():
        elbo = model(rows, rows.new_zeros(len(rows), noise_size))
    if not all(torch.isfinite(term).all() for term in elbo):
        raise ValueError("The trained networks give results that are not finite. Decrease lr, or scale the input data.")
