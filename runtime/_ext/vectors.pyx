"""Detectors of rows of features: one compiled call a row.

A row with a value that is not usable is passed over as a whole and counted in `ignored`.
"""

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBuffer_Release, PyObject_GetBuffer
from libc.math cimport INFINITY, NAN, cos, fabs, sqrt
from libc.stdlib cimport free
from libc.string cimport memset

cimport cython

from .core cimport (
    Block, allocate, as_bytes, count_below, finite_array, natural, number, restore, ring_place, take_row, usable,
)
from .drift cimport POLICY_REBASE, Detector

import numpy as np

from tinylcm.errors import ConfigError, InputError
from tinylcm.types import HistogramPair

from .windowed import upper_gamma

cdef enum:
    SIGNALS_MAX = 4096
    WINDOW_MAX = 1 << 20
    VALUES_MAX = 1 << 27


cdef double* _copy(object array) except NULL:
    """An array's doubles in memory of our own."""
    cdef double[::1] view = array.reshape(-1)
    cdef double* place = <double*>allocate(view.shape[0], sizeof(double))
    cdef Py_ssize_t i
    for i in range(view.shape[0]):
        place[i] = view[i]
    return place


cdef class Vector(Detector):
    """Base: a detector of rows of d features.

    `update(row)` takes float64 or float32 `[d]` in place, `update_many(rows)` `[n, d]`.
    """

    cdef readonly Py_ssize_t d
    cdef double* _scratch
    cdef double _threshold, _statistic

    def __dealloc__(self):
        free(self._scratch)

    cdef int _open(self, Py_ssize_t d, double threshold, object policy) except -1:
        name = type(self).__name__
        if not 1 <= d <= SIGNALS_MAX or not threshold > 0:
            raise ConfigError(f"{name}: expected 1 to {SIGNALS_MAX} features and threshold > 0")
        self._set_policy(policy)
        if self._policy == POLICY_REBASE:
            raise ConfigError(f"{name}: policy rebase needs a reference that is learned; build a new one instead")
        self.d = d
        self._threshold = threshold
        self._statistic = NAN
        self._scratch = <double*>allocate(d, sizeof(double))

    cdef void _look(self, const double* x) noexcept nogil:
        """Take a usable row."""
        pass

    cdef int _row(self, const double* x) except -1:
        cdef Py_ssize_t j
        self.index += 1
        self.drift_detected = False
        for j in range(self.d):
            if not usable(x[j]):
                self.ignored += 1
                return 0
        if self._over:
            self._over = False
            self._begin()
        self._look(x)
        if self.drift_detected:
            self._settle()
        return self.drift_detected

    def update(self, row):
        """Take one row, `[d]`; whether it raised an alarm."""
        cdef Py_buffer view
        cdef const double* x = take_row(row, self.d, &view, self._scratch)
        self._row(x)
        PyBuffer_Release(&view)
        return self.drift_detected

    def update_many(self, rows):
        """Take rows, `[n, d]`; the indices in the block of those that raised an alarm."""
        cdef Block block = Block()
        cdef Py_ssize_t i
        cdef list alarms = []
        block.take(rows, 2)
        if block.columns != self.d:
            raise InputError(f"expected rows of {self.d} values, got {block.columns}")
        for i in range(block.rows):
            if self._row(block.data + i * self.d):
                alarms.append(i)
        return alarms

    cdef double _value(self):
        return self._statistic

    cdef double _limit(self):
        return self._threshold


# the mean of a window -------------------------------------------------------------------------------------


cdef class RollingDistance(Vector):
    """Base: sqrt(m' R^-1 m), m the rolling mean of (x - mean) / std, R a correlation matrix.

    The sums are rebuilt from the ring once a round, so that rounding does not grow with the stream.
    """

    cdef readonly Py_ssize_t window
    cdef readonly double shrinkage
    cdef double* _mean
    cdef double* _scale
    cdef double* _root      # lower triangular W with W' W = R^-1, row by row
    cdef double* _sum
    cdef double* _recent
    cdef Py_ssize_t _used, _place
    cdef object _mean_given, _std_given, _matrix_given

    def __dealloc__(self):
        free(self._mean)
        free(self._scale)
        free(self._root)
        free(self._sum)
        free(self._recent)

    cdef int _make(self, object mean, object std, object correlation, double threshold, Py_ssize_t window,
                   double shrinkage, object policy) except -1:
        name = type(self).__name__
        means, stds = finite_array(self, mean, "mean", 1), finite_array(self, std, "std", 1)
        d = means.size
        self._open(d, threshold, policy)
        if stds.size != d or not stds.min() > 0:
            raise ConfigError(f"{name}: expected {d} standard deviations above 0")
        if not 1 <= window <= WINDOW_MAX or window * d > VALUES_MAX or not 0 <= shrinkage <= 1:
            raise ConfigError(f"{name}: expected a window of 1 to {WINDOW_MAX} and 0 <= shrinkage <= 1")
        matrix = np.eye(d) if correlation is None else finite_array(self, correlation, "correlation", 2)
        if matrix.shape != (d, d) or not np.allclose(matrix, matrix.T):
            raise ConfigError(f"{name}: expected a symmetric {d} x {d} correlation matrix")
        try:
            root = np.linalg.inv(np.linalg.cholesky((1 - shrinkage) * matrix + shrinkage * np.eye(d)))
        except np.linalg.LinAlgError:
            raise ConfigError(f"{name}: the correlation matrix is not positive definite; raise shrinkage") from None
        self.window = window
        self.shrinkage = shrinkage
        self._mean_given, self._std_given, self._matrix_given = means, stds, None if correlation is None else matrix
        self._mean = _copy(means)
        self._scale = _copy(1.0 / stds)
        self._root = _copy(np.ascontiguousarray(root))
        self._sum = <double*>allocate(d, sizeof(double))
        self._recent = <double*>allocate(window * d, sizeof(double))

    cdef void _begin(self) noexcept nogil:
        self._used = self._place = 0
        memset(self._sum, 0, <size_t>self.d * sizeof(double))
        self._statistic = NAN
        self._armed = self.warning_detected = False

    cdef double _scaled(self, double squared) noexcept nogil:
        """The statistic from m' R^-1 m."""
        return squared

    cdef void _look(self, const double* x) noexcept nogil:
        cdef Py_ssize_t i, j, d = self.d
        cdef double* place = self._recent + self._place * d
        cdef double z, total = 0.0, part
        cdef bint full = self._used == self.window
        for j in range(d):
            z = (x[j] - self._mean[j]) * self._scale[j]
            self._sum[j] += z - place[j] if full else z
            place[j] = z
        if not full:
            self._used += 1
        self._place += 1
        if self._place == self.window:
            self._place = 0
            memset(self._sum, 0, <size_t>d * sizeof(double))
            for i in range(self.window):
                for j in range(d):
                    self._sum[j] += self._recent[i * d + j]
        if self._used < self.window:
            return
        for i in range(d):
            part = 0.0
            for j in range(i + 1):
                part += self._root[i * d + j] * self._sum[j]
            total += part * part
        self._statistic = self._scaled(total / self.window / self.window)
        self._judge(self._statistic, self._threshold)
        if self.drift_detected:
            self.suspect = self.index - self.window

    def means(self):
        """Rolling mean of each standardised feature: how many deviations it is off, float64 `[d]`."""
        return np.array([self._sum[j] / max(self._used, 1) for j in range(self.d)])

    @property
    def worst(self):
        """The feature whose rolling mean is most deviations off."""
        cdef Py_ssize_t j, worst = 0
        for j in range(self.d):
            if fabs(self._sum[j]) > fabs(self._sum[worst]):
                worst = j
        return worst

    cdef list _config(self):
        return [self._mean_given.tolist(), self._std_given.tolist(),
                None if self._matrix_given is None else self._matrix_given.tolist(), self._threshold, self.window,
                self.shrinkage, self.policy]

    cdef list _own(self):
        return [self._used, self._place, None if self._statistic != self._statistic else self._statistic,
                as_bytes(self._sum, self.d * 8), as_bytes(self._recent, self._used * self.d * 8)]

    cdef int _own_load(self, list fields) except -1:
        used, place, statistic, total, recent = fields
        self._used = natural(used, self.window)
        self._place = ring_place(place, self._used, self.window)
        self._statistic = NAN if statistic is None else number(statistic)
        restore(self._sum, total, self.d * 8)
        restore(self._recent, recent, self._used * self.d * 8)


@cython.final
cdef class Mahalanobis(RollingDistance):
    """How far the mean of the newest `window` rows lies from the reference, in its own units of scatter.

    distance = sqrt(m' R^-1 m), m the rolling mean of (x - mean) / std, R the reference's correlation matrix, shrunk
    towards the identity (Mahalanobis 1936; shrinkage after Ledoit and Wolf 2004, with a fixed weight).

    Args:
        mean, std: the reference's, of d features; std > 0.
        correlation: the reference's d x d correlation matrix; None for independent features.
        threshold: distance above which it alarms.
        window: newest rows that are averaged.
        shrinkage: weight of the identity, 0 to 1.
        policy: how it is armed again, `latch` or `reset`.

    Raises:
        ConfigError: a parameter is out of range or the matrix is no correlation matrix.

    >>> import numpy as np
    >>> detector = Mahalanobis([0.0, 0.0], [1.0, 1.0], None, threshold=2.0, window=5)
    >>> detector.update_many(np.vstack([np.zeros((10, 2)), np.full((5, 2), 2.0)]))
    [13]
    """

    def __cinit__(self, mean, std, correlation, double threshold, Py_ssize_t window=50, double shrinkage=0.05,
                  policy="latch"):
        self._make(mean, std, correlation, threshold, window, shrinkage, policy)

    cdef double _scaled(self, double squared) noexcept nogil:
        return sqrt(squared)


@cython.final
cdef class HotellingT2(RollingDistance):
    """Hotelling's T-squared of the mean of the newest `window` rows (Hotelling 1931), reference taken as known.

    T2 = window m' R^-1 m; `p_value` is the chi-square one of a single look at independent rows.

    Args:
        mean, std, correlation, window, policy: as for `Mahalanobis`.
        threshold: T2 above which it alarms.
        shrinkage: weight of the identity; 0, the default, keeps the test exact.
    """

    def __cinit__(self, mean, std, correlation, double threshold, Py_ssize_t window=50, double shrinkage=0.0,
                  policy="latch"):
        self._make(mean, std, correlation, threshold, window, shrinkage, policy)

    cdef double _scaled(self, double squared) noexcept nogil:
        return self.window * squared

    @property
    def p_value(self):
        """Of the present T2; None before the window is full."""
        if self._statistic != self._statistic:
            return None
        return upper_gamma(self.d / 2.0, self._statistic / 2)


# distances between points ---------------------------------------------------------------------------------


cdef object _cloud(object self, object reference, Py_ssize_t least):
    points = finite_array(self, reference, "the reference", 2)
    if not least <= points.shape[0] <= 65536 or points.size > VALUES_MAX:
        raise ConfigError(
            f"{type(self).__name__}: the reference has {points.shape[0]} rows, expected {least} to 65536"
        )
    return points


@cython.final
cdef class KNNDistance(Vector):
    """Mean distance to the k nearest reference rows, with a Page-Hinkley test upwards on it: for embeddings.

    Features are standardised by the reference's deviations. The reference's own distances (each row to its k nearest
    others) give the mean and deviation by which a new distance is standardised; PageHinkley then looks for a lasting
    rise, so `threshold` and `delta` are in deviations.

    Args:
        reference: rows `[n, d]`, k + 2 to 65,536; a row costs n * d operations.
        k: neighbours, 1 or more.
        threshold: Page-Hinkley's excursion that raises the alarm.
        delta: the rise that is tolerated.
        clip: largest standardised distance that counts, so that one outlier is no drift.
        policy: `reset` or `latch`.

    Raises:
        ConfigError: a parameter is out of range.
    """

    cdef readonly Py_ssize_t k, n
    cdef readonly double delta, clip, distance
    cdef double* _reference
    cdef double* _nearest
    cdef object _given, _scales
    cdef double* _scale
    cdef double _mean, _std, _excess, _least
    cdef long long _from

    def __cinit__(self, reference, Py_ssize_t k=5, double threshold=30.0, double delta=0.25, double clip=5.0,
                  policy="reset"):
        cdef Py_ssize_t i
        if k < 1:
            raise ConfigError(f"KNNDistance: k is {k}, expected 1 or more")
        points = _cloud(self, reference, k + 2)
        if not 0 <= delta <= 100 or not clip > delta:
            raise ConfigError("KNNDistance: expected 0 <= delta <= 100 and clip > delta")
        self._open(points.shape[1], threshold, policy)
        self.k = k
        self.n = points.shape[0]
        self.delta = delta
        self.clip = clip
        self._given = points
        std = points.std(axis=0)
        std[std == 0] = 1.0
        self._scale = _copy(1.0 / std)
        self._reference = _copy(np.ascontiguousarray(points / std))
        self._nearest = <double*>allocate(k, sizeof(double))
        # The scale of distances: each of up to 2,000 reference rows, spread evenly, to the others.
        step = max(1, self.n // 2000)
        own = []
        for i in range(0, self.n, step):
            own.append(self._measure(self._reference + i * self.d, i))
        self._mean = float(np.mean(own))
        self._std = float(np.std(own, ddof=1))
        if not self._std > 0:
            raise ConfigError("KNNDistance: all rows of the reference are equally far from each other")
        self._statistic = 0.0
        self.distance = NAN

    def __dealloc__(self):
        free(self._reference)
        free(self._nearest)
        free(self._scale)

    cdef double _measure(self, const double* x, Py_ssize_t leave) noexcept nogil:
        """Mean distance of a scaled row to its k nearest, without row `leave`."""
        cdef Py_ssize_t i, j, at, d = self.d, used = 0
        cdef double distance, difference, total = 0.0
        cdef const double* point
        for i in range(self.n):
            if i == leave:
                continue
            point = self._reference + i * d
            distance = 0.0
            for j in range(d):
                difference = x[j] - point[j]
                distance += difference * difference
            if used == self.k and distance >= self._nearest[used - 1]:
                continue
            at = used if used < self.k else self.k - 1
            while at > 0 and self._nearest[at - 1] > distance:
                self._nearest[at] = self._nearest[at - 1]
                at -= 1
            self._nearest[at] = distance
            if used < self.k:
                used += 1
        for i in range(used):
            total += sqrt(self._nearest[i])
        return total / used

    cdef void _begin(self) noexcept nogil:
        self._excess = self._least = self._statistic = 0.0
        self._from = self.index
        self._armed = self.warning_detected = False

    cdef void _look(self, const double* x) noexcept nogil:
        cdef Py_ssize_t j
        cdef double z
        for j in range(self.d):
            self._scratch[j] = x[j] * self._scale[j]
        self.distance = self._measure(self._scratch, -1)
        z = (self.distance - self._mean) / self._std
        self._excess += (self.clip if z > self.clip else z) - self.delta
        if self._excess < self._least:
            self._least = self._excess
            self._from = self.index
        self._statistic = self._excess - self._least
        self._judge(self._statistic, self._threshold)
        if self.drift_detected:
            self.suspect = self._from

    cdef list _config(self):
        return [self._given.tolist(), self.k, self._threshold, self.delta, self.clip, self.policy]

    cdef list _own(self):
        return [self._excess, self._least, self._statistic, self._from]

    cdef int _own_load(self, list fields) except -1:
        excess, least, statistic, begin = fields
        self._excess = number(excess)
        self._least = number(least)
        self._statistic = number(statistic)
        self._from = natural(begin)


@cython.final
cdef class MMD(Vector):
    """Maximum mean discrepancy of the newest `window` rows from a reference, by random Fourier features.

    The distance of the mean maps sqrt(2 / D) cos(W x + b) of both, W normal with the bandwidth's inverse and b
    uniform: the Gaussian-kernel MMD (Gretton et al., JMLR 2012) in the approximation of Rahimi and Recht (NIPS 2007),
    O(D d) a row whatever the window.

    Args:
        reference: rows `[n, d]`, 10 to 65,536.
        threshold: distance above which it alarms, 0 to 2.
        window: newest rows that are compared.
        components: D, 1 to 4,096.
        bandwidth: of the kernel, in deviations of the reference; None: the median distance of its rows.
        seed: of W and b, numpy's `default_rng`.
        policy: `latch` or `reset`.

    Raises:
        ConfigError: a parameter is out of range.
    """

    cdef readonly Py_ssize_t window, components
    cdef readonly double bandwidth
    cdef double* _weights
    cdef double* _phases
    cdef double* _target
    cdef double* _sum
    cdef double* _recent
    cdef Py_ssize_t _used, _place
    cdef object _given
    cdef object _bandwidth_given
    cdef readonly object seed

    def __cinit__(self, reference, double threshold, Py_ssize_t window=100, Py_ssize_t components=100, bandwidth=None,
                  seed=0, policy="latch"):
        points = _cloud(self, reference, 10)
        if not 1 <= window <= WINDOW_MAX or not 1 <= components <= 4096 or window * components > VALUES_MAX:
            raise ConfigError("MMD: expected a window of 1 to 2**20 and 1 to 4096 components")
        self._open(points.shape[1], threshold, policy)
        rng = np.random.default_rng(seed)
        std = points.std(axis=0)
        std[std == 0] = 1.0
        if bandwidth is None:
            some = (points / std)[rng.choice(points.shape[0], min(points.shape[0], 300), replace=False)]
            apart = np.sqrt(((some[:, None] - some[None]) ** 2).sum(-1))
            self.bandwidth = float(np.median(apart[np.triu_indices(len(some), 1)])) or 1.0
        else:
            self.bandwidth = bandwidth
        if not 0 < self.bandwidth <= 1e140:
            raise ConfigError(f"MMD: bandwidth is {bandwidth}, expected more than 0")
        self.window = window
        self.components = components
        self.seed = seed
        self._given = points
        self._bandwidth_given = bandwidth
        weights = rng.standard_normal((components, self.d)) / self.bandwidth / std
        phases = rng.uniform(0, 2 * np.pi, components)
        self._weights = _copy(np.ascontiguousarray(weights))
        self._phases = _copy(phases)
        total = np.zeros(components)
        for start in range(0, points.shape[0], 1024):
            total += np.cos(points[start:start + 1024] @ weights.T + phases).sum(axis=0)
        self._target = _copy(total / points.shape[0])
        self._sum = <double*>allocate(components, sizeof(double))
        self._recent = <double*>allocate(window * components, sizeof(double))

    def __dealloc__(self):
        free(self._weights)
        free(self._phases)
        free(self._target)
        free(self._sum)
        free(self._recent)

    cdef void _begin(self) noexcept nogil:
        self._used = self._place = 0
        memset(self._sum, 0, <size_t>self.components * sizeof(double))
        self._statistic = NAN
        self._armed = self.warning_detected = False

    cdef void _look(self, const double* x) noexcept nogil:
        cdef Py_ssize_t i, j, count = self.components
        cdef double* place = self._recent + self._place * count
        cdef double angle, value, total = 0.0
        cdef bint full = self._used == self.window
        for i in range(count):
            angle = self._phases[i]
            for j in range(self.d):
                angle += self._weights[i * self.d + j] * x[j]
            value = cos(angle)
            self._sum[i] += value - place[i] if full else value
            place[i] = value
        if not full:
            self._used += 1
        self._place += 1
        if self._place == self.window:
            self._place = 0
            memset(self._sum, 0, <size_t>count * sizeof(double))
            for i in range(self.window):
                for j in range(count):
                    self._sum[j] += self._recent[i * count + j]
        if self._used < self.window:
            return
        for i in range(count):
            value = self._sum[i] / self.window - self._target[i]
            total += value * value
        self._statistic = sqrt(2.0 / count * total)
        self._judge(self._statistic, self._threshold)
        if self.drift_detected:
            self.suspect = self.index - self.window

    cdef list _config(self):
        return [self._given.tolist(), self._threshold, self.window, self.components, self._bandwidth_given, self.seed,
                self.policy]

    cdef list _own(self):
        return [self._used, self._place, None if self._statistic != self._statistic else self._statistic,
                as_bytes(self._sum, self.components * 8), as_bytes(self._recent, self._used * self.components * 8)]

    cdef int _own_load(self, list fields) except -1:
        used, place, statistic, total, recent = fields
        self._used = natural(used, self.window)
        self._place = ring_place(place, self._used, self.window)
        self._statistic = NAN if statistic is None else number(statistic)
        restore(self._sum, total, self.components * 8)
        restore(self._recent, recent, self._used * self.components * 8)


# the distribution of each feature -------------------------------------------------------------------------


cdef class Histograms(Vector):
    """Base: rolling histograms of d features over bins of their own."""

    cdef readonly Py_ssize_t window, bins
    cdef double* _edges      # inner ones, d x (bins - 1)
    cdef double* _shares     # cumulated shares of the reference, d x bins
    cdef int* _counts
    cdef unsigned char* _recent   # window x d
    cdef Py_ssize_t _used, _place
    cdef object _edges_given, _counts_given

    def __dealloc__(self):
        free(self._edges)
        free(self._shares)
        free(self._counts)
        free(self._recent)

    cdef int _fill(self, object edges, object counts, Py_ssize_t window) except -1:
        cdef Py_ssize_t i, j
        cdef double total
        name = type(self).__name__
        try:
            lines = [finite_array(self, line, "edges", 1) for line in edges]
            tallies = [finite_array(self, line, "counts", 1) for line in counts]
        except TypeError:
            raise ConfigError(f"{name}: expected edges and counts for each feature") from None
        if len(lines) != self.d or len(tallies) != self.d:
            raise ConfigError(f"{name}: expected edges and counts of {self.d} features")
        self.bins = max([line.size for line in tallies])
        if not 2 <= self.bins <= 255 or not 1 <= window <= WINDOW_MAX or window * self.d > VALUES_MAX:
            raise ConfigError(f"{name}: expected 2 to 255 bins and a window of 1 to {WINDOW_MAX}")
        self.window = window
        self._edges = <double*>allocate(self.d * (self.bins - 1), sizeof(double))
        self._shares = <double*>allocate(self.d * self.bins, sizeof(double))
        self._counts = <int*>allocate(self.d * self.bins, sizeof(int))
        self._recent = <unsigned char*>allocate(window * self.d, 1)
        for j in range(self.d):
            line, tally = lines[j], tallies[j]
            if line.size != tally.size + 1 or tally.size < 2 or not np.all(np.diff(line) > 0):
                raise ConfigError(f"{name}: edges must rise and be one more than the counts, of two bins at least")
            if tally.min() < 0 or not tally.sum() > 0:
                raise ConfigError(f"{name}: reference counts must not be negative nor all zero")
            total = 0.0
            for i in range(self.bins):
                if i < tally.size:
                    total += tally[i] / tally.sum()
                self._shares[j * self.bins + i] = total
                if i < self.bins - 1:
                    # Features with fewer bins are filled up with bins beyond infinity, which nothing ever enters.
                    self._edges[j * (self.bins - 1) + i] = line[i + 1] if i + 1 < tally.size else INFINITY
        self._edges_given = lines
        self._counts_given = tallies

    cdef void _push_bins(self, const double* x) noexcept nogil:
        cdef Py_ssize_t j, low, inner = self.bins - 1
        cdef unsigned char* place = self._recent + self._place * self.d
        cdef bint full = self._used == self.window
        for j in range(self.d):
            low = count_below(self._edges + j * inner, inner, x[j])
            if full:
                self._counts[j * self.bins + place[j]] -= 1
            self._counts[j * self.bins + low] += 1
            place[j] = <unsigned char>low
        if not full:
            self._used += 1
        self._place += 1
        if self._place == self.window:
            self._place = 0

    cdef double _distance(self, Py_ssize_t j) noexcept nogil:
        """The feature's binned KS distance."""
        cdef Py_ssize_t i
        cdef double distance, greatest = 0.0
        cdef long long here = 0
        cdef double inverse = 1.0 / self.window
        for i in range(self.bins):
            here += self._counts[j * self.bins + i]
            distance = fabs(here * inverse - self._shares[j * self.bins + i])
            if distance > greatest:
                greatest = distance
        return greatest

    cdef void _clear_bins(self) noexcept nogil:
        self._used = self._place = 0
        memset(self._counts, 0, <size_t>(self.d * self.bins) * sizeof(int))

    def histogram(self, Py_ssize_t signal):
        """A feature's reference beside the window's counts, as a `HistogramPair`."""
        cdef Py_ssize_t i
        if not 0 <= signal < self.d:
            raise IndexError(signal)
        reference = tuple(self._counts_given[signal].tolist())
        current = tuple([float(self._counts[signal * self.bins + i]) for i in range(len(reference))])
        return HistogramPair(reference, current, tuple(self._edges_given[signal].tolist()))

    cdef list _lists(self):
        return [[line.tolist() for line in self._edges_given], [line.tolist() for line in self._counts_given]]

    cdef list _bins_out(self):
        return [self._used, self._place, as_bytes(self._recent, self._used * self.d)]

    cdef int _bins_in(self, object source) except -1:
        cdef Py_ssize_t i, j
        used, place, recent = source
        self._used = natural(used, self.window)
        self._place = ring_place(place, self._used, self.window)
        restore(self._recent, recent, self._used * self.d)
        for i in range(self._used):
            for j in range(self.d):
                if self._recent[i * self.d + j] >= self.bins:
                    raise ValueError("a bin is out of range")
                self._counts[j * self.bins + self._recent[i * self.d + j]] += 1


@cython.final
cdef class BinnedKS(Histograms):
    """Greatest difference between the cumulated shares of the newest `window` rows and of a reference.

    The two-sample statistic of Kolmogorov (1933) and Smirnov (1939), taken at the edges of the reference's bins; with
    edges at quantiles it is exact to a bin's share. Compared is the worst of the signals.

    Args:
        edges: for each signal its rising bin edges; what lies outside counts in the outermost bins, a value on an
            edge below it.
        counts: for each signal the reference's count or share in each bin, 2 to 255 of them.
        threshold: distance above which it alarms, 0 to 1.
        window: newest rows that are compared.
        policy: `latch` or `reset`.

    Raises:
        ConfigError: a parameter is out of range.

    `update` takes rows too, `[n, d]`, and then looks once, after the last. Values count as float32, as models see
    them.

    >>> import numpy as np
    >>> detector = BinnedKS([[0.0, 1.0, 2.0]], [[50, 50]], threshold=0.4, window=10)
    >>> rows = np.array([[0.5], [1.5]] * 10 + [[1.5]] * 10)
    >>> [index for index in range(30) if detector.update(rows[index : index + 1])]
    [28]
    """

    cdef readonly Py_ssize_t worst

    def __cinit__(self, edges, counts, double threshold, Py_ssize_t window=500, policy="latch"):
        if not hasattr(edges, "__len__") or len(edges) < 1:
            raise ConfigError("BinnedKS: expected edges and counts for each feature")
        self._open(len(edges), threshold, policy)
        if not threshold < 1:
            raise ConfigError(f"BinnedKS: threshold is {threshold}, expected 0 < threshold < 1")
        self._fill(edges, counts, window)

    cdef void _begin(self) noexcept nogil:
        self._clear_bins()
        self._statistic = NAN
        self.worst = 0
        self._armed = self.warning_detected = False

    cdef void _measure(self) noexcept nogil:
        cdef Py_ssize_t j
        cdef double distance
        if self._used < self.window:
            return
        self._statistic = -1.0
        for j in range(self.d):
            distance = self._distance(j)
            if distance > self._statistic:
                self._statistic = distance
                self.worst = j
        self._judge(self._statistic, self._threshold)
        if self.drift_detected:
            self.suspect = self.index - self.window

    cdef void _look(self, const double* x) noexcept nogil:
        self._push_bins(x)
        self._measure()

    def update(self, rows):
        """Take a row `[d]` or rows `[n, d]` and look once; whether that raised an alarm."""
        cdef Py_buffer view
        try:
            PyObject_GetBuffer(rows, &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
        except (TypeError, BufferError, ValueError):
            pass
        else:
            try:
                if view.ndim and view.ndim <= 2 and view.shape[view.ndim - 1] == self.d and view.format != NULL:
                    if view.format[0] == c"f":
                        return self._take_rows(<const float*>view.buf, NULL, view.len // (4 * self.d))
                    if view.format[0] == c"d":
                        return self._take_rows(NULL, <const double*>view.buf, view.len // (8 * self.d))
            finally:
                PyBuffer_Release(&view)
        return self._take_array(rows)

    def _take_array(self, rows):
        cdef const float[:, ::1] block
        try:
            with np.errstate(over="ignore"):  # too large for float32 is infinite, and passed over
                array = np.asarray(rows, dtype=np.float32, order="C")
        except (TypeError, ValueError) as error:
            raise InputError(f"expected numbers, got {type(rows).__name__}: {error}") from None
        if array.ndim == 1:
            array = array[None]
        if array.ndim != 2 or array.shape[1] != self.d:
            raise InputError(f"expected rows of {self.d} values, got shape {list(np.shape(rows))}")
        block = array
        return self._take_rows(&block[0, 0] if block.shape[0] else NULL, NULL, block.shape[0])

    cdef bint _take_rows(self, const float* block, const double* doubles, Py_ssize_t rows) noexcept:
        cdef Py_ssize_t i, j
        cdef bint good
        self.drift_detected = False
        if self._over:
            self._over = False
            self._begin()
        for i in range(rows):
            self.index += 1
            good = True
            for j in range(self.d):
                self._scratch[j] = <float>doubles[i * self.d + j] if block is NULL else block[i * self.d + j]
                good = good and usable(self._scratch[j])
            if good:
                self._push_bins(self._scratch)
            else:
                self.ignored += 1
        self._measure()
        if self.drift_detected:
            self._settle()
        return self.drift_detected

    cdef list _config(self):
        return [*self._lists(), self._threshold, self.window, self.policy]

    cdef list _own(self):
        return [self._bins_out(), None if self._statistic != self._statistic else self._statistic, self.worst]

    cdef int _own_load(self, list fields) except -1:
        bins, statistic, worst = fields
        self._bins_in(bins)
        self._statistic = NAN if statistic is None else number(statistic)
        self.worst = natural(worst, self.d - 1)


MEMBERS = ("level", "spread", "shape", "joint")
FOLDS = 10


cdef object _held_out_moments(object rows, double shrinkage):
    """Mean and deviation of |z|, of q and of |q - mean|, on rows that took no part in mean, std and correlation.

    Rows are nearer to statistics that were made of them: with 64 features and 1,000 rows by half a deviation of q.
    Folds are stretches of time, so that neighbours do not stand on both sides.
    """
    d = rows.shape[1]
    sizes, squares = [], []
    for held in np.array_split(np.arange(rows.shape[0]), FOLDS):
        rest = np.delete(rows, held, axis=0)
        std = rest.std(axis=0, ddof=1)
        std[std == 0] = np.inf  # it varies in the held-out fold only
        with np.errstate(divide="ignore", invalid="ignore"):
            correlation = np.nan_to_num(np.corrcoef(rest.T).reshape(d, d))
        np.fill_diagonal(correlation, 1.0)
        z = (rows[held] - rest.mean(axis=0)) / std
        inverse = np.linalg.pinv((1 - shrinkage) * correlation + shrinkage * np.eye(d))
        sizes.append(np.abs(z))
        squares.append(np.einsum("ij,jk,ik->i", z, inverse, z))
    squared = np.concatenate(squares)
    size = np.c_[np.concatenate(sizes), squared, np.abs(squared - squared.mean())]
    return np.vstack([size.mean(axis=0), np.maximum(size.std(axis=0, ddof=1), 1e-9)])


@cython.final
cdef class FeatureDrift(Histograms):
    """The default set of monitors for d features, in one compiled call a row.

    Four members, each with a threshold of its own:

    * `level`: two-sided CUSUM of each standardised feature z: its mean;
    * `spread`: two-sided CUSUM of |z|, standardised: its variance;
    * `shape`: binned KS of each feature over the newest `window` rows: its distribution;
    * `joint`: two-sided CUSUMs of the row's squared Mahalanobis distance q = z' R^-1 z and of |q - mean|, both
      standardised: the features' correlation. (Features that were independent and become dependent change only the
      spread of q.) Absent for a single feature, where it would repeat `spread`.

    The statistic is the greatest of the members' values, each divided by its threshold, so that the set alarms above
    `threshold`. `worst` names the feature and `member` the member.

    Args:
        mean, std: the reference's, of d features; std > 0.
        edges, counts: for each feature, bin edges (one more) and the reference's counts, 2 to 255 bins.
        correlation: the reference's d x d correlation matrix; None for independent features.
        moments: reference mean and deviation `[2, d + 2]` of |z| for each feature, of q and of |q - mean|; None: those
            of independent normal values.
        level, spread, shape, joint: thresholds of the members, before the scale `threshold`: each alone alarms falsely
            every 100,000 independent normal values of a single feature.
        k: allowance of the CUSUMs, in deviations.
        clip: largest standardised value that counts in a CUSUM, so that one outlier is no drift.
        window: rows of the histograms.
        shrinkage: weight of the identity in the correlation, 0 to 1.
        threshold: scale of all four, for calibration. At 1.5 no stream of 2,000 independent normal rows
            of 12 features had a false alarm, 3 of 20 of 64 features, with references of 1,000. Calibrate other data.
        policy: `reset` or `latch`.

    Raises:
        ConfigError: a parameter is out of range.
    """

    cdef readonly Py_ssize_t worst
    cdef readonly double k, clip, shrinkage
    cdef double _limits[4]
    cdef int _member
    cdef double* _mean
    cdef double* _scale
    cdef double* _moments     # 2 x (d + 2)
    cdef double* _sums        # up, down of level, then of spread: 4 x d
    cdef long long* _since    # since when each of these is above 0
    cdef double* _root
    cdef double* _z
    cdef double _joint[4]
    cdef long long _joint_since[4]
    cdef object _given

    def __cinit__(self, mean, std, edges, counts, correlation=None, moments=None, double level=19.0,
                  double spread=20.0, double shape=0.115, double joint=21.0, double k=0.25, double clip=4.0,
                  Py_ssize_t window=300, double shrinkage=0.05, double threshold=1.5, policy="reset"):
        means, stds = finite_array(self, mean, "mean", 1), finite_array(self, std, "std", 1)
        d = means.size
        self._open(d, threshold, policy)
        if stds.size != d or not stds.min() > 0:
            raise ConfigError(f"FeatureDrift: expected {d} standard deviations above 0")
        if not (level > 0 and spread > 0 and shape > 0 and joint > 0) or not 0 <= k <= 100 or not clip >= k + 1:
            raise ConfigError("FeatureDrift: expected thresholds above 0, 0 <= k <= 100 and clip >= k + 1")
        if not 0 <= shrinkage <= 1:
            raise ConfigError(f"FeatureDrift: shrinkage is {shrinkage}, expected 0 to 1")
        self._fill(edges, counts, window)
        if moments is None:
            normal = sqrt(2 / np.pi)
            rest = sqrt(1 - 2 / np.pi)
            moments = [[normal] * d + [d, normal * sqrt(2 * d)], [rest] * d + [sqrt(2 * d), rest * sqrt(2 * d)]]
        spreads = finite_array(self, moments, "moments", 2)
        if spreads.shape != (2, d + 2) or not spreads[1].min() > 0:
            raise ConfigError(f"FeatureDrift: expected moments of shape [2, {d + 2}] with deviations above 0")
        matrix = np.eye(d) if correlation is None else finite_array(self, correlation, "correlation", 2)
        if matrix.shape != (d, d) or not np.allclose(matrix, matrix.T):
            raise ConfigError(f"FeatureDrift: expected a symmetric {d} x {d} correlation matrix")
        try:
            root = np.linalg.inv(np.linalg.cholesky((1 - shrinkage) * matrix + shrinkage * np.eye(d)))
        except np.linalg.LinAlgError:
            raise ConfigError("FeatureDrift: the correlation is not positive definite; raise shrinkage") from None
        self._limits[0], self._limits[1], self._limits[2], self._limits[3] = level, spread, shape, joint
        self.k = k
        self.clip = clip
        self.shrinkage = shrinkage
        self._given = [means, stds, None if correlation is None else matrix, spreads]
        self._mean = _copy(means)
        self._scale = _copy(1.0 / stds)
        self._moments = _copy(spreads)
        self._root = _copy(np.ascontiguousarray(root))
        self._sums = <double*>allocate(4 * d, sizeof(double))
        self._since = <long long*>allocate(4 * d, sizeof(long long))
        self._z = <double*>allocate(d, sizeof(double))
        self._statistic = 0.0

    def __dealloc__(self):
        free(self._mean)
        free(self._scale)
        free(self._moments)
        free(self._root)
        free(self._sums)
        free(self._since)
        free(self._z)

    @staticmethod
    def from_reference(rows, Py_ssize_t bins=16, **parameters):
        """A set with the statistics of reference rows `[n, d]`; other parameters as the class's.

        Raises:
            ConfigError: fewer than 20 usable rows, or a feature that never varies.
        """
        from .stats import Histogram

        array = np.asarray(rows, dtype=np.float64)
        if array.ndim != 2 or array.shape[1] < 1:
            raise ConfigError(f"FeatureDrift: expected reference rows [n, d], got shape {list(array.shape)}")
        array = array[np.all(np.abs(array) <= 1e140, axis=1)]
        if array.shape[0] < 20:
            raise ConfigError(f"FeatureDrift: the reference has {array.shape[0]} usable rows, expected 20 or more")
        mean, std = array.mean(axis=0), array.std(axis=0, ddof=1)
        if not std.min() > 0:
            raise ConfigError(f"FeatureDrift: feature {int(std.argmin())} never varies in the reference")
        edges, counts = [], []
        for column in array.T:
            histogram = Histogram.from_reference(column, bins)
            if histogram.bins < 2:  # nearly always one value: that value, and what lies above it
                least, most = histogram.edges
                histogram = Histogram([least - (most - least), least, most])
            histogram.update_many(np.ascontiguousarray(column))
            edges.append(histogram.edges)
            counts.append(histogram.get())
        d = array.shape[1]
        correlation = np.corrcoef(array.T).reshape(d, d)
        moments = _held_out_moments(array, parameters.get("shrinkage", 0.05))
        return FeatureDrift(mean, std, edges, counts, correlation, moments, **parameters)

    cdef void _begin(self) noexcept nogil:
        cdef Py_ssize_t i
        self._clear_bins()
        memset(self._sums, 0, <size_t>(4 * self.d) * sizeof(double))
        for i in range(4 * self.d):
            self._since[i] = self.index
        for i in range(4):
            self._joint[i] = 0.0
            self._joint_since[i] = self.index
        self._statistic = 0.0
        self._armed = self.warning_detected = False

    cdef inline double _clipped(self, double value) noexcept nogil:
        if value > self.clip:
            return self.clip
        return -self.clip if value < -self.clip else value

    cdef void _look(self, const double* x) noexcept nogil:
        cdef Py_ssize_t i, j, d = self.d
        cdef double z, value, part, squared = 0.0, greatest = 0.0, distance
        cdef double* up = self._sums
        cdef double* down = self._sums + d
        cdef double* wide = self._sums + 2 * d
        cdef double* narrow = self._sums + 3 * d
        cdef double level = 1.0 / self._limits[0], spread = 1.0 / self._limits[1]
        cdef Py_ssize_t worst = 0
        cdef int member = 0
        cdef long long since = self.index
        for j in range(d):
            z = (x[j] - self._mean[j]) * self._scale[j]
            self._z[j] = z
            value = self._clipped(z)
            up[j] += value - self.k
            down[j] -= value + self.k
            value = self._clipped((fabs(z) - self._moments[j]) / self._moments[d + 2 + j])
            wide[j] += value - self.k
            narrow[j] -= value + self.k
        for i in range(4 * d):
            if self._sums[i] <= 0:
                self._sums[i] = 0.0
                self._since[i] = self.index
            else:
                value = self._sums[i] * (level if i < 2 * d else spread)
                if value > greatest:
                    greatest = value
                    worst = i % d
                    member = 0 if i < 2 * d else 1
                    since = self._since[i]
        if d > 1:
            for i in range(d):
                part = 0.0
                for j in range(i + 1):
                    part += self._root[i * d + j] * self._z[j]
                squared += part * part
            squared -= self._moments[d]
            value = self._clipped(squared / self._moments[2 * d + 2])
            self._joint[0] += value - self.k
            self._joint[1] -= value + self.k
            value = self._clipped((fabs(squared) - self._moments[d + 1]) / self._moments[2 * d + 3])
            self._joint[2] += value - self.k
            self._joint[3] -= value + self.k
            for i in range(4):
                if self._joint[i] <= 0:
                    self._joint[i] = 0.0
                    self._joint_since[i] = self.index
                elif self._joint[i] / self._limits[3] > greatest:
                    greatest = self._joint[i] / self._limits[3]
                    member = 3
                    since = self._joint_since[i]
        self._push_bins(x)
        if self._used == self.window:
            for j in range(d):
                distance = self._distance(j) / self._limits[2]
                if distance > greatest:
                    greatest = distance
                    worst = j
                    member = 2
                    since = self.index - self.window
        if member == 3:  # the feature that is farthest off in this row
            for j in range(d):
                if fabs(self._z[j]) > fabs(self._z[worst]):
                    worst = j
        self._statistic = greatest
        self.worst = worst
        self._member = member
        self._judge(greatest, self._threshold)
        if self.drift_detected:
            self.suspect = since

    @property
    def member(self):
        """The member with the greatest value: `level`, `spread`, `shape` or `joint`."""
        return MEMBERS[self._member]

    @property
    def values(self):
        """The greatest value of each member, as a dict; shape is NaN until the window is full."""
        cdef Py_ssize_t j, d = self.d
        cdef double shape = NAN
        if self._used == self.window:
            shape = max([self._distance(j) for j in range(d)])
        return {
            "level": max([self._sums[j] for j in range(2 * d)]),
            "spread": max([self._sums[j] for j in range(2 * d, 4 * d)]),
            "shape": shape,
            "joint": max([self._joint[j] for j in range(4)]),
        }

    cdef list _config(self):
        mean, std, correlation, moments = self._given
        return [mean.tolist(), std.tolist(), *self._lists(), None if correlation is None else correlation.tolist(),
                moments.tolist(), self._limits[0],
                self._limits[1], self._limits[2], self._limits[3], self.k, self.clip, self.window, self.shrinkage,
                self._threshold, self.policy]

    cdef list _own(self):
        return [self._bins_out(), as_bytes(self._sums, 4 * self.d * 8), as_bytes(self._since, 4 * self.d * 8),
                as_bytes(self._joint, 32), as_bytes(self._joint_since, 32), self._statistic, self.worst, self._member]

    cdef int _own_load(self, list fields) except -1:
        cdef Py_ssize_t i
        bins, sums, since, joint, joint_since, statistic, worst, member = fields
        self._bins_in(bins)
        restore(self._sums, sums, 4 * self.d * 8)
        restore(self._since, since, 4 * self.d * 8)
        restore(self._joint, joint, 32)
        restore(self._joint_since, joint_since, 32)
        for i in range(4 * self.d):
            number(self._sums[i])
            natural(self._since[i])
        for i in range(4):
            number(self._joint[i])
            natural(self._joint_since[i])
        self._statistic = number(statistic)
        self.worst = natural(worst, self.d - 1)
        self._member = <int>natural(member, 3)
