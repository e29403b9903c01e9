/* Files of the machine that runs QEMU, by semihosting. Every call fails cleanly where nobody serves it. */
#ifndef SEMIHOST_H
#define SEMIHOST_H

#include <stdbool.h>
#include <stdint.h>

typedef int32_t sh_file; /* below 0: no file */

/* The command line (-semihosting-config arg=...), its words separated by blanks. False: there is none. */
bool sh_command_line(char *out, uint32_t size);
/* Open for reading and writing; a file that is not there is made. */
sh_file sh_open(const char *path);
bool sh_read(sh_file file, uint32_t at, uint8_t *out, uint32_t n);
bool sh_write(sh_file file, uint32_t at, const uint8_t *data, uint32_t n);
uint32_t sh_length(sh_file file);
uint32_t sh_time_s(void);

#endif
