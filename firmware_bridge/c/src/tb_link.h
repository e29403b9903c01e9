/* The link: one serial line between this board and a host.
 *
 * It takes bytes (from the port, or from an interrupt by tb_link_push), answers requests, repeats answers whose loss made
 * the host ask again, keeps credit for sensor streams, and repeats drift reports until the host has them. Everything but
 * tb_link_push is called from one place (the main loop); tb_link_push may be called from one interrupt at any time.
 * All memory is the caller's; the same bytes are described from the host's side in docs/wire.md.
 *
 *   static uint8_t rx[256], tx[1024], frame[tb_frame_buffer_size(512)];
 *   static tb_stream streams[1];
 *   static tb_link link;
 *   tb_link_init(&link, &port, &board, streams, (tb_memory){ rx, sizeof rx, tx, sizeof tx, frame, sizeof frame });
 *   for (;;) { tb_link_poll(&link); ... tb_link_send_rows(&link, 0, rows, 10, t0_us, 100000); }
 */
#ifndef TB_LINK_H
#define TB_LINK_H

#include "tb_codes.h"
#include "tb_frame.h"
#include "tb_port.h"
#include "tb_ring.h"

#ifdef __cplusplus
extern "C" {
#endif

#ifndef TB_DRIFT_PENDING
#define TB_DRIFT_PENDING 4 /* drift reports that wait for the host; 64 bytes each */
#endif
#define TB_POLL_BYTES 1024u
#define TB_DRIFT_BYTES 64u
#define TB_DRIFT_RETRY_US 200000u
#define TB_DRIFT_TRIES 8u
#define TB_ANSWER_MAX 12u
#define TB_SENSOR_HEAD 20u
#define TB_CREDIT_ENDLESS 0xffffffffu
#define TB_ALL_STREAMS 255u
#define TB_NO_SLOT 255u

enum { TB_FORMAT_I16 = 1, TB_FORMAT_F32 = 2 };
enum { TB_STATE_FACTORY = 0, TB_STATE_TRIAL = 1, TB_STATE_CONFIRMED = 2 };
enum { TB_LOG_DEBUG = 10, TB_LOG_INFO = 20, TB_LOG_WARNING = 30, TB_LOG_ERROR = 40 };
enum { TB_UP = 1, TB_DOWN = 2 };

/* What a sensor delivers; its stream is its place in tb_board.sensors. The numbers stand together because CAPS tells them
 * in one go. */
typedef struct {
  uint32_t format;   /* TB_FORMAT_... */
  uint32_t rate_mhz; /* rows in 1,000 s */
  float scale;       /* one count in the unit */
  const char *name;
  const char *unit;
  uint8_t channel_count;
  const char *const *channels;
} tb_sensor;

/* What the board says of itself. It is read at each HELLO and must outlive the link. */
typedef struct {
  uint32_t boot;       /* drawn at each start */
  uint32_t window;     /* MODEL_CHUNKs that may be under way, 1 to 16 */
  uint32_t align;      /* of writes to a slot, 1 to 16 */
  uint32_t trial_s;
  uint32_t slot_bytes; /* for a model, its header apart; 0: the board takes no models */
  const char *uid;     /* at most 32 bytes, never the same on two boards */
  const char *fw;      /* the firmware's own name and version */
  const char *reset;   /* why the board started */
  const tb_sensor *sensors;
  uint8_t sensor_count;
} tb_board;

/* The model that runs, as CAPS tells it; tb_update keeps it. */
typedef struct {
  uint32_t slot;  /* TB_NO_SLOT: the factory's */
  uint32_t state; /* TB_STATE_... */
  uint32_t counter;
  uint8_t sha[32];
} tb_running;

typedef struct {
  uint32_t credit;
  uint32_t index; /* of the next row */
  uint16_t seq;
  bool on;
} tb_stream;

typedef struct {
  uint8_t *rx;
  uint32_t rx_size; /* at least TB_RX_MIN; what arrives between two polls must fit */
  uint8_t *tx;
  uint32_t tx_size; /* at least TB_TX_MIN, so that CAPS fits */
  uint8_t *frame;
  uint32_t frame_size; /* tb_frame_buffer_size(largest payload taken), 64 to 1024 */
} tb_memory;

#define TB_RX_MIN 64u
#define TB_TX_MIN (tb_frame_size_max(512u) + 1u)

/* Counters since the start, as METRICS tells them. */
enum {
  TB_COUNT_RX,
  TB_COUNT_RX_BAD,
  TB_COUNT_RX_DROP,
  TB_COUNT_TX,
  TB_COUNT_TX_DROP,
  TB_COUNT_ROWS,
  TB_COUNT_ROWS_DROP,
  TB_COUNT_INFER,
  TB_COUNT_DRIFT,
  TB_COUNT_DRIFT_LOST,
  TB_COUNT_CREDIT,
  TB_COUNT_UP_HIGH,
  TB_COUNT_UP_LOW,
  TB_COUNT_INFER_US_HIGH,
  TB_COUNT_INFER_US_LOW,
  TB_COUNTS
};

/* Laid out as on the line, like tb_result. */
typedef struct {
  uint64_t t_us;
  uint8_t stream;
  uint8_t channel;
  uint8_t direction; /* TB_UP or TB_DOWN */
  uint8_t zero;
  int32_t statistic, threshold, mean, variance; /* Q16.16 */
  uint32_t count;
  uint16_t histogram[16];
} tb_drift;

typedef struct {
  uint64_t t_us; /* at the window's end */
  uint32_t model; /* the first four bytes of its SHA-256, little-endian */
  uint16_t class_index;
  uint16_t score; /* 65535 is 1 */
  uint32_t took_us;
} tb_result;

struct tb_link;
/* Requests that the link does not know itself (models, and a board's own types). Fill at most TB_ANSWER_MAX bytes and set
 * *out_size; anything but TB_OK is answered by tb_refusal_of, TB_ERR_FRAME by TB_REFUSED_TYPE (not known here either).
 * It is called once for each request: a request that was repeated gets the kept answer, but MODEL_CHUNK, which says by its
 * offset what it is. It must not send: the answer is being written. */
typedef tb_status (*tb_handler)(void *user, const tb_frame *request, uint8_t *out_answer, uint8_t *out_size);

typedef struct tb_link {
  const tb_port *port;
  const tb_board *board;
  const tb_running *running; /* NULL: the board runs no model */
  tb_stream *streams;
  tb_handler handler; /* NULL: such requests are refused */
  void *handler_user;
  tb_ring rx, tx;
  tb_decoder decoder;
  uint32_t counts[TB_COUNTS];
  volatile uint32_t rx_dropped; /* bytes; counted by tb_link_push */
  uint64_t infer_us;
  uint32_t session;
  uint16_t host_max; /* the largest payload the host takes */
  uint16_t result_seq, metrics_seq, log_seq, drift_seq;
  bool host_known, kept, reset_asked;
  /* the last request that changed something, and its answer */
  uint8_t kept_type, kept_refusal, kept_size, kept_answer[TB_ANSWER_MAX];
  uint16_t kept_seq;
  /* drift reports that wait, the oldest first */
  uint8_t drift_tries, drift_waiting;
  uint64_t drift_due_us;
  uint8_t drift_queue[TB_DRIFT_PENDING][TB_DRIFT_BYTES];
} tb_link;

/* Begin. `port`, `board`, `streams` (one for each sensor, may be NULL without sensors) and the memory must outlive the
 * link. TB_ERR_ARG: something is missing or too small; the link is not usable. */
tb_status tb_link_init(tb_link *link, const tb_port *port, const tb_board *board, tb_stream *streams, tb_memory memory);

/* Hand over what a receive interrupt got. False: no room; the byte is lost and counted, the frame it belonged to will be
 * dropped as damaged, and the host asks again. */
bool tb_link_push(tb_link *link, uint8_t byte);

/* Do what there is to do: read, answer, repeat drift reports, write. Takes TB_POLL_BYTES bytes at most. Returns
 * TB_OK, or TB_ERR_STATE after a RESET whose port function returned: init everything anew. */
tb_status tb_link_poll(tb_link *link);

/* Rows that fit in one frame of a stream for this host; 0 for a stream that does not exist. */
uint16_t tb_link_rows_max(const tb_link *link, uint8_t stream);

/* Send rows (row after row, i16 or f32 as the sensor's format says). Returns
 *   TB_OK         queued;
 *   TB_ERR_OFF    the stream is off (nothing changes), or on without credit (the rows are counted as dropped, the index
 *                 moves, so the host sees the gap);
 *   TB_ERR_ROOM   no room in the transmit ring: counted likewise;
 *   TB_ERR_SIZE   more than tb_link_rows_max rows, or none: nothing changes;
 *   TB_ERR_ARG    no such stream. */
tb_status tb_link_send_rows(tb_link *link, uint8_t stream, const void *values, uint16_t rows, uint64_t t0_us,
                            uint32_t dt_us);

/* Send a prediction. Counted in METRICS in any case. TB_ERR_OFF: no host yet. TB_ERR_ROOM: dropped and counted. */
tb_status tb_link_send_result(tb_link *link, const tb_result *result);

/* Queue a drift report; it is repeated until the host has answered, eight times at most. TB_ERR_ROOM: TB_DRIFT_PENDING
 * wait already; this one is counted as lost. */
tb_status tb_link_send_drift(tb_link *link, const tb_drift *drift);

/* Send METRICS unasked. TB_ERR_OFF: no host yet. TB_ERR_ROOM: dropped and counted. */
tb_status tb_link_send_metrics(tb_link *link);

/* Send a line of text, cut where it would be more than the host takes (between characters of UTF-8). TB_ERR_ROOM:
 * dropped and counted. */
tb_status tb_link_log(tb_link *link, uint8_t level, const char *text);

#ifdef __cplusplus
}
#endif
#endif
