/* Frames: COBS and CRC-32 around a body of version, flags, type, seq and payload. Streamed both ways, byte by byte.
 *
 *   00 | COBS( u8 version << 4 | flags, u8 type, u16 seq, payload, u32 crc ) | 00
 *
 * The decoder is given any bytes at all; it writes only into its buffer and reports each frame or its damage at the zero
 * that ends it. The encoder writes into a ring and is all or nothing: a frame that does not fit leaves the ring as it was.
 */
#ifndef TB_FRAME_H
#define TB_FRAME_H

#include "tb_codes.h"
#include "tb_ring.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TB_FRAME_HEAD 4u
#define TB_FRAME_CRC 4u
#define TB_PAYLOAD_MAX 1024u
#define TB_PAYLOAD_MIN 64u /* what every side takes */

/* Bytes on the line of a frame with a payload of n bytes, at worst: two zeros, and one COBS byte in 254 begun. */
#define tb_frame_size_max(n) ((n) + TB_FRAME_HEAD + TB_FRAME_CRC + ((n) + TB_FRAME_HEAD + TB_FRAME_CRC) / 254u + 1u + 2u)
/* Bytes of the buffer that a decoder of payloads up to n bytes needs. */
#define tb_frame_buffer_size(n) ((n) + TB_FRAME_HEAD + TB_FRAME_CRC)

typedef struct {
  uint8_t version;
  uint8_t flags; /* TB_FLAG_... */
  uint8_t type;  /* TB_HELLO and so on */
  uint16_t seq;
  const uint8_t *payload; /* in the decoder's buffer, until its next byte */
  uint16_t size;
} tb_frame;

typedef struct {
  uint8_t *buffer;
  uint16_t size;   /* of the buffer */
  uint16_t length; /* decoded so far; size + 1: more than there is room for */
  uint8_t left;    /* bytes until the next COBS code */
  uint8_t code;    /* the block's code; 0: no block yet */
} tb_decoder;

/* Begin. TB_ERR_ARG: no buffer, or one too small for a payload of TB_PAYLOAD_MIN; the decoder is not usable. */
tb_status tb_decoder_init(tb_decoder *decoder, uint8_t *buffer, size_t size);

/* Take one byte. Returns
 *   1  a frame is complete and stands in *out_frame, valid until the next byte;
 *   0  nothing yet (also after an empty frame);
 *   TB_ERR_FRAME  the zero ended a frame whose COBS, CRC or length was wrong; *out_frame is untouched.
 * After any of them the decoder is ready for the next byte. */
int tb_decoder_byte(tb_decoder *decoder, uint8_t byte, tb_frame *out_frame);

/* A frame being written into a ring. Between begin and end nobody else may write to the ring. */
typedef struct {
  tb_ring *ring;
  uint32_t at;    /* the next place; the ring's head stays where it was until the end */
  uint32_t mark;  /* where this block's COBS code goes */
  uint32_t room;  /* bytes that may still be taken */
  uint32_t crc;
  uint8_t code;
  bool full;
} tb_encoder;

/* Begin a frame; keeps `reserve` bytes of the ring free (for answers). Shortage shows at tb_encoder_end. */
void tb_encoder_begin(tb_encoder *encoder, tb_ring *ring, uint32_t reserve, uint8_t flags, uint8_t type, uint16_t seq);
/* Add payload. Nothing to check: shortage shows at tb_encoder_end. */
void tb_encoder_put(tb_encoder *encoder, const uint8_t *data, size_t n);
/* End it. TB_ERR_ROOM: it did not fit, and the ring is as before begin. */
tb_status tb_encoder_end(tb_encoder *encoder);

#ifdef __cplusplus
}
#endif
#endif
