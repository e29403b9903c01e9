#include "tb_link.h"

#include <string.h>

#include "tb_link_internal.h"

tb_status tb_link_init(tb_link *link, const tb_port *port, const tb_board *board, tb_stream *streams, tb_memory memory)
{
  if (!link || !port || !port->write || !port->clock_us || !board || !memory.rx || memory.rx_size < 64 || !memory.tx ||
      memory.tx_size < tb_frame_size_max(TB_TX_PAYLOAD_MIN) + 1 || (board->sensor_count && !streams) ||
      board->sensor_count >= TB_ALL_STREAMS || board->window < 1 || board->window > 16) {
    return TB_ERR_ARG;
  }
  memset(link, 0, sizeof *link);
  tb_status status = tb_decoder_init(&link->decoder, memory.frame, memory.frame_size);
  if (status != TB_OK) {
    return status;
  }
  link->port = port;
  link->board = board;
  link->streams = streams;
  if (streams) {
    memset(streams, 0, board->sensor_count * sizeof *streams);
  }
  link->host_max = TB_PAYLOAD_MIN;
  tb_ring_init(&link->rx, memory.rx, memory.rx_size);
  tb_ring_init(&link->tx, memory.tx, memory.tx_size);
  return TB_OK;
}

bool tb_link_push(tb_link *link, uint8_t byte)
{
  if (tb_ring_put(&link->rx, byte)) {
    return true;
  }
  link->counters.rx_drop++;
  return false;
}

static void read_port(tb_link *link)
{
  uint8_t chunk[32];
  uint32_t room = tb_ring_free(&link->rx);
  while (room > 0) {
    size_t wanted = room < sizeof chunk ? room : sizeof chunk;
    size_t got = link->port->read(link->port->user, chunk, wanted);
    for (size_t i = 0; i < got && i < wanted; i++) {
      (void)tb_ring_put(&link->rx, chunk[i]);
    }
    if (got < wanted) {
      return;
    }
    room -= (uint32_t)wanted;
  }
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
    link->counters.rx_bad++;
  } else if (got > 0) {
    link->counters.rx++;
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

tb_status tb_link_poll(tb_link *link)
{
  uint8_t byte;
  if (link->port->read) {
    read_port(link);
  }
  for (uint32_t n = tb_ring_used(&link->rx); n > 0 && !link->reset_asked && tb_ring_get(&link->rx, &byte); n--) {
    take(link, byte);
  }
  tb_drift_poll(link);
  write_port(link);
  if (link->reset_asked && tb_ring_used(&link->tx) == 0) {
    if (link->port->reset) {
      link->port->reset(link->port->user);
    }
    return TB_ERR_STATE;
  }
  return TB_OK;
}

tb_status tb_link_sent(tb_link *link, tb_encoder *encoder)
{
  tb_status status = tb_encoder_end(encoder);
  if (status == TB_OK) {
    link->counters.tx++;
  } else {
    link->counters.tx_drop++;
  }
  return status;
}
