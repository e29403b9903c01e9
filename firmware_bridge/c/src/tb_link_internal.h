/* What the link's own files share; not for users. */
#ifndef TB_LINK_INTERNAL_H
#define TB_LINK_INTERNAL_H

#include "tb_link.h"

/* Answer a request as it asks (tb_requests.c). */
void tb_requests_handle(tb_link *link, const tb_frame *request);
/* The frame is finished: count it as sent or dropped. */
tb_status tb_link_sent(tb_link *link, tb_encoder *encoder);
/* METRICS as a map (tb_requests.c). */
void tb_requests_pack_metrics(tb_link *link, tb_encoder *encoder);
/* Drift reports: send or give up the oldest when it is due; the host has answered one (tb_send.c). */
void tb_drift_poll(tb_link *link);
void tb_drift_answered(tb_link *link, uint16_t seq, bool refused);
/* Begin an unasked frame, which leaves room for an answer. */
void tb_link_unasked(tb_link *link, tb_encoder *encoder, uint8_t flags, uint8_t type, uint16_t seq);

#endif
