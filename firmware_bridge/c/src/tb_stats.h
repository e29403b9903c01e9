/* Statistics of one feature as it streams by, in fixed point: 72 bytes, no floating point, no past values kept.
 *
 * Values are Q16.16: 65536 is 1, and they reach from -32768 to 32768. What is kept, of values x1, x2, ...:
 *
 *   EWMA mean and variance   m1 = x1, v1 = 0; then with a = 2^-shift and d = x - m:  m += a d,  v = (1 - a)(v + a d^2)
 *   Page-Hinkley, two-sided  up = max(0, up + (x - mean) - delta), down = max(0, down - (x - mean) - delta), where mean is
 *                            of all values since the test began, x included; after at least `warm_up` values a side above
 *                            `threshold` is drift, and the test begins anew (Page, Biometrika 1954)
 *   histogram                16 bins between 15 edges; when one would overflow, all are halved
 *
 * The sum is exact and all else has 32 bits behind the point, so that what is reported equals exact arithmetic within one
 * quantum (2^-16): the mean; the variance, while values stay within 2^(15 - shift) of their mean; a side of the test, while
 * it has not been above 0 for more than 32,768 values on end. Variance and sides saturate at 32768.
 */
#ifndef TB_STATS_H
#define TB_STATS_H

#include "tb_link.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TB_BINS 16
#define TB_EDGES (TB_BINS - 1)
#define TB_ONE 65536 /* 1 in Q16.16 */

/* How a feature is watched: constant, so it may lie in flash. */
typedef struct {
  int32_t delta;     /* drift that is tolerated, Q16.16, from 0 */
  int32_t threshold; /* excursion that is drift, Q16.16, above 0 */
  uint16_t warm_up;  /* values before the first decision, from 1 */
  uint8_t shift;     /* the EWMA's weight is 2^-shift, 1 to 14 */
  const int32_t *edges; /* TB_EDGES, rising: bin i holds edges[i - 1] <= x < edges[i] */
} tb_watch;

typedef struct {
  int64_t sum;      /* of the values since the test began, Q48.16 */
  int64_t up, down; /* Q16.32 */
  uint32_t count;   /* values since the test began */
  int32_t mean, variance; /* Q16.16, rounded down; a variance of -1: no value yet */
  uint16_t mean_low, variance_low; /* 16 bits more */
  uint16_t histogram[TB_BINS];
} tb_stats;

/* Begin. TB_ERR_ARG: the watch has a value out of range or edges that do not rise; nothing was begun. */
tb_status tb_stats_init(tb_stats *stats, const tb_watch *watch);

/* Take a value. Returns 0, or TB_UP or TB_DOWN: drift. Then *stats still holds the test that found it, until
 * tb_stats_restart; without that the same alarm comes again. */
int tb_stats_update(tb_stats *stats, const tb_watch *watch, int32_t x);

/* Begin the test and the histogram anew; mean and variance go on. Nothing can fail. */
void tb_stats_restart(tb_stats *stats);

/* Mean, variance and the side of a direction, rounded to Q16.16. Nothing can fail; 0 before the first value. */
int32_t tb_stats_mean(const tb_stats *stats);
int32_t tb_stats_variance(const tb_stats *stats);
int32_t tb_stats_side(const tb_stats *stats, int direction);

/* What was found as a DRIFT report; time, stream and channel are the caller's to set. */
void tb_stats_report(const tb_stats *stats, const tb_watch *watch, int direction, tb_drift *out_drift);

#ifdef __cplusplus
}
#endif
#endif
