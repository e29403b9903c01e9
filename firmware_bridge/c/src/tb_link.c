#include "tb_link.h"

#include <string.h>

#include "tb_link_internal.h"

tb_status tb_link_init(tb_link *link, const tb_port *port, const tb_board *board, tb_stream *streams, tb_memory memory)
{
  if (!link || !port || !port->write || !port->clock_us || !board || (board->sensor_count && !streams) || !memory.rx ||
      !memory.tx || memory.rx_size < TB_RX_MIN || memory.tx_size < TB_TX_MIN) {
    return TB_ERR_ARG;
  }
  memset(link, 0, sizeof *link);
  if (streams) {
    memset(streams, 0, board->sensor_count * sizeof *streams);
  }
  link->port = port;
  link->board = board;
  link->streams = streams;
  link->host_max = TB_PAYLOAD_MIN;
  tb_ring_init(&link->rx, memory.rx, memory.rx_size);
  tb_ring_init(&link->tx, memory.tx, memory.tx_size);
  return tb_decoder_init(&link->decoder, memory.frame, memory.frame_size);
}

bool tb_link_push(tb_link *link, uint8_t byte)
{
  if (tb_ring_put(&link->rx, byte)) {
    return true;
  }
  link->rx_dropped++;
  return false;
}

static void write_port(tb_link *link)
{
  const uint8_t *data;
  uint32_t n;
  while ((n = tb_ring_peek(&link->tx, &data)) > 0) { /* twice at most: the ring is read in two parts */
    size_t taken = link->port->write(link->port->user, data, n);
    tb_ring_skip(&link->tx, taken < n ? (uint32_t)taken : n);
    if (taken < n) {
      return;
    }
  }
}

static void take(tb_link *link, uint8_t byte)
{
  tb_frame frame;
  int got = tb_decoder_byte(&link->decoder, byte, &frame);
  if (got < 0) {
    link->counts[TB_COUNT_RX_BAD]++;
  } else if (got > 0) {
    link->counts[TB_COUNT_RX]++;
    if (frame.flags & TB_FLAG_RESP) {
      if (frame.type == TB_DRIFT) {
        tb_drift_answered(link, frame.seq, frame.flags & TB_FLAG_ERR);
      }
    } else {
      tb_requests_handle(link, &frame);
    }
    write_port(link);
  }
}

/* What was pushed comes first; the port is asked when nothing is left. */
static int next_byte(tb_link *link)
{
  uint8_t byte;
  if (tb_ring_get(&link->rx, &byte)) {
    return byte;
  }
  return link->port->read ? link->port->read(link->port->user) : -1;
}

tb_status tb_link_poll(tb_link *link)
{
  int byte;
  for (uint32_t n = TB_POLL_BYTES; n > 0 && !link->reset_asked && (byte = next_byte(link)) >= 0; n--) {
    take(link, (uint8_t)byte);
  }
  tb_drift_poll(link);
  write_port(link);
  if (!link->reset_asked || tb_ring_used(&link->tx) > 0) {
    return TB_OK;
  }
  if (link->port->reset) {
    link->port->reset(link->port->user);
  }
  return TB_ERR_STATE;
}

tb_status tb_link_sent(tb_link *link, tb_encoder *encoder)
{
  tb_status status = tb_encoder_end(encoder);
  if (status == TB_OK) {
    link->counts[TB_COUNT_TX]++;
  } else {
    link->counts[TB_COUNT_TX_DROP]++;
  }
  return status;
}
