#include "clock.h"

#define SYSTICK_CTRL (*(volatile uint32_t *)0xe000e010u)
#define SYSTICK_LOAD (*(volatile uint32_t *)0xe000e014u)
#define SYSTICK_VAL (*(volatile uint32_t *)0xe000e018u)
#define CORE_MHZ 25u
#define PER_MS (CORE_MHZ * 1000u)

static volatile uint32_t ms_low;
static volatile uint32_t ms_high;

void clock_init(void)
{
  SYSTICK_LOAD = PER_MS - 1;
  SYSTICK_VAL = 0;
  SYSTICK_CTRL = 7; /* core clock, interrupt, on */
}

void clock_tick(void)
{
  if (++ms_low == 0) {
    ms_high++;
  }
}

/* The counter may wrap just before its interrupt is taken: a reading that would go back is held until it has been. */
uint64_t clock_us(void *unused)
{
  static uint64_t last;
  uint32_t high, low, left;
  (void)unused;
  do {
    high = ms_high;
    low = ms_low;
    left = SYSTICK_VAL;
  } while (low != ms_low || high != ms_high);
  uint64_t now = ((uint64_t)high << 32 | low) * 1000u + (PER_MS - 1 - left) / CORE_MHZ;
  if (now > last) {
    last = now;
  }
  return last;
}
