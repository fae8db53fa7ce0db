/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The last step to a pod of this node, or to another node.
 *
 * To a pod: bpf_redirect_peer moves the packet from the ingress hook where it is straight into the pod's namespace,
 * past the host's stack and the CPU's backlog queue. It also passes by the programs at the veth's egress hook
 * (pod_ingress): the caller has run the receiver's policy. Kernel floor 5.10.
 */
#ifndef UNDERPASS_DELIVER_H
#define UNDERPASS_DELIVER_H

#include "configuration.h"
#include "helpers.h"
#include "outcome.h"
#include "packet.h"

static __always_inline int deliver_set_macs(struct __sk_buff *skb, const struct endpoint *to)
{
	struct ethernet_header header;

	__builtin_memcpy(header.destination, to->mac, 6);
	__builtin_memcpy(header.source, to->host_mac, 6);
	header.protocol = to_be16(ETH_P_IP);
	return packet_write(skb, 0, &header, sizeof(header), 0);
}

/* From an ingress hook alone. */
static __always_inline int deliver_to_pod(struct __sk_buff *skb, const struct endpoint *to, __u32 place)
{
	__u32 ifindex = to->ifindex;

	if (deliver_set_macs(skb, to))
		return dropped(skb, REASON_REWRITE_FAILED, place);
	return passed(skb, REASON_TO_POD, place, redirect_peer(ifindex, 0));
}

/* tunnel: the node's address, IPv4. identity: of the sender, as the other node is to see it. */
static __always_inline int deliver_set_tunnel(struct __sk_buff *skb, const struct addr *tunnel, __u32 identity)
{
	struct bpf_tunnel_key key = {
		.tunnel_id = identity,
		.remote_ipv4 = from_be32(tunnel->words[3]),
		.tunnel_ttl = 64,
	};

	return tunnel_set(skb, &key, sizeof(key), BPF_F_ZERO_CSUM_TX);
}

static __always_inline int deliver_to_node(struct __sk_buff *skb, const struct config *config,
					   const struct addr *tunnel, __u32 identity, __u32 place)
{
	if (deliver_set_tunnel(skb, tunnel, identity))
		return dropped(skb, REASON_REWRITE_FAILED, place);
	return passed(skb, REASON_TO_OVERLAY, place, redirect(config->overlay_ifindex, 0));
}

#endif
