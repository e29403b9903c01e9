"""Checksums of frames: CRC-32C (Castagnoli, RFC 3720 appendix B.4), eight bytes a step."""

from libc.stdint cimport uint8_t, uint32_t

cdef uint32_t[8][256] _TABLE


cdef void _fill() noexcept:
    cdef uint32_t crc
    cdef int i, _bit, k
    for i in range(256):
        crc = <uint32_t>i
        for _bit in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        _TABLE[0][i] = crc
    for i in range(256):
        for k in range(1, 8):
            _TABLE[k][i] = (_TABLE[k - 1][i] >> 8) ^ _TABLE[0][_TABLE[k - 1][i] & 0xFF]


_fill()


cdef uint32_t _crc32c(const uint8_t* data, Py_ssize_t size, uint32_t crc) noexcept nogil:
    cdef uint32_t low, high
    crc = ~crc
    while size >= 8:
        # Bytes are joined by hand, so that the result is the same on any byte order and alignment.
        low = crc ^ (<uint32_t>data[0] | <uint32_t>data[1] << 8 | <uint32_t>data[2] << 16 | <uint32_t>data[3] << 24)
        high = <uint32_t>data[4] | <uint32_t>data[5] << 8 | <uint32_t>data[6] << 16 | <uint32_t>data[7] << 24
        crc = (
            _TABLE[7][low & 0xFF] ^ _TABLE[6][(low >> 8) & 0xFF]
            ^ _TABLE[5][(low >> 16) & 0xFF] ^ _TABLE[4][low >> 24]
            ^ _TABLE[3][high & 0xFF] ^ _TABLE[2][(high >> 8) & 0xFF]
            ^ _TABLE[1][(high >> 16) & 0xFF] ^ _TABLE[0][high >> 24]
        )
        data += 8
        size -= 8
    while size > 0:
        crc = (crc >> 8) ^ _TABLE[0][(crc ^ data[0]) & 0xFF]
        data += 1
        size -= 1
    return ~crc


def crc32c(const uint8_t[::1] data not None, uint32_t crc=0):
    """CRC-32C of the bytes; pass the last result as `crc` to go on over several pieces."""
    if data.shape[0] == 0:
        return crc
    return _crc32c(&data[0], data.shape[0], crc)
