/* A smart watch on an MPS2 board: plays recorded rows as its sensor, predicts, watches for drift, and speaks the line. */
#include <string.h>

#include "clock.h"
#include "options.h"
#include "semihost.h"
#include "store.h"
#include "tables.h"
#include "tb_crc.h"
#include "tinybridge.h"
#include "uart.h"

#define ROWS_MAX 80
#define WINDOW_VALUES_MAX (512 * CHANNELS)
#define RESTART_MAGIC 0x52535421u
#define AIRCR (*(volatile uint32_t *)0xe000ed0cu)

static const char *const CHANNEL_NAMES[CHANNELS] = { "ax", "ay", "az", "gx", "gy", "gz" };
static uint32_t restart_asked __attribute__((section(".noinit")));

static options given;
static tb_link link;
static tb_stream stream;
static tb_update update;
static tb_scratch scratch;
static tb_window window;
static tb_stats stats[CHANNELS];
static tb_sensor sensor;
static tb_board board;

static uint8_t rx_bytes[2048], tx_bytes[4096], frame_bytes[tb_frame_buffer_size(TB_PAYLOAD_MAX)];
static uint8_t model_bytes[STORE_MODEL_MAX];
static int16_t window_values[WINDOW_VALUES_MAX];

/* Rows that wait to fill a frame. */
static int16_t pending[ROWS_MAX][CHANNELS];
static uint16_t pending_rows;
static uint64_t pending_t0_us;

static void restart(void *unused)
{
  (void)unused;
  uart_drain();
  restart_asked = RESTART_MAGIC;
  AIRCR = 0x05fa0004u;
  for (;;) {
  }
}

static const tb_port PORT = {
  .write = uart_write,
  .clock_us = clock_us,
  .slot_erase = store_erase,
  .slot_write = store_write,
  .slot_read = store_read,
  .reset = restart,
};

/* The row at a place of the recording, which begins again at its end; later ones as if the watch were worn differently:
 * turned by 90 degrees about z, and 2 m/s2 more on the accelerometer. */
static void read_sensor(uint32_t number, int16_t *out_row)
{
  memcpy(out_row, TABLE_VALUES[number % TABLE_ROWS], CHANNELS * sizeof *out_row);
  if (number < given.drift_at) {
    return;
  }
  for (unsigned x = 0; x < CHANNELS; x += 3) {
    int16_t before = out_row[x];
    out_row[x] = (int16_t)-out_row[x + 1];
    out_row[x + 1] = before;
  }
  for (unsigned i = 0; i < 3; i++) {
    out_row[i] = (int16_t)(out_row[i] + 2 * COUNTS_PER_UNIT);
  }
}

static void watch(const int16_t *row, uint64_t t_us)
{
  for (uint8_t i = 0; i < CHANNELS; i++) {
    int direction = tb_stats_update(&stats[i], &WATCHES[i], (int32_t)((int64_t)row[i] * TB_ONE / COUNTS_PER_UNIT));
    if (direction) {
      tb_drift drift = { .t_us = t_us, .stream = 0, .channel = i };
      tb_stats_report(&stats[i], &WATCHES[i], direction, &drift);
      (void)tb_link_send_drift(&link, &drift);
      tb_stats_restart(&stats[i]);
    }
  }
}

static void begin_window(void)
{
  (void)tb_window_init(&window, window_values, WINDOW_VALUES_MAX, update.model.rows, update.model.hop, CHANNELS);
}

static void predict(const int16_t *row, uint64_t t_us)
{
  tb_prediction prediction;
  if (!tb_window_push(&window, row)) {
    return;
  }
  uint64_t before = clock_us(NULL);
  tb_model_predict(&update.model, window_values, &scratch, &prediction);
  tb_result result = {
    .t_us = t_us,
    .model = (uint32_t)update.running.sha[0] | (uint32_t)update.running.sha[1] << 8 |
             (uint32_t)update.running.sha[2] << 16 | (uint32_t)update.running.sha[3] << 24,
    .class_index = prediction.class_index,
    .score = prediction.score,
    .took_us = (uint32_t)(clock_us(NULL) - before),
  };
  (void)tb_link_send_result(&link, &result);
}

static void stream_row(const int16_t *row, uint64_t t_us, uint32_t dt_us)
{
  if (pending_rows == 0) {
    pending_t0_us = t_us;
  }
  memcpy(pending[pending_rows++], row, sizeof pending[0]);
  if (pending_rows < given.rows) {
    return;
  }
  uint16_t sent = 0, most = tb_link_rows_max(&link, 0); /* a host that takes little gets several frames */
  while (sent < pending_rows) {
    uint16_t n = (uint16_t)(pending_rows - sent < most ? pending_rows - sent : most);
    (void)tb_link_send_rows(&link, 0, pending[sent], n, pending_t0_us + (uint64_t)sent * dt_us, dt_us);
    sent = (uint16_t)(sent + n);
  }
  pending_rows = 0;
}

static void describe(uint32_t starts)
{
  uint32_t seed[2] = { starts, sh_time_s() };
  bool restarted = restart_asked == RESTART_MAGIC;
  restart_asked = 0;
  sensor = (tb_sensor){
    .format = TB_FORMAT_I16,
    .rate_mhz = 10000u * given.speed,
    .name = "watch",
    .unit = "m/s2 rad/s",
    .scale = 1.0f / COUNTS_PER_UNIT,
    .channel_count = CHANNELS,
    .channels = CHANNEL_NAMES,
  };
  board = (tb_board){
    .uid = given.uid,
    .fw = "mps2-watch " TB_LIBRARY_VERSION,
    .reset = restarted ? "asked for" : "power on",
    .boot = tb_crc32(tb_crc32(0, (const uint8_t *)seed, sizeof seed), (const uint8_t *)given.uid, strlen(given.uid)),
    .window = 4,
    .align = STORE_ALIGN,
    .trial_s = given.trial_s,
    .slot_bytes = STORE_MODEL_MAX,
    .sensors = &sensor,
    .sensor_count = 1,
  };
}

static bool begin(void)
{
  tb_update_config config = {
    .port = &PORT,
    .factory = FACTORY_MODEL,
    .factory_size = FACTORY_MODEL_SIZE,
    .slot_bytes = STORE_MODEL_MAX,
    .ram = model_bytes,
    .scratch = &scratch,
    .window_max = WINDOW_VALUES_MAX,
    .align = STORE_ALIGN,
    .trial_s = (uint16_t)given.trial_s,
    .channels = CHANNELS,
  };
  tb_memory memory = { rx_bytes, sizeof rx_bytes, tx_bytes, sizeof tx_bytes, frame_bytes,
                       tb_frame_buffer_size(given.frame_max) };
  if (tb_link_init(&link, &PORT, &board, &stream, memory) != TB_OK || tb_update_init(&update, &config) != TB_OK) {
    return false;
  }
  link.handler = tb_update_handle;
  link.handler_user = &update;
  link.running = &update.running;
  for (unsigned i = 0; i < CHANNELS; i++) {
    (void)tb_stats_init(&stats[i], &WATCHES[i]);
  }
  return true;
}

int main(void)
{
  options_read(&given);
  uint32_t starts = store_init(given.flash);
  describe(starts);
  clock_init();
  if (!begin()) {
    return 1;
  }
  uart_init(&link);
  (void)tb_link_log(&link, TB_LOG_INFO, "started");
  uint32_t dt_us = 100000u / given.speed, number = 0, seen = update.changes;
  uint64_t due_us = clock_us(NULL), metrics_us = due_us + given.metrics_ms * 1000ull;
  begin_window();
  for (;;) {
    (void)tb_link_poll(&link);
    if (tb_update_poll(&update)) {
      (void)tb_link_log(&link, TB_LOG_WARNING, "trial over without CONFIRM: back to the model before");
    }
    if (update.changes != seen) {
      seen = update.changes;
      begin_window();
    }
    uint64_t now_us = clock_us(NULL);
    if (now_us >= due_us) {
      int16_t row[CHANNELS];
      read_sensor(number++, row);
      watch(row, due_us);
      predict(row, due_us);
      stream_row(row, due_us, dt_us);
      due_us += dt_us;
    } else {
      __asm volatile("wfi"); /* until a byte or the next tick */
    }
    if (given.metrics_ms && now_us >= metrics_us) {
      (void)tb_link_send_metrics(&link);
      metrics_us += given.metrics_ms * 1000ull;
    }
  }
}
