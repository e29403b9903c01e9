"""The loops of the drift detectors; parameters, checks and papers are in `tinylcm.drift`.

`PageHinkley` and `ADWIN` make river 0.26.1's decisions, so the order of their floating-point operations is river's
and the build forbids contraction to FMA.
"""

from libc.math cimport INFINITY, NAN, fabs, isfinite, log, sqrt
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memmove, memset

cimport cython

cdef enum:
    MODE_UP = 1
    MODE_DOWN = 2
    ROWS_MAX = 62


@cython.final
cdef class PageHinkleyCore:
    """Page's cumulative test with forgetting, on both sides."""

    cdef readonly double delta, threshold, alpha
    cdef readonly long long min_instances, count, seen, suspect
    cdef int _mode
    cdef double _mean, _up, _down, _up_min, _down_max
    cdef long long _up_from, _down_from
    cdef readonly bint drift_detected

    def __cinit__(self, long long min_instances, double delta, double threshold, double alpha, bint up, bint down):
        self.min_instances = min_instances
        self.delta = delta
        self.threshold = threshold
        self.alpha = alpha
        self._mode = (MODE_UP if up else 0) | (MODE_DOWN if down else 0)
        self._clear()

    cdef void _clear(self) noexcept nogil:
        self.count = 0
        self._mean = self._up = self._down = 0.0
        self._up_min = INFINITY
        self._down_max = -1.0
        self._up_from = self._down_from = self.seen
        self.drift_detected = False

    cdef inline bint _update(self, double x) noexcept nogil:
        cdef double deviation
        if not isfinite(x):
            return self.drift_detected
        if self.drift_detected:
            self._clear()
        self.seen += 1
        self.count += 1
        self._mean += (x - self._mean) / self.count
        deviation = x - self._mean
        self._up = self.alpha * self._up + deviation - self.delta
        self._down = self.alpha * self._down + deviation + self.delta
        if self._up < self._up_min:
            self._up_min = self._up
            self._up_from = self.seen
        if self._down > self._down_max:
            self._down_max = self._down
            self._down_from = self.seen
        if self.count >= self.min_instances:
            if self._mode & MODE_UP and self._up - self._up_min > self.threshold:
                self.drift_detected = True
                self.suspect = self._up_from
            elif self._mode & MODE_DOWN and self._down_max - self._down > self.threshold:
                self.drift_detected = True
                self.suspect = self._down_from
        return self.drift_detected

    def update(self, double x):
        """Take one value; NaN and infinities are passed over."""
        return self._update(x)

    @property
    def statistic(self):
        """The larger of both sides' excursions."""
        cdef double up = self._up - self._up_min if self.count else 0.0
        cdef double down = self._down_max - self._down if self.count else 0.0
        if not self._mode & MODE_DOWN:
            return up
        if not self._mode & MODE_UP:
            return down
        return max(up, down)

    def reset(self):
        """Begin anew."""
        self._clear()


cdef struct Row:
    int used
    double* totals
    double* variances


@cython.final
cdef class ADWINCore:
    """The exponential histogram of ADWIN2 (Bifet, Gavalda 2007): row r holds buckets of 2**r values."""

    cdef readonly double delta
    cdef readonly long long clock, min_window_length, grace_period, seen
    cdef readonly double width, total, variance
    cdef readonly bint drift_detected
    cdef readonly long long n_detections
    cdef readonly double statistic, bound
    cdef int _per_row, _rows
    cdef long long _tick
    cdef Row* _row

    def __cinit__(self, double delta, long long clock, int max_buckets, long long min_window_length,
                  long long grace_period):
        self.delta = delta
        self.clock = clock
        self.min_window_length = min_window_length
        self.grace_period = grace_period
        self._per_row = max_buckets
        if self._add_row() < 0:
            raise MemoryError("no memory for ADWIN")

    def __dealloc__(self):
        cdef int r
        for r in range(self._rows):
            free(self._row[r].totals)
        free(self._row)

    cdef int _add_row(self) noexcept nogil:
        cdef Row* grown
        cdef double* block
        cdef size_t places = <size_t>self._per_row + 1
        if self._rows == ROWS_MAX:
            return -1
        grown = <Row*>realloc(self._row, <size_t>(self._rows + 1) * sizeof(Row))
        if grown is NULL:
            return -1
        self._row = grown
        block = <double*>malloc(2 * places * sizeof(double))
        if block is NULL:
            return -1
        self._row[self._rows].used = 0
        self._row[self._rows].totals = block
        self._row[self._rows].variances = block + places
        self._rows += 1
        return 0

    cdef void _shift(self, Row* row, int n) noexcept nogil:
        row.used -= n
        memmove(row.totals, row.totals + n, <size_t>row.used * sizeof(double))
        memmove(row.variances, row.variances + n, <size_t>row.used * sizeof(double))

    cdef void _clear(self) noexcept nogil:
        while self._rows > 1:
            self._rows -= 1
            free(self._row[self._rows].totals)
        self._row[0].used = 0
        self.width = self.total = self.variance = 0.0
        self._tick = 0
        self.drift_detected = False

    cdef int _insert(self, double x) noexcept nogil:
        cdef Row* row
        cdef Row* following
        cdef int r = 0
        cdef double n, first, second, deviation
        row = &self._row[0]
        row.totals[row.used] = x
        row.variances[row.used] = 0.0
        row.used += 1
        self.width += 1.0
        if self.width > 1.0:
            deviation = x - self.total / (self.width - 1.0)
            self.variance += (self.width - 1.0) * deviation * deviation / self.width
        self.total += x
        while self._row[r].used == self._per_row + 1:
            if r + 1 == self._rows and self._add_row() < 0:
                return -1
            row = &self._row[r]
            following = &self._row[r + 1]
            n = <double>(1 << r) if r < 31 else <double>(<long long>1 << r)
            first = row.totals[0] / n
            second = row.totals[1] / n
            following.totals[following.used] = row.totals[0] + row.totals[1]
            following.variances[following.used] = (
                row.variances[0] + row.variances[1] + n * n * (first - second) * (first - second) / (n + n)
            )
            following.used += 1
            self._shift(row, 2)
            r += 1
        return 0

    cdef void _drop_oldest(self) noexcept nogil:
        cdef Row* row = &self._row[self._rows - 1]
        cdef double n = <double>(<long long>1 << (self._rows - 1))
        cdef double mean = row.totals[0] / n, rest
        self.width -= n
        self.total -= row.totals[0]
        rest = self.total / self.width
        self.variance -= row.variances[0] + n * self.width * (mean - rest) * (mean - rest) / (n + self.width)
        self._shift(row, 1)
        if row.used == 0 and self._rows > 1:
            free(row.totals)
            self._rows -= 1

    cdef bint _cut(self, double log_term) noexcept nogil:
        """Look for one cut whose two sides differ; drop the oldest bucket and say True if there is one."""
        cdef double n0 = 0.0, n1 = self.width, u0 = 0.0, u1 = self.total, n, difference, m, epsilon
        cdef double variance = self.variance / self.width
        cdef int r = self._rows - 1, k
        cdef Row* row
        while r >= 0:
            row = &self._row[r]
            n = <double>(<long long>1 << r)
            for k in range(row.used):
                n0 += n
                n1 -= n
                u0 += row.totals[k]
                u1 -= row.totals[k]
                if r == 0 and k == row.used - 1:
                    return False
                if n1 >= self.min_window_length and n0 >= self.min_window_length:
                    difference = u0 / n0 - u1 / n1
                    m = 1.0 / (n0 - self.min_window_length + 1.0) + 1.0 / (n1 - self.min_window_length + 1.0)
                    epsilon = sqrt(2.0 * m * variance * log_term) + 2.0 / 3.0 * log_term * m
                    if fabs(difference) > epsilon:
                        self.statistic = fabs(difference)
                        self.bound = epsilon
                        self._drop_oldest()
                        return True
            r -= 1
        return False

    cdef int _update(self, double x) noexcept nogil:
        if not isfinite(x):
            return self.drift_detected
        if self.drift_detected:
            self._clear()
        self.seen += 1
        if self._insert(x) < 0:
            return -1
        self._tick += 1
        if self._tick % self.clock == 0 and self.width > self.grace_period:
            while self._cut(log(2.0 * log(self.width) / self.delta)):
                self.drift_detected = True
        if self.drift_detected:
            self.n_detections += 1
        return self.drift_detected

    def update(self, double x):
        """Take one value; NaN and infinities are passed over."""
        cdef int result = self._update(x)
        if result < 0:
            raise MemoryError("no memory for ADWIN's window")
        return result != 0

    def reset(self):
        """Begin anew with an empty window."""
        self._clear()


@cython.final
cdef class RollingHistogram:
    """Counts of the newest `window` bin numbers, and their distance from a reference.

    PSI = sum over bins of (p - q) ln(p / q), with p = (count + smoothing) / (window + bins * smoothing) and q the
    same of the reference, so that an empty bin gives a large but finite term. KS = the greatest difference of the
    two cumulated shares, at the bins' edges.
    """

    cdef readonly Py_ssize_t bins, window
    cdef readonly long long seen
    cdef Py_ssize_t _place
    cdef unsigned short* _recent
    cdef unsigned int* _counts
    cdef double* _reference
    cdef double* _shares
    cdef double _smoothing

    def __cinit__(self, const double[::1] reference not None, Py_ssize_t window, double smoothing):
        cdef Py_ssize_t i
        cdef double total = 0.0
        self.bins = reference.shape[0]
        self.window = window
        self._smoothing = smoothing
        if not 2 <= self.bins <= 65535 or not 1 <= window <= (1 << 30) or not smoothing > 0:
            raise ValueError("needs 2 to 65535 bins, a window of at least 1 and smoothing > 0")
        self._recent = <unsigned short*>calloc(<size_t>window, sizeof(unsigned short))
        self._counts = <unsigned int*>calloc(<size_t>self.bins, sizeof(unsigned int))
        self._reference = <double*>calloc(<size_t>self.bins, sizeof(double))
        self._shares = <double*>calloc(<size_t>self.bins, sizeof(double))
        if self._recent is NULL or self._counts is NULL or self._reference is NULL or self._shares is NULL:
            raise MemoryError("no memory for a rolling histogram")
        for i in range(self.bins):
            if not reference[i] >= 0 or not isfinite(reference[i]):
                raise ValueError("reference counts must be finite and not negative")
            total += reference[i]
        if not total > 0:
            raise ValueError("the reference is empty")
        for i in range(self.bins):
            # The reference is brought to the window's size first, so that both sides are smoothed alike.
            self._shares[i] = reference[i] / total
            self._reference[i] = (self._shares[i] * window + smoothing) / (window + self.bins * smoothing)

    def __dealloc__(self):
        free(self._recent)
        free(self._counts)
        free(self._reference)
        free(self._shares)

    cdef inline void _push(self, Py_ssize_t bin) noexcept nogil:
        if self.seen >= self.window:
            self._counts[self._recent[self._place]] -= 1
        self._recent[self._place] = <unsigned short>bin
        self._counts[bin] += 1
        self._place += 1
        if self._place == self.window:
            self._place = 0
        self.seen += 1

    def push(self, Py_ssize_t bin):
        """Take one bin number."""
        if not 0 <= bin < self.bins:
            raise ValueError(f"bin {bin} of {self.bins}")
        self._push(bin)

    @property
    def full(self):
        """Whether a whole window has been seen."""
        return self.seen >= self.window

    @property
    def psi(self):
        """The index of the newest window; NaN until it is full."""
        cdef double p, q, result = 0.0, scale = 1.0 / (self.window + self.bins * self._smoothing)
        cdef Py_ssize_t i
        if self.seen < self.window:
            return float("nan")
        for i in range(self.bins):
            p = (self._counts[i] + self._smoothing) * scale
            q = self._reference[i]
            result += (p - q) * log(p / q)
        return result

    cdef double _ks(self) noexcept nogil:
        cdef double here = 0.0, there = 0.0, result = 0.0
        cdef Py_ssize_t i
        if self.seen < self.window:
            return NAN
        for i in range(self.bins):
            here += <double>self._counts[i] / self.window
            there += self._shares[i]
            if fabs(here - there) > result:
                result = fabs(here - there)
        return result

    @property
    def ks(self):
        """The binned Kolmogorov-Smirnov distance of the newest window; NaN until it is full."""
        return self._ks()

    def counts(self):
        """The newest window's count in each bin."""
        cdef Py_ssize_t i
        return tuple([self._counts[i] for i in range(self.bins)])

    def clear(self):
        """Forget the window."""
        memset(self._counts, 0, <size_t>self.bins * sizeof(unsigned int))
        self.seen = self._place = 0


@cython.final
cdef class BlockHistogram:
    """A `RollingHistogram` for each of d signals over bins of their own, fed by rows of d values.

    Args:
        edges: inner bin edges, `[d, bins - 1]`, not falling; a value on an edge counts below it.
        counts: reference counts, `[d, bins]`.
        window: rows that are compared.
        smoothing: as for `RollingHistogram`.
    """

    cdef readonly Py_ssize_t signals
    cdef list _histograms
    cdef double[:, ::1] _edges

    def __cinit__(self, const double[:, ::1] edges not None, const double[:, ::1] counts not None,
                  Py_ssize_t window, double smoothing):
        cdef Py_ssize_t i
        self.signals = edges.shape[0]
        if self.signals < 1 or counts.shape[0] != self.signals or counts.shape[1] != edges.shape[1] + 1:
            raise ValueError("expected as many rows of counts as of edges, and one count more than inner edges")
        self._edges = edges.copy()
        self._histograms = [RollingHistogram(counts[i], window, smoothing) for i in range(self.signals)]

    def update(self, const float[:, ::1] rows not None):
        """Take rows of one value a signal; a value that is not finite is passed over."""
        cdef Py_ssize_t i, j, low, high, middle, bins = self._edges.shape[1]
        cdef RollingHistogram histogram
        cdef double x
        if rows.shape[1] != self.signals:
            raise ValueError(f"expected rows of {self.signals} values, got {rows.shape[1]}")
        for j in range(self.signals):
            histogram = <RollingHistogram>self._histograms[j]
            with nogil:
                for i in range(rows.shape[0]):
                    x = rows[i, j]
                    if not isfinite(x):
                        continue
                    low = 0
                    high = bins
                    while low < high:
                        middle = (low + high) >> 1
                        if self._edges[j, middle] < x:
                            low = middle + 1
                        else:
                            high = middle
                    histogram._push(low)

    def worst_ks(self):
        """The signal with the greatest binned Kolmogorov-Smirnov distance, and that; NaN until a window is full."""
        cdef Py_ssize_t i, worst = 0
        cdef double distance, greatest = -1.0
        for i in range(self.signals):
            distance = (<RollingHistogram>self._histograms[i])._ks()
            if distance > greatest:
                greatest = distance
                worst = i
        return worst, greatest if greatest >= 0.0 else float("nan")

    def counts(self, Py_ssize_t signal):
        """The newest window's counts of one signal."""
        if not 0 <= signal < self.signals:
            raise IndexError(signal)
        return (<RollingHistogram>self._histograms[signal]).counts()

    def clear(self):
        """Forget the windows."""
        for histogram in self._histograms:
            (<RollingHistogram>histogram).clear()


@cython.final
cdef class RollingMahalanobis:
    """Mahalanobis distance of the mean of the newest `window` vectors, standardised, from the reference's.

    distance = sqrt(m' R m), where m is the rolling mean of (x - mean) / std and R the inverse of the correlation.
    The sums are rebuilt from the ring once a round, so that rounding does not grow with the stream.
    """

    cdef readonly Py_ssize_t signals, window
    cdef readonly long long seen
    cdef double[::1] _mean, _scale, _sum
    cdef double[:, ::1] _inverse, _recent
    cdef Py_ssize_t _place

    def __cinit__(self, const double[::1] mean not None, const double[::1] std not None,
                  const double[:, ::1] inverse not None, Py_ssize_t window):
        cdef Py_ssize_t i, d = mean.shape[0]
        if d < 1 or std.shape[0] != d or inverse.shape[0] != d or inverse.shape[1] != d or window < 1:
            raise ValueError("expected d means and deviations, a d x d matrix and a window of at least 1")
        self.signals = d
        self.window = window
        self._mean = mean.copy()
        self._scale = std.copy()
        for i in range(d):
            if not std[i] > 0:
                raise ValueError(f"deviation {i} is not positive")
            self._scale[i] = 1.0 / std[i]
        self._inverse = inverse.copy()
        self._sum = mean.copy()
        self._sum[:] = 0.0
        self._recent = view_array(window, d)

    def update(self, const double[::1] row not None):
        """Take one vector; one with a value that is not finite is passed over."""
        cdef Py_ssize_t i, j
        cdef double z
        if row.shape[0] != self.signals:
            raise ValueError(f"expected {self.signals} values, got {row.shape[0]}")
        for j in range(self.signals):
            if not isfinite(row[j]):
                return
        for j in range(self.signals):
            z = (row[j] - self._mean[j]) * self._scale[j]
            self._sum[j] += z - self._recent[self._place, j]
            self._recent[self._place, j] = z
        self._place += 1
        self.seen += 1
        if self._place == self.window:
            self._place = 0
            for j in range(self.signals):
                self._sum[j] = 0.0
                for i in range(self.window):
                    self._sum[j] += self._recent[i, j]

    @property
    def distance(self):
        """The present distance; NaN until the window is full."""
        cdef Py_ssize_t i, j
        cdef double total = 0.0, part
        if self.seen < self.window:
            return float("nan")
        for i in range(self.signals):
            part = 0.0
            for j in range(self.signals):
                part += self._inverse[i, j] * self._sum[j]
            total += part * self._sum[i]
        return sqrt(max(total, 0.0)) / self.window

    def means(self):
        """The rolling mean of each standardised signal: how many deviations it is off."""
        cdef Py_ssize_t j
        return [self._sum[j] / self.window for j in range(self.signals)]

    def clear(self):
        """Forget the window."""
        self._sum[:] = 0.0
        self._recent[:, :] = 0.0
        self.seen = self._place = 0


cdef double[:, ::1] view_array(Py_ssize_t rows, Py_ssize_t columns):
    cdef double[:, ::1] result = cython.view.array((rows, columns), sizeof(double), "d")
    result[:, :] = 0.0
    return result
