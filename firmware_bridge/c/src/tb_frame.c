#include "tb_frame.h"

#include "tb_bytes.h"
#include "tb_crc.h"

static void begin_body(tb_decoder *decoder)
{
  decoder->length = 0;
  decoder->left = 0;
  decoder->code = 0;
}

tb_status tb_decoder_init(tb_decoder *decoder, uint8_t *buffer, size_t size)
{
  size_t most = tb_frame_buffer_size(TB_PAYLOAD_MAX);
  if (!decoder || !buffer || size < tb_frame_buffer_size(TB_PAYLOAD_MIN)) {
    return TB_ERR_ARG;
  }
  decoder->buffer = buffer;
  decoder->size = (uint16_t)(size < most ? size : most);
  begin_body(decoder);
  return TB_OK;
}

static bool right(const tb_decoder *decoder)
{
  const uint8_t *body = decoder->buffer;
  uint32_t length = decoder->length, covered = length - TB_FRAME_CRC;
  return decoder->left == 0 && length >= TB_FRAME_HEAD + TB_FRAME_CRC && length <= decoder->size &&
         tb_crc32(0, body, covered) == tb_get_u32(body + covered);
}

static int finished(tb_decoder *decoder, tb_frame *out_frame)
{
  const uint8_t *body = decoder->buffer;
  int result = decoder->code == 0 ? 0 : TB_ERR_FRAME;
  if (right(decoder)) {
    result = 1;
    out_frame->version = body[0] >> 4;
    out_frame->flags = body[0] & 15;
    out_frame->type = body[1];
    out_frame->seq = tb_get_u16(body + 2);
    out_frame->payload = body + TB_FRAME_HEAD;
    out_frame->size = (uint16_t)(decoder->length - TB_FRAME_HEAD - TB_FRAME_CRC);
  }
  begin_body(decoder);
  return result;
}

static void append(tb_decoder *decoder, uint8_t byte)
{
  if (decoder->length < decoder->size) {
    decoder->buffer[decoder->length] = byte;
  }
  if (decoder->length <= decoder->size) {
    decoder->length++;
  }
}

int tb_decoder_byte(tb_decoder *decoder, uint8_t byte, tb_frame *out_frame)
{
  if (byte == 0) {
    return finished(decoder, out_frame);
  }
  if (decoder->left > 0) {
    decoder->left--;
    append(decoder, byte);
    return 0;
  }
  if (decoder->code != 0 && decoder->code != 0xff) { /* the block before this one stood for a zero at its end */
    append(decoder, 0);
  }
  decoder->code = byte;
  decoder->left = (uint8_t)(byte - 1);
  return 0;
}

static void place(tb_encoder *encoder, uint8_t byte)
{
  if (encoder->room == 0) {
    encoder->full = true;
    return;
  }
  encoder->room--;
  encoder->ring->data[encoder->at] = byte;
  encoder->at = encoder->at + 1 == encoder->ring->size ? 0 : encoder->at + 1;
}

static void begin_block(tb_encoder *encoder)
{
  encoder->mark = encoder->at;
  encoder->code = 1;
  place(encoder, 0); /* the code comes when the block is known */
}

static void end_block(tb_encoder *encoder)
{
  if (!encoder->full) {
    encoder->ring->data[encoder->mark] = encoder->code;
  }
}

static void stuff(tb_encoder *encoder, const uint8_t *data, size_t n)
{
  while (n-- && !encoder->full) {
    uint8_t byte = *data++;
    if (encoder->code == 0xff) { /* full: the next block begins only when a byte follows */
      end_block(encoder);
      begin_block(encoder);
    }
    if (byte == 0) {
      end_block(encoder);
      begin_block(encoder);
    } else {
      place(encoder, byte);
      encoder->code++;
    }
  }
}

void tb_encoder_begin(tb_encoder *encoder, tb_ring *ring, uint32_t reserve, uint8_t flags, uint8_t type, uint16_t seq)
{
  uint32_t room = tb_ring_free(ring);
  encoder->ring = ring;
  encoder->at = ring->head;
  encoder->room = room > reserve ? room - reserve : 0;
  encoder->crc = 0;
  encoder->full = false;
  place(encoder, 0);
  begin_block(encoder);
  uint8_t head[TB_FRAME_HEAD];
  head[0] = (uint8_t)(TB_PROTOCOL_VERSION << 4 | (flags & 15));
  head[1] = type;
  tb_put_u16(head + 2, seq);
  tb_encoder_put(encoder, head, sizeof head);
}

void tb_encoder_put(tb_encoder *encoder, const uint8_t *data, size_t n)
{
  encoder->crc = tb_crc32(encoder->crc, data, n);
  stuff(encoder, data, n);
}

tb_status tb_encoder_end(tb_encoder *encoder)
{
  uint8_t crc[TB_FRAME_CRC];
  tb_put_u32(crc, encoder->crc);
  stuff(encoder, crc, sizeof crc);
  end_block(encoder);
  place(encoder, 0);
  if (encoder->full) {
    return TB_ERR_ROOM;
  }
  TB_STORE(encoder->ring->head, encoder->at);
  return TB_OK;
}
