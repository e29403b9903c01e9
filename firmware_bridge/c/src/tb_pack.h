/* msgpack, written straight into a frame: maps, arrays, strings, unsigned integers and f32. Nothing here can fail: what
 * does not fit shows at tb_encoder_end. */
#ifndef TB_PACK_H
#define TB_PACK_H

#include "tb_frame.h"

#ifdef __cplusplus
extern "C" {
#endif

void tb_pack_map(tb_encoder *encoder, uint8_t pairs);
void tb_pack_array(tb_encoder *encoder, uint8_t items);
/* At most 255 bytes of the text are written; NULL is written as an empty one. */
void tb_pack_str(tb_encoder *encoder, const char *text);
void tb_pack_hex(tb_encoder *encoder, const uint8_t *data, uint8_t n);
void tb_pack_uint(tb_encoder *encoder, uint64_t value);
void tb_pack_f32(tb_encoder *encoder, float value);
/* A pair of a map whose value is a number. */
void tb_pack_pair(tb_encoder *encoder, const char *key, uint64_t value);

#ifdef __cplusplus
}
#endif
#endif
