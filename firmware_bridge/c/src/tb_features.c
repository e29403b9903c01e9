/* A window's features: exact sums, one division in f64, one rounding to f32 (docs/wire.md, "A board's model"). */
#include <math.h>

#include "tb_bytes.h"
#include "tb_model_internal.h"

typedef struct {
  const int16_t *values; /* of the first row */
  uint16_t rows;
  uint8_t stride;
} column;

static float mean_of(column c)
{
  int64_t sum = 0;
  for (uint32_t i = 0; i < c.rows; i++) {
    sum += c.values[i * c.stride];
  }
  return (float)((double)sum / (double)c.rows);
}

static float deviation_of(column c)
{
  int64_t sum = 0, squares = 0, n = c.rows;
  for (uint32_t i = 0; i < c.rows; i++) {
    int32_t x = c.values[i * c.stride];
    sum += x;
    squares += (int64_t)x * x;
  }
  float variance = (float)((double)(n * squares - sum * sum) / (double)(n * n));
  return sqrtf(variance);
}

static float extreme_of(column c, int sign)
{
  int32_t best = c.values[0];
  for (uint32_t i = 1; i < c.rows; i++) {
    int32_t x = c.values[i * c.stride];
    best = sign * x > sign * best ? x : best;
  }
  return (float)best;
}

static float difference_of(column c)
{
  int64_t sum = 0;
  for (uint32_t i = 1; i < c.rows; i++) {
    int32_t step = c.values[i * c.stride] - c.values[(i - 1) * c.stride];
    sum += step < 0 ? -step : step;
  }
  return c.rows < 2 ? 0.0f : (float)((double)sum / (double)(c.rows - 1));
}

static float value_of(const uint8_t *feature, column c)
{
  switch (feature[0]) {
  case 0: return (float)c.values[(uint32_t)tb_get_u16(feature + 2) * c.stride];
  case 1: return mean_of(c);
  case 2: return deviation_of(c);
  case 3: return extreme_of(c, -1);
  case 4: return extreme_of(c, 1);
  default: return difference_of(c);
  }
}

int16_t tb_quantise(float x, float offset, float scale, float low, float high)
{
  float shifted = x - offset; /* two statements: nothing to contract */
  float scaled = shifted * scale;
  if (!(scaled > low)) { /* also NaN */
    return (int16_t)low;
  }
  if (scaled >= high) {
    return (int16_t)high;
  }
  int32_t whole = (int32_t)scaled; /* towards zero; the rest is exact, both being below 2^15 */
  float rest = scaled - (float)whole;
  return (int16_t)(rest >= 0.5f ? whole + 1 : rest <= -0.5f ? whole - 1 : whole);
}

void tb_model_features(const tb_model *model, const int16_t *window, int16_t *out_features)
{
  const uint8_t *p = model->blob + model->features_at;
  for (uint16_t i = 0; i < model->feature_count; i++, p += TB_FEATURE_SIZE) {
    column c = { window + p[1], model->rows, model->channels };
    out_features[i] = tb_quantise(value_of(p, c), tb_get_f32(p + 4), tb_get_f32(p + 8), -32768.0f, 32767.0f);
  }
}
