#include "store.h"

#include <stdbool.h>
#include <string.h>

#include "semihost.h"

#define STARTS_AT (TB_SLOTS * STORE_SLOT) /* u32: how often the board started */
#define BLOCK 1024u

static sh_file file = -1;
static uint8_t memory[TB_SLOTS][STORE_SLOT];

static bool fresh_slot(uint8_t slot)
{
  uint8_t block[BLOCK];
  memset(block, 0xff, sizeof block);
  for (uint32_t at = 0; at < STORE_SLOT; at += BLOCK) {
    uint32_t n = STORE_SLOT - at < BLOCK ? STORE_SLOT - at : BLOCK;
    if (!sh_write(file, slot * STORE_SLOT + at, block, n)) {
      return false;
    }
  }
  return true;
}

uint32_t store_init(const char *path)
{
  static uint32_t starts __attribute__((section(".noinit")));
  memset(memory, 0xff, sizeof memory);
  file = path && path[0] ? sh_open(path) : -1;
  if (file < 0) {
    return ++starts;
  }
  uint8_t raw[4] = { 0, 0, 0, 0 };
  if (sh_length(file) < STARTS_AT + sizeof raw) {
    for (uint8_t slot = 0; slot < TB_SLOTS; slot++) {
      (void)fresh_slot(slot);
    }
  } else {
    (void)sh_read(file, STARTS_AT, raw, sizeof raw);
  }
  memcpy(&starts, raw, sizeof raw);
  starts++;
  memcpy(raw, &starts, sizeof raw);
  (void)sh_write(file, STARTS_AT, raw, sizeof raw);
  return starts;
}

static bool outside(uint8_t slot, uint32_t offset, uint32_t n)
{
  return slot >= TB_SLOTS || offset > STORE_SLOT || n > STORE_SLOT - offset;
}

int store_erase(void *unused, uint8_t slot)
{
  (void)unused;
  if (outside(slot, 0, 0)) {
    return -1;
  }
  memset(memory[slot], 0xff, STORE_SLOT);
  return file < 0 || fresh_slot(slot) ? 0 : -1;
}

int store_write(void *unused, uint8_t slot, uint32_t offset, const uint8_t *data, uint32_t n)
{
  (void)unused;
  if (outside(slot, offset, n) || offset % STORE_ALIGN != 0 || n % STORE_ALIGN != 0) {
    return -1;
  }
  if (file < 0) {
    memcpy(memory[slot] + offset, data, n);
    return 0;
  }
  for (uint32_t at = 0; at < n; at += STORE_ALIGN) {
    if (!sh_write(file, slot * STORE_SLOT + offset + at, data + at, STORE_ALIGN)) {
      return -1;
    }
  }
  return 0;
}

int store_read(void *unused, uint8_t slot, uint32_t offset, uint8_t *out, uint32_t n)
{
  (void)unused;
  if (outside(slot, offset, n)) {
    return -1;
  }
  if (file < 0) {
    memcpy(out, memory[slot] + offset, n);
    return 0;
  }
  return sh_read(file, slot * STORE_SLOT + offset, out, n) ? 0 : -1;
}
