/* Models by the line: a transfer into the slot that does not run, its check, a trial, and what runs after any restart.
 *
 * Joins tb_slots (what is stored) and tb_model (what runs) to the link, as its handler:
 *
 *   tb_update_init(&update, &config);
 *   link.handler = tb_update_handle; link.handler_user = &update; link.running = &update.running;
 *   for (;;) { tb_link_poll(&link); tb_update_poll(&update); ... }
 *
 * When another model runs (`changes` went up), begin a new window for update.model.
 */
#ifndef TB_UPDATE_H
#define TB_UPDATE_H

#include "tb_link.h"
#include "tb_model.h"
#include "tb_slots.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  const tb_port *port;
  const uint8_t *factory; /* a model that is always there */
  uint32_t factory_size;
  uint32_t slot_bytes; /* as in tb_board */
  uint8_t *ram;        /* slot_bytes for the model that runs; NULL where the port's slot_map gives the slots as memory */
  tb_scratch *scratch; /* for self-tests; may be shared with the predictions, which are made in the same loop */
  uint32_t window_max; /* values (rows x channels) of the largest window there is memory for */
  uint16_t align, trial_s; /* as in tb_board */
  uint8_t channels;        /* of the sensor that models are for */
} tb_update_config;

typedef struct {
  tb_update_config config;
  tb_model model;     /* what runs */
  tb_running running; /* the same, as CAPS tells it */
  uint32_t changes;   /* how often another model began to run */
  uint64_t trial_end_us;
  /* the transfer under way; its slot's header is in the store */
  tb_slot incoming;
  uint32_t next;
  uint8_t slot;
  bool receiving;
} tb_update;

/* Begin: look at the slots, set the marks that a start sets, and open what runs. Returns
 *   TB_OK         update->model runs;
 *   TB_ERR_ARG    a part of the configuration is missing or out of range; nothing was touched;
 *   TB_ERR_MODEL  the factory's model itself is refused; nothing is to be used. */
tb_status tb_update_init(tb_update *update, const tb_update_config *config);

/* The link's handler: answers MODEL_BEGIN, CHUNK, COMMIT, CONFIRM, ABORT and ROLLBACK; TB_ERR_FRAME for other types. A
 * refusal leaves what ran running. */
tb_status tb_update_handle(void *update, const tb_frame *request, uint8_t *out_answer, uint8_t *out_size);

/* End a trial whose time is over. True: it was, and another model runs. */
bool tb_update_poll(tb_update *update);

#ifdef __cplusplus
}
#endif
#endif
