/* What the model's own files share; not for users. */
#ifndef TB_MODEL_INTERNAL_H
#define TB_MODEL_INTERNAL_H

#include "tb_model.h"

#include <stdbool.h>

/* Whether the body lies within the blob and keeps the rules of its kind. */
bool tb_trees_check(const tb_model *model);
bool tb_mlp_check(const tb_model *model);
void tb_trees_run(const tb_model *model, const int16_t *features, uint16_t *out_scores);
void tb_mlp_run(const tb_model *model, const int16_t *features, tb_scratch *scratch, uint16_t *out_scores);

/* (x - offset) * scale, rounded half away from zero and clamped; NaN becomes the least. */
int16_t tb_quantise(float x, float offset, float scale, float low, float high);

#define TB_FEATURE_SIZE 12u

#endif
