/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * overlay_egress: gives this node's own packets to pods of other nodes their tunnel header.
 *
 * Hook      tcx egress of the node's overlay device.
 * Contract  Packets that a program redirected here have their header already and pass. Packets of this node's
 *           processes, routed here by the route of the cluster's pod range, get the receiver's node and the identity
 *           "remote node", which is what this node is to the other. Anything else (somebody outside who uses this
 *           node as a router) is dropped.
 * Cost      One helper call for pods' packets (most go by the device no more, see encapsulate.h); one trie look-up for
 *           the node's own.
 * Kernel    6.6.
 */
#include "forward.h"

PROGRAM("tc")
int overlay_egress(struct __sk_buff *skb)
{
	const struct config *config = config_get();
	struct bpf_tunnel_key tunnel = {};
	struct cache_entry *cache;
	struct packet packet;
	int reason;

	if (!config)
		return dropped(skb, REASON_NOT_CONFIGURED, PLACE_OVERLAY);
	if (!tunnel_get(skb, &tunnel, sizeof(tunnel), 0))
		return TC_PASS;
	if (skb->protocol != to_be16(ETH_P_IP))
		return dropped(skb, REASON_PROTOCOL_UNSUPPORTED, PLACE_OVERLAY);
	reason = packet_parse(skb, &packet);
	if (reason)
		return dropped(skb, reason, PLACE_OVERLAY);
	if (skb->ingress_ifindex)
		return dropped(skb, REASON_NOT_TUNNELLED, PLACE_OVERLAY);
	cache = cache_of(&packet.destination);
	if (!cache || addr_is_zero(&cache->tunnel))
		return dropped(skb, REASON_NO_ENDPOINT, PLACE_OVERLAY);
	if (deliver_set_tunnel(skb, &cache->tunnel, IDENTITY_REMOTE_NODE))
		return dropped(skb, REASON_REWRITE_FAILED, PLACE_OVERLAY);
	return passed(skb, REASON_TO_OVERLAY, PLACE_OVERLAY, TC_PASS);
}
