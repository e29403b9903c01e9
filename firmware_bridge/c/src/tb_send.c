/* What the board sends unasked: rows, predictions, drift reports, metrics and text. */
#include <stddef.h>
#include <string.h>

#include "tb_bytes.h"
#include "tb_link_internal.h"

/* What is copied as a whole is laid out as on the line. */
#define TB_RESULT_BYTES 20u
typedef char drift_is_laid_out[sizeof(tb_drift) == TB_DRIFT_BYTES ? 1 : -1];
typedef char result_is_laid_out[offsetof(tb_result, took_us) == TB_RESULT_BYTES - 4 ? 1 : -1];

/* An answer must find room however much is streamed: the largest, CAPS, apart. */
#define RESERVED tb_frame_size_max(128u)

/* Only what was sent is numbered. */
static tb_status numbered(tb_link *link, tb_encoder *encoder, uint16_t *seq)
{
  tb_status status = tb_link_sent(link, encoder);
  if (status == TB_OK) {
    (*seq)++;
  }
  return status;
}

void tb_link_unasked(tb_link *link, tb_encoder *encoder, uint8_t flags, uint8_t type, uint16_t seq)
{
  tb_encoder_begin(encoder, &link->tx, RESERVED, flags, type, seq);
}

static uint32_t row_bytes(const tb_sensor *sensor)
{
  return sensor->channel_count * 2u * sensor->format; /* i16 is format 1, f32 is 2 */
}

uint16_t tb_link_rows_max(const tb_link *link, uint8_t stream)
{
  if (stream >= link->board->sensor_count) {
    return 0;
  }
  uint32_t each = row_bytes(&link->board->sensors[stream]);
  return (uint16_t)(each ? (link->host_max - TB_SENSOR_HEAD) / each : 0);
}

/* Little-endian machines have the values in memory as the line wants them. */
static void put_values(tb_encoder *encoder, const void *values, uint32_t bytes, uint8_t each)
{
#if TB_LITTLE_ENDIAN
  (void)each;
  tb_encoder_put(encoder, values, bytes);
#else
  const uint8_t *p = values;
  for (uint32_t i = 0; i < bytes; i++) {
    tb_encoder_put(encoder, p + i - i % each + (each - 1 - i % each), 1);
  }
#endif
}

static tb_status send_rows(tb_link *link, uint8_t number, const void *values, uint16_t rows, uint64_t t0_us,
                           uint32_t dt_us)
{
  const tb_sensor *sensor = &link->board->sensors[number];
  tb_stream *stream = &link->streams[number];
  if (stream->credit == 0) {
    return TB_ERR_OFF;
  }
  uint8_t head[TB_SENSOR_HEAD], *p = head;
  *p++ = number;
  *p++ = (uint8_t)sensor->format;
  p = tb_put_u16(p, rows);
  p = tb_put_u32(p, stream->index);
  p = tb_put_u64(p, t0_us);
  tb_put_u32(p, dt_us);
  tb_encoder encoder;
  tb_link_unasked(link, &encoder, 0, TB_SENSOR, stream->seq);
  tb_encoder_put(&encoder, head, sizeof head);
  put_values(&encoder, values, rows * row_bytes(sensor), (uint8_t)(2 * sensor->format));
  tb_status status = numbered(link, &encoder, &stream->seq);
  if (status == TB_OK && stream->credit != TB_CREDIT_ENDLESS) {
    stream->credit--;
  }
  return status;
}

tb_status tb_link_send_rows(tb_link *link, uint8_t stream, const void *values, uint16_t rows, uint64_t t0_us,
                            uint32_t dt_us)
{
  if (stream >= link->board->sensor_count || !values) {
    return TB_ERR_ARG;
  }
  if (rows == 0 || rows * row_bytes(&link->board->sensors[stream]) + TB_SENSOR_HEAD > link->host_max) {
    return TB_ERR_SIZE;
  }
  link->counts[TB_COUNT_ROWS] += rows;
  if (!link->streams[stream].on) {
    return TB_ERR_OFF;
  }
  tb_status status = send_rows(link, stream, values, rows, t0_us, dt_us);
  if (status != TB_OK) {
    link->counts[TB_COUNT_ROWS_DROP] += rows;
  }
  link->streams[stream].index += rows;
  return status;
}

tb_status tb_link_send_result(tb_link *link, const tb_result *result)
{
  link->counts[TB_COUNT_INFER]++;
  link->infer_us += result->took_us;
  if (!link->host_known) {
    return TB_ERR_OFF;
  }
  tb_encoder encoder;
  tb_link_unasked(link, &encoder, 0, TB_RESULT, link->result_seq);
#if TB_LITTLE_ENDIAN
  tb_encoder_put(&encoder, (const uint8_t *)result, TB_RESULT_BYTES);
#else
  uint8_t out[TB_RESULT_BYTES], *p = out;
  p = tb_put_u64(p, result->t_us);
  p = tb_put_u32(p, result->model);
  p = tb_put_u16(p, result->class_index);
  p = tb_put_u16(p, result->score);
  tb_put_u32(p, result->took_us);
  tb_encoder_put(&encoder, out, sizeof out);
#endif
  return numbered(link, &encoder, &link->result_seq);
}

tb_status tb_link_send_metrics(tb_link *link)
{
  if (!link->host_known) {
    return TB_ERR_OFF;
  }
  tb_encoder encoder;
  tb_link_unasked(link, &encoder, 0, TB_METRICS, link->metrics_seq);
  tb_requests_pack_metrics(link, &encoder);
  return numbered(link, &encoder, &link->metrics_seq);
}

tb_status tb_link_log(tb_link *link, uint8_t level, const char *text)
{
  size_t most = link->host_max - 9u, n = 0;
  while (n < most && text[n]) {
    n++;
  }
  while (n > 0 && ((uint8_t)text[n] & 0xc0) == 0x80) { /* not in the middle of a character */
    n--;
  }
  uint8_t head[9];
  head[0] = level;
  tb_put_u64(head + 1, link->port->clock_us(link->port->user));
  tb_encoder encoder;
  tb_link_unasked(link, &encoder, 0, TB_LOG, link->log_seq);
  tb_encoder_put(&encoder, head, sizeof head);
  tb_encoder_put(&encoder, (const uint8_t *)text, n);
  return numbered(link, &encoder, &link->log_seq);
}

tb_status tb_link_send_drift(tb_link *link, const tb_drift *drift)
{
  link->counts[TB_COUNT_DRIFT]++;
  if (link->drift_waiting == TB_DRIFT_PENDING) {
    link->counts[TB_COUNT_DRIFT_LOST]++;
    return TB_ERR_ROOM;
  }
  uint8_t *p = link->drift_queue[link->drift_waiting++];
#if TB_LITTLE_ENDIAN
  memcpy(p, drift, TB_DRIFT_BYTES);
#else
  p = tb_put_u64(p, drift->t_us);
  *p++ = drift->stream;
  *p++ = drift->channel;
  *p++ = drift->direction;
  *p++ = 0;
  p = tb_put_u32(p, (uint32_t)drift->statistic);
  p = tb_put_u32(p, (uint32_t)drift->threshold);
  p = tb_put_u32(p, (uint32_t)drift->mean);
  p = tb_put_u32(p, (uint32_t)drift->variance);
  p = tb_put_u32(p, drift->count);
  for (unsigned i = 0; i < 16; i++) {
    p = tb_put_u16(p, drift->histogram[i]);
  }
#endif
  return TB_OK;
}

static void next_drift(tb_link *link, bool lost)
{
  link->counts[TB_COUNT_DRIFT_LOST] += lost;
  link->drift_waiting--;
  memmove(link->drift_queue[0], link->drift_queue[1], link->drift_waiting * sizeof link->drift_queue[0]);
  link->drift_seq++;
  link->drift_tries = 0;
  link->drift_due_us = 0;
}

void tb_drift_answered(tb_link *link, uint16_t seq, bool refused)
{
  if (link->drift_tries > 0 && seq == link->drift_seq) {
    next_drift(link, refused);
  }
}

void tb_drift_poll(tb_link *link)
{
  uint64_t now = link->port->clock_us(link->port->user);
  if (link->drift_waiting == 0 || !link->host_known || now < link->drift_due_us) {
    return;
  }
  if (link->drift_tries++ == TB_DRIFT_TRIES) {
    next_drift(link, true);
    return;
  }
  link->drift_due_us = now + TB_DRIFT_RETRY_US;
  tb_encoder encoder;
  tb_link_unasked(link, &encoder, TB_FLAG_ACKREQ, TB_DRIFT, link->drift_seq);
  tb_encoder_put(&encoder, link->drift_queue[0], TB_DRIFT_BYTES);
  (void)tb_link_sent(link, &encoder); /* no room counts as a try: the loop stays bounded */
}
