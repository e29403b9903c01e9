#include "tb_stats.h"

#include <string.h>

/* What the header promises of the size holds when this compiles. */
typedef char tb_stats_takes_72_bytes[sizeof(tb_stats) <= 72 ? 1 : -1];

#define LOW_BITS 65536
#define Q32_MAX ((int64_t)INT32_MAX * LOW_BITS)

tb_status tb_stats_init(tb_stats *stats, const tb_watch *watch)
{
  if (!stats || !watch || !watch->edges || watch->delta < 0 || watch->threshold <= 0 || watch->warm_up < 1 ||
      watch->shift < 1 || watch->shift > 14) {
    return TB_ERR_ARG;
  }
  for (unsigned i = 1; i < TB_EDGES; i++) {
    if (watch->edges[i] <= watch->edges[i - 1]) {
      return TB_ERR_ARG;
    }
  }
  memset(stats, 0, sizeof *stats);
  stats->variance = -1;
  return TB_OK;
}

void tb_stats_restart(tb_stats *stats)
{
  stats->sum = stats->up = stats->down = 0;
  stats->count = 0;
  memset(stats->histogram, 0, sizeof stats->histogram);
}

/* Nearest, so that what is lost does not add up in one direction. */
static int64_t nearest(int64_t value, unsigned shift)
{
  return (value + ((int64_t)1 << (shift - 1))) >> shift;
}

static int32_t rounded(int64_t q32)
{
  return q32 >= Q32_MAX ? INT32_MAX : (int32_t)nearest(q32, 16);
}

static int64_t squared(int64_t d)
{
  int64_t high = d >> 16, low = d & (LOW_BITS - 1); /* (high + low / 2^16)^2 without the last term, below 2^-32 */
  if (high > INT32_MAX || high < -INT32_MAX) {
    return (int64_t)INT32_MAX * INT32_MAX;
  }
  return high * high + ((high * low) >> 15);
}

static void moving(tb_stats *stats, unsigned shift, int32_t x)
{
  if (stats->variance < 0) {
    stats->mean = x;
    stats->variance = 0;
    return;
  }
  int64_t mean = (int64_t)stats->mean * LOW_BITS + stats->mean_low;
  int64_t variance = (int64_t)stats->variance * LOW_BITS + stats->variance_low;
  int64_t d = (int64_t)x * LOW_BITS - mean;
  mean += nearest(d, shift);
  variance += nearest(squared(d), shift);
  variance -= nearest(variance, shift);
  variance = variance > Q32_MAX ? Q32_MAX : variance;
  stats->mean = (int32_t)(mean >> 16);
  stats->mean_low = (uint16_t)(mean & (LOW_BITS - 1));
  stats->variance = (int32_t)(variance >> 16);
  stats->variance_low = (uint16_t)(variance & (LOW_BITS - 1));
}

static void binned(tb_stats *stats, const int32_t *edges, int32_t x)
{
  unsigned bin = 0;
  while (bin < TB_EDGES && x >= edges[bin]) {
    bin++;
  }
  if (stats->histogram[bin] == UINT16_MAX) {
    for (unsigned i = 0; i < TB_BINS; i++) {
      stats->histogram[i] /= 2;
    }
  }
  stats->histogram[bin]++;
}

/* The mean of the values since the test began, Q.32: the sum is exact, and a remainder below 2^32 keeps the fraction so. */
static int64_t test_mean(const tb_stats *stats)
{
  int64_t n = stats->count, whole = stats->sum / n;
  return whole * LOW_BITS + (stats->sum - whole * n) * LOW_BITS / n;
}

static int64_t side(int64_t before, int64_t step)
{
  int64_t now = before + step;
  return now < 0 ? 0 : now > Q32_MAX ? Q32_MAX : now;
}

int tb_stats_update(tb_stats *stats, const tb_watch *watch, int32_t x)
{
  moving(stats, watch->shift, x);
  binned(stats, watch->edges, x);
  if (stats->count == INT32_MAX) { /* after years: the mean stays, the sum cannot overflow */
    stats->count /= 2;
    stats->sum /= 2;
  }
  stats->count++;
  stats->sum += x;
  int64_t deviation = (int64_t)x * LOW_BITS - test_mean(stats), delta = (int64_t)watch->delta * LOW_BITS;
  stats->up = side(stats->up, deviation - delta);
  stats->down = side(stats->down, -deviation - delta);
  if (stats->count < watch->warm_up) {
    return 0;
  }
  int64_t threshold = (int64_t)watch->threshold * LOW_BITS;
  return stats->up > threshold ? TB_UP : stats->down > threshold ? TB_DOWN : 0;
}

int32_t tb_stats_mean(const tb_stats *stats)
{
  return rounded((int64_t)stats->mean * LOW_BITS + stats->mean_low);
}

int32_t tb_stats_variance(const tb_stats *stats)
{
  return stats->variance < 0 ? 0 : rounded((int64_t)stats->variance * LOW_BITS + stats->variance_low);
}

int32_t tb_stats_side(const tb_stats *stats, int direction)
{
  return rounded(direction == TB_DOWN ? stats->down : stats->up);
}

void tb_stats_report(const tb_stats *stats, const tb_watch *watch, int direction, tb_drift *out_drift)
{
  out_drift->direction = (uint8_t)direction;
  out_drift->statistic = tb_stats_side(stats, direction);
  out_drift->threshold = watch->threshold;
  out_drift->mean = tb_stats_mean(stats);
  out_drift->variance = tb_stats_variance(stats);
  out_drift->count = stats->count;
  memcpy(out_drift->histogram, stats->histogram, sizeof stats->histogram);
}
