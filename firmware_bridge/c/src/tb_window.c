#include "tb_window.h"

#include <string.h>

tb_status tb_window_init(tb_window *window, int16_t *values, uint32_t capacity, uint16_t rows, uint16_t hop,
                         uint8_t channels)
{
  if (!window || !values || !rows || !hop || !channels) {
    return TB_ERR_ARG;
  }
  if ((uint32_t)rows * channels > capacity) {
    return TB_ERR_SIZE;
  }
  *window = (tb_window){ values, capacity, rows, hop, 0, 0, channels };
  return TB_OK;
}

bool tb_window_push(tb_window *window, const int16_t *row)
{
  if (window->filled == window->rows) { /* the full window was used: keep what the next one shares with it */
    uint16_t kept = window->hop < window->rows ? (uint16_t)(window->rows - window->hop) : 0;
    window->skip = kept ? 0 : (uint16_t)(window->hop - window->rows);
    memmove(window->values, window->values + (uint32_t)(window->rows - kept) * window->channels,
            (size_t)kept * window->channels * sizeof *row);
    window->filled = kept;
  }
  if (window->skip > 0) {
    window->skip--;
    return false;
  }
  memcpy(window->values + (uint32_t)window->filled * window->channels, row, window->channels * sizeof *row);
  window->filled++;
  return window->filled == window->rows;
}
