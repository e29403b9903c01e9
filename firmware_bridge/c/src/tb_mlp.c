/* Small int8 networks: fully connected layers, requantised by a multiplier and a shift. */
#include "tb_bytes.h"
#include "tb_model_internal.h"

#define NET_HEAD 12u
#define LAYER_HEAD 12u
#define TABLE 512u
#define BIAS_MAX (1 << 30)

static size_t padded(size_t n)
{
  return (n + 3) / 4 * 4;
}

static bool layer_right(const uint8_t *p, size_t room, uint16_t inputs, size_t *out_size)
{
  if (room < LAYER_HEAD) {
    return false;
  }
  uint16_t in = tb_get_u16(p), out = tb_get_u16(p + 2);
  if (in != inputs || in < 1 || in > TB_WIDTH_MAX || out < 1 || out > TB_WIDTH_MAX || tb_get_i32(p + 4) < 1 ||
      p[8] < 1 || p[8] > 62 || p[9] > 1) {
    return false;
  }
  *out_size = LAYER_HEAD + 4u * (size_t)out + padded((size_t)in * out);
  if (room < *out_size) {
    return false;
  }
  for (uint16_t i = 0; i < out; i++) {
    int32_t bias = tb_get_i32(p + LAYER_HEAD + 4u * i);
    if (bias < -BIAS_MAX || bias > BIAS_MAX) {
      return false;
    }
  }
  return true;
}

bool tb_mlp_check(const tb_model *model)
{
  size_t room = model->size - model->body_at;
  const uint8_t *p = model->blob + model->body_at;
  if (room < NET_HEAD || p[0] < 1 || p[0] > TB_LAYERS_MAX || p[1] || p[2] || p[3]) {
    return false;
  }
  uint8_t layers = p[0];
  uint16_t width = model->feature_count;
  p += NET_HEAD;
  room -= NET_HEAD;
  while (layers--) {
    size_t size;
    if (!layer_right(p, room, width, &size)) {
      return false;
    }
    width = tb_get_u16(p + 2);
    p += size;
    room -= size;
  }
  return width == model->classes && room >= TABLE && tb_get_u16(p) != 0;
}

/* (product + (1 << (shift - 1))) >> shift without the sum, which could overflow: the bit below the cut rounds. */
static int64_t rounded_shift(int64_t product, uint8_t shift)
{
  return (product >> shift) + ((product >> (shift - 1)) & 1);
}

static const uint8_t *layer_run(const uint8_t *p, const int8_t *in, int8_t *out)
{
  uint16_t inputs = tb_get_u16(p), outputs = tb_get_u16(p + 2);
  int32_t multiplier = tb_get_i32(p + 4), out_zero = (int8_t)p[10], in_zero = (int8_t)p[11];
  uint8_t shift = p[8];
  int32_t low = p[9] ? out_zero : -128;
  const uint8_t *bias = p + LAYER_HEAD, *weights = bias + 4u * outputs;
  for (uint16_t o = 0; o < outputs; o++) {
    int32_t sum = 0; /* 256 products below 2^15 */
    for (uint16_t i = 0; i < inputs; i++) {
      sum += (int8_t)*weights++ * (in[i] - in_zero);
    }
    int64_t acc = (int64_t)tb_get_i32(bias + 4u * o) + sum;
    int64_t y = out_zero + rounded_shift(acc * multiplier, shift);
    out[o] = (int8_t)(y < low ? low : y > 127 ? 127 : y);
  }
  return p + LAYER_HEAD + 4u * outputs + padded((size_t)inputs * outputs);
}

void tb_mlp_run(const tb_model *model, const int16_t *features, tb_scratch *scratch, uint16_t *out_scores)
{
  const uint8_t *p = model->blob + model->body_at;
  uint8_t layers = p[0];
  float offset = tb_get_f32(p + 4), scale = tb_get_f32(p + 8);
  int8_t *in = scratch->layers[0];
  for (uint16_t i = 0; i < model->feature_count; i++) {
    in[i] = (int8_t)tb_quantise((float)features[i], offset, scale, -128.0f, 127.0f);
  }
  p += NET_HEAD;
  for (uint8_t i = 0; i < layers; i++) {
    p = layer_run(p, scratch->layers[i & 1], scratch->layers[(i + 1) & 1]);
  }
  const int8_t *out = scratch->layers[layers & 1];
  int8_t most = out[0];
  uint32_t sum = 0;
  for (uint8_t i = 1; i < model->classes; i++) {
    most = out[i] > most ? out[i] : most;
  }
  for (uint8_t i = 0; i < model->classes; i++) {
    sum += tb_get_u16(p + 2 * (most - out[i]));
  }
  for (uint8_t i = 0; i < model->classes; i++) { /* the sum holds the largest, which is not 0; 65535^2 is below 2^32 */
    out_scores[i] = (uint16_t)((uint32_t)tb_get_u16(p + 2 * (most - out[i])) * 65535u / sum);
  }
}
