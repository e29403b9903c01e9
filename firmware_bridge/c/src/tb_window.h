/* Rows of a sensor gathered into the windows of a model: `rows` of them, moved on by `hop`. */
#ifndef TB_WINDOW_H
#define TB_WINDOW_H

#include "tb_codes.h"

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  int16_t *values; /* row after row */
  uint32_t capacity;
  uint16_t rows, hop, filled;
  uint16_t skip; /* rows to pass over: the hop is larger than the window */
  uint8_t channels;
} tb_window;

/* Begin with an empty window over a buffer of `capacity` values. TB_ERR_ARG: a null pointer or a zero; TB_ERR_SIZE: the
 * window does not fit; the window is not usable. */
tb_status tb_window_init(tb_window *window, int16_t *values, uint32_t capacity, uint16_t rows, uint16_t hop,
                         uint8_t channels);

/* Add a row. True: the window is full and stands in `values` until the next row. */
bool tb_window_push(tb_window *window, const int16_t *row);

#ifdef __cplusplus
}
#endif
#endif
