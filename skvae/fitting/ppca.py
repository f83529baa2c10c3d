"""Probabilistic principal component analysis in closed form, from one pass over row chunks."""

import math

import torch

from ..models.ppca import PPCA, evidence_of_dimension


def axes_of_scatter(scatter):
    """Principal axes (d, d) and the sums of squares along them (d,), in decreasing order, float64.

    Parameters
    ----------
    scatter : Tensor of shape (d, d)
        Weighted sum of outer products of centred rows, float64.
    """
    squares, vectors = torch.linalg.eigh(scatter)
    return squares.flip(0).clamp(min=0), _with_signs(vectors.flip(1).mT)


def axes_of_rows(x):
    """As `axes_of_scatter`, but for fewer rows than features: axes (n, d) and sums of squares (n,).

    Parameters
    ----------
    x : Tensor of shape (n, d)
        Centred rows, times the roots of their weights.
    """
    squares, vectors = axes_of_scatter((x @ x.mT).to(torch.float64))
    return squares, _with_signs(torch.linalg.qr((vectors @ x.to(torch.float64)).mT).Q.mT)


def _with_signs(axes):
    """Axes with the entry of largest size of each positive."""
    return axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()


def choose_components(n_components, variances, n_samples, dtype):
    """The number of components for an int, a share of the variance, or "mle".

    Parameters
    ----------
    n_components : int, float, "mle" or None
        A float in (0, 1) is the share of the variance to reach; "mle" is Minka's choice; None are all that the data
        determine, up to the rounding of their dtype.
    variances : Tensor of shape (m,)
        Variances along all principal axes, in decreasing order.
    n_samples : float
        Number of rows.
    dtype : torch.dtype
        That of the data.
    """
    if n_components == "mle":
        spectrum = variances[variances > torch.finfo(variances.dtype).eps * variances[0]]
        scores = [evidence_of_dimension(spectrum, k, n_samples) for k in range(1, len(spectrum))]
        return 1 + int(torch.stack(scores).nan_to_num(nan=-math.inf).argmax()) if scores else 1
    if isinstance(n_components, float):
        shares = variances.cumsum(0) / variances.sum()
        return min(int(torch.searchsorted(shares, n_components, right=True)) + 1, len(variances))
    if n_components is None:
        rounding = len(variances) * torch.finfo(dtype).eps * variances[0]
        return max(1, int((variances > rounding).sum()))
    return n_components


def fit_ppca(squares, axes, n_samples, n_components, dtype):
    """Maximum likelihood PPCA of centred rows (Tipping and Bishop 1999, equations 7 and 8).

    Variances are sums of squares over the total weight less one, as scikit-learn counts them.

    Parameters
    ----------
    squares : Tensor of shape (m,)
        Weighted sums of squares along the principal axes, in decreasing order.
    axes : Tensor of shape (m, d)
    n_samples : float
        Total weight of the rows.
    n_components : int, float, "mle" or None
        See `choose_components`.
    dtype : torch.dtype
        That of the data.

    Returns
    -------
    model : PPCA
        In float64, with mean zero.
    total_variance : Tensor of shape ()
    """
    n_features = axes.shape[1]
    variances = squares / max(n_samples - 1, 1)
    q = choose_components(n_components, variances, n_samples, dtype)
    # Never zero: a flat direction has the width of rounding.
    floor = torch.finfo(dtype).eps * variances[0] + torch.finfo(torch.float64).tiny
    rest = variances[q:].sum() / (n_features - q) if q < n_features else variances.new_zeros(())
    noise = torch.maximum(rest, floor) if q < n_features else rest
    model = PPCA(variances.new_zeros(n_features), axes[:q], torch.maximum(variances[:q], floor), noise)
    return model, variances.sum()
