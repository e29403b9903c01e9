"""Streaming statistics: O(1) memory, one C double a call.

Moments are Welford's (Technometrics 1962), merged by Chan's formula (1979). The sketch uses the logarithmic buckets
of DDSketch (Masson, Rim, Lee, VLDB 2019): a quantile is within the stated relative accuracy of the true one.
"""

from libc.math cimport INFINITY, NAN, ceil, isfinite, log, pow, sqrt
from libc.stdlib cimport calloc, free
from libc.string cimport memset

cimport cython


@cython.final
cdef class Moments:
    """Count, mean, variance, least and greatest of finite values; others are counted in `ignored`."""

    cdef readonly long long count, ignored
    cdef readonly double mean, m2, min, max

    def __cinit__(self):
        self.min = INFINITY
        self.max = -INFINITY

    cdef inline void _update(self, double x) noexcept nogil:
        cdef double delta
        if not isfinite(x):
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

    def update(self, double x):
        """Take one value."""
        self._update(x)

    @property
    def variance(self):
        """Variance of the sample (divided by count - 1), or NaN below two values."""
        return self.m2 / (self.count - 1) if self.count > 1 else NAN

    def merge(self, Moments other not None):
        """Take in what another has seen."""
        cdef long long count = self.count + other.count
        cdef double delta = other.mean - self.mean
        self.ignored += other.ignored
        if other.count == 0:
            return
        self.mean += delta * other.count / count
        self.m2 += other.m2 + delta * delta * self.count * other.count / count
        self.count = count
        self.min = min(self.min, other.min)
        self.max = max(self.max, other.max)

    def clear(self):
        """Begin anew."""
        self.count = self.ignored = 0
        self.mean = self.m2 = 0.0
        self.min = INFINITY
        self.max = -INFINITY


@cython.final
cdef class Sketch:
    """Quantiles of positive values with a relative accuracy, in `buckets` logarithmic buckets.

    Values below `low` (zero and negative ones too) share one bucket that counts as 0; values above the last bucket
    share the last one, so memory is bounded.
    """

    cdef unsigned int* _counts
    cdef readonly double accuracy, low
    cdef readonly long long count, zeros
    cdef readonly Py_ssize_t buckets
    cdef double _gamma, _scale
    cdef long long _first

    def __cinit__(self, double accuracy=0.01, double low=1e-3, Py_ssize_t buckets=2048):
        if not 1e-4 <= accuracy <= 0.5 or not low > 0 or not 1 <= buckets <= (1 << 20):
            raise ValueError("a sketch needs accuracy within 0.0001 and 0.5, low > 0 and 1 to 2**20 buckets")
        self.accuracy = accuracy
        self.low = low
        self.buckets = buckets
        self._gamma = (1 + accuracy) / (1 - accuracy)
        self._scale = 1.0 / log(self._gamma)
        self._first = <long long>ceil(log(low) * self._scale)
        self._counts = <unsigned int*>calloc(<size_t>buckets, sizeof(unsigned int))
        if self._counts is NULL:
            raise MemoryError("no memory for a sketch")

    def __dealloc__(self):
        free(self._counts)

    cdef inline void _update(self, double x) noexcept nogil:
        cdef long long index
        if not isfinite(x):
            return
        self.count += 1
        if x < self.low:
            self.zeros += 1
            return
        index = <long long>ceil(log(x) * self._scale) - self._first
        if index >= self.buckets:
            index = self.buckets - 1
        elif index < 0:
            index = 0
        self._counts[index] += 1

    def update(self, double x):
        """Take one value; a NaN or an infinity is passed over."""
        self._update(x)

    def quantile(self, double q):
        """The value below which a share `q` of the values lies, or NaN when there are none."""
        cdef double rank
        cdef long long seen
        cdef Py_ssize_t i
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile is within 0 and 1, got {q}")
        if self.count == 0:
            return NAN
        rank = q * (self.count - 1)
        seen = self.zeros
        if seen > rank:
            return 0.0
        for i in range(self.buckets):
            seen += self._counts[i]
            if seen > rank:
                return 2 * pow(self._gamma, i + self._first) / (self._gamma + 1)
        return NAN

    def items(self):
        """Pairs (DDSketch bucket index, count) of the buckets in use."""
        cdef Py_ssize_t i
        return [(i + self._first, self._counts[i]) for i in range(self.buckets) if self._counts[i]]

    def merge(self, Sketch other not None):
        """Take in what another of the same shape has seen."""
        cdef Py_ssize_t i
        if other.accuracy != self.accuracy or other.low != self.low or other.buckets != self.buckets:
            raise ValueError("only sketches of the same accuracy, low and buckets can be merged")
        self.count += other.count
        self.zeros += other.zeros
        for i in range(self.buckets):
            self._counts[i] += other._counts[i]

    def clear(self):
        """Begin anew."""
        self.count = self.zeros = 0
        memset(self._counts, 0, <size_t>self.buckets * sizeof(unsigned int))


@cython.final
cdef class Summary:
    """Moments and sketch of one signal, by one call."""

    cdef readonly Moments moments
    cdef readonly Sketch sketch

    def __cinit__(self, double accuracy=0.01, double low=1e-3, Py_ssize_t buckets=2048):
        self.moments = Moments()
        self.sketch = Sketch(accuracy, low, buckets)

    def update(self, double x):
        """Take one value."""
        self.moments._update(x)
        self.sketch._update(x)

    def clear(self):
        """Begin anew."""
        self.moments.clear()
        self.sketch.clear()


@cython.final
cdef class MetricsRing:
    """The newest `capacity` (latency, confidence, label) and the summaries since the last `clear`."""

    cdef double* _latency
    cdef double* _confidence
    cdef int* _label
    cdef long long* _counts
    cdef readonly Py_ssize_t capacity, labels
    cdef readonly long long total
    cdef readonly Summary latency_us, confidence

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
        self.latency_us = Summary(0.01, 0.01, 1536)
        self.confidence = Summary(0.01, 1e-4, 512)

    def __dealloc__(self):
        free(self._latency)
        free(self._confidence)
        free(self._label)
        free(self._counts)

    def update(self, double latency_us, double confidence, int label):
        """Take one prediction: microseconds, 0 to 1, index of the label."""
        cdef Py_ssize_t place = self.total % self.capacity
        if not 0 <= label < self.labels:
            raise ValueError(f"label {label} of {self.labels}")
        self._latency[place] = latency_us
        self._confidence[place] = confidence
        self._label[place] = label
        self._counts[label] += 1
        self.total += 1
        self.latency_us.moments._update(latency_us)
        self.latency_us.sketch._update(latency_us)
        self.confidence.moments._update(confidence)
        self.confidence.sketch._update(confidence)

    def counts(self):
        """Predictions of each label since the last `clear`."""
        cdef Py_ssize_t i
        return [self._counts[i] for i in range(self.labels)]

    def recent(self):
        """The ring's (latency, confidence, label), oldest first."""
        cdef long long i, first = max(0, self.total - self.capacity)
        return [
            (self._latency[i % self.capacity], self._confidence[i % self.capacity], self._label[i % self.capacity])
            for i in range(first, self.total)
        ]

    def clear(self):
        """Begin new summaries; the ring keeps what it holds."""
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
