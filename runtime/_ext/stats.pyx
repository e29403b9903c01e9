"""Streaming statistics: bounded memory, one C double a call, mergeable where that is defined, state as bytes.

NaN policy of all of them: NaN, infinities and values beyond 1e140 (whose squares no longer add up) change nothing
and are counted in `ignored`. A call holds the interpreter's lock, so an object may be shared between threads.
"""

from cpython.buffer cimport PyBuffer_Release
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.math cimport INFINITY, NAN, ceil, fabs, floor, fmax, fmin, isfinite, log, pow, sqrt
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove, memset

cimport cython

from .core cimport (
    Block, Streaming, allocate, as_bytes, count_below, natural, number, random64, restore, ring_place, take_doubles,
    take_row, usable,
)

import numpy as np

from tinylcm.errors import ConfigError, InputError

cdef enum:
    WINDOW_MAX = 1 << 24
    SIGNALS_MAX = 1 << 16


cdef class Statistic(Streaming):
    """Base of the statistics of one signal."""

    cdef void _push(self, double x) noexcept nogil:
        pass

    cdef void _push_many(self, const double* x, Py_ssize_t n) noexcept nogil:
        cdef Py_ssize_t i
        for i in range(n):
            self._push(x[i])

    def update(self, double x):
        """Take one value."""
        self._push(x)

    def update_many(self, values):
        """Take a block of values, `[n]`."""
        cdef Py_buffer view
        take_doubles(values, &view)
        self._push_many(<const double*>view.buf, view.shape[0])
        PyBuffer_Release(&view)


cdef struct Chunk:
    double mean, m2


cdef bint _chunk(const double* x, Py_ssize_t n, Chunk* out) noexcept nogil:
    """Mean and m2 of up to 512 values by two passes in eight lanes; False when some value may not be usable."""
    cdef double s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0
    cdef double d0, d1, d2, d3, d4, d5, d6, d7, mean
    cdef Py_ssize_t i, whole = n & ~7
    for i in range(0, whole, 8):
        s0 += x[i]
        s1 += x[i + 1]
        s2 += x[i + 2]
        s3 += x[i + 3]
        s4 += x[i + 4]
        s5 += x[i + 5]
        s6 += x[i + 6]
        s7 += x[i + 7]
    for i in range(whole, n):
        s0 += x[i]
    mean = (((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))) / n
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0
    for i in range(0, whole, 8):
        d0 = x[i] - mean
        d1 = x[i + 1] - mean
        d2 = x[i + 2] - mean
        d3 = x[i + 3] - mean
        d4 = x[i + 4] - mean
        d5 = x[i + 5] - mean
        d6 = x[i + 6] - mean
        d7 = x[i + 7] - mean
        s0 += d0 * d0
        s1 += d1 * d1
        s2 += d2 * d2
        s3 += d3 * d3
        s4 += d4 * d4
        s5 += d5 * d5
        s6 += d6 * d6
        s7 += d7 * d7
    for i in range(whole, n):
        d0 = x[i] - mean
        s0 += d0 * d0
    out.mean = mean
    out.m2 = ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))
    # With both so small every single value is usable.
    return fabs(mean) <= 5e139 and out.m2 <= 2e279


cdef inline void _chan(double* mean, double* m2, long long* count, double other_mean, double other_m2,
                       long long other_count) noexcept nogil:
    """Merge two sets of moments (Chan, Golub, LeVeque 1979)."""
    cdef long long both = count[0] + other_count
    cdef double delta = other_mean - mean[0]
    if other_count == 0:
        return
    if count[0] == 0:  # the other's to the last bit
        mean[0] = other_mean
        m2[0] = other_m2
    else:
        mean[0] += delta * other_count / both
        m2[0] += other_m2 + delta * delta * count[0] * other_count / both
    count[0] = both


cdef object _same(object self, object other, tuple names):
    for name in names:
        if getattr(self, name) != getattr(other, name):
            raise ConfigError(f"{type(self).__name__}: only one of the same {' and '.join(names)} can be merged")


# moments --------------------------------------------------------------------------------------------------


@cython.final
cdef class Mean(Statistic):
    """Mean of a stream, updated as river's `stats.Mean`.

    >>> mean = Mean()
    >>> mean.update_many([1.0, 2.0, 6.0])
    >>> mean.get()
    3.0
    """

    cdef double _mean

    def __init__(self):  # __cinit__ would let any arguments pass
        pass

    cdef void _push(self, double x) noexcept nogil:
        if not usable(x):
            self.ignored += 1
            return
        self.count += 1
        self._mean += (1.0 / self.count) * (x - self._mean)

    cdef void _push_many(self, const double* x, Py_ssize_t n) noexcept nogil:
        cdef Py_ssize_t i, part
        cdef Chunk chunk
        cdef double unused = 0.0
        for i in range(0, n, 512):  # a literal: Cython walks a range of unknown sign in Python
            part = n - i if n - i < 512 else 512
            if part >= 8 and _chunk(x + i, part, &chunk):
                _chan(&self._mean, &unused, &self.count, chunk.mean, 0.0, part)
            else:
                Statistic._push_many(self, x + i, part)

    def get(self):
        """The mean; NaN before the first value."""
        return self._mean if self.count else NAN

    def merge(self, Mean other not None):
        """Take in what another has seen."""
        cdef double unused = 0.0
        self.ignored += other.ignored
        _chan(&self._mean, &unused, &self.count, other._mean, 0.0, other.count)

    cdef list _fields(self):
        return [self.count, self.ignored, self._mean]

    cdef int _load(self, list fields) except -1:
        count, ignored, mean = fields
        self.count = natural(count)
        self.ignored = natural(ignored)
        self._mean = number(mean)


@cython.final
cdef class Var(Statistic):
    """Mean and variance by Welford's update (Technometrics 1962), blocks by Chan's merge (1979).

    Args:
        ddof: subtracted from the count in the variance's denominator, 0 or 1.

    A block is summed in two passes, so that `update_many` may differ from single updates in the last bits.

    >>> var = Var()
    >>> var.update_many([1.0, 2.0, 3.0, 4.0])
    >>> var.mean, round(var.get(), 6)
    (2.5, 1.666667)
    """

    cdef readonly double mean, m2
    cdef readonly int ddof

    def __cinit__(self, int ddof=1):
        if ddof not in (0, 1):
            raise ConfigError(f"Var: ddof is {ddof}, expected 0 or 1")
        self.ddof = ddof

    cdef void _push(self, double x) noexcept nogil:
        cdef double delta
        if not usable(x):
            self.ignored += 1
            return
        self.count += 1
        delta = x - self.mean
        self.mean += delta / self.count
        self.m2 += delta * (x - self.mean)

    cdef void _push_many(self, const double* x, Py_ssize_t n) noexcept nogil:
        cdef Py_ssize_t i, part
        cdef Chunk chunk
        for i in range(0, n, 512):  # a literal: Cython walks a range of unknown sign in Python
            part = n - i if n - i < 512 else 512
            if part >= 8 and _chunk(x + i, part, &chunk):
                _chan(&self.mean, &self.m2, &self.count, chunk.mean, chunk.m2, part)
            else:
                Statistic._push_many(self, x + i, part)

    def get(self):
        """The variance; NaN while there are not more than `ddof` values."""
        return self.m2 / (self.count - self.ddof) if self.count > self.ddof else NAN

    @property
    def std(self):
        """The standard deviation; NaN like the variance."""
        return sqrt(self.m2 / (self.count - self.ddof)) if self.count > self.ddof else NAN

    def merge(self, Var other not None):
        """Take in what another has seen."""
        self.ignored += other.ignored
        _chan(&self.mean, &self.m2, &self.count, other.mean, other.m2, other.count)

    cdef list _config(self):
        return [self.ddof]

    cdef list _fields(self):
        return [self.count, self.ignored, self.mean, self.m2]

    cdef int _load(self, list fields) except -1:
        count, ignored, mean, m2 = fields
        self.count = natural(count)
        self.ignored = natural(ignored)
        self.mean = number(mean)
        self.m2 = number(m2)


cdef int _fading(str name, double factor) except -1:
    if not 0 < factor <= 1:
        raise ConfigError(f"{name}: fading_factor is {factor}, expected 0 < fading_factor <= 1")


@cython.final
cdef class EWMean(Statistic):
    """Exponentially weighted mean, m = f x + (1 - f) m, begun at the first value, as river's `stats.EWMean`.

    Args:
        fading_factor: weight f of the newest value, 0 < f <= 1.
    """

    cdef readonly double fading_factor
    cdef double _mean

    def __cinit__(self, double fading_factor=0.5):
        _fading("EWMean", fading_factor)
        self.fading_factor = fading_factor

    cdef void _push(self, double x) noexcept nogil:
        if not usable(x):
            self.ignored += 1
            return
        self.count += 1
        if self.count == 1:
            self._mean = x
        else:
            self._mean = self.fading_factor * x + (1.0 - self.fading_factor) * self._mean

    def get(self):
        """The mean; NaN before the first value."""
        return self._mean if self.count else NAN

    cdef list _config(self):
        return [self.fading_factor]

    cdef list _fields(self):
        return [self.count, self.ignored, self._mean]

    cdef int _load(self, list fields) except -1:
        count, ignored, mean = fields
        self.count = natural(count)
        self.ignored = natural(ignored)
        self._mean = number(mean)


@cython.final
cdef class EWVar(Statistic):
    """Exponentially weighted mean and variance in West's stable form (CACM 1979).

    Args:
        fading_factor: weight of the newest value, 0 < f <= 1.
    """

    cdef readonly double fading_factor, mean
    cdef double _variance

    def __cinit__(self, double fading_factor=0.5):
        _fading("EWVar", fading_factor)
        self.fading_factor = fading_factor

    cdef void _push(self, double x) noexcept nogil:
        cdef double delta, step
        if not usable(x):
            self.ignored += 1
            return
        self.count += 1
        if self.count == 1:
            self.mean = x
            return
        delta = x - self.mean
        step = self.fading_factor * delta
        self.mean += step
        self._variance = (1.0 - self.fading_factor) * (self._variance + delta * step)

    def get(self):
        """The variance about the weighted mean; NaN before the first value."""
        return self._variance if self.count else NAN

    cdef list _config(self):
        return [self.fading_factor]

    cdef list _fields(self):
        return [self.count, self.ignored, self.mean, self._variance]

    cdef int _load(self, list fields) except -1:
        count, ignored, mean, variance = fields
        self.count = natural(count)
        self.ignored = natural(ignored)
        self.mean = number(mean)
        self._variance = number(variance)


@cython.final
cdef class MinMax(Statistic):
    """Least and greatest value of a stream."""

    cdef readonly double min, max

    def __init__(self):
        self.min = INFINITY
        self.max = -INFINITY

    cdef void _push(self, double x) noexcept nogil:
        if not usable(x):
            self.ignored += 1
            return
        self.count += 1
        if x < self.min:
            self.min = x
        if x > self.max:
            self.max = x

    def get(self):
        """(least, greatest); (NaN, NaN) before the first value."""
        if self.count == 0:
            return NAN, NAN
        return self.min, self.max

    def merge(self, MinMax other not None):
        """Take in what another has seen."""
        self.count += other.count
        self.ignored += other.ignored
        self.min = fmin(self.min, other.min)
        self.max = fmax(self.max, other.max)

    cdef list _fields(self):
        return [self.count, self.ignored, self.min, self.max]

    cdef int _load(self, list fields) except -1:
        count, ignored, least, greatest = fields
        self.count = natural(count)
        self.ignored = natural(ignored)
        self.min = number(least)
        self.max = number(greatest)


@cython.final
cdef class Moments(Statistic):
    """Count, mean, variance, least and greatest in one object: what telemetry summaries carry."""

    cdef readonly double mean, m2, min, max

    def __init__(self):
        self.min = INFINITY
        self.max = -INFINITY

    cdef void _push(self, double x) noexcept nogil:
        cdef double delta
        if not usable(x):
            self.ignored += 1
            return
        self.count += 1
        delta = x - self.mean
        self.mean += delta / self.count
        self.m2 += delta * (x - self.mean)
        if x < self.min:
            self.min = x
        if x > self.max:
            self.max = x

    def get(self):
        """(count, mean, variance, least, greatest)."""
        return self.count, self.mean, self.variance, self.min, self.max

    @property
    def variance(self):
        """Variance of the sample (divided by count - 1); NaN below two values."""
        return self.m2 / (self.count - 1) if self.count > 1 else NAN

    def merge(self, Moments other not None):
        """Take in what another has seen."""
        self.ignored += other.ignored
        _chan(&self.mean, &self.m2, &self.count, other.mean, other.m2, other.count)
        self.min = fmin(self.min, other.min)
        self.max = fmax(self.max, other.max)

    def clear(self):
        """Begin anew."""
        self.count = self.ignored = 0
        self.mean = self.m2 = 0.0
        self.min = INFINITY
        self.max = -INFINITY

    cdef list _fields(self):
        return [self.count, self.ignored, self.mean, self.m2, self.min, self.max]

    cdef int _load(self, list fields) except -1:
        count, ignored, mean, m2, least, greatest = fields
        self.count = natural(count)
        self.ignored = natural(ignored)
        self.mean = number(mean)
        self.m2 = number(m2)
        self.min = number(least)
        self.max = number(greatest)


@cython.final
cdef class Covariance(Streaming):
    """Means and covariance matrix of d signals (Welford's update for pairs; blocks by Chan's merge).

    Args:
        d: number of signals, 1 to 1024.
        ddof: subtracted from the count in the denominator, 0 or 1.

    `update` takes a row `[d]`, `update_many` rows `[n, d]`. A row with a value that is not usable is passed over as
    a whole and counted in `ignored`.

    >>> covariance = Covariance(2)
    >>> covariance.update_many([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])
    >>> covariance.get().tolist()
    [[1.0, 2.0], [2.0, 4.0]]
    """

    cdef readonly long long count, ignored
    cdef readonly Py_ssize_t d
    cdef readonly int ddof
    cdef double* _mean
    cdef double* _m2
    cdef double* _delta

    def __cinit__(self, Py_ssize_t d, int ddof=1):
        if not 1 <= d <= 1024 or ddof not in (0, 1):
            raise ConfigError(f"Covariance: expected 1 to 1024 signals and a ddof of 0 or 1, got {d} and {ddof}")
        self.d = d
        self.ddof = ddof
        self._mean = <double*>allocate(d, sizeof(double))
        self._delta = <double*>allocate(d, sizeof(double))
        self._m2 = <double*>allocate(d * d, sizeof(double))

    def __dealloc__(self):
        free(self._mean)
        free(self._delta)
        free(self._m2)

    cdef void _row(self, const double* x) noexcept nogil:
        cdef Py_ssize_t i, j, d = self.d
        cdef double rest
        for j in range(d):
            if not usable(x[j]):
                self.ignored += 1
                return
        self.count += 1
        for j in range(d):
            self._delta[j] = x[j] - self._mean[j]
            self._mean[j] += self._delta[j] / self.count
        for i in range(d):
            rest = x[i] - self._mean[i]
            for j in range(i + 1):
                self._m2[i * d + j] += rest * self._delta[j]

    def update(self, row):
        """Take one row, `[d]`."""
        self.update_many(row)

    def update_many(self, rows):
        """Take rows, `[n, d]`."""
        cdef Block block = Block()
        cdef Py_ssize_t i
        block.take(rows, 2)
        if block.columns != self.d:
            raise InputError(f"expected rows of {self.d} values, got {block.columns}")
        for i in range(block.rows):
            self._row(block.data + i * self.d)

    @property
    def mean(self):
        """The means, float64 `[d]`."""
        return np.array([self._mean[j] for j in range(self.d)])

    def get(self):
        """The covariance matrix, float64 `[d, d]`; NaN while there are not more than `ddof` rows."""
        cdef Py_ssize_t i, j
        result = np.full((self.d, self.d), NAN)
        cdef double[:, ::1] view = result
        if self.count > self.ddof:
            for i in range(self.d):
                for j in range(i + 1):
                    view[i, j] = view[j, i] = self._m2[i * self.d + j] / (self.count - self.ddof)
        return result

    def merge(self, Covariance other not None):
        """Take in what another of the same d has seen."""
        cdef Py_ssize_t i, j, d = self.d
        cdef long long both = self.count + other.count
        cdef double weight
        _same(self, other, ("d",))
        self.ignored += other.ignored
        if other.count == 0:
            return
        weight = <double>self.count * other.count / both
        for j in range(d):
            self._delta[j] = other._mean[j] - self._mean[j]
        for i in range(d):
            for j in range(i + 1):
                self._m2[i * d + j] += other._m2[i * d + j] + self._delta[i] * self._delta[j] * weight
        for j in range(d):
            self._mean[j] += self._delta[j] * other.count / both
        self.count = both

    cdef list _config(self):
        return [self.d, self.ddof]

    cdef list _fields(self):
        return [self.count, self.ignored, as_bytes(self._mean, self.d * sizeof(double)),
                as_bytes(self._m2, self.d * self.d * sizeof(double))]

    cdef int _load(self, list fields) except -1:
        count, ignored, mean, m2 = fields
        self.count = natural(count)
        self.ignored = natural(ignored)
        restore(self._mean, mean, self.d * sizeof(double))
        restore(self._m2, m2, self.d * self.d * sizeof(double))


@cython.final
cdef class FeatureBlock(Streaming):
    """Count, mean, variance, exponentially weighted mean, least and greatest of each of d features, in one call a row.

    Args:
        d: number of features, 1 to 65,536.
        fading_factor: weight of the newest row in the weighted mean, 0 < f <= 1.

    `update` takes a row `[d]` of float64 or float32 without a copy, `update_many` rows `[n, d]`. A value that is not
    usable is passed over for its feature alone and counted in `ignored`.

    >>> features = FeatureBlock(2)
    >>> features.update_many([[1.0, 10.0], [3.0, float("nan")]])
    >>> features.mean.tolist(), features.counts.tolist()
    ([2.0, 10.0], [2, 1])
    """

    cdef readonly Py_ssize_t d
    cdef readonly long long rows
    cdef readonly double fading_factor
    cdef double* _mean
    cdef double* _m2
    cdef double* _weighted
    cdef double* _min
    cdef double* _max
    cdef double* _scratch
    cdef long long* _missed
    cdef bint _ragged

    def __cinit__(self, Py_ssize_t d, double fading_factor=0.05):
        cdef Py_ssize_t j
        if not 1 <= d <= SIGNALS_MAX:
            raise ConfigError(f"FeatureBlock: expected 1 to {SIGNALS_MAX} features, got {d}")
        _fading("FeatureBlock", fading_factor)
        self.d = d
        self.fading_factor = fading_factor
        self._mean = <double*>allocate(6 * d, sizeof(double))
        self._m2 = self._mean + d
        self._weighted = self._mean + 2 * d
        self._min = self._mean + 3 * d
        self._max = self._mean + 4 * d
        self._scratch = self._mean + 5 * d
        self._missed = <long long*>allocate(d, sizeof(long long))
        for j in range(d):
            self._min[j] = INFINITY
            self._max[j] = -INFINITY

    def __dealloc__(self):
        free(self._mean)
        free(self._missed)

    cdef void _row(self, const double* x) noexcept nogil:
        cdef Py_ssize_t j, d = self.d
        cdef double inverse, delta, f = self.fading_factor
        cdef double a = 0.0, b = 0.0
        cdef double* mean = self._mean
        cdef double* m2 = self._m2
        cdef double* weighted = self._weighted
        cdef double* least = self._min
        cdef double* greatest = self._max
        # The squares add up to a finite number only when all are usable.
        for j in range(0, d - 1, 2):
            a += x[j] * x[j]
            b += x[j + 1] * x[j + 1]
        if d & 1:
            a += x[d - 1] * x[d - 1]
        if self._ragged or self.rows == 0 or not a + b <= 1e280:
            self._careful(x)
            return
        self.rows += 1
        inverse = 1.0 / self.rows
        for j in range(d):
            delta = x[j] - mean[j]
            mean[j] += delta * inverse
            m2[j] += delta * (x[j] - mean[j])
            weighted[j] += f * (x[j] - weighted[j])
        for j in range(d):
            least[j] = x[j] if x[j] < least[j] else least[j]
            greatest[j] = x[j] if x[j] > greatest[j] else greatest[j]

    cdef void _careful(self, const double* x) noexcept nogil:
        """The first row, and rows where features have counts of their own."""
        cdef Py_ssize_t j
        cdef double delta
        cdef long long count
        self.rows += 1
        for j in range(self.d):
            if not usable(x[j]):
                self._missed[j] += 1
                self._ragged = True
                continue
            count = self.rows - self._missed[j]
            delta = x[j] - self._mean[j]
            self._mean[j] += delta * (1.0 / count)
            self._m2[j] += delta * (x[j] - self._mean[j])
            if count == 1:
                self._weighted[j] = x[j]
            else:
                self._weighted[j] += self.fading_factor * (x[j] - self._weighted[j])
            if x[j] < self._min[j]:
                self._min[j] = x[j]
            if x[j] > self._max[j]:
                self._max[j] = x[j]

    def update(self, row):
        """Take one row, `[d]`."""
        cdef Py_buffer view
        self._row(take_row(row, self.d, &view, self._scratch))
        PyBuffer_Release(&view)

    def update_many(self, rows):
        """Take rows, `[n, d]`."""
        cdef Block block = Block()
        cdef Py_ssize_t i
        block.take(rows, 2)
        if block.columns != self.d:
            raise InputError(f"expected rows of {self.d} values, got {block.columns}")
        for i in range(block.rows):
            self._row(block.data + i * self.d)

    cdef object _array(self, const double* source):
        result = np.empty(self.d)
        cdef double[::1] view = result
        cdef Py_ssize_t j
        for j in range(self.d):
            view[j] = source[j] if self.rows > self._missed[j] else NAN
        return result

    @property
    def counts(self):
        """Values of each feature, int64 `[d]`."""
        return np.array([self.rows - self._missed[j] for j in range(self.d)], dtype=np.int64)

    @property
    def ignored(self):
        """Values that were passed over, of all features together."""
        cdef Py_ssize_t j
        cdef long long total = 0
        for j in range(self.d):
            total += self._missed[j]
        return total

    @property
    def mean(self):
        """Means, float64 `[d]`; NaN where no value came."""
        return self._array(self._mean)

    @property
    def weighted_mean(self):
        """Exponentially weighted means, float64 `[d]`."""
        return self._array(self._weighted)

    @property
    def min(self):
        """Least values, float64 `[d]`."""
        return self._array(self._min)

    @property
    def max(self):
        """Greatest values, float64 `[d]`."""
        return self._array(self._max)

    @property
    def variance(self):
        """Variances (divided by count - 1), float64 `[d]`; NaN below two values."""
        m2 = self._array(self._m2)
        counts = self.counts
        return np.where(counts > 1, m2 / np.maximum(counts - 1, 1), NAN)

    def get(self):
        """A dict of `counts`, `mean`, `variance`, `weighted_mean`, `min` and `max`."""
        return {name: getattr(self, name) for name in ("counts", "mean", "variance", "weighted_mean", "min", "max")}

    def merge(self, FeatureBlock other not None):
        """Take in what another of the same d saw after this one; the weighted mean becomes the other's."""
        cdef Py_ssize_t j
        cdef long long count, added
        _same(self, other, ("d", "fading_factor"))
        for j in range(self.d):
            count = self.rows - self._missed[j]
            added = other.rows - other._missed[j]
            _chan(&self._mean[j], &self._m2[j], &count, other._mean[j], other._m2[j], added)
            if added:
                self._weighted[j] = other._weighted[j]
            self._min[j] = fmin(self._min[j], other._min[j])
            self._max[j] = fmax(self._max[j], other._max[j])
            self._missed[j] += other._missed[j]
        self._ragged = self._ragged or other._ragged
        self.rows += other.rows

    cdef list _config(self):
        return [self.d, self.fading_factor]

    cdef list _fields(self):
        return [self.rows, as_bytes(self._mean, 5 * self.d * sizeof(double)),
                as_bytes(self._missed, self.d * sizeof(long long)) if self._ragged else b""]

    cdef int _load(self, list fields) except -1:
        cdef Py_ssize_t j
        rows, values, missed = fields
        self.rows = natural(rows)
        restore(self._mean, values, 5 * self.d * sizeof(double))
        if missed != b"":
            restore(self._missed, missed, self.d * sizeof(long long))
            self._ragged = True
        for j in range(self.d):
            if not 0 <= self._missed[j] <= self.rows:
                raise ValueError("more missing values than rows")


# distributions --------------------------------------------------------------------------------------------


@cython.final
cdef class Histogram(Statistic):
    """Counts over fixed bins; mergeable between histograms of the same edges.

    Args:
        edges: rising bin edges, one more than there are bins, 2 to 65,537. A value on an edge counts below it; the
            outermost bins take what lies outside of them.

    >>> histogram = Histogram([0.0, 1.0, 2.0])
    >>> histogram.update_many([0.5, 1.0, 1.5, 7.0])
    >>> histogram.get()
    (2, 2)
    """

    cdef readonly Py_ssize_t bins
    cdef double* _edges
    cdef long long* _counts

    def __cinit__(self, edges):
        cdef Py_buffer view
        cdef Py_ssize_t i
        take_doubles(edges, &view)
        try:
            self.bins = view.shape[0] - 1
            if not 1 <= self.bins <= SIGNALS_MAX:
                raise ConfigError(f"Histogram: expected 2 to {SIGNALS_MAX + 1} edges, got {self.bins + 1}")
            self._edges = <double*>allocate(self.bins + 1, sizeof(double))
            self._counts = <long long*>allocate(self.bins, sizeof(long long))
            memcpy(self._edges, view.buf, <size_t>(self.bins + 1) * sizeof(double))
        finally:
            PyBuffer_Release(&view)
        for i in range(self.bins):
            if not usable(self._edges[i]) or not self._edges[i + 1] > self._edges[i]:
                raise ConfigError("Histogram: edges must be finite and rise")

    @staticmethod
    def from_reference(values, int bins=16):
        """Bins of equal frequency on reference values `[n]`; fewer where many of these are equal.

        Raises:
            ConfigError: fewer than two different values, or bins not within 1 and 65,536.
        """
        if not 1 <= bins <= SIGNALS_MAX:
            raise ConfigError(f"Histogram: bins is {bins}, expected 1 to {SIGNALS_MAX}")
        array = np.asarray(values, dtype=np.float64).ravel()
        array = array[np.abs(array) <= 1e140]
        edges = np.unique(np.quantile(array, np.linspace(0, 1, bins + 1))) if array.size else array
        if edges.size < 2:
            raise ConfigError("Histogram: the reference needs at least two different values")
        return Histogram(edges)

    def __dealloc__(self):
        free(self._edges)
        free(self._counts)

    cdef void _push(self, double x) noexcept nogil:
        if not usable(x):
            self.ignored += 1
            return
        self.count += 1
        self._counts[count_below(self._edges + 1, self.bins - 1, x)] += 1  # the inner edges are 1 to bins - 1

    def get(self):
        """The count of each bin."""
        cdef Py_ssize_t i
        return tuple([self._counts[i] for i in range(self.bins)])

    @property
    def edges(self):
        """The bin edges."""
        cdef Py_ssize_t i
        return tuple([self._edges[i] for i in range(self.bins + 1)])

    def merge(self, Histogram other not None):
        """Take in what another of the same edges has seen."""
        cdef Py_ssize_t i
        _same(self, other, ("edges",))
        self.count += other.count
        self.ignored += other.ignored
        for i in range(self.bins):
            self._counts[i] += other._counts[i]

    cdef list _config(self):
        return [list(self.edges)]

    cdef list _fields(self):
        return [self.count, self.ignored, as_bytes(self._counts, self.bins * sizeof(long long))]

    cdef int _load(self, list fields) except -1:
        count, ignored, counts = fields
        self.count = natural(count)
        self.ignored = natural(ignored)
        restore(self._counts, counts, self.bins * sizeof(long long))


cdef enum:
    LOG_BITS = 7

cdef double LOG_OF[1 << LOG_BITS]
cdef double INVERSE_OF[1 << LOG_BITS]


cdef void _fill_logs() noexcept:
    cdef int i
    cdef double middle
    for i in range(1 << LOG_BITS):
        middle = 1.0 + (i + 0.5) / (1 << LOG_BITS)
        LOG_OF[i] = log(middle)
        INVERSE_OF[i] = 1.0 / middle


_fill_logs()


cdef inline double _near_log(double x) noexcept nogil:
    """ln x to 1e-9 for normal x > 0, in half the time of log(): a table for the leading bits, then a cubic."""
    cdef uint64_t bits
    cdef int exponent, i
    cdef double r
    memcpy(&bits, &x, 8)
    exponent = <int>(bits >> 52) - 1023
    if exponent == -1023:  # subnormal
        return log(x)
    i = <int>((bits >> (52 - LOG_BITS)) & ((1 << LOG_BITS) - 1))
    bits = (bits & <uint64_t>0xFFFFFFFFFFFFF) | <uint64_t>0x3FF0000000000000
    memcpy(&r, &bits, 8)
    r = r * INVERSE_OF[i] - 1.0
    return exponent * 0.6931471805599453 + (LOG_OF[i] + r * (1.0 - r * (0.5 - r * 0.3333333333333333)))


cdef struct Store:
    uint64_t* counts
    long long first
    Py_ssize_t size


cdef void _used(Store* store, Py_ssize_t* low, Py_ssize_t* high) noexcept nogil:
    """The first and last bucket with a count; last below first when there is none."""
    low[0] = 0
    high[0] = store.size - 1
    while low[0] <= high[0] and store.counts[low[0]] == 0:
        low[0] += 1
    while high[0] >= low[0] and store.counts[high[0]] == 0:
        high[0] -= 1


@cython.final
cdef class QuantileSketch(Statistic):
    """Quantiles with a relative accuracy: the logarithmic buckets of DDSketch (Masson, Rim, Lee, VLDB 2019).

    Args:
        accuracy: relative error of a quantile, 0.0001 to 0.5.
        buckets_max: buckets kept for each sign, 2 to 2**20. Beyond them the buckets of the least magnitude are
            collapsed into one, and quantiles that fall there lose the guarantee; 2,048 at 1 % span 17 decades.
        low: values of a magnitude below it count as zero; at 0 only zero does.

    Bucket i holds the magnitudes of gamma**(i - 1) < |x| <= gamma**i, gamma = (1 + accuracy) / (1 - accuracy), as
    DDSketch's logarithmic mapping, so bucket indices may be exchanged with other implementations.

    >>> sketch = QuantileSketch()
    >>> sketch.update_many(range(1, 1001))
    >>> abs(sketch.quantile(0.5) / 500 - 1) <= 0.01
    True
    """

    cdef readonly double accuracy, low
    cdef readonly long long zeros
    cdef readonly Py_ssize_t buckets_max
    cdef readonly bint collapsed
    cdef double _gamma, _scale
    cdef Store _above, _below

    def __cinit__(self, double accuracy=0.01, Py_ssize_t buckets_max=2048, double low=0.0):
        if not 1e-4 <= accuracy <= 0.5 or not 2 <= buckets_max <= (1 << 20) or not 0 <= low < 1e140:
            raise ConfigError("QuantileSketch: expected accuracy of 0.0001 to 0.5, buckets_max of 2 to 2**20, low >= 0")
        self.accuracy = accuracy
        self.low = low
        self.buckets_max = buckets_max
        self._gamma = (1 + accuracy) / (1 - accuracy)
        self._scale = 1.0 / log(self._gamma)

    def __dealloc__(self):
        free(self._above.counts)
        free(self._below.counts)

    cdef void _push(self, double x) noexcept nogil:
        cdef long long index
        cdef Store* store = &self._above
        cdef double magnitude = x, place, rest
        if not usable(x):
            self.ignored += 1
            return
        self.count += 1
        if x < 0:
            store = &self._below
            magnitude = -x
        if magnitude < self.low or magnitude == 0:
            self.zeros += 1
            return
        place = _near_log(magnitude) * self._scale
        index = <long long>place
        rest = fabs(place - index)
        if rest < 1e-4 or rest > 1 - 1e-4:  # too near a bucket's edge for the approximation
            index = <long long>ceil(log(magnitude) * self._scale)
        else:
            index += place > 0  # ceil()
        index -= store.first
        if not 0 <= index < store.size:
            index += store.first
            if not self._room(store, index, index):  # no memory: counted as passed over rather than lost silently
                self.count -= 1
                self.ignored += 1
                return
            index = max(index - store.first, 0)
        store.counts[index] += 1

    def update(self, double x):
        """Take one value."""
        self._push(x)  # here the call is direct, and inlined

    cdef bint _room(self, Store* store, long long first, long long last) noexcept nogil:
        """Make room for the buckets first to last beside those in use; False when there is no memory."""
        cdef long long i, least = first, greatest = last
        cdef Py_ssize_t low, high, size
        cdef uint64_t* grown
        cdef uint64_t rest = 0
        _used(store, &low, &high)
        if low <= high:
            least = min(least, store.first + low)
            greatest = max(greatest, store.first + high)
        if greatest - least + 1 > self.buckets_max:
            least = greatest - self.buckets_max + 1
            self.collapsed = True
        size = min(<Py_ssize_t>self.buckets_max, <Py_ssize_t>((greatest - least + 64) & ~63))
        grown = <uint64_t*>calloc(<size_t>size, sizeof(uint64_t))
        if grown is NULL:
            return False
        if least == first and greatest != last:  # spare room goes to the side that grew
            least = greatest - size + 1
        for i in range(store.size):
            if store.counts[i]:
                if store.first + i < least:
                    rest += store.counts[i]
                else:
                    grown[store.first + i - least] = store.counts[i]
        grown[0] += rest
        free(store.counts)
        store.counts = grown
        store.first = least
        store.size = size
        return True

    def quantile(self, double q):
        """The value below which a share q (0 to 1) of the values lies; NaN when there are none.

        Raises:
            InputError: q is not within 0 and 1.
        """
        cdef double rank
        cdef long long seen = 0
        cdef Py_ssize_t i
        if not 0 <= q <= 1:
            raise InputError(f"a quantile is within 0 and 1, got {q}")
        if self.count == 0:
            return NAN
        rank = floor(q * (self.count - 1))
        for i in range(self._below.size - 1, -1, -1):
            seen += self._below.counts[i]
            if seen > rank:
                return -2 * pow(self._gamma, i + self._below.first) / (self._gamma + 1)
        seen += self.zeros
        if seen > rank:
            return 0.0
        for i in range(self._above.size):
            seen += self._above.counts[i]
            if seen > rank:
                return 2 * pow(self._gamma, i + self._above.first) / (self._gamma + 1)
        return NAN

    def get(self):
        """The median."""
        return self.quantile(0.5)

    def items(self):
        """Pairs (bucket index, count) of the positive values' buckets in use, rising."""
        cdef Py_ssize_t i
        return [(i + self._above.first, self._above.counts[i])
                for i in range(self._above.size) if self._above.counts[i]]

    def negative_items(self):
        """Pairs (bucket index, count) of the negative values' buckets in use, rising in magnitude."""
        cdef Py_ssize_t i
        return [(i + self._below.first, self._below.counts[i])
                for i in range(self._below.size) if self._below.counts[i]]

    def merge(self, QuantileSketch other not None):
        """Take in what another of the same accuracy, buckets_max and low has seen.

        Raises:
            ConfigError: another shape.
            MemoryError: there is no room; nothing was taken.
        """
        _same(self, other, ("accuracy", "buckets_max", "low"))
        self._reserve(&self._above, &other._above)
        self._reserve(&self._below, &other._below)
        self._add(&self._above, &other._above)
        self._add(&self._below, &other._below)
        self.count += other.count
        self.ignored += other.ignored
        self.zeros += other.zeros
        self.collapsed = self.collapsed or other.collapsed

    cdef int _reserve(self, Store* target, Store* source) except -1:
        cdef Py_ssize_t low, high
        _used(source, &low, &high)
        if low <= high and (source.first + low < target.first
                            or source.first + high >= target.first + target.size):
            if not self._room(target, source.first + low, source.first + high):
                raise MemoryError("no memory for the other's buckets")
        return 0

    cdef void _add(self, Store* target, Store* source) noexcept:
        cdef Py_ssize_t i
        cdef long long place
        for i in range(source.size):
            if source.counts[i]:
                place = i + source.first - target.first
                target.counts[place if place > 0 else 0] += source.counts[i]

    def clear(self):
        """Begin anew; the buckets' memory is kept."""
        self.count = self.ignored = self.zeros = 0
        self.collapsed = False
        if self._above.size:
            memset(self._above.counts, 0, <size_t>self._above.size * sizeof(uint64_t))
        if self._below.size:
            memset(self._below.counts, 0, <size_t>self._below.size * sizeof(uint64_t))

    cdef list _config(self):
        return [self.accuracy, self.buckets_max, self.low]

    cdef list _fields(self):
        return [self.count, self.ignored, self.zeros, self.collapsed,
                self._above.first, as_bytes(self._above.counts, self._above.size * sizeof(uint64_t)),
                self._below.first, as_bytes(self._below.counts, self._below.size * sizeof(uint64_t))]

    cdef int _load(self, list fields) except -1:
        count, ignored, zeros, collapsed, above_first, above, below_first, below = fields
        self.count = natural(count)
        self.ignored = natural(ignored)
        self.zeros = natural(zeros)
        self.collapsed = bool(collapsed)
        self._refill(&self._above, above_first, above)
        self._refill(&self._below, below_first, below)

    cdef int _refill(self, Store* store, object first, object counts) except -1:
        cdef Py_ssize_t size
        if type(first) is not int or abs(first) > (1 << 40) or not isinstance(counts, bytes) or len(counts) % 8:
            raise ValueError("buckets are missing")
        size = len(counts) // 8
        if size > self.buckets_max:
            raise ValueError("more buckets than buckets_max")
        if size:
            store.counts = <uint64_t*>allocate(size, sizeof(uint64_t))
            restore(store.counts, counts, size * 8)
        store.size = size
        store.first = first


@cython.final
cdef class P2Quantile(Statistic):
    """One quantile in five markers (Jain and Chlamtac, CACM 1985); values are river's `stats.Quantile`, bit for bit.

    Args:
        q: the quantile, 0 <= q <= 1.

    It has no error guarantee: on a stream whose distribution moves it follows slowly. `QuantileSketch` guarantees.
    """

    cdef readonly double q
    cdef double _heights[5]
    cdef double _wanted[5]
    cdef double _step[5]
    cdef long long _position[5]
    cdef bint _sorted

    def __cinit__(self, double q=0.5):
        cdef int i
        if not 0 <= q <= 1:
            raise ConfigError(f"P2Quantile: q is {q}, expected 0 to 1")
        self.q = q
        self._step[0] = 0.0
        self._step[1] = q / 2
        self._step[2] = q
        self._step[3] = (1 + q) / 2
        self._step[4] = 1.0
        self._wanted[0] = 1.0
        self._wanted[1] = 1 + 2 * q
        self._wanted[2] = 1 + 4 * q
        self._wanted[3] = 3 + 2 * q
        self._wanted[4] = 5.0
        for i in range(5):
            self._position[i] = i + 1

    cdef void _push(self, double x) noexcept nogil:
        cdef int i, k
        cdef double* h = self._heights
        cdef long long* n = self._position
        cdef double d, sign, better
        if not usable(x):
            self.ignored += 1
            return
        if self.count < 5:
            h[self.count] = x
            self.count += 1
            self._sort()
            return
        self.count += 1
        if x < h[0]:
            h[0] = x
            k = 1
        else:
            k = 4
            for i in range(1, 5):
                if h[i - 1] <= x < h[i]:
                    k = i
                    break
            else:
                if h[4] < x:
                    h[4] = x
        for i in range(k, 5):
            n[i] += 1
        for i in range(5):
            self._wanted[i] += self._step[i]
        for i in range(1, 4):
            d = self._wanted[i] - n[i]
            if (d >= 1 and n[i + 1] - n[i] > 1) or (d <= -1 and n[i - 1] - n[i] < -1):
                sign = 1.0 if d > 0 else -1.0
                k = 1 if d > 0 else -1
                better = h[i] + sign / (n[i + 1] - n[i - 1]) * (
                    (n[i] - n[i - 1] + sign) * (h[i + 1] - h[i]) / (n[i + 1] - n[i])
                    + (n[i + 1] - n[i] - sign) * (h[i] - h[i - 1]) / (n[i] - n[i - 1])
                )
                if h[i - 1] < better < h[i + 1]:
                    h[i] = better
                else:
                    h[i] = h[i] + sign * (h[i + k] - h[i]) / (n[i + k] - n[i])
                n[i] += k

    cdef void _sort(self) noexcept nogil:
        cdef int i = <int>self.count - 1
        cdef double x = self._heights[i]
        while i > 0 and self._heights[i - 1] > x:
            self._heights[i] = self._heights[i - 1]
            i -= 1
        self._heights[i] = x

    def get(self):
        """The estimate; an order statistic up to five values, NaN before the first."""
        if self.count == 0:
            return NAN
        if self.count <= 5:
            return self._heights[<int>fmin(fmax(self.count - 1, 0), self.count * self.q)]
        return self._heights[2]

    cdef list _config(self):
        return [self.q]

    cdef list _fields(self):
        return [self.count, self.ignored, as_bytes(self._heights, 40), as_bytes(self._wanted, 40),
                as_bytes(self._position, 40)]

    cdef int _load(self, list fields) except -1:
        count, ignored, heights, wanted, position = fields
        self.count = natural(count)
        self.ignored = natural(ignored)
        restore(self._heights, heights, 40)
        restore(self._wanted, wanted, 40)
        restore(self._position, position, 40)


# rolling --------------------------------------------------------------------------------------------------


cdef int _window(str name, Py_ssize_t window, Py_ssize_t most) except -1:
    if not 1 <= window <= most:
        raise ConfigError(f"{name}: window is {window}, expected 1 to {most}")


@cython.final
cdef class RollingMinMax(Statistic):
    """Least and greatest of the newest `window` values, by two monotonic queues; O(1) a value on the average.

    Args:
        window: 1 to 2**24 values.
    """

    cdef readonly Py_ssize_t window
    cdef double* _low
    cdef double* _high
    cdef long long* _low_at
    cdef long long* _high_at
    cdef Py_ssize_t _low_first, _low_used, _high_first, _high_used

    def __cinit__(self, Py_ssize_t window):
        _window("RollingMinMax", window, WINDOW_MAX)
        self.window = window
        self._low = <double*>allocate(window, sizeof(double))
        self._high = <double*>allocate(window, sizeof(double))
        self._low_at = <long long*>allocate(window, sizeof(long long))
        self._high_at = <long long*>allocate(window, sizeof(long long))

    def __dealloc__(self):
        free(self._low)
        free(self._high)
        free(self._low_at)
        free(self._high_at)

    cdef inline Py_ssize_t _at(self, Py_ssize_t place) noexcept nogil:
        return place - self.window if place >= self.window else place

    cdef void _push(self, double x) noexcept nogil:
        cdef long long oldest
        if not usable(x):
            self.ignored += 1
            return
        oldest = self.count - self.window
        if self._low_used and self._low_at[self._low_first] <= oldest:
            self._low_first = self._at(self._low_first + 1)
            self._low_used -= 1
        if self._high_used and self._high_at[self._high_first] <= oldest:
            self._high_first = self._at(self._high_first + 1)
            self._high_used -= 1
        while self._low_used and self._low[self._at(self._low_first + self._low_used - 1)] >= x:
            self._low_used -= 1
        self._low[self._at(self._low_first + self._low_used)] = x
        self._low_at[self._at(self._low_first + self._low_used)] = self.count
        self._low_used += 1
        while self._high_used and self._high[self._at(self._high_first + self._high_used - 1)] <= x:
            self._high_used -= 1
        self._high[self._at(self._high_first + self._high_used)] = x
        self._high_at[self._at(self._high_first + self._high_used)] = self.count
        self._high_used += 1
        self.count += 1

    @property
    def min(self):
        """Least value of the window; NaN before the first."""
        return self._low[self._low_first] if self._low_used else NAN

    @property
    def max(self):
        """Greatest value of the window; NaN before the first."""
        return self._high[self._high_first] if self._high_used else NAN

    def get(self):
        """(least, greatest)."""
        return self.min, self.max

    cdef list _config(self):
        return [self.window]

    cdef list _fields(self):
        cdef Py_ssize_t i
        low = [(self._low_at[self._at(self._low_first + i)], self._low[self._at(self._low_first + i)])
               for i in range(self._low_used)]
        high = [(self._high_at[self._at(self._high_first + i)], self._high[self._at(self._high_first + i)])
                for i in range(self._high_used)]
        return [self.count, self.ignored, low, high]

    cdef int _load(self, list fields) except -1:
        count, ignored, low, high = fields
        self.count = natural(count)
        self.ignored = natural(ignored)
        if len(low) > self.window or len(high) > self.window or bool(low) != bool(self.count):
            raise ValueError("a queue is longer than the window")
        for self._low_used, (at, value) in enumerate(low):
            self._low_at[self._low_used] = natural(at, count)
            self._low[self._low_used] = number(value)
        for self._high_used, (at, value) in enumerate(high):
            self._high_at[self._high_used] = natural(at, count)
            self._high[self._high_used] = number(value)
        self._low_used = len(low)
        self._high_used = len(high)


@cython.final
cdef class RollingQuantile(Statistic):
    """Exact quantile of the newest `window` values, interpolated linearly like `numpy.quantile`.

    Args:
        q: 0 to 1.
        window: 1 to 65,536 values, kept sorted: a value moves at most `window` doubles in one copy.
    """

    cdef readonly double q
    cdef readonly Py_ssize_t window
    cdef double* _recent
    cdef double* _sorted
    cdef Py_ssize_t _used, _place

    def __cinit__(self, double q, Py_ssize_t window):
        if not 0 <= q <= 1:
            raise ConfigError(f"RollingQuantile: q is {q}, expected 0 to 1")
        _window("RollingQuantile", window, 1 << 16)
        self.q = q
        self.window = window
        self._recent = <double*>allocate(window, sizeof(double))
        self._sorted = <double*>allocate(window, sizeof(double))

    def __dealloc__(self):
        free(self._recent)
        free(self._sorted)

    cdef void _push(self, double x) noexcept nogil:
        cdef Py_ssize_t out, place
        if not usable(x):
            self.ignored += 1
            return
        self.count += 1
        if self._used == self.window:
            out = count_below(self._sorted, self._used, self._recent[self._place])
            place = count_below(self._sorted, self._used, x)
            place -= place > out  # the one at `out` is going
            self._used -= 1
            if place <= out:
                memmove(self._sorted + place + 1, self._sorted + place, <size_t>(out - place) * sizeof(double))
            else:
                memmove(self._sorted + out, self._sorted + out + 1, <size_t>(place - out) * sizeof(double))
        else:
            place = count_below(self._sorted, self._used, x)
            memmove(self._sorted + place + 1, self._sorted + place, <size_t>(self._used - place) * sizeof(double))
        self._sorted[place] = x
        self._used += 1
        self._recent[self._place] = x
        self._place += 1
        if self._place == self.window:
            self._place = 0

    def get(self):
        """The quantile of what the window holds; NaN before the first value."""
        cdef double place
        cdef Py_ssize_t low
        if self._used == 0:
            return NAN
        place = self.q * (self._used - 1)
        low = <Py_ssize_t>floor(place)
        if low + 1 >= self._used:
            return self._sorted[self._used - 1]
        return self._sorted[low] + (place - low) * (self._sorted[low + 1] - self._sorted[low])

    cdef list _config(self):
        return [self.q, self.window]

    cdef list _fields(self):
        return [self.count, self.ignored, self._place, as_bytes(self._recent, self._used * sizeof(double))]

    cdef int _load(self, list fields) except -1:
        cdef Py_ssize_t i
        count, ignored, place, recent = fields
        self.count = natural(count)
        self.ignored = natural(ignored)
        self._used = min(self.count, self.window)
        self._place = ring_place(place, self._used, self.window)
        restore(self._recent, recent, self._used * sizeof(double))
        for i in range(self._used):
            number(self._recent[i])
            self._sorted[i] = self._recent[i]
        if self._used:
            np.asarray(<double[:self._used]>self._sorted).sort()


@cython.final
cdef class Reservoir(Statistic):
    """A uniform sample of the whole stream (Vitter's algorithm R, ACM TOMS 1985).

    Args:
        size: values kept, 1 to 2**24.
        seed: of its own random generator; the same seed and stream give the same sample.
    """

    cdef readonly Py_ssize_t size
    cdef readonly uint64_t seed
    cdef uint64_t _random
    cdef double* _kept

    def __cinit__(self, Py_ssize_t size, uint64_t seed=0):
        if not 1 <= size <= WINDOW_MAX:
            raise ConfigError(f"Reservoir: size is {size}, expected 1 to {WINDOW_MAX}")
        self.size = size
        self.seed = seed
        self._random = seed
        self._kept = <double*>allocate(size, sizeof(double))

    def __dealloc__(self):
        free(self._kept)

    cdef void _push(self, double x) noexcept nogil:
        cdef uint64_t place
        if not usable(x):
            self.ignored += 1
            return
        self.count += 1
        if self.count <= self.size:
            self._kept[self.count - 1] = x
            return
        # The remainder's bias is count / 2**64.
        place = random64(&self._random) % <uint64_t>self.count
        if place < <uint64_t>self.size:
            self._kept[place] = x

    def get(self):
        """The sample, float64 `[min(count, size)]`."""
        cdef Py_ssize_t i, used = min(self.count, self.size)
        result = np.empty(used)
        cdef double[::1] view = result
        for i in range(used):
            view[i] = self._kept[i]
        return result

    cdef list _config(self):
        return [self.size, self.seed]

    cdef list _fields(self):
        return [self.count, self.ignored, self._random,
                as_bytes(self._kept, min(self.count, self.size) * sizeof(double))]

    cdef int _load(self, list fields) except -1:
        count, ignored, random, kept = fields
        self.count = natural(count)
        self.ignored = natural(ignored)
        self._random = random
        restore(self._kept, kept, min(self.count, self.size) * sizeof(double))


# categories -----------------------------------------------------------------------------------------------


cdef uint64_t _hash(object item) except? 0:
    """FNV-1a, 64 bits, of a category's bytes after one byte for its type: the same on every machine."""
    cdef const char* data
    cdef Py_ssize_t size, i
    cdef uint64_t result = <uint64_t>0xCBF29CE484222325
    kind = type(item)
    if kind is str:
        data = PyUnicode_AsUTF8AndSize(item, &size)
        result = (result ^ 1) * <uint64_t>0x100000001B3
    else:
        raw = item if kind is bytes else b"%d" % item
        data = PyBytes_AS_STRING(raw)
        size = PyBytes_GET_SIZE(raw)
        result = (result ^ <uint64_t>(2 if kind is bytes else 3)) * <uint64_t>0x100000001B3
    for i in range(size):
        result = (result ^ <unsigned char>data[i]) * <uint64_t>0x100000001B3
    return result


cdef bint _missing(object item) except -1:
    """Whether a category is missing (None or NaN). Raises InputError for what is no category."""
    kind = type(item)
    if kind is str or kind is int or kind is bytes:
        if kind is not int and len(item) > 4096:
            raise InputError(f"a category of {len(item)} characters, expected at most 4096")
        return False
    if item is None or (isinstance(item, float) and item != item):
        return True
    raise InputError(f"a category is a str, bytes or int, got {kind.__name__}")


@cython.final
cdef class CountMin(Streaming):
    """How often each category came, never too low (Cormode, Muthukrishnan, J. Algorithms 2005).

    Args:
        width: counters in a row, 2 to 2**24: the overestimate is below 2.72 * count / width ...
        depth: ... with probability 1 - exp(-depth), 1 to 16.

    Categories are str, bytes or int; None and NaN are counted in `ignored`.

    >>> counts = CountMin()
    >>> counts.update_many(["walk", "run", "walk"])
    >>> counts.get("walk"), counts.get("sit")
    (2, 0)
    """

    cdef readonly Py_ssize_t width
    cdef readonly int depth
    cdef readonly long long count, ignored
    cdef long long* _table

    def __cinit__(self, Py_ssize_t width=1024, int depth=4):
        if not 2 <= width <= WINDOW_MAX or not 1 <= depth <= 16 or width * depth > WINDOW_MAX:
            raise ConfigError("CountMin: expected a width of 2 to 2**24 and a depth of 1 to 16, 2**24 counters in all")
        self.width = width
        self.depth = depth
        self._table = <long long*>allocate(width * depth, sizeof(long long))

    def __dealloc__(self):
        free(self._table)

    def update(self, item):
        """Take one category."""
        cdef uint64_t state
        cdef int row
        if _missing(item):
            self.ignored += 1
            return
        state = _hash(item)
        for row in range(self.depth):
            self._table[row * self.width + <Py_ssize_t>(random64(&state) % <uint64_t>self.width)] += 1
        self.count += 1

    def update_many(self, items):
        """Take categories."""
        for item in items:
            self.update(item)

    def get(self, item):
        """The estimate for one category: its count, or somewhat more."""
        cdef uint64_t state
        cdef int row
        cdef long long least = -1, here
        if _missing(item):
            raise InputError("a missing category has no count; see `ignored`")
        state = _hash(item)
        for row in range(self.depth):
            here = self._table[row * self.width + <Py_ssize_t>(random64(&state) % <uint64_t>self.width)]
            if least < 0 or here < least:
                least = here
        return least

    def merge(self, CountMin other not None):
        """Take in what another of the same width and depth has seen."""
        cdef Py_ssize_t i
        _same(self, other, ("width", "depth"))
        for i in range(self.width * self.depth):
            self._table[i] += other._table[i]
        self.count += other.count
        self.ignored += other.ignored

    cdef list _config(self):
        return [self.width, self.depth]

    cdef list _fields(self):
        return [self.count, self.ignored, as_bytes(self._table, self.width * self.depth * sizeof(long long))]

    cdef int _load(self, list fields) except -1:
        count, ignored, table = fields
        self.count = natural(count)
        self.ignored = natural(ignored)
        restore(self._table, table, self.width * self.depth * sizeof(long long))


@cython.final
cdef class SpaceSaving(Streaming):
    """The most frequent categories (Metwally, Agrawal, El Abbadi, ICDT 2005); merged as by Agarwal et al. (TODS 2013).

    Args:
        size: categories kept, 1 to 65,536. Every category with a share above 1 / size is among them, and a count is
            at most `count / size` too high.

    Categories are str, bytes or int; None and NaN are counted in `ignored`.

    >>> common = SpaceSaving(2)
    >>> common.update_many(["walk", "run", "walk"])
    >>> common.get()
    [('walk', 2, 0), ('run', 1, 0)]
    """

    cdef readonly Py_ssize_t size
    cdef readonly long long count, ignored
    cdef dict _place
    cdef list _items
    cdef long long* _counts
    cdef long long* _errors

    def __cinit__(self, Py_ssize_t size=100):
        if not 1 <= size <= SIGNALS_MAX:
            raise ConfigError(f"SpaceSaving: size is {size}, expected 1 to {SIGNALS_MAX}")
        self.size = size
        self._place = {}
        self._items = []
        self._counts = <long long*>allocate(size, sizeof(long long))
        self._errors = <long long*>allocate(size, sizeof(long long))

    def __dealloc__(self):
        free(self._counts)
        free(self._errors)

    cdef int _swap(self, Py_ssize_t a, Py_ssize_t b) except -1:
        cdef long long keep
        keep = self._counts[a]
        self._counts[a] = self._counts[b]
        self._counts[b] = keep
        keep = self._errors[a]
        self._errors[a] = self._errors[b]
        self._errors[b] = keep
        first, second = self._items[a], self._items[b]
        self._items[a] = second
        self._items[b] = first
        self._place[second] = a
        self._place[first] = b

    cdef int _sink(self, Py_ssize_t place) except -1:
        """Keep the least count at the top of the heap."""
        cdef Py_ssize_t child, used = len(self._items)
        while True:
            child = 2 * place + 1
            if child >= used:
                return 0
            if child + 1 < used and self._counts[child + 1] < self._counts[child]:
                child += 1
            if self._counts[place] <= self._counts[child]:
                return 0
            self._swap(place, child)
            place = child

    cdef int _rise(self, Py_ssize_t place) except -1:
        cdef Py_ssize_t above
        while place > 0:
            above = (place - 1) >> 1
            if self._counts[above] <= self._counts[place]:
                return 0
            self._swap(place, above)
            place = above

    def update(self, item):
        """Take one category."""
        cdef Py_ssize_t place
        if _missing(item):
            self.ignored += 1
            return
        self.count += 1
        found = self._place.get(item)
        if found is not None:
            place = found
            self._counts[place] += 1
            self._sink(place)
        elif len(self._items) < self.size:
            place = len(self._items)
            self._items.append(item)
            self._place[item] = place
            self._counts[place] = 1
            self._errors[place] = 0
            self._rise(place)
        else:
            del self._place[self._items[0]]
            self._items[0] = item
            self._place[item] = 0
            self._errors[0] = self._counts[0]
            self._counts[0] += 1
            self._sink(0)

    def update_many(self, items):
        """Take categories."""
        for item in items:
            self.update(item)

    def get(self):
        """(category, count, greatest overestimate) of those kept, most frequent first."""
        cdef Py_ssize_t i
        entries = [(self._items[i], self._counts[i], self._errors[i]) for i in range(len(self._items))]
        return sorted(entries, key=lambda entry: (-entry[1], entry[2], str(entry[0])))

    def merge(self, SpaceSaving other not None):
        """Take in what another of the same size has seen; overestimates add up to at most count / size of both."""
        cdef long long here, there
        _same(self, other, ("size",))
        here = self._counts[0] if len(self._items) == self.size else 0
        there = other._counts[0] if len(other._items) == other.size else 0
        mine = {item: (count, error) for item, count, error in self.get()}
        others = {item: (count, error) for item, count, error in other.get()}
        both = []
        for item in list(mine) + [item for item in others if item not in mine]:
            count, error = mine.get(item, (here, here))
            more, unsure = others.get(item, (there, there))
            both.append((item, count + more, error + unsure))
        both.sort(key=lambda entry: (-entry[1], entry[2], str(entry[0])))
        self._fill(both[: self.size])
        self.count += other.count
        self.ignored += other.ignored

    cdef int _fill(self, list entries) except -1:
        """Entries, most frequent first: reversed they are a heap."""
        cdef Py_ssize_t i
        entries = entries[::-1]
        self._items = [entry[0] for entry in entries]
        self._place = {item: i for i, item in enumerate(self._items)}
        for i in range(len(entries)):
            self._counts[i] = entries[i][1]
            self._errors[i] = entries[i][2]

    cdef list _config(self):
        return [self.size]

    cdef list _fields(self):
        cdef Py_ssize_t i
        # In the heap's own order, so that a restored object evicts the same ones.
        return [self.count, self.ignored, self._items, [self._counts[i] for i in range(len(self._items))],
                [self._errors[i] for i in range(len(self._items))]]

    cdef int _load(self, list fields) except -1:
        cdef Py_ssize_t i
        count, ignored, items, counts, errors = fields
        self.count = natural(count)
        self.ignored = natural(ignored)
        if len(items) > self.size or not len(items) == len(counts) == len(errors) == len(set(items)):
            raise ValueError("more categories than size, or one twice")
        for i in range(len(items)):
            _missing(items[i])
            self._counts[i] = natural(counts[i])
            self._errors[i] = natural(errors[i])
        self._items = list(items)
        self._place = {item: i for i, item in enumerate(items)}


# what the pipeline keeps ----------------------------------------------------------------------------------


@cython.final
cdef class Summary:
    """Moments and sketch of one signal, by one call."""

    cdef readonly Moments moments
    cdef readonly QuantileSketch sketch

    def __cinit__(self, double accuracy=0.01, Py_ssize_t buckets_max=2048, double low=0.0):
        self.moments = Moments()
        self.sketch = QuantileSketch(accuracy, buckets_max, low)

    def update(self, double x):
        """Take one value."""
        self.moments._push(x)
        self.sketch._push(x)

    def clear(self):
        """Begin anew."""
        self.moments.clear()
        self.sketch.clear()


cdef enum:
    QUARTERS = 4  # buckets to each doubling
    FIRST = -2  # the first bucket ends at 2**-2 us


STAGE_NAMES = ("load", "run", "post", "monitors")


cdef inline Py_ssize_t bucket_of(double x) noexcept nogil:
    """The bucket of a time in microseconds: log-linear, four to each doubling, by the bits of the number."""
    cdef uint64_t bits
    cdef Py_ssize_t place
    if not x > 0.25:
        return 0
    memcpy(&bits, &x, sizeof(bits))
    # Exponent and the two leading bits of the mantissa are the bucket; a bound itself belongs to the bucket it ends.
    place = <Py_ssize_t>((bits - 1) >> 50) - ((1023 + FIRST) << 2) + 1
    return place if place < BUCKETS else BUCKETS - 1


def bucket_bounds():
    """Upper ends of the buckets in microseconds; the last one has none."""
    cdef Py_ssize_t i
    bounds = [0.25]
    for i in range(BUCKETS - 2):
        bounds.append(2.0 ** (FIRST + i // QUARTERS) * (1.0 + (i % QUARTERS + 1) / <double>QUARTERS))
    return bounds


@cython.final
cdef class MetricsRing:
    """The newest `capacity` predictions, and since the last `clear` their summaries and latency histograms.

    One writer, the holder of the pipeline's lock; what reads copies.
    """

    def __cinit__(self, Py_ssize_t capacity, Py_ssize_t labels):
        if not 1 <= capacity <= (1 << 24) or not 1 <= labels <= (1 << 20):
            raise ValueError("a metrics ring needs a capacity of 1 to 2**24 and at least one label")
        self.capacity = capacity
        self.labels = labels
        self._latency = <double*>calloc(<size_t>capacity, sizeof(double))
        self._confidence = <double*>calloc(<size_t>capacity, sizeof(double))
        self._label = <int*>calloc(<size_t>capacity, sizeof(int))
        self._counts = <long long*>calloc(<size_t>labels, sizeof(long long))
        if not self._latency or not self._confidence or not self._label or not self._counts:
            raise MemoryError("no memory for a metrics ring")
        self.latency_us = Summary(0.01, 1536, 0.01)
        self.confidence = Summary(0.01, 512, 1e-4)
        # As their base: the hot route calls them in C without knowing more of them.
        self._latency_moments, self._latency_sketch = self.latency_us.moments, self.latency_us.sketch
        self._confidence_moments, self._confidence_sketch = self.confidence.moments, self.confidence.sketch

    def __dealloc__(self):
        free(self._latency)
        free(self._confidence)
        free(self._label)
        free(self._counts)

    cdef void put(self, const double* stages_us, Py_ssize_t stages, double latency_us, double confidence,
                  int label) noexcept nogil:
        """Take one prediction: the stages' times and their sum in microseconds, 0 to 1, index of the label."""
        cdef Py_ssize_t i
        for i in range(stages if stages < STAGES else STAGES):
            self._histograms[i][bucket_of(stages_us[i])] += 1
            self._sums[i] += stages_us[i]
        self._histograms[STAGES][bucket_of(latency_us)] += 1
        self._sums[STAGES] += latency_us
        self._latency[self._place] = latency_us
        self._confidence[self._place] = confidence
        self._label[self._place] = label
        self._place = self._place + 1 if self._place + 1 < self.capacity else 0
        self._counts[label] += 1
        self.total += 1
        self._latency_moments._push(latency_us)
        self._latency_sketch._push(latency_us)
        self._confidence_moments._push(confidence)
        self._confidence_sketch._push(confidence)

    def update(self, double latency_us, double confidence, int label):
        """Take one prediction without the times of its stages: microseconds, 0 to 1, index of the label."""
        if not 0 <= label < self.labels:
            raise ValueError(f"label {label} of {self.labels}")
        self.put(NULL, 0, latency_us, confidence, label)

    def counts(self):
        """Predictions of each label since the last `clear`."""
        cdef Py_ssize_t i
        return [self._counts[i] for i in range(self.labels)]

    def histogram(self, str stage="total"):
        """A stage's counts in the buckets of `bucket_bounds` since the start, and the latencies' sum in us."""
        cdef Py_ssize_t i, which = STAGES if stage == "total" else STAGE_NAMES.index(stage)
        return [self._histograms[which][i] for i in range(BUCKETS)], self._sums[which]

    def recent(self):
        """The ring's (latency, confidence, label), oldest first."""
        cdef long long i, first = max(0, self.total - self.capacity)
        return [
            (self._latency[i % self.capacity], self._confidence[i % self.capacity], self._label[i % self.capacity])
            for i in range(first, self.total)
        ]

    def clear(self):
        """Begin new summaries; the ring and the histograms, which count from the start, keep what they hold."""
        self.latency_us.clear()
        self.confidence.clear()
        memset(self._counts, 0, <size_t>self.labels * sizeof(long long))


def top(const float[::1] scores not None):
    """Index of the greatest score, the first of equals; -1 when one is not finite."""
    cdef Py_ssize_t i, best = 0
    for i in range(scores.shape[0]):
        if not isfinite(scores[i]):
            return -1
        if scores[i] > scores[best]:
            best = i
    return best


def window_moments(const float[:, ::1] window not None, double[::1] mean not None, double[::1] std not None):
    """Mean and standard deviation (divided by n) of each channel of a window, `[samples, channels]`.

    Two passes, so that a large offset costs no precision.
    """
    cdef Py_ssize_t i, j, samples = window.shape[0], channels = window.shape[1]
    cdef double d
    if mean.shape[0] != channels or std.shape[0] != channels or samples == 0:
        raise ValueError(f"expected {channels} means and deviations and at least one sample")
    with nogil:
        for j in range(channels):
            mean[j] = 0
            std[j] = 0
        for i in range(samples):
            for j in range(channels):
                mean[j] += window[i, j]
        for j in range(channels):
            mean[j] /= samples
        for i in range(samples):
            for j in range(channels):
                d = window[i, j] - mean[j]
                std[j] += d * d
        for j in range(channels):
            std[j] = sqrt(std[j] / samples)
