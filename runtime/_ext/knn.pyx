"""Exact k nearest neighbours over reference vectors that may come and go: the classifier that learns on the device."""

from libc.math cimport NAN, fabs, isfinite, sqrt
from libc.stdint cimport int8_t, int32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

cimport cython

import numpy as np

from tinylcm.errors import ConfigError, InputError, ModelError

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    /* One wheel for every x86-64: the loader picks the widest version that this machine has. Elsewhere (NEON) the
       compiler's own vectors serve. Sums differ in their last bits between versions; what is returned does not depend
       on it, since the nearest are measured again in double. */
    #if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__GLIBC__)
    #define TINYLCM_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
    #else
    #define TINYLCM_CLONES
    #endif
    #define TINYLCM_LANES 16
    typedef float tinylcm_f16 __attribute__((vector_size(64), aligned(4)));
    typedef int32_t tinylcm_i16 __attribute__((vector_size(64), aligned(4)));

    static inline float tinylcm_sum16(const tinylcm_f16 *v) {
        float total = 0;
        for (int i = 0; i < TINYLCM_LANES; i++) total += (*v)[i];
        return total;
    }

    /* out[i] = vectors[i] . x for n rows of d floats. Row after row: four at a time defeat the memory's prefetcher. */
    TINYLCM_CLONES static void tinylcm_dots(
            const float *vectors, const float *x, ptrdiff_t n, ptrdiff_t d, float *out) {
        for (ptrdiff_t i = 0; i < n; i++) {
            const float *a = vectors + i * d;
            tinylcm_f16 sa = {0}, sb = {0};
            ptrdiff_t j = 0;
            for (; j + 2 * TINYLCM_LANES <= d; j += 2 * TINYLCM_LANES) {
                sa += *(const tinylcm_f16 *)(a + j) * *(const tinylcm_f16 *)(x + j);
                sb += *(const tinylcm_f16 *)(a + j + TINYLCM_LANES) * *(const tinylcm_f16 *)(x + j + TINYLCM_LANES);
            }
            sa += sb;
            float ta = tinylcm_sum16(&sa);
            for (; j < d; j++) ta += a[j] * x[j];
            out[i] = ta;
        }
    }

    TINYLCM_CLONES static void tinylcm_manhattan(
            const float *vectors, const float *x, ptrdiff_t n, ptrdiff_t d, float *out) {
        for (ptrdiff_t i = 0; i < n; i++) {
            const float *a = vectors + i * d;
            tinylcm_f16 sum = {0};
            ptrdiff_t j = 0;
            for (; j + TINYLCM_LANES <= d; j += TINYLCM_LANES) {
                tinylcm_f16 v = *(const tinylcm_f16 *)(a + j) - *(const tinylcm_f16 *)(x + j);
                sum += (tinylcm_f16)((tinylcm_i16)v & 0x7fffffff);
            }
            float total = tinylcm_sum16(&sum);
            for (; j < d; j++) total += a[j] > x[j] ? a[j] - x[j] : x[j] - a[j];
            out[i] = total;
        }
    }

    /* The true sums in double, eight lanes: squared differences, differences, or (kind 2) products. */
    TINYLCM_CLONES static double tinylcm_exact(const float *a, const float *x, ptrdiff_t d, int kind) {
        double lanes[8] = {0};
        ptrdiff_t j = 0;
        if (kind == 0)
            for (; j + 8 <= d; j += 8)
                for (int i = 0; i < 8; i++) { double v = (double)a[j + i] - x[j + i]; lanes[i] += v * v; }
        else if (kind == 1)
            for (; j + 8 <= d; j += 8)
                for (int i = 0; i < 8; i++) { double v = (double)a[j + i] - x[j + i]; lanes[i] += __builtin_fabs(v); }
        else
            for (; j + 8 <= d; j += 8)
                for (int i = 0; i < 8; i++) lanes[i] += (double)a[j + i] * x[j + i];
        for (; j < d; j++) {
            double v = (double)a[j] - x[j];
            lanes[0] += kind == 0 ? v * v : kind == 1 ? __builtin_fabs(v) : (double)a[j] * x[j];
        }
        return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
    }

    /* Products of bytes, summed in 32 bits: d <= 65536 cannot overflow (127 * 127 * 65536 < 2**31). */
    TINYLCM_CLONES static void tinylcm_dots8(
            const int8_t *vectors, const int8_t *x, ptrdiff_t n, ptrdiff_t d, int32_t *out) {
        for (ptrdiff_t i = 0; i < n; i++) {
            const int8_t *a = vectors + i * d;
            int32_t sum = 0;
            for (ptrdiff_t j = 0; j < d; j++) sum += (int16_t)a[j] * (int16_t)x[j];
            out[i] = sum;
        }
    }
    """
    void tinylcm_dots(const float* vectors, const float* x, Py_ssize_t n, Py_ssize_t d, float* out) noexcept nogil
    void tinylcm_manhattan(const float* vectors, const float* x, Py_ssize_t n, Py_ssize_t d, float* out) noexcept nogil
    double tinylcm_exact(const float* a, const float* x, Py_ssize_t d, int kind) noexcept nogil
    void tinylcm_dots8(const int8_t* vectors, const int8_t* x, Py_ssize_t n, Py_ssize_t d, int32_t* out) noexcept nogil

METRICS = ("euclidean", "manhattan", "cosine")
WEIGHTS = ("uniform", "distance")
EVICTIONS = ("oldest", "balanced")
DTYPES = ("float32", "int8")
cdef enum:
    EUCLIDEAN = 0
    MANHATTAN = 1
    COSINE = 2
    K_MAX = 256
    SPARE = 8  # candidates beyond k that are measured again: the fast sums are off in their last bits
    RELEASED = 100000  # values from which on a search lets other threads run


cdef struct Near:
    double distance
    long long age
    Py_ssize_t index


cdef inline bint nearer(Near* a, Near* b) noexcept nogil:
    """Of equal distances the newer vector counts as nearer."""
    return a.distance < b.distance or (a.distance == b.distance and a.age > b.age)


cdef inline Py_ssize_t insert(Near* best, Py_ssize_t count, Py_ssize_t most, Near one) noexcept nogil:
    """Keep the nearest of what came, in order."""
    cdef Py_ssize_t place
    if count == most:
        if not nearer(&one, &best[count - 1]):
            return count
        count -= 1
    place = count
    while place > 0 and nearer(&one, &best[place - 1]):
        best[place] = best[place - 1]
        place -= 1
    best[place] = one
    return count + 1


@cython.final
cdef class KNN:
    """Exact k nearest neighbours: a store of labelled vectors, its search and its vote.

    Args:
        d: values a vector, 1 to 65,536.
        classes: number of labels.
        k: neighbours that vote, 1 to 256; fewer vote while there are fewer.
        metric: `euclidean`, `manhattan`, or `cosine` (1 - cos; a vector of zeros is at distance 1 from everything).
        dtype: `float32`, or `int8`: a quarter of the memory; each vector is stored as round(127 x / max|x|) with its
            own scale, and so is the query, so distances are off by about 1 % of the vectors' norms.
        weights: a neighbour's vote is 1 (`uniform`), or 1 / distance (`distance`; a distance of 0 decides alone).
        capacity: most vectors; one more evicts one.
        eviction: `oldest`, or `balanced`: the oldest of the label that has most.

    Raises:
        ConfigError: an argument is out of its range.

    Of equal distances the newer vector is the nearer. Distances are true ones in float32 (computed in double; a
    vector's distance to itself is 0). One owner at a time: searches share scratch memory.

    Attributes:
        size: vectors held.
        distance: mean distance to the neighbours in the last search; NaN before. A signal for drift.

    >>> head = KNN(2, classes=2, k=1)
    >>> head.add([0.0, 0.0], 0), head.add([3.0, 4.0], 1)
    (0, 1)
    >>> head.neighbours([0.0, 0.0])[1].tolist(), head.predict([3.0, 3.0])
    ([0.0], 1)
    """

    cdef readonly Py_ssize_t d, classes, k, capacity, size
    cdef readonly double distance
    cdef int _metric
    cdef bint _weighted, _balanced, _int8
    cdef float* _vectors
    cdef int8_t* _bytes
    cdef float* _scales  # of int8 vectors
    cdef float* _squares  # |v|**2
    cdef int* _labels
    cdef long long* _ages
    cdef long long _clock
    cdef float* _found  # [capacity] products or distances
    cdef float* _query
    cdef int8_t* _query8
    cdef int32_t* _sums
    cdef Near[K_MAX + SPARE] _near

    def __cinit__(self, Py_ssize_t d, Py_ssize_t classes, Py_ssize_t k=5, str metric="euclidean", str dtype="float32",
                  str weights="uniform", Py_ssize_t capacity=1000, str eviction="oldest"):
        cdef size_t cells
        if not 1 <= d <= 65536 or not 1 <= classes <= 1 << 20 or not 1 <= k <= K_MAX:
            raise ConfigError(f"KNN: expected d of 1 to 65536, at least one class and k of 1 to {K_MAX}")
        if not 1 <= capacity <= 1 << 24 or capacity * d > 1 << 30:
            raise ConfigError(f"KNN: a capacity of {capacity} vectors of {d} values is out of its range")
        for value, allowed in ((metric, METRICS), (dtype, DTYPES), (weights, WEIGHTS), (eviction, EVICTIONS)):
            if value not in allowed:
                raise ConfigError(f"KNN: {value!r} is not known, expected {', '.join(allowed)}")
        self.d, self.classes, self.k, self.capacity = d, classes, k, capacity
        self._metric, self._int8 = METRICS.index(metric), dtype == "int8"
        self._weighted, self._balanced = weights == "distance", eviction == "balanced"
        self.distance = NAN
        cells = <size_t>capacity * <size_t>d
        if self._int8:
            self._bytes = <int8_t*>calloc(cells, 1)
            self._scales = <float*>calloc(capacity, sizeof(float))
            self._sums = <int32_t*>calloc(capacity, sizeof(int32_t))
            self._query8 = <int8_t*>calloc(d, 1)
            if not self._bytes or not self._scales or not self._sums or not self._query8:
                raise MemoryError("no memory for the reference vectors")
        else:
            self._vectors = <float*>calloc(cells, sizeof(float))
            if not self._vectors:
                raise MemoryError("no memory for the reference vectors")
        self._squares = <float*>calloc(capacity, sizeof(float))
        self._labels = <int*>calloc(capacity, sizeof(int))
        self._ages = <long long*>calloc(capacity, sizeof(long long))
        self._found = <float*>calloc(capacity, sizeof(float))
        self._query = <float*>calloc(d, sizeof(float))
        if not self._squares or not self._labels or not self._ages or not self._found or not self._query:
            raise MemoryError("no memory for the reference vectors")

    def __dealloc__(self):
        free(self._vectors)
        free(self._bytes)
        free(self._scales)
        free(self._sums)
        free(self._query8)
        free(self._squares)
        free(self._labels)
        free(self._ages)
        free(self._found)
        free(self._query)

    @property
    def metric(self):
        """The distance."""
        return METRICS[self._metric]

    @property
    def dtype(self):
        """How vectors are stored."""
        return DTYPES[self._int8]

    @property
    def weights(self):
        """How neighbours vote."""
        return WEIGHTS[self._weighted]

    # the store ----------------------------------------------------------------------------------------------

    cdef int _read(self, object values) except -1:
        """A vector into `_query`, checked."""
        cdef const float[::1] row
        try:
            with np.errstate(over="ignore"):
                array = np.asarray(values, dtype=np.float32, order="C")
        except (TypeError, ValueError) as error:
            raise InputError(f"expected a vector of {self.d} numbers: {error}") from None
        if array.shape != (self.d,):
            raise InputError(f"expected a vector of {self.d} values, got shape {list(array.shape)}")
        row = array
        return self._check(&row[0])

    cdef int _check(self, const float* x) except -1:
        cdef Py_ssize_t j
        memcpy(self._query, x, <size_t>self.d * sizeof(float))
        if not all_finite(self._query, self.d):
            for j in range(self.d):
                if not isfinite(self._query[j]):
                    raise InputError(f"the vector's value {j} is NaN, infinite or too large for float32")
        return 0

    cdef void _put(self, Py_ssize_t at, int label) noexcept nogil:
        cdef Py_ssize_t j
        cdef double square = 0
        if self._int8:
            self._scales[at] = quantise(self._query, self._bytes + at * self.d, self.d)
            for j in range(self.d):
                square += <double>self._bytes[at * self.d + j] * self._bytes[at * self.d + j]
            square *= <double>self._scales[at] * self._scales[at]
        else:
            memcpy(self._vectors + at * self.d, self._query, <size_t>self.d * sizeof(float))
            for j in range(self.d):
                square += <double>self._query[j] * self._query[j]
        self._squares[at] = <float>square
        self._labels[at] = label
        self._clock += 1
        self._ages[at] = self._clock

    def add(self, vector, Py_ssize_t label):
        """Take a labelled vector, `[d]`; a full store gives one up for it. Its index.

        Raises:
            InputError: wrong length, NaN or infinity, or no such label; nothing was changed.
        """
        cdef Py_ssize_t at
        if not 0 <= label < self.classes:
            raise InputError(f"label {label} is not one of {self.classes}")
        self._read(vector)
        at = self.size if self.size < self.capacity else self._victim()
        self._put(at, <int>label)
        if at == self.size:
            self.size += 1
        return at

    def add_many(self, vectors, labels):
        """Take labelled vectors, `[n, d]` and `[n]`, in this order."""
        if len(vectors) != len(labels):
            raise InputError(f"{len(vectors)} vectors for {len(labels)} labels")
        for vector, label in zip(vectors, labels):
            self.add(vector, int(label))

    cdef Py_ssize_t _victim(self) except -1:
        """Whom to evict."""
        cdef Py_ssize_t i, oldest = -1
        cdef int most = -1
        cdef long long* counts = NULL
        if self._balanced:
            counts = <long long*>calloc(self.classes, sizeof(long long))
            if counts is NULL:
                raise MemoryError("no memory to count the labels")
            most = 0
            for i in range(self.size):
                counts[self._labels[i]] += 1
            for i in range(self.classes):
                if counts[i] > counts[most]:
                    most = <int>i
            free(counts)
        for i in range(self.size):
            if (most < 0 or self._labels[i] == most) and (oldest < 0 or self._ages[i] < self._ages[oldest]):
                oldest = i
        return oldest

    def remove(self, Py_ssize_t index):
        """Forget a vector; the last one takes its index.

        Raises:
            InputError: there is none.
        """
        if not 0 <= index < self.size:
            raise InputError(f"there is no vector {index}; there are {self.size}")
        self.size -= 1
        if index != self.size:
            self._move(self.size, index)

    cdef void _move(self, Py_ssize_t source, Py_ssize_t target) noexcept nogil:
        if self._int8:
            memcpy(self._bytes + target * self.d, self._bytes + source * self.d, <size_t>self.d)
            self._scales[target] = self._scales[source]
        else:
            memcpy(self._vectors + target * self.d, self._vectors + source * self.d, <size_t>self.d * sizeof(float))
        self._squares[target] = self._squares[source]
        self._labels[target] = self._labels[source]
        self._ages[target] = self._ages[source]

    def evict(self, Py_ssize_t count=1):
        """Give up vectors as a full store would; returns how many there were to give up."""
        cdef Py_ssize_t done = 0
        while done < count and self.size:
            self.remove(self._victim())
            done += 1
        return done

    def condense(self, Py_ssize_t n, str method="centres"):
        """Keep n vectors.

        Args:
            n: 1 to the present size; nothing happens when there are no more.
            method: `balanced` keeps the newest of each label in turn; `centres` those that cover the others best, label
                by label in proportion (greedy k-centre: Gonzalez, Theoretical Computer Science 1985).

        Returns:
            How many were given up.
        """
        if n < 1 or method not in ("balanced", "centres"):
            raise ConfigError("condense: expected n >= 1 and the method balanced or centres")
        before = self.size
        if n >= before:
            return 0
        vectors, labels, ages = self.vectors(), self.labels(), self.ages()
        if method == "balanced":
            order = sorted(range(before), key=lambda i: -ages[i])
            turns = {}
            rank = []
            for i in order:
                turns[labels[i]] = turns.get(labels[i], -1) + 1
                rank.append((turns[labels[i]], len(rank), i))
            kept = sorted(i for _, _, i in sorted(rank)[:n])
        else:
            kept = sorted(centres(vectors, labels, ages, n))
        for place, index in enumerate(kept):
            if place != index:
                self._move(index, place)
        self.size = len(kept)
        return before - self.size

    # the search ---------------------------------------------------------------------------------------------

    cdef double _exact(self, Py_ssize_t at, double square) noexcept nogil:
        """The true distance of the query to a vector, in double."""
        cdef const float* v = self._vectors + at * self.d
        cdef double own
        if self._metric == EUCLIDEAN:
            return sqrt(tinylcm_exact(v, self._query, self.d, 0))
        if self._metric == MANHATTAN:
            return tinylcm_exact(v, self._query, self.d, 1)
        own = tinylcm_exact(v, v, self.d, 2)
        if own == 0 or square == 0:
            return 1.0
        return 1.0 - tinylcm_exact(v, self._query, self.d, 2) / sqrt(own * square)

    cdef double _exact8(self, Py_ssize_t at, double scale, double square) noexcept nogil:
        """The distance as int8 vectors have it."""
        cdef double product, total = 0
        cdef Py_ssize_t j
        cdef const int8_t* v = self._bytes + at * self.d
        if self._metric == MANHATTAN:
            for j in range(self.d):
                total += fabs(<double>self._scales[at] * v[j] - scale * self._query8[j])
            return total
        product = <double>self._sums[at] * self._scales[at] * scale
        if self._metric == COSINE:
            if self._squares[at] == 0 or square == 0:
                return 1.0
            return 1.0 - product / sqrt(<double>self._squares[at] * square)
        total = self._squares[at] - 2 * product + square
        return sqrt(total) if total > 0 else 0.0

    cdef Py_ssize_t _search8(self, Py_ssize_t most) noexcept nogil:
        cdef Py_ssize_t i, j, count = 0
        cdef double square = 0, scale = quantise(self._query, self._query8, self.d)
        cdef Near one
        for j in range(self.d):
            square += <double>self._query8[j] * self._query8[j]
        square *= scale * scale
        if self._metric != MANHATTAN:
            tinylcm_dots8(self._bytes, self._query8, self.size, self.d, self._sums)
        for i in range(self.size):
            one.distance, one.age, one.index = self._exact8(i, scale, square), self._ages[i], i
            count = insert(self._near, count, most, one)
        return count

    cdef Py_ssize_t _search(self, Py_ssize_t k) noexcept nogil:
        """The k nearest into `_near`, in order; how many there are."""
        cdef Py_ssize_t i, count = 0, most = k if k < self.size else self.size, wide
        cdef double square = 0, slack, limit, norm = 0
        cdef Near one
        if self._int8:
            return self._search8(most)
        if self._metric == MANHATTAN:
            tinylcm_manhattan(self._vectors, self._query, self.size, self.d, self._found)
        else:
            square = tinylcm_exact(self._query, self._query, self.d, 2)
            tinylcm_dots(self._vectors, self._query, self.size, self.d, self._found)
            for i in range(self.size):
                if self._metric == EUCLIDEAN:
                    self._found[i] = self._squares[i] - 2 * self._found[i]
                    norm = self._squares[i] if self._squares[i] > norm else norm
                elif self._squares[i] > 0:
                    self._found[i] = -self._found[i] / <float>sqrt(self._squares[i])
                else:
                    self._found[i] = 0
        # The k smallest of the fast sums bound the k nearest; whoever is within their rounding is measured again.
        wide = most + SPARE if most + SPARE < self.size else self.size
        for i in range(self.size):
            if count == wide and not self._found[i] < self._near[count - 1].distance:
                continue
            one.distance, one.age, one.index = self._found[i], self._ages[i], i
            count = insert(self._near, count, wide, one)
        if self._metric == EUCLIDEAN:
            slack = 4e-6 * (norm + square)
        elif self._metric == COSINE:
            slack = 4e-6 * sqrt(square)
        else:
            slack = 4e-6 * self._near[most - 1].distance
        limit = self._near[most - 1].distance + slack
        if count < self.size and self._near[count - 1].distance <= limit:
            return self._search_close(most, limit, square)
        for i in range(count):
            self._near[i].distance = self._exact(self._near[i].index, square)
        return sort_near(self._near, count, most)

    cdef Py_ssize_t _search_close(self, Py_ssize_t most, double limit, double square) noexcept nogil:
        """As `_search`, when more vectors than the spare ones are too close to tell apart by the fast sums."""
        cdef Py_ssize_t i, count = 0
        cdef Near one
        for i in range(self.size):
            if self._found[i] <= limit:
                one.distance, one.age, one.index = self._exact(i, square), self._ages[i], i
                count = insert(self._near, count, most, one)
        return count

    cdef Py_ssize_t _find(self) except -1:
        cdef Py_ssize_t i, count
        cdef double total = 0
        if self.size == 0:
            raise ModelError("the kNN has no reference vectors: add some")
        if self.size * self.d > RELEASED:
            with nogil:
                count = self._search(self.k)
        else:
            count = self._search(self.k)
        for i in range(count):
            total += self._near[i].distance
        self.distance = total / count
        return count

    cdef void _vote(self, Py_ssize_t count, float* scores) noexcept nogil:
        cdef Py_ssize_t i
        cdef double total = 0, weight
        cdef bint exact = self._weighted and self._near[0].distance == 0
        memset(scores, 0, <size_t>self.classes * sizeof(float))
        for i in range(count):
            if not self._weighted:
                weight = 1
            elif exact:
                weight = 1 if self._near[i].distance == 0 else 0
            else:
                weight = 1 / self._near[i].distance
            scores[self._labels[self._near[i].index]] += <float>weight
            total += weight
        for i in range(self.classes):
            scores[i] = <float>(scores[i] / total)

    def query_into(self, const float[::1] x not None, float[::1] scores not None):
        """Write the vote for `x`, `[d]`, into `scores`, `[classes]`; they sum to 1.

        Raises:
            InputError: wrong length, NaN or infinity.
            ModelError: there are no vectors.
        """
        if x.shape[0] != self.d or scores.shape[0] != self.classes:
            raise InputError(f"expected {self.d} values and {self.classes} scores, got {x.shape[0]}, {scores.shape[0]}")
        self._check(&x[0])
        self._vote(self._find(), &scores[0])

    def scores(self, x):
        """The vote for a vector, float32 `[classes]`; see `query_into`."""
        cdef float[::1] scores
        result = np.zeros(self.classes, dtype=np.float32)
        scores = result
        self._read(x)
        self._vote(self._find(), &scores[0])
        return result

    def predict(self, x):
        """The label with most votes; of equal votes that of the nearer neighbour."""
        cdef Py_ssize_t i
        cdef float best
        scores = self.scores(x)
        best = scores.max()
        for i in range(min(self.k, self.size)):
            if scores[self._labels[self._near[i].index]] == best:
                return self._labels[self._near[i].index]
        return int(scores.argmax())

    def neighbours(self, x):
        """(indices, distances) of the nearest, nearest first: int64 and float64 `[min(k, size)]`."""
        cdef Py_ssize_t i, count
        self._read(x)
        count = self._find()
        indices = np.array([self._near[i].index for i in range(count)], dtype=np.int64)
        return indices, np.array([self._near[i].distance for i in range(count)])

    # what is kept -------------------------------------------------------------------------------------------

    def vectors(self):
        """The vectors as they are stored, float32 `[size, d]`; int8 ones multiplied with their scale."""
        cdef float[:, ::1] view
        cdef Py_ssize_t i, j
        result = np.zeros((self.size, self.d), dtype=np.float32)
        view = result
        for i in range(self.size):
            for j in range(self.d):
                if self._int8:
                    view[i, j] = self._bytes[i * self.d + j] * self._scales[i]
                else:
                    view[i, j] = self._vectors[i * self.d + j]
        return result

    def labels(self):
        """Their labels, `[size]`."""
        cdef Py_ssize_t i
        return [self._labels[i] for i in range(self.size)]

    def ages(self):
        """The order in which they came, `[size]`: the greater the newer."""
        cdef Py_ssize_t i
        return [self._ages[i] for i in range(self.size)]

    def to_arrays(self):
        """Everything held, oldest first, for `from_arrays`: `vectors` (as stored), `labels`, and `scales` for int8."""
        cdef int8_t[:, ::1] view
        cdef Py_ssize_t i
        order = np.argsort(self.ages(), kind="stable")
        arrays = {"labels": np.array(self.labels(), dtype=np.int32)[order]}
        if not self._int8:
            return {"vectors": self.vectors()[order], **arrays}
        stored = np.zeros((self.size, self.d), dtype=np.int8)
        view = stored
        for i in range(self.size):
            memcpy(&view[i, 0], self._bytes + i * self.d, <size_t>self.d)
        scales = np.array([self._scales[i] for i in range(self.size)], dtype=np.float32)
        return {"vectors": stored[order], "scales": scales[order], **arrays}

    def load_arrays(self, vectors, labels, scales=None):
        """Take what `to_arrays` gave, in place of what is held.

        Raises:
            InputError: wrong shapes, labels, or more vectors than the capacity; what was held is then lost.
        """
        cdef const int8_t[:, ::1] view
        cdef Py_ssize_t i, j
        cdef double square
        if len(vectors) != len(labels) or len(vectors) > self.capacity:
            raise InputError(f"{len(vectors)} vectors for {len(labels)} labels and a capacity of {self.capacity}")
        self.size = 0
        if not self._int8 or scales is None:
            self.add_many(vectors, labels)
            return
        if vectors.dtype != np.int8 or vectors.shape[1:] != (self.d,) or len(scales) != len(vectors):
            raise InputError(f"expected int8 vectors of {self.d} values, each with a scale")
        view = np.ascontiguousarray(vectors)
        for i in range(view.shape[0]):
            if not 0 <= labels[i] < self.classes or not isfinite(scales[i]) or scales[i] < 0:
                raise InputError(f"vector {i} has the label {labels[i]} and the scale {scales[i]}")
            memcpy(self._bytes + i * self.d, &view[i, 0], <size_t>self.d)
            self._scales[i], self._labels[i] = scales[i], labels[i]
            square = 0
            for j in range(self.d):
                square += <double>view[i, j] * view[i, j]
            self._squares[i] = <float>(square * <double>self._scales[i] * self._scales[i])
            self._clock += 1
            self._ages[i] = self._clock
            self.size = i + 1


cdef bint all_finite(const float* x, Py_ssize_t n) noexcept nogil:
    """Whether no exponent is all ones: on the bits, which compilers vectorise."""
    cdef const int32_t* bits = <const int32_t*>x
    cdef int32_t bad = 0
    cdef Py_ssize_t i
    for i in range(n):
        bad |= (bits[i] & 0x7f800000) == 0x7f800000
    return not bad


cdef float quantise(const float* x, int8_t* out, Py_ssize_t d) noexcept nogil:
    """round(127 x / max|x|); the scale that undoes it."""
    cdef float most = 0, size, inverse
    cdef Py_ssize_t j
    for j in range(d):
        size = x[j] if x[j] >= 0 else -x[j]
        if size > most:
            most = size
    if most == 0:
        memset(out, 0, <size_t>d)
        return 0
    inverse = <float>(127.0 / most)
    if not isfinite(inverse):  # of a denormal
        memset(out, 0, <size_t>d)
        return 0
    for j in range(d):
        out[j] = <int8_t>(x[j] * inverse + (0.5 if x[j] >= 0 else -0.5))
    return <float>(most / 127.0)


cdef Py_ssize_t sort_near(Near* near, Py_ssize_t count, Py_ssize_t most) noexcept nogil:
    """Order by what has been measured again, and keep the first ones."""
    cdef Py_ssize_t i, place
    cdef Near one
    for i in range(1, count):
        one = near[i]
        place = i
        while place > 0 and nearer(&one, &near[place - 1]):
            near[place] = near[place - 1]
            place -= 1
        near[place] = one
    return most if most < count else count


def centres(vectors, labels, ages, Py_ssize_t n):
    """Indices of n vectors, of each label in proportion, each next one the farthest from those that were chosen."""
    labels = np.asarray(labels)
    kinds, counts = np.unique(labels, return_counts=True)
    shares = np.maximum(1, np.floor(counts * n / len(labels)).astype(int))
    while shares.sum() > n:
        shares[np.argmax(shares)] -= 1
    while shares.sum() < n:
        room = counts - shares
        shares[np.argmax(room)] += 1
    chosen = []
    for kind, share in zip(kinds, shares):
        members = np.flatnonzero(labels == kind)
        rows = vectors[members].astype(np.float64)
        place = int(np.argmin(((rows - rows.mean(axis=0)) ** 2).sum(axis=1)))
        nearest = np.full(len(members), np.inf)
        for _ in range(share):
            chosen.append(int(members[place]))
            nearest = np.minimum(nearest, ((rows - rows[place]) ** 2).sum(axis=1))
            nearest[place] = -1
            place = int(np.argmax(nearest))
    return chosen
