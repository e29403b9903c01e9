"""Frames: checksums eight bytes a step (CRC-32C of the journal, RFC 3720 appendix B.4; zlib's CRC-32 of the serial
line), COBS, and the sensor frames of boards, decoded straight into a block of rows."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memchr, memcpy

cimport cython

ctypedef uint32_t[256] Row

cdef uint32_t[8][256] _CASTAGNOLI
cdef uint32_t[8][256] _ZLIB


cdef void _fill(Row* table, uint32_t polynomial) noexcept:
    cdef uint32_t crc
    cdef int i, _bit, k
    for i in range(256):
        crc = <uint32_t>i
        for _bit in range(8):
            crc = (crc >> 1) ^ (polynomial if crc & 1 else 0)
        table[0][i] = crc
    for i in range(256):
        for k in range(1, 8):
            table[k][i] = (table[k - 1][i] >> 8) ^ table[0][table[k - 1][i] & 0xFF]


_fill(_CASTAGNOLI, 0x82F63B78)
_fill(_ZLIB, 0xEDB88320)


cdef uint32_t _crc(const Row* table, const uint8_t* data, Py_ssize_t size, uint32_t crc) noexcept nogil:
    cdef uint32_t low, high
    crc = ~crc
    while size >= 8:
        # Bytes are joined by hand, so that the result is the same on any byte order and alignment.
        low = crc ^ (<uint32_t>data[0] | <uint32_t>data[1] << 8 | <uint32_t>data[2] << 16 | <uint32_t>data[3] << 24)
        high = <uint32_t>data[4] | <uint32_t>data[5] << 8 | <uint32_t>data[6] << 16 | <uint32_t>data[7] << 24
        crc = (
            table[7][low & 0xFF] ^ table[6][(low >> 8) & 0xFF]
            ^ table[5][(low >> 16) & 0xFF] ^ table[4][low >> 24]
            ^ table[3][high & 0xFF] ^ table[2][(high >> 8) & 0xFF]
            ^ table[1][(high >> 16) & 0xFF] ^ table[0][high >> 24]
        )
        data += 8
        size -= 8
    while size > 0:
        crc = (crc >> 8) ^ table[0][(crc ^ data[0]) & 0xFF]
        data += 1
        size -= 1
    return ~crc


def crc32c(const uint8_t[::1] data not None, uint32_t crc=0):
    """CRC-32C of the bytes; pass the last result as `crc` to go on over several pieces."""
    if data.shape[0] == 0:
        return crc
    return _crc(_CASTAGNOLI, &data[0], data.shape[0], crc)


# frames of the serial line --------------------------------------------------------------------------------

cdef enum:
    HEAD = 4  # version and flags, type, seq
    AROUND = 8  # and the checksum
    PAYLOAD = 1024
    SENSOR = 0x10
    SENSOR_HEAD = 20
    VERSION = 1
    NOT_OURS = 0xF6  # version and all flags but ACKREQ
    STREAMS = 256

PAYLOAD_BYTES_MAX = PAYLOAD
RUN_COLUMNS = 4


cdef inline uint32_t _u32(const uint8_t* p) noexcept nogil:
    return <uint32_t>p[0] | <uint32_t>p[1] << 8 | <uint32_t>p[2] << 16 | <uint32_t>p[3] << 24


cdef inline uint16_t _u16(const uint8_t* p) noexcept nogil:
    return <uint16_t>(p[0] | p[1] << 8)


cdef inline Py_ssize_t _stuffed_max(Py_ssize_t size) noexcept nogil:
    """The most bytes that COBS makes of so many."""
    return size + size // 254 + 1


cdef Py_ssize_t _stuff(const uint8_t* body, Py_ssize_t size, uint8_t* out) noexcept nogil:
    """COBS; how many bytes it made."""
    cdef Py_ssize_t i, code = 0, o = 1
    for i in range(size):
        if body[i]:
            out[o] = body[i]
            o += 1
            if o - code == 255:
                out[code] = 255
                if i + 1 == size:
                    return o
                code = o
                o += 1
        else:
            out[code] = <uint8_t>(o - code)
            code = o
            o += 1
    out[code] = <uint8_t>(o - code)
    return o


cdef Py_ssize_t _unstuff(const uint8_t* data, Py_ssize_t size, uint8_t* out, Py_ssize_t room) noexcept nogil:
    """The bytes that COBS was made of, or -1. `data` holds no zero; `out` has 8 bytes more than `room`."""
    cdef Py_ssize_t i = 0, o = 0, run
    while i < size:
        run = data[i] - 1
        i += 1
        if run > size - i or run > room - o:
            return -1
        if run <= 8 and size - i >= 8:
            memcpy(out + o, data + i, 8)  # one move; what is too much is written over
        else:
            memcpy(out + o, data + i, <size_t>run)
        i += run
        o += run
        if run != 254 and i < size:
            if o == room:
                return -1
            out[o] = 0
            o += 1
    return o


def encode(int type, int seq, const uint8_t[::1] payload not None, int flags=0, int version=VERSION):
    """A whole frame, zeros around it."""
    cdef uint8_t[PAYLOAD + AROUND] body
    cdef Py_ssize_t size = payload.shape[0]
    cdef uint32_t crc
    if size > PAYLOAD or not 0 <= type <= 255 or not 0 <= seq <= 0xFFFF or not 0 <= flags <= 15:
        raise ValueError(f"a frame of type {type}, seq {seq}, flags {flags}, {size} bytes: expected {PAYLOAD} at most")
    if not 0 <= version <= 15:
        raise ValueError(f"protocol version {version}: expected 0 to 15")
    body[0] = <uint8_t>(version << 4 | flags)
    body[1] = <uint8_t>type
    body[2] = <uint8_t>(seq & 0xFF)
    body[3] = <uint8_t>(seq >> 8)
    if size:
        memcpy(body + HEAD, &payload[0], <size_t>size)
    crc = _crc(_ZLIB, body, HEAD + size, 0)
    body[HEAD + size] = <uint8_t>(crc & 0xFF)
    body[HEAD + size + 1] = <uint8_t>(crc >> 8 & 0xFF)
    body[HEAD + size + 2] = <uint8_t>(crc >> 16 & 0xFF)
    body[HEAD + size + 3] = <uint8_t>(crc >> 24)
    cdef uint8_t[PAYLOAD + AROUND + 8] out
    out[0] = 0
    cdef Py_ssize_t made = _stuff(body, size + AROUND, out + 1)
    out[made + 1] = 0
    return PyBytes_FromStringAndSize(<const char*>out, made + 2)


@cython.final
cdef class SensorBlock:
    """Rows of one sensor stream, in arrays that the caller owns, and where rows are missing between them.

    Args:
        values: [rows, channels]; a count times `scale`, or the value itself where the board sends floats.
        times: of each row, microseconds of the board's clock.
        runs: [n, 4], a line where rows do not follow on the row before, and for the first in the block: position,
            index since the stream was started, frames lost before it, rows lost before it.
    """

    cdef float[:, ::1] _values
    cdef int64_t[::1] _times
    cdef int64_t[:, ::1] _runs
    cdef double _scale
    cdef bint _known
    cdef uint16_t _seq
    cdef int64_t _index
    cdef readonly Py_ssize_t rows, runs, channels
    cdef readonly long long frames, rows_all, frames_lost, rows_lost, repeated, overflowed

    def __cinit__(self, float[:, ::1] values not None, int64_t[::1] times not None, int64_t[:, ::1] runs not None,
                  double scale=1.0):
        if times.shape[0] != values.shape[0] or runs.shape[0] < 1 or runs.shape[1] != 4 or values.shape[1] < 1:
            raise ValueError("expected values [rows, channels], times [rows] and runs [n, 4]")
        self._values, self._times, self._runs, self._scale = values, times, runs, scale
        self.channels = values.shape[1]

    def clear(self):
        """The rows were taken; counts and expectations stay."""
        self.rows = 0
        self.runs = 0

    def started(self):
        """The stream was turned on just now: its counts begin at 0, and what is missing before the first is lost."""
        self._known, self._seq, self._index = True, 0, 0

    def joined(self):
        """The stream may have been running: what came before the next frame is not known."""
        self._known = False

    def missing(self, uint16_t seq, uint32_t index):
        """Frames and rows that did not come before the frame that has these; nothing, where no frame is expected."""
        if not self._known:
            return 0, 0
        return <uint16_t>(seq - self._seq), max(0, <int32_t>(index - <uint32_t>self._index))

    cdef bint _take(self, uint16_t seq, const uint8_t* payload, Py_ssize_t size) noexcept nogil:
        """Take a sensor frame's payload; False when it does not fit the stream."""
        cdef int kind = payload[1]
        cdef Py_ssize_t rows = _u16(payload + 2), i, n = rows * self.channels
        cdef uint32_t index = _u32(payload + 4)
        cdef int64_t at, step
        cdef int32_t ahead = 0
        cdef uint16_t lost = 0
        cdef const uint8_t* p = payload + SENSOR_HEAD
        cdef float* out
        cdef uint32_t bits
        if rows == 0 or not (kind == 1 and size == SENSOR_HEAD + 2 * n or kind == 2 and size == SENSOR_HEAD + 4 * n):
            return False
        if self._known:
            lost = <uint16_t>(seq - self._seq)
            ahead = <int32_t>(index - <uint32_t>self._index)
            if ahead < 0:  # rows that were there before
                self.repeated += 1
                return True
            self._index += ahead
        else:
            self._index = index
        if self.rows + rows > self._values.shape[0] or (
            self.runs == self._runs.shape[0] and (lost or ahead or self.rows == 0)
        ):
            # Nobody took the rows in time: they count as lost, with what was lost before them.
            self._index -= ahead
            self.overflowed += rows
            return True
        if lost or ahead or self.rows == 0:
            self._runs[self.runs, 0] = self.rows
            self._runs[self.runs, 1] = self._index
            self._runs[self.runs, 2] = lost
            self._runs[self.runs, 3] = ahead
            self.runs += 1
            self.frames_lost += lost
            self.rows_lost += ahead
        out = &self._values[self.rows, 0]
        if kind == 1:
            for i in range(n):
                out[i] = <float>(<int16_t>_u16(p + 2 * i) * self._scale)
        else:
            for i in range(n):
                bits = _u32(p + 4 * i)
                memcpy(out + i, &bits, 4)
        at = <int64_t>(<uint64_t>_u32(payload + 8) | <uint64_t>_u32(payload + 12) << 32)
        step = _u32(payload + 16)
        for i in range(rows):
            self._times[self.rows + i] = <int64_t>(<uint64_t>at + <uint64_t>step * <uint64_t>i)
        self._known = True
        self._seq = <uint16_t>(seq + 1)
        self._index += rows
        self.rows += rows
        self.rows_all += rows
        self.frames += 1
        return True


@cython.final
cdef class FrameDecoder:
    """Frames out of bytes that come in any pieces.

    Sensor frames of a stream that has a `SensorBlock` go there without an object; every other frame is a tuple of
    first byte (version and flags), type, seq and payload. What is damaged is dropped and counted.

    Args:
        payload_max: longer frames are dropped and counted.
    """

    cdef uint8_t* _held
    cdef uint8_t* _body
    cdef Py_ssize_t _count, _stuffed, _payload_max
    cdef bint _skipping
    cdef void** _blocks
    cdef dict _owners
    cdef readonly long long frames, bad, too_long

    def __cinit__(self, Py_ssize_t payload_max=PAYLOAD):
        if not 8 <= payload_max <= PAYLOAD:
            raise ValueError(f"payload_max is {payload_max}: expected 8 to {PAYLOAD}")
        self._payload_max = payload_max
        self._stuffed = _stuffed_max(payload_max + AROUND)
        self._held = <uint8_t*>malloc(<size_t>self._stuffed)
        self._body = <uint8_t*>malloc(<size_t>(payload_max + AROUND + 8))
        self._blocks = <void**>calloc(STREAMS, sizeof(void*))
        if not self._held or not self._body or not self._blocks:
            raise MemoryError("no memory for a decoder of frames")
        self._owners = {}

    def __dealloc__(self):
        free(self._held)
        free(self._body)
        free(self._blocks)

    def bind(self, int stream, SensorBlock block):
        """Send the rows of a stream to a block; None ends it."""
        if not 0 <= stream < STREAMS:
            raise ValueError(f"stream {stream}: expected 0 to 255")
        if block is None:
            self._blocks[stream] = NULL
            self._owners.pop(stream, None)
        else:
            self._owners[stream] = block
            self._blocks[stream] = <void*>block

    def reset(self):
        """Forget the frame that has begun, as after a line was opened anew."""
        self._count = 0
        self._skipping = False

    def feed(self, const uint8_t[::1] data not None):
        """The frames that end within these bytes."""
        cdef list found = []
        cdef Py_ssize_t size = data.shape[0], at = 0, run
        cdef const uint8_t* p
        cdef const uint8_t* zero
        if size == 0:
            return found
        p = &data[0]
        while at < size:
            zero = <const uint8_t*>memchr(p + at, 0, <size_t>(size - at))
            run = (zero - p if zero else size) - at
            if self._skipping or run > self._stuffed - self._count:
                self._skipping = True
                self._count = 0
            elif not zero or self._count:
                memcpy(self._held + self._count, p + at, <size_t>run)
                self._count += run
            if zero:
                if self._skipping:
                    self.too_long += 1
                elif self._count:
                    self._frame(self._held, self._count, found)
                elif run:
                    self._frame(p + at, run, found)
                self._count = 0
                self._skipping = False
            at += run + 1
        return found

    cdef int _frame(self, const uint8_t* stuffed, Py_ssize_t count, list found) except -1:
        cdef uint8_t* body = self._body
        cdef Py_ssize_t size = _unstuff(stuffed, count, body, self._payload_max + AROUND)
        if size < AROUND or _crc(_ZLIB, body, size - HEAD, 0) != _u32(body + size - HEAD):
            self.bad += 1
            return 0
        self.frames += 1
        size -= AROUND
        if body[1] == SENSOR and body[0] & NOT_OURS == VERSION << 4 and size >= SENSOR_HEAD:
            if self._blocks[body[HEAD]] and (<SensorBlock>self._blocks[body[HEAD]])._take(
                _u16(body + 2), body + HEAD, size
            ):
                return 0
        found.append((body[0], body[1], _u16(body + 2), PyBytes_FromStringAndSize(<const char*>body + HEAD, size)))
        return 0
