/* msgpack, written straight into a frame from a form: the bytes of a map with the places of its values marked.
 *
 * One text holds the maps' heads and keys as they go over the line, which takes half the flash of a call for each:
 *
 *   "\x82" "\xa2" "up" "\xcf" "\xa4" "name" "\xd9"      {"up": two words, the high one first; "name": a text}
 *
 * In a form, 0xce takes the next number (one byte on the line below 128), 0xca the next number as the bits of an f32, 0xcf
 * the next two as one of 64 bits, and 0xd9 the next text; every other byte goes out as it is. A form ends at its zero.
 * Nothing here can fail: what does not fit shows at tb_encoder_end.
 */
#ifndef TB_PACK_H
#define TB_PACK_H

#include "tb_frame.h"

#ifdef __cplusplus
extern "C" {
#endif

void tb_pack_form(tb_encoder *encoder, const char *form, const uint32_t *numbers, const char *const *texts);
/* The head of an array, whose items follow. */
void tb_pack_array(tb_encoder *encoder, uint8_t items);
/* At most 255 bytes of the text are written; NULL is written as an empty one. */
void tb_pack_str(tb_encoder *encoder, const char *text);
/* `n` bytes, up to 127, as a text of hexadecimal digits. */
void tb_pack_hex(tb_encoder *encoder, const uint8_t *data, uint8_t n);

#ifdef __cplusplus
}
#endif
#endif
