"""From a window of samples to the model's input tensor: steps that are put together once and allocate nothing when run.

What is the same for each value (scale, centre, clip, quantise) is one pass that reads the ring and writes the tensor.
`runtime/preprocess.py` checks the steps and computes their tables.
"""

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release
from cpython.buffer cimport PyObject_GetBuffer
from libc.math cimport INFINITY, copysign, cos, log, log10, sin, sqrt
from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t
from libc.stdlib cimport free
from libc.string cimport memcpy

cimport cython

from .core cimport allocate

import numpy as np

from tinylcm.errors import ConfigError, InputError

cdef extern from *:
    """
    /* Floats are read as bits where they lie: without the attribute the compiler may assume that nobody does. */
    typedef int32_t __attribute__((__may_alias__)) float_bits;
    """
    ctypedef int32_t float_bits

cdef double PI = 3.14159265358979323846
cdef enum:
    FLOAT32 = 0
    INT8 = 1
    UINT8 = 2
    INT16 = 3
    COPY = 4  # float32 as it is
    PERIOD = 256  # values after which the table of gains and offsets begins again: it stays in the first cache

cdef const char* FORMATS = b"fbBhf"  # of buffers, by kind
# kind, bytes of a value, the least and the greatest
DTYPES = {"float32": (FLOAT32, 4, 0, 0), "int8": (INT8, 1, -128, 127), "uint8": (UINT8, 1, 0, 255),
          "int16": (INT16, 2, -32768, 32767)}
VALUES_MAX = 1 << 24
FFT_MAX = 1 << 16

ctypedef fused element:
    float
    int8_t
    uint8_t
    int16_t


cdef inline bint all_finite(const float* x, Py_ssize_t n) noexcept nogil:
    """Whether no exponent is all ones: on the bits, which compilers vectorise."""
    cdef const float_bits* bits = <const float_bits*>x
    cdef int32_t bad = 0
    cdef Py_ssize_t i
    for i in range(n):
        bad |= (bits[i] & 0x7f800000) == 0x7f800000
    return not bad


cdef Py_ssize_t find_bad(const float* x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        if not all_finite(x + i, 1):
            return i
    return -1


cdef void convert(const float* x, Py_ssize_t n, element* out, const double* gain, const double* offset,
                  Py_ssize_t period, double low, double high, int zero_point) noexcept nogil:
    """gain x + offset within low and high; for integers rounded, halves away from zero, and moved by the zero point.

    In double: a large mean that is taken away would leave float32 too few digits.
    """
    cdef Py_ssize_t i, count
    cdef double v
    while n > 0:
        count = n if n < period else period
        for i in range(count):
            v = x[i] * gain[i] + offset[i]
            v = low if v < low else v
            v = high if v > high else v
            if element is float:
                out[i] = <float>v
            else:
                out[i] = <element>(<int>(v + copysign(0.5, v)) + zero_point)
        x += count
        out += count
        n -= count


cdef double[::1] table(values, Py_ssize_t n):
    """Exactly n finite doubles, or bounds that may be infinite."""
    found = np.array(values, dtype=np.float64).reshape(-1)
    if found.size != n or np.isnan(found).any():
        raise ConfigError(f"a step before the model needs a table of {n} numbers, got {found.size}")
    return found


# the Fourier transform ---------------------------------------------------------------------------------------

@cython.final
cdef class FFT:
    """|X|**2 of real frames, weighted and filled up with zeros to n.

    A frame of even length is one complex transform of half of it. Radix 2 by Stockham's sorting; lengths that are no
    power of two by Bluestein's convolution. C. Van Loan, Computational Frameworks for the Fast Fourier Transform (SIAM
    1992), sections 1.7, 4.2 and 4.3.

    Args:
        n: length of the transform, 1 to 65536.
        window: weights of the frame's values, 1 to n of them.

    Attributes:
        bins: n // 2 + 1.
    """

    cdef readonly Py_ssize_t n, bins
    cdef Py_ssize_t _points  # of the complex transform: n, or n / 2
    cdef Py_ssize_t _length  # of the power of two that it is made with
    cdef Py_ssize_t _count
    cdef bint _packed, _direct
    cdef double[::1] _window
    cdef double* _frame  # [n]
    cdef double* _re
    cdef double* _im
    cdef double* _re2
    cdef double* _im2
    cdef double* _cos  # [length / 2]
    cdef double* _sin
    cdef double* _chirp_re  # [points]
    cdef double* _chirp_im
    cdef double* _kernel_re  # [length] transformed
    cdef double* _kernel_im
    cdef double* _turn_re  # [bins]: from half a transform to a whole one
    cdef double* _turn_im

    def __cinit__(self, Py_ssize_t n, window):
        cdef Py_ssize_t i, length = 1, points
        if not 1 <= n <= FFT_MAX or not 1 <= len(window) <= n:
            raise ConfigError(f"a Fourier transform of {n} values: expected 1 to {FFT_MAX}, not less than the frame")
        self.n, self.bins, self._count = n, n // 2 + 1, len(window)
        self._window = table(window, self._count)
        self._packed = n % 2 == 0
        self._points = points = n // 2 if self._packed else n
        while length < points:
            length *= 2
        self._direct = length == points
        if not self._direct:
            while length < 2 * points - 1:
                length *= 2
        self._length = length
        self._frame = <double*>allocate(n, sizeof(double))
        self._re = <double*>allocate(length, sizeof(double))
        self._im = <double*>allocate(length, sizeof(double))
        self._re2 = <double*>allocate(length, sizeof(double))
        self._im2 = <double*>allocate(length, sizeof(double))
        self._cos = <double*>allocate(length, sizeof(double))
        self._sin = <double*>allocate(length, sizeof(double))
        self._turn_re = <double*>allocate(self.bins, sizeof(double))
        self._turn_im = <double*>allocate(self.bins, sizeof(double))
        for i in range(length // 2):
            self._cos[i], self._sin[i] = cos(2 * PI * i / length), -sin(2 * PI * i / length)
        for i in range(self.bins):
            self._turn_re[i], self._turn_im[i] = cos(2 * PI * i / n), -sin(2 * PI * i / n)
        if not self._direct:
            self._chirp_re = <double*>allocate(points, sizeof(double))
            self._chirp_im = <double*>allocate(points, sizeof(double))
            self._kernel_re = <double*>allocate(length, sizeof(double))
            self._kernel_im = <double*>allocate(length, sizeof(double))
            self._make_kernel()

    def __dealloc__(self):
        free(self._frame)
        free(self._re)
        free(self._im)
        free(self._re2)
        free(self._im2)
        free(self._cos)
        free(self._sin)
        free(self._chirp_re)
        free(self._chirp_im)
        free(self._kernel_re)
        free(self._kernel_im)
        free(self._turn_re)
        free(self._turn_im)

    cdef void _make_kernel(self) noexcept nogil:
        cdef Py_ssize_t i
        cdef double angle
        for i in range(self._points):
            angle = PI * ((<long long>i * i) % (2 * self._points)) / self._points
            self._chirp_re[i], self._chirp_im[i] = cos(angle), -sin(angle)
            self._re[i], self._im[i] = cos(angle), sin(angle)
            if i:
                self._re[self._length - i], self._im[self._length - i] = self._re[i], self._im[i]
        self._radix2()
        for i in range(self._length):  # the way back divides by the length
            self._kernel_re[i], self._kernel_im[i] = self._re[i] / self._length, self._im[i] / self._length

    cdef void _radix2(self) noexcept nogil:
        """The transform of `_re` and `_im`, sorted as it goes."""
        cdef Py_ssize_t n = self._length, s = 1, m, p, q
        cdef double wr, wi, dr, di
        cdef double *ar
        cdef double *ai
        cdef double *br
        cdef double *bi
        cdef double *yr
        cdef double *yi
        while n > 1:
            m = n // 2
            for p in range(m):
                wr, wi = self._cos[p * s], self._sin[p * s]
                ar, ai = self._re + s * p, self._im + s * p
                br, bi = ar + s * m, ai + s * m
                yr, yi = self._re2 + 2 * s * p, self._im2 + 2 * s * p
                for q in range(s):
                    dr, di = ar[q] - br[q], ai[q] - bi[q]
                    yr[q], yi[q] = ar[q] + br[q], ai[q] + bi[q]
                    yr[s + q], yi[s + q] = dr * wr - di * wi, dr * wi + di * wr
            self._re, self._re2 = self._re2, self._re
            self._im, self._im2 = self._im2, self._im
            n, s = m, 2 * s

    cdef void _bluestein(self) noexcept nogil:
        """The transform of the first `_points` values of `_re` and `_im`, as a convolution with a chirp."""
        cdef Py_ssize_t i
        cdef double re, im
        for i in range(self._points):
            re = self._re[i] * self._chirp_re[i] - self._im[i] * self._chirp_im[i]
            im = self._re[i] * self._chirp_im[i] + self._im[i] * self._chirp_re[i]
            self._re[i], self._im[i] = re, im
        for i in range(self._points, self._length):
            self._re[i] = self._im[i] = 0
        self._radix2()
        for i in range(self._length):
            re = self._re[i] * self._kernel_re[i] - self._im[i] * self._kernel_im[i]
            im = self._re[i] * self._kernel_im[i] + self._im[i] * self._kernel_re[i]
            self._re[i], self._im[i] = re, -im  # conjugated, so that the same transform goes back
        self._radix2()
        for i in range(self._points):
            re = self._re[i] * self._chirp_re[i] + self._im[i] * self._chirp_im[i]
            im = self._re[i] * self._chirp_im[i] - self._im[i] * self._chirp_re[i]
            self._re[i], self._im[i] = re, im

    cdef void power(self, const float* x, Py_ssize_t stride, double* out) noexcept nogil:
        """|X|**2 of the frame that begins at x, into `out`, `[bins]`."""
        cdef Py_ssize_t i, at, other
        cdef double sum_re, sum_im, odd_re, odd_im, re, im
        for i in range(self._count):
            self._frame[i] = x[i * stride] * self._window[i]
        for i in range(self._points):
            if self._packed:
                self._re[i], self._im[i] = self._frame[2 * i], self._frame[2 * i + 1]
            else:
                self._re[i], self._im[i] = self._frame[i], 0
        if self._direct:
            self._radix2()
        else:
            self._bluestein()
        if not self._packed:
            for i in range(self.bins):
                out[i] = self._re[i] * self._re[i] + self._im[i] * self._im[i]
            return
        for i in range(self.bins):  # the even places' transform and the odd ones', which is turned: both were in one
            at, other = i if i < self._points else 0, self._points - i if i else 0
            sum_re, sum_im = self._re[at] + self._re[other], self._im[at] - self._im[other]
            odd_re, odd_im = self._im[at] + self._im[other], self._re[other] - self._re[at]
            re = sum_re + odd_re * self._turn_re[i] - odd_im * self._turn_im[i]
            im = sum_im + odd_re * self._turn_im[i] + odd_im * self._turn_re[i]
            out[i] = (re * re + im * im) / 4


# steps that are more than a factor and an offset -------------------------------------------------------------

cdef class Op:
    """A step on `[rows, columns]`, to other memory; `shape` is what it makes of it, `size` values."""

    cdef Py_ssize_t rows, columns, size
    cdef tuple shape

    cdef int _layout(self, Py_ssize_t rows, Py_ssize_t columns, tuple shape) except -1:
        self.rows, self.columns, self.shape, self.size = rows, columns, shape, 1
        for length in shape:
            if not 1 <= length <= VALUES_MAX // self.size:
                raise ConfigError(f"a step before the model gives {list(shape)}, expected 1 to {VALUES_MAX} values")
            self.size *= length

    cdef void run(self, const float* x, float* out) noexcept nogil:
        pass


@cython.final
cdef class Affine(Op):
    """gain x + offset within low and high, of each column."""

    cdef double[::1] gain, offset, low, high

    def __init__(self, Py_ssize_t rows, Py_ssize_t columns, tuple shape, gain, offset, low, high):
        self._layout(rows, columns, shape)
        self.gain, self.offset = table(gain, columns), table(offset, columns)
        self.low, self.high = table(low, columns), table(high, columns)

    cdef void run(self, const float* x, float* out) noexcept nogil:
        cdef Py_ssize_t i, j
        cdef double value
        for i in range(self.rows):
            for j in range(self.columns):
                value = x[i * self.columns + j] * self.gain[j] + self.offset[j]
                value = self.low[j] if value < self.low[j] else value
                out[i * self.columns + j] = <float>(self.high[j] if value > self.high[j] else value)


@cython.final
cdef class PerWindow(Op):
    """Each column less its mean, and divided by its standard deviation (at least 1e-12) when asked."""

    cdef bint spread

    def __init__(self, Py_ssize_t rows, Py_ssize_t columns, tuple shape, bint spread):
        self._layout(rows, columns, shape)
        self.spread = spread

    cdef void run(self, const float* x, float* out) noexcept nogil:
        cdef Py_ssize_t i, j
        cdef double mean, factor, away
        for j in range(self.columns):
            mean = 0
            for i in range(self.rows):
                mean += x[i * self.columns + j]
            mean /= self.rows
            factor = 1
            if self.spread:
                factor = 0
                for i in range(self.rows):
                    away = x[i * self.columns + j] - mean
                    factor += away * away
                factor = sqrt(factor / self.rows)
                factor = 1 / (factor if factor > 1e-12 else 1e-12)
            for i in range(self.rows):
                out[i * self.columns + j] = <float>((x[i * self.columns + j] - mean) * factor)


@cython.final
cdef class Resample(Op):
    """Linear interpolation to so many rows; the first and the last stay."""

    def __init__(self, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t count):
        self._layout(rows, columns, (count, columns))

    cdef void run(self, const float* x, float* out) noexcept nogil:
        cdef Py_ssize_t i, j, place, count = self.size // self.columns
        cdef double at, share, step = <double>(self.rows - 1) / (count - 1) if count > 1 else 0
        for i in range(count):
            at = i * step
            place = <Py_ssize_t>at
            if place > self.rows - 2:
                place = self.rows - 2 if self.rows > 1 else 0
            share = at - place
            for j in range(self.columns):
                out[i * self.columns + j] = x[place * self.columns + j]
                if share:
                    out[i * self.columns + j] = <float>(
                        x[place * self.columns + j]
                        + share * (x[(place + 1) * self.columns + j] - <double>x[place * self.columns + j])
                    )


@cython.final
cdef class MovingAverage(Op):
    """The mean of the last n rows; of those there are for the first ones."""

    cdef Py_ssize_t n

    def __init__(self, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t n):
        self._layout(rows, columns, (rows, columns))
        if n < 1:
            raise ConfigError(f"a mean of the last {n} samples")
        self.n = n

    cdef void run(self, const float* x, float* out) noexcept nogil:
        cdef Py_ssize_t i, j, k
        cdef double total
        for j in range(self.columns):
            total = 0
            for i in range(self.rows):
                total += x[i * self.columns + j]
                if i >= self.n:
                    total -= x[(i - self.n) * self.columns + j]
                if i >= self.n and i % self.n == 0:  # anew from time to time: no error adds up
                    total = 0
                    for k in range(i - self.n + 1, i + 1):
                        total += x[k * self.columns + j]
                out[i * self.columns + j] = <float>(total / (i + 1 if i < self.n else self.n))


cdef class Framed(Op):
    """Base of what looks at frames of so many rows; the rows after the last whole one are not used."""

    cdef Py_ssize_t frame, hop, frames

    cdef int _cut(self, Py_ssize_t rows, Py_ssize_t frame, Py_ssize_t hop) except -1:
        if not 1 <= frame <= rows or hop < 1:
            raise ConfigError(f"frames of {frame} every {hop} rows do not fit {rows} rows")
        self.frame, self.hop, self.frames = frame, hop, 1 + (rows - frame) // hop


@cython.final
cdef class Power(Framed):
    """Mean of the squares of each frame, or its root, of each column."""

    cdef bint root

    def __init__(self, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t frame, Py_ssize_t hop, bint root):
        self._cut(rows, frame, hop)
        self._layout(rows, columns, (self.frames, columns))
        self.root = root

    cdef void run(self, const float* x, float* out) noexcept nogil:
        cdef Py_ssize_t f, i, j
        cdef double total, value
        for f in range(self.frames):
            for j in range(self.columns):
                total = 0
                for i in range(f * self.hop, f * self.hop + self.frame):
                    value = x[i * self.columns + j]
                    total += value * value
                total /= self.frame
                out[f * self.columns + j] = <float>(sqrt(total) if self.root else total)


@cython.final
cdef class Spectrum(Framed):
    """Magnitudes of each frame's Fourier transform: `[frames, bins, columns]`, without frames when there is one."""

    cdef FFT fft
    cdef Py_ssize_t bins
    cdef double[::1] power
    cdef bint logarithm

    def __init__(self, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t frame, Py_ssize_t hop, Py_ssize_t bins, window,
                 bint logarithm):
        self._cut(rows, frame, hop)
        self.fft = FFT(frame, window)
        if not 1 <= bins <= self.fft.bins:
            raise ConfigError(f"{bins} bins of a Fourier transform that has {self.fft.bins}")
        self.bins, self.logarithm = bins, logarithm
        self.power = np.zeros(self.fft.bins)
        if self.frames == 1:
            self._layout(rows, columns, (bins, columns))
        else:
            self._layout(rows, columns, (self.frames, bins, columns))

    cdef void run(self, const float* x, float* out) noexcept nogil:
        cdef Py_ssize_t f, b, j
        cdef double value
        for f in range(self.frames):
            for j in range(self.columns):
                self.fft.power(x + f * self.hop * self.columns + j, self.columns, &self.power[0])
                for b in range(self.bins):
                    value = sqrt(self.power[b])
                    if self.logarithm:
                        value = log(value if value > 1e-10 else 1e-10)
                    out[(f * self.bins + b) * self.columns + j] = <float>value


@cython.final
cdef class Mel(Framed):
    """Energies in mel bands of each frame, their logarithm, and their cosine transform when a matrix is given.

    Args:
        rows: of one column.
        fft: length of the transform; `window` has the weights of a frame.
        first: of each band its first bin; `lengths` how many bins it has, `weights` those of all bands, one after the
            other.
        kind: 0 the energies themselves, 1 their natural logarithm, 2 decibels.
        floor: least energy before the logarithm.
        top_db: nothing is lower than this below the greatest value of the window; 0: no limit.
        magnitude: bands of |X| instead of |X|**2.
        cosines: `[coefficients, mels]`, or None.
    """

    cdef FFT fft
    cdef Py_ssize_t mels, coefficients
    cdef double[::1] power, bands, weights, cosines
    cdef Py_ssize_t[::1] first, lengths
    cdef int kind
    cdef double floor, top_db
    cdef bint magnitude, transformed

    def __init__(self, Py_ssize_t rows, Py_ssize_t frame, Py_ssize_t hop, Py_ssize_t fft, window, first, lengths,
                 weights, int kind, double floor, double top_db, bint magnitude, cosines):
        self._cut(rows, frame, hop)
        self.fft = FFT(fft, window)
        self.first = np.ascontiguousarray(first, dtype=np.intp)
        self.lengths = np.ascontiguousarray(lengths, dtype=np.intp)
        self.mels = len(first)
        ends = np.asarray(first) + lengths
        if len(window) != frame or len(lengths) != self.mels or min(first) < 0 or min(lengths) < 0 or max(
            ends
        ) > self.fft.bins:
            raise ConfigError("mel bands that do not fit the Fourier transform")
        self.weights = table(weights, sum(lengths))
        self.kind, self.floor, self.top_db, self.magnitude = kind, floor, top_db, magnitude
        self.transformed = cosines is not None
        self.coefficients = len(cosines) if self.transformed else self.mels
        self.cosines = table(cosines if self.transformed else (), self.coefficients * self.mels * self.transformed)
        self._layout(rows, 1, (self.frames, self.coefficients))
        self.power, self.bands = np.zeros(self.fft.bins), np.zeros(self.frames * self.mels)

    cdef double _energies(self, double* bands) noexcept nogil:
        """Write one frame's bands from its power; the greatest."""
        cdef Py_ssize_t m, b, place = 0
        cdef double total, greatest = -INFINITY
        cdef const double* power
        if self.magnitude:
            for b in range(self.fft.bins):
                self.power[b] = sqrt(self.power[b])
        for m in range(self.mels):
            total = 0
            power = &self.power[0] + self.first[m]
            for b in range(self.lengths[m]):
                total += self.weights[place + b] * power[b]
            place += self.lengths[m]
            if self.kind:
                total = total if total > self.floor else self.floor
                total = log(total) if self.kind == 1 else 10 * log10(total)
            bands[m] = total
            greatest = total if total > greatest else greatest
        return greatest

    cdef void run(self, const float* x, float* out) noexcept nogil:
        cdef Py_ssize_t f, m, b
        cdef double total, greatest = -INFINITY
        for f in range(self.frames):
            self.fft.power(x + f * self.hop, 1, &self.power[0])
            total = self._energies(&self.bands[f * self.mels])
            greatest = total if total > greatest else greatest
        for m in range(self.frames * self.mels):
            if self.top_db > 0 and self.bands[m] < greatest - self.top_db:
                self.bands[m] = greatest - self.top_db
            if not self.transformed:
                out[m] = <float>self.bands[m]
        if not self.transformed:
            return
        for f in range(self.frames):
            for m in range(self.coefficients):
                total = 0
                for b in range(self.mels):
                    total += self.cosines[m * self.mels + b] * self.bands[f * self.mels + b]
                out[f * self.coefficients + m] = <float>total


@cython.final
cdef class Transpose(Op):
    """`[rows, columns]` to `[columns, rows]`."""

    def __init__(self, Py_ssize_t rows, Py_ssize_t columns):
        self._layout(rows, columns, (columns, rows))

    cdef void run(self, const float* x, float* out) noexcept nogil:
        cdef Py_ssize_t i, j
        for i in range(self.rows):
            for j in range(self.columns):
                out[j * self.rows + i] = x[i * self.columns + j]


@cython.final
cdef class Reshape(Op):
    """The same values under another shape."""

    def __init__(self, Py_ssize_t size, tuple shape):
        self._layout(size, 1, shape)

    cdef void run(self, const float* x, float* out) noexcept nogil:
        memcpy(out, x, <size_t>self.size * sizeof(float))


OPS = {
    "affine": Affine, "per_window": PerWindow, "resample": Resample, "moving_average": MovingAverage, "power": Power,
    "spectrum": Spectrum, "mel": Mel, "transpose": Transpose, "reshape": Reshape,
}


# the plan ----------------------------------------------------------------------------------------------------

@cython.no_gc  # what it holds leads to no cycle, and nothing may take the steps away before it
@cython.final
cdef class Plan:
    """Steps put together: a window of float32 in, the model's input tensor out. For one thread at a time.

    Args:
        ops: (name of `OPS`, its arguments) in their order, each on what the one before gives.
        samples, channels: of the window.
        gain, offset, low, high: what is done to each column of the last step's output (or of the window) on the way
            into the tensor: one number, or one a column; the bounds one for all.
        dtype: of the tensor: float32, int8, uint8 or int16.
        scale, zero_point: an integer tensor stores round(x / scale) + zero_point, halves away from zero as TFLite's
            kernels do, saturated.

    Attributes:
        shape: of what it gives, without the batch axis.
        size, itemsize: values, and bytes of one.
        identity: a float32 tensor that takes the window as it is.

    Raises:
        ConfigError: the arguments do not fit each other.
    """

    def __cinit__(self, list ops not None, Py_ssize_t samples, Py_ssize_t channels, gain, offset, double low,
                  double high, str dtype="float32", double scale=0.0, zero_point=0):
        cdef Py_ssize_t scratch
        if samples < 1 or not 1 <= channels <= VALUES_MAX // samples:
            raise ConfigError(f"a window of {samples} samples of {channels} channels is out of its range")
        if dtype not in DTYPES:
            raise ConfigError(f"a tensor of {dtype} is not written by steps; known: {', '.join(DTYPES)}")
        self.samples, self.channels, self.dtype = samples, channels, dtype
        self._kind, self.itemsize, least, most = DTYPES[dtype]
        self.shape, self.size, scratch = (samples, channels), samples * channels, samples * channels
        self._ops = []
        for name, arguments in ops:
            scratch = max(scratch, self._append(OPS[name](*arguments)))
        self._count = len(ops)
        if ops:
            self._steps = <void**>allocate(self._count, sizeof(void*))
            for place, op in enumerate(self._ops):
                self._steps[<Py_ssize_t>place] = <void*>op
            self._a = <float*>allocate(scratch, sizeof(float))
            self._b = <float*>allocate(scratch, sizeof(float))
        if self._kind == FLOAT32:
            self._finish(gain, offset, low, high, 1.0)
            return
        if not 0 < scale < INFINITY or not least <= zero_point <= most:
            raise ConfigError(f"a {dtype} tensor needs a scale above 0 and a zero point from {least} to {most}, "
                              f"got {scale} and {zero_point}")
        self._zero_point = zero_point
        self._finish(gain, offset, low, high, 1.0 / scale)
        self._low = min(max(self._low, least - zero_point), most - zero_point)
        self._high = min(max(self._high, least - zero_point), most - zero_point)

    def __dealloc__(self):
        free(self._steps)
        free(self._a)
        free(self._b)
        free(self._gain)
        free(self._offset)

    cdef Py_ssize_t _append(self, object op) except -1:
        """Add a step to the others; how many values it gives."""
        cdef Op step = op
        if step.rows * step.columns != self.size:
            raise ConfigError(f"{type(op).__name__} takes {step.rows * step.columns} values, there are {self.size}")
        self._ops.append(step)
        self.shape, self.size = step.shape, step.size
        return self.size

    cdef int _finish(self, gain, offset, double low, double high, double factor) except -1:
        """The tables of the last pass."""
        cdef Py_ssize_t i, columns = self.shape[len(self.shape) - 1]
        cdef double[::1] gains
        cdef double[::1] offsets
        gain, offset = np.array(gain, float).reshape(-1), np.array(offset, float).reshape(-1)
        if gain.size not in (1, columns) or offset.size not in (1, columns):
            raise ConfigError(f"expected a gain and an offset, or one for each of {columns} columns")
        with np.errstate(over="ignore", invalid="ignore"):
            gain, offset = gain * factor + 0 * offset, offset * factor + 0 * gain
        if not np.isfinite([gain, offset]).all():
            raise ConfigError("the steps multiply to something that is not finite; expected finite gains and offsets")
        if not low <= high:
            raise ConfigError(f"bounds from {low} to {high}")
        gains, offsets = gain, offset
        self._low, self._high = low * factor, high * factor
        same = (gain == 1).all() and (offset == 0).all() and low == -INFINITY and high == INFINITY
        if self._kind == FLOAT32 and same:
            self._kind = COPY
        self.identity = self._kind == COPY and self._count == 0
        self._period = gain.size * (1 + (PERIOD - 1) // gain.size)
        self._gain = <double*>allocate(self._period, sizeof(double))
        self._offset = <double*>allocate(self._period, sizeof(double))
        for i in range(self._period):
            self._gain[i], self._offset[i] = gains[i % gains.shape[0]], offsets[i % gains.shape[0]]

    cdef Py_ssize_t run(self, const float* head, Py_ssize_t head_rows, const float* tail, Py_ssize_t tail_rows,
                        void* out) noexcept nogil:
        """Write the tensor from a window in two pieces.

        Returns:
            -1 when all is well; the index of the first value of the window that is NaN or infinite; or -2 less the
            index of the first such value among the computed ones.
        """
        cdef Py_ssize_t n = head_rows * self.channels, m = tail_rows * self.channels, i
        cdef float* a = self._a
        cdef float* b = self._b
        if not all_finite(head, n):
            return find_bad(head, n)
        if m and not all_finite(tail, m):
            return n + find_bad(tail, m)
        if self._count == 0:
            self._write(head, n, 0, out)
            if m:
                self._write(tail, m, n, out)
        else:
            memcpy(a, head, <size_t>n * sizeof(float))
            if m:
                memcpy(a + n, tail, <size_t>m * sizeof(float))
            for i in range(self._count):
                (<Op>self._steps[i]).run(a, b)
                a, b = b, a
            if not all_finite(a, self.size):
                return -2 - find_bad(a, self.size)
            self._write(a, self.size, 0, out)
        if self._kind == FLOAT32 and not all_finite(<float*>out, self.size):
            return -2 - find_bad(<float*>out, self.size)
        return -1

    cdef void _write(self, const float* x, Py_ssize_t n, Py_ssize_t at, void* out) noexcept nogil:
        """Values `at` to `at + n` of the tensor; `at` is at a row's begin."""
        if self._kind == COPY:
            memcpy(<float*>out + at, x, <size_t>n * sizeof(float))
        elif self._kind == FLOAT32:
            convert(x, n, <float*>out + at, self._gain, self._offset, self._period, self._low, self._high, 0)
        elif self._kind == INT8:
            convert(x, n, <int8_t*>out + at, self._gain, self._offset, self._period, self._low, self._high,
                    self._zero_point)
        elif self._kind == UINT8:
            convert(x, n, <uint8_t*>out + at, self._gain, self._offset, self._period, self._low, self._high,
                    self._zero_point)
        else:
            convert(x, n, <int16_t*>out + at, self._gain, self._offset, self._period, self._low, self._high,
                    self._zero_point)

    def apply(self, window, out, tail=None):
        """Write `out` from one window.

        Args:
            window: float32, C-contiguous, `samples * channels` values.
            out: C-contiguous and writable, `size` values of `dtype`.
            tail: the window's last rows when they lie elsewhere, as in a ring; `window` has then the first ones.

        Raises:
            InputError: another dtype or size, or a value that is NaN or infinite, given or computed.
        """
        cdef Py_buffer source, rest, target
        cdef Py_ssize_t bad, row = self.channels * <Py_ssize_t>sizeof(float), rows = 0
        if tail is not None:
            rows = len(tail)
            if not 0 <= rows < self.samples:
                raise InputError(f"a tail of {rows} rows, expected fewer than the window's {self.samples}")
            _take(tail, &rest, PyBUF_SIMPLE, c"f", rows * row)
        try:
            _take(window, &source, PyBUF_SIMPLE, c"f", (self.samples - rows) * row)
            try:
                _take(out, &target, PyBUF_WRITABLE, FORMATS[self._kind], self.size * self.itemsize)
                bad = self.run(<const float*>source.buf, self.samples - rows,
                               <const float*>rest.buf if tail is not None else NULL, rows, target.buf)
                PyBuffer_Release(&target)
            finally:
                PyBuffer_Release(&source)
        finally:
            if tail is not None:
                PyBuffer_Release(&rest)
        if bad >= 0:
            raise InputError(f"value {bad} of the window is NaN or infinite")
        if bad < -1:
            raise InputError(f"the steps before the model give NaN or infinity at value {-2 - bad}")


cdef int _take(object source, Py_buffer* view, int flags, char format, Py_ssize_t size) except -1:
    """Open a buffer of exactly this format and size in bytes."""
    try:
        PyObject_GetBuffer(source, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | flags)
    except (TypeError, BufferError, ValueError) as error:
        raise InputError(f"expected a contiguous{' writable' if flags else ''} array of numbers: {error}") from None
    if view.format == NULL or view.format[0] != format or view.format[1] or view.len != size:
        found, got = (view.format or b"B").decode(), view.len
        PyBuffer_Release(view)
        raise InputError(f"expected {size} bytes of values of format {chr(format)!r}, got {got} of {found!r}")
    return 0
