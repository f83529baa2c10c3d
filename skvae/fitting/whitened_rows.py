"""Complete samples as EM visits them: in whitened coordinates, a chunk at a time."""

from functools import partial

import torch

from .em_steps import MIN_LOG_RESP, MIN_TOLERANCE, EMRows, EStepSums, e_step, lowest_of_all
from .rows import LINEAR_BYTES, MIN_CHUNK, RESIDUAL_BYTES, blocks_of, chunks_within, is_lazy, row_chunks

MIN_RESIDUAL_CHUNK = 1024  # in which products with a matrix as large are still fast
CACHE_BYTES = 2**24  # features of all rows are stored if they need no more, or are the rows and a constant
# Condition numbers beyond which the linear form, and whitened rows, lose too many digits.
MAX_LINEAR_CONDITION = {torch.float32: 1e3, torch.float64: 1e5}
MAX_CONDITION = {torch.float32: 1e4, torch.float64: 1e9}
# Share of a feature's variance that the others leave unexplained, below which rows are not whitened, since rounding
# leaves as much. Products of residuals that a component whitens keep more digits.
MIN_WHITENED_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-12}
MIN_FRAMED_TOLERANCE = 1e-18
TOGETHER_BYTES = 2**25  # moments of the mixtures that share their passes over streamed rows
MAX_RATIO = 30.0  # of scales: beyond it the scatter of whitened rows is summed again, not transformed


def largest_product(family, n_features, n_components):
    """Return the number of multiplications in the largest product of an E-step of a chunk of rows."""
    if family.prefers_linear(n_features):
        return n_components * LINEAR_BYTES // 8
    return n_features**2 * max(MIN_RESIDUAL_CHUNK, RESIDUAL_BYTES // (16 * (n_features + n_components)))


def scatter_of(x, family, weight=None, chunk_size=None):
    """Return the weighted sum of products of rows with themselves, in the form of one component and float64."""
    scatter = 0
    for block in blocks_of(x):
        for rows in chunks_within(block, x.shape[1], chunk_size):
            scatter = scatter + family.scatter(x[rows], None if weight is None else weight[rows]).to(torch.float64)
    return scatter


def _whitened(family, whitener, x):
    """Return a whitened copy of rows."""
    out = torch.empty_like(x)
    family.whiten(x, whitener, out)
    return out


class WhitenedRows(EMRows):
    """Samples in coordinates in which their covariance is the identity.

    EM does not depend on the coordinates, and in these products lose the fewest digits, whatever the units, offsets and
    correlations of the data. Sums are in float64.

    Where components are much narrower than the data in directions other than the axes, products of whitened rows lose
    the digits of the narrow directions: in float32 first. `refine` then reads the rows again in float64, and if this is
    not enough, in coordinates that only scale features, with residuals in place of products about the origin. There, a
    constant feature of a component remains exactly constant.

    Parameters
    ----------
    rows : WeightedRows
        Centred. A tensor may be overwritten; lazy rows are read again in every pass.
    family : Covariance
    reg_covar : float
        Regularization of the covariances, in squared units of x.
    covariance : Tensor, optional
        The covariance to become the identity, in the form of the family and float64; that of the rows if None.
    chunk_size : int, optional
        Rows visited at once.
    read_again : callable, dtype -> WeightedRows, optional
        Returns the centred rows in this dtype. Without it, rows cannot be refined.

    Attributes
    ----------
    is_whitened : bool
        Whether the covariance is the identity; else only variances are one.
    is_linear : bool
        Whether the linear form is the faster one, and as accurate.
    """

    def __init__(self, rows, family, reg_covar, covariance=None, *, chunk_size=None, read_again=None):
        x, weight, group = rows
        self.family, self.chunk_size, self.group = family, chunk_size, group
        self.reg_covar, self.covariance, self.read_again = reg_covar, covariance, read_again
        total_weight = float(len(x) if weight is None else weight.sum(dtype=torch.float64))
        self.n_rows, self.total_weight = group.all_reduce_sum(len(x), total_weight)
        self.n_features, self.n_linear = x.shape[1], family.n_linear_features(x.shape[1])
        self._set_rows(rows)

    def _set_rows(self, rows, whitens=True):
        """Choose coordinates for centred rows, and transform the rows to them."""
        x, weight, _ = rows
        family, scatter, covariance, self.weight = self.family, None, self.covariance, weight
        if covariance is None:
            (scatter,) = self.group.all_reduce_sum(scatter_of(x, family, weight, self.chunk_size))
            covariance = scatter / self.total_weight
        covariance = covariance + family.regularization(self.reg_covar, family.identity(covariance, self.n_features))
        whitener = family.whitener(covariance, MIN_WHITENED_TOLERANCE[x.dtype]) if whitens else None
        if whitener is None and x.dtype != torch.float64 and self.read_again is not None:
            self._set_rows(self.read_again(torch.float64), whitens)
            return
        self.is_whitened = whitener is not None
        self.is_linear = self.is_whitened and family.prefers_linear(self.n_features)
        self.can_refine = self.is_whitened and self.read_again is not None
        is_framed = not self.is_whitened and x.dtype == torch.float64
        self.min_tolerance = MIN_FRAMED_TOLERANCE if is_framed else MIN_TOLERANCE
        self.whitener = family.axis_whitener(family.variances(covariance)[0]) if whitener is None else whitener
        self.log_scale = float(family.log_scale(self.whitener, self.n_features))
        self.regularization = family.regularization(self.reg_covar, self.whitener)
        self._whiten(x)
        if family.tied and self.is_linear:
            # Scatter is transformed where this loses nothing, else summed again.
            scales = self.whitener.diagonal() if self.whitener.ndim == 2 else self.whitener
            if scatter is None or x.dtype != torch.float64 or scales.amax() > MAX_RATIO * scales.amin():
                (self.scatter,) = self.group.all_reduce_sum(scatter_of(self.x, family, weight, self.chunk_size))
            else:
                self.scatter = family.whiten_covariances(scatter, self.whitener)

    def _whiten(self, x):
        """Set x, in whitened coordinates, and the features of all rows if they are small enough to be stored."""
        n_samples, n_features = x.shape
        family, whitener = self.family, self.whitener.to(x.device, x.dtype)
        if is_lazy(x):
            self.x, self.features = x.map(partial(_whitened, family, whitener)), None
            return
        fits_cache = family.tied or n_samples * self.n_linear * x.element_size() <= CACHE_BYTES
        self.x, self.features = x, None
        if fits_cache and self.is_linear:
            self.features = x.new_empty(self.n_linear, n_samples)
            self.x = self.features[1 : n_features + 1].mT
        for rows in row_chunks(n_samples, n_features, self.chunk_size, LINEAR_BYTES):
            family.whiten(x[rows], whitener, self.x[rows])
            if self.features is not None:
                family.write_features(self.features[:, rows], n_features)

    def is_accurate_for(self, mixture):
        """Return whether products of these rows keep the digits that a mixture needs ()."""
        if not self.is_whitened or (self.x.dtype == torch.float64 and self.family.frame(mixture) is None):
            return mixture.means.new_ones(())  # there is no better form
        return self.family.condition_number(mixture) <= MAX_CONDITION[self.x.dtype]

    def linear_condition_number(self, mixture):
        """Return the condition number of the linear form (); zero where it is not used."""
        return self.family.linear_condition_number(mixture) if self.is_linear else mixture.means.new_zeros(())

    def needs_residuals(self, condition_number):
        """Return whether sums about the origin lose too many digits for a mixture of this condition number."""
        return not self.is_whitened or (self.is_linear and self._linear_dtype(condition_number) != self.x.dtype)

    def _linear_dtype(self, condition_number):
        """Return the dtype in which the linear form is accurate enough, or None."""
        for dtype in (self.x.dtype, torch.float64) if self.is_linear else ():
            if condition_number <= MAX_LINEAR_CONDITION[dtype]:
                return dtype
        return None

    def refine(self):
        """Read the rows again in a form that keeps more digits, in new coordinates; return whether there is one."""
        if not self.can_refine:
            return False
        whitens = self.x.dtype != torch.float64
        self.x = self.features = self.weight = None  # frees memory
        self._set_rows(self.read_again(torch.float64), whitens)
        return True

    def sums_from_resp(self, resp_of, n_components, mixture=None):
        """Return the sums for fixed responsibilities, as `EMRows` has it."""
        means = torch.zeros(n_components, self.n_features, dtype=self.x.dtype, device=self.x.device)
        frame = None
        if mixture is not None:
            means = mixture.means.to(means)
            frame = None if self.is_whitened else self.family.frame(mixture.to(means.device, means.dtype))
        if mixture is not None or not self.is_linear:
            moments = self.family.empty_moments(means)
            for block in blocks_of(self.x):
                self.accumulate(moments, resp_of, means, block, frame)
            moments = self.family.complete(type(moments)(*self.group.all_reduce_sum(*moments)))
            return EStepSums(moments, means.to(torch.float64), frame=None if frame is None else frame.to(torch.float64))
        sums = torch.zeros(n_components, self.n_linear, dtype=torch.float64, device=self.x.device)
        scatter = 0.0
        for block in blocks_of(self.x):
            for rows, parts in self.features_of(block, n_components, self.x.dtype):
                resp = self.weighted(resp_of(rows), rows)
                sums += _sums_of(resp.mT, parts)
                if self.family.tied:  # responsibilities may sum to less than one
                    scatter = scatter + self.family.scatter(self.x[rows], resp.sum(1)).to(sums)
        sums, scatter = self.group.all_reduce_sum(sums, scatter)
        return EStepSums(self.family.moments_of(sums, self.n_features, scatter), means.to(sums))

    def e_step_sums(self, mixtures, condition_numbers):
        """Return the sums of an E-step of several mixtures, as `EMRows` has it.

        Mixtures in the linear form share their products. Streamed rows are read once for all mixtures.
        """
        by_dtype = {}
        for index, number in enumerate(condition_numbers):
            by_dtype.setdefault(self._linear_dtype(number), []).append(index)
        residual = by_dtype.pop(None, [])
        passes = [
            (indices, _LinearPass(self, [mixtures[index] for index in indices], dtype))
            for dtype, indices in by_dtype.items()
        ]
        passes += [([index], _ResidualPass(self, mixtures[index])) for index in residual]
        for block in blocks_of(self.x):
            for _, one_pass in passes:
                one_pass.add(block)
        totals = iter(self.group.all_reduce_sum(*(part for _, one_pass in passes for part in one_pass.sums)))
        results = [None] * len(mixtures)
        for indices, one_pass in passes:
            one_pass.sums = [next(totals) for _ in one_pass.sums]
            for index, result in zip(indices, one_pass.results(), strict=True):
                results[index] = result
        return results

    def n_together(self, n_components):
        """Return the number of mixtures for which it pays to share an E-step."""
        if not isinstance(self.x, torch.Tensor):  # to read them costs more than larger products
            means = torch.zeros(n_components, self.n_features, device="meta")
            return max(1, TOGETHER_BYTES // (8 * self.family.empty_moments(means).second.numel()))
        if not self.is_linear:
            return 1
        return max(1, (LINEAR_BYTES // (8 * MIN_CHUNK) - self.n_linear) // n_components)

    def least_likely(self, mixture, n_rows):
        """Return the rows with the lowest density (n_rows, d)."""
        current, lowest, lowest_rows = mixture.to(self.x.device, self.x.dtype), None, None
        for block in blocks_of(self.x):
            chunks = self._chunks(block, len(mixture.means))
            log_likelihoods = torch.cat([e_step(self.x[rows], current, self.family)[0] for rows in chunks])
            values, indices = log_likelihoods.topk(min(n_rows, len(log_likelihoods)), largest=False)
            rows = self.x[block][indices]
            if lowest is not None:
                values, rows = torch.cat([lowest, values]), torch.cat([lowest_rows, rows])
                values, indices = values.topk(min(n_rows, len(values)), largest=False)
                rows = rows[indices]
            lowest, lowest_rows = values, rows
        return lowest_of_all(lowest, lowest_rows, self.group).to(mixture.means)

    def accumulate(self, moments, resp_of, means, block, frame=None):
        """Add the rows of a slice to moments about the means, in the residual form."""
        for rows in self._chunks(block, len(means)):
            self.family.accumulate(moments, self.x[rows], self.weighted(resp_of(rows), rows), means, frame)

    def features_of(self, block, n_components, dtype):
        """Yield slices and the features of their rows in parts (p_i, b), in memory that may be used for the next."""
        chunks = list(chunks_within(block, self.n_linear + n_components, self.chunk_size, n_bytes=LINEAR_BYTES))
        if self.features is not None and dtype == self.x.dtype:
            for rows in chunks:
                yield rows, [self.features[:, rows]]
            return
        if self.family.split_features(self.x[slice(block.start, block.start + 1)]) is not None:
            for rows in chunks:
                yield rows, self.family.split_features(self.x[rows].to(dtype))
            return
        size = self.n_linear, chunks[0].stop - chunks[0].start
        buffer = torch.empty(size, dtype=dtype, device=self.x.device)
        for rows in chunks:
            x = self.x[rows]
            features = buffer[:, : len(x)]
            features[1 : self.n_features + 1].copy_(x.mT)
            self.family.write_features(features, self.n_features)
            yield rows, [features]

    def weighted(self, resp, rows):
        """Return responsibilities times the weights of their rows."""
        resp = resp.to(self.x.dtype)
        return resp if self.weight is None else resp * self.weight[rows, None]

    def _chunks(self, block, n_components):
        n_columns = self.n_features + n_components
        n_rows = max(MIN_RESIDUAL_CHUNK, RESIDUAL_BYTES // (16 * n_columns))
        return chunks_within(block, n_columns, self.chunk_size or n_rows)


def joined(parts, axis=0):
    """Return tensors as one along an axis, without a copy of a single one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def _sums_of(resp, parts):
    """Return sums of features in parts (p_i, b), weighted by responsibilities (k, b)."""
    return joined([torch.mm(resp, part.mT) for part in parts], 1)


def _product(natural, parts):
    """Return natural parameters (k, p) times features in parts (p_i, b)."""
    if len(parts) == 1:
        return torch.mm(natural, parts[0])
    natural = natural.split([len(part) for part in parts], 1)
    product = torch.mm(natural[1], parts[1])
    for index in (0, *range(2, len(parts))):
        product.addmm_(natural[index], parts[index])
    return product


class _LinearPass:
    """E-steps of several mixtures with one product for all their components, and one for the sums."""

    def __init__(self, rows, mixtures, dtype):
        self.rows, self.mixtures, self.dtype = rows, mixtures, dtype
        self.natural = joined([rows.family.natural(mixture) for mixture in mixtures]).to(dtype)
        self.sums = [  # of features weighted by responsibilities, and of log-likelihoods
            self.natural.new_zeros(len(self.natural), rows.n_linear, dtype=torch.float64),
            self.natural.new_zeros(len(mixtures), dtype=torch.float64),
        ]

    def add(self, block):
        """Add the rows of a slice."""
        weight, floor = self.rows.weight, MIN_LOG_RESP[self.dtype]
        shape = len(self.mixtures), len(self.natural) // len(self.mixtures), -1
        for rows, parts in self.rows.features_of(block, len(self.natural), self.dtype):
            resp = _product(self.natural, parts).view(shape)  # (m, k, b), so that sums over components run along memory
            peak = resp.amax(1, keepdim=True)
            norm = resp.sub_(peak).clamp_(min=floor).exp_().sum(1, keepdim=True)
            log_likelihoods, scale = peak.add_(norm.log()), norm.reciprocal_()
            if weight is not None:
                log_likelihoods, scale = log_likelihoods * weight[rows], scale * weight[rows]
            self.sums[1] += log_likelihoods.sum((1, 2), dtype=torch.float64)
            self.sums[0] += _sums_of(resp.mul_(scale).flatten(0, 1), parts)

    def results(self):
        """Return an iterator over the `EStepSums` of the mixtures."""
        family, n_features = self.rows.family, self.rows.n_features
        sums = self.sums[0].split(len(self.natural) // len(self.mixtures))
        for mixture, part, total in zip(self.mixtures, sums, self.sums[1], strict=True):
            scatter = self.rows.scatter if family.tied else None
            moments = family.moments_of(part, n_features, scatter)
            yield EStepSums(moments, torch.zeros_like(mixture.means), total + family.common(mixture, scatter))


class _ResidualPass:
    """E-step of one mixture with residuals from its means; whitened residuals, where the rows are not whitened.

    Products of residuals lose the digits of what is narrower than their rounding. Products of residuals whitened by a
    component itself lose none, since the next component will be about as wide in all directions.
    """

    def __init__(self, rows, mixture):
        self.rows, self.mixture = rows, mixture.to(rows.x.device, rows.x.dtype)
        self.frame = None if rows.is_whitened else rows.family.frame(self.mixture)
        self.moments = rows.family.empty_moments(self.mixture.means)
        self.log_likelihood = self.moments.weight.new_zeros(())
        self.sums = [*self.moments, self.log_likelihood]

    def add(self, block):
        """Add the rows of a slice."""
        self.rows.accumulate(self.moments, self._resp_of, self.mixture.means, block, self.frame)

    def _resp_of(self, rows):
        log_likelihoods, log_resp = e_step(self.rows.x[rows], self.mixture, self.rows.family)
        self.log_likelihood += self.rows.weighted(log_likelihoods[:, None], rows).sum(dtype=torch.float64)
        return log_resp.clamp_(min=MIN_LOG_RESP[log_resp.dtype]).exp_()

    def results(self):
        """Return the `EStepSums`, in a list of one."""
        *moments, log_likelihood = self.sums
        moments = self.rows.family.complete(type(self.moments)(*moments))
        frame = None if self.frame is None else self.frame.to(torch.float64)
        return [EStepSums(moments, self.mixture.means.to(torch.float64), log_likelihood, frame)]
