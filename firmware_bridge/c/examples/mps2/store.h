/* The two slots of models: in a file of the host, so that they outlive QEMU however it ends, or in RAM without one.
 *
 * The file behaves like flash: an erase makes every byte ff, and a write goes out unit by unit (STORE_ALIGN), so that
 * ending QEMU between two of them leaves what a power cut would.
 */
#ifndef STORE_H
#define STORE_H

#include <stdint.h>

#include "tb_slots.h"

#define STORE_ALIGN 16u
#define STORE_MODEL_MAX 65536u
#define STORE_SLOT tb_slot_size(STORE_MODEL_MAX)

/* NULL or an empty path: RAM. Returns how often the board started with this store, this start included. */
uint32_t store_init(const char *path);
int store_erase(void *unused, uint8_t slot);
int store_write(void *unused, uint8_t slot, uint32_t offset, const uint8_t *data, uint32_t n);
int store_read(void *unused, uint8_t slot, uint32_t offset, uint8_t *out, uint32_t n);

#endif
