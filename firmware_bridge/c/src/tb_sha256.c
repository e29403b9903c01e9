#include "tb_sha256.h"

#include <string.h>

static const uint32_t K[64] = {
  0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
  0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
  0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
  0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
  0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
  0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
  0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
  0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotated(uint32_t x, unsigned by)
{
  return x >> by | x << (32u - by);
}

/* The schedule is kept in 16 words that are renewed in place: 64 bytes of stack instead of 256. */
static void compress(tb_sha256 *sha)
{
  uint32_t w[16], *s = sha->state;
  uint32_t a = s[0], b = s[1], c = s[2], d = s[3], e = s[4], f = s[5], g = s[6], h = s[7];
  for (unsigned i = 0; i < 64; i++) {
    uint32_t word;
    if (i < 16) {
      const uint8_t *p = sha->block + 4 * i;
      word = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
    } else {
      uint32_t x = w[(i + 1) & 15], y = w[(i + 14) & 15];
      word = w[i & 15] + (rotated(x, 7) ^ rotated(x, 18) ^ x >> 3) + w[(i + 9) & 15] +
             (rotated(y, 17) ^ rotated(y, 19) ^ y >> 10);
    }
    w[i & 15] = word;
    uint32_t first = h + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + ((e & f) ^ (~e & g)) + K[i] + word;
    uint32_t second = (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    h = g;
    g = f;
    f = e;
    e = d + first;
    d = c;
    c = b;
    b = a;
    a = first + second;
  }
  s[0] += a;
  s[1] += b;
  s[2] += c;
  s[3] += d;
  s[4] += e;
  s[5] += f;
  s[6] += g;
  s[7] += h;
}

void tb_sha256_init(tb_sha256 *sha)
{
  static const uint32_t START[8] = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                     0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19 };
  memcpy(sha->state, START, sizeof START);
  sha->length = 0;
}

void tb_sha256_update(tb_sha256 *sha, const uint8_t *data, size_t n)
{
  while (n > 0) {
    size_t at = (size_t)(sha->length & 63), take = 64 - at;
    if (take > n) {
      take = n;
    }
    memcpy(sha->block + at, data, take);
    sha->length += take;
    data += take;
    n -= take;
    if (at + take == 64) {
      compress(sha);
    }
  }
}

void tb_sha256_final(tb_sha256 *sha, uint8_t out_digest[32])
{
  uint64_t bits = sha->length * 8;
  size_t at = (size_t)(sha->length & 63);
  sha->block[at++] = 0x80;
  if (at > 56) {
    memset(sha->block + at, 0, 64 - at);
    compress(sha);
    at = 0;
  }
  memset(sha->block + at, 0, 56 - at);
  for (unsigned i = 0; i < 8; i++) {
    sha->block[56 + i] = (uint8_t)(bits >> (56 - 8 * i));
  }
  compress(sha);
  for (unsigned i = 0; i < 32; i++) {
    out_digest[i] = (uint8_t)(sha->state[i / 4] >> (24 - 8 * (i & 3)));
  }
}
