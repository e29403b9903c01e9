#include "tb_slots.h"

#include <string.h>

#include "tb_bytes.h"
#include "tb_crc.h"
#include "tb_sha256.h"

#define MARK_BYTE 0xa5
#define MARK_SIZE 16u
#define HEADER_SIZE 64u
#define NONE 255u

static const uint8_t MAGIC[4] = { 'T', 'B', 'S', '1' };

static tb_status read_slot(const tb_port *port, uint8_t number, uint32_t offset, uint8_t *out, uint32_t n)
{
  return port->slot_read(port->user, number, offset, out, n) == 0 ? TB_OK : TB_ERR_STORE;
}

/* Written bytes are read back: a flash that is worn out or was not erased says so now and not at the next start. */
static tb_status write_slot(const tb_port *port, uint8_t number, uint32_t offset, const uint8_t *data, uint32_t n)
{
  uint8_t back[32];
  if (port->slot_write(port->user, number, offset, data, n) != 0) {
    return TB_ERR_STORE;
  }
  while (n > 0) {
    uint32_t part = n < sizeof back ? n : (uint32_t)sizeof back;
    if (read_slot(port, number, offset, back, part) != TB_OK || memcmp(back, data, part) != 0) {
      return TB_ERR_STORE;
    }
    offset += part;
    data += part;
    n -= part;
  }
  return TB_OK;
}

static bool marked(const uint8_t *raw, tb_mark mark)
{
  for (unsigned i = 0; i < MARK_SIZE; i++) {
    if (raw[(unsigned)mark + i] != MARK_BYTE) {
      return false;
    }
  }
  return true;
}

tb_status tb_slot_inspect(const tb_port *port, uint8_t number, uint32_t size_max, tb_slot *out_slot)
{
  uint8_t raw[TB_SLOT_HEADER], digest[32];
  memset(out_slot, 0, sizeof *out_slot);
  if (read_slot(port, number, 0, raw, sizeof raw) != TB_OK) {
    return TB_ERR_STORE;
  }
  if (memcmp(raw, MAGIC, 4) != 0 || tb_crc32(0, raw, 60) != tb_get_u32(raw + 60) || tb_get_u32(raw + 4) > size_max) {
    return TB_OK;
  }
  out_slot->header = true;
  out_slot->size = tb_get_u32(raw + 4);
  memcpy(out_slot->sha, raw + 8, 32);
  out_slot->format = tb_get_u16(raw + 40);
  out_slot->abi = tb_get_u16(raw + 42);
  out_slot->counter = tb_get_u32(raw + 44);
  out_slot->trial = marked(raw, TB_MARK_TRIAL);
  out_slot->confirmed = marked(raw, TB_MARK_CONFIRMED);
  out_slot->rejected = marked(raw, TB_MARK_REJECTED);
  if (marked(raw, TB_MARK_VALID)) {
    tb_status status = tb_slot_hash(port, number, out_slot->size, digest);
    if (status != TB_OK) {
      return status;
    }
    out_slot->valid = memcmp(digest, out_slot->sha, 32) == 0;
  }
  return TB_OK;
}

tb_choice tb_slots_choose(const tb_slot slots[TB_SLOTS])
{
  tb_choice choice = { NONE, false, NONE };
  uint8_t newest = NONE;
  for (uint8_t i = 0; i < TB_SLOTS; i++) {
    if (slots[i].valid && (newest == NONE || slots[i].counter > slots[newest].counter)) {
      newest = i;
    }
  }
  if (newest == NONE) {
    return choice;
  }
  const tb_slot *slot = &slots[newest];
  if (!slot->rejected && slot->confirmed) {
    choice.runs = newest;
    return choice;
  }
  if (!slot->rejected && !slot->trial) {
    choice.runs = newest;
    choice.on_trial = true;
    return choice;
  }
  if (!slot->rejected) {
    choice.reject = newest;
  }
  const tb_slot *other = &slots[1 - newest];
  if (other->valid && other->confirmed && !other->rejected) {
    choice.runs = (uint8_t)(1 - newest);
  }
  return choice;
}

tb_status tb_slot_begin(const tb_port *port, uint8_t number, const tb_slot *wanted)
{
  uint8_t raw[HEADER_SIZE];
  memset(raw, 0, sizeof raw);
  memcpy(raw, MAGIC, 4);
  tb_put_u32(raw + 4, wanted->size);
  memcpy(raw + 8, wanted->sha, 32);
  tb_put_u16(raw + 40, wanted->format);
  tb_put_u16(raw + 42, wanted->abi);
  tb_put_u32(raw + 44, wanted->counter);
  tb_put_u32(raw + 60, tb_crc32(0, raw, 60));
  if (port->slot_erase(port->user, number) != 0) {
    return TB_ERR_STORE;
  }
  return write_slot(port, number, 0, raw, sizeof raw);
}

tb_status tb_slot_mark(const tb_port *port, uint8_t number, tb_mark mark)
{
  uint8_t raw[MARK_SIZE];
  memset(raw, MARK_BYTE, sizeof raw);
  return write_slot(port, number, (uint32_t)mark, raw, sizeof raw);
}

tb_status tb_slot_write(const tb_port *port, uint8_t number, uint32_t offset, const uint8_t *data, uint32_t n,
                        uint16_t align)
{
  uint32_t whole = n - n % align;
  tb_status status = whole ? write_slot(port, number, TB_SLOT_HEADER + offset, data, whole) : TB_OK;
  if (status != TB_OK || whole == n) {
    return status;
  }
  uint8_t end[TB_ALIGN_MAX];
  memset(end, 0xff, sizeof end);
  memcpy(end, data + whole, n - whole);
  return write_slot(port, number, TB_SLOT_HEADER + offset + whole, end, align);
}

tb_status tb_slot_progress(const tb_port *port, uint8_t number, uint32_t size, uint16_t align, uint32_t *out_next)
{
  uint8_t unit[TB_ALIGN_MAX];
  uint32_t next = (size + align - 1u) / align * align;
  *out_next = 0;
  while (next > 0) {
    next -= align;
    if (read_slot(port, number, TB_SLOT_HEADER + next, unit, align) != TB_OK) {
      return TB_ERR_STORE;
    }
    for (unsigned i = 0; i < align; i++) {
      if (unit[i] != 0xff) {
        *out_next = next;
        return TB_OK;
      }
    }
  }
  return TB_OK;
}

tb_status tb_slot_hash(const tb_port *port, uint8_t number, uint32_t size, uint8_t out_digest[32])
{
  tb_sha256 sha;
  uint8_t part[64];
  tb_sha256_init(&sha);
  for (uint32_t at = 0; at < size;) {
    uint32_t n = size - at < sizeof part ? size - at : (uint32_t)sizeof part;
    if (read_slot(port, number, TB_SLOT_HEADER + at, part, n) != TB_OK) {
      return TB_ERR_STORE;
    }
    tb_sha256_update(&sha, part, n);
    at += n;
  }
  tb_sha256_final(&sha, out_digest);
  return TB_OK;
}
