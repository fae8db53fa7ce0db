/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * pod_reset: resets, for a connection that is no longer allowed, or for a service that nobody serves.
 *
 * Hook      tail call (`continuations`, slot 0) from the pod and overlay programs; skb->cb as in continue.h.
 * Contract  RESET_BOTH: the packet becomes a reset to where it was going, and another goes back to who sent it, so
 *           both ends get ECONNRESET. Each is injected at the veth of the local endpoint: towards the pod by its
 *           egress hook (pod_ingress), from the pod by its ingress hook (pod_egress), which knows the road to the
 *           peer and the translations. They pass because the connection is marked revoked.
 *           RESET_REFUSE: the sending pod alone gets a reset, from the address that it asked.
 *           The packet itself never reaches anybody.
 * Cost      Rare.
 * Kernel    6.6.
 */
#include "continue.h"
#include "identity.h"
#include "reset.h"

static __always_inline int reset_failed(struct __sk_buff *skb, __u32 place)
{
	return dropped(skb, REASON_REWRITE_FAILED, place);
}

PROGRAM("tc")
int pod_reset(struct __sk_buff *skb)
{
	const struct config *config = config_get();
	__u32 mode = skb->cb[0], direction = skb->cb[1], reason = skb->cb[2], place = skb->cb[3] & (METRIC_PLACES - 1);
	int egress = direction == DIRECTION_EGRESS, unfinished;
	struct reset onward = {}, back = {};
	struct endpoint *pod;
	struct tcp_header tcp;
	struct packet packet;
	__u32 occupied;

	if (!config)
		return dropped(skb, REASON_NOT_CONFIGURED, place);
	count(reason, place, skb->len);
	if (packet_parse(skb, &packet) || packet.protocol != PROTOCOL_TCP || packet.l4 != L3_OFFSET + 20 ||
	    packet_read(skb, packet.l4, &tcp, sizeof(tcp)))
		return dropped(skb, REASON_MALFORMED, place);
	pod = endpoint_of(egress ? &packet.source : &packet.destination);
	if (!pod)
		return dropped(skb, REASON_NO_ENDPOINT, place);

	/* Sequence numbers that the packet takes up; padding of short frames does not count, resets are never data. */
	occupied = packet.length - packet.l4 - (tcp.data_offset >> 4) * 4;
	occupied += !!(tcp.flags & TCP_SYN) + !!(tcp.flags & TCP_FIN);

	back.source = packet.destination.words[3];
	back.destination = packet.source.words[3];
	back.source_port = packet.destination_port;
	back.destination_port = packet.source_port;
	back.flags = TCP_RST | TCP_ACK;
	back.sequence = tcp.flags & TCP_ACK ? tcp.acknowledgment : 0;
	back.acknowledgment = to_be32(from_be32(tcp.sequence) + occupied);
	onward.source = packet.source.words[3];
	onward.destination = packet.destination.words[3];
	onward.source_port = packet.source_port;
	onward.destination_port = packet.destination_port;
	onward.flags = TCP_RST | TCP_ACK;
	onward.sequence = tcp.sequence;
	onward.acknowledgment = tcp.acknowledgment;

	unfinished = reset_cut(skb);
	if (unfinished < 0)
		return reset_failed(skb, place);
	skb->mark = config->nudge_mark;
	count(REASON_RESET_SENT, place, RESET_SIZE);
	if (mode == RESET_REFUSE) {
		if (reset_write(skb, &back, pod, 1, unfinished))
			return reset_failed(skb, place);
		return redirect_peer(pod->ifindex, 0);
	}
	if (reset_write(skb, &onward, pod, !egress, unfinished) ||
	    clone_redirect(skb, pod->ifindex, egress ? BPF_F_INGRESS : 0))
		return reset_failed(skb, place);
	if (reset_write(skb, &back, pod, egress, unfinished))
		return reset_failed(skb, place);
	return redirect(pod->ifindex, egress ? 0 : BPF_F_INGRESS);
}
