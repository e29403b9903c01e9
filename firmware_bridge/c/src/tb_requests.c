/* The requests a host makes, and their answers. Models are for the handler (tb_update.h). */
#include <stddef.h>
#include <string.h>

#include "tb_bytes.h"
#include "tb_link_internal.h"
#include "tb_pack.h"

/* What a refusal says, by its code from 1; each ends in its own zero. */
static const char SENTENCES[] = "unknown type\0bad payload\0only version 1\0not now\0too large\0other SHA-256\0"
                                "model refused\0slot failed\0self-test failed\0busy";

/* Numbers and texts that a form takes one after another stand together in their structs. */
#define TOGETHER(type, first, last, n) (offsetof(type, last) - offsetof(type, first) == ((n) - 1) * sizeof(uint32_t))
typedef char board_numbers_stand_together[TOGETHER(tb_board, boot, slot_bytes, 5) ? 1 : -1];
typedef char sensor_numbers_stand_together[TOGETHER(tb_sensor, format, scale, 3) ? 1 : -1];
typedef char running_numbers_stand_together[TOGETHER(tb_running, slot, counter, 3) ? 1 : -1];

#define KEY(head, name) head name

static void pack_sensor(tb_encoder *encoder, const tb_sensor *sensor, uint8_t stream)
{
  uint32_t numbers[4];
  numbers[0] = stream;
  memcpy(numbers + 1, &sensor->format, 12);
  tb_pack_form(encoder,
               "\x87" KEY("\xa6", "stream") "\xce" KEY("\xa6", "format") "\xce" KEY("\xa8", "rate_mhz") "\xce"
               KEY("\xa5", "scale") "\xca" KEY("\xa4", "name") "\xd9" KEY("\xa4", "unit") "\xd9" KEY("\xa8", "channels"),
               numbers, &sensor->name);
  tb_pack_array(encoder, sensor->channel_count);
  for (uint8_t i = 0; i < sensor->channel_count; i++) {
    tb_pack_str(encoder, sensor->channels[i]);
  }
}

static void pack_caps(tb_link *link, tb_encoder *encoder)
{
  const tb_board *board = link->board;
  uint32_t numbers[7];
  numbers[0] = link->decoder.size - TB_FRAME_HEAD - TB_FRAME_CRC;
  numbers[1] = board->slot_bytes ? TB_SLOTS : 0;
  memcpy(numbers + 2, &board->boot, 20);
  uint8_t pairs = link->running ? 0x8e : 0x8d;
  tb_encoder_put(encoder, &pairs, 1);
  tb_pack_form(encoder,
               KEY("\xa3", "abi") "\x01" KEY("\xa7", "formats") "\x91\x01" KEY("\xa9", "frame_max") "\xce"
               KEY("\xa5", "slots") "\xce" KEY("\xa4", "boot") "\xce" KEY("\xa6", "window") "\xce"
               KEY("\xa5", "align") "\xce" KEY("\xa7", "trial_s") "\xce" KEY("\xaa", "slot_bytes") "\xce"
               KEY("\xa3", "uid") "\xd9" KEY("\xa2", "fw") "\xd9" KEY("\xa5", "reset") "\xd9" KEY("\xa7", "sensors"),
               numbers, &board->uid);
  tb_pack_array(encoder, board->sensor_count);
  for (uint8_t i = 0; i < board->sensor_count; i++) {
    pack_sensor(encoder, &board->sensors[i], i);
  }
  if (link->running) {
    tb_pack_form(encoder,
                 KEY("\xa5", "model") "\x84" KEY("\xa4", "slot") "\xce" KEY("\xa5", "state") "\xce"
                 KEY("\xa7", "counter") "\xce" KEY("\xa3", "sha"),
                 &link->running->slot, NULL);
    tb_pack_hex(encoder, link->running->sha, 32);
  }
}

/* Each request below puts its answer's payload and returns 0, or returns a refusal. */

static int hello(tb_link *link, const tb_frame *request, tb_encoder *encoder)
{
  const uint8_t *p = request->payload;
  uint16_t host_max = tb_get_u16(p + 2);
  if (request->size != 8 || p[0] > p[1] || host_max < TB_PAYLOAD_MIN) {
    return TB_REFUSED_PAYLOAD;
  }
  if (p[0] > TB_PROTOCOL_VERSION || p[1] < TB_PROTOCOL_VERSION) {
    return TB_REFUSED_VERSION;
  }
  link->host_max = host_max < TB_PAYLOAD_MAX ? host_max : TB_PAYLOAD_MAX;
  uint32_t session = tb_get_u32(p + 4);
  if (!link->host_known || link->session != session) { /* another host, or the same one begun anew */
    link->session = session;
    link->host_known = true;
    link->kept = false;
    for (uint8_t i = 0; i < link->board->sensor_count; i++) {
      link->streams[i].on = false;
    }
    link->drift_tries = 0;
    link->drift_due_us = 0;
  }
  pack_caps(link, encoder);
  return 0;
}

static int time_asked(tb_link *link, const tb_frame *request, tb_encoder *encoder, uint64_t came_us)
{
  uint8_t out[16];
  if (request->size != 8) {
    return TB_REFUSED_PAYLOAD;
  }
  tb_encoder_put(encoder, request->payload, 8);
  tb_put_u64(tb_put_u64(out, came_us), link->port->clock_us(link->port->user));
  tb_encoder_put(encoder, out, sizeof out);
  return 0;
}

void tb_requests_pack_metrics(tb_link *link, tb_encoder *encoder)
{
  uint32_t credit = 0;
  for (uint8_t i = 0; i < link->board->sensor_count; i++) {
    const tb_stream *stream = &link->streams[i];
    if (stream->on) {
      uint32_t sum = credit + stream->credit;
      credit = sum < credit ? TB_CREDIT_ENDLESS : sum;
    }
  }
  uint64_t up_ms = link->port->clock_us(link->port->user) / 1000;
  uint32_t *numbers = link->counts;
  numbers[TB_COUNT_CREDIT] = credit;
  numbers[TB_COUNT_RX_DROP] = link->rx_dropped;
  numbers[TB_COUNT_UP_HIGH] = (uint32_t)(up_ms >> 32);
  numbers[TB_COUNT_UP_LOW] = (uint32_t)up_ms;
  numbers[TB_COUNT_INFER_US_HIGH] = (uint32_t)(link->infer_us >> 32);
  numbers[TB_COUNT_INFER_US_LOW] = (uint32_t)link->infer_us;
  tb_pack_form(encoder,
               "\x8d" KEY("\xa2", "rx") "\xce" KEY("\xa6", "rx_bad") "\xce" KEY("\xa7", "rx_drop") "\xce"
               KEY("\xa2", "tx") "\xce" KEY("\xa7", "tx_drop") "\xce" KEY("\xa4", "rows") "\xce"
               KEY("\xa9", "rows_drop") "\xce" KEY("\xa5", "infer") "\xce" KEY("\xa5", "drift") "\xce"
               KEY("\xaa", "drift_lost") "\xce" KEY("\xa6", "credit") "\xce" KEY("\xa5", "up_ms") "\xcf"
               KEY("\xa8", "infer_us") "\xcf",
               numbers, NULL);
}

static tb_status stream_asked(tb_link *link, const tb_frame *request, uint8_t *out, uint8_t *out_size)
{
  const uint8_t *p = request->payload;
  uint32_t first = p[0], end = first + 1, left = TB_CREDIT_ENDLESS; /* for all: the least credit */
  if (first == TB_ALL_STREAMS) {
    first = 0;
    end = link->board->sensor_count;
  }
  if (request->size != 6 || p[1] > 1 || first >= end || end > link->board->sensor_count) {
    return TB_ERR_ARG;
  }
  tb_stream *stream = link->streams + first;
  for (uint32_t n = end - first; n > 0; n--, stream++) {
    if (p[1]) {
      if (!stream->on) {
        stream->seq = 0;
        stream->index = 0;
      }
      stream->credit = tb_get_u32(p + 2);
    }
    stream->on = p[1];
    left = stream->credit < left ? stream->credit : left;
  }
  memset(out, 0, 12);
  memcpy(out, p, 2);
  tb_put_u32(out + 2, left);
  if (p[0] != TB_ALL_STREAMS) {
    stream--;
    tb_put_u32(tb_put_u16(out + 6, stream->seq), stream->index);
  }
  *out_size = 12;
  return TB_OK;
}

static tb_status changed(tb_link *link, const tb_frame *request, uint8_t *out, uint8_t *out_size)
{
  if (request->type == TB_STREAM) {
    return stream_asked(link, request, out, out_size);
  }
  if (request->type == TB_RESET) {
    if (request->size != 1 || request->payload[0] != 0) {
      return TB_ERR_ARG;
    }
    link->reset_asked = true;
    return TB_OK;
  }
  return link->handler ? link->handler(link->handler_user, request, out, out_size) : TB_ERR_FRAME;
}

/* A request that changes something is done once: its answer is kept and repeated. A chunk says by its offset what it is:
 * its answer is kept too, so that it replaces what was before it, but is not repeated. */
static int change(tb_link *link, const tb_frame *request, tb_encoder *encoder)
{
  if (!link->kept || link->kept_type != request->type || link->kept_seq != request->seq ||
      request->type == TB_MODEL_CHUNK) {
    link->kept_size = 0;
    tb_status status = changed(link, request, link->kept_answer, &link->kept_size);
    link->kept = true;
    link->kept_type = request->type;
    link->kept_seq = request->seq;
    link->kept_refusal = (uint8_t)(status == TB_OK          ? 0
                                   : status == TB_ERR_FRAME ? TB_REFUSED_TYPE
                                                            : tb_refusal_of(status));
  }
  tb_encoder_put(encoder, link->kept_answer, link->kept_size);
  return link->kept_refusal;
}

static int answered(tb_link *link, const tb_frame *request, tb_encoder *encoder, uint64_t came_us)
{
  if (request->version != TB_PROTOCOL_VERSION) {
    return TB_REFUSED_VERSION;
  }
  switch (request->type) {
  case TB_HELLO: return hello(link, request, encoder);
  case TB_TIME: return time_asked(link, request, encoder, came_us);
  case TB_METRICS: tb_requests_pack_metrics(link, encoder); return 0;
  default: return change(link, request, encoder);
  }
}

static void begin_answer(tb_link *link, const tb_frame *request, tb_encoder *encoder, uint8_t flags)
{
  tb_encoder_begin(encoder, &link->tx, 0, flags, request->type, request->seq);
}

void tb_requests_handle(tb_link *link, const tb_frame *request)
{
  tb_encoder encoder;
  uint64_t came_us = link->port->clock_us(link->port->user);
  if (!(request->flags & TB_FLAG_ACKREQ)) {
    link->counts[TB_COUNT_RX_BAD]++;
    return;
  }
  begin_answer(link, request, &encoder, TB_FLAG_RESP);
  int refusal = answered(link, request, &encoder, came_us);
  if (refusal) { /* what was begun is given up */
    uint8_t code = (uint8_t)refusal;
    const char *text = SENTENCES;
    while (--refusal > 0) {
      text += strlen(text) + 1;
    }
    begin_answer(link, request, &encoder, TB_FLAG_RESP | TB_FLAG_ERR);
    tb_encoder_put(&encoder, &code, 1);
    tb_encoder_put(&encoder, (const uint8_t *)text, strlen(text));
  }
  (void)tb_link_sent(link, &encoder); /* no room: dropped and counted, and the host asks again */
}
