#include "tb_model.h"

#include <string.h>

#include "tb_bytes.h"
#include "tb_model_internal.h"

#define HEADER_SIZE 36u
#define OPS 6

static const uint8_t MAGIC[4] = { 'T', 'B', 'M', '1' };

/* Whether [at, at + n) lies within the blob behind its header; sums in 64 bits, as a hostile offset may be anything. */
static bool within(const tb_model *model, uint32_t at, uint64_t n)
{
  return at >= HEADER_SIZE && at % 4 == 0 && (uint64_t)at + n <= model->size;
}

static bool finite(float x)
{
  return x - x == 0.0f;
}

static bool features_right(const tb_model *model)
{
  if (!within(model, model->features_at, (uint64_t)model->feature_count * TB_FEATURE_SIZE)) {
    return false;
  }
  const uint8_t *p = model->blob + model->features_at;
  for (uint16_t i = 0; i < model->feature_count; i++, p += TB_FEATURE_SIZE) {
    float offset = tb_get_f32(p + 4), scale = tb_get_f32(p + 8);
    if (p[0] >= OPS || p[1] >= model->channels || (p[0] == 0 && tb_get_u16(p + 2) >= model->rows) || !finite(offset) ||
        !finite(scale) || !(scale > 0.0f)) {
      return false;
    }
  }
  return true;
}

static uint32_t vector_size(const tb_model *model)
{
  return (model->feature_count * 2u + 3u) / 4u * 4u + 4u;
}

static bool selftest_right(const tb_model *model)
{
  if (model->selftest_at == 0) {
    return true;
  }
  if (!within(model, model->selftest_at, 4)) {
    return false;
  }
  const uint8_t *p = model->blob + model->selftest_at;
  uint16_t vectors = tb_get_u16(p);
  return vectors >= 1 && vectors <= TB_VECTORS_MAX && tb_get_u16(p + 2) == 0 &&
         within(model, model->selftest_at, 4 + (uint64_t)vectors * vector_size(model));
}

tb_status tb_model_open(const uint8_t *blob, size_t size, tb_model *out_model)
{
  if (!blob || !out_model) {
    return TB_ERR_ARG;
  }
  if (size < HEADER_SIZE || memcmp(blob, MAGIC, 4) != 0 || tb_get_u32(blob + 4) != size ||
      tb_get_u16(blob + 8) != TB_MODEL_ABI || blob[19] != 0 || tb_get_u32(blob + 32) != 0) {
    return TB_ERR_MODEL;
  }
  tb_model *model = out_model;
  model->blob = blob;
  model->size = (uint32_t)size;
  model->kind = blob[10];
  model->classes = blob[11];
  model->feature_count = tb_get_u16(blob + 12);
  model->rows = tb_get_u16(blob + 14);
  model->hop = tb_get_u16(blob + 16);
  model->channels = blob[18];
  model->features_at = tb_get_u32(blob + 20);
  model->body_at = tb_get_u32(blob + 24);
  model->selftest_at = tb_get_u32(blob + 28);
  if (model->classes < 2 || model->classes > TB_CLASSES_MAX || model->feature_count < 1 ||
      model->feature_count > TB_FEATURES_MAX || model->rows < 1 || model->hop < 1 || model->channels < 1 ||
      !features_right(model) || !selftest_right(model) || !within(model, model->body_at, 0)) {
    return TB_ERR_MODEL;
  }
  bool right = model->kind == TB_KIND_TREES ? tb_trees_check(model)
               : model->kind == TB_KIND_MLP ? tb_mlp_check(model)
                                            : false;
  return right ? TB_OK : TB_ERR_MODEL;
}

void tb_model_run(const tb_model *model, const int16_t *features, tb_scratch *scratch, tb_prediction *out_prediction)
{
  if (model->kind == TB_KIND_TREES) {
    tb_trees_run(model, features, out_prediction->scores);
    uint8_t best = 0;
    for (uint8_t i = 1; i < model->classes; i++) {
      best = out_prediction->scores[i] > out_prediction->scores[best] ? i : best;
    }
    out_prediction->class_index = best;
  } else {
    tb_mlp_run(model, features, scratch, out_prediction->scores);
    /* The last layer's outputs stand in the scratch; equal scores may hide which of them was larger. */
    const int8_t *out = scratch->layers[model->blob[model->body_at] & 1];
    uint8_t best = 0;
    for (uint8_t i = 1; i < model->classes; i++) {
      best = out[i] > out[best] ? i : best;
    }
    out_prediction->class_index = best;
  }
  out_prediction->score = out_prediction->scores[out_prediction->class_index];
}

void tb_model_predict(const tb_model *model, const int16_t *window, tb_scratch *scratch, tb_prediction *out_prediction)
{
  tb_model_features(model, window, scratch->features);
  tb_model_run(model, scratch->features, scratch, out_prediction);
}

tb_status tb_model_selftest(const tb_model *model, tb_scratch *scratch)
{
  if (model->selftest_at == 0) {
    return TB_OK;
  }
  const uint8_t *p = model->blob + model->selftest_at;
  uint32_t each = vector_size(model);
  uint16_t vectors = tb_get_u16(p);
  p += 4;
  for (uint16_t i = 0; i < vectors; i++, p += each) {
    tb_prediction prediction;
    for (uint16_t f = 0; f < model->feature_count; f++) {
      scratch->features[f] = tb_get_i16(p + 2 * f);
    }
    tb_model_run(model, scratch->features, scratch, &prediction);
    if (prediction.class_index != tb_get_u16(p + each - 4) || prediction.score != tb_get_u16(p + each - 2)) {
      return TB_ERR_SELFTEST;
    }
  }
  return TB_OK;
}
