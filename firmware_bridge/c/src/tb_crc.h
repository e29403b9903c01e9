/* CRC-32 as zlib counts it (reflected, polynomial 0xEDB88320), with a table of 16 words: 64 bytes of flash. */
#ifndef TB_CRC_H
#define TB_CRC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Take more bytes into a CRC; begin with 0. Returns the CRC so far; nothing can fail. `n` 0 leaves it as it is. */
uint32_t tb_crc32(uint32_t crc, const uint8_t *data, size_t n);

#ifdef __cplusplus
}
#endif
#endif
