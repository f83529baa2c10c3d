"""Rows of data as EM sees them: in whitened coordinates, a chunk at a time."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.covariances import moved
from ..models.moments import Moments
from .chunks import LINEAR_BYTES, MIN_CHUNK, RESIDUAL_BYTES, blocks_of, chunks_within, row_chunks
from .distributed import SINGLE_PROCESS

MIN_RESIDUAL_CHUNK = 1024  # in which products with a matrix as large are still fast
CACHE_BYTES = 2**24  # features of all rows are kept if they need no more than this, or if they are but the rows
MAX_SPREAD = {torch.float32: 1e3, torch.float64: 1e5}  # beyond it the linear form loses too many digits
MAX_CONDITION = {torch.float32: 1e4, torch.float64: 1e9}  # of components: beyond it whitened rows lose too many
# Share of a feature's variance that others leave unexplained: below it, rows are not whitened, and components singular,
# since rounding leaves as much; much less where products are those of residuals that a component whitens.
MIN_WHITENED_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-12}
MIN_TOLERANCE, MIN_FRAMED_TOLERANCE = 1e-13, 1e-18
MIN_LOG_RESP = {torch.float32: -80.0, torch.float64: -700.0}  # exp of less is denormal: nothing, and 30 times slower
TOGETHER_BYTES = 2**25  # moments of the starts that share their passes over streamed rows
MAX_RATIO = 30.0  # of scales: beyond it the scatter of whitened rows is summed again, not transformed


class Expected(NamedTuple):
    """Sums of an E-step, from which the M-step makes the next mixture."""

    moments: Moments
    reference: Tensor  # that they are about (k, d)
    total: Tensor | None = None  # log-likelihood of the rows ()
    frame: Tensor | None = None  # factor (k or 1, d, d): moments are those of whitened residuals, ``(x - m) @ frame``
    failed: Tensor | None = (
        None  # number of blocks with a root that does not exist (): if there are any, nothing else counts
    )

    def to(self, device):
        """The sums on another device."""
        given = [part for part in (*self.moments, *self[1:]) if part is not None]
        there = iter(moved(given, device))
        moments = Moments(*(next(there) for _ in self.moments))
        return Expected(moments, *(None if part is None else next(there) for part in self[1:]))


def read_numbers(*tensors):
    """The numbers of tensors of one device, a list for each (empty for None): an accelerator is waited for once."""
    given = [part if part.device.type == "cpu" else part.to(torch.float64) for part in tensors if part is not None]
    read = iter(moved(given, "cpu"))
    return [[] if part is None else next(read).flatten().tolist() for part in tensors]


def largest_product(family, n_features, n_components):
    """Multiplications in the largest product of an E-step of a chunk of rows."""
    if family.prefers_linear(n_features):
        return n_components * LINEAR_BYTES // 8
    return n_features**2 * max(MIN_RESIDUAL_CHUNK, RESIDUAL_BYTES // (16 * (n_features + n_components)))


def e_step(x, mixture, family):
    """Log-likelihood (n,) and log-responsibilities (n, k) of rows, in the residual form."""
    joint = mixture.log_weights + family.log_prob(x, mixture.means, mixture.factor)
    peak = joint.amax(1, keepdim=True)
    joint = joint - peak  # far from all components, the differences would be lost beside their size
    norm = joint.logsumexp(1, keepdim=True)
    return (peak + norm).squeeze(1), joint - norm


def scatter_of(x, family, weight=None, chunk_size=None):
    """Weighted sum of products of rows with themselves, in the form of one component and float64."""
    parts = (
        family.scatter(x[rows], None if weight is None else weight[rows])
        for block in blocks_of(x)
        for rows in chunks_within(block, x.shape[1], chunk_size)
    )
    return sum(part.to(torch.float64) for part in parts)


def lowest_of_all(values, rows, group):
    """Of the rows (m, d) with the lowest values (m,) of each process, those with the lowest ones of all."""
    if group.size == 1:
        return rows
    n_rows, values, rows = max(group.all_gather_int(len(values))), group.all_gather(values), group.all_gather(rows)
    return rows[values.topk(n_rows, largest=False).indices]


def _whitened(family, whitener, x):
    """A whitened copy of rows."""
    out = torch.empty_like(x)
    family.whiten(x, whitener, out)
    return out


def _product(natural, parts):
    """Natural parameters (k, p) times features in parts (p_i, b)."""
    if len(parts) == 1:
        return torch.mm(natural, parts[0])
    natural = natural.split([len(part) for part in parts], 1)
    product = torch.mm(natural[1], parts[1])
    for index in (0, *range(2, len(parts))):
        product.addmm_(natural[index], parts[index])
    return product


def _sums_of(resp, parts):
    """Sums of features in parts (p_i, b), weighted by responsibilities (k, b)."""
    return torch.cat([torch.mm(resp, part.mT) for part in parts], 1)


class WhitenedRows:
    """Rows in coordinates in which their covariance is the identity, and the sums of EM over them.

    EM does not depend on the coordinates, and in these products lose the fewest digits, whatever the units, offsets and
    correlations of the data. Sums are kept in float64.

    Where components are much narrower than the data in directions that are not those of features, products of whitened
    rows lose what tells the narrow directions apart: in float32 first. `refine` then makes the rows anew, in float64,
    and if this is not enough in coordinates that do not mix features, with residuals in place of products about the
    origin. What is constant in a component is then exactly so.

    Parameters
    ----------
    x : Tensor or StreamedRows of shape (n, d)
        Centred rows. A tensor may be overwritten; streamed rows are read again in every pass.
    family : Covariance
    reg_covar : float
        Regularization of the covariances, in squared units of x.
    weight : Tensor of shape (n,), optional
        Weights of the rows; one each if not given.
    chunk_size : int, optional
        Rows visited at once.
    covariance : Tensor, optional
        The covariance that is to become the identity, in the form of the family and float64; that of the rows if not
        given.
    group : SingleProcess or Group
        The processes that have shards of the rows; sums are those over all of them.
    read_again : callable, dtype -> (Tensor or StreamedRows, Tensor or None), optional
        Gives the centred rows and their weights anew, in this dtype. Without it, rows cannot be refined.

    Attributes
    ----------
    n_rows : int
        Of all processes.
    total_weight : float
        Of these.
    is_mixed : bool
        Whether the coordinates mix features.
    """

    def __init__(
        self, x, family, reg_covar, weight=None, chunk_size=None, covariance=None, group=SINGLE_PROCESS, read_again=None
    ):
        self.family, self.chunk_size, self.group = family, chunk_size, group
        self.reg_covar, self.covariance, self.read_again = reg_covar, covariance, read_again
        total_weight = float(len(x) if weight is None else weight.sum(dtype=torch.float64))
        self.n_rows, self.total_weight = group.all_reduce_sum(len(x), total_weight)
        self.n_features = x.shape[1]
        self.is_mixed = True
        self._set_rows(x, weight)

    def _set_rows(self, x, weight):
        """Choose coordinates for centred rows, and bring the rows to them."""
        family, scatter, covariance, self.weight = self.family, None, self.covariance, weight
        if covariance is None:
            (scatter,) = self.group.all_reduce_sum(scatter_of(x, family, self.weight, self.chunk_size))
            covariance = scatter / self.total_weight
        covariance = covariance + family.regularization(self.reg_covar, family.identity(covariance, x.shape[1]))
        whitener = family.whitener(covariance, MIN_WHITENED_TOLERANCE[x.dtype]) if self.is_mixed else None
        if whitener is None and x.dtype != torch.float64 and self.read_again is not None:
            return self._set_rows(*self.read_again(torch.float64))
        self.is_mixed = whitener is not None
        self.whitener = family.axis_whitener(family.variances(covariance)[0]) if whitener is None else whitener
        self.log_scale = float(family.log_scale(self.whitener, x.shape[1]))
        self.regularization = family.regularization(self.reg_covar, self.whitener)
        self._whiten(x)
        if family.tied and self.is_linear():
            self.scatter = self._whitened_scatter(scatter)
        return None

    def is_accurate_for(self, mixture):
        """Whether products of these rows keep the digits that the mixture needs ()."""
        if not self.is_mixed or (self.x.dtype == torch.float64 and self.family.frame(mixture) is None):
            return mixture.means.new_ones(())  # there is nothing better
        return self.family.condition_number(mixture) <= MAX_CONDITION[self.x.dtype]

    def spread(self, mixture):
        """What decides on the form of the E-step of a mixture (): see `Covariance.spread`."""
        return self.family.spread(mixture) if self.is_linear() else mixture.means.new_zeros(())

    @property
    def min_tolerance(self):
        """Share of a feature's variance that others leave unexplained, below which a component is singular."""
        return MIN_TOLERANCE if self.is_mixed or self.x.dtype != torch.float64 else MIN_FRAMED_TOLERANCE

    @property
    def can_refine(self):
        """Whether there is a form that keeps more digits."""
        return self.read_again is not None and self.is_mixed

    def wants_residuals(self, spread):
        """Whether sums about the origin, of which a mixture of this spread was made, have lost too many digits."""
        return not self.is_mixed or (self.is_linear() and self._linear_dtype(spread) != self.x.dtype)

    def refine(self):
        """Make the rows anew, in a form that keeps more digits; whether there is one. The coordinates are others."""
        if not self.can_refine:
            return False
        self.is_mixed = self.x.dtype != torch.float64
        self.x = self.features = self.weight = None  # their memory is wanted
        self._set_rows(*self.read_again(torch.float64))
        return True

    def moments(self, resp_of, n_components, mixture=None):
        """Sums for given responsibilities.

        Parameters
        ----------
        resp_of : callable, slice -> Tensor (b, k)
            Responsibilities of the rows of a slice.
        n_components : int
        mixture : Mixture, optional
            What the same responsibilities gave before. Sums of residuals from its means have more digits, and in
            coordinates that do not mix features those of residuals whitened by its factors.
        """
        means = torch.zeros(n_components, self.x.shape[1], dtype=self.x.dtype, device=self.x.device)
        frame = None
        if mixture is not None:
            means = mixture.means.to(means)
            frame = None if self.is_mixed else self.family.frame(mixture.to(means.device, means.dtype))
        if mixture is not None or not self.is_linear():
            moments = self.family.empty_moments(means)
            for block in blocks_of(self.x):
                self.accumulate(moments, resp_of, means, block, frame)
            moments = self.family.complete(type(moments)(*self.group.all_reduce_sum(*moments)))
            return Expected(moments, means.to(torch.float64), frame=None if frame is None else frame.to(torch.float64))
        sums, scatter = self.empty_sums(n_components), 0.0
        for block in blocks_of(self.x):
            for rows, parts in self.features_of(block, n_components, self.x.dtype):
                resp = self.weighted(resp_of(rows), rows)
                sums += _sums_of(resp.mT, parts)
                if self.family.tied:  # responsibilities may sum to less than one: a start may use some rows only
                    scatter = scatter + self.family.scatter(self.x[rows], resp.sum(1)).to(sums)
        sums, scatter = self.group.all_reduce_sum(sums, scatter)
        return Expected(self.family.moments_of(sums, self.x.shape[1], scatter), means.to(sums))

    def expect(self, mixtures, spreads):
        """E-step of several mixtures: the sums for each.

        Mixtures in the linear form share their products. Streamed rows are read once for all mixtures.

        Parameters
        ----------
        mixtures : list of Mixture
        spreads : list of float
            That of each, as `spread` gives it. The host does not wait for the device here.
        """
        dtypes = [self._linear_dtype(spread) for spread in spreads]
        groups = [[i for i, own in enumerate(dtypes) if own == dtype] for dtype in dict.fromkeys(dtypes) if dtype]
        passes = [(group, _LinearPass(self, [mixtures[i] for i in group], dtypes[group[0]])) for group in groups]
        passes += [([i], _ResidualPass(self, mixtures[i])) for i, dtype in enumerate(dtypes) if dtype is None]
        for block in blocks_of(self.x):
            for _, one in passes:
                one.add(block)
        totals = iter(self.group.all_reduce_sum(*(part for _, one in passes for part in one.sums)))
        found = [None] * len(mixtures)
        for group, one in passes:
            one.sums = [next(totals) for _ in one.sums]
            for index, part in zip(group, one.results(), strict=True):
                found[index] = part
        return found

    def n_together(self, n_components):
        """How many mixtures it pays to give to `expect` at once."""
        n_features = self.x.shape[1]
        if not isinstance(self.x, torch.Tensor):  # to read them costs more than larger products
            shape = self.family.empty_moments(torch.zeros(n_components, n_features, device="meta")).second
            return max(1, TOGETHER_BYTES // (8 * shape.numel()))
        if not self.is_linear():
            return 1
        n_linear = self.family.n_linear_features(n_features)
        return max(1, (LINEAR_BYTES // (8 * MIN_CHUNK) - n_linear) // n_components)

    def least_likely(self, mixture, n_rows):
        """The rows with the lowest density (n_rows, d)."""
        current, lowest, found = mixture.to(self.x.device, self.x.dtype), None, None
        for block in blocks_of(self.x):
            evidence = [
                e_step(self.x[rows], current, self.family)[0] for rows in self._chunks(block, len(mixture.means))
            ]
            evidence = torch.cat(evidence)
            values, indices = evidence.topk(min(n_rows, len(evidence)), largest=False)
            rows = self.x[block][indices]
            if found is not None:
                values, rows = torch.cat([lowest, values]), torch.cat([found, rows])
                values, indices = values.topk(min(n_rows, len(values)), largest=False)
                rows = rows[indices]
            lowest, found = values, rows
        return lowest_of_all(lowest, found, self.group).to(mixture.means)

    def is_linear(self):
        """Whether the linear form is the faster one, and as accurate."""
        return self.is_mixed and self.family.prefers_linear(self.n_features)

    def accumulate(self, moments, resp_of, means, block, frame=None):
        """Add the rows of a slice to moments about the means, in the residual form."""
        for rows in self._chunks(block, len(means)):
            self.family.accumulate(moments, self.x[rows], self.weighted(resp_of(rows), rows), means, frame)

    def features_of(self, block, n_components, dtype):
        """Slices, and the features of their rows in parts (p_i, b), in memory that may be used again for the next."""
        n_features = self.x.shape[1]
        n_linear = self.family.n_linear_features(n_features)
        chunks = list(chunks_within(block, n_linear + n_components, self.chunk_size, n_bytes=LINEAR_BYTES))
        if self.features is not None and dtype == self.x.dtype:
            yield from ((rows, [self.features[:, rows]]) for rows in chunks)
            return
        if self.family.split_features(self.x[slice(block.start, block.start + 1)]) is not None:
            yield from ((rows, self.family.split_features(self.x[rows].to(dtype))) for rows in chunks)
            return
        size = n_linear, chunks[0].stop - chunks[0].start
        buffer = torch.empty(size, dtype=dtype, device=self.x.device)
        for rows in chunks:
            x = self.x[rows]
            features = buffer[:, : len(x)]
            features[1 : n_features + 1].copy_(x.mT)
            self.family.write_features(features, n_features)
            yield rows, [features]

    def empty_sums(self, n_components):
        """Sums of the features of no rows (k, p), in float64."""
        n_linear = self.family.n_linear_features(self.x.shape[1])
        return torch.zeros(n_components, n_linear, dtype=torch.float64, device=self.x.device)

    def weighted(self, resp, rows):
        """Responsibilities times the weights of their rows."""
        resp = resp.to(self.x.dtype)
        return resp if self.weight is None else resp * self.weight[rows, None]

    def _linear_dtype(self, spread):
        """The dtype in which the linear form is accurate enough for a mixture of this spread, or None."""
        if not self.is_linear():
            return None
        return next((dtype for dtype in (self.x.dtype, torch.float64) if spread <= MAX_SPREAD[dtype]), None)

    def _whiten(self, x):
        """Set x, in whitened coordinates, and the features of all rows if they are small enough to be kept."""
        n_samples, n_features = x.shape
        n_linear, whitener = self.family.n_linear_features(n_features), self.whitener.to(x.device, x.dtype)
        if not isinstance(x, torch.Tensor):
            self.x, self.features = x.map(partial(_whitened, self.family, whitener)), None
            return
        keep = self.family.tied or n_samples * n_linear * x.element_size() <= CACHE_BYTES
        self.x, self.features = x, None
        if keep and self.is_linear():
            self.features = x.new_empty(n_linear, n_samples)
            self.x = self.features[1 : n_features + 1].mT
        for rows in row_chunks(n_samples, n_features, self.chunk_size, LINEAR_BYTES):
            self.family.whiten(x[rows], whitener, self.x[rows])
            if self.features is not None:
                self.family.write_features(self.features[:, rows], n_features)

    def _whitened_scatter(self, scatter):
        """Scatter of the whitened rows: from that of the rows where this loses nothing, else summed again."""
        scales = self.whitener.diagonal() if self.whitener.ndim == 2 else self.whitener
        if scatter is None or self.x.dtype != torch.float64 or scales.amax() > MAX_RATIO * scales.amin():
            return self.group.all_reduce_sum(scatter_of(self.x, self.family, self.weight, self.chunk_size))[0]
        return self.family.whiten_covariances(scatter, self.whitener)

    def _chunks(self, block, n_components):
        n_columns = self.x.shape[1] + n_components
        n_rows = max(MIN_RESIDUAL_CHUNK, RESIDUAL_BYTES // (16 * n_columns))
        return chunks_within(block, n_columns, self.chunk_size or n_rows)


class _LinearPass:
    """E-steps of several mixtures with one product for all their components, and one for the sums."""

    def __init__(self, rows, mixtures, dtype):
        self.rows, self.mixtures, self.dtype = rows, mixtures, dtype
        self.natural = torch.cat([rows.family.natural(mixture) for mixture in mixtures]).to(dtype)
        # Of features weighted by responsibilities, and of log-likelihoods.
        self.sums = [rows.empty_sums(len(self.natural)), self.natural.new_zeros(len(mixtures), dtype=torch.float64)]

    def add(self, block):
        """Add the rows of a slice."""
        weight, floor = self.rows.weight, MIN_LOG_RESP[self.dtype]
        shape = len(self.mixtures), len(self.natural) // len(self.mixtures), -1
        for rows, parts in self.rows.features_of(block, len(self.natural), self.dtype):
            resp = _product(self.natural, parts).view(shape)  # (m, k, b), so that sums over components run along memory
            peak = resp.amax(1, keepdim=True)
            norm = resp.sub_(peak).clamp_(min=floor).exp_().sum(1, keepdim=True)
            evidence, scale = peak.add_(norm.log()), norm.reciprocal_()
            if weight is not None:
                evidence, scale = evidence * weight[rows], scale * weight[rows]
            self.sums[1] += evidence.sum((1, 2), dtype=torch.float64)
            self.sums[0] += _sums_of(resp.mul_(scale).flatten(0, 1), parts)

    def results(self):
        """What `WhitenedRows.expect` gives, for each mixture."""
        family, n_features = self.rows.family, self.rows.x.shape[1]
        sums = self.sums[0].split(len(self.natural) // len(self.mixtures))
        for mixture, part, total in zip(self.mixtures, sums, self.sums[1], strict=True):
            shared = self.rows.scatter if family.tied else None
            total = total + family.common(mixture, shared)
            yield Expected(family.moments_of(part, n_features, shared), torch.zeros_like(mixture.means), total)


class _ResidualPass:
    """E-step of one mixture with residuals from its means; in coordinates that do not mix features, whitened ones.

    Products of residuals lose what is narrower than their rounding. Those of residuals that a component itself whitens
    lose nothing, since it is about as wide in all directions as the next one will be.
    """

    def __init__(self, rows, mixture):
        self.rows, self.mixture = rows, mixture.to(rows.x.device, rows.x.dtype)
        self.frame = None if rows.is_mixed else rows.family.frame(self.mixture)
        self.moments = rows.family.empty_moments(self.mixture.means)
        self.total = self.moments.weight.new_zeros(())
        self.sums = [*self.moments, self.total]

    def add(self, block):
        """Add the rows of a slice."""
        self.rows.accumulate(self.moments, self._resp_of, self.mixture.means, block, self.frame)

    def _resp_of(self, rows):
        evidence, log_resp = e_step(self.rows.x[rows], self.mixture, self.rows.family)
        self.total += self.rows.weighted(evidence[:, None], rows).sum(dtype=torch.float64)
        return log_resp.exp()

    def results(self):
        """What `WhitenedRows.expect` gives, in a list of one."""
        *moments, total = self.sums
        moments = self.rows.family.complete(type(self.moments)(*moments))
        frame = None if self.frame is None else self.frame.to(torch.float64)
        return [Expected(moments, self.mixture.means.to(torch.float64), total, frame)]
