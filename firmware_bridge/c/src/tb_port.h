/* The port: the few functions a board gives the library. All of them are called from tb_link_poll and the send functions,
 * never from an interrupt, and none may block for long. `user` is handed through untouched.
 */
#ifndef TB_PORT_H
#define TB_PORT_H

#include <stddef.h>
#include <stdint.h>

#define TB_SLOTS 2

typedef struct {
  /* The next received byte, or -1 when there is none. NULL when an interrupt hands bytes to tb_link_push instead. */
  int (*read)(void *user);
  /* Take up to `n` bytes to send and return how many were taken; the rest is offered again at the next poll. */
  size_t (*write)(void *user, const uint8_t *data, size_t n);
  /* Microseconds since the start, never going back. */
  uint64_t (*clock_us)(void *user);
  /* A slot has room for TB_SLOT_HEADER bytes and a model. Each returns 0, or anything else for a failure.
   * Erase makes every byte ff. Write is offered each byte once after an erase, but for write units torn by a power cut,
   * which are offered again with the same bytes. NULL on a board without slots. */
  int (*slot_erase)(void *user, uint8_t slot);
  int (*slot_write)(void *user, uint8_t slot, uint32_t offset, const uint8_t *data, uint32_t n);
  int (*slot_read)(void *user, uint8_t slot, uint32_t offset, uint8_t *out, uint32_t n);
  /* Where the slot can be read as memory, or NULL: then models are copied into RAM to run. The pointer itself may be
   * NULL. */
  const uint8_t *(*slot_map)(void *user, uint8_t slot);
  /* Restart the board. Does not return on a board; where it does (on a host), the caller starts everything anew. */
  void (*reset)(void *user);
  void *user;
} tb_port;

#endif
