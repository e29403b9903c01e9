/* The two slots of models: headers and marks, and which model they say should run. Nothing here runs a model.
 *
 * Every mark is written once after an erase, so a power cut at any byte leaves a state that docs/wire.md ("Model slots of
 * a board") names. A slot whose model has another SHA-256 than its header says is not valid, whatever its marks say:
 * flash pages may be erased in any order.
 */
#ifndef TB_SLOTS_H
#define TB_SLOTS_H

#include "tb_codes.h"
#include "tb_port.h"

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TB_SLOT_HEADER 128u
#define TB_ALIGN_MAX 16u
/* Bytes of store that a slot for models of n bytes needs. */
#define tb_slot_size(n) (TB_SLOT_HEADER + ((n) + TB_ALIGN_MAX - 1u) / TB_ALIGN_MAX * TB_ALIGN_MAX)

typedef enum { TB_MARK_VALID = 64, TB_MARK_TRIAL = 80, TB_MARK_CONFIRMED = 96, TB_MARK_REJECTED = 112 } tb_mark;

typedef struct {
  uint32_t size;
  uint32_t counter;
  uint16_t format;
  uint16_t abi;
  uint8_t sha[32];
  bool header; /* the header's own CRC is right; else all else is 0 */
  bool valid, trial, confirmed, rejected; /* the marks; `valid` also that the SHA-256 is right */
} tb_slot;

typedef struct {
  uint8_t runs;   /* 0, 1, or 255: the factory's model */
  bool on_trial;  /* set TRIAL in `runs` first */
  uint8_t reject; /* set REJECTED in this slot first; 255: none */
} tb_choice;

/* Read a slot's header and marks, and check the model's SHA-256 if it is marked valid. TB_ERR_STORE: the port could not
 * read; *out_slot says that nothing is there. `size_max` is the room for a model. */
tb_status tb_slot_inspect(const tb_port *port, uint8_t number, uint32_t size_max, tb_slot *out_slot);

/* What runs at a start: the table of docs/wire.md, as a pure function. */
tb_choice tb_slots_choose(const tb_slot slots[TB_SLOTS]);

/* Erase a slot and write a header. TB_ERR_STORE: the port failed or what was read back differs; the slot is not valid. */
tb_status tb_slot_begin(const tb_port *port, uint8_t number, const tb_slot *wanted);

/* Set a mark. TB_ERR_STORE: it may be torn, which is not set. */
tb_status tb_slot_mark(const tb_port *port, uint8_t number, tb_mark mark);

/* Write model bytes at an offset of the model and read them back. `n` is a multiple of `align` or the model's end, which
 * is filled with ff up to it. TB_ERR_STORE: as above. */
tb_status tb_slot_write(const tb_port *port, uint8_t number, uint32_t offset, const uint8_t *data, uint32_t n,
                        uint16_t align);

/* Where a transfer that a restart ended goes on: the last write unit that is not all ff, which may be torn, or 0.
 * TB_ERR_STORE: the port could not read. */
tb_status tb_slot_progress(const tb_port *port, uint8_t number, uint32_t size, uint16_t align, uint32_t *out_next);

/* The SHA-256 of a slot's model. TB_ERR_STORE: the port could not read. */
tb_status tb_slot_hash(const tb_port *port, uint8_t number, uint32_t size, uint8_t out_digest[32]);

#ifdef __cplusplus
}
#endif
#endif
