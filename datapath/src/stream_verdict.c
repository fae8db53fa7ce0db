/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * stream_verdict: takes what arrives by TCP at an enrolled socket, as it is.
 *
 * Hook      sk_skb verdict of the map `sockets`.
 * Contract  Always SK_PASS. It is there for what its presence does: with it, bytes that came by TCP are counted by
 *           FIONREAD (and poll) as those that were redirected are; without it FIONREAD says 0 and some programs stop
 *           reading. Seen on 6.18.
 * Cost      None for redirected bytes.
 * Kernel    6.6.
 */
#include "platform.h"

PROGRAM("sk_skb/verdict")
int stream_verdict(struct __sk_buff *skb)
{
	(void)skb;
	return SK_PASS;
}
