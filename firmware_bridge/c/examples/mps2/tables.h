/* What make_tables.py writes at build time: the sensor's rows, the factory's model, and how each channel is watched. */
#ifndef TABLES_H
#define TABLES_H

#include <stdint.h>

#include "tb_stats.h"

#define CHANNELS 6
#define COUNTS_PER_UNIT 100 /* as in make_tables.py */

extern const uint32_t TABLE_ROWS;
extern const int16_t TABLE_VALUES[][CHANNELS];
extern const uint8_t FACTORY_MODEL[];
extern const uint32_t FACTORY_MODEL_SIZE;
extern const tb_watch WATCHES[CHANNELS];

#endif
