/* SHA-256 (FIPS 180-4), streamed: 104 bytes of state, no tables in RAM. */
#ifndef TB_SHA256_H
#define TB_SHA256_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  uint32_t state[8];
  uint8_t block[64];
  uint64_t length; /* bytes taken so far */
} tb_sha256;

/* Begin. Nothing can fail. */
void tb_sha256_init(tb_sha256 *sha);
/* Take `n` bytes. Nothing can fail. */
void tb_sha256_update(tb_sha256 *sha, const uint8_t *data, size_t n);
/* Write the digest; the state is spent and must be begun again. */
void tb_sha256_final(tb_sha256 *sha, uint8_t out_digest[32]);

#ifdef __cplusplus
}
#endif
#endif
