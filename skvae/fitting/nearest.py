"""Nearest centres: labels, distances, and sums of the rows of each cluster."""

import torch

from .devices import wide_dtype
from .rows import row_chunks

CHUNK_BYTES, MIN_CHUNK, MAX_CHUNK = 2**22, 1024, 4096  # on a CPU, a chunk and its scores stay in a cache
DEVICE_CHUNK_BYTES = 2**27  # on an accelerator, few large products
MAX_CANCELLATION = 1e-2  # squared distance over squared norms below which a difference of squares is inaccurate
MAX_ACTIVE = 0.5  # share of the rows from which all are assigned again


def assign(x, centers):
    """Return the index of the nearest centre of each row (n,)."""
    nearest = NearestCenters(centers)
    return torch.cat([nearest(x[rows]) for rows in _chunks(x, centers)])


def squared_residuals(x, centers, labels, buffer=None):
    """Compute the squared distance of each row to the centre of its label (n,), exact for the closest rows.

    A buffer, Tensor (n, d), is overwritten.
    """
    parts, chunks = [], _chunks(x, centers)
    buffer = torch.empty_like(x[chunks[0]]) if buffer is None else buffer
    for rows in chunks:
        residuals = torch.index_select(centers, 0, labels[rows], out=buffer[: len(x[rows])]).sub_(x[rows])
        parts.append(torch.linalg.vector_norm(residuals, dim=1).square_())
    return torch.cat(parts)


def distances(x, centers):
    """Compute the distances of the rows to the centres (n, k), zero between equal points.

    A difference of squares is fast, but cancels between close points; their distances are computed from residuals.
    """
    squares, center_squares = x.square().sum(1, keepdim=True), centers.square().sum(1)
    result = torch.addmm(squares, x, centers.T, alpha=-2).add_(center_squares)
    rows, columns = (result < MAX_CANCELLATION * (squares + center_squares)).nonzero(as_tuple=True)
    for pairs in row_chunks(len(rows), x.shape[1]):
        residuals = x[rows[pairs]] - centers[columns[pairs]]
        result[rows[pairs], columns[pairs]] = residuals.square_().sum(1)
    return result.sqrt_()


def cluster_sums(x, centers, weight=None):
    """Sum the rows nearest to each centre, with weights (k, d), and their weights (k,), in the wide dtype."""
    nearest, wide = NearestCenters(centers), wide_dtype(x)
    sums, counts = torch.zeros_like(centers, dtype=wide), torch.zeros(len(centers), dtype=wide, device=x.device)
    for rows in _chunks(x, centers):
        chunk = x[rows]
        _add_rows(chunk, nearest(chunk), None if weight is None else weight[rows], sums, counts)
    return sums, counts


def _add_rows(x, labels, weight, sums, counts, sign=1):
    """Add rows to the sums, and their weights to the counts, of their clusters."""
    # Adding by index has no fixed order on an accelerator.
    sums_of_labels = sums_by_index if x.device.type == "cpu" else sums_by_product
    chunk_sums, chunk_counts = sums_of_labels(x, labels, weight, len(counts))
    sums.add_(chunk_sums, alpha=sign)
    counts.add_(chunk_counts, alpha=sign)


def sums_by_index(x, labels, weight, n_labels):
    """Sum the rows of each label, with weights (k, d), and their weights (k,), in about n d operations."""
    weighted = x if weight is None else x * weight.to(x)[:, None]
    sums = x.new_zeros(n_labels, x.shape[1]).index_add_(0, labels, weighted)
    return sums, torch.bincount(labels, weight, minlength=n_labels)


def sums_by_product(x, labels, weight, n_labels):
    """Compute the sums of `sums_by_index` as a matrix product."""
    members = (labels == torch.arange(n_labels, device=x.device)[:, None]).to(x.dtype)  # (k, b)
    members = members if weight is None else members * weight.to(x)
    return members @ x, members.sum(1)


class NearestCenters:
    """Assignment of rows to their nearest centres, by |x - c|^2 / 2 less the term that all centres share.

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
        """Return the labels (b,) of rows (b, d)."""
        if x.device.type != "cpu":
            return self._scores(x).argmin(0)
        # argmin is slow on a CPU; the product of the indices with a mask of the minima is fast.
        scores = self._scores(x, self._buffer(0, len(x)))
        indices, n_lowest = self.indices_and_ones @ torch.le(scores, scores.amin(0), out=scores)
        return self._scores(x, scores).argmin(0) if n_lowest.max() > 1 else indices.long()

    def labels_and_margins(self, x, squares):
        """Return the labels (b,) of rows (b, d) on a CPU, and lower bounds of their margins (b,).

        The margin of a row is its distance to the second nearest centre less that to the nearest.

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
        to_second = (squares + 2 * second - noise).clamp_(min=0).sqrt_()
        to_first = (squares + 2 * first + noise).clamp_(min=0).sqrt_()
        return labels, torch.where(n_lowest > 1, 0, to_second - to_first)

    def _buffer(self, number, n_rows):
        size = n_rows * len(self.centers)
        if len(self.buffers[number]) < size:
            self.buffers[number] = self.centers.new_empty(size)
        return self.buffers[number][:size].view(len(self.centers), n_rows)

    def _scores(self, x, out=None):
        return torch.addmm(self.half_squares, self.centers, x.T, alpha=-1, out=out)  # (k, b)


class HamerlySums:
    """`cluster_sums` for centres that move: only rows whose label can change are assigned again (after Hamerly 2010).

    A lower bound of the margin is stored for each row. When the centres move, it decreases by the movement of the
    row's own centre and the largest movement of any; while it is positive, the row keeps its label. For rows on a CPU.

    Parameters
    ----------
    x : Tensor of shape (n, d)
    weight : Tensor of shape (n,), optional
    """

    def __init__(self, x, weight=None):
        self.x, self.weight, self.centers = x, weight, None
        self.squares = torch.linalg.vector_norm(x, dim=1).square_()
        self.labels, self.margins = torch.zeros(len(x), dtype=torch.long), x.new_zeros(len(x))

    def __call__(self, centers):
        """Return the weighted sums of the rows nearest to each centre (k, d), and their weights (k,), in float64."""
        active = self._active_rows(centers)
        if len(active) > MAX_ACTIVE * len(self.x):
            self._assign_all(centers)
        else:
            self._assign(centers, active)
        return self.sums, self.counts

    def assign(self, centers):
        """Return the index of the nearest centre of each row (n,), for centres after which there are no others."""
        active = self._active_rows(centers)
        if len(active) > MAX_ACTIVE * len(self.x):
            return assign(self.x, centers)
        nearest = NearestCenters(centers)
        for chunk in _chunks(self.x[: len(active)], centers):
            rows = active[chunk]
            self.labels[rows] = nearest(self.x.index_select(0, rows))
        return self.labels

    def _active_rows(self, centers):
        """Move the centres; return the indices of the rows whose label can change."""
        if self.centers is not None:
            shifts = torch.linalg.vector_norm(centers - self.centers, dim=1)
            self.margins -= (shifts + shifts.max()).index_select(0, self.labels)
        self.centers = centers
        return (self.margins <= 0).nonzero().flatten()

    def _assign_all(self, centers):
        nearest = NearestCenters(centers)
        for rows in _chunks(self.x, centers):
            self.labels[rows], self.margins[rows] = nearest.labels_and_margins(self.x[rows], self.squares[rows])
        self._sum_all()

    def _assign(self, centers, active):
        nearest = NearestCenters(centers)
        for chunk in _chunks(self.x[: len(active)], centers):
            rows = active[chunk]
            x, before = self.x.index_select(0, rows), self.labels[rows]
            self.labels[rows], self.margins[rows] = nearest.labels_and_margins(x, self.squares[rows])
            moved = (self.labels[rows] != before).nonzero().flatten()
            if self.weight is None and len(moved):
                _add_rows(x[moved], before[moved], None, self.sums, self.counts, sign=-1)
                _add_rows(x[moved], self.labels[rows[moved]], None, self.sums, self.counts)
        if self.weight is not None:  # differences would leave a remainder of the weight of an empty cluster
            self._sum_all()

    def _sum_all(self):
        self.sums = torch.zeros_like(self.centers, dtype=wide_dtype(self.x))
        self.counts = self.sums.new_zeros(len(self.centers))
        for rows in _chunks(self.x, self.centers):
            weight = None if self.weight is None else self.weight[rows]
            _add_rows(self.x[rows], self.labels[rows], weight, self.sums, self.counts)


def _chunks(x, centers):
    """Return slices of the rows that are processed at once."""
    n_columns = x.shape[1] + len(centers)
    if x.device.type != "cpu":
        return row_chunks(len(x), n_columns, n_bytes=DEVICE_CHUNK_BYTES)
    return row_chunks(len(x), n_columns, min(MAX_CHUNK, max(MIN_CHUNK, CHUNK_BYTES // (8 * n_columns))))
