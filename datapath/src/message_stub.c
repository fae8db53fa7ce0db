/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * message_stub: what every enrolled socket runs when it sends.
 *
 * Hook      sk_msg verdict of the map `sockets`. A socket keeps the program that it met when it was enrolled, so this
 *           one never changes: it goes on in the program that stands in `senders` now. An upgrade swaps that.
 * Contract  With nothing in `senders` (redirect is being taken away) the bytes go by TCP.
 * Cost      One tail call.
 * Kernel    6.6.
 */
#include "helpers.h"
#include "maps.h"

PROGRAM("sk_msg")
int message_stub(struct sk_msg_md *msg)
{
	tail_call(msg, MAP(senders), REDIRECT_SLOT);
	return SK_PASS;
}
