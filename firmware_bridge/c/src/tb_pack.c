#include "tb_pack.h"

enum { F32 = 0xca, U32 = 0xce, U64 = 0xcf, STR = 0xd9, ARRAY = 0xdc };

static void put(tb_encoder *encoder, unsigned byte)
{
  uint8_t out = (uint8_t)byte;
  tb_encoder_put(encoder, &out, 1);
}

void tb_pack_array(tb_encoder *encoder, uint8_t items)
{
  put(encoder, ARRAY);
  put(encoder, 0);
  put(encoder, items);
}

void tb_pack_str(tb_encoder *encoder, const char *text)
{
  uint8_t n = 0;
  while (text && n < 255 && text[n]) {
    n++;
  }
  put(encoder, STR);
  put(encoder, n);
  tb_encoder_put(encoder, (const uint8_t *)text, n);
}

void tb_pack_hex(tb_encoder *encoder, const uint8_t *data, uint8_t n)
{
  put(encoder, STR);
  put(encoder, 2u * n);
  for (unsigned i = 0; i < 2u * n; i++) {
    unsigned digit = (i & 1 ? data[i / 2] : data[i / 2] >> 4) & 15u;
    put(encoder, digit < 10 ? '0' + digit : 'a' - 10 + digit);
  }
}

static void put_word(tb_encoder *encoder, uint32_t word)
{
  for (int shift = 24; shift >= 0; shift -= 8) {
    put(encoder, word >> shift);
  }
}

void tb_pack_form(tb_encoder *encoder, const char *form, const uint32_t *numbers, const char *const *texts)
{
  for (uint8_t byte; (byte = (uint8_t)*form++) != 0;) {
    if (byte == STR) {
      tb_pack_str(encoder, *texts++);
    } else if (byte == U32 && *numbers < 0x80) {
      put(encoder, *numbers++);
    } else {
      put(encoder, byte);
      if (byte == U64) {
        put_word(encoder, *numbers++);
      }
      if (byte == U64 || byte == U32 || byte == F32) {
        put_word(encoder, *numbers++);
      }
    }
  }
}
