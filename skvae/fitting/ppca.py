"""Probabilistic principal component analysis in closed form, from one pass over row chunks."""

import math

import torch

from ..models.ppca import PPCA, evidence_of_dimension
from .rows import row_chunks


def principal_axes(x, weight, chunk_size=None):
    """Principal axes and the sums of squares along them, in decreasing order.

    Parameters
    ----------
    x : Tensor of shape (n, d)
        Centred rows.
    weight : Tensor of shape (n,)

    Returns
    -------
    squares : Tensor of shape (min(n, d),)
        Weighted sums of squares, float64.
    axes : Tensor of shape (min(n, d), d)
        Orthonormal, float64; the entry of largest size in each is positive.
    """
    n_samples, n_features = x.shape
    wide = n_features > n_samples
    rows = x * weight.sqrt()[:, None] if wide else x
    if wide:  # the products of rows are fewer than those of features
        gram = (rows @ rows.mT).to(torch.float64)
    else:
        chunks = row_chunks(n_samples, n_features, chunk_size)
        gram = sum(((x[part] * weight[part, None]).mT @ x[part]).to(torch.float64) for part in chunks)
    squares, vectors = torch.linalg.eigh(gram)
    squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1).mT
    if wide:
        vectors = torch.linalg.qr((vectors @ rows.to(torch.float64)).mT).Q.mT
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return squares, vectors * largest.sign()


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


def fit_ppca(x, n_components, weight, chunk_size=None):
    """Maximum likelihood PPCA of centred rows (Tipping and Bishop 1999, equations 7 and 8).

    Variances are sums of squares over the total weight less one, as scikit-learn counts them.

    Returns
    -------
    model : PPCA
        In float64, with mean zero.
    variances : Tensor of shape (m,)
        Variances along all principal axes that the rows determine.
    total_variance : Tensor of shape ()
    """
    n_samples, n_features = float(weight.sum(dtype=torch.float64)), x.shape[1]
    squares, axes = principal_axes(x, weight, chunk_size)
    variances = squares / max(n_samples - 1, 1)
    q = choose_components(n_components, variances, n_samples, x.dtype)
    # Never zero: a flat direction has the width of rounding.
    floor = torch.finfo(x.dtype).eps * variances[0] + torch.finfo(torch.float64).tiny
    rest = variances[q:].sum() / (n_features - q) if q < n_features else variances.new_zeros(())
    noise = torch.maximum(rest, floor) if q < n_features else rest
    model = PPCA(variances.new_zeros(n_features), axes[:q], torch.maximum(variances[:q], floor), noise)
    return model, variances, variances.sum()
