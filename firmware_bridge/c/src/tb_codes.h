/* Codes: what every function of the library returns, what a refusal says on the wire, and the numbers of the protocol.
 *
 * A function returns TB_OK or a negative code. Its own header names each code it can return and what is left then.
 * The bytes on the line are described in docs/wire.md ("The serial line"); its protocol version is TB_PROTOCOL_VERSION,
 * apart from the version of this library.
 */
#ifndef TB_CODES_H
#define TB_CODES_H

#define TB_PROTOCOL_VERSION 1
#define TB_LIBRARY_VERSION "0.1.0"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
  TB_OK = 0,
  TB_ERR_ARG = -1,     /* the caller's mistake: a null pointer, a buffer that is too small, a value out of range */
  TB_ERR_ROOM = -2,    /* no room in the ring right now: nothing was queued; what was dropped is counted */
  TB_ERR_FRAME = -3,   /* COBS, CRC or length of a frame is wrong */
  TB_ERR_OFF = -4,     /* the stream is off, without credit, or no host has said HELLO: nothing was sent */
  TB_ERR_STORE = -5,   /* the port could not erase, write or read a slot, or read back something else */
  TB_ERR_STATE = -6,   /* not now: see the function */
  TB_ERR_SIZE = -7,    /* larger than a slot, a buffer or the other side's largest payload */
  TB_ERR_HASH = -8,    /* the bytes have another SHA-256 */
  TB_ERR_MODEL = -9,   /* the model breaks a rule of its format, or is for other sensors */
  TB_ERR_SELFTEST = -10 /* the model's own vectors came out otherwise */
} tb_status;

/* The code of an `ERR` answer. */
typedef enum {
  TB_REFUSED_TYPE = 1,
  TB_REFUSED_PAYLOAD = 2,
  TB_REFUSED_VERSION = 3,
  TB_REFUSED_STATE = 4,
  TB_REFUSED_SIZE = 5,
  TB_REFUSED_HASH = 6,
  TB_REFUSED_MODEL = 7,
  TB_REFUSED_STORE = 8,
  TB_REFUSED_SELFTEST = 9,
  TB_REFUSED_BUSY = 10
} tb_refusal;

enum { TB_FLAG_ACKREQ = 1, TB_FLAG_RESP = 2, TB_FLAG_ERR = 4 };

enum {
  TB_HELLO = 0x01,
  TB_TIME = 0x02,
  TB_SENSOR = 0x10,
  TB_RESULT = 0x11,
  TB_STREAM = 0x12,
  TB_METRICS = 0x20,
  TB_DRIFT = 0x21,
  TB_MODEL_BEGIN = 0x30,
  TB_MODEL_CHUNK = 0x31,
  TB_MODEL_COMMIT = 0x32,
  TB_MODEL_CONFIRM = 0x33,
  TB_MODEL_ABORT = 0x34,
  TB_MODEL_ROLLBACK = 0x35,
  TB_LOG = 0x40,
  TB_RESET = 0x41
};

/* The refusal that tells the other side of a status; TB_REFUSED_STATE for what has none of its own. */
static inline tb_refusal tb_refusal_of(tb_status status)
{
  switch (status) {
  case TB_ERR_ARG: return TB_REFUSED_PAYLOAD;
  case TB_ERR_SIZE: return TB_REFUSED_SIZE;
  case TB_ERR_HASH: return TB_REFUSED_HASH;
  case TB_ERR_MODEL: return TB_REFUSED_MODEL;
  case TB_ERR_STORE: return TB_REFUSED_STORE;
  case TB_ERR_SELFTEST: return TB_REFUSED_SELFTEST;
  case TB_ERR_ROOM: return TB_REFUSED_BUSY;
  default: return TB_REFUSED_STATE;
  }
}

#ifdef __cplusplus
}
#endif
#endif
