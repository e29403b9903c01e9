/* Little-endian integers at any address: no alignment is assumed, no byte order either. */
#ifndef TB_BYTES_H
#define TB_BYTES_H

#include <stdint.h>
#include <string.h>

/* Whether integers lie in memory as they go over the line: then whole values are copied, which takes less flash. */
#if defined(__BYTE_ORDER__) && defined(__ORDER_LITTLE_ENDIAN__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define TB_LITTLE_ENDIAN 1
#else
#define TB_LITTLE_ENDIAN 0
#endif

static inline uint16_t tb_get_u16(const uint8_t *p)
{
  return (uint16_t)(p[0] | (uint32_t)p[1] << 8);
}

static inline int16_t tb_get_i16(const uint8_t *p)
{
  return (int16_t)tb_get_u16(p);
}

static inline uint32_t tb_get_u32(const uint8_t *p)
{
  return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline int32_t tb_get_i32(const uint8_t *p)
{
  return (int32_t)tb_get_u32(p);
}

static inline float tb_get_f32(const uint8_t *p)
{
  uint32_t bits = tb_get_u32(p);
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static inline uint8_t *tb_put_u16(uint8_t *p, uint16_t value)
{
  p[0] = (uint8_t)value;
  p[1] = (uint8_t)(value >> 8);
  return p + 2;
}

static inline uint8_t *tb_put_u32(uint8_t *p, uint32_t value)
{
#if TB_LITTLE_ENDIAN
  memcpy(p, &value, sizeof value);
  return p + 4;
#else
  p = tb_put_u16(p, (uint16_t)value);
  return tb_put_u16(p, (uint16_t)(value >> 16));
#endif
}

static inline uint8_t *tb_put_u64(uint8_t *p, uint64_t value)
{
#if TB_LITTLE_ENDIAN
  memcpy(p, &value, sizeof value);
  return p + 8;
#else
  p = tb_put_u32(p, (uint32_t)value);
  return tb_put_u32(p, (uint32_t)(value >> 32));
#endif
}

#endif
