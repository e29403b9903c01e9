/* The C library behind plain functions, for ctypes: a board in this process, with a clock that is told the time and a flash
 * whose power can be cut after any byte. */
#include <stdlib.h>
#include <string.h>

#include "tb_crc.h"
#include "tb_sha256.h"
#include "tb_slots.h"
#include "tinybridge.h"

#define OUT_MAX 262144u

typedef struct {
  tb_port port;
  tb_board board;
  tb_sensor sensors[2];
  tb_stream streams[2];
  tb_link link;
  tb_update update;
  tb_scratch scratch;
  uint8_t *flash; /* both slots, the caller's */
  uint32_t slot_size, align;
  uint64_t now_us;
  long budget;     /* bytes that may still change; -1: no end */
  long changed;    /* bytes that changed so far */
  bool dead, reset_asked, line_stuck;
  uint8_t out[OUT_MAX];
  uint32_t out_n;
  uint8_t rx[4096], tx[8192], frame[tb_frame_buffer_size(TB_PAYLOAD_MAX)], *ram;
} sim;

static size_t sim_write(void *user, const uint8_t *data, size_t n)
{
  sim *s = user;
  if (s->line_stuck) {
    return 0;
  }
  for (size_t i = 0; i < n && s->out_n < OUT_MAX; i++) {
    s->out[s->out_n++] = data[i];
  }
  return n;
}

static uint64_t sim_now(void *user)
{
  return ((sim *)user)->now_us;
}

/* One byte of flash changes, or the power goes while it does: some of its bits have, others have not. */
static bool change(sim *s, uint8_t *at, uint8_t value)
{
  if (s->dead) {
    return false;
  }
  if (s->budget == 0) {
    *at = (uint8_t)((*at & 0xf0) | (value & 0x0f));
    s->dead = true;
    return false;
  }
  s->budget -= s->budget > 0;
  s->changed++;
  *at = value;
  return true;
}

static int sim_erase(void *user, uint8_t slot)
{
  sim *s = user;
  for (uint32_t i = 0; i < s->slot_size; i++) {
    if (!change(s, s->flash + slot * s->slot_size + i, 0xff)) {
      return -1;
    }
  }
  return 0;
}

static int sim_slot_write(void *user, uint8_t slot, uint32_t offset, const uint8_t *data, uint32_t n)
{
  sim *s = user;
  if (offset % s->align || n % s->align || offset + n > s->slot_size) {
    return -1;
  }
  for (uint32_t i = 0; i < n; i++) { /* flash can only clear bits */
    uint8_t *at = s->flash + slot * s->slot_size + offset + i;
    if (!change(s, at, *at & data[i])) {
      return -1;
    }
  }
  return 0;
}

static int sim_read(void *user, uint8_t slot, uint32_t offset, uint8_t *out, uint32_t n)
{
  sim *s = user;
  if (s->dead || offset + n > s->slot_size) {
    return -1;
  }
  memcpy(out, s->flash + slot * s->slot_size + offset, n);
  return 0;
}

static const uint8_t *sim_map(void *user, uint8_t slot)
{
  sim *s = user;
  return s->flash + slot * s->slot_size;
}

static void sim_reset(void *user)
{
  ((sim *)user)->reset_asked = true;
}

static const char *const CHANNELS[] = { "x", "y" };

/* A board with two channels on stream 0 (i16) and one on stream 1 (f32). NULL: the library refused. */
sim *sim_new(uint8_t *flash, uint32_t slot_bytes, uint32_t align, uint32_t trial_s, uint32_t frame_max, bool mapped,
             const uint8_t *factory, uint32_t factory_size, long budget, uint32_t boot, uint32_t *out_status)
{
  sim *s = calloc(1, sizeof *s);
  s->flash = flash;
  s->slot_size = tb_slot_size(slot_bytes);
  s->align = align;
  s->budget = budget;
  s->ram = malloc(slot_bytes);
  s->now_us = 1;
  s->port = (tb_port){ NULL, sim_write, sim_now, sim_erase, sim_slot_write, sim_read, mapped ? sim_map : NULL, sim_reset, s };
  s->sensors[0] = (tb_sensor){ TB_FORMAT_I16, 10000, 0.5f, "pair", "m/s2", 2, CHANNELS };
  s->sensors[1] = (tb_sensor){ TB_FORMAT_F32, 1000, 1.0f, "one", "Pa", 1, CHANNELS };
  s->board = (tb_board){ boot, 4, align, trial_s, slot_bytes, "host-board", "test 1", "power on", s->sensors, 2 };
  tb_memory memory = { s->rx, sizeof s->rx, s->tx, sizeof s->tx, s->frame, tb_frame_buffer_size(frame_max) };
  tb_update_config config = { &s->port, factory, factory_size, slot_bytes, mapped ? NULL : s->ram, &s->scratch, 4096,
                              (uint16_t)align, (uint16_t)trial_s, 2 };
  tb_status status = tb_link_init(&s->link, &s->port, &s->board, s->streams, memory);
  if (status == TB_OK) {
    status = tb_update_init(&s->update, &config);
  }
  s->link.handler = tb_update_handle;
  s->link.handler_user = &s->update;
  s->link.running = &s->update.running;
  *out_status = (uint32_t)status;
  return s;
}

void sim_free(sim *s)
{
  free(s->ram);
  free(s);
}

void sim_clock(sim *s, uint64_t now_us)
{
  s->now_us = now_us;
}

void sim_stick(sim *s, bool stuck)
{
  s->line_stuck = stuck;
}

static uint32_t taken(sim *s, uint8_t *out)
{
  uint32_t n = s->out_n;
  memcpy(out, s->out, n);
  s->out_n = 0;
  return n;
}

/* Hand over bytes and poll; returns how many came out, into a buffer of 262144. */
uint32_t sim_feed(sim *s, const uint8_t *data, uint32_t n, uint8_t *out)
{
  for (uint32_t i = 0; i < n; i++) {
    if (!tb_link_push(&s->link, data[i])) {
      (void)tb_link_poll(&s->link);
      (void)tb_link_push(&s->link, data[i]);
    }
  }
  for (int i = 0; i < 8; i++) {
    (void)tb_link_poll(&s->link);
  }
  (void)tb_update_poll(&s->update);
  return taken(s, out);
}

/* Hand over bytes without polling, as an interrupt would; returns how many found room. */
uint32_t sim_push(sim *s, const uint8_t *data, uint32_t n)
{
  uint32_t taken_n = 0;
  for (uint32_t i = 0; i < n; i++) {
    taken_n += tb_link_push(&s->link, data[i]);
  }
  return taken_n;
}

int sim_rows(sim *s, uint8_t stream, const void *values, uint16_t rows, uint64_t t0_us, uint32_t dt_us)
{
  return tb_link_send_rows(&s->link, stream, values, rows, t0_us, dt_us);
}

int sim_result(sim *s, uint64_t t_us, uint32_t model, uint16_t class_index, uint16_t score, uint32_t took_us)
{
  tb_result result = { t_us, model, class_index, score, took_us };
  return tb_link_send_result(&s->link, &result);
}

int sim_drift(sim *s, uint64_t t_us, uint8_t channel, uint8_t direction, int32_t statistic, uint16_t bin)
{
  tb_drift drift = { t_us, 0, channel, direction, 0, statistic, 2, -3, 4, 5, { bin } };
  return tb_link_send_drift(&s->link, &drift);
}

int sim_metrics(sim *s)
{
  return tb_link_send_metrics(&s->link);
}

int sim_log(sim *s, uint8_t level, const char *text)
{
  return tb_link_log(&s->link, level, text);
}

bool sim_reset_asked(const sim *s)
{
  return s->reset_asked;
}

bool sim_dead(const sim *s)
{
  return s->dead;
}

long sim_changed(const sim *s)
{
  return s->changed;
}

void sim_running(const sim *s, uint8_t *out_sha, uint32_t *out_slot, uint32_t *out_state, uint32_t *out_counter)
{
  memcpy(out_sha, s->update.running.sha, 32);
  *out_slot = s->update.running.slot;
  *out_state = s->update.running.state;
  *out_counter = s->update.running.counter;
}

/* The model that runs, on quantised features. */
void sim_run(sim *s, const int16_t *features, uint16_t *out_class, uint16_t *out_score)
{
  tb_prediction prediction;
  tb_model_run(&s->update.model, features, &s->scratch, &prediction);
  *out_class = prediction.class_index;
  *out_score = prediction.score;
}

/* --- a codec alone --- */

typedef struct {
  tb_decoder decoder;
  uint8_t buffer[tb_frame_buffer_size(TB_PAYLOAD_MAX)];
} reader;

reader *reader_new(uint32_t payload_max)
{
  reader *r = calloc(1, sizeof *r);
  if (tb_decoder_init(&r->decoder, r->buffer, tb_frame_buffer_size(payload_max)) != TB_OK) {
    free(r);
    return NULL;
  }
  return r;
}

void reader_free(reader *r)
{
  free(r);
}

/* Frames one after another into `out`: version << 4 | flags, type, seq, u16 size, payload. Returns the bytes written. */
uint32_t reader_feed(reader *r, const uint8_t *data, uint32_t n, uint8_t *out, uint32_t *out_bad)
{
  uint8_t *p = out;
  for (uint32_t i = 0; i < n; i++) {
    tb_frame frame;
    int got = tb_decoder_byte(&r->decoder, data[i], &frame);
    if (got > 0) {
      *p++ = (uint8_t)(frame.version << 4 | frame.flags);
      *p++ = frame.type;
      memcpy(p, &frame.seq, 2);
      memcpy(p + 2, &frame.size, 2);
      memcpy(p + 4, frame.payload, frame.size);
      p += 4 + frame.size;
    }
    *out_bad += got < 0;
  }
  return (uint32_t)(p - out);
}

/* A frame through a ring of `ring_size` bytes whose write place is `start`. Returns its bytes, or -2: no room. */
int frame_encode(uint8_t flags, uint8_t type, uint16_t seq, const uint8_t *payload, uint32_t n, uint32_t ring_size,
                 uint32_t start, uint32_t reserve, uint8_t *out)
{
  uint8_t *memory = malloc(ring_size), byte;
  tb_ring ring;
  tb_encoder encoder;
  int written = 0;
  tb_ring_init(&ring, memory, ring_size);
  ring.head = ring.tail = start;
  tb_encoder_begin(&encoder, &ring, reserve, flags, type, seq);
  tb_encoder_put(&encoder, payload, n);
  tb_status status = tb_encoder_end(&encoder);
  while (status == TB_OK && tb_ring_get(&ring, &byte)) {
    out[written++] = byte;
  }
  if (status != TB_OK && tb_ring_used(&ring) != 0) {
    written = -100; /* a frame that did not fit left something behind */
  }
  free(memory);
  return status == TB_OK ? written : written == -100 ? -100 : (int)status;
}

uint32_t frame_size_max(uint32_t n)
{
  return tb_frame_size_max(n);
}

/* --- models alone --- */

/* Open a blob and predict from windows. Returns the status; scores are classes x windows. */
int model_predict(const uint8_t *blob, uint32_t size, const int16_t *windows, uint32_t count, int16_t *out_features,
                  uint16_t *out_classes, uint16_t *out_scores)
{
  tb_model model;
  tb_scratch scratch;
  tb_prediction prediction;
  tb_status status = tb_model_open(blob, size, &model);
  if (status == TB_OK) {
    status = tb_model_selftest(&model, &scratch);
  }
  for (uint32_t i = 0; i < count && status == TB_OK; i++) {
    tb_model_features(&model, windows + (size_t)i * model.rows * model.channels, out_features + (size_t)i * model.feature_count);
    tb_model_run(&model, out_features + (size_t)i * model.feature_count, &scratch, &prediction);
    out_classes[i] = prediction.class_index;
    memcpy(out_scores + (size_t)i * model.classes, prediction.scores, model.classes * sizeof *out_scores);
  }
  return status;
}

/* --- statistics alone --- */

typedef struct {
  tb_stats stats;
  tb_watch watch;
  int32_t edges[TB_EDGES];
} watched;

uint32_t stats_size(void)
{
  return sizeof(tb_stats);
}

watched *stats_new(int32_t delta, int32_t threshold, uint16_t warm_up, uint8_t shift, const int32_t *edges)
{
  watched *w = calloc(1, sizeof *w);
  memcpy(w->edges, edges, sizeof w->edges);
  w->watch = (tb_watch){ delta, threshold, warm_up, shift, w->edges };
  if (tb_stats_init(&w->stats, &w->watch) != TB_OK) {
    free(w);
    return NULL;
  }
  return w;
}

void stats_free(watched *w)
{
  free(w);
}

/* One value; restarts after an alarm, as a board does. Reports what stood before that. */
int stats_update(watched *w, int32_t x, int32_t out[4], uint32_t *out_count, uint16_t *out_histogram)
{
  int direction = tb_stats_update(&w->stats, &w->watch, x);
  tb_drift drift;
  tb_stats_report(&w->stats, &w->watch, direction, &drift);
  out[0] = drift.mean;
  out[1] = drift.variance;
  out[2] = tb_stats_side(&w->stats, TB_UP);
  out[3] = tb_stats_side(&w->stats, TB_DOWN);
  *out_count = drift.count;
  memcpy(out_histogram, drift.histogram, sizeof drift.histogram);
  if (direction) {
    tb_stats_restart(&w->stats);
  }
  return direction;
}

/* --- windows alone --- */

/* Push `count` rows; out_at gets the number of the row that filled each window, out_first its first value. */
int window_run(const int16_t *rows, uint32_t count, uint16_t size, uint16_t hop, uint8_t channels, uint32_t capacity,
               uint32_t *out_at, int16_t *out_windows)
{
  int16_t *memory = malloc(capacity * sizeof *memory);
  tb_window window;
  int status = tb_window_init(&window, memory, capacity, size, hop, channels), windows = 0;
  for (uint32_t i = 0; i < count && status == TB_OK; i++) {
    if (tb_window_push(&window, rows + (size_t)i * channels)) {
      out_at[windows] = i;
      memcpy(out_windows + (size_t)windows * size * channels, memory, (size_t)size * channels * sizeof *memory);
      windows++;
    }
  }
  free(memory);
  return status == TB_OK ? windows : status;
}

/* A SHA-256 taken in parts. */
void sha256_of(const uint8_t *data, uint32_t n, uint32_t part, uint8_t *out)
{
  tb_sha256 sha;
  tb_sha256_init(&sha);
  for (uint32_t at = 0; at < n; at += part) {
    tb_sha256_update(&sha, data + at, n - at < part ? n - at : part);
  }
  tb_sha256_final(&sha, out);
}

uint32_t crc32_of(const uint8_t *data, uint32_t n, uint32_t part)
{
  uint32_t crc = 0;
  for (uint32_t at = 0; at < n; at += part) {
    crc = tb_crc32(crc, data + at, n - at < part ? n - at : part);
  }
  return crc;
}
