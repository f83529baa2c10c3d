"""Covariances with correlations."""

from functools import lru_cache
from typing import NamedTuple

import torch

from .gaussians import LOG_2PI, MAX_BATCHED, Conditional, Covariance, Mixture, Moments, bounded, finite, inverse_scales


class MatrixCovariance(Covariance):
    """Covariances with correlations: "full" and "tied"."""

    requirement = "symmetric and positive definite"

    def log_prob(self, x, means, factor):
        """Return the log-density of each row under each component (n, k), in nats, from whitened residuals."""
        if len(x) * means.numel() <= MAX_BATCHED:
            squares = (factor.mT @ (x.mT - means[:, :, None])).square_().sum(1)
        else:
            squares = self._squared_distances(x, means, factor)
        log_det = factor.diagonal(dim1=1, dim2=2).log().sum(1)
        return torch.sub(log_det, finite(squares).mT + x.shape[1] * LOG_2PI, alpha=0.5)

    def _squared_distances(self, x, means, factor):
        """Return squared lengths of whitened residuals (k, n), one component after the other in the same memory."""
        xt, squares, blocks = x.mT.contiguous(), x.new_empty(len(means), len(x)), _blocks(x.shape[1])
        residual, whitened = torch.empty_like(xt), torch.empty_like(xt)  # as columns, the products are faster
        for mean, matrix, out in zip(means[:, :, None], factor.expand(len(means), -1, -1), squares, strict=True):
            torch.sub(xt, mean, out=residual)
            for block in blocks:  # the factor is zero below its diagonal
                torch.mm(matrix[: block.stop, block].mT, residual[: block.stop], out=whitened[block])
            torch.sum(whitened.square_(), 0, out=out)
        return squares

    def expected_log_prob(self, x, variance, means, factor):
        """Return the expectation of `log_prob` (n, k) over rows with independent normal noise of variance (n, d).

        All components are one matrix product, which is fast for few features.
        """
        k, d = means.shape
        columns = factor.transpose(0, 1).reshape(d, k * d)
        offsets = (means[:, None] @ factor)[:, 0]  # (k, d)
        squares = ((x @ columns).unflatten(1, (k, d)) - offsets).square().sum(-1) + variance @ factor.square().sum(2).T
        return factor.diagonal(dim1=1, dim2=2).log().sum(1) - 0.5 * (bounded(squares) + d * LOG_2PI)

    def condition_number(self, mixture):
        """Return the largest second moment of a component over its smallest variance ().

        Products of features lose as many digits as this number has.

        Products of correlated features are as accurate as the largest of them, and a direction in which a component is
        narrow has only what is left.
        """
        precisions = self._precision_diagonals(mixture.factor)
        moments = self.variances(mixture.covariances).amax(1) + mixture.means.square().sum(1)
        return (precisions.amax(1) * moments).amax()

    def min_samples(self, n_features):
        """Return the number of samples that a covariance needs to be invertible."""
        return n_features + 1

    def is_symmetric(self, matrices):
        """Return whether all matrices are symmetric."""
        return torch.allclose(matrices, matrices.mT)

    def tolerance(self, covariances, factor):
        """Return the smallest share of a feature's variance that the features before it leave unexplained (k or 1,)."""
        return (factor.diagonal(dim1=1, dim2=2).square() * self.variances(covariances)).amax(1).reciprocal()

    def empty_moments(self, means):
        """Return moments of no rows in float64, for `accumulate`."""
        k, d = means.shape
        zeros = means.new_zeros(k, d, dtype=torch.float64)
        return Moments(zeros.sum(1), zeros, zeros.new_zeros(self._n_free(k), d, d))

    def frame(self, mixture):
        """Return the factors: products of residuals whitened by them keep more digits."""
        return mixture.factor

    def in_frame(self, value, frame):
        """Return a regularization in a frame."""
        return value if frame is None else frame.mT @ value @ frame

    def out_of_frame(self, residual, frame):
        """Return residuals (k, d) in the coordinates of the rows."""
        if frame is None:
            return residual
        return torch.linalg.solve_triangular(frame, residual[:, None], upper=True, left=False)[:, 0]

    def framed_covariances(self, mixture, frame):
        """Return the covariances of a mixture in a frame."""
        if frame is None:
            return mixture.covariances
        root = torch.linalg.solve_triangular(mixture.factor, frame, upper=True)
        return root.mT @ root

    def factor_of(self, covariances, frame):
        """Return covariances in the coordinates of the rows, their factors, and whether each is positive definite."""
        factor, positive = self.factor(covariances)
        if frame is None:
            return covariances, factor, positive
        factor = torch.where(positive[:, None, None], frame @ factor, frame)
        return self.covariances(factor), factor, positive

    def accumulate(self, moments, x, resp, means, frame=None):
        """Add rows to moments about the means, in place, on and above the diagonal only (see `complete`)."""
        moments.weight.add_(resp.sum(0))
        for c, mean in enumerate(means):
            rows, weight = _rows_that_count(x, resp[:, c])
            residual = rows - mean
            if frame is not None:
                residual = residual @ frame[0 if self.tied else c]
            moments.first[c] += weight @ residual
            _add_gram(moments.second[0 if self.tied else c], residual, weight)

    def complete(self, moments):
        """Mirror the second moments, which `accumulate` fills on and above the diagonal."""
        for second in moments.second:
            second += second.triu(1).mT
        return moments

    # Missing values.

    def condition(self, x, observed, missing, means, factor, failures=None):
        """Return the marginal density of the observed values and moments of the missing ones given them.

        With the factor F of a covariance, the expected missing residuals are the r_m that make the length of
        ``F_o' r_o + F_m' r_m`` least. The square of that length is in the exponent of the marginal density, and the
        inverse of ``F_m F_m'`` is the conditional covariance. Only matrices as large as what is missing are decomposed.

        Parameters
        ----------
        x : Tensor of shape (p, b, d)
            Blocks of b rows that lack the same values; any finite number stands for them.
        observed : Tensor of shape (p, d), bool
        missing : Tensor of shape (p, m)
            Indices of the other features, in increasing order.
        means : Tensor of shape (k, d)
        factor : Tensor
        failures : list, optional
            See `gram_root`.

        Returns
        -------
        conditional : Conditional
        """
        residual = (x - means[:, None, None]) * observed[:, None]  # (k, p, b, d)
        whitened = (residual.flatten(1, 2) @ factor).view_as(residual)
        columns = factor[:, missing]  # F_m (k, p, m, d)
        root = gram_root(columns, failures)
        for _ in range(2):  # the second time takes back the rounding of the first
            step = torch.cholesky_solve(columns @ whitened.mT, root)  # (k, p, m, b)
            whitened = whitened - step.mT @ columns
            residual.scatter_add_(3, missing[:, None].expand(*residual.shape[:3], -1), -step.mT)
        log_det = factor.diagonal(dim1=1, dim2=2).log().sum(1)[:, None]
        log_det = log_det - root.diagonal(dim1=2, dim2=3).abs().log().sum(2)
        log_prob = self._observed_log_prob(log_det, whitened.square().sum(-1), observed)
        # `cholesky_inverse` raises where there is no root, and waits for the device to know.
        covariance = torch.cholesky_inverse(root) if failures is None else _inverse_of_root(root)
        return Conditional(log_prob, residual, covariance)

    def accumulate_conditional(self, moments, conditional, missing, resp):
        """Add expected moments of rows about the means to moments, in place, as `accumulate` does.

        Parameters
        ----------
        moments : Moments
        conditional : Conditional
        missing : Tensor of shape (p, m)
        resp : Tensor of shape (k, p, b)
        """
        n_features, pooled = conditional.residual.shape[-1], self.tied
        residual = conditional.residual.flatten(1, 2)
        weighted = residual * resp.flatten(1)[:, :, None]
        moments.weight.add_(resp.sum((1, 2)))
        moments.first.add_(weighted.sum(1))
        one, two = (part.flatten(0, 1)[None] if pooled else part for part in (weighted, residual))
        moments.second.add_((one.mT @ two).triu_())

        share = resp.sum(2)[:, :, None, None]  # (k, p, 1, 1)
        covariance = ((share.sum(0, keepdim=True) if pooled else share) * conditional.covariance).triu_()
        indices = missing[:, :, None] * n_features + missing[:, None, :]  # (p, m, m), into flattened matrices
        indices = indices + n_features**2 * torch.arange(len(covariance), device=indices.device)[:, None, None, None]
        moments.second.view(-1).index_add_(0, indices.flatten(), covariance.flatten())

    def variances(self, covariances):
        """Return the variances of the features (k or 1, d)."""
        return covariances.diagonal(dim1=1, dim2=2)

    def axis_whitener(self, variances):
        """Return the whitener that scales features of these variances (d,) to unit variance, correlated as before."""
        return inverse_scales(variances).diag()

    def factor(self, covariances):
        """Return the precision Cholesky factor of each covariance, and whether each is positive definite."""
        lower, info = torch.linalg.cholesky_ex(covariances)
        return torch.linalg.solve_triangular(lower, _identity_like(lower), upper=False).mT, info == 0

    def factor_from_precisions(self, precisions):
        """Return the factor of precisions, and whether each is positive definite."""
        # Reversed in both axes, the lower Cholesky factor of a matrix is the upper one that is wanted.
        lower, info = torch.linalg.cholesky_ex(precisions.flip(-1, -2))
        return lower.flip(-1, -2), info == 0

    def log_factor(self, factor):
        """Return the factor with the logarithm of its diagonal: an unconstrained upper triangle."""
        return factor.triu(1) + factor.diagonal(dim1=-2, dim2=-1).log().diag_embed()

    def exp_factor(self, log_factor):
        """Return the factor from its logarithm (see `log_factor`)."""
        return log_factor.triu(1) + log_factor.diagonal(dim1=-2, dim2=-1).exp().diag_embed()

    def precisions(self, factor):
        """Return the precisions of a factor."""
        return factor @ factor.mT

    def covariances(self, factor):
        """Return the covariances of a factor."""
        root = torch.linalg.solve_triangular(factor, _identity_like(factor), upper=True)
        return root.mT @ root

    def color(self, noise, factor):
        """Transform standard normal rows to the covariance of one component."""
        return torch.linalg.solve_triangular(factor, noise, upper=True, left=False)

    def n_parameters(self, n_components, n_features):
        """Return the number of free parameters."""
        return self._n_free(n_components) * n_features * (n_features + 1) // 2

    # The linear form.

    def scatter(self, x, weight=None):
        """Return the weighted sum of outer products of rows (1, d, d)."""
        out = x.new_zeros(x.shape[1], x.shape[1])
        _add_gram(out, x, weight)
        return (out + out.triu(1).mT)[None]

    def prefers_linear(self, n_features):
        """Return whether the linear form is the faster one; for many features, products x_i x_j cost more."""
        return self.tied or n_features <= 50

    def n_linear_features(self, n_features):
        """Return the number of features of a row in the linear form."""
        return 1 + n_features + (0 if self.tied else n_features * (n_features + 1) // 2)

    def split_features(self, x):
        """Return None: the features of rows (n, d) need a copy of the rows."""
        return None

    def write_features(self, out, n_features):
        """Complete the features (p, n) of rows, which hold x: 1, x, and for "full" the products x_i x_j, i <= j."""
        out[0] = 1
        xt, products = out[1 : n_features + 1], out[n_features + 1 :]
        if not self.tied:
            for i, rows in enumerate(products.split(list(range(n_features, 0, -1)))):
                torch.mul(xt[i], xt[i:], out=rows)

    def natural(self, mixture):
        """Return natural parameters (k, p): log-density plus log-weight is ``natural @ features`` (see `common`)."""
        whitened = self._whitened(mixture.means, mixture.factor)
        parts = [self._constants(mixture, whitened)[:, None], self._whitened(whitened, mixture.factor.mT)]
        if not self.tied:
            triangle = _triangle(mixture.means.shape[1], mixture.means.device)
            precisions = self.precisions(mixture.factor).flatten(1).index_select(1, triangle.elements)
            parts.append(precisions * triangle.scale.to(precisions))
        return torch.cat(parts, 1)

    def common(self, mixture, scatter):
        """Return the sum over all rows of the part of the log-density that components share and `natural` omits."""
        if not self.tied:
            return 0.0
        total = 0.0
        for block in _blocks(mixture.means.shape[1]):  # the factor is zero below its diagonal
            columns = mixture.factor[0, : block.stop, block]
            total = total + ((scatter[0, : block.stop, : block.stop] @ columns) * columns).sum()
        return -0.5 * total

    def moments_of(self, sums, n_features, scatter):
        """Return moments about the origin from weighted sums of features (k, p)."""
        weight, first = sums[:, 0], sums[:, 1 : n_features + 1]
        if self.tied:
            return Moments(weight, first, scatter)
        second = sums[:, n_features + 1 :].index_select(1, _triangle(n_features, sums.device).places)
        return Moments(weight, first, second.view(len(sums), n_features, n_features))

    # Coordinates.

    def identity(self, like, n_features):
        """Return the whitener that changes nothing."""
        return torch.eye(n_features, dtype=like.dtype, device=like.device)

    def whitener(self, covariance, min_tolerance=0.0):
        """Return an upper triangular W such that rows ``x @ W`` have unit covariance, or None.

        There is none if the features before a feature leave less than ``min_tolerance`` of its variance unexplained.
        """
        factor, positive = self.factor(covariance)
        sound = positive & (self.tolerance(covariance, factor) > min_tolerance)
        return factor[0] if sound.all() & torch.isfinite(factor).all() else None

    def whiten(self, x, whitener, out):
        """Write rows (n, d) in whitened coordinates; ``out`` may be the rows themselves."""
        # The whitener is zero below its diagonal. From the end, because a block needs the columns before it.
        for block in reversed(_blocks(len(whitener))):
            out[:, block] = (whitener[: block.stop, block].mT @ x[:, : block.stop].mT).mT

    def whiten_mixture(self, mixture, whitener):
        """Return the mixture in whitened coordinates."""
        factor = torch.linalg.solve_triangular(whitener, mixture.factor, upper=True)
        covariances = self.whiten_covariances(mixture.covariances, whitener)
        return Mixture(mixture.log_weights, mixture.means @ whitener, covariances, factor)

    def whiten_covariances(self, covariances, whitener):
        """Return covariances in whitened coordinates."""
        return whitener.mT @ covariances @ whitener

    def unwhiten_mixture(self, mixture, whitener):
        """Return the mixture in the coordinates of the rows."""
        root = torch.linalg.solve_triangular(whitener, _identity_like(whitener), upper=True)
        covariances = root.mT @ mixture.covariances @ root
        return Mixture(mixture.log_weights, mixture.means @ root, covariances, whitener @ mixture.factor)

    def log_scale(self, whitener, n_features):
        """Return the log-determinant of whitening."""
        return whitener.diagonal().log().sum()

    def regularization(self, reg_covar, whitener):
        """Return ``reg_covar`` times the identity in whitened coordinates."""
        return reg_covar * whitener.mT @ whitener

    def _precision_diagonals(self, factor):
        return factor.square().sum(2)

    def _whitened(self, means, factor):
        return (means[:, None, :] @ factor).squeeze(1)

    def _log_det(self, mixture):
        return mixture.factor.diagonal(dim1=1, dim2=2).log().sum(1)

    def _shape(self, n_components, n_features):
        return self._n_free(n_components), n_features, n_features

    def _squares(self, shift):
        """Return outer products of vectors (k, d) with themselves, or their sum if the type is tied."""
        return (shift.mT @ shift)[None] if self.tied else shift[:, :, None] * shift[:, None, :]


class _Triangle(NamedTuple):
    """The upper triangle of symmetric matrices (d, d), row by row, as the products x_i x_j of features are stored."""

    elements: torch.Tensor  # (p,): indices into a flat matrix
    scale: torch.Tensor  # (p,): coefficients of the products in -x'Px / 2, over the elements of P
    places: torch.Tensor  # (d * d,): of the elements of a flat matrix in the triangle


@lru_cache(maxsize=64)
def _triangle(n_features, device):
    """Return the upper triangle of symmetric matrices."""
    with torch.inference_mode(False):
        i, j = torch.triu_indices(n_features, n_features)
        places = torch.empty(n_features, n_features, dtype=torch.long)
        places[i, j] = places[j, i] = torch.arange(len(i))
        scale = torch.where(i == j, -0.5, -1.0)
        return _Triangle(*(part.to(device) for part in (n_features * i + j, scale, places.flatten())))


def _identity_like(matrix):
    """Return the identity with the size, dtype and device of a matrix (..., d, d)."""
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


def gram_root(rows, failures=None):
    """Return lower triangles L (..., m, m) with ``L L' = rows rows'`` for rows (..., m, d) without linear dependences.

    Parameters
    ----------
    rows : Tensor of shape (..., m, d)
    failures : list, optional
        A bool () is appended: whether rounding leaves no Cholesky factor, and the result is invalid. Without the list
        the result is always valid, but the host waits for the device here.
    """
    root, info = torch.linalg.cholesky_ex(rows @ rows.mT)
    if failures is not None:
        failures.append(info.any())
        return root
    if info.any():  # the products have lost what tells the rows apart
        return torch.linalg.qr(rows.mT, mode="r").R.mT.contiguous()
    return root


def _inverse_of_root(root):
    """Return the inverse of ``L L'`` for lower triangles L (..., m, m)."""
    inverse = torch.linalg.solve_triangular(root, _identity_like(root), upper=False)
    return inverse.mT @ inverse


def _rows_that_count(x, weight):
    """Return the rows whose weight is above the rounding of the sum of weights, and these weights.

    In many dimensions most are not. On an accelerator all rows are returned, because a selection waits for it.
    """
    if x.device.type != "cpu":
        return x, weight
    counts = weight > torch.finfo(weight.dtype).eps ** 2 * weight.sum()
    if 2 * int(counts.count_nonzero()) > len(x):
        return x, weight
    rows = torch.from_numpy(counts.numpy().nonzero()[0])  # torch takes longer
    return x.index_select(0, rows), weight.index_select(0, rows)


def _add_gram(out, residual, weight):
    """Add the blocks on and above the diagonal of ``residual' diag(weight) residual``."""
    weighted = (residual if weight is None else residual * weight[:, None]).mT
    for block in _blocks(len(out)):
        # Of the block on the diagonal itself, only the upper triangle: the rest is mirrored at the end.
        out[block, block.start :] += (weighted[block] @ residual[:, block.start :]).triu_()


def _blocks(n_features):
    """Return slices in which a triangular product is computed in about half of the operations of a square one."""
    size = max(48, n_features // 6)
    return [slice(start, min(start + size, n_features)) for start in range(0, n_features, size)]
