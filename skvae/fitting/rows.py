"""Rows of data as EM sees them: in whitened coordinates, a chunk at a time."""

import torch

LINEAR_BYTES, RESIDUAL_BYTES = 2**21, 2**23  # what a chunk works on should stay in a cache
MIN_CHUNK = 256  # rows
MIN_RESIDUAL_CHUNK = 1024  # in which products with a matrix as large are still fast
CACHE_BYTES = 2**24  # features of all rows are kept if they need no more than this, or if they are but the rows
MAX_SPREAD = {torch.float32: 1e3, torch.float64: 1e5}  # beyond it the linear form loses too many digits
MIN_LOG_RESP = {torch.float32: -80.0, torch.float64: -700.0}  # exp of less is denormal: nothing, and 30 times slower
MAX_RATIO = 30.0  # of scales: beyond it the scatter of whitened rows is summed again, not transformed


def row_chunks(n_rows, n_columns, chunk_size=None, n_bytes=RESIDUAL_BYTES):
    """Slices that cover the rows; without a chunk size, as many rows as fit into a cache."""
    chunk_size = chunk_size or max(MIN_CHUNK, n_bytes // (8 * n_columns))
    return [slice(start, start + chunk_size) for start in range(0, n_rows, chunk_size)]


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
        for rows in row_chunks(len(x), x.shape[1], chunk_size)
    )
    return sum(part.to(torch.float64) for part in parts)


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

    EM does not depend on the coordinates, and in these it loses the fewest digits, whatever the units, offsets and
    correlations of the data. Sums are kept in float64.

    Parameters
    ----------
    x : Tensor of shape (n, d)
        Centred rows. They may be overwritten.
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
    """

    def __init__(self, x, family, reg_covar, weight=None, chunk_size=None, covariance=None):
        self.family, self.weight, self.chunk_size = family, weight, chunk_size
        self.total_weight = float(len(x) if weight is None else weight.sum(dtype=torch.float64))
        scatter = None
        if covariance is None:
            scatter = scatter_of(x, family, weight, chunk_size)
            covariance = scatter / self.total_weight
        unit = family.identity(covariance, x.shape[1])
        self.whitener = family.whitener(covariance + family.regularization(reg_covar, unit))
        self.log_scale = float(family.log_scale(self.whitener, x.shape[1]))
        self.regularization = family.regularization(reg_covar, self.whitener)
        self._whiten(x)
        if family.tied:
            self.scatter = self._whitened_scatter(scatter)

    def moments(self, resp_of, n_components):
        """Moments for given responsibilities, and the reference that they are about.

        Parameters
        ----------
        resp_of : callable, slice -> Tensor (b, k)
            Responsibilities of the rows of a slice.
        """
        means = self.x.new_zeros(n_components, self.x.shape[1])
        if not self._is_linear():
            return self._residual_moments(resp_of, means)
        sums, scatter = self._sums(n_components), 0.0
        for rows, parts in self._features(n_components, self.x.dtype):
            resp = self._weighted(resp_of(rows), rows)
            sums += _sums_of(resp.mT, parts)
            if self.family.tied:  # responsibilities may sum to less than one: a start may use some rows only
                scatter = scatter + self.family.scatter(self.x[rows], resp.sum(1)).to(sums)
        return self.family.moments_of(sums, self.x.shape[1], scatter), means.to(sums)

    def expect(self, mixtures):
        """E-step of several mixtures: for each, moments, the reference that they are about, and the log-likelihood.

        Mixtures in the linear form share their passes over the rows.
        """
        found, dtypes = [None] * len(mixtures), [self._linear_dtype(mixture) for mixture in mixtures]
        for dtype in {*dtypes} - {None}:
            together = [index for index in range(len(mixtures)) if dtypes[index] == dtype]
            sums = self._expect_linear([mixtures[index] for index in together], dtype)
            for index, part in zip(together, sums, strict=True):
                found[index] = part
        for index, dtype in enumerate(dtypes):
            if dtype is None:
                found[index] = self._expect_residual(mixtures[index])
        return found

    def n_together(self, n_components):
        """How many mixtures it pays to give to `expect` at once."""
        if not self._is_linear():
            return 1
        n_linear = self.family.n_linear_features(self.x.shape[1])
        return max(1, (LINEAR_BYTES // (8 * MIN_CHUNK) - n_linear) // n_components)

    def least_likely(self, mixture, n_rows):
        """The rows with the lowest density (n_rows, d)."""
        current = mixture.to(self.x)
        evidence = [e_step(self.x[rows], current, self.family)[0] for rows in self._chunks(len(mixture.means))]
        return self.x[torch.cat(evidence).topk(n_rows, largest=False).indices].to(mixture.means)

    def _linear_dtype(self, mixture):
        """The dtype in which the linear form is accurate enough, or None."""
        if not self._is_linear():
            return None
        spread = self.family.spread(mixture)
        return next((dtype for dtype in (self.x.dtype, torch.float64) if spread <= MAX_SPREAD[dtype]), None)

    def _expect_linear(self, mixtures, dtype):
        """E-steps with one product for all components of all mixtures, and one for their sums."""
        k, n_features = mixtures[0].means.shape
        shape, floor = (len(mixtures), k, -1), MIN_LOG_RESP[dtype]
        natural = torch.cat([self.family.natural(mixture) for mixture in mixtures]).to(dtype)
        sums, totals = self._sums(len(natural)), natural.new_zeros(len(mixtures), dtype=torch.float64)
        for rows, parts in self._features(len(natural), dtype):
            resp = _product(natural, parts).view(shape)  # (m, k, b), so that sums over components run along memory
            peak = resp.amax(1, keepdim=True)
            norm = resp.sub_(peak).clamp_(min=floor).exp_().sum(1, keepdim=True)
            evidence, scale = peak.add_(norm.log()), norm.reciprocal_()
            if self.weight is not None:
                evidence, scale = evidence * self.weight[rows], scale * self.weight[rows]
            totals += evidence.sum((1, 2), dtype=torch.float64)
            sums += _sums_of(resp.mul_(scale).flatten(0, 1), parts)
        for mixture, part, total in zip(mixtures, sums.split(k), totals, strict=True):
            shared = self.scatter if self.family.tied else None
            total = total + self.family.common(mixture, shared)
            yield self.family.moments_of(part, n_features, shared), torch.zeros_like(mixture.means), float(total)

    def _expect_residual(self, mixture):
        current, total = mixture.to(self.x), 0.0

        def resp_of(rows):
            nonlocal total
            evidence, log_resp = e_step(self.x[rows], current, self.family)
            total = total + self._weighted(evidence[:, None], rows).sum(dtype=torch.float64)
            return log_resp.exp()

        return *self._residual_moments(resp_of, current.means), float(total)

    def _residual_moments(self, resp_of, means):
        moments = self.family.empty_moments(means)
        for rows in self._chunks(len(means)):
            self.family.accumulate(moments, self.x[rows], self._weighted(resp_of(rows), rows), means)
        return self.family.complete(moments), means.to(torch.float64)

    def _is_linear(self):
        return self.family.prefers_linear(self.x.shape[1])

    def _whiten(self, x):
        """Set x, in whitened coordinates, and the features of all rows if they are small enough to be kept."""
        n_samples, n_features = x.shape
        n_linear, whitener = self.family.n_linear_features(n_features), self.whitener.to(x)
        keep = self.family.tied or n_samples * n_linear * x.element_size() <= CACHE_BYTES
        self.x, self.features = x, None
        if keep and self.family.prefers_linear(n_features):
            self.features = x.new_empty(n_linear, n_samples)
            self.x = self.features[1 : n_features + 1].mT
        for rows in row_chunks(n_samples, n_features, self.chunk_size, LINEAR_BYTES):
            self.family.whiten(x[rows], whitener, self.x[rows])
            if self.features is not None:
                self.family.write_features(self.features[:, rows], n_features)

    def _features(self, n_components, dtype):
        """Slices, and the features of their rows in parts (p_i, b), in memory that may be used again for the next."""
        n_linear = self.family.n_linear_features(self.x.shape[1])
        chunks = row_chunks(len(self.x), n_linear + n_components, self.chunk_size, LINEAR_BYTES)
        if self.features is not None and dtype == self.x.dtype:
            yield from ((rows, [self.features[:, rows]]) for rows in chunks)
            return
        if self.family.split_features(self.x[:1]) is not None:
            yield from ((rows, self.family.split_features(self.x[rows].to(dtype))) for rows in chunks)
            return
        buffer = self.x.new_empty(n_linear, min(len(self.x), chunks[0].stop), dtype=dtype)
        for rows in chunks:
            x = self.x[rows]
            features = buffer[:, : len(x)]
            features[1 : x.shape[1] + 1].copy_(x.mT)
            self.family.write_features(features, x.shape[1])
            yield rows, [features]

    def _sums(self, n_components):
        n_linear = self.family.n_linear_features(self.x.shape[1])
        return self.x.new_zeros(n_components, n_linear, dtype=torch.float64)

    def _whitened_scatter(self, scatter):
        """Scatter of the whitened rows: from that of the rows where this loses nothing, else summed again."""
        scales = self.whitener.diagonal() if self.whitener.ndim == 2 else self.whitener
        if scatter is None or self.x.dtype != torch.float64 or scales.amax() > MAX_RATIO * scales.amin():
            return scatter_of(self.x, self.family, self.weight, self.chunk_size)
        return self.family.whiten_covariances(scatter, self.whitener)

    def _weighted(self, resp, rows):
        return resp if self.weight is None else resp * self.weight[rows, None]

    def _chunks(self, n_components):
        n_rows = max(MIN_RESIDUAL_CHUNK, RESIDUAL_BYTES // (16 * (self.x.shape[1] + n_components)))
        return row_chunks(len(self.x), self.x.shape[1] + n_components, self.chunk_size or n_rows)
