"""Drift detectors that read one value at a time: the common life cycle, and river's detectors with river's decisions.

The order of the floating-point operations is river 0.26.1's and the build forbids contraction to FMA, so that
decisions are the same to the last value.
"""

from cpython.buffer cimport PyBuffer_Release
from libc.math cimport INFINITY, NAN, exp, fabs, lgamma, log, pow, sqrt
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memmove

cimport cython

from .core cimport Streaming, allocate, as_bytes, natural, number, random64, restore, ring_place, take_doubles, usable

from tinylcm.errors import ConfigError

cdef enum:
    MODE_UP = 1
    MODE_DOWN = 2
    ROWS_MAX = 50
    WINDOW_MAX = 1 << 24

POLICIES = ("reset", "rebase", "latch")
WARNING = 0.8
REARM = 0.5
cdef double WARNING_SHARE = WARNING
cdef double REARM_SHARE = REARM


cdef class Detector(Streaming):
    """Base of all detectors: warm-up -> armed -> warning -> alarm -> armed again.

    `update(x)` takes one value and says whether it raised an alarm; `update_many(block)` takes many and gives the
    indices of those in the block that did. How a detector is armed again is its policy:

    * `reset`: the value after an alarm begins a new test against the same reference.
    * `rebase`: the value after an alarm begins to learn a new reference, with a new warm-up.
    * `latch`: it stays in alarm, silently, until the statistic has fallen below half of the threshold.

    A reference that was learned on the device does not move until an alarm rebases it: slow drift is not absorbed.
    Warnings come at 0.8 of the threshold where river's rules do not say otherwise. NaN, infinities and magnitudes
    beyond 1e140 are passed over and counted in `ignored`.
    """

    cdef int _take(self, double x) noexcept nogil:
        cdef int status
        self.index += 1
        self.drift_detected = False
        if not usable(x):
            self.ignored += 1
            return 0
        if self._over:
            self._over = False
            self._begin()
        status = self._step(x)
        if self.drift_detected:
            self._settle()
        return status

    cdef void _settle(self) noexcept nogil:
        """After an alarm."""
        self.n_detections += 1
        if self._policy == POLICY_LATCH:
            self._latched = True
        else:
            self._over = True

    cdef int _step(self, double x) noexcept nogil:
        """Take a usable value; 1 when it was not usable after all, -1 when there is no memory."""
        return 0

    cdef void _begin(self) noexcept nogil:
        """Begin a new test, with policy `rebase` with a new reference."""
        pass

    cdef void _judge(self, double statistic, double threshold) noexcept nogil:
        self._armed = True
        if self._latched:
            if statistic < REARM_SHARE * threshold:
                self._latched = False
            self.warning_detected = False
            return
        self.drift_detected = statistic > threshold
        self.warning_detected = not self.drift_detected and statistic > WARNING_SHARE * threshold

    cdef double _value(self):
        return NAN

    cdef double _limit(self):
        return NAN

    cdef int _set_policy(self, object policy) except -1:
        if policy not in POLICIES:
            raise ConfigError(f"{type(self).__name__}: policy is {policy!r}, expected reset, rebase or latch")
        self._policy = POLICIES.index(policy)

    def update(self, double x):
        """Take one value; whether it raised an alarm."""
        cdef int status = self._take(x)
        if status < 0:
            raise MemoryError(f"no memory for {type(self).__name__}")
        if status > 0:
            self.ignored += 1
        return self.drift_detected

    def update_many(self, values):
        """Take a block, `[n]`; the indices in the block of the values that raised an alarm."""
        cdef Py_buffer view
        cdef Py_ssize_t i
        cdef int status = 0
        cdef list alarms = []
        take_doubles(values, &view)
        try:
            for i in range(view.shape[0]):
                status = self._take((<const double*>view.buf)[i])
                if status:
                    if status < 0:
                        raise MemoryError(f"no memory for {type(self).__name__}")
                    self.ignored += 1
                if self.drift_detected:
                    alarms.append(i)
        finally:
            PyBuffer_Release(&view)
        return alarms

    def reset(self):
        """Begin a new test; the counters go on."""
        self.drift_detected = self.warning_detected = self._armed = self._over = self._latched = False
        self._begin()

    @property
    def statistic(self):
        """What is compared with `threshold`; NaN before there is one."""
        return self._value()

    @property
    def threshold(self):
        """Beyond it there is an alarm."""
        return self._limit()

    @property
    def p_value(self):
        """Probability of such a statistic without a change, for one look; None where there is none."""
        return None

    @property
    def phase(self):
        """`warm-up`, `armed`, `warning` or `alarm`."""
        if self.drift_detected or self._latched:
            return "alarm"
        if self.warning_detected:
            return "warning"
        return "armed" if self._armed else "warm-up"

    @property
    def policy(self):
        """How it is armed again after an alarm: `reset`, `rebase` or `latch`."""
        return POLICIES[self._policy]

    @property
    def seen(self):
        """Values that were used."""
        return self.index - self.ignored

    cdef list _own(self):
        """A detector's own fields."""
        return []

    cdef int _own_load(self, list fields) except -1:
        return 0

    cdef list _fields(self):
        flags = (self.drift_detected | self.warning_detected << 1 | self._armed << 2 | self._over << 3
                 | self._latched << 4)
        return [self.index, self.ignored, self.n_detections, self.suspect, flags, self._own()]

    cdef int _load(self, list fields) except -1:
        cdef int bits
        index, ignored, detections, suspect, flags, own = fields
        self.index = natural(index)
        self.ignored = natural(ignored, self.index)
        self.n_detections = natural(detections)
        self.suspect = natural(suspect)
        bits = <int>natural(flags, 31)
        self.drift_detected = bits & 1
        self.warning_detected = (bits & 2) != 0
        self._armed = (bits & 4) != 0
        self._over = (bits & 8) != 0
        self._latched = (bits & 16) != 0
        if not isinstance(own, list):
            raise ValueError("its own fields are missing")
        self._own_load(own)


# the mean of a signal -------------------------------------------------------------------------------------


@cython.final
cdef class PageHinkley(Detector):
    """Sequential test for a change of the mean (Page, Biometrika 1954), with forgetting; river's decisions.

    Args:
        min_instances: values before the first decision.
        delta: the drift that is tolerated, in units of the signal.
        threshold: excursion that raises the alarm, in units of the signal.
        alpha: forgetting factor, 0 < alpha <= 1.
        mode: `up`, `down` or `both`: which change counts.

    The defaults are river's and not scale free: on standard normal values they raise a false alarm every 1,700
    values or so. `tinylcm drift calibrate` finds the threshold for a wanted rate. After an alarm the next value begins
    a new test.

    Raises:
        ConfigError: a parameter is out of range.

    >>> import random
    >>> rng = random.Random(12345)
    >>> detector = PageHinkley()
    >>> stream = [rng.choice([0, 1]) for _ in range(1000)] + [rng.choice([4, 5, 6, 7]) for _ in range(1000)]
    >>> detector.update_many(stream)
    [1009]
    """

    cdef readonly double delta, alpha
    cdef readonly long long min_instances, count
    cdef int _mode
    cdef double _threshold, _mean, _up, _down, _up_min, _down_max
    cdef long long _up_from, _down_from

    def __cinit__(self, long long min_instances=30, double delta=0.005, double threshold=50.0,
                  double alpha=1 - 0.0001, mode="both"):
        if mode not in ("up", "down", "both"):
            raise ConfigError(f"PageHinkley: mode is {mode!r}, expected up, down or both")
        if min_instances < 1 or not 0 < alpha <= 1 or not threshold > 0 or not usable(delta):
            raise ConfigError("PageHinkley: expected min_instances >= 1, 0 < alpha <= 1, threshold > 0, finite delta")
        self.min_instances = min_instances
        self.delta = delta
        self._threshold = threshold
        self.alpha = alpha
        self._mode = (MODE_UP if mode != "down" else 0) | (MODE_DOWN if mode != "up" else 0)
        self._begin()

    cdef void _begin(self) noexcept nogil:
        self.count = 0
        self._mean = self._up = self._down = 0.0
        self._up_min = INFINITY
        self._down_max = -1.0
        self._up_from = self._down_from = self.index

    cdef int _step(self, double x) noexcept nogil:
        cdef double deviation, up, down
        self.count += 1
        self._mean += (x - self._mean) / self.count
        deviation = x - self._mean
        self._up = self.alpha * self._up + deviation - self.delta
        self._down = self.alpha * self._down + deviation + self.delta
        if self._up < self._up_min:
            self._up_min = self._up
            self._up_from = self.index
        if self._down > self._down_max:
            self._down_max = self._down
            self._down_from = self.index
        if self.count >= self.min_instances:
            self._armed = True
            up = self._up - self._up_min if self._mode & MODE_UP else 0.0
            down = self._down_max - self._down if self._mode & MODE_DOWN else 0.0
            if up > self._threshold:
                self.drift_detected = True
                self.suspect = self._up_from
            elif down > self._threshold:
                self.drift_detected = True
                self.suspect = self._down_from
            self.warning_detected = not self.drift_detected and (
                up > WARNING_SHARE * self._threshold or down > WARNING_SHARE * self._threshold
            )
        else:
            self._armed = self.warning_detected = False
        return 0

    cdef double _value(self):
        cdef double up = self._up - self._up_min if self.count and self._mode & MODE_UP else 0.0
        cdef double down = self._down_max - self._down if self.count and self._mode & MODE_DOWN else 0.0
        return up if up > down else down

    cdef double _limit(self):
        return self._threshold

    cdef list _config(self):
        mode = "both" if self._mode == MODE_UP | MODE_DOWN else "up" if self._mode == MODE_UP else "down"
        return [self.min_instances, self.delta, self._threshold, self.alpha, mode]

    cdef list _own(self):
        return [self.count, self._mean, self._up, self._down, self._up_min, self._down_max, self._up_from,
                self._down_from]

    cdef int _own_load(self, list fields) except -1:
        count, mean, up, down, up_min, down_max, up_from, down_from = fields
        self.count = natural(count)
        self._mean = number(mean)
        self._up = number(up)
        self._down = number(down)
        self._up_min = number(up_min)
        self._down_max = number(down_max)
        self._up_from = natural(up_from)
        self._down_from = natural(down_from)


cdef struct Bucket:
    double total, variance


cdef struct Row:
    int used
    Bucket* buckets


@cython.final
cdef class ADWIN(Detector):
    """Adaptive windowing: do the newest values have another mean than the older ones? River's decisions.

    The exponential histogram of Bifet and Gavaldà (SIAM SDM 2007, doi 10.1137/1.9781611972771.42): row r holds
    buckets of 2**r values. Like river's, it drops the whole window at the value after an alarm.

    Args:
        delta: confidence; smaller means fewer false alarms and later true ones, 0 < delta < 1.
        clock: values between two looks; 1 is the fastest to detect and the dearest.
        max_buckets: buckets of one size, 1 to 1,000.
        min_window_length: least length of either side of a cut.
        grace_period: values before the first look.

    Raises:
        ConfigError: a parameter is out of range.

    >>> import random
    >>> rng = random.Random(12345)
    >>> detector = ADWIN()
    >>> stream = [rng.choice([0, 1]) for _ in range(1000)] + [rng.choice([4, 5, 6, 7]) for _ in range(1000)]
    >>> detector.update_many(stream)
    [1023]
    """

    cdef readonly double delta
    cdef readonly long long clock, min_window_length, grace_period
    cdef readonly double total, variance
    cdef double _width, _difference, _epsilon
    cdef int _per_row, _rows, _wait
    cdef long long _tick
    cdef Row* _row

    def __cinit__(self, double delta=0.002, long long clock=32, int max_buckets=5, long long min_window_length=5,
                  long long grace_period=10):
        if not 0 < delta < 1 or clock < 1 or not 1 <= max_buckets <= 1000 or min_window_length < 1 or grace_period < 0:
            raise ConfigError(
                "ADWIN: expected 0 < delta < 1, clock >= 1, 1 <= max_buckets <= 1000, min_window_length >= 1, "
                "grace_period >= 0"
            )
        self.delta = delta
        self.clock = clock
        self.min_window_length = min_window_length
        self.grace_period = grace_period
        self._per_row = max_buckets
        self._difference = self._epsilon = NAN
        if self._add_row() < 0:
            raise MemoryError("no memory for ADWIN")

    def __dealloc__(self):
        cdef int r
        for r in range(self._rows):
            free(self._row[r].buckets)
        free(self._row)

    cdef int _add_row(self) noexcept nogil:
        cdef Row* grown
        cdef Bucket* block
        if self._rows == ROWS_MAX:
            return -1
        grown = <Row*>realloc(self._row, <size_t>(self._rows + 1) * sizeof(Row))
        if grown is NULL:
            return -1
        self._row = grown
        block = <Bucket*>realloc(NULL, (<size_t>self._per_row + 1) * sizeof(Bucket))
        if block is NULL:
            return -1
        self._row[self._rows].used = 0
        self._row[self._rows].buckets = block
        self._rows += 1
        return 0

    cdef void _shift(self, Row* row, int count) noexcept nogil:
        row.used -= count
        memmove(row.buckets, row.buckets + count, <size_t>row.used * sizeof(Bucket))

    cdef void _begin(self) noexcept nogil:
        while self._rows > 1:
            self._rows -= 1
            free(self._row[self._rows].buckets)
        self._row[0].used = 0
        self._width = self.total = self.variance = 0.0
        self._tick = 0

    cdef int _insert(self, double x) noexcept nogil:
        cdef Row* row
        cdef Row* following
        cdef int r = 0
        cdef double n, first, second, deviation
        row = &self._row[0]
        row.buckets[row.used].total = x
        row.buckets[row.used].variance = 0.0
        row.used += 1
        self._width += 1.0
        if self._width > 1.0:
            deviation = x - self.total / (self._width - 1.0)
            self.variance += (self._width - 1.0) * deviation * deviation / self._width
        self.total += x
        while self._row[r].used == self._per_row + 1:
            if r + 1 == self._rows and self._add_row() < 0:
                self._begin()  # an overfull row must not stay
                return -1
            row = &self._row[r]
            following = &self._row[r + 1]
            n = <double>(1 << r) if r < 31 else <double>(<long long>1 << r)
            first = row.buckets[0].total / n
            second = row.buckets[1].total / n
            following.buckets[following.used].total = row.buckets[0].total + row.buckets[1].total
            following.buckets[following.used].variance = (
                row.buckets[0].variance + row.buckets[1].variance
                + n * n * (first - second) * (first - second) / (n + n)
            )
            following.used += 1
            self._shift(row, 2)
            r += 1
        return 0

    cdef void _drop_oldest(self) noexcept nogil:
        cdef Row* row = &self._row[self._rows - 1]
        cdef double n = <double>(<long long>1 << (self._rows - 1))
        cdef double mean = row.buckets[0].total / n, rest
        self._width -= n
        self.total -= row.buckets[0].total
        rest = self.total / self._width
        self.variance -= row.buckets[0].variance + n * self._width * (mean - rest) * (mean - rest) / (n + self._width)
        self._shift(row, 1)
        while self._rows > 1 and self._row[self._rows - 1].used == 0:
            self._rows -= 1
            free(self._row[self._rows].buckets)

    cdef bint _cut(self, double log_term) noexcept nogil:
        """Look for one cut whose two sides differ; drop the oldest bucket and say True if there is one.

        Nearly all cuts are nowhere near the bound: they are screened without a division. With D = u0 n1 - u1 n0 the
        difference of the means is D / (n0 n1), and the bound's first term squared is C (a + b) / (a b). One percent of
        margin covers rounding, as long as the spread is not tiny beside the mean; else every cut is computed.
        """
        cdef double n0 = 0.0, n1 = self._width, u0 = 0.0, u1 = self.total, n, difference, m, epsilon, a, b, d, sides
        cdef double least = self.min_window_length - 1.0
        cdef double variance = self.variance / self._width
        cdef double mean = self.total / self._width
        cdef double c = 0.99 * (2.0 * variance * log_term)
        cdef int r = self._rows - 1, k, used
        cdef Row* row
        if not (variance > 1e-16 * mean * mean and mean * mean < 1e140 and variance < 1e140):
            c = -1.0
        while r >= 0:
            row = &self._row[r]
            n = <double>(<long long>1 << r)
            used = row.used if r else row.used - 1  # nothing lies behind the newest value
            for k in range(used):
                n0 += n
                n1 -= n
                u0 += row.buckets[k].total
                u1 -= row.buckets[k].total
                a = n0 - least
                b = n1 - least
                if a < 1.0 or b < 1.0:
                    continue
                d = u0 * n1 - u1 * n0
                sides = n0 * n1
                if d * d * a * b < c * (a + b) * sides * sides:
                    continue
                difference = u0 / n0 - u1 / n1
                m = 1.0 / (n0 - self.min_window_length + 1.0) + 1.0 / (n1 - self.min_window_length + 1.0)
                epsilon = sqrt(2.0 * m * variance * log_term) + 2.0 / 3.0 * log_term * m
                if fabs(difference) > epsilon:
                    self._difference = fabs(difference)
                    self._epsilon = epsilon
                    self._drop_oldest()
                    return True
            r -= 1
        return False

    cdef int _step(self, double x) noexcept nogil:
        if self._insert(x) < 0:
            return -1
        self._tick += 1
        if self._tick % self.clock == 0 and self._width > self.grace_period:
            self._armed = True
            while self._cut(log(2.0 * log(self._width) / self.delta)):
                self.drift_detected = True
            if self.drift_detected:
                self.suspect = self.index - <long long>self._width
        return 0

    @property
    def width(self):
        """Values in the window."""
        return int(self._width)

    cdef double _value(self):
        """The difference of the two means at the last cut that was taken."""
        return self._difference

    cdef double _limit(self):
        """The bound that this difference went over."""
        return self._epsilon

    cdef list _config(self):
        return [self.delta, self.clock, self._per_row, self.min_window_length, self.grace_period]

    cdef list _own(self):
        cdef int r
        rows = [as_bytes(self._row[r].buckets, self._row[r].used * sizeof(Bucket)) for r in range(self._rows)]
        taken = [self._difference, self._epsilon] if self._difference == self._difference else None
        return [self._width, self.total, self.variance, self._tick, taken, rows]

    cdef int _own_load(self, list fields) except -1:
        cdef int r, used
        cdef double held = 0.0
        width, total, variance, tick, taken, rows = fields
        self._width = number(width)
        self.total = number(total)
        self.variance = number(variance)
        self._tick = natural(tick)
        if taken is not None:
            difference, epsilon = taken  # an index would not be checked here
            self._difference = number(difference)
            self._epsilon = number(epsilon)
        if not 1 <= len(rows) <= ROWS_MAX:
            raise ValueError("no rows")
        for r in range(len(rows)):
            if r and self._add_row() < 0:
                raise MemoryError("no memory for ADWIN")
            used = <int>(len(rows[r]) // 16)
            if used > self._per_row or len(rows[r]) % 16:
                raise ValueError("a row is overfull")
            restore(self._row[r].buckets, rows[r], used * sizeof(Bucket))
            self._row[r].used = used
            held += used * <double>(<long long>1 << r)
        if held != self._width or (len(rows) > 1 and not rows[len(rows) - 1]):
            raise ValueError("the rows do not hold what they should")


# a plain limit --------------------------------------------------------------------------------------------


@cython.final
cdef class Limit(Detector):
    """A value above a limit for several values in a row: for what is simply wrong, such as a sensor that is stuck.

    Args:
        threshold: the limit, in units of the signal.
        patience: values in a row above it, 1 or more.
        policy: `latch` (one alarm until the value has fallen below half of the limit) or `reset`.

    Raises:
        ConfigError: a parameter is out of range.

    >>> Limit(0.5, patience=3).update_many([0, 1, 1, 0, 1, 1, 1, 1])
    [6]
    """

    cdef readonly long long patience
    cdef double _threshold, _last
    cdef long long _run

    def __cinit__(self, double threshold, long long patience=1, policy="latch"):
        self._set_policy(policy)
        if not threshold > 0 or patience < 1 or self._policy == POLICY_REBASE:
            raise ConfigError("Limit: expected threshold > 0, patience >= 1 and policy latch or reset")
        self._threshold = threshold
        self.patience = patience
        self._last = NAN

    cdef void _begin(self) noexcept nogil:
        self._run = 0
        self._last = NAN
        self._armed = self.warning_detected = False

    cdef int _step(self, double x) noexcept nogil:
        self._last = x
        self._run = self._run + 1 if x > self._threshold else 0
        self._armed = True
        self.warning_detected = False
        if self._latched:
            if x < REARM_SHARE * self._threshold:
                self._latched = False
            return 0
        self.drift_detected = self._run >= self.patience
        self.warning_detected = self._run > 0 and not self.drift_detected
        if self.drift_detected:
            self.suspect = self.index - self._run
        return 0

    cdef double _value(self):
        return self._last

    cdef double _limit(self):
        return self._threshold

    cdef list _config(self):
        return [self._threshold, self.patience, self.policy]

    cdef list _own(self):
        return [self._run, None if self._last != self._last else self._last]

    cdef int _own_load(self, list fields) except -1:
        run, last = fields
        self._run = natural(run)
        self._last = NAN if last is None else number(last)


# error rates ----------------------------------------------------------------------------------------------


cdef inline bint _share(double x) noexcept nogil:
    return 0.0 <= x <= 1.0


@cython.final
cdef class DDM(Detector):
    """Drift detection method (Gama et al., SBIA 2004): has an error rate risen? River's decisions.

    Args:
        warm_start: values before the first decision.
        warning_threshold, drift_threshold: standard deviations above the lowest rate.

    Takes 1 for an error and 0 for none; anything outside of 0 to 1 is passed over and counted.

    Raises:
        ConfigError: a parameter is out of range.
    """

    cdef readonly long long warm_start
    cdef readonly double warning_threshold, drift_threshold
    cdef long long _n, _low_from
    cdef double _p, _p_min, _s_min, _ps_min, _ps

    def __cinit__(self, long long warm_start=30, double warning_threshold=2.0, double drift_threshold=3.0):
        if warm_start < 1 or not warning_threshold > 0 or not drift_threshold > 0:
            raise ConfigError("DDM: expected warm_start >= 1 and thresholds > 0")
        self.warm_start = warm_start
        self.warning_threshold = warning_threshold
        self.drift_threshold = drift_threshold
        self._begin()

    cdef void _begin(self) noexcept nogil:
        self._n = 0
        self._p = self._p_min = self._s_min = self._ps = 0.0
        self._ps_min = INFINITY
        self._low_from = self.index
        self.warning_detected = self._armed = False

    cdef int _step(self, double x) noexcept nogil:
        cdef double s
        if not _share(x):
            return 1
        self._n += 1
        self._p += (1.0 / self._n) * (x - self._p)
        s = sqrt(fabs(self._p * (1 - self._p) / self._n))
        self._ps = self._p + s
        if self._n > self.warm_start:
            self._armed = True
            if self._ps <= self._ps_min:
                self._p_min = self._p
                self._s_min = s
                self._ps_min = self._p_min + self._s_min
                self._low_from = self.index
            self.warning_detected = self._ps > self._p_min + self.warning_threshold * self._s_min
            if self._ps > self._p_min + self.drift_threshold * self._s_min:
                self.drift_detected = True
                self.warning_detected = False
                self.suspect = self._low_from
        return 0

    cdef double _value(self):
        return self._ps if self._armed else NAN

    cdef double _limit(self):
        return self._p_min + self.drift_threshold * self._s_min if self._armed else NAN

    cdef list _config(self):
        return [self.warm_start, self.warning_threshold, self.drift_threshold]

    cdef list _own(self):
        return [self._n, self._p, self._p_min, self._s_min, self._ps_min, self._ps, self._low_from]

    cdef int _own_load(self, list fields) except -1:
        n, p, p_min, s_min, ps_min, ps, low_from = fields
        self._n = natural(n)
        self._p = number(p)
        self._p_min = number(p_min)
        self._s_min = number(s_min)
        self._ps_min = number(ps_min)
        self._ps = number(ps)
        self._low_from = natural(low_from)


@cython.final
cdef class EDDM(Detector):
    """Early drift detection method (Baena-García et al., 2006): have errors come closer together? River's decisions.

    Args:
        warm_start: values, and errors, before the first decision.
        alpha: ratio below which it warns.
        beta: ratio below which it alarms, not above alpha.

    Takes 1 for an error; every other usable value is none.

    Raises:
        ConfigError: a parameter is out of range.
    """

    cdef readonly long long warm_start
    cdef readonly double alpha, beta
    cdef long long _n, _last_error, _errors, _high_from
    cdef double _mean, _s, _greatest, _level

    def __cinit__(self, long long warm_start=30, double alpha=0.95, double beta=0.9):
        if warm_start < 1 or not 0 < beta <= alpha <= 1:
            raise ConfigError("EDDM: expected warm_start >= 1 and 0 < beta <= alpha <= 1")
        self.warm_start = warm_start
        self.alpha = alpha
        self.beta = beta
        self._begin()

    cdef void _begin(self) noexcept nogil:
        self._n = self._last_error = self._errors = 0
        self._mean = self._s = 0.0
        self._greatest = -1.0
        self._level = 1.0
        self._high_from = self.index
        self.warning_detected = self._armed = False

    cdef int _step(self, double x) noexcept nogil:
        cdef double distance, before, level, variance
        self._n += 1
        if x != 1.0:
            return 0
        self._errors += 1
        distance = self._n - self._last_error
        before = self._mean
        self._mean += (1.0 / self._errors) * (distance - self._mean)
        self._s += (distance - before) * (distance - self._mean)
        if self._n > self.warm_start:
            variance = self._s / (self._errors - 1) if self._errors > 1 else 0.0
            level = self._mean + 2 * pow(variance, 0.5)
            if level > self._greatest:
                self._greatest = level
                self._level = 1.0
                self._high_from = self.index
            elif self._errors > self.warm_start:
                self._armed = True
                self._level = level / self._greatest
                if self._level < self.beta:
                    self.drift_detected = True
                    self.suspect = self._high_from
                else:
                    self.warning_detected = self._level < self.alpha
        self._last_error = self._n
        return 0

    cdef double _value(self):
        """One minus the ratio of the present to the greatest distance."""
        return 1.0 - self._level

    cdef double _limit(self):
        return 1.0 - self.beta

    cdef list _config(self):
        return [self.warm_start, self.alpha, self.beta]

    cdef list _own(self):
        return [self._n, self._last_error, self._errors, self._high_from, self._mean, self._s, self._greatest,
                self._level]

    cdef int _own_load(self, list fields) except -1:
        n, last_error, errors, high_from, mean, s, greatest, level = fields
        self._n = natural(n)
        self._last_error = natural(last_error, self._n)
        self._errors = natural(errors, self._n)
        self._high_from = natural(high_from)
        self._mean = number(mean)
        self._s = number(s)
        self._greatest = number(greatest)
        self._level = number(level)


cdef int _confidences(str name, double drift, double warning) except -1:
    if not 0 < drift < 1 or not 0 < warning < 1:
        raise ConfigError(f"{name}: expected 0 < drift_confidence < 1 and 0 < warning_confidence < 1")


@cython.final
cdef class HDDMA(Detector):
    """Hoeffding's bound on averages (Frías-Blanco et al., IEEE TKDE 2015, A-test); river's decisions.

    Args:
        drift_confidence, warning_confidence: probability of a false alarm of the bound, 0 to 1.
        two_sided_test: whether a fall counts too.

    Takes values of 0 to 1, such as 1 for an error; others are passed over and counted.

    Raises:
        ConfigError: a parameter is out of range.
    """

    cdef readonly double drift_confidence, warning_confidence
    cdef readonly bint two_sided_test
    cdef double _log_bound, _log_drift, _log_warning
    cdef double _z, _low, _high, _low_bound, _high_bound
    cdef long long _n, _low_n, _high_n, _low_from, _high_from

    def __cinit__(self, double drift_confidence=0.001, double warning_confidence=0.005, bint two_sided_test=False):
        _confidences("HDDMA", drift_confidence, warning_confidence)
        self.drift_confidence = drift_confidence
        self.warning_confidence = warning_confidence
        self.two_sided_test = two_sided_test
        self._log_bound = log(1.0 / drift_confidence)
        self._log_drift = log(2.0 / drift_confidence)
        self._log_warning = log(2.0 / warning_confidence)
        self._begin()

    cdef void _begin(self) noexcept nogil:
        self._z = self._low = self._high = 0.0
        self._n = self._low_n = self._high_n = 0
        self._low_from = self._high_from = self.index
        self.warning_detected = self._armed = False

    cdef inline double _bound(self, long long n) noexcept nogil:
        return sqrt(1.0 / (2 * n) * self._log_bound)

    cdef int _step(self, double x) noexcept nogil:
        cdef double here, m
        if not _share(x):
            return 1
        self._armed = True
        self._n += 1
        self._z += (1.0 / self._n) * (x - self._z)
        if self._low_n == 0:
            self._low = self._high = self._z
            self._low_n = self._high_n = self._n
            self._low_bound = self._high_bound = self._bound(self._n)
        here = self._bound(self._n)
        if self._low + self._low_bound >= self._z + here:
            self._low = self._z
            self._low_n = self._n
            self._low_bound = here
            self._low_from = self.index
        if self._high - self._high_bound <= self._z - here:
            self._high = self._z
            self._high_n = self._n
            self._high_bound = here
            self._high_from = self.index
        self.warning_detected = False
        if self._low_n != self._n:
            m = <double>(self._n - self._low_n) / self._low_n * (1.0 / self._n)
            if self._z - self._low >= sqrt(m / 2 * self._log_drift):
                self.drift_detected = True
                self.suspect = self._low_from
            else:
                self.warning_detected = self._z - self._low >= sqrt(m / 2 * self._log_warning)
        if self.two_sided_test and self._high_n != self._n:
            m = <double>(self._n - self._high_n) / self._high_n * (1.0 / self._n)
            if self._high - self._z >= sqrt(m / 2 * self._log_drift):
                self.drift_detected = True
                self.suspect = self._high_from
            elif self._high - self._z >= sqrt(m / 2 * self._log_warning):
                self.warning_detected = True
        return 0

    cdef double _value(self):
        """The rise of the mean since it was lowest, or with two sides the larger change."""
        cdef double rise = self._z - self._low, fall = self._high - self._z
        return fall if self.two_sided_test and fall > rise else rise

    cdef double _limit(self):
        """The bound of the side that `statistic` gives; NaN where there is none."""
        cdef double rise = self._z - self._low, fall = self._high - self._z
        cdef long long since = self._high_n if self.two_sided_test and fall > rise else self._low_n
        if since == 0 or since == self._n:
            return NAN
        return sqrt(<double>(self._n - since) / since * (1.0 / self._n) / 2 * self._log_drift)

    cdef list _config(self):
        return [self.drift_confidence, self.warning_confidence, self.two_sided_test]

    cdef list _own(self):
        return [self._z, self._low, self._high, self._n, self._low_n, self._high_n, self._low_from, self._high_from]

    cdef int _own_load(self, list fields) except -1:
        z, low, high, n, low_n, high_n, low_from, high_from = fields
        self._z = number(z)
        self._low = number(low)
        self._high = number(high)
        self._n = natural(n)
        self._low_n = natural(low_n, self._n)
        self._high_n = natural(high_n, self._n)
        if (self._low_n == 0 or self._high_n == 0) and self._n:
            raise ValueError("a side is empty")
        if self._n:
            self._low_bound = self._bound(self._low_n)
            self._high_bound = self._bound(self._high_n)
        self._low_from = natural(low_from)
        self._high_from = natural(high_from)


cdef struct Sample:
    double mean, spread
    bint begun


cdef inline void _clear_sample(Sample* sample) noexcept nogil:
    sample.mean = 0.0
    sample.spread = 1.0
    sample.begun = False


cdef list _sample_out(Sample* sample):
    return [sample.mean, sample.spread, bool(sample.begun)]


cdef int _sample_in(Sample* sample, object source) except -1:
    mean, spread, begun = source
    sample.mean = number(mean)
    sample.spread = number(spread)
    sample.begun = bool(begun)


@cython.final
cdef class HDDMW(Detector):
    """McDiarmid's bound on weighted averages (Frías-Blanco et al., IEEE TKDE 2015, W-test); river's decisions.

    Args:
        drift_confidence, warning_confidence: probability of a false alarm of the bound, 0 to 1.
        lambda_val: weight of the newest value, 0 < lambda_val <= 1.
        two_sided_test: whether a fall counts too.

    Takes values of 0 to 1, such as 1 for an error; others are passed over and counted.

    Raises:
        ConfigError: a parameter is out of range.
    """

    cdef readonly double drift_confidence, warning_confidence, lambda_val
    cdef readonly bint two_sided_test
    cdef double _log_drift, _log_warning, _squared, _rest_squared, _up_cut, _down_cut
    cdef Sample _total, _up_before, _up_after, _down_before, _down_after
    cdef long long _up_from, _down_from

    def __cinit__(self, double drift_confidence=0.001, double warning_confidence=0.005, double lambda_val=0.05,
                  bint two_sided_test=False):
        _confidences("HDDMW", drift_confidence, warning_confidence)
        if not 0 < lambda_val <= 1:
            raise ConfigError(f"HDDMW: lambda_val is {lambda_val}, expected 0 < lambda_val <= 1")
        self.drift_confidence = drift_confidence
        self.warning_confidence = warning_confidence
        self.lambda_val = lambda_val
        self.two_sided_test = two_sided_test
        self._log_drift = log(1 / drift_confidence)
        self._log_warning = log(1 / warning_confidence)
        self._squared = lambda_val * lambda_val
        self._rest_squared = (1 - lambda_val) ** 2
        self._begin()

    cdef void _begin(self) noexcept nogil:
        _clear_sample(&self._total)
        _clear_sample(&self._up_before)
        _clear_sample(&self._up_after)
        _clear_sample(&self._down_before)
        _clear_sample(&self._down_after)
        self._up_cut = INFINITY
        self._down_cut = -INFINITY
        self._up_from = self._down_from = self.index
        self.warning_detected = self._armed = False

    cdef inline void _add(self, Sample* sample, double x) noexcept nogil:
        if sample.begun:
            sample.mean = self.lambda_val * x + (1.0 - self.lambda_val) * sample.mean
        else:
            sample.mean = x
            sample.begun = True
        sample.spread = self._squared + self._rest_squared * sample.spread

    cdef inline bint _differs(self, Sample* low, Sample* high, double log_confidence) noexcept nogil:
        if not (low.begun and high.begun):
            return False
        return high.mean - low.mean > sqrt((low.spread + high.spread) * log_confidence / 2)

    cdef int _step(self, double x) noexcept nogil:
        cdef double bound
        if not _share(x):
            return 1
        self._armed = True
        self._add(&self._total, x)
        bound = sqrt(self._total.spread * self._log_drift / 2)
        if self._total.mean + bound < self._up_cut:
            self._up_cut = self._total.mean + bound
            self._up_before = self._total
            _clear_sample(&self._up_after)
            self._up_from = self.index
        else:
            self._add(&self._up_after, x)
        self.warning_detected = False
        if self._differs(&self._up_before, &self._up_after, self._log_drift):
            self.drift_detected = True
            self.suspect = self._up_from
        else:
            self.warning_detected = self._differs(&self._up_before, &self._up_after, self._log_warning)
        if not self.two_sided_test:
            return 0
        if self._total.mean - bound > self._down_cut:
            self._down_cut = self._total.mean - bound
            self._down_before = self._total
            _clear_sample(&self._down_after)
            self._down_from = self.index
        else:
            self._add(&self._down_after, x)
        if self._differs(&self._down_after, &self._down_before, self._log_drift):
            self.drift_detected = True
            self.suspect = self._down_from
        elif self._differs(&self._down_after, &self._down_before, self._log_warning):
            self.warning_detected = True
        return 0

    cdef double _value(self):
        """The rise of the weighted mean behind the cut, or with two sides the larger change; NaN before one."""
        cdef double rise = NAN, fall = NAN
        if self._up_after.begun:
            rise = self._up_after.mean - self._up_before.mean
        if self.two_sided_test and self._down_after.begun:
            fall = self._down_before.mean - self._down_after.mean
        return fall if not rise >= fall and fall == fall else rise

    cdef double _limit(self):
        """The bound of the rise, or with two sides of the larger change; NaN before one."""
        cdef double rise = NAN, fall = NAN
        if self._up_after.begun:
            rise = self._up_after.mean - self._up_before.mean
        if self.two_sided_test and self._down_after.begun:
            fall = self._down_before.mean - self._down_after.mean
        if not rise >= fall and fall == fall:
            return sqrt((self._down_before.spread + self._down_after.spread) * self._log_drift / 2)
        if rise != rise:
            return NAN
        return sqrt((self._up_before.spread + self._up_after.spread) * self._log_drift / 2)

    cdef list _config(self):
        return [self.drift_confidence, self.warning_confidence, self.lambda_val, self.two_sided_test]

    cdef list _own(self):
        return [_sample_out(&self._total), _sample_out(&self._up_before), _sample_out(&self._up_after),
                _sample_out(&self._down_before), _sample_out(&self._down_after), self._up_cut, self._down_cut,
                self._up_from, self._down_from]

    cdef int _own_load(self, list fields) except -1:
        total, up_before, up_after, down_before, down_after, up_cut, down_cut, up_from, down_from = fields
        _sample_in(&self._total, total)
        _sample_in(&self._up_before, up_before)
        _sample_in(&self._up_after, up_after)
        _sample_in(&self._down_before, down_before)
        _sample_in(&self._down_after, down_after)
        self._up_cut = number(up_cut)
        self._down_cut = number(down_cut)
        self._up_from = natural(up_from)
        self._down_from = natural(down_from)


@cython.final
cdef class FHDDM(Detector):
    """Fast Hoeffding drift detection (Pesaranghader, Viktor, ECML-PKDD 2016); river's decisions.

    Args:
        sliding_window_size: newest values that are compared with the best so far, 1 to 2**24.
        confidence_level: probability of a false alarm of the bound, 0 to 1.
        short_window_size: a second, shorter window (FHDDMS); None for none.

    Unlike the other detectors it takes 1 for a *correct* prediction and 0 for an error; anything else than 0 and 1 is
    passed over and counted.

    Raises:
        ConfigError: a parameter is out of range.
    """

    cdef readonly Py_ssize_t sliding_window_size
    cdef readonly double confidence_level
    cdef Py_ssize_t _short, _used, _place
    cdef unsigned char* _window
    cdef long long _ones, _short_ones, _best_from
    cdef double _epsilon, _epsilon_short, _best, _best_short, _fall

    def __cinit__(self, Py_ssize_t sliding_window_size=100, double confidence_level=0.000001, short_window_size=None):
        if not 1 <= sliding_window_size <= WINDOW_MAX or not 0 < confidence_level < 1:
            raise ConfigError("FHDDM: expected a sliding_window_size of 1 to 2**24 and 0 < confidence_level < 1")
        if short_window_size is not None:
            self._short = short_window_size
            if not 1 <= self._short <= sliding_window_size:
                raise ConfigError("FHDDM: short_window_size is longer than sliding_window_size or below 1")
            self._epsilon_short = sqrt(log(1 / confidence_level) / (2 * self._short))
        self.sliding_window_size = sliding_window_size
        self.confidence_level = confidence_level
        self._epsilon = sqrt(log(1 / confidence_level) / (2 * sliding_window_size))
        self._window = <unsigned char*>allocate(sliding_window_size, 1)
        self._begin()

    def __dealloc__(self):
        free(self._window)

    cdef void _begin(self) noexcept nogil:
        self._used = self._place = 0
        self._ones = self._short_ones = 0
        self._best = self._best_short = 0.0
        self._fall = NAN
        self._best_from = self.index
        self._armed = False

    cdef int _step(self, double x) noexcept nogil:
        cdef Py_ssize_t left
        cdef double u
        if x != 0.0 and x != 1.0:
            return 1
        if self._used == self.sliding_window_size:
            self._ones -= self._window[self._place]
        else:
            self._used += 1
        if self._short and self._used > self._short:
            left = self._place - self._short
            self._short_ones -= self._window[left if left >= 0 else left + self.sliding_window_size]
        self._window[self._place] = x != 0.0
        self._ones += x != 0.0
        self._short_ones += x != 0.0
        self._place += 1
        if self._place == self.sliding_window_size:
            self._place = 0
        if self._used < self.sliding_window_size:
            return 0
        self._armed = True
        u = <double>self._ones / self.sliding_window_size
        if self._best < u:
            self._best = u
            self._best_from = self.index
        self._fall = self._best - u
        self.drift_detected = self._fall > self._epsilon
        if self._short:
            u = <double>self._short_ones / self._short
            if self._best_short < u:
                self._best_short = u
            if self._best_short - u > self._epsilon_short:
                self.drift_detected = True
        if self.drift_detected:
            self.suspect = self._best_from
        return 0

    @property
    def short_window_size(self):
        """Length of the second window, or None."""
        return self._short or None

    cdef double _value(self):
        """How far the share of correct predictions lies below its best."""
        return self._fall

    cdef double _limit(self):
        return self._epsilon

    cdef list _config(self):
        return [self.sliding_window_size, self.confidence_level, self._short or None]

    cdef list _own(self):
        return [self._used, self._place, self._ones, self._short_ones, self._best, self._best_short, self._best_from,
                None if self._fall != self._fall else self._fall, as_bytes(self._window, self.sliding_window_size)]

    cdef int _own_load(self, list fields) except -1:
        cdef Py_ssize_t i
        used, place, ones, short_ones, best, best_short, best_from, fall, window = fields
        self._used = natural(used, self.sliding_window_size)
        self._place = ring_place(place, self._used, self.sliding_window_size)
        self._ones = natural(ones, self._used)
        self._short_ones = natural(short_ones, self._used)
        self._best = number(best)
        self._best_short = number(best_short)
        self._best_from = natural(best_from)
        self._fall = NAN if fall is None else number(fall)
        restore(self._window, window, self.sliding_window_size)
        for i in range(self.sliding_window_size):
            if self._window[i] > 1:
                raise ValueError("the window holds no bits")


# the distribution -----------------------------------------------------------------------------------------


cdef inline void _sort(double* x, Py_ssize_t n) noexcept nogil:
    """Insertion sort: the samples are a few dozen."""
    cdef Py_ssize_t i, j
    cdef double held
    for i in range(1, n):
        held = x[i]
        j = i
        while j > 0 and x[j - 1] > held:
            x[j] = x[j - 1]
            j -= 1
        x[j] = held


@cython.final
cdef class KSWIN(Detector):
    """Kolmogorov-Smirnov windowing (Raab, Heusinger, Schleif, Neurocomputing 2020).

    The newest `stat_size` values against a random sample of as many older ones of the window. Names and defaults
    are river's; since it samples with a generator of its own, decisions are river's in distribution only. Exact
    p-values of equal samples (Gnedenko and Korolyuk 1951) are worked out once; like river's it also wants a distance
    above 0.1, and begins with an empty window after an alarm.

    Args:
        alpha: p-value at which it alarms, for one look; looks are many, so false alarms are far more frequent.
        window_size: 2 to 65,536 values.
        stat_size: 1 to window_size / 2, at most 1,024.
        seed: of the sampling; None is 0.

    Raises:
        ConfigError: a parameter is out of range.
    """

    cdef readonly double alpha
    cdef readonly Py_ssize_t window_size, stat_size
    cdef readonly uint64_t seed
    cdef uint64_t _state
    cdef Py_ssize_t _used, _place, _critical, _distance
    cdef double* _window
    cdef double* _scratch
    cdef Py_ssize_t* _order
    cdef double* _p

    def __cinit__(self, double alpha=0.005, Py_ssize_t window_size=100, Py_ssize_t stat_size=30, seed=None):
        cdef Py_ssize_t h, i, n = stat_size
        cdef double total, term
        if not 0 < alpha < 1 or not 2 <= window_size <= 65536 or not 1 <= stat_size <= min(1024, window_size // 2):
            raise ConfigError(
                "KSWIN: expected 0 < alpha < 1, a window_size of 2 to 65536, a stat_size of 1 to half of it and 1024"
            )
        self.alpha = alpha
        self.window_size = window_size
        self.stat_size = stat_size
        self.seed = 0 if seed is None else seed
        self._state = self.seed
        self._window = <double*>allocate(window_size, sizeof(double))
        self._scratch = <double*>allocate(2 * n, sizeof(double))
        self._order = <Py_ssize_t*>allocate(window_size - n, sizeof(Py_ssize_t))
        self._p = <double*>allocate(n + 1, sizeof(double))
        for i in range(window_size - n):
            self._order[i] = i
        self._critical = n + 1
        self._p[0] = 1.0
        for h in range(n, 0, -1):
            # P(D >= h / n) = 2 sum over i of (-1)**(i - 1) C(2n, n - i h) / C(2n, n)
            total = 0.0
            for i in range(1, n // h + 1):
                term = exp(2 * lgamma(n + 1) - lgamma(n - i * h + 1) - lgamma(n + i * h + 1))
                total += term if i & 1 else -term
            self._p[h] = min(1.0, 2 * total)
            if self._p[h] <= alpha and h > 0.1 * n:
                self._critical = h

    def __dealloc__(self):
        free(self._window)
        free(self._scratch)
        free(self._order)
        free(self._p)

    cdef void _begin(self) noexcept nogil:
        self._used = self._place = self._distance = 0
        self._armed = self.warning_detected = False

    cdef int _step(self, double x) noexcept nogil:
        cdef Py_ssize_t i, j, at, n = self.stat_size, older = self.window_size - n, most = 0
        cdef Py_ssize_t held
        cdef double* sample = self._scratch
        cdef double* newest = self._scratch + n
        self._window[self._place] = x
        self._place += 1
        if self._place == self.window_size:
            self._place = 0
        if self._used < self.window_size:
            self._used += 1
        if self._used < self.window_size:
            return 0
        self._armed = True
        for i in range(n):  # the beginning of a Fisher-Yates shuffle; multiply-shift has a bias below 2**-40
            j = i + <Py_ssize_t>(((random64(&self._state) >> 32) * <uint64_t>(older - i)) >> 32)
            held = self._order[j]
            self._order[j] = self._order[i]
            self._order[i] = held
            at = self._place + held  # the oldest value lies at _place
            sample[i] = self._window[at if at < self.window_size else at - self.window_size]
            at = self._place + older + i
            newest[i] = self._window[at if at < self.window_size else at - self.window_size]
        _sort(sample, n)
        _sort(newest, n)
        i = j = 0
        while i < n and j < n:
            x = sample[i] if sample[i] < newest[j] else newest[j]
            while i < n and sample[i] == x:
                i += 1
            while j < n and newest[j] == x:
                j += 1
            if i - j > most:
                most = i - j
            elif j - i > most:
                most = j - i
        self._distance = most
        self.drift_detected = most >= self._critical
        self.warning_detected = not self.drift_detected and most + 1 >= self._critical
        if self.drift_detected:
            self.suspect = self.index - n
        return 0

    @property
    def p_value(self):
        """Exact p-value of the last look, None before one."""
        return self._p[self._distance] if self._armed else None

    cdef double _value(self):
        return <double>self._distance / self.stat_size if self._armed else NAN

    cdef double _limit(self):
        """The largest distance that is no alarm."""
        return (self._critical - 1.0) / self.stat_size

    cdef list _config(self):
        return [self.alpha, self.window_size, self.stat_size, self.seed]

    cdef list _own(self):
        return [self._state, self._used, self._place, self._distance, as_bytes(self._window, self.window_size * 8),
                as_bytes(self._order, (self.window_size - self.stat_size) * sizeof(Py_ssize_t))]

    cdef int _own_load(self, list fields) except -1:
        cdef Py_ssize_t i, older = self.window_size - self.stat_size
        cdef set places = set()
        state, used, place, distance, window, order = fields
        self._state = state
        self._used = natural(used, self.window_size)
        self._place = ring_place(place, self._used, self.window_size)
        self._distance = natural(distance, self.stat_size)
        restore(self._window, window, self.window_size * 8)
        for i in range(self._used):
            number(self._window[i])
        restore(self._order, order, older * sizeof(Py_ssize_t))
        for i in range(older):
            places.add(self._order[i])
        if places != set(range(older)):
            raise ValueError("the order is no permutation")
