/* A board's model: a blob of data (format 1, ABI 1 of docs/wire.md), checked whole when it is opened, then run.
 *
 * The blob is not trusted: tb_model_open refuses whatever could make a later call read outside of it, loop for ever or
 * overflow, so the functions below it check nothing again. The blob stays where it is (flash or RAM, any alignment) and
 * must not change while the model is open.
 */
#ifndef TB_MODEL_H
#define TB_MODEL_H

#include "tb_codes.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TB_MODEL_FORMAT 1
#define TB_MODEL_ABI 1
#define TB_CLASSES_MAX 32
#define TB_FEATURES_MAX 256
#define TB_WIDTH_MAX 256 /* of a layer */
#define TB_LAYERS_MAX 4
#define TB_VECTORS_MAX 64

enum { TB_KIND_TREES = 1, TB_KIND_MLP = 2 };

typedef struct {
  const uint8_t *blob;
  uint32_t size;
  uint32_t features_at, body_at, selftest_at; /* selftest_at 0: the model has no vectors */
  uint16_t feature_count, rows, hop;
  uint8_t kind, classes, channels;
} tb_model;

/* What a run writes into; the same one may serve every model. */
typedef struct {
  int16_t features[TB_FEATURES_MAX];
  int8_t layers[2][TB_WIDTH_MAX];
} tb_scratch;

typedef struct {
  uint16_t class_index;
  uint16_t score; /* of that class; 65535 is 1 */
  uint16_t scores[TB_CLASSES_MAX];
} tb_prediction;

/* Open a blob of `size` bytes. TB_ERR_ARG: a null pointer. TB_ERR_MODEL: it breaks a rule of the format; *out_model is not
 * to be used. */
tb_status tb_model_open(const uint8_t *blob, size_t size, tb_model *out_model);

/* A window (rows x channels counts, row after row) as the model's quantised features. Nothing can fail. */
void tb_model_features(const tb_model *model, const int16_t *window, int16_t *out_features);

/* Run on quantised features. Nothing can fail. */
void tb_model_run(const tb_model *model, const int16_t *features, tb_scratch *scratch, tb_prediction *out_prediction);

/* Both: a window to a prediction. Nothing can fail. */
void tb_model_predict(const tb_model *model, const int16_t *window, tb_scratch *scratch, tb_prediction *out_prediction);

/* Run the model's own vectors. TB_ERR_SELFTEST: one of them came out with another class or score. */
tb_status tb_model_selftest(const tb_model *model, tb_scratch *scratch);

#ifdef __cplusplus
}
#endif
#endif
