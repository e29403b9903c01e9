// An Arduino whose first analog pin is a sensor of TinyMLOps: 100 rows a second, ten in a frame, and drift of its mean.
// Uses the serial port of the board alone; takes no models (slot_bytes is 0).
#include <tinybridge.h>

static const char *const CHANNELS[] = { "a0" };
static tb_sensor sensor;
static tb_board board;
static tb_stream stream;
static tb_link link;
static tb_port port;
static uint8_t tx[TB_TX_MIN], frame[tb_frame_buffer_size(TB_PAYLOAD_MIN)], rx[TB_RX_MIN];

static tb_stats stats;
static const int32_t EDGES[TB_EDGES] = {
  64 * TB_ONE, 128 * TB_ONE, 192 * TB_ONE, 256 * TB_ONE, 320 * TB_ONE, 384 * TB_ONE, 448 * TB_ONE, 512 * TB_ONE,
  576 * TB_ONE, 640 * TB_ONE, 704 * TB_ONE, 768 * TB_ONE, 832 * TB_ONE, 896 * TB_ONE, 960 * TB_ONE,
};
static const tb_watch WATCH = { 4 * TB_ONE, 2000 * TB_ONE, 500, 6, EDGES };

static int16_t rows[10];
static uint16_t filled;
static uint32_t due_us;

static int readByte(void *)
{
  return Serial.read();
}

static size_t writeBytes(void *, const uint8_t *data, size_t n)
{
  size_t room = (size_t)Serial.availableForWrite();
  return Serial.write(data, n < room ? n : room);
}

// micros() comes round after 71 minutes: count how often.
static uint64_t clockUs(void *)
{
  static uint32_t last, rounds;
  uint32_t now = micros();
  rounds += now < last;
  last = now;
  return (uint64_t)rounds << 32 | now;
}

void setup()
{
  Serial.begin(115200);
  port.read = readByte;
  port.write = writeBytes;
  port.clock_us = clockUs;
  sensor.format = TB_FORMAT_I16;
  sensor.rate_mhz = 100000;
  sensor.scale = 1.0f;
  sensor.name = "analog";
  sensor.unit = "counts";
  sensor.channel_count = 1;
  sensor.channels = CHANNELS;
  board.boot = micros() ^ (uint32_t)analogRead(1) << 16;
  board.window = 1;
  board.align = 1;
  board.uid = "arduino-analog-1";
  board.fw = "analog 1.0";
  board.reset = "start";
  board.sensors = &sensor;
  board.sensor_count = 1;
  tb_memory memory = { rx, sizeof rx, tx, sizeof tx, frame, sizeof frame };
  tb_link_init(&link, &port, &board, &stream, memory);
  tb_stats_init(&stats, &WATCH);
  tb_link_log(&link, TB_LOG_INFO, "started");
  due_us = micros();
}

static void takeRow(int16_t value)
{
  int direction = tb_stats_update(&stats, &WATCH, (int32_t)value * TB_ONE);
  if (direction) {
    tb_drift drift = {};
    drift.t_us = clockUs(NULL);
    tb_stats_report(&stats, &WATCH, direction, &drift);
    tb_link_send_drift(&link, &drift);
    tb_stats_restart(&stats);
  }
  rows[filled++] = value;
  if (filled == 10) {
    tb_link_send_rows(&link, 0, rows, 10, clockUs(NULL) - 90000, 10000);
    filled = 0;
  }
}

void loop()
{
  tb_link_poll(&link);
  if ((int32_t)(micros() - due_us) >= 0) {
    due_us += 10000;
    takeRow((int16_t)analogRead(0));
  }
}
