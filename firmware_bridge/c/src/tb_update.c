#include "tb_update.h"

#include <string.h>

#include "tb_bytes.h"
#include "tb_sha256.h"

static tb_status open_checked(const tb_update_config *config, const uint8_t *blob, uint32_t size, tb_model *out_model)
{
  tb_status status = tb_model_open(blob, size, out_model);
  if (status == TB_OK && (out_model->channels != config->channels ||
                          (uint32_t)out_model->rows * out_model->channels > config->window_max)) {
    return TB_ERR_MODEL;
  }
  return status;
}

static void now_runs(tb_update *update, const tb_model *model, uint8_t slot, uint8_t state, const tb_slot *info)
{
  update->model = *model;
  update->running.slot = slot;
  update->running.state = state;
  update->running.counter = info ? info->counter : 0;
  if (info) {
    memcpy(update->running.sha, info->sha, 32);
  } else {
    tb_sha256 sha;
    tb_sha256_init(&sha);
    tb_sha256_update(&sha, update->config.factory, update->config.factory_size);
    tb_sha256_final(&sha, update->running.sha);
  }
  update->changes++;
}

static tb_status run_factory(tb_update *update)
{
  tb_model model;
  tb_status status = open_checked(&update->config, update->config.factory, update->config.factory_size, &model);
  if (status == TB_OK) {
    now_runs(update, &model, TB_NO_SLOT, TB_STATE_FACTORY, NULL);
  }
  return status;
}

/* Make a slot's model readable as memory and open it. What ran from RAM is overwritten. */
static tb_status load(tb_update *update, uint8_t number, const tb_slot *info, tb_model *out_model)
{
  const tb_port *port = update->config.port;
  const uint8_t *mapped = port->slot_map ? port->slot_map(port->user, number) : NULL;
  if (mapped) {
    return open_checked(&update->config, mapped + TB_SLOT_HEADER, info->size, out_model);
  }
  if (port->slot_read(port->user, number, TB_SLOT_HEADER, update->config.ram, info->size) != 0) {
    return TB_ERR_STORE;
  }
  return open_checked(&update->config, update->config.ram, info->size, out_model);
}

static void begin_trial_time(tb_update *update)
{
  const tb_port *port = update->config.port;
  update->trial_end_us = port->clock_us(port->user) + (uint64_t)update->config.trial_s * 1000000u;
}

static tb_status try_choice(tb_update *update, tb_choice choice, const tb_slot *slots)
{
  const tb_port *port = update->config.port;
  tb_model model;
  if (choice.reject < TB_SLOTS) {
    (void)tb_slot_mark(port, choice.reject, TB_MARK_REJECTED); /* if it fails, it is tried again at the next start */
  }
  if (choice.runs >= TB_SLOTS) {
    return run_factory(update);
  }
  tb_status status = choice.on_trial ? tb_slot_mark(port, choice.runs, TB_MARK_TRIAL) : TB_OK;
  if (status == TB_OK) {
    status = load(update, choice.runs, &slots[choice.runs], &model);
  }
  if (status == TB_OK) {
    uint8_t state = choice.on_trial ? TB_STATE_TRIAL : TB_STATE_CONFIRMED;
    now_runs(update, &model, choice.runs, state, &slots[choice.runs]);
    begin_trial_time(update);
  }
  return status;
}

/* Run what the slots say. A slot that cannot be opened after all is rejected, and the choice is made again: so twice at
 * most, and then the factory's model. */
static tb_status run_best(tb_update *update)
{
  const tb_port *port = update->config.port;
  tb_slot slots[TB_SLOTS];
  for (uint8_t i = 0; i < TB_SLOTS; i++) {
    (void)tb_slot_inspect(port, i, update->config.slot_bytes, &slots[i]); /* unreadable: as if nothing were there */
  }
  for (uint8_t tries = 0; tries < TB_SLOTS; tries++) {
    tb_choice choice = tb_slots_choose(slots);
    tb_status status = try_choice(update, choice, slots);
    if (status == TB_OK || choice.runs >= TB_SLOTS) {
      return status;
    }
    (void)tb_slot_mark(port, choice.runs, TB_MARK_REJECTED);
    slots[choice.runs].rejected = true;
  }
  return run_factory(update);
}

tb_status tb_update_init(tb_update *update, const tb_update_config *config)
{
  const tb_port *port = config ? config->port : NULL;
  if (!update || !port || !port->slot_erase || !port->slot_write || !port->slot_read || !port->clock_us ||
      !config->factory || !config->scratch || (!config->ram && !port->slot_map) || config->align < 1 ||
      config->align > TB_ALIGN_MAX || (config->align & (config->align - 1)) != 0 || config->slot_bytes == 0) {
    return TB_ERR_ARG;
  }
  memset(update, 0, sizeof *update);
  update->config = *config;
  return run_best(update);
}

/* End what runs: set REJECTED and run what is behind it. */
static tb_status step_back(tb_update *update)
{
  tb_status status = tb_slot_mark(update->config.port, (uint8_t)update->running.slot, TB_MARK_REJECTED);
  return status == TB_OK ? run_best(update) : status;
}

bool tb_update_poll(tb_update *update)
{
  const tb_port *port = update->config.port;
  if (update->running.state != TB_STATE_TRIAL || port->clock_us(port->user) < update->trial_end_us) {
    return false;
  }
  if (step_back(update) != TB_OK) { /* the mark could not be set: the next start ends the trial, by TRIAL alone */
    (void)run_factory(update);
  }
  return true;
}

/* The slot for a new model: never the one that runs; the one where the same model is half there, or else the older. */
static uint8_t slot_for(const tb_update *update, const tb_slot slots[TB_SLOTS], const tb_slot *wanted)
{
  if (update->running.slot < TB_SLOTS) {
    return (uint8_t)(1 - update->running.slot);
  }
  for (uint8_t i = 0; i < TB_SLOTS; i++) {
    if (slots[i].header && !slots[i].rejected && memcmp(slots[i].sha, wanted->sha, 32) == 0) {
      return i;
    }
  }
  return slots[0].header && (!slots[1].header || slots[1].counter < slots[0].counter) ? 1 : 0;
}

static bool half_there(const tb_slot *slot, const tb_slot *wanted)
{
  return slot->header && !slot->valid && !slot->trial && !slot->confirmed && !slot->rejected &&
         slot->size == wanted->size && slot->format == wanted->format && slot->abi == wanted->abi &&
         memcmp(slot->sha, wanted->sha, 32) == 0;
}

static tb_status begin(tb_update *update, const tb_frame *request, uint8_t *out, uint8_t *out_size)
{
  const tb_update_config *config = &update->config;
  const uint8_t *p = request->payload;
  tb_slot wanted, slots[TB_SLOTS];
  if (request->size != 40 || tb_get_u32(p) == 0) {
    return TB_ERR_ARG;
  }
  memset(&wanted, 0, sizeof wanted);
  wanted.size = tb_get_u32(p);
  memcpy(wanted.sha, p + 4, 32);
  wanted.format = tb_get_u16(p + 36);
  wanted.abi = tb_get_u16(p + 38);
  if (wanted.size > config->slot_bytes) {
    return TB_ERR_SIZE;
  }
  if (wanted.format != TB_MODEL_FORMAT || wanted.abi != TB_MODEL_ABI) {
    return TB_ERR_MODEL;
  }
  if (update->running.state == TB_STATE_TRIAL) {
    return TB_ERR_STATE;
  }
  for (uint8_t i = 0; i < TB_SLOTS; i++) {
    if (tb_slot_inspect(config->port, i, config->slot_bytes, &slots[i]) != TB_OK) {
      return TB_ERR_STORE;
    }
  }
  uint8_t number = slot_for(update, slots, &wanted);
  tb_status status = TB_OK;
  wanted.counter = slots[1 - number].header ? slots[1 - number].counter + 1 : 1;
  if (!half_there(&slots[number], &wanted) || slots[number].counter != wanted.counter) {
    update->next = 0;
    status = tb_slot_begin(config->port, number, &wanted);
  } else if (!update->receiving || update->slot != number) {
    status = tb_slot_progress(config->port, number, wanted.size, config->align, &update->next);
  }
  update->receiving = status == TB_OK;
  update->slot = number;
  update->incoming = wanted;
  out[0] = number;
  tb_put_u32(out + 1, update->next);
  *out_size = 5;
  return status;
}

/* What was received is no good: the next BEGIN must begin at 0. */
static tb_status spoiled(tb_update *update, tb_status why)
{
  update->receiving = false;
  tb_status status = tb_slot_mark(update->config.port, update->slot, TB_MARK_REJECTED);
  return status == TB_OK ? why : TB_ERR_STORE;
}

static tb_status chunk(tb_update *update, const tb_frame *request, uint8_t *out, uint8_t *out_size)
{
  if (request->size < 5) {
    return TB_ERR_ARG;
  }
  if (!update->receiving) {
    return TB_ERR_STATE;
  }
  uint32_t offset = tb_get_u32(request->payload), n = request->size - 4u;
  if (offset == update->next) {
    uint32_t left = update->incoming.size - offset;
    if (n > left || (n != left && n % update->config.align != 0)) {
      return TB_ERR_ARG;
    }
    if (tb_slot_write(update->config.port, update->slot, offset, request->payload + 4, n, update->config.align) != TB_OK) {
      return spoiled(update, TB_ERR_STORE);
    }
    update->next += n;
  }
  tb_put_u32(out, update->next);
  *out_size = 4;
  return TB_OK;
}

static tb_status state_answer(const tb_update *update, uint8_t *out, uint8_t *out_size)
{
  out[0] = (uint8_t)update->running.slot;
  out[1] = (uint8_t)update->running.state;
  *out_size = 2;
  return TB_OK;
}

/* Open and test what was received. What ran may be overwritten in RAM: after a failure it must be loaded again. */
static tb_status examine(tb_update *update, const uint8_t *sha, tb_model *out_model)
{
  const tb_update_config *config = &update->config;
  uint8_t digest[32];
  tb_status status = tb_slot_hash(config->port, update->slot, update->incoming.size, digest);
  if (status == TB_OK && (memcmp(digest, update->incoming.sha, 32) != 0 || memcmp(digest, sha, 32) != 0)) {
    return TB_ERR_HASH;
  }
  if (status == TB_OK) {
    status = load(update, update->slot, &update->incoming, out_model);
  }
  return status == TB_OK ? tb_model_selftest(out_model, config->scratch) : status;
}

static tb_status commit(tb_update *update, const tb_frame *request, uint8_t *out, uint8_t *out_size)
{
  const tb_port *port = update->config.port;
  tb_model model;
  if (request->size != 32) {
    return TB_ERR_ARG;
  }
  if (update->running.state == TB_STATE_TRIAL && memcmp(update->running.sha, request->payload, 32) == 0) {
    return state_answer(update, out, out_size);
  }
  if (!update->receiving || update->next != update->incoming.size) {
    return TB_ERR_STATE;
  }
  tb_status status = examine(update, request->payload, &model);
  if (status == TB_OK) {
    status = tb_slot_mark(port, update->slot, TB_MARK_VALID);
  }
  if (status == TB_OK) {
    status = tb_slot_mark(port, update->slot, TB_MARK_TRIAL);
  }
  if (status != TB_OK) {
    status = spoiled(update, status);
    (void)run_best(update);
    return status;
  }
  update->receiving = false;
  now_runs(update, &model, update->slot, TB_STATE_TRIAL, &update->incoming);
  begin_trial_time(update);
  return state_answer(update, out, out_size);
}

static tb_status confirm(tb_update *update, const tb_frame *request, uint8_t *out, uint8_t *out_size)
{
  if (request->size != 32) {
    return TB_ERR_ARG;
  }
  if (update->running.state == TB_STATE_FACTORY || memcmp(update->running.sha, request->payload, 32) != 0) {
    return TB_ERR_STATE;
  }
  if (update->running.state == TB_STATE_TRIAL) {
    tb_status status = tb_slot_mark(update->config.port, (uint8_t)update->running.slot, TB_MARK_CONFIRMED);
    if (status != TB_OK) {
      return status;
    }
    update->running.state = TB_STATE_CONFIRMED;
  }
  return state_answer(update, out, out_size);
}

static tb_status aborted(tb_update *update)
{
  const tb_update_config *config = &update->config;
  for (uint8_t i = 0; i < TB_SLOTS; i++) {
    tb_slot slot;
    if (i == update->running.slot) {
      continue;
    }
    if (tb_slot_inspect(config->port, i, config->slot_bytes, &slot) != TB_OK ||
        (slot.header && !slot.valid && config->port->slot_erase(config->port->user, i) != 0)) {
      return TB_ERR_STORE;
    }
  }
  update->receiving = false;
  return TB_OK;
}

tb_status tb_update_handle(void *user, const tb_frame *request, uint8_t *out_answer, uint8_t *out_size)
{
  tb_update *update = user;
  switch (request->type) {
  case TB_MODEL_BEGIN: return begin(update, request, out_answer, out_size);
  case TB_MODEL_CHUNK: return chunk(update, request, out_answer, out_size);
  case TB_MODEL_COMMIT: return commit(update, request, out_answer, out_size);
  case TB_MODEL_CONFIRM: return confirm(update, request, out_answer, out_size);
  case TB_MODEL_ABORT: return request->size != 0 ? TB_ERR_ARG : aborted(update);
  case TB_MODEL_ROLLBACK:
    if (request->size != 0) {
      return TB_ERR_ARG;
    }
    if (update->running.state == TB_STATE_FACTORY) {
      return TB_ERR_STATE;
    }
    *out_size = 0;
    tb_status status = step_back(update);
    return status == TB_OK ? state_answer(update, out_answer, out_size) : status;
  default: return TB_ERR_FRAME;
  }
}
