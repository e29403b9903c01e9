/* What the command line says: -semihosting-config enable=on,target=native,arg=mps2,arg=speed=20,arg=flash=PATH ... */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <stdint.h>

typedef struct {
  char text[512];     /* what the other fields point into */
  const char *uid;
  const char *flash;  /* a file for the slots; NULL: RAM */
  uint32_t speed;     /* rows come this much faster than 10 Hz, 1 to 100 */
  uint32_t rows;      /* in a SENSOR frame */
  uint32_t drift_at;  /* the row from which the watch is worn differently; 0xffffffff: never */
  uint32_t trial_s;
  uint32_t metrics_ms; /* between METRICS unasked; 0: never */
  uint32_t frame_max;  /* the largest payload to take, 64 to 1024 */
} options;

void options_read(options *out);

#endif
