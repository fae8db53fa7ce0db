/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * pod_egress: everything that a pod sends.
 *
 * Hook      tcx ingress at the host's end of the pod's veth.
 * Contract  A packet that is not the pod's own is dropped. The pod's egress policy runs on all the rest; for a pod of
 *           this node the receiver's ingress policy too, then the packet is moved into its namespace; another node's
 *           pod gets it through the overlay with the sender's identity; the rest goes to the host's stack.
 *           Nothing passes without an endpoint entry and a policy.
 * Cost      Known connection, same node: 3 hash look-ups for addresses, 2 for connections, 2 arrays. To another
 *           node: one trie and the node's routes instead of the receiver's connection, and 64 bytes written.
 * Kernel    6.6 (tcx; bpf_redirect_peer 5.10; BPF_FIB_LOOKUP_SKIP_NEIGH 6.3).
 */
#include "arp.h"
#include "forward.h"
#include "sender.h"

static __always_inline int destination_refused(const struct packet *packet)
{
	__u32 address = from_be32(packet->destination.words[3]);

	return address >> 28 >= 0xe || address == 0; /* multicast, reserved, broadcast, nobody */
}

/* A node's port that a service has, unless the packet belongs to a connection that the node opened. */
static __always_inline int destination_is_node_port(const struct packet *packet, const struct endpoint *from)
{
	struct flow_key key;

	if (!service_find(&packet->destination, packet->destination_port, packet->protocol, SCOPE_CLUSTER, 1))
		return 0;
	conntrack_key(&key, packet, from->id, DIRECTION_EGRESS);
	return !map_lookup(MAP(conntrack), &key);
}

PROGRAM("tc")
int pod_egress(struct __sk_buff *skb)
{
	const struct config *config = config_get();
	struct event_details details = { .direction = DIRECTION_EGRESS, .place = PLACE_POD_EGRESS };
	struct endpoint *from = 0;
	struct packet packet;
	struct target target;
	int reason;

	if (!config)
		return dropped(skb, REASON_NOT_CONFIGURED, PLACE_POD_EGRESS);
	if (skb->vlan_present)
		return dropped(skb, REASON_PROTOCOL_UNSUPPORTED, PLACE_POD_EGRESS);
	if (skb->protocol == to_be16(ETH_P_ARP))
		return arp_answer(skb, config);
	if (skb->protocol != to_be16(ETH_P_IP))
		return dropped(skb, REASON_PROTOCOL_UNSUPPORTED, PLACE_POD_EGRESS);
	reason = packet_parse(skb, &packet);
	if (reason)
		return dropped(skb, reason, PLACE_POD_EGRESS);
	packet_forget(config, &packet);
	reason = sender_check(skb, &packet, &from);
	if (reason || !from)
		return dropped_flow(skb, config, &packet, &details, reason);
	details.endpoint = from->id;
	if (destination_refused(&packet))
		return dropped(skb, REASON_MULTICAST_UNSUPPORTED, PLACE_POD_EGRESS);

	if (addr_in_range(&packet.destination, &config->service_range, &config->service_mask) ||
	    addr_equal(&packet.destination, &config->loopback))
		return continue_service(skb, PLACE_POD_EGRESS);
	reason = target_find(config, &packet.destination, &target);
	details.peer_identity = target.identity;
	if (reason)
		return dropped_flow(skb, config, &packet, &details, reason);
	if (target.cache) {
		if (target.cache->flags & CACHE_SERVICE)
			return continue_service(skb, PLACE_POD_EGRESS);
		if (target.identity == IDENTITY_HOST || target.identity == IDENTITY_REMOTE_NODE) {
			if (packet.protocol == PROTOCOL_UDP && packet.destination_port == config->overlay_port)
				return dropped_flow(skb, config, &packet, &details, REASON_POD_SENT_OVERLAY);
			if (destination_is_node_port(&packet, from))
				return continue_service(skb, PLACE_POD_EGRESS);
		}
	}
	return forward_from_pod(skb, config, &packet, from, &target, 0);
}
