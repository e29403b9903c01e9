/* Tree ensembles: nodes of 8 bytes, children behind their parents, so every walk ends. */
#include "tb_bytes.h"
#include "tb_model_internal.h"

#define NODE 8u

typedef struct {
  const uint8_t *firsts, *nodes, *leaves;
  uint32_t node_count;
  uint16_t tree_count, leaf_count;
} forest;

static forest forest_of(const tb_model *model)
{
  const uint8_t *p = model->blob + model->body_at;
  forest f = { p + 8, NULL, NULL, tb_get_u32(p + 4), tb_get_u16(p), tb_get_u16(p + 2) };
  f.nodes = f.firsts + 4u * f.tree_count;
  f.leaves = f.nodes + NODE * (size_t)f.node_count;
  return f;
}

static bool node_right(const tb_model *model, const forest *f, const uint8_t *node, uint32_t at, uint32_t nodes)
{
  int16_t feature = tb_get_i16(node);
  uint16_t left = tb_get_u16(node + 4), right = tb_get_u16(node + 6);
  if (feature == -1) {
    return left < f->leaf_count;
  }
  return feature >= 0 && feature < model->feature_count && left > at && right > at && left < nodes && right < nodes;
}

bool tb_trees_check(const tb_model *model)
{
  uint64_t room = model->size - model->body_at;
  const uint8_t *p = model->blob + model->body_at;
  if (room < 8) {
    return false;
  }
  uint64_t trees = tb_get_u16(p), leaves = tb_get_u16(p + 2), nodes = tb_get_u32(p + 4);
  uint64_t table = (leaves * model->classes * 2 + 3) / 4 * 4;
  if (trees < 1 || leaves < 1 || nodes < trees || 8 + 4 * trees + NODE * nodes + table > room) {
    return false;
  }
  forest f = forest_of(model);
  for (uint32_t tree = 0; tree < f.tree_count; tree++) {
    uint32_t first = tb_get_u32(f.firsts + 4 * tree);
    uint32_t end = tree + 1 < f.tree_count ? tb_get_u32(f.firsts + 4 * (tree + 1)) : f.node_count;
    if ((tree == 0 && first != 0) || end <= first || end > f.node_count) {
      return false;
    }
    for (uint32_t at = 0; at < end - first; at++) {
      if (!node_right(model, &f, f.nodes + NODE * (size_t)(first + at), at, end - first)) {
        return false;
      }
    }
  }
  return true;
}

static const uint8_t *leaf_of(const forest *f, uint32_t tree, const int16_t *features, uint8_t classes)
{
  const uint8_t *root = f->nodes + NODE * (size_t)tb_get_u32(f->firsts + 4 * tree), *node = root;
  for (int16_t feature; (feature = tb_get_i16(node)) >= 0;) {
    bool left = features[feature] <= tb_get_i16(node + 2);
    node = root + NODE * (size_t)tb_get_u16(node + (left ? 4 : 6));
  }
  return f->leaves + 2u * classes * (size_t)tb_get_u16(node + 4);
}

void tb_trees_run(const tb_model *model, const int16_t *features, uint16_t *out_scores)
{
  uint32_t sums[TB_CLASSES_MAX] = { 0 }; /* at most 65535 trees of 65535: below 2^32 */
  forest f = forest_of(model);
  for (uint32_t tree = 0; tree < f.tree_count; tree++) {
    const uint8_t *leaf = leaf_of(&f, tree, features, model->classes);
    for (uint8_t i = 0; i < model->classes; i++) {
      sums[i] += tb_get_u16(leaf + 2 * i);
    }
  }
  for (uint8_t i = 0; i < model->classes; i++) {
    out_scores[i] = (uint16_t)(sums[i] / f.tree_count);
  }
}
