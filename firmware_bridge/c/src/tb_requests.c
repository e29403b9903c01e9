/* The requests a host makes, and their answers. Models are for the handler (tb_update.h). */
#include <string.h>

#include "tb_bytes.h"
#include "tb_link_internal.h"
#include "tb_pack.h"

static const char *sentence(uint8_t code)
{
  switch (code) {
  case TB_REFUSED_TYPE: return "this type is not known here";
  case TB_REFUSED_PAYLOAD: return "the payload has another length or a value out of range";
  case TB_REFUSED_VERSION: return "this board speaks version 1";
  case TB_REFUSED_STATE: return "not now: what this needs is not there";
  case TB_REFUSED_SIZE: return "larger than a slot";
  case TB_REFUSED_HASH: return "what was written has another SHA-256";
  case TB_REFUSED_MODEL: return "format, ABI or contents are refused, or it is for other sensors";
  case TB_REFUSED_STORE: return "the slot could not be erased, written or read";
  case TB_REFUSED_SELFTEST: return "the model's own vectors came out otherwise";
  default: return "busy; ask again";
  }
}

static void answer(tb_link *link, const tb_frame *request, uint8_t flags, const uint8_t *payload, size_t n)
{
  tb_encoder encoder;
  tb_encoder_begin(&encoder, &link->tx, 0, (uint8_t)(TB_FLAG_RESP | flags), request->type, request->seq);
  tb_encoder_put(&encoder, payload, n);
  if (flags & TB_FLAG_ERR) {
    const char *text = sentence(payload[0]);
    tb_encoder_put(&encoder, (const uint8_t *)text, strlen(text));
  }
  (void)tb_link_sent(link, &encoder); /* no room: dropped and counted, and the host asks again */
}

static void refuse(tb_link *link, const tb_frame *request, tb_refusal why)
{
  uint8_t code = (uint8_t)why;
  answer(link, request, TB_FLAG_ERR, &code, 1);
}

static void pack_sensor(tb_encoder *encoder, const tb_sensor *sensor, uint8_t stream)
{
  tb_pack_map(encoder, 7);
  tb_pack_pair(encoder, "stream", stream);
  tb_pack_str(encoder, "name");
  tb_pack_str(encoder, sensor->name);
  tb_pack_pair(encoder, "format", sensor->format);
  tb_pack_str(encoder, "channels");
  tb_pack_array(encoder, sensor->channel_count);
  for (uint8_t i = 0; i < sensor->channel_count; i++) {
    tb_pack_str(encoder, sensor->channels[i]);
  }
  tb_pack_pair(encoder, "rate_mhz", sensor->rate_mhz);
  tb_pack_str(encoder, "unit");
  tb_pack_str(encoder, sensor->unit);
  tb_pack_str(encoder, "scale");
  tb_pack_f32(encoder, sensor->scale);
}

static void pack_running(tb_encoder *encoder, const tb_running *running)
{
  tb_pack_str(encoder, "model");
  tb_pack_map(encoder, 4);
  tb_pack_str(encoder, "sha");
  tb_pack_hex(encoder, running->sha, 32);
  tb_pack_pair(encoder, "slot", running->slot);
  tb_pack_pair(encoder, "state", running->state);
  tb_pack_pair(encoder, "counter", running->counter);
}

static void pack_caps(tb_link *link, tb_encoder *encoder)
{
  const tb_board *board = link->board;
  uint8_t models = board->slot_bytes > 0;
  tb_pack_map(encoder, link->running ? 14 : 13);
  tb_pack_str(encoder, "uid");
  tb_pack_str(encoder, board->uid);
  tb_pack_pair(encoder, "boot", board->boot);
  tb_pack_str(encoder, "fw");
  tb_pack_str(encoder, board->fw);
  tb_pack_pair(encoder, "frame_max", link->decoder.size - TB_FRAME_HEAD - TB_FRAME_CRC);
  tb_pack_pair(encoder, "window", board->window);
  tb_pack_pair(encoder, "slots", models ? TB_SLOTS : 0);
  tb_pack_pair(encoder, "slot_bytes", board->slot_bytes);
  tb_pack_pair(encoder, "align", board->align);
  tb_pack_pair(encoder, "abi", 1);
  tb_pack_str(encoder, "formats");
  tb_pack_array(encoder, models);
  if (models) {
    tb_pack_uint(encoder, 1);
  }
  tb_pack_str(encoder, "reset");
  tb_pack_str(encoder, board->reset);
  tb_pack_pair(encoder, "trial_s", board->trial_s);
  tb_pack_str(encoder, "sensors");
  tb_pack_array(encoder, board->sensor_count);
  for (uint8_t i = 0; i < board->sensor_count; i++) {
    pack_sensor(encoder, &board->sensors[i], i);
  }
  if (link->running) {
    pack_running(encoder, link->running);
  }
}

static void hello(tb_link *link, const tb_frame *request)
{
  const uint8_t *p = request->payload;
  if (request->size != 8 || p[0] > p[1] || tb_get_u16(p + 2) < TB_PAYLOAD_MIN) {
    refuse(link, request, TB_REFUSED_PAYLOAD);
    return;
  }
  if (p[0] > TB_PROTOCOL_VERSION || p[1] < TB_PROTOCOL_VERSION) {
    refuse(link, request, TB_REFUSED_VERSION);
    return;
  }
  uint16_t host_max = tb_get_u16(p + 2);
  link->host_max = host_max < TB_PAYLOAD_MAX ? host_max : TB_PAYLOAD_MAX;
  if (!link->host_known || link->session != tb_get_u32(p + 4)) { /* another host, or the same one begun anew */
    link->session = tb_get_u32(p + 4);
    link->host_known = true;
    link->kept = false;
    for (uint8_t i = 0; i < link->board->sensor_count; i++) {
      link->streams[i].on = false;
    }
    link->drift_tries = 0;
    link->drift_due_us = 0;
  }
  tb_encoder encoder;
  tb_encoder_begin(&encoder, &link->tx, 0, TB_FLAG_RESP, TB_HELLO, request->seq);
  pack_caps(link, &encoder);
  (void)tb_link_sent(link, &encoder);
}

static void time_asked(tb_link *link, const tb_frame *request, uint64_t came_us)
{
  uint8_t out[24];
  if (request->size != 8) {
    refuse(link, request, TB_REFUSED_PAYLOAD);
    return;
  }
  memcpy(out, request->payload, 8);
  tb_put_u64(tb_put_u64(out + 8, came_us), link->port->clock_us(link->port->user));
  answer(link, request, 0, out, sizeof out);
}

static tb_status stream_asked(tb_link *link, const tb_frame *request, uint8_t *out, uint8_t *out_size)
{
  const uint8_t *p = request->payload;
  uint8_t count = link->board->sensor_count;
  if (request->size != 6 || p[1] > 1 || (p[0] >= count && (p[0] != TB_ALL_STREAMS || count == 0))) {
    return TB_ERR_ARG;
  }
  uint32_t left = TB_CREDIT_ENDLESS; /* for all: the least */
  uint32_t index = 0;
  uint16_t seq = 0;
  for (uint8_t i = 0; i < count; i++) {
    tb_stream *stream = &link->streams[i];
    if (p[0] != i && p[0] != TB_ALL_STREAMS) {
      continue;
    }
    if (p[1]) {
      if (!stream->on) {
        stream->seq = 0;
        stream->index = 0;
      }
      stream->credit = tb_get_u32(p + 2);
    }
    stream->on = p[1];
    left = stream->credit < left ? stream->credit : left;
    if (p[0] == i) {
      seq = stream->seq;
      index = stream->index;
    }
  }
  out[0] = p[0];
  out[1] = p[1];
  tb_put_u32(tb_put_u16(tb_put_u32(out + 2, left), seq), index);
  *out_size = 12;
  return TB_OK;
}

void tb_requests_pack_metrics(tb_link *link, tb_encoder *encoder)
{
  const tb_counters *counters = &link->counters;
  uint32_t credit = 0;
  for (uint8_t i = 0; i < link->board->sensor_count; i++) {
    const tb_stream *stream = &link->streams[i];
    uint32_t more = stream->on ? stream->credit : 0;
    credit = more > TB_CREDIT_ENDLESS - credit ? TB_CREDIT_ENDLESS : credit + more;
  }
  tb_pack_map(encoder, 13);
  tb_pack_pair(encoder, "up_ms", link->port->clock_us(link->port->user) / 1000);
  tb_pack_pair(encoder, "rx", counters->rx);
  tb_pack_pair(encoder, "rx_bad", counters->rx_bad);
  tb_pack_pair(encoder, "rx_drop", counters->rx_drop);
  tb_pack_pair(encoder, "tx", counters->tx);
  tb_pack_pair(encoder, "tx_drop", counters->tx_drop);
  tb_pack_pair(encoder, "rows", counters->rows);
  tb_pack_pair(encoder, "rows_drop", counters->rows_drop);
  tb_pack_pair(encoder, "infer", counters->infer);
  tb_pack_pair(encoder, "infer_us", counters->infer_us);
  tb_pack_pair(encoder, "drift", counters->drift);
  tb_pack_pair(encoder, "drift_lost", counters->drift_lost);
  tb_pack_pair(encoder, "credit", credit);
}

static void metrics_asked(tb_link *link, const tb_frame *request)
{
  tb_encoder encoder;
  tb_encoder_begin(&encoder, &link->tx, 0, TB_FLAG_RESP, TB_METRICS, request->seq);
  tb_requests_pack_metrics(link, &encoder);
  (void)tb_link_sent(link, &encoder);
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

/* A request that changes something is done once: its answer is kept and repeated. */
static void change(tb_link *link, const tb_frame *request)
{
  bool chunk = request->type == TB_MODEL_CHUNK;
  if (link->kept && !chunk && link->kept_type == request->type && link->kept_seq == request->seq) {
    answer(link, request, link->kept_flags, link->kept_answer, link->kept_size);
    return;
  }
  uint8_t out[TB_ANSWER_MAX], size = 0, flags = 0;
  tb_status status = changed(link, request, out, &size);
  if (status != TB_OK) {
    flags = TB_FLAG_ERR;
    out[0] = (uint8_t)(status == TB_ERR_FRAME ? TB_REFUSED_TYPE : tb_refusal_of(status));
    size = 1;
  }
  if (!chunk) {
    link->kept = true;
    link->kept_type = request->type;
    link->kept_seq = request->seq;
    link->kept_flags = flags;
    link->kept_size = size;
    memcpy(link->kept_answer, out, size);
  }
  answer(link, request, flags, out, size);
}

void tb_requests_handle(tb_link *link, const tb_frame *request)
{
  uint64_t came_us = link->port->clock_us(link->port->user);
  if (!(request->flags & TB_FLAG_ACKREQ)) {
    link->counters.rx_bad++;
  } else if (request->version != TB_PROTOCOL_VERSION) {
    refuse(link, request, TB_REFUSED_VERSION);
  } else if (request->type == TB_HELLO) {
    hello(link, request);
  } else if (request->type == TB_TIME) {
    time_asked(link, request, came_us);
  } else if (request->type == TB_METRICS) {
    metrics_asked(link, request);
  } else {
    change(link, request);
  }
}
