/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The short way to another node: the program writes the VXLAN header itself, and the packet leaves by the device that
 * the node's routes name, without passing the overlay device and the stack's output once more.
 *
 * What the other node gets is the same, so nothing changes in what it checks. The overlay device takes what this way
 * does not: packets that the kernel has still to cut (GSO), those of a tunnel of the pod's own, those too large for the
 * road, and roads that are more than a device and a neighbour. Both ways end at the same device, so nothing overtakes.
 *
 * Kernel floor 6.3 (BPF_FIB_LOOKUP_SKIP_NEIGH).
 */
#ifndef UNDERPASS_ENCAPSULATE_H
#define UNDERPASS_ENCAPSULATE_H

#include "checksum.h"
#include "configuration.h"
#include "packet.h"

#define ENCAPSULATED_SIZE 50 /* IPv4, UDP, VXLAN, the inner Ethernet header */
#define ENCAPSULATION_FLAGS \
	(BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2(14) | \
	 BPF_F_ADJ_ROOM_ENCAP_L2_ETH)
#define VXLAN_HAS_VNI to_be32(0x08000000)
#define FIRST_SOURCE_PORT 0xc000 /* RFC 7348: 49152 to 65535, by the flow's hash */
#define FAMILY_IPV4 2
#define ECN_MASK 3
#define ECN_CAPABLE 2 /* ECT(0) */

struct vxlan_frame {
	__u16 _pad; /* aligns what follows the outer Ethernet header */
	struct ethernet_header outer;
	struct ipv4_header ip;
	__be16 source_port;
	__be16 destination_port;
	__be16 udp_length;
	__u16 udp_checksum; /* 0: none, as the overlay device has it */
	__be32 vxlan_flags;
	__be32 vni;
	struct ethernet_header inner;
};

/* As the kernel's tunnels do it (RFC 6040): a mark set on the road is for the receiver to carry over. */
static __always_inline __u8 encapsulated_ecn(__u8 tos)
{
	return (tos & ECN_MASK) == ECN_MASK ? ECN_CAPABLE : tos & ECN_MASK;
}

/*
 * Send a pod's packet to the node `tunnel`, from an ingress hook. Returns what the program is to return, or negative:
 * the packet is as it was and needs the overlay device.
 */
static __always_inline int encapsulate(struct __sk_buff *skb, const struct config *config, const struct packet *packet,
				       const struct addr *tunnel, __u32 identity)
{
	__u32 size = skb->len, source_port;
	struct bpf_fib_lookup road = {
		.family = FAMILY_IPV4,
		.l4_protocol = PROTOCOL_UDP,
		.dport = config->overlay_port,
		.tot_len = size - L3_OFFSET + ENCAPSULATED_SIZE,
		.ifindex = skb->ifindex,
		.ipv4_src = config->node.words[3],
		.ipv4_dst = tunnel->words[3],
	};
	struct bpf_redir_neigh next = { .nh_family = FAMILY_IPV4 };
	struct vxlan_frame frame = {
		.outer.protocol = to_be16(ETH_P_IP),
		.ip.version_length = 0x45,
		.ip.tos = encapsulated_ecn(packet->tos),
		.ip.total_length = to_be16(size - L3_OFFSET + ENCAPSULATED_SIZE),
		.ip.id = random_u32(),
		.ip.ttl = 64,
		.ip.protocol = PROTOCOL_UDP,
		.ip.source = config->node.words[3],
		.ip.destination = tunnel->words[3],
		.destination_port = config->overlay_port,
		.udp_length = to_be16(size - L3_OFFSET + ENCAPSULATED_SIZE - sizeof(frame.ip)),
		.vxlan_flags = VXLAN_HAS_VNI,
		.vni = to_be32(identity << 8),
		.inner.protocol = to_be16(ETH_P_IP),
	};

	if (skb->gso_size || fib_lookup(skb, &road, sizeof(road), BPF_FIB_LOOKUP_SKIP_NEIGH) ||
	    road.family != FAMILY_IPV4)
		return -1;
	next.ipv4_nh = road.ipv4_dst;
	source_port = FIRST_SOURCE_PORT | (packet_hash(skb) & ~FIRST_SOURCE_PORT);
	frame.source_port = to_be16(source_port);
	frame.ip.checksum = checksum_ipv4(&frame.ip);
	if (packet_add_room(skb, ENCAPSULATED_SIZE, BPF_ADJ_ROOM_MAC, ENCAPSULATION_FLAGS))
		return -1;
	if (packet_write(skb, 0, &frame.outer, L3_OFFSET + ENCAPSULATED_SIZE, 0))
		return TC_DROP;
	return redirect_neighbour(road.ifindex, &next, sizeof(next), 0);
}

#endif
