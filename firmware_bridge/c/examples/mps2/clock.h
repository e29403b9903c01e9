/* The board's clock: SysTick, 1 ms a tick, read to a microsecond. */
#ifndef CLOCK_H
#define CLOCK_H

#include <stdint.h>

void clock_init(void);
uint64_t clock_us(void *unused);
void clock_tick(void); /* the interrupt */

#endif
