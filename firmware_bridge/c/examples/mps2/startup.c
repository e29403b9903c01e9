/* From reset to main: vectors, memory, and a fault handler that lets the image run with semihosting switched off. */
#include <stdint.h>
#include <string.h>

#include "uart.h"
#include "clock.h"

extern uint8_t stack_top, data_begin, data_end, data_source, bss_begin, bss_end;
int main(void);

void reset_handler(void)
{
  memcpy(&data_begin, &data_source, (size_t)(&data_end - &data_begin));
  memset(&bss_begin, 0, (size_t)(&bss_end - &bss_begin));
  main();
  for (;;) {
  }
}

/* `bkpt 0xab` faults when nobody serves it: answer -1 in r0, as a failed call would, and go on behind it. */
void fault_handler(uint32_t *frame)
{
  const uint16_t *at = (const uint16_t *)(uintptr_t)frame[6];
  if (*at != 0xbeab) {
    for (;;) {
    }
  }
  frame[0] = 0xffffffffu;
  frame[6] += 2;
}

__attribute__((naked)) static void hard_fault(void)
{
  __asm volatile("tst lr, #4\n"
                 "ite eq\n"
                 "mrseq r0, msp\n"
                 "mrsne r0, psp\n"
                 "b fault_handler\n");
}

static void unexpected(void)
{
  for (;;) {
  }
}

typedef void (*vector)(void);

__attribute__((section(".vectors"), used)) static const struct {
  void *stack;
  vector handlers[15 + 2];
} VECTORS = { &stack_top,
              { reset_handler, unexpected, hard_fault, unexpected, unexpected, unexpected, 0, 0, 0, 0, unexpected,
                unexpected, 0, unexpected, clock_tick, uart_received, uart_sent } };
