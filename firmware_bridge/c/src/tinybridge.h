/* TinyBridge: the board's side of the serial line of TinyMLOps. Everything in one include.
 *
 *   tb_link.h    the line: requests, streams, predictions, drift reports, text
 *   tb_update.h  models by the line, into two slots          tb_model.h   models themselves
 *   tb_window.h  rows into windows                           tb_stats.h   statistics and drift of a feature
 *   tb_port.h    what a board gives the library              tb_codes.h   return codes and numbers of the protocol
 */
#ifndef TINYBRIDGE_H
#define TINYBRIDGE_H

#include "tb_codes.h"
#include "tb_link.h"
#include "tb_model.h"
#include "tb_port.h"
#include "tb_stats.h"
#include "tb_update.h"
#include "tb_window.h"

#endif
