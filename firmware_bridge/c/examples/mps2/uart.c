#include "uart.h"

#include "tb_ring.h"

#define UART ((volatile uint32_t *)0x40004000u)
enum { DATA = 0, STATE = 1, CTRL = 2, INTERRUPT = 3, BAUDDIV = 4 };
enum { TX_FULL = 1, RX_FULL = 2 };
#define NVIC_ENABLE (*(volatile uint32_t *)0xe000e100u)
#define NVIC_PEND (*(volatile uint32_t *)0xe000e200u)
#define TX_VECTOR (1u << 1)

static tb_link *receiver;
static uint8_t tx_bytes[256];
static tb_ring tx = { tx_bytes, sizeof tx_bytes, 0, 0 };

void uart_init(tb_link *link)
{
  receiver = link;
  UART[BAUDDIV] = 25000000u / 115200u;
  UART[INTERRUPT] = 0xf;
  UART[CTRL] = 0xf; /* transmit and receive, each with its interrupt */
  NVIC_ENABLE = 3;
}

void uart_received(void)
{
  UART[INTERRUPT] = 2;
  while (UART[STATE] & RX_FULL) {
    (void)tb_link_push(receiver, (uint8_t)UART[DATA]);
  }
}

void uart_sent(void)
{
  uint8_t byte;
  UART[INTERRUPT] = 1;
  while (!(UART[STATE] & TX_FULL) && tb_ring_get(&tx, &byte)) {
    UART[DATA] = byte;
  }
}

/* The interrupt comes when the transmitter becomes free; an idle one is woken by setting it pending. */
size_t uart_write(void *unused, const uint8_t *data, size_t n)
{
  size_t taken = 0;
  (void)unused;
  while (taken < n && tb_ring_put(&tx, data[taken])) {
    taken++;
  }
  NVIC_PEND = TX_VECTOR;
  return taken;
}

void uart_drain(void)
{
  while (tb_ring_used(&tx) > 0 || (UART[STATE] & TX_FULL)) {
    __asm volatile("wfi");
  }
}
