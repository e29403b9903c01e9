"""The hot route in one call: window -> tensor -> model -> decision -> monitors -> metrics -> prediction.

`runtime/pipeline.py` puts an engine together and holds the lock; nothing here allocates but the prediction, its scores
and what the model's own engine does.
"""

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_FORMAT,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_CheckBuffer,
    PyObject_GetBuffer,
)
from cpython.pythread cimport (
    NOWAIT_LOCK,
    WAIT_LOCK,
    PyThread_acquire_lock,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_release_lock,
    PyThread_type_lock,
)
from cpython.ref cimport PyObject
from libc.math cimport NAN, exp, isfinite, log2, sqrt
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

cimport cython

from .drift cimport Detector
from .prediction cimport Prediction
from .ring cimport Reader
from .signal cimport Plan
from .stats cimport MetricsRing

from tinylcm.errors import ConfigError, ModelError

cdef extern from "Python.h":
    object PyObject_Call(object call, object arguments, PyObject* keywords)

cdef extern from "<time.h>" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec* now)
    int CLOCK_MONOTONIC


cdef inline long long now_ns() noexcept nogil:
    """The clock of `time.perf_counter_ns`."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <long long>now.tv_sec * 1000000000 + now.tv_nsec


# from the model's output to a decision -----------------------------------------------------------------------

cdef enum:
    FLOAT32 = 0
    FLOAT64 = 1
    INT8 = 2
    UINT8 = 3
    INT16 = 4
    INT32 = 5
    INT64 = 6

DTYPES = {"f": FLOAT32, "d": FLOAT64, "b": INT8, "B": UINT8, "h": INT16, "i": INT32, "l": INT64, "q": INT64}
ACTIVATIONS = ("none", "softmax", "sigmoid")

cdef tuple EMPTY = ()

cpdef enum:
    NOT_FINITE = -2
    REJECTED = -1


@cython.final
cdef class Decider:
    """Scores after activation and smoothing, and the decision with threshold, hysteresis and refractory period.

    Each stream has one of its own: what it remembers are the windows before.
    """

    cdef readonly Py_ssize_t count, smoothing
    cdef readonly Py_ssize_t best  # of the greatest score, also when it was rejected
    cdef readonly double confidence
    cdef readonly bint event
    cdef double _temperature, _threshold, _hysteresis
    cdef long long _refractory, _index
    cdef long long* _events  # [count] the window of each label's last event
    cdef int _activation
    cdef Py_ssize_t _held, _next, _filled
    cdef float* _now  # [count] of this window
    cdef float* _mean  # [count] after smoothing
    cdef float* _ring  # [smoothing, count]

    def __cinit__(self, Py_ssize_t count, str activation="none", double temperature=1.0, Py_ssize_t smoothing=1,
                  double threshold=0.0, double hysteresis=0.0, long long refractory=0):
        if count < 1 or smoothing < 1 or not temperature > 0 or activation not in ACTIVATIONS:
            raise ConfigError("expected at least one score, smoothing >= 1, temperature > 0 and a known activation")
        if count * smoothing > (1 << 24):
            raise ConfigError(f"smoothing {smoothing} windows of {count} scores takes more than 64 MiB")
        self.count, self.smoothing = count, smoothing
        self._activation = ACTIVATIONS.index(activation)
        self._temperature, self._threshold, self._hysteresis = temperature, threshold, hysteresis
        self._refractory = refractory
        self._now = <float*>calloc(<size_t>count, sizeof(float))
        self._mean = self._now
        if smoothing > 1:
            self._mean = <float*>calloc(<size_t>count, sizeof(float))
            self._ring = <float*>calloc(<size_t>(count * smoothing), sizeof(float))
        self._events = <long long*>calloc(<size_t>count, sizeof(long long))
        if not self._now or not self._mean or not self._events or (smoothing > 1 and not self._ring):
            raise MemoryError("no memory for the scores")
        self.restart()

    def __dealloc__(self):
        if self._mean is not self._now:
            free(self._mean)
        free(self._now)
        free(self._ring)
        free(self._events)

    cpdef void restart(self) noexcept:
        """Forget the windows before."""
        cdef Py_ssize_t i
        self._held = REJECTED
        self._next = self._filled = 0
        self._index = 0
        self.event = False
        for i in range(self.count):
            self._events[i] = -self._refractory - 1

    cdef void _activate(self) noexcept nogil:
        cdef Py_ssize_t i
        cdef double total = 0, greatest = self._now[0], inverse = 1.0 / self._temperature
        if self._activation == 1:
            for i in range(1, self.count):
                if self._now[i] > greatest:
                    greatest = self._now[i]
            for i in range(self.count):
                self._now[i] = <float>exp((self._now[i] - greatest) * inverse)
                total += self._now[i]
            for i in range(self.count):
                self._now[i] = <float>(self._now[i] / total)
        elif self._activation == 2:
            for i in range(self.count):
                self._now[i] = <float>(1.0 / (1.0 + exp(-self._now[i] * inverse)))

    cdef void _smooth(self) noexcept nogil:
        cdef Py_ssize_t i, j, n
        cdef double total
        memcpy(self._ring + self._next * self.count, self._now, <size_t>self.count * sizeof(float))
        self._next = self._next + 1 if self._next + 1 < self.smoothing else 0
        if self._filled < self.smoothing:
            self._filled += 1
        n = self._filled
        for i in range(self.count):
            total = 0
            for j in range(n):
                total += self._ring[j * self.count + i]
            self._mean[i] = <float>(total / n)

    cdef Py_ssize_t decide(self, const void* output, int dtype, double scale, long long zero_point) noexcept nogil:
        """Take the model's output; the label's index, REJECTED or NOT_FINITE."""
        cdef Py_ssize_t i, best, n = self.count
        cdef double limit
        cdef float* now = self._now
        if dtype == FLOAT32:
            memcpy(now, output, <size_t>n * sizeof(float))
        else:
            if scale == 0:
                scale = 1
            for i in range(n):
                if dtype == FLOAT64:
                    now[i] = <float>((<const double*>output)[i])
                elif dtype == INT8:
                    now[i] = <float>(scale * ((<const signed char*>output)[i] - zero_point))
                elif dtype == UINT8:
                    now[i] = <float>(scale * ((<const unsigned char*>output)[i] - zero_point))
                elif dtype == INT16:
                    now[i] = <float>(scale * ((<const short*>output)[i] - zero_point))
                elif dtype == INT32:
                    now[i] = <float>(scale * ((<const int*>output)[i] - zero_point))
                else:
                    now[i] = <float>(scale * ((<const long long*>output)[i] - zero_point))
        for i in range(n):
            if not isfinite(now[i]):
                return NOT_FINITE
        if self._activation:
            self._activate()
        if self.smoothing > 1:
            self._smooth()
        best = 0
        for i in range(1, n):
            if self._mean[i] > self._mean[best]:
                best = i
        limit = self._threshold
        if self._held >= 0:
            limit -= self._hysteresis
            if best != self._held and self._mean[best] - self._mean[self._held] <= self._hysteresis:
                best = self._held
        self.best = best
        self.confidence = self._mean[best]
        if self._threshold > 0 and self.confidence < (limit if best == self._held else self._threshold):
            best = REJECTED
        # Each label has its own refractory period: the event of another one does not silence it.
        self.event = best >= 0 and best != self._held and self._index - self._events[best] > self._refractory
        if self.event:
            self._events[best] = self._index
        self._index += 1
        self._held = best
        return best

    def update(self, const float[::1] output not None):
        """Take an output of logits or scores; (index of the label, REJECTED or NOT_FINITE), for tests and tools."""
        if output.shape[0] != self.count:
            raise ValueError(f"expected {self.count} scores, got {output.shape[0]}")
        return self.decide(&output[0], FLOAT32, 0, 0)

    def scores(self):
        """After activation and smoothing, in the order of the labels."""
        cdef Py_ssize_t i
        return [self._mean[i] for i in range(self.count)]


# monitors ----------------------------------------------------------------------------------------------------

cdef enum:
    CONFIDENCE = 0
    ENTROPY = 1
    MARGIN = 2
    LATENCY = 3
    MISSED = 4
    STUCK = 5
    RATE = 6
    LABEL = 7
    DISTANCE = 8
    FEATURES = 9
    ROWS_NEW = 10
    EMBEDDING = 11
    OTHER = 12

# The signals that `Watch` computes itself, under their names in `tinylcm.monitors`.
SIGNALS = {
    "confidence": CONFIDENCE, "entropy": ENTROPY, "margin": MARGIN, "latency": LATENCY, "missing": MISSED,
    "stuck": STUCK, "rate": RATE, "prediction": LABEL, "distance": DISTANCE, "features": FEATURES,
    "input": ROWS_NEW, "embedding": EMBEDDING,
}


@cython.final
cdef class Member:
    """One monitor as `Watch` calls it: a compiled detector of numbers, a detector of rows, or anything else."""

    cdef int signal
    cdef Detector detector, evidence
    cdef object monitor, update, update_evidence

    def __init__(self, monitor, signal=None, detector=None, evidence=None):
        self.monitor = monitor
        self.signal = OTHER if signal is None else SIGNALS[signal]
        if self.signal == OTHER:
            self.update = monitor.update
        elif self.signal >= FEATURES:
            self.update = detector.update
            self.update_evidence = None if evidence is None else evidence.update
        else:
            self.detector, self.evidence = detector, evidence


@cython.final
cdef class Watch:
    """The monitors of one model, called once a window.

    Args:
        members: in the order in which their alarms are given.
        inputs: the `Inputs` that monitors in Python read; renewed only when one of them runs.
        finish: called with what has alarmed, when anything has; gives the tuple of alarms.
        judge: call it for every window: some monitors are judged together.
        report: called with a monitor in Python and the exception that it raised.
        channels: values a sample.
        hop: samples a window that are new.
    """

    cdef list _members
    cdef object _inputs, _finish, _report, _rows, _new_rows, _embedding, _features, _scores
    cdef const float[::1] _distance
    cdef const float[:, ::1] _window
    cdef double[::1] _moments
    cdef readonly Py_ssize_t channels, hop
    cdef public long long index
    cdef long long _before_ns, _at_ns, _missing
    cdef Py_ssize_t _label
    cdef double _latency_us
    cdef const float* _p
    cdef Py_ssize_t _count
    cdef bint _fresh, _renewed, _judge
    cdef readonly bint needs_rows

    def __init__(self, list members not None, inputs, finish, bint judge, report, Py_ssize_t channels, Py_ssize_t hop):
        self._members = [member for member in members if isinstance(member, Member)]
        self._inputs, self._finish, self._report = inputs, finish, report
        self._judge = judge
        self.channels, self.hop = channels, hop
        self.index = -1
        self._features = inputs.features_array()
        self._moments = self._features
        self.needs_rows = any(
            (<Member>member).signal in (STUCK, FEATURES, ROWS_NEW, OTHER) for member in self._members
        )

    def bind(self, rows, embedding, distance=None):
        """Say where the windows will lie: float32 `[samples, channels]`, the embedding `[d]` or None, and the distance
        to the neighbours `[1]` or None."""
        self._distance = distance
        self._window = rows
        self._rows = rows
        self._new_rows = rows[-self.hop:]
        self._embedding = embedding

    def update(self, rows, Py_ssize_t label, scores, double latency_us=NAN, long long missing=0, long long at_ns=0,
               embedding=None):
        """One window from Python: see `tinylcm.monitors.MonitorSet.update`."""
        cdef float* values
        cdef Py_ssize_t i, n = len(scores)
        if rows is not self._rows or embedding is not self._embedding:
            self.bind(rows, embedding)
        values = <float*>calloc(<size_t>max(n, 1), sizeof(float))
        if values is NULL:
            raise MemoryError("no memory for the scores")
        try:
            for i, score in enumerate(scores):
                if i < n:
                    values[i] = score
            return self.look(values, n, label, latency_us, missing, at_ns)
        finally:
            free(values)

    cdef tuple look(self, const float* scores, Py_ssize_t count, Py_ssize_t label, double latency_us,
                    long long missing, long long at_ns):
        """Take one window; the alarms that it raises."""
        cdef Member member
        cdef list alarms = None
        cdef object alarm
        cdef double value
        self.index += 1
        if not self._members:
            return EMPTY
        self._p, self._count, self._label = scores, count, label
        self._latency_us, self._missing = latency_us, missing
        self._before_ns, self._at_ns = self._at_ns, at_ns
        self._fresh = self._renewed = False
        for member in self._members:
            alarm = None
            if member.signal == OTHER:
                self._renew()
                try:
                    alarm = member.update(self._inputs)
                except Exception as error:  # of an application's own: it must not cost the prediction
                    self._report(member.monitor, error)
            elif member.signal >= FEATURES:
                rows = self._rows_of(member)
                if member.update_evidence is not None:
                    member.update_evidence(rows)
                if member.update(rows):
                    alarm = self._alarm(member)
            else:
                value = self._number(member.signal)
                if member.evidence is not None:
                    step(member.evidence, value)
                if step(member.detector, value):
                    alarm = self._alarm(member)
            if alarm is not None:
                if alarms is None:
                    alarms = []
                alarms.append(alarm)
        if self._judge:
            self._renew()
            return self._finish(alarms or [])
        return EMPTY if alarms is None else self._finish(alarms)

    cdef object _alarm(self, Member member):
        self._renew()
        return member.monitor.alarm(self._inputs)

    cdef int _renew(self) except -1:
        """Let monitors in Python see this window."""
        cdef Py_ssize_t i
        if not self._renewed:
            self._renewed = True
            self._inputs.renew(
                self._rows, self._label, tuple([self._p[i] for i in range(self._count)]), self._latency_us,
                self._missing, self._before_ns, self._at_ns, self._embedding, self.index, self._number(DISTANCE),
            )
        return 0

    cdef object _rows_of(self, Member member):
        if member.signal == FEATURES:
            if not self._fresh:
                self._fresh = True
                moments(self._window, &self._moments[0], &self._moments[self.channels])
            return self._features
        if member.signal == ROWS_NEW:
            return self._rows if self.index == 0 else self._new_rows
        if self._embedding is None:
            raise ModelError(
                "a monitor watches the embedding, but the manifest names no `embedding` output of the model"
            )
        return self._embedding

    cdef double _number(self, int signal) noexcept nogil:
        cdef Py_ssize_t i
        cdef double value = 0
        if signal == CONFIDENCE:
            return self._p[self._label]
        if signal == LABEL:
            return self._label
        if signal == ENTROPY:
            for i in range(self._count):
                if self._p[i] > 0:
                    value -= self._p[i] * log2(self._p[i])
            return value
        if signal == MARGIN:
            for i in range(self._count):
                if i != self._label and self._p[i] > value:
                    value = self._p[i]
            return self._p[self._label] - value
        if signal == LATENCY:
            return self._latency_us
        if signal == DISTANCE:
            return self._distance[0] if self._distance is not None else NAN
        if signal == MISSED:
            return <double>self._missing / (self._missing + self.hop)
        if signal == STUCK:
            return stuck(self._window)
        if self.index == 0 or self._before_ns == 0:
            return NAN
        return (self._at_ns - self._before_ns) / 1e9 / self.hop


cdef inline bint step(Detector detector, double value) except *:
    """`Detector.update` without the call from Python."""
    cdef int status = detector._take(value)
    if status < 0:
        raise MemoryError(f"no memory for {type(detector).__name__}")
    if status > 0:
        detector.ignored += 1
    return detector.drift_detected


cdef double stuck(const float[:, ::1] window) noexcept nogil:
    """Share of samples that equal the one before, of the worst channel."""
    cdef Py_ssize_t i, j, samples = window.shape[0], same, worst = 0
    if samples < 2:
        return 0
    for j in range(window.shape[1]):
        same = 0
        for i in range(1, samples):
            same += window[i, j] == window[i - 1, j]
        if same > worst:
            worst = same
    return <double>worst / (samples - 1)


cdef enum:
    TOGETHER = 16  # channels whose sums are kept side by side


cdef void moments(const float[:, ::1] window, double* mean, double* std) noexcept nogil:
    """Mean and standard deviation (divided by n) of each channel, in two passes: a large offset costs no precision.

    Rows in their order, even and odd ones apart: an addition need not wait for the one before.
    """
    cdef Py_ssize_t _, j, first, count, samples = window.shape[0], channels = window.shape[1]
    cdef const float* row
    cdef double[TOGETHER] even
    cdef double[TOGETHER] odd
    cdef double d
    first = 0
    while first < channels:
        count = channels - first if channels - first < TOGETHER else TOGETHER
        for j in range(count):
            even[j] = odd[j] = 0
        row = &window[0, first]
        for _ in range(samples // 2):
            for j in range(count):
                even[j] += row[j]
                odd[j] += row[channels + j]
            row += 2 * channels
        for j in range(count):
            if samples & 1:
                even[j] += row[j]
            mean[first + j] = (even[j] + odd[j]) / samples
            even[j] = odd[j] = 0
        row = &window[0, first]
        for _ in range(samples // 2):
            for j in range(count):
                d = row[j] - mean[first + j]
                even[j] += d * d
                d = row[channels + j] - mean[first + j]
                odd[j] += d * d
            row += 2 * channels
        for j in range(count):
            if samples & 1:
                d = row[j] - mean[first + j]
                even[j] += d * d
            std[first + j] = sqrt((even[j] + odd[j]) / samples)
        first += TOGETHER


# the engine --------------------------------------------------------------------------------------------------

@cython.final
cdef class BoundCall:
    """A call with its arguments, made without a frame of Python's; what it raises is told in another way.

    Args:
        call: what is called.
        arguments: of every call.
        translate: given an exception, the one to raise in its place.
    """

    cdef object _call, _translate
    cdef tuple _arguments

    def __init__(self, call, tuple arguments not None, translate):
        self._call, self._arguments, self._translate = call, arguments, translate

    def __call__(self):
        try:
            PyObject_Call(self._call, self._arguments, NULL)
        except Exception as error:
            raise self._translate(error) from error


@cython.final
cdef class Count:
    """Predictions that were made, by all engines that share it: while one is exchanged, both may run a little."""

    cdef public long long value


@cython.final
cdef class Engine:
    """A model that is ready to run, with everything around it: what a hot swap exchanges as a whole.

    Args:
        plan: from a window to the input tensor; None when `convert` writes the tensor itself.
        convert: called with what `infer` cannot take as it is; gives a float32 array of the window, or None when it
            has written the tensor.
        tensor: the model's main input.
        output: its scores, with `scale` and `zero_point` when they are quantised.
        rows: float32 `[samples, channels]`, where monitors find the window; the tensor itself when the plan is a copy.
        shape: what `infer` takes, without the batch axis.
        run: computes the output.
        extra: further outputs that predictions carry, as (name, array).
        stages: array of times that a chain keeps, or None.
        labels, reject, model, version, variant, session: what predictions say.

    Attributes:
        rows: the window that was loaded last, when monitors or somebody outside look at windows.
        observed: somebody outside does.
    """

    cdef object _convert, _run, _extra, _stages, _labels, _reject, _model, _version, _session
    cdef readonly object rows
    cdef public object variant
    cdef Plan _plan
    cdef Watch _watch
    cdef MetricsRing _metrics
    cdef Py_buffer _tensor_view, _output_view, _rows_view
    cdef bint _held
    cdef int _dtype, _dimensions
    cdef double _scale
    cdef long long _zero_point
    cdef Py_ssize_t[8] _shape
    cdef Py_ssize_t _samples, _values
    cdef bint _keep_rows
    cdef public long long missing
    cdef Count _made
    cdef public bint observed
    cdef readonly Decider decider

    def __init__(self, Plan plan, convert, tensor, output, double scale, long long zero_point, rows,
                 tuple shape not None, run, Watch watch not None, MetricsRing metrics not None,
                 Decider decider not None, extra, stages, tuple labels not None, str reject, str model, str version,
                 str variant, str session):
        cdef Py_ssize_t i
        if self._held:
            raise RuntimeError("an engine is made once")
        if len(shape) > 8 or len(labels) != decider.count or output.size != decider.count:
            raise ConfigError(f"{len(labels)} labels for {output.size} scores")
        kind = memoryview(output).format
        if kind not in DTYPES:
            raise ModelError(f"the scores are {output.dtype}, expected float32, float64 or an integer")
        self._dtype, self._scale, self._zero_point = DTYPES[kind], scale, zero_point
        PyObject_GetBuffer(tensor, &self._tensor_view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | PyBUF_WRITABLE)
        PyObject_GetBuffer(output, &self._output_view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | PyBUF_WRITABLE)
        PyObject_GetBuffer(rows, &self._rows_view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | PyBUF_WRITABLE)
        self._held = True
        self._made = Count()
        self._plan, self._convert, self.rows, self._run = plan, convert, rows, run
        self._watch, self._metrics, self.decider = watch, metrics, decider
        self._extra, self._stages = extra, stages
        self._labels, self._reject, self._model, self._version = labels, reject, model, version
        self.variant, self._session = variant, session
        self._dimensions = len(shape)
        self._values = 1
        for i in range(self._dimensions):
            self._shape[i] = shape[i]
            self._values *= shape[i]
        self._samples = self._rows_view.shape[0]
        self._keep_rows = self._rows_view.buf != self._tensor_view.buf
        if plan is not None and (
            plan.size * plan.itemsize != self._tensor_view.len or self._rows_view.len != self._values * 4
        ):
            raise ConfigError("the steps before the model do not give what it takes")

    def __dealloc__(self):
        if self._held:
            PyBuffer_Release(&self._tensor_view)
            PyBuffer_Release(&self._output_view)
            PyBuffer_Release(&self._rows_view)

    @property
    def predictions(self):
        """Made by this engine and those that it follows."""
        return self._made.value

    def follow(self, Engine other not None):
        """Count on where another engine counts, which may go on meanwhile: no two predictions have one number."""
        self._made = other._made

    def set_watch(self, Watch watch not None):
        """Exchange the monitors, after they have been restored."""
        self._watch = watch

    def infer(self, x, Decider decider=None):
        """Predict one window, given as the application has it.

        Raises:
            InputError, ModelError: see `tinylcm.Pipeline.infer`.
        """
        cdef long long start = now_ns()
        self.load(x)
        return self._predict(decider or self.decider, start, None)

    cpdef object load(self, x):
        """Write the tensor, and the window for the monitors, without running the model."""
        if not self._take(x):
            x = self._convert(x)
            if x is not None and not self._take(x):
                raise ModelError("the steps before the model gave something else than a window")

    cdef bint _take(self, object x) except -1:
        """Load a window that is a contiguous float32 array of the right shape; False for anything else."""
        cdef Py_buffer view
        cdef Py_ssize_t bad
        cdef int i
        cdef bint fits
        if self._plan is None or not PyObject_CheckBuffer(x):
            return False
        try:
            PyObject_GetBuffer(x, &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
        except (BufferError, ValueError):
            return False
        fits = view.ndim == self._dimensions and view.format != NULL
        fits = fits and view.format[0] == c"f" and view.format[1] == 0
        if fits:
            for i in range(view.ndim):
                fits = fits and view.shape[i] == self._shape[i]
        if not fits:
            PyBuffer_Release(&view)
            return False
        bad = self._load(<const float*>view.buf, self._samples, NULL, 0)
        PyBuffer_Release(&view)
        if bad != -1:
            self._convert(x)  # finds the place again, and says so
            raise ModelError("the steps before the model gave NaN or infinity")
        return True

    cdef Py_ssize_t _load(self, const float* head, Py_ssize_t head_rows, const float* tail,
                          Py_ssize_t tail_rows) noexcept nogil:
        cdef Py_ssize_t row = self._values // self._samples
        cdef float* rows = <float*>self._rows_view.buf
        if self._keep_rows and (self.observed or self._watch.needs_rows):
            memcpy(rows, head, <size_t>(head_rows * row) * sizeof(float))
            if tail_rows:
                memcpy(rows + head_rows * row, tail, <size_t>(tail_rows * row) * sizeof(float))
        return self._plan.run(head, head_rows, tail, tail_rows, self._tensor_view.buf)

    def infer_reader(self, Reader reader not None, Decider decider not None):
        """Predict the window that a reader of a ring has due; the ring is not copied, but converted in one pass.

        Raises:
            ModelError: the steps before the model, or the model, gave no finite numbers.
        """
        cdef long long start = now_ns()
        cdef const float* head
        cdef const float* tail
        cdef Py_ssize_t head_rows, tail_rows
        if self._plan is None or reader._cut.window != self._samples:
            raise ModelError("this model does not take windows of a stream")
        reader.segments(&head, &head_rows, &tail, &tail_rows)
        if self._load(head, head_rows, tail, tail_rows) != -1:
            raise ModelError("the steps before the model gave NaN or infinity")
        return self._predict(decider, start, reader)

    def conclude(self, Decider decider=None, long long elapsed_ns=0):
        """A prediction from what the output holds now: for windows that were computed together.

        Args:
            elapsed_ns: this window's share of the time that the model took.
        """
        cdef long long now = now_ns()
        return self._conclude(decider or self.decider, now - elapsed_ns, now - elapsed_ns, now, None)

    cdef Prediction _predict(self, Decider decider, long long start, Reader reader):
        cdef long long loaded = now_ns()
        self._run()
        return self._conclude(decider, start, loaded, now_ns(), reader)

    cdef Prediction _conclude(self, Decider decider, long long start, long long loaded, long long ran, Reader reader):
        cdef Py_ssize_t best, place
        cdef long long decided, done
        cdef double[4] stages
        cdef Prediction found
        best = decider.decide(self._output_view.buf, self._dtype, self._scale, self._zero_point)
        if best == NOT_FINITE:
            raise ModelError(f"the scores of model {self._model} hold NaN or infinity")
        place = best if best >= 0 else decider.best
        decided = now_ns()
        found = Prediction.__new__(Prediction)
        found.drift = self._watch.look(
            decider._now, decider.count, place, (decided - start) * 1e-3, self.missing, decided
        )
        self.missing = 0
        self._made.value += 1
        done = now_ns()
        found.load_us = stages[0] = (loaded - start) * 1e-3
        found.run_us = stages[1] = (ran - loaded) * 1e-3
        found.post_us = stages[2] = (decided - ran) * 1e-3
        found.monitors_us = stages[3] = (done - decided) * 1e-3
        found.latency_us = (done - start) * 1e-3
        found.confidence = decider.confidence
        self._metrics.put(stages, 4, found.latency_us, found.confidence, <int>place)
        found.label = self._labels[best] if best >= 0 else self._reject
        found._labels, found.variant = self._labels, self.variant
        found.model, found.version = self._model, self._version
        found._session, found._number = self._session, self._made.value
        found.event = decider.event
        found._keep(decider._mean, decider.count)
        if reader is None:
            found.first_sample = found.last_sample = -1
            found.start_s = found.end_s = NAN
        else:
            found.first_sample, found.last_sample = reader._cut.first, reader._cut.last
            found.start_s, found.end_s, found.filled = reader._cut.start, reader._cut.end, reader._cut.filled
        if self._extra is not None:
            found.outputs = {name: array.copy() for name, array in self._extra}
        if self._stages is not None:
            found.stages_us = tuple(self._stages.tolist())
        return found


# the lock and the way in -------------------------------------------------------------------------------------

@cython.final
cdef class Guard:
    """A lock that compiled code takes without the interpreter; not reentrant. Used with `with`."""

    cdef PyThread_type_lock _lock

    def __cinit__(self):
        self._lock = PyThread_allocate_lock()
        if self._lock is NULL:
            raise MemoryError("no lock")

    def __dealloc__(self):
        if self._lock is not NULL:
            PyThread_free_lock(self._lock)

    cdef inline void take(self) noexcept:
        if not PyThread_acquire_lock(self._lock, NOWAIT_LOCK):
            with nogil:
                PyThread_acquire_lock(self._lock, WAIT_LOCK)

    cdef inline void leave(self) noexcept:
        PyThread_release_lock(self._lock)

    def __enter__(self):
        self.take()
        return self

    def __exit__(self, *error):
        self.leave()


cdef class Runner:
    """What `tinylcm.Pipeline` is built on: one engine at a time behind a lock, and `infer` without a Python frame."""

    cdef readonly Guard _lock
    cdef Engine _engine
    cdef object _observe, _failed
    cdef bint _watched

    def __cinit__(self, *arguments, **keywords):
        self._lock = Guard()

    def _connect(self, observe, failed, bint watched):
        """Say who is told of predictions (all, or those with alarms) and of errors; both run under the lock."""
        self._observe, self._failed, self._watched = observe, failed, watched

    def _use(self, Engine engine not None):
        """Exchange the engine; the caller holds the lock."""
        self._engine = engine

    def infer(self, x):
        """Predict one window, given without the batch axis as nested lists or an array.

        A contiguous float32 array is the fastest. An integer model's own dtype is taken as stored values; other
        numbers are real values and are quantised. A model of several inputs takes a mapping by their names, an image
        model a path, the bytes of a file, a Pillow image or an array `[height, width, channels]`.

        Raises:
            InputError: wrong shape, dtype, or a value that is NaN or infinite; nothing was changed.
            ModelError: the model gave no finite scores.
        """
        cdef Prediction found
        self._lock.take()
        try:
            found = self._engine.infer(x)
            if self._watched or found.drift is not EMPTY:
                self._observe(found)
            return found
        except Exception as error:
            self._failed(error)
            raise
        finally:
            self._lock.leave()
