#include "options.h"

#include <stddef.h>
#include <string.h>

#include "semihost.h"

static uint32_t number(const char *text, uint32_t low, uint32_t high, uint32_t otherwise)
{
  uint64_t value = 0;
  if (!*text) {
    return otherwise;
  }
  for (; *text; text++) {
    if (*text < '0' || *text > '9' || value > UINT32_MAX) {
      return otherwise;
    }
    value = value * 10 + (uint32_t)(*text - '0');
  }
  return value < low ? low : value > high ? high : (uint32_t)value;
}

static void option(options *out, const char *word)
{
  static const struct {
    const char *name;
    size_t at;
    uint32_t low, high;
  } NUMBERS[] = {
    { "speed=", offsetof(options, speed), 1, 100 },
    { "rows=", offsetof(options, rows), 1, 80 },
    { "drift_at=", offsetof(options, drift_at), 0, UINT32_MAX },
    { "trial_s=", offsetof(options, trial_s), 1, 65535 },
    { "metrics_ms=", offsetof(options, metrics_ms), 0, UINT32_MAX },
    { "frame_max=", offsetof(options, frame_max), 64, 1024 },
  };
  if (strncmp(word, "uid=", 4) == 0) {
    out->uid = word + 4;
  } else if (strncmp(word, "flash=", 6) == 0) {
    out->flash = word + 6;
  }
  for (size_t i = 0; i < sizeof NUMBERS / sizeof NUMBERS[0]; i++) {
    size_t n = strlen(NUMBERS[i].name);
    if (strncmp(word, NUMBERS[i].name, n) == 0) {
      uint32_t *field = (uint32_t *)(void *)((char *)out + NUMBERS[i].at);
      *field = number(word + n, NUMBERS[i].low, NUMBERS[i].high, *field);
    }
  }
}

void options_read(options *out)
{
  memset(out, 0, sizeof *out);
  out->uid = "mps2-an385-0001";
  out->speed = 1;
  out->rows = 10;
  out->drift_at = UINT32_MAX;
  out->trial_s = 60;
  out->metrics_ms = 10000;
  out->frame_max = 512;
  if (!sh_command_line(out->text, sizeof out->text)) {
    return;
  }
  for (char *word = out->text; word;) { /* not strtok: newlib's brings malloc with it */
    char *end = strchr(word, ' ');
    if (end) {
      *end++ = 0;
    }
    option(out, word);
    word = end;
  }
}
