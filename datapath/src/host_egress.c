/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * host_egress: packets that leave the node by its own devices.
 *
 * Hook      tcx egress of the underlay device(s), after the node's masquerade.
 * Contract  An answer of one of this node's own processes to a translated request gets the address and port that the
 *           client knows. A packet with a pod's source address is dropped: pods talk to other nodes through the
 *           overlay and to the outside with the node's address, so such a packet escaped the masquerade.
 * Cost      VXLAN: one read. Others: one hash look-up.
 * Kernel    6.6.
 */
#include "forward.h"
#include "overlay.h"

PROGRAM("tc")
int host_egress(struct __sk_buff *skb)
{
	const struct config *config = config_get();
	struct overlay_peek peek;
	struct packet packet;
	__u32 unused;
	int reason;

	if (!config || skb->protocol != to_be16(ETH_P_IP))
		return TC_PASS;
	if (overlay_seen(skb, config, &peek) && peek.ip.source == config->node.words[3])
		return TC_PASS;
	reason = packet_parse(skb, &packet);
	if (reason == REASON_MALFORMED)
		return TC_PASS;
	if (addr_in_range(&packet.sender, &config->pod_range, &config->pod_mask))
		return dropped(skb, REASON_UNMASQUERADED, PLACE_HOST);
	if (reason || !protocol_has_ports(packet.protocol) ||
	    (packet.protocol == PROTOCOL_UDP && packet.destination_port == config->overlay_port))
		return TC_PASS;
	reason = translation_reply(skb, &packet, &unused);
	if (reason == REASON_TRANSLATION_MISSING)
		return TC_PASS;
	if (reason)
		return dropped(skb, reason, PLACE_HOST);
	return passed(skb, REASON_REPLY_TRANSLATED, PLACE_HOST, TC_PASS);
}
