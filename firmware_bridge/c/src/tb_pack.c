#include "tb_pack.h"

#include <string.h>

static void tagged(tb_encoder *encoder, uint8_t tag, uint64_t value, unsigned bytes)
{
  uint8_t out[9];
  out[0] = tag;
  for (unsigned i = 0; i < bytes; i++) {
    out[1 + i] = (uint8_t)(value >> 8 * (bytes - 1 - i));
  }
  tb_encoder_put(encoder, out, bytes + 1);
}

static void small_or_16(tb_encoder *encoder, uint8_t small, uint8_t wide, uint8_t n)
{
  if (n < 16) {
    tagged(encoder, (uint8_t)(small | n), 0, 0);
  } else {
    tagged(encoder, wide, n, 2);
  }
}

void tb_pack_map(tb_encoder *encoder, uint8_t pairs)
{
  small_or_16(encoder, 0x80, 0xde, pairs);
}

void tb_pack_array(tb_encoder *encoder, uint8_t items)
{
  small_or_16(encoder, 0x90, 0xdc, items);
}

static void str_head(tb_encoder *encoder, uint8_t n)
{
  if (n < 32) {
    tagged(encoder, (uint8_t)(0xa0 | n), 0, 0);
  } else {
    tagged(encoder, 0xd9, n, 1);
  }
}

void tb_pack_str(tb_encoder *encoder, const char *text)
{
  uint8_t n = 0;
  while (text && n < 255 && text[n]) {
    n++;
  }
  str_head(encoder, n);
  tb_encoder_put(encoder, (const uint8_t *)text, n);
}

void tb_pack_hex(tb_encoder *encoder, const uint8_t *data, uint8_t n)
{
  static const uint8_t DIGITS[16] = { '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f' };
  str_head(encoder, (uint8_t)(2 * n));
  while (n--) {
    tb_encoder_put(encoder, DIGITS + (*data >> 4), 1);
    tb_encoder_put(encoder, DIGITS + (*data++ & 15), 1);
  }
}

void tb_pack_uint(tb_encoder *encoder, uint64_t value)
{
  if (value < 0x80) {
    tagged(encoder, (uint8_t)value, 0, 0);
  } else if (value <= 0xff) {
    tagged(encoder, 0xcc, value, 1);
  } else if (value <= 0xffff) {
    tagged(encoder, 0xcd, value, 2);
  } else if (value <= 0xffffffff) {
    tagged(encoder, 0xce, value, 4);
  } else {
    tagged(encoder, 0xcf, value, 8);
  }
}

void tb_pack_f32(tb_encoder *encoder, float value)
{
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  tagged(encoder, 0xca, bits, 4);
}

void tb_pack_pair(tb_encoder *encoder, const char *key, uint64_t value)
{
  tb_pack_str(encoder, key);
  tb_pack_uint(encoder, value);
}
