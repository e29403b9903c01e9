/* What a fuzzer runs: any bytes as a line, as frames, as a model, as a store, as values.
 *
 * The first byte chooses. With libFuzzer (scripts/fuzz_c.sh) LLVMFuzzerTestOneInput is all there is; with TB_FUZZ_MAIN the
 * program reads inputs from its standard input, each behind a u32 of its length. Copies have exactly the size they need,
 * so that AddressSanitizer sees every byte too many.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tb_bytes.h"
#include "tb_slots.h"
#include "tinybridge.h"

#define SLOT_BYTES 512u
#define SLOT tb_slot_size(SLOT_BYTES)
#define FEATURES 2

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A model that always opens: one leaf. */
static const uint8_t FACTORY[] = {
  84, 66, 77, 49, 72, 0, 0, 0, 1, 0, 1, 2, 1, 0, 4, 0, 2, 0, 2, 0, 36, 0, 0, 0,
  48, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 128, 63,
  1, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 255, 255, 0, 0, 0, 0, 0, 0, 64, 156, 191, 99,
};

typedef struct {
  tb_port port;
  tb_board board;
  tb_sensor sensor;
  tb_stream stream;
  tb_link link;
  tb_update update;
  tb_scratch scratch;
  uint8_t *flash;
  uint64_t now_us;
  uint32_t out; /* bytes sent */
  uint8_t fails; /* the store fails each this many calls; 0: never */
  uint8_t calls;
} machine;

static size_t sent(void *user, const uint8_t *data, size_t n)
{
  machine *m = user;
  for (size_t i = 0; i < n; i++) {
    m->out += data[i];
  }
  return n;
}

static uint64_t now(void *user)
{
  machine *m = user;
  m->now_us += 50000;
  return m->now_us;
}

static int failed(machine *m)
{
  return m->fails && ++m->calls % m->fails == 0;
}

static int slot_erase(void *user, uint8_t slot)
{
  machine *m = user;
  memset(m->flash + slot * SLOT, 0xff, SLOT);
  return failed(m);
}

static int slot_write(void *user, uint8_t slot, uint32_t offset, const uint8_t *data, uint32_t n)
{
  machine *m = user;
  if (offset > SLOT || n > SLOT - offset) {
    abort(); /* the library writes outside of a slot */
  }
  memcpy(m->flash + slot * SLOT + offset, data, n);
  return failed(m);
}

static int slot_read(void *user, uint8_t slot, uint32_t offset, uint8_t *out, uint32_t n)
{
  machine *m = user;
  if (offset > SLOT || n > SLOT - offset) {
    abort();
  }
  memcpy(out, m->flash + slot * SLOT + offset, n);
  return failed(m);
}

static const char *const CHANNELS[FEATURES] = { "x", "y" };

static void machine_begin(machine *m, uint8_t *memory, uint8_t *ram)
{
  m->port = (tb_port){ NULL, sent, now, slot_erase, slot_write, slot_read, NULL, NULL, m };
  m->sensor = (tb_sensor){ TB_FORMAT_I16, 10000, 1.0f, "s", "u", FEATURES, CHANNELS };
  m->board = (tb_board){ 1, 4, 8, 3, SLOT_BYTES, "fuzz", "fw", "power on", &m->sensor, 1 };
  tb_memory parts = { memory, 128, memory + 128, 600, memory + 728, tb_frame_buffer_size(256) };
  tb_update_config config = { &m->port, FACTORY, sizeof FACTORY, SLOT_BYTES, ram, &m->scratch, 64, 8, 3, FEATURES };
  if (tb_link_init(&m->link, &m->port, &m->board, &m->stream, parts) != TB_OK ||
      tb_update_init(&m->update, &config) != TB_OK) {
    abort();
  }
  m->link.handler = tb_update_handle;
  m->link.handler_user = &m->update;
  m->link.running = &m->update.running;
}

static void step(machine *m)
{
  static const int16_t ROWS[2 * FEATURES] = { 1, -2, 3, -4 };
  tb_prediction prediction;
  (void)tb_link_send_rows(&m->link, 0, ROWS, 2, 1, 2);
  (void)tb_link_poll(&m->link);
  (void)tb_update_poll(&m->update);
  memset(m->scratch.features, 0x55, sizeof m->scratch.features);
  tb_model_run(&m->update.model, m->scratch.features, &m->scratch, &prediction);
  if (prediction.class_index >= m->update.model.classes) {
    abort();
  }
}

static void raw_line(machine *m, const uint8_t *data, size_t size)
{
  for (size_t i = 0; i < size; i++) {
    (void)tb_link_push(&m->link, data[i]);
    if (i % 64 == 63) {
      step(m);
    }
  }
  step(m);
}

/* Frames whose CRC is right: flags, type, u16 seq, length, payload. */
static void framed_line(machine *m, const uint8_t *data, size_t size)
{
  uint8_t memory[1500], byte;
  while (size >= 5) {
    tb_ring ring;
    tb_encoder encoder;
    size_t n = data[4] < size - 5 ? data[4] : size - 5;
    tb_ring_init(&ring, memory, sizeof memory);
    tb_encoder_begin(&encoder, &ring, 0, data[0], data[1], tb_get_u16(data + 2));
    tb_encoder_put(&encoder, data + 5, n);
    if (tb_encoder_end(&encoder) == TB_OK) {
      while (tb_ring_get(&ring, &byte)) {
        if (!tb_link_push(&m->link, byte)) {
          step(m);
          (void)tb_link_push(&m->link, byte);
        }
      }
    }
    step(m);
    data += 5 + n;
    size -= 5 + n;
  }
}

static void model(const uint8_t *data, size_t size)
{
  uint8_t *blob = malloc(size ? size : 1);
  tb_model opened;
  tb_scratch scratch;
  tb_prediction prediction;
  memcpy(blob, data, size);
  if (tb_model_open(blob, size, &opened) == TB_OK) {
    size_t values = (size_t)opened.rows * opened.channels;
    if (values <= 65536) {
      int16_t *window = malloc(values * sizeof *window);
      for (size_t i = 0; i < values; i++) {
        window[i] = (int16_t)(i * 40503u);
      }
      (void)tb_model_selftest(&opened, &scratch);
      tb_model_predict(&opened, window, &scratch, &prediction);
      free(window);
      if (prediction.class_index >= opened.classes) {
        abort();
      }
    }
  }
  free(blob);
}

static void values(const uint8_t *data, size_t size)
{
  int32_t edges[TB_EDGES];
  tb_stats stats;
  for (int i = 0; i < TB_EDGES; i++) {
    edges[i] = (i - 7) * (1 << 27);
  }
  if (size < 12) {
    return;
  }
  tb_watch watch = { tb_get_i32(data), tb_get_i32(data + 4), tb_get_u16(data + 8), data[10], edges };
  if (tb_stats_init(&stats, &watch) != TB_OK) {
    return;
  }
  for (size_t i = 12; i + 4 <= size; i += 4) {
    int direction = tb_stats_update(&stats, &watch, tb_get_i32(data + i));
    tb_drift drift;
    tb_stats_report(&stats, &watch, direction, &drift);
    if (drift.variance < 0 || tb_stats_side(&stats, TB_UP) < 0 || tb_stats_side(&stats, TB_DOWN) < 0) {
      abort();
    }
    if (direction) {
      tb_stats_restart(&stats);
    }
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
  if (size < 2) {
    return 0;
  }
  uint8_t kind = data[0] % 5;
  if (kind == 2) {
    model(data + 1, size - 1);
    return 0;
  }
  if (kind == 3) {
    values(data + 1, size - 1);
    return 0;
  }
  machine m;
  uint8_t *memory = malloc(728 + tb_frame_buffer_size(256)), *ram = malloc(SLOT_BYTES);
  memset(&m, 0, sizeof m);
  m.flash = malloc(TB_SLOTS * SLOT);
  memset(m.flash, 0xff, TB_SLOTS * SLOT);
  if (kind == 4) { /* a store of anything */
    memcpy(m.flash, data + 1, size - 1 < TB_SLOTS * SLOT ? size - 1 : TB_SLOTS * SLOT);
  }
  machine_begin(&m, memory, ram);
  if (kind == 0) {
    raw_line(&m, data + 1, size - 1);
  } else if (kind == 1) {
    m.fails = data[1];
    framed_line(&m, data + 2, size - 2);
  } else {
    step(&m);
  }
  free(m.flash);
  free(memory);
  free(ram);
  return 0;
}

#ifdef TB_FUZZ_MAIN
int main(void)
{
  static uint8_t input[1 << 20];
  uint8_t head[4];
  unsigned long inputs = 0;
  while (fread(head, 1, sizeof head, stdin) == sizeof head) {
    uint32_t n = tb_get_u32(head);
    if (n > sizeof input || fread(input, 1, n, stdin) != n) {
      return 2;
    }
    (void)LLVMFuzzerTestOneInput(input, n);
    inputs++;
  }
  printf("%lu inputs\n", inputs);
  return 0;
}
#endif
