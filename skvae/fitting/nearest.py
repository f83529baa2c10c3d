"""Nearest centres of rows: labels, distances, and sums of the rows of each centre."""

import torch

from .chunks import row_chunks
from .devices import wide_dtype

CHUNK_BYTES, MIN_CHUNK, MAX_CHUNK = 2**22, 1024, 4096  # on a CPU, rows of a chunk and their scores stay in a cache
DEVICE_CHUNK_BYTES = 2**27  # on an accelerator, few large products
CLOSE = 1e-2  # squared distance of close points, as a share of their squared norms
MAX_ACTIVE = 0.5  # share of the rows from which on all are visited


def assign(x, centers):
    """Nearest centre of each row (n,)."""
    nearest = NearestCenters(centers)
    return torch.cat([nearest(x[rows]) for rows in _chunks(x, centers)])


def squared_residuals(x, centers, labels):
    """Squared distance of each row to the centre that it is labelled with (n,), exact for the closest rows."""
    parts, chunks = [], _chunks(x, centers)
    buffer = torch.empty_like(x[chunks[0]])
    for rows in chunks:
        residuals = torch.index_select(centers, 0, labels[rows], out=buffer[: len(x[rows])]).sub_(x[rows])
        parts.append(torch.linalg.vector_norm(residuals, dim=1).square_())
    return torch.cat(parts)


def distances(x, centers):
    """Distances of the rows to the centres (n, k), zero between equal ones.

    The difference of squares is fast, but between close points little of it is left but rounding; these are measured
    again by their residuals.
    """
    squares, center_squares = x.square().sum(1, keepdim=True), centers.square().sum(1)
    found = torch.addmm(squares, x, centers.T, alpha=-2).add_(center_squares)
    rows, columns = (found < CLOSE * (squares + center_squares)).nonzero(as_tuple=True)
    for pairs in row_chunks(len(rows), x.shape[1]):
        residuals = x[rows[pairs]] - centers[columns[pairs]]
        found[rows[pairs], columns[pairs]] = residuals.square_().sum(1)
    return found.sqrt_()


def cluster_sums(x, centers, weight=None):
    """Weighted sum of the rows nearest to each centre (k, d), and their weight (k,), in float64 where there is one."""
    nearest, wide = NearestCenters(centers), wide_dtype(x)
    sums, counts = torch.zeros_like(centers, dtype=wide), torch.zeros(len(centers), dtype=wide, device=x.device)
    for rows in _chunks(x, centers):
        chunk = x[rows]
        _add_rows(chunk, nearest(chunk), None if weight is None else weight[rows], sums, counts)
    return sums, counts


def _add_rows(x, labels, weight, sums, counts, sign=1):
    """Add rows to the sums, and their weights to the counts, of their labels."""
    # Adding by index has no fixed order on an accelerator.
    found = (sums_by_index if x.device.type == "cpu" else sums_by_product)(x, labels, weight, len(counts))
    sums.add_(found[0], alpha=sign)
    counts.add_(found[1], alpha=sign)


def sums_by_index(x, labels, weight, n_labels):
    """Weighted sum of the rows of each label (k, d), and their weight (k,), in about n d operations."""
    weighted = x if weight is None else x * weight.to(x)[:, None]
    sums = x.new_zeros(n_labels, x.shape[1]).index_add_(0, labels, weighted)
    return sums, torch.bincount(labels, weight, minlength=n_labels)


def sums_by_product(x, labels, weight, n_labels):
    """What `sums_by_index` gives, as a matrix product."""
    members = (labels == torch.arange(n_labels, device=x.device)[:, None]).to(x.dtype)  # (k, b)
    members = members if weight is None else members * weight.to(x)
    return members @ x, members.sum(1)


class NearestCenters:
    """Index of the nearest centre of each row of a chunk, from |x - c|^2 / 2 less the part that all centres share.

    Parameters
    ----------
    centers : Tensor of shape (k, d)
    """

    def __init__(self, centers):
        self.centers, self.half_squares = centers, centers.square().sum(1, keepdim=True) / 2
        if centers.device.type == "cpu":
            indices = torch.arange(len(centers), dtype=centers.dtype)
            self.indices_and_ones = torch.stack([indices, torch.ones_like(indices)])
            self.buffers = [centers.new_empty(0)] * 2

    def __call__(self, x):
        """Labels (b,) of rows (b, d)."""
        if x.device.type != "cpu":
            return self._scores(x).argmin(0)
        # A CPU is slow to find where a minimum is, but not to multiply the ones at the minima with all indices.
        scores = self._scores(x, self._buffer(0, len(x)))
        indices, n_lowest = self.indices_and_ones @ torch.le(scores, scores.amin(0), out=scores)
        return self._scores(x, scores).argmin(0) if n_lowest.max() > 1 else indices.long()

    def with_gaps(self, x, squares):
        """Labels (b,) of rows (b, d) on a CPU, and how much nearer their centres are than any other, at least (b,).

        Parameters
        ----------
        x : Tensor of shape (b, d)
        squares : Tensor of shape (b,)
            Squared norms of the rows.
        """
        scores, lowest, limits = self._scores(x, self._buffer(0, len(x))), self._buffer(1, len(x)), torch.finfo(x.dtype)
        first = scores.amin(0)
        indices, n_lowest = self.indices_and_ones @ torch.le(scores, first, out=lowest)
        labels = scores.argmin(0) if n_lowest.max() > 1 else indices.long()
        second = scores.add_(lowest, alpha=limits.max / 4).amin(0)
        noise = 8 * limits.eps * (squares + 2 * self.half_squares.max())
        gaps = (squares + 2 * second - noise).clamp_(min=0).sqrt_() - (squares + 2 * first + noise).clamp_(
            min=0
        ).sqrt_()
        return labels, torch.where(n_lowest > 1, 0, gaps)

    def _buffer(self, which, n_rows):
        size = n_rows * len(self.centers)
        if len(self.buffers[which]) < size:
            self.buffers[which] = self.centers.new_empty(size)
        return self.buffers[which][:size].view(len(self.centers), n_rows)

    def _scores(self, x, out=None):
        return torch.addmm(self.half_squares, self.centers, x.T, alpha=-1, out=out)  # (k, b)


class BoundedRows:
    """Sums of the rows nearest to each centre, for centres that move: only rows that can have a new one are visited.

    Of each row is kept how much nearer its centre is than any other, at least. When the centres move, this becomes
    smaller by the movement of the own centre and the largest movement of all. While it is positive, the row keeps its
    label (after Hamerly 2010). For rows on a CPU.

    Parameters
    ----------
    x : Tensor of shape (n, d)
    weight : Tensor of shape (n,), optional
    """

    def __init__(self, x, weight=None):
        self.x, self.weight, self.centers = x, weight, None
        self.squares = torch.linalg.vector_norm(x, dim=1).square_()
        self.labels, self.gaps = torch.zeros(len(x), dtype=torch.long), x.new_zeros(len(x))

    def sums(self, centers):
        """Weighted sum of the rows nearest to each centre (k, d), and their weight (k,), in float64."""
        active = self._active(centers)
        self.centers = centers
        if len(active) > MAX_ACTIVE * len(self.x):
            self._start(centers)
        else:
            self._update(centers, active)
        return self.totals

    def _active(self, centers):
        """Indices of the rows that can be nearer to another centre than to their own."""
        if self.centers is not None:
            shifts = torch.linalg.vector_norm(centers - self.centers, dim=1)
            self.gaps -= (shifts + shifts.max()).index_select(0, self.labels)
        return (self.gaps <= 0).nonzero().flatten()

    def _start(self, centers):
        nearest = NearestCenters(centers)
        for rows in _chunks(self.x, centers):
            self.labels[rows], self.gaps[rows] = nearest.with_gaps(self.x[rows], self.squares[rows])
        self._add_all()

    def _update(self, centers, active):
        nearest = NearestCenters(centers)
        for chunk in _chunks(self.x[: len(active)], centers):
            rows = active[chunk]
            x, before = self.x.index_select(0, rows), self.labels[rows]
            self.labels[rows], self.gaps[rows] = nearest.with_gaps(x, self.squares[rows])
            moved = (self.labels[rows] != before).nonzero().flatten()
            if self.weight is None and len(moved):
                _add_rows(x[moved], before[moved], None, *self.totals, sign=-1)
                _add_rows(x[moved], self.labels[rows[moved]], None, *self.totals)
        if self.weight is not None:  # differences would leave a remainder of the weight of a cluster that is empty
            self._add_all()

    def _add_all(self):
        shape, options = self.centers.shape, {"dtype": wide_dtype(self.x)}
        self.totals = torch.zeros(shape, **options), torch.zeros(shape[0], **options)
        for rows in _chunks(self.x, self.centers):
            weight = None if self.weight is None else self.weight[rows]
            _add_rows(self.x[rows], self.labels[rows], weight, *self.totals)


def _chunks(x, centers):
    """Slices of the rows that are worked on at once."""
    n_columns = x.shape[1] + len(centers)
    if x.device.type != "cpu":
        return row_chunks(len(x), n_columns, n_bytes=DEVICE_CHUNK_BYTES)
    return row_chunks(len(x), n_columns, min(MAX_CHUNK, max(MIN_CHUNK, CHUNK_BYTES // (8 * n_columns))))
