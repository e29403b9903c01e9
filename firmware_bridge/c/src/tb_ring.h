/* A ring of bytes between one writer and one reader, either of which may be an interrupt: no lock, no disabling.
 *
 * Each index is written by one side only and is published after the bytes it covers. One place stays empty, so a ring
 * over n bytes holds n - 1. On 8-bit machines a 16-bit index is not one access: this library is for 32-bit ones.
 */
#ifndef TB_RING_H
#define TB_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
  uint8_t *data;
  uint32_t size;
  volatile uint32_t head; /* where the writer puts the next byte */
  volatile uint32_t tail; /* where the reader takes the next byte */
} tb_ring;

#if defined(__GNUC__)
#define TB_LOAD(index) __atomic_load_n(&(index), __ATOMIC_ACQUIRE)
#define TB_STORE(index, value) __atomic_store_n(&(index), (value), __ATOMIC_RELEASE)
#else /* volatile orders the accesses of one core; a compiler that is not GCC or Clang gets no more than that */
#define TB_LOAD(index) (index)
#define TB_STORE(index, value) ((index) = (value))
#endif

static inline void tb_ring_init(tb_ring *ring, uint8_t *data, uint32_t size)
{
  ring->data = data;
  ring->size = size;
  ring->head = 0;
  ring->tail = 0;
}

static inline uint32_t tb_ring_used(tb_ring *ring)
{
  uint32_t head = TB_LOAD(ring->head), tail = TB_LOAD(ring->tail);
  return head >= tail ? head - tail : head + ring->size - tail;
}

static inline uint32_t tb_ring_free(tb_ring *ring)
{
  return ring->size - 1 - tb_ring_used(ring);
}

/* Writer's side. False: no room, nothing was written. */
static inline bool tb_ring_put(tb_ring *ring, uint8_t byte)
{
  uint32_t head = ring->head, next = head + 1 == ring->size ? 0 : head + 1;
  if (next == TB_LOAD(ring->tail)) {
    return false;
  }
  ring->data[head] = byte;
  TB_STORE(ring->head, next);
  return true;
}

/* Reader's side. False: nothing there. */
static inline bool tb_ring_get(tb_ring *ring, uint8_t *out_byte)
{
  uint32_t tail = ring->tail;
  if (tail == TB_LOAD(ring->head)) {
    return false;
  }
  *out_byte = ring->data[tail];
  TB_STORE(ring->tail, tail + 1 == ring->size ? 0 : tail + 1);
  return true;
}

/* Reader's side: the bytes that lie together at the tail, to be taken by tb_ring_skip. */
static inline uint32_t tb_ring_peek(tb_ring *ring, const uint8_t **out_data)
{
  uint32_t tail = ring->tail, head = TB_LOAD(ring->head);
  *out_data = ring->data + tail;
  return head >= tail ? head - tail : ring->size - tail;
}

/* Reader's side: take `n` bytes, no more than tb_ring_peek told. */
static inline void tb_ring_skip(tb_ring *ring, uint32_t n)
{
  uint32_t tail = ring->tail + n;
  TB_STORE(ring->tail, tail >= ring->size ? tail - ring->size : tail);
}

#endif
