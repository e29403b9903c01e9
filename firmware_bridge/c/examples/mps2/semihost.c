#include "semihost.h"

#include <string.h>

enum { OPEN = 0x01, CLOSE = 0x02, WRITE = 0x05, READ = 0x06, SEEK = 0x0a, FLEN = 0x0c, TIME = 0x11, CMDLINE = 0x15 };
enum { MODE_READ_WRITE = 3, MODE_CREATE = 7 }; /* "r+b", "w+b" */

static int32_t call(uint32_t operation, const void *block)
{
  register uint32_t r0 __asm("r0") = operation;
  register const void *r1 __asm("r1") = block;
  __asm volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
  return (int32_t)r0;
}

bool sh_command_line(char *out, uint32_t size)
{
  struct {
    char *at;
    uint32_t size;
  } block = { out, size };
  out[0] = 0;
  return call(CMDLINE, &block) == 0;
}

static sh_file opened(const char *path, uint32_t mode)
{
  struct {
    const char *path;
    uint32_t mode, length;
  } block = { path, mode, (uint32_t)strlen(path) };
  return call(OPEN, &block);
}

sh_file sh_open(const char *path)
{
  sh_file file = opened(path, MODE_READ_WRITE);
  return file >= 0 ? file : opened(path, MODE_CREATE);
}

static bool seek(sh_file file, uint32_t at)
{
  struct {
    sh_file file;
    uint32_t at;
  } block = { file, at };
  return call(SEEK, &block) == 0;
}

/* Both answer how many bytes were not done. */
bool sh_read(sh_file file, uint32_t at, uint8_t *out, uint32_t n)
{
  struct {
    sh_file file;
    uint8_t *out;
    uint32_t n;
  } block = { file, out, n };
  return seek(file, at) && call(READ, &block) == 0;
}

bool sh_write(sh_file file, uint32_t at, const uint8_t *data, uint32_t n)
{
  struct {
    sh_file file;
    const uint8_t *data;
    uint32_t n;
  } block = { file, data, n };
  return seek(file, at) && call(WRITE, &block) == 0;
}

uint32_t sh_length(sh_file file)
{
  int32_t length = call(FLEN, &file);
  return length < 0 ? 0 : (uint32_t)length;
}

uint32_t sh_time_s(void)
{
  return (uint32_t)call(TIME, NULL);
}
