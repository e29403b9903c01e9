"""Detectors that need no labels: a window or an accumulator against a reference, exact at every step.

The reference is given (from a model package or a sample) or learned from the first `warm_up` values on the device.
"""

from libc.math cimport NAN, exp, fabs, lgamma, log, sqrt
from libc.stdint cimport int32_t
from libc.stdlib cimport free, qsort
from libc.string cimport memcpy, memmove, memset

cimport cython

from .core cimport allocate, as_bytes, count_below, finite_array, natural, number, restore, ring_place, usable
from .drift cimport POLICY_REBASE, Detector

import numpy as np

from tinylcm.errors import ConfigError
from tinylcm.types import HistogramPair

from .stats import Histogram

cdef enum:
    KIND_PSI = 0
    KIND_JS = 1
    KIND_CHI = 2
    BINS_MAX = 65535
    LOGS_MAX = 4096
    POINTS_MAX = 65536
    SIGNALS_MAX = 4096

cdef double LN2 = log(2.0)


cdef int _compare(const void* a, const void* b) noexcept nogil:
    cdef double x = (<const double*>a)[0], y = (<const double*>b)[0]
    return (x > y) - (x < y)


cdef int _check(object self, double threshold, Py_ssize_t window, Py_ssize_t window_max) except -1:
    if not threshold > 0 or not 1 <= window <= window_max:
        raise ConfigError(f"{type(self).__name__}: expected threshold > 0 and a window of 1 to {window_max}")


def upper_gamma(double a, double x):
    """Regularised upper incomplete gamma function Q(a, x) by series or continued fraction (DLMF 8.11, 8.9)."""
    cdef double term, total, b, c, d, h, step, n
    cdef int i, _i
    if not x > 0:
        return 1.0
    if x < a + 1:
        term = total = 1.0 / a
        n = a
        for _i in range(2000):
            n += 1
            term *= x / n
            total += term
            if term < total * 1e-16:
                break
        return max(0.0, 1.0 - total * exp(-x + a * log(x) - lgamma(a)))
    b = x + 1 - a
    c = 1e300
    d = 1 / b
    h = d
    for i in range(1, 2000):
        step = -i * (i - a)
        b += 2
        d = step * d + b
        if fabs(d) < 1e-300:
            d = 1e-300
        c = b + step / c
        if fabs(c) < 1e-300:
            c = 1e-300
        d = 1 / d
        h *= d * c
        if fabs(d * c - 1) < 1e-15:
            break
    return exp(-x + a * log(x) - lgamma(a)) * h


def kolmogorov(double statistic, double n, double m):
    """Asymptotic p-value of a two-sample KS distance (Kolmogorov 1933; Stephens 1970 for small samples)."""
    cdef double effective = sqrt(n * m / (n + m))
    cdef double x = (effective + 0.12 + 0.11 / effective) * statistic, total = 0.0, term
    cdef int k
    if x < 0.2:
        return 1.0
    for k in range(1, 101):
        term = exp(-2.0 * k * k * x * x)
        total += term if k & 1 else -term
        if term < 1e-17:
            break
    return min(1.0, max(0.0, 2 * total))


# one signal in a sliding window ---------------------------------------------------------------------------


cdef class Windowed(Detector):
    """Base: a sliding window of one signal against a reference that is given or learned."""

    cdef readonly Py_ssize_t window, warm_up
    cdef double _threshold, _statistic
    cdef double* _buffer
    cdef Py_ssize_t _learned
    cdef bint _ready, _given

    def __dealloc__(self):
        free(self._buffer)

    cdef int _prepare(self, double threshold, Py_ssize_t window, Py_ssize_t window_max, Py_ssize_t warm_up,
                      object policy, bint given) except -1:
        _check(self, threshold, window, window_max)
        self._set_policy(policy)
        if (not given or self._policy == POLICY_REBASE) and not 20 <= warm_up <= POINTS_MAX:
            raise ConfigError(f"{type(self).__name__}: warm_up is {warm_up}, expected 20 to {POINTS_MAX}")
        self._threshold = threshold
        self.window = window
        self.warm_up = warm_up
        self._given = self._ready = given
        self._statistic = NAN
        if not given or self._policy == POLICY_REBASE:
            self._buffer = <double*>allocate(warm_up, sizeof(double))

    cdef bint _fit(self, double* values, Py_ssize_t n) noexcept nogil:
        """Make the reference from sorted values; False when they do not suffice."""
        return False

    cdef int _slide(self, double x) noexcept nogil:
        """Move the window by one value and set the statistic; 1 when the value is unusable."""
        return 0

    cdef void _forget(self) noexcept nogil:
        """Empty the window."""
        pass

    cdef void _begin(self) noexcept nogil:
        if self._policy == POLICY_REBASE:
            self._ready = False
            self._learned = 0
        self._statistic = NAN
        self._armed = self.warning_detected = False
        self._forget()

    cdef int _step(self, double x) noexcept nogil:
        cdef int status
        if not self._ready:
            self._buffer[self._learned] = x
            self._learned += 1
            if self._learned == self.warm_up:
                qsort(self._buffer, <size_t>self._learned, sizeof(double), _compare)
                self._ready = self._fit(self._buffer, self._learned)
                self._learned = 0
            return 0
        status = self._slide(x)
        if status == 0 and self._statistic == self._statistic:
            self._judge(self._statistic, self._threshold)
            if self.drift_detected:
                self.suspect = self.index - self.window
        return status

    cdef double _value(self):
        return self._statistic

    cdef double _limit(self):
        return self._threshold

    cdef list _own(self):
        return [bool(self._ready), self._learned,
                as_bytes(self._buffer, self._learned * sizeof(double)) if self._learned else b"",
                None if self._statistic != self._statistic else self._statistic, self._part()]

    cdef int _own_load(self, list fields) except -1:
        cdef Py_ssize_t i
        ready, learned, buffer, statistic, part = fields
        if type(ready) is not bool or (not ready and self._buffer is NULL):
            raise ValueError("no reference")
        self._ready = ready
        self._learned = natural(learned, self.warm_up - 1 if self._buffer is not NULL else 0)
        restore(self._buffer, buffer, self._learned * sizeof(double))
        for i in range(self._learned):
            number(self._buffer[i])
        self._statistic = NAN if statistic is None else number(statistic)
        self._part_load(part)

    cdef list _part(self):
        """A detector's reference, where it was learned, and window."""
        return []

    cdef int _part_load(self, list fields) except -1:
        return 0


cdef class Binned(Windowed):
    """Base: shares of the window's bins against the reference's; the statistic is a sum of one term a bin.

    A slide touches two bins at most; the sum is built anew once a round, so that rounding does not grow.
    """

    cdef readonly Py_ssize_t bins
    cdef readonly double smoothing
    cdef object _names, _origin
    cdef int _kind
    cdef Py_ssize_t _bins_max, _used, _place
    cdef bint _categories
    cdef double _total, _scale, _reference_total
    cdef double* _edges       # bins + 1
    cdef double* _counts_ref  # as given
    cdef double* _shares      # of the reference, as the terms want them
    cdef double* _log_shares
    cdef double* _terms
    cdef double* _logs        # of the window's smoothed shares by count, for windows up to LOGS_MAX
    cdef int* _counts
    cdef unsigned short* _recent

    def __dealloc__(self):
        free(self._edges)
        free(self._counts_ref)
        free(self._shares)
        free(self._log_shares)
        free(self._terms)
        free(self._logs)
        free(self._counts)
        free(self._recent)

    cdef int _make(self, int kind, object edges, object counts, double threshold, Py_ssize_t window, double smoothing,
                   Py_ssize_t bins, Py_ssize_t warm_up, object policy, bint categories) except -1:
        cdef Py_ssize_t i
        cdef bint given = counts is not None
        name = type(self).__name__
        if not 0 <= smoothing <= 1e6 or (kind == KIND_PSI and smoothing == 0):
            raise ConfigError(f"{name}: smoothing is {smoothing}, expected more than 0")
        self._kind = kind
        self._prepare(threshold, window, 1 << 24, warm_up, policy, given)
        self._categories = categories
        self.smoothing = smoothing
        if given:
            shares = finite_array(self, counts, "counts", 1)
            bins = shares.size
            if shares.min() < 0 or not shares.sum() > 0:
                raise ConfigError(f"{name}: reference counts must not be negative nor all zero")
            if not categories:
                lines = finite_array(self, edges, "edges", 1)
                if lines.size != bins + 1 or not np.all(np.diff(lines) > 0):
                    raise ConfigError(f"{name}: edges must rise and be one more than the counts")
        elif edges is not None:
            raise ConfigError(f"{name}: edges without counts")
        if not 2 <= bins <= BINS_MAX:
            raise ConfigError(f"{name}: expected 2 to {BINS_MAX} bins, got {bins}")
        self._bins_max = self.bins = bins
        self._edges = <double*>allocate(bins + 1, sizeof(double))
        self._counts_ref = <double*>allocate(bins, sizeof(double))
        self._shares = <double*>allocate(bins, sizeof(double))
        self._log_shares = <double*>allocate(bins, sizeof(double))
        self._terms = <double*>allocate(bins, sizeof(double))
        self._counts = <int*>allocate(bins, sizeof(int))
        self._recent = <unsigned short*>allocate(window, sizeof(unsigned short))
        self._scale = 1.0 / (window + bins * smoothing)
        if kind != KIND_CHI and window <= LOGS_MAX:
            self._logs = <double*>allocate(window + 1, sizeof(double))
        if given:
            for i in range(bins):
                self._counts_ref[i] = shares[i]
            if not categories:
                for i in range(bins + 1):
                    self._edges[i] = lines[i]
            self._origin = (None if categories else lines.tolist(), shares.tolist())
            self._weigh()

    cdef void _weigh(self) noexcept nogil:
        """Bring the reference to the window's size and smooth it, so that both sides are smoothed alike."""
        cdef Py_ssize_t i
        self._reference_total = 0.0
        for i in range(self.bins):
            self._reference_total += self._counts_ref[i]
        self._scale = 1.0 / (self.window + self.bins * self.smoothing)
        for i in range(self.bins):
            self._shares[i] = (self._counts_ref[i] / self._reference_total * self.window + self.smoothing) * self._scale
            self._log_shares[i] = log(self._shares[i]) if self._shares[i] > 0 else 0.0
        if self._logs is not NULL:  # the scale depends on the number of bins, which a learned reference may lower
            for i in range(self.window + 1):
                self._logs[i] = log((i + self.smoothing) * self._scale) if i + self.smoothing > 0 else 0.0

    cdef bint _fit(self, double* values, Py_ssize_t n) noexcept nogil:
        cdef Py_ssize_t i, j = 0, used = 0, at
        cdef double edge
        if self._categories:
            memset(self._counts_ref, 0, <size_t>self._bins_max * sizeof(double))
            for i in range(n):
                if 0 <= values[i] < self._bins_max:
                    self._counts_ref[<Py_ssize_t>values[i]] += 1
            self._weigh()
            return True
        # Bins of equal frequency: inner edges at order statistics, fewer where values are equal.
        self._edges[0] = values[0]
        for i in range(1, self._bins_max):
            at = i * n // self._bins_max
            edge = values[at - 1]
            if edge > self._edges[used] and edge < values[n - 1]:
                used += 1
                self._edges[used] = edge
        if values[n - 1] > self._edges[used]:
            used += 1
            self._edges[used] = values[n - 1]
        if used < 2:
            return False
        self.bins = used
        for i in range(used):
            self._counts_ref[i] = 0.0
        for i in range(n):
            while j < used - 1 and values[i] > self._edges[j + 1]:
                j += 1
            self._counts_ref[j] += 1
        self._weigh()
        return True

    cdef inline Py_ssize_t _bin(self, double x) noexcept nogil:
        """Index of the bin; -1 when it is none."""
        cdef Py_ssize_t bin
        if self._categories:
            bin = <Py_ssize_t>x if 0 <= x < self.bins else -1
            return bin if bin == x else -1
        return count_below(self._edges + 1, self.bins - 1, x)

    cdef inline double _term(self, Py_ssize_t bin) noexcept nogil:
        cdef double p, q, m, result = 0.0
        if self._kind == KIND_PSI:
            p = (self._counts[bin] + self.smoothing) * self._scale
            m = self._logs[self._counts[bin]] if self._logs is not NULL else log(p)
            return (p - self._shares[bin]) * (m - self._log_shares[bin])
        if self._kind == KIND_JS:
            p = (self._counts[bin] + self.smoothing) * self._scale
            q = self._shares[bin]
            if p + q == 0:
                return 0.0
            if p > 0:
                m = self._logs[self._counts[bin]] if self._logs is not NULL else log(p)
                result = p * m
            return 0.5 * (result + q * self._log_shares[bin] - (p + q) * log(0.5 * (p + q)))
        # The 2 x bins table's chi-square with the row totals known: one term a column.
        p = self._counts[bin]
        q = self._counts_ref[bin]
        if p + q == 0:
            return 0.0
        m = p * self._reference_total - q * self.window
        return m * m / ((p + q) * self._reference_total * self.window)

    cdef inline double _finish(self, double total) noexcept nogil:
        if self._kind == KIND_JS:
            return sqrt(total / LN2) if total > 0 else 0.0
        return total

    cdef void _rebuild(self) noexcept nogil:
        cdef Py_ssize_t i
        self._total = 0.0
        for i in range(self.bins):
            self._terms[i] = self._term(i)
            self._total += self._terms[i]

    cdef int _slide(self, double x) noexcept nogil:
        cdef Py_ssize_t bin = self._bin(x), out
        if bin < 0:
            return 1
        if self._used < self.window:
            self._counts[bin] += 1
            self._used += 1
        else:
            out = self._recent[self._place]
            if out != bin:
                self._counts[out] -= 1
                self._counts[bin] += 1
                self._total -= self._terms[out] + self._terms[bin]
                self._terms[out] = self._term(out)
                self._terms[bin] = self._term(bin)
                self._total += self._terms[out] + self._terms[bin]
        self._recent[self._place] = <unsigned short>bin
        self._place += 1
        if self._place == self.window:
            self._place = 0
            self._rebuild()
        if self._used == self.window:
            self._statistic = self._finish(self._total)
        return 0

    cdef void _forget(self) noexcept nogil:
        memset(self._counts, 0, <size_t>self._bins_max * sizeof(int))
        self._used = self._place = 0

    @property
    def histogram(self):
        """The reference beside the window's counts, as a `HistogramPair`; None before there is a reference."""
        cdef Py_ssize_t i
        if not self._ready:
            return None
        return HistogramPair(
            tuple([self._counts_ref[i] for i in range(self.bins)]),
            tuple([float(self._counts[i]) for i in range(self.bins)]),
            () if self._categories else tuple([self._edges[i] for i in range(self.bins + 1)]),
            self._names or (),
        )

    cdef list _common(self):
        return [self._threshold, self.window, self.smoothing]

    cdef list _part(self):
        reference = None
        if self._ready and (not self._given or self._policy == POLICY_REBASE):
            reference = [self.bins, as_bytes(self._edges, (self._bins_max + 1) * 8),
                         as_bytes(self._counts_ref, self._bins_max * 8)]
        return [reference, self._used, self._place, self._total, as_bytes(self._terms, self._bins_max * 8),
                as_bytes(self._recent, self._used * sizeof(unsigned short))]

    cdef int _part_load(self, list fields) except -1:
        cdef Py_ssize_t i
        reference, used, place, total, terms, recent = fields
        if reference is not None:
            bins, edges, counts = reference
            self.bins = natural(bins, self._bins_max)
            if self.bins < 2:
                raise ValueError("no bins")
            restore(self._edges, edges, (self._bins_max + 1) * 8)
            restore(self._counts_ref, counts, self._bins_max * 8)
            for i in range(self.bins):
                if not 0 <= self._counts_ref[i] <= 1e140 or (
                    not self._categories and not self._edges[i + 1] > self._edges[i]
                ):
                    raise ValueError("the reference is none")
            self._weigh()
        self._used = natural(used, self.window)
        self._place = ring_place(place, self._used, self.window)
        self._total = number(total)
        restore(self._terms, terms, self._bins_max * 8)
        restore(self._recent, recent, self._used * sizeof(unsigned short))
        for i in range(self._used):
            if self._recent[i] >= self.bins:
                raise ValueError("a bin is out of range")
            self._counts[self._recent[i]] += 1


cdef list _of_reference(object values, Py_ssize_t bins):
    histogram = Histogram.from_reference(values, bins)
    histogram.update_many(np.asarray(values, dtype=np.float64).ravel())
    return [histogram.edges, histogram.get()]


@cython.final
cdef class PSI(Binned):
    """Population stability index of the newest `window` numbers, exact at every step.

    PSI = sum over bins of (p - q) ln(p / q), the symmetric Kullback-Leibler divergence of the smoothed shares
    (Kullback and Leibler 1951; known under this name from credit scoring, Siddiqi 2006). The reference is brought to
    the window's size first and `smoothing` is added to each count of both sides, so that an empty bin gives a large
    but finite term.

    Args:
        edges: rising bin edges, one more than counts; what lies outside counts in the outermost bins, and a value on
            an edge counts below it. None, with counts: learn `bins` bins of equal frequency from `warm_up` values.
        counts: the reference's count or share in each bin.
        threshold: value above which it alarms. Credit scoring's habitual 0.2 is for larger samples: with 16 bins and a
            window of 200 chance alone gets there every 15,000 independent values.
        window: newest values that are compared, 1 to 2**24.
        smoothing: pseudo-count, > 0.
        bins, warm_up: of a reference that is learned.
        policy: how it is armed again.

    Raises:
        ConfigError: a parameter is out of range.

    >>> detector = PSI([0.0, 1.0, 2.0], [50, 50], threshold=0.2, window=20)
    >>> detector.update_many([0.5, 1.5] * 20 + [0.5] * 20)
    [48]
    """

    def __cinit__(self, edges=None, counts=None, double threshold=0.25, Py_ssize_t window=200, double smoothing=0.5,
                  Py_ssize_t bins=16, Py_ssize_t warm_up=1000, policy="latch"):
        self._make(KIND_PSI, edges, counts, threshold, window, smoothing, bins, warm_up, policy, False)

    @staticmethod
    def from_reference(values, Py_ssize_t bins=16, **parameters):
        """A detector with bins of equal frequency on reference values `[n]`; other parameters as the class's."""
        return PSI(*_of_reference(values, bins), **parameters)

    cdef list _config(self):
        return [*(self._origin or (None, None)), *self._common(), self._bins_max, self.warm_up, self.policy]


@cython.final
cdef class CategoricalPSI(Binned):
    """PSI of the newest `window` categories against a reference: see `PSI`.

    Args:
        reference: count or share of each category, not all zero; a number: learn the shares of so many categories.
        threshold, window, smoothing, warm_up, policy: as for `PSI`.
        labels: the categories' names, for the evidence.

    `update` takes a category's index, 0 to k - 1; any other number is passed over and counted.

    >>> detector = CategoricalPSI([50, 50], threshold=0.2, window=20)
    >>> detector.update_many([0, 1] * 20 + [0] * 20)
    [48]
    """

    def __cinit__(self, reference, double threshold=0.2, Py_ssize_t window=200, double smoothing=0.5, labels=(),
                  Py_ssize_t warm_up=1000, policy="latch"):
        cdef bint learn = isinstance(reference, int)
        self._make(KIND_PSI, None, None if learn else reference, threshold, window, smoothing,
                   reference if learn else 2, warm_up, policy, True)
        self._names = tuple([str(label) for label in labels])

    cdef list _config(self):
        return [self._origin[1] if self._origin else self._bins_max, *self._common(), list(self._names), self.warm_up,
                self.policy]


@cython.final
cdef class JensenShannon(Binned):
    """Jensen-Shannon distance of the newest `window` numbers from a reference, 0 to 1, exact at every step.

    The square root of the divergence to base 2 (Lin 1991; Endres and Schindelin 2003): `scipy.spatial.distance.
    jensenshannon(p, q, base=2)` of the shares of the bins.

    Args:
        edges, counts, threshold, window, bins, warm_up, policy: as for `PSI`.
        smoothing: pseudo-count, 0 or more; it needs none.
    """

    def __cinit__(self, edges=None, counts=None, double threshold=0.25, Py_ssize_t window=200, double smoothing=0.0,
                  Py_ssize_t bins=16, Py_ssize_t warm_up=1000, policy="latch"):
        self._make(KIND_JS, edges, counts, threshold, window, smoothing, bins, warm_up, policy, False)

    @staticmethod
    def from_reference(values, Py_ssize_t bins=16, **parameters):
        """A detector with bins of equal frequency on reference values `[n]`; other parameters as the class's."""
        return JensenShannon(*_of_reference(values, bins), **parameters)

    cdef list _config(self):
        return [*(self._origin or (None, None)), *self._common(), self._bins_max, self.warm_up, self.policy]


@cython.final
cdef class ChiSquare(Binned):
    """Pearson's chi-square of the newest `window` categories against reference counts, exact at every step.

    The homogeneity test of a 2 x k table (Pearson 1900), as `scipy.stats.chi2_contingency(correction=False)`.
    `p_value` holds for one look at independent values.

    Args:
        reference: *counts* of each category (shares would make the reference a sample of one); a number: learn the
            counts of so many categories.
        threshold: chi-square above which it alarms.
        window, labels, warm_up, policy: as for `CategoricalPSI`.
    """

    def __cinit__(self, reference, double threshold, Py_ssize_t window=200, labels=(), Py_ssize_t warm_up=1000,
                  policy="latch"):
        cdef bint learn = isinstance(reference, int)
        self._make(KIND_CHI, None, None if learn else reference, threshold, window, 0.0,
                   reference if learn else 2, warm_up, policy, True)
        self._names = tuple([str(label) for label in labels])

    @property
    def degrees(self):
        """Degrees of freedom: categories that came at all, less one."""
        cdef Py_ssize_t i, used = 0
        for i in range(self.bins):
            used += self._counts[i] + self._counts_ref[i] > 0
        return max(used - 1, 1)

    @property
    def p_value(self):
        """Of the present statistic; None before the window is full."""
        if self._statistic != self._statistic:
            return None
        return upper_gamma(self.degrees / 2.0, self._statistic / 2)

    cdef list _config(self):
        return [self._origin[1] if self._origin else self._bins_max, self._threshold, self.window, list(self._names),
                self.warm_up, self.policy]


cdef int _points(object self, object reference, double** place, Py_ssize_t* count) except -1:
    """Sorted reference values of a detector."""
    cdef Py_ssize_t i
    cdef double[::1] view
    array = np.sort(finite_array(self, reference, "the reference", 1))
    if not 2 <= array.size <= POINTS_MAX:
        raise ConfigError(f"{type(self).__name__}: the reference has {array.size} values, expected 2 to {POINTS_MAX}")
    view = array
    count[0] = array.size
    place[0] = <double*>allocate(array.size, sizeof(double))
    for i in range(array.size):
        place[0][i] = view[i]


cdef struct Node:
    int32_t total, high, low


@cython.final
cdef class IncrementalKS(Windowed):
    """Kolmogorov-Smirnov distance of the newest `window` values from a fixed reference, exact with ties.

    D = sup |F_reference - F_window| (Smirnov 1939), as `scipy.stats.ks_2samp`. The difference of the two step
    functions is a running sum over the reference's points, each taken just before and at it; a tree over these sums
    keeps their extremes in whole numbers, so a value costs O(log n) and nothing is ever rounded (the idea of an
    incremental KS is dos Reis et al., KDD 2016).

    Args:
        reference: values `[n]`, n at most 65,536 and n * window below 2**31; None: learn `warm_up` values.
        threshold: distance above which it alarms, 0 to 1.
        window: newest values that are compared, 1 to 65,536.
        warm_up: values of a reference that is learned.
        policy: how it is armed again.

    `p_value` is the asymptotic one of a single look at independent values.

    >>> import numpy as np
    >>> detector = IncrementalKS(np.arange(100), threshold=0.5, window=10)
    >>> detector.update_many(np.full(10, 90.0)), round(detector.statistic, 3)
    ([9], 0.9)
    """

    cdef double* _reference
    cdef double* _recent
    cdef int32_t* _leaf_of
    cdef Node* _tree
    cdef Py_ssize_t _n, _leaves, _used, _place
    cdef object _origin

    def __cinit__(self, reference=None, double threshold=0.2, Py_ssize_t window=200, Py_ssize_t warm_up=1000,
                  policy="latch"):
        self._prepare(threshold, window, POINTS_MAX, warm_up, policy, reference is not None)
        if not threshold < 1:
            raise ConfigError(f"IncrementalKS: threshold is {threshold}, expected 0 < threshold < 1")
        if reference is not None:
            _points(self, reference, &self._reference, &self._n)
            if self._policy == POLICY_REBASE and self._n != warm_up:
                raise ConfigError("IncrementalKS: with policy rebase the reference has warm_up values")
        else:
            self._n = warm_up
            self._reference = <double*>allocate(warm_up, sizeof(double))
        if self._n * window >= 1 << 31:
            raise ConfigError("IncrementalKS: the reference's size times the window must be below 2**31")
        self._leaves = 1
        while self._leaves < 2 * self._n:
            self._leaves *= 2
        self._tree = <Node*>allocate(2 * self._leaves, sizeof(Node))
        self._recent = <double*>allocate(window, sizeof(double))
        self._leaf_of = <int32_t*>allocate(window, sizeof(int32_t))
        self._forget()
        if reference is not None:
            self._origin = [self._reference[i] for i in range(self._n)]

    def __dealloc__(self):
        free(self._reference)
        free(self._recent)
        free(self._leaf_of)
        free(self._tree)

    cdef bint _fit(self, double* values, Py_ssize_t n) noexcept nogil:
        memcpy(self._reference, values, <size_t>n * sizeof(double))
        self._forget()
        return True

    cdef void _forget(self) noexcept nogil:
        """The tree of an empty window: leaf 2 i is the step just before point i, leaf 2 i + 1 the step at it.

        Of equal points the first carries the step of all.
        """
        cdef Py_ssize_t i, first = 0
        memset(self._tree, 0, <size_t>(2 * self._leaves) * sizeof(Node))
        for i in range(self._n):
            if self._reference[i] != self._reference[first]:
                first = i
            self._tree[self._leaves + 2 * first + 1].total += <int32_t>self.window
        for i in range(self._leaves, 2 * self._leaves):
            self._tree[i].high = self._tree[i].low = self._tree[i].total
        for i in range(self._leaves - 1, 0, -1):
            self._join(i)
        self._used = self._place = 0

    cdef inline void _join(self, Py_ssize_t at) noexcept nogil:
        cdef Node* left = &self._tree[2 * at]
        cdef Node* right = left + 1
        cdef int32_t high = left.total + right.high, low = left.total + right.low
        self._tree[at].total = left.total + right.total
        self._tree[at].high = left.high if left.high > high else high
        self._tree[at].low = left.low if left.low < low else low

    cdef inline Py_ssize_t _leaf(self, double x) noexcept nogil:
        """Where a window's value steps: at the first point equal to it, else before the first that is greater."""
        cdef Py_ssize_t place = count_below(self._reference, self._n, x)
        if place == self._n:
            return -1  # above all of them: no step that matters
        return 2 * place + (1 if self._reference[place] == x else 0)

    cdef inline void _set(self, Py_ssize_t at, int32_t step) noexcept nogil:
        self._tree[at].total += step
        self._tree[at].high = self._tree[at].low = self._tree[at].total

    cdef inline void _climb(self, Py_ssize_t at) noexcept nogil:
        at >>= 1
        while at:
            self._join(at)
            at >>= 1

    cdef inline void _move(self, Py_ssize_t out, Py_ssize_t place) noexcept nogil:
        """One value leaves at a leaf and one comes at another; -1 where it steps nowhere."""
        if out == place:
            return
        if out >= 0:
            out += self._leaves
            self._set(out, <int32_t>self._n)
        if place >= 0:
            place += self._leaves
            self._set(place, -<int32_t>self._n)
        if out < 0 or place < 0:
            self._climb(out if place < 0 else place)
            return
        # Both climb side by side, which a processor does at once, and together from where they meet.
        out >>= 1
        place >>= 1
        while out != place:
            self._join(out)
            self._join(place)
            out >>= 1
            place >>= 1
        while out:
            self._join(out)
            out >>= 1

    cdef int _slide(self, double x) noexcept nogil:
        cdef int32_t most
        cdef Py_ssize_t leaf = self._leaf(x)
        if self._used == self.window:
            self._move(self._leaf_of[self._place], leaf)
        else:
            self._used += 1
            self._move(-1, leaf)
        self._recent[self._place] = x
        self._leaf_of[self._place] = <int32_t>leaf
        self._place += 1
        if self._place == self.window:
            self._place = 0
        if self._used == self.window:
            most = max(self._tree[1].high, -self._tree[1].low)
            self._statistic = <double>most / (<double>self._n * self.window)
        return 0

    @property
    def p_value(self):
        """Of the present distance; None before the window is full."""
        if self._statistic != self._statistic:
            return None
        return kolmogorov(self._statistic, self._n, self.window)

    cdef list _config(self):
        return [self._origin, self._threshold, self.window, self.warm_up, self.policy]

    cdef list _part(self):
        own = as_bytes(self._reference, self._n * 8) if self._ready and (
            not self._given or self._policy == POLICY_REBASE) else b""
        return [own, self._used, self._place, as_bytes(self._recent, self._used * 8)]

    cdef int _part_load(self, list fields) except -1:
        cdef Py_ssize_t i, held
        own, used, place, recent = fields
        if own != b"":
            restore(self._reference, own, self._n * 8)
            for i in range(self._n):
                number(self._reference[i])
            qsort(self._reference, <size_t>self._n, sizeof(double), _compare)
        restore(self._recent, recent, natural(used, self.window) * 8)
        held = natural(used)
        self._forget()
        for i in range(held):
            number(self._recent[i])
            self._leaf_of[i] = <int32_t>self._leaf(self._recent[i])
            self._move(-1, self._leaf_of[i])
        self._used = held
        self._place = ring_place(place, self._used, self.window)


@cython.final
cdef class Wasserstein1(Windowed):
    """Wasserstein-1 (earth mover's) distance of the newest `window` values from a fixed reference, exact.

    The area between the two distribution functions, `scipy.stats.wasserstein_distance`, in units of the signal. A
    slide changes the window's function between the value that goes and the one that comes, and only this stretch is
    summed again; the whole is summed once a round, so that rounding does not grow.

    Args:
        reference: values `[n]`, 2 to 65,536; None: learn `warm_up` values.
        threshold: distance above which it alarms, in units of the signal.
        window: newest values that are compared, 1 to 65,536.
        warm_up: values of a reference that is learned.
        policy: how it is armed again.
    """

    cdef double* _reference
    cdef double* _recent
    cdef double* _sorted
    cdef Py_ssize_t _n, _used, _place
    cdef double _area
    cdef object _origin

    def __cinit__(self, reference=None, double threshold=1.0, Py_ssize_t window=200, Py_ssize_t warm_up=1000,
                  policy="latch"):
        self._prepare(threshold, window, POINTS_MAX, warm_up, policy, reference is not None)
        if reference is not None:
            _points(self, reference, &self._reference, &self._n)
            if self._policy == POLICY_REBASE and self._n != warm_up:
                raise ConfigError("Wasserstein1: with policy rebase the reference has warm_up values")
            self._origin = [self._reference[i] for i in range(self._n)]
        else:
            self._n = warm_up
            self._reference = <double*>allocate(warm_up, sizeof(double))
        self._recent = <double*>allocate(window, sizeof(double))
        self._sorted = <double*>allocate(window + 1, sizeof(double))

    def __dealloc__(self):
        free(self._reference)
        free(self._recent)
        free(self._sorted)

    cdef bint _fit(self, double* values, Py_ssize_t n) noexcept nogil:
        memcpy(self._reference, values, <size_t>n * sizeof(double))
        return True

    cdef void _forget(self) noexcept nogil:
        self._used = self._place = 0
        self._area = 0.0

    cdef inline Py_ssize_t _below(self, const double* points, Py_ssize_t n, double x) noexcept nogil:
        """How many points are not above x."""
        cdef Py_ssize_t low = 0, high = n, middle
        while low < high:
            middle = (low + high) >> 1
            if points[middle] <= x:
                low = middle + 1
            else:
                high = middle
        return low

    cdef double _stretch(self, double start, double stop) noexcept nogil:
        """Area between the functions from start to stop."""
        cdef Py_ssize_t i = self._below(self._reference, self._n, start)
        cdef Py_ssize_t j = self._below(self._sorted, self._used, start)
        cdef double here = start, following, area = 0.0
        while here < stop:
            following = stop
            if i < self._n and self._reference[i] < following:
                following = self._reference[i]
            if j < self._used and self._sorted[j] < following:
                following = self._sorted[j]
            area += (following - here) * fabs(<double>i / self._n - <double>j / self.window)
            here = following
            while i < self._n and self._reference[i] <= here:
                i += 1
            while j < self._used and self._sorted[j] <= here:
                j += 1
        return area

    cdef void _whole(self) noexcept nogil:
        self._area = self._stretch(
            min(self._reference[0], self._sorted[0]),
            max(self._reference[self._n - 1], self._sorted[self._used - 1]),
        )

    cdef int _slide(self, double x) noexcept nogil:
        cdef double old, start, stop
        cdef Py_ssize_t at
        cdef bint full = self._used == self.window
        if full:
            old = self._recent[self._place]
            start = min(old, x)
            stop = max(old, x)
            self._area -= self._stretch(start, stop)
            at = self._below(self._sorted, self._used, old) - 1
            memmove(self._sorted + at, self._sorted + at + 1, <size_t>(self._used - at - 1) * sizeof(double))
            self._used -= 1
        at = self._below(self._sorted, self._used, x)
        memmove(self._sorted + at + 1, self._sorted + at, <size_t>(self._used - at) * sizeof(double))
        self._sorted[at] = x
        self._used += 1
        self._recent[self._place] = x
        self._place += 1
        if self._place == self.window:
            self._place = 0
        if self._used < self.window:
            return 0
        if full and self._place:
            self._area += self._stretch(start, stop)
        else:
            self._whole()
        self._statistic = self._area if self._area > 0 else 0.0
        return 0

    cdef list _config(self):
        return [self._origin, self._threshold, self.window, self.warm_up, self.policy]

    cdef list _part(self):
        own = as_bytes(self._reference, self._n * 8) if self._ready and (
            not self._given or self._policy == POLICY_REBASE) else b""
        return [own, self._used, self._place, self._area, as_bytes(self._recent, self._used * 8)]

    cdef int _part_load(self, list fields) except -1:
        cdef Py_ssize_t i
        own, used, place, area, recent = fields
        if own != b"":
            restore(self._reference, own, self._n * 8)
            for i in range(self._n):
                number(self._reference[i])
            qsort(self._reference, <size_t>self._n, sizeof(double), _compare)
        self._used = natural(used, self.window)
        self._place = ring_place(place, self._used, self.window)
        self._area = number(area)
        restore(self._recent, recent, self._used * 8)
        for i in range(self._used):
            number(self._recent[i])
            self._sorted[i] = self._recent[i]
        qsort(self._sorted, <size_t>self._used, sizeof(double), _compare)


# control charts -------------------------------------------------------------------------------------------


cdef class Chart(Detector):
    """Base: a statistic of (x - mean) / std, both given or learned from the first `warm_up` values.

    A signal that never varied while it was learned has no scale: learning goes on until it varies.
    """

    cdef readonly long long warm_up
    cdef readonly double mean, std
    cdef double _threshold, _statistic, _m2
    cdef long long _learned
    cdef bint _ready, _given
    cdef object _origin

    cdef int _prepare(self, object mean, object std, double threshold, long long warm_up, object policy) except -1:
        name = type(self).__name__
        self._set_policy(policy)
        if (mean is None) != (std is None):
            raise ConfigError(f"{name}: give both mean and std, or neither to learn them")
        if not threshold > 0 or not 2 <= warm_up <= (1 << 40):
            raise ConfigError(f"{name}: expected threshold > 0 and a warm_up of 2 values or more")
        self._threshold = threshold
        self.warm_up = warm_up
        self._given = self._ready = mean is not None
        self._statistic = 0.0
        if self._given:
            self.mean = mean
            self.std = std
            if not usable(self.mean) or not 0 < self.std <= 1e140:
                raise ConfigError(f"{name}: expected a finite mean and std > 0, got {mean} and {std}")
        self._origin = (mean, std)

    cdef void _clear(self) noexcept nogil:
        pass

    cdef void _look(self, double z) noexcept nogil:
        pass

    cdef void _begin(self) noexcept nogil:
        if self._policy == POLICY_REBASE:
            self._ready = False
            self._learned = 0
            self.mean = self._m2 = 0.0
        self._statistic = 0.0
        self._armed = self.warning_detected = False
        self._clear()

    cdef int _step(self, double x) noexcept nogil:
        cdef double delta
        if self._ready:
            self._look((x - self.mean) / self.std)
            return 0
        self._learned += 1
        delta = x - self.mean
        self.mean += delta / self._learned
        self._m2 += delta * (x - self.mean)
        if self._learned >= self.warm_up and self._m2 > 0:
            self.std = sqrt(self._m2 / (self._learned - 1))
            self._ready = True
        return 0

    cdef double _value(self):
        return self._statistic

    cdef double _limit(self):
        return self._threshold

    cdef list _chart(self):
        return [self.mean, self.std, self._m2, self._learned, bool(self._ready), self._statistic]

    cdef int _chart_load(self, list fields) except -1:
        mean, std, m2, learned, ready, statistic = fields
        self.mean = number(mean)
        self.std = number(std)
        self._m2 = number(m2)
        self._learned = natural(learned)
        self._ready = bool(ready)
        self._statistic = number(statistic)
        if self._ready and not self.std > 0:
            raise ValueError("no scale")


@cython.final
cdef class CUSUM(Chart):
    """Two-sided tabular cumulative sum (Page, Biometrika 1954; Montgomery, Statistical Quality Control).

    S+ = max(0, S+ + z - k), S- = max(0, S- - z - k), alarm when one of them exceeds h = `threshold`; z is the value
    standardised by the reference's mean and standard deviation.

    Args:
        mean, std: of the reference, in units of the signal; None: learn both from `warm_up` values.
        k: allowance, in standard deviations: half of the shift to be found quickest.
        threshold: h, in standard deviations. On independent normal values with k = 0.5 a false alarm comes every
            465 values for h = 5 and every 50,000 or so for h = 10; sensors are not independent: calibrate.
        clip: largest |z| that counts, so that one outlier is no drift; at least k + 1.
        warm_up: values to learn from.
        policy: how it is armed again.

    >>> detector = CUSUM(mean=0.0, std=1.0, threshold=5.0)
    >>> detector.update_many([0.0] * 100 + [1.5] * 20), detector.suspect
    ([105], 100)
    """

    cdef readonly double k, clip
    cdef double _up, _down
    cdef long long _up_from, _down_from

    def __cinit__(self, mean=None, std=None, double k=0.5, double threshold=12.0, double clip=5.0,
                  long long warm_up=1000, policy="reset"):
        self._prepare(mean, std, threshold, warm_up, policy)
        if not 0 <= k <= 100 or not clip >= k + 1:
            raise ConfigError("CUSUM: expected 0 <= k <= 100 and clip >= k + 1")
        self.k = k
        self.clip = clip

    cdef void _clear(self) noexcept nogil:
        self._up = self._down = 0.0
        self._up_from = self._down_from = self.index

    cdef void _look(self, double z) noexcept nogil:
        if z > self.clip:
            z = self.clip
        elif z < -self.clip:
            z = -self.clip
        self._up += z - self.k
        self._down -= z + self.k
        if self._up <= 0:
            self._up = 0.0
            self._up_from = self.index
        if self._down <= 0:
            self._down = 0.0
            self._down_from = self.index
        self._statistic = self._up if self._up > self._down else self._down
        self._judge(self._statistic, self._threshold)
        if self.drift_detected:
            self.suspect = self._up_from if self._up > self._down else self._down_from

    cdef list _config(self):
        return [*self._origin, self.k, self._threshold, self.clip, self.warm_up, self.policy]

    cdef list _own(self):
        return [self._chart(), self._up, self._down, self._up_from, self._down_from]

    cdef int _own_load(self, list fields) except -1:
        chart, up, down, up_from, down_from = fields
        self._chart_load(chart)
        self._up = number(up)
        self._down = number(down)
        self._up_from = natural(up_from)
        self._down_from = natural(down_from)


@cython.final
cdef class EWMAChart(Chart):
    """Exponentially weighted moving average chart (Roberts, Technometrics 1959; Lucas and Saccucci 1990).

    Statistic: |e| / sqrt(lambda / (2 - lambda) (1 - (1 - lambda)**(2 t))), e the weighted average of the
    standardised values, so that `threshold` is L, the limit's width in standard deviations of e.

    Args:
        mean, std: of the reference; None: learn both from `warm_up` values.
        lambda_val: weight of the newest value, 0 < lambda_val <= 1.
        threshold: L; 2.814 at a weight of 0.1 gives a false alarm every 500 independent normal values.
        clip: largest |z| that counts.
        warm_up: values to learn from.
        policy: how it is armed again.
    """

    cdef readonly double lambda_val, clip
    cdef double _average, _rest, _inverse
    cdef long long _near

    def __cinit__(self, mean=None, std=None, double lambda_val=0.1, double threshold=4.75, double clip=5.0,
                  long long warm_up=1000, policy="reset"):
        self._prepare(mean, std, threshold, warm_up, policy)
        if not 0 < lambda_val <= 1 or not clip > 0:
            raise ConfigError("EWMAChart: expected 0 < lambda_val <= 1 and clip > 0")
        self.lambda_val = lambda_val
        self.clip = clip
        self._rest = 1.0

    cdef void _clear(self) noexcept nogil:
        self._average = 0.0
        self._rest = 1.0
        self._near = self.index

    cdef void _look(self, double z) noexcept nogil:
        cdef double weight = self.lambda_val, before = self._average
        if z > self.clip:
            z = self.clip
        elif z < -self.clip:
            z = -self.clip
        self._average += weight * (z - self._average)
        if self._rest > 1e-18:  # later it changes nothing any more
            self._rest *= (1 - weight) * (1 - weight)
            self._inverse = 1.0 / sqrt(weight / (2 - weight) * (1 - self._rest))
        self._statistic = fabs(self._average) * self._inverse
        if before * self._average <= 0:
            self._near = self.index - 1  # the average changed its sign here: the change cannot be older
        self._judge(self._statistic, self._threshold)
        if self.drift_detected:
            self.suspect = self._near

    cdef list _config(self):
        return [*self._origin, self.lambda_val, self._threshold, self.clip, self.warm_up, self.policy]

    cdef list _own(self):
        return [self._chart(), self._average, self._rest, self._near]

    cdef int _own_load(self, list fields) except -1:
        chart, average, rest, near = fields
        self._chart_load(chart)
        self._average = number(average)
        self._rest = number(rest)
        if self._rest < 1:
            self._inverse = 1.0 / sqrt(self.lambda_val / (2 - self.lambda_val) * (1 - self._rest))
        self._near = natural(near)
