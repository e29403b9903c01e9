/* UART 0 of the MPS2 (CMSDK APB UART), by interrupts both ways. */
#ifndef UART_H
#define UART_H

#include <stddef.h>
#include <stdint.h>

#include "tb_link.h"

/* Begin: received bytes go to the link, from the interrupt. */
void uart_init(tb_link *link);
size_t uart_write(void *unused, const uint8_t *data, size_t n);
void uart_drain(void); /* wait until all that was taken is on the line */
void uart_received(void); /* interrupts */
void uart_sent(void);

#endif
