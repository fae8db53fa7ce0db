/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Keys and values of every map, and the flow event. The one source of these layouts: datapath/tables.py holds the
 * same fields in the same order (there is the meaning of each), and tests/bpf compares it with the BTF of the
 * compiled programs. Padding is written out, so that a key never holds bytes that nobody set.
 *
 * A change of any struct here needs a new layout version of its maps in maps.h. A field in the place of padding does not:
 * what older programs have left there is zero, and it must mean nothing known.
 */
#ifndef UNDERPASS_TYPES_H
#define UNDERPASS_TYPES_H

#include "platform.h"

/* 128 bits, network order; IPv4 as v4-mapped IPv6. Aligned to 4, so that a trie key has no hole. */
struct addr {
	__u32 words[4];
};

struct endpoint {
	__u32 ifindex;
	__u32 identity;
	__u16 id;
	__u16 flags;
	__u8 mac[6];
	__u8 host_mac[6];
};

struct prefix_key {
	__u32 prefix;
	struct addr address;
};

struct cache_entry {
	struct addr tunnel;
	__u32 identity;
	__u16 flags;
	__u8 _pad[2];
};

struct node {
	__u32 id;
	__u32 flags;
};

struct endpoint_id {
	__u32 id;
};

struct policy_key {
	__u32 prefix;
	__u32 identity;
	__u8 direction;
	__u8 protocol;
	__be16 port;
};

/* Bits of a policy_key that are always exact: identity and direction. */
#define POLICY_EXACT_BITS 40

struct policy_entry {
	__u32 rule;
	__u32 rule_set;
	__be16 proxy_port;
	__u8 verdict;
	__u8 flags;
	__u8 specificity;
	__u8 _pad[3];
};

struct revision {
	__u64 revision;
};

struct flow_key {
	struct addr local;
	struct addr peer;
	__be16 local_port;
	__be16 peer_port;
	__u8 protocol;
	__u8 _pad[1];
	__u16 endpoint;
};

struct conntrack_entry {
	__u64 expires;
	__u64 created;
	__u64 revision;
	__u64 tx_packets;
	__u64 tx_bytes;
	__u64 rx_packets;
	__u64 rx_bytes;
	__u32 peer_identity;
	__u32 rule;
	__u32 rule_set;
	__be16 proxy_port;
	__u16 flags;
	__u8 verdict;
	__u8 direction;
	__u8 _pad[6];
};

struct service_key {
	struct addr address;
	__be16 port;
	__u8 protocol;
	__u8 scope;
	__u8 _pad[4];
};

struct service {
	__u32 id;
	__u32 affinity;
	__u32 affinity_seconds;
	__u16 count;
	__u16 flags;
};

struct backend_key {
	__u32 service;
	__u32 slot;
};

struct backend {
	struct addr address;
	__u32 id;
	__be16 port;
	__u8 _pad[2];
};

struct member_key {
	__u32 service;
	__u32 backend;
};

struct member {
	__u32 slot;
};

struct affinity_key {
	struct addr client;
	__u64 client_cookie;
	__u32 service;
	__u8 _pad[4];
};

struct affinity_entry {
	__u64 last_used;
	__u32 backend;
	__u8 _pad[4];
};

struct origin_key {
	__u64 cookie;
	struct addr peer;
	__be16 peer_port;
	__u8 protocol;
	__u8 _pad[5];
};

struct origin {
	struct addr address;
	__u32 service;
	__be16 port;
	__u8 _pad[2];
};

struct namespace_key {
	__u64 cookie;
};

struct namespace {
	__u32 endpoint;
	__u32 flags;
};

struct translation_key {
	struct addr source;
	struct addr destination;
	__be16 source_port;
	__be16 destination_port;
	__u8 protocol;
	__u8 kind;
	__u8 _pad[2];
};

struct translation {
	struct addr source;
	struct addr destination;
	__be16 source_port;
	__be16 destination_port;
	__u32 ifindex;
	__u64 used;
};

struct fragment_key {
	struct addr source;
	struct addr destination;
	__be16 id;
	__u8 protocol;
	__u8 _pad[1];
};

struct fragment {
	__be16 source_port;
	__be16 destination_port;
};

struct array_index {
	__u32 index;
};

struct counter {
	__u64 packets;
	__u64 bytes;
};

struct config {
	struct addr node;
	struct addr router;
	struct addr gateway;
	struct addr loopback;
	struct addr pod_range;
	struct addr pod_mask;
	struct addr service_range;
	struct addr service_mask;
	__u64 host_namespace;
	__u32 overlay_ifindex;
	__u32 underlay_ifindex;
	__be16 overlay_port;
	__u16 flags;
	__u32 events_per_second;
	__u32 events_wakeup;
	__u32 syn_timeout;
	__u32 tcp_timeout;
	__u32 close_timeout;
	__u32 datagram_timeout;
	__u32 other_timeout;
	__u32 nudge_mark;
	__u16 redirect_budget;
	__u8 _pad[2];
};

struct event_budget {
	__u64 refilled;
	__u64 tokens;
	__u64 lost;
};

struct flow_event {
	__u64 time;
	struct addr local;
	struct addr peer;
	__be16 local_port;
	__be16 peer_port;
	__u32 peer_identity;
	__u32 rule;
	__u32 rule_set;
	__u32 ifindex;
	__u32 length;
	__u16 endpoint;
	__u8 reason;
	__u8 direction;
	__u8 protocol;
	__u8 tcp_flags;
	__u8 place;
	__u8 _pad[1];
	__u64 messages;
	__u64 bytes;
	__u64 latency;
};

/* Socket redirect. */

struct socket_key {
	__u64 cookie;
	__u32 generation;
	__u32 side;
};

struct socket_cookie {
	__u64 cookie;
};

struct nonce {
	__u64 nonce;
};

struct offer {
	__u64 cookie;
	__u64 space;
	struct addr client;
	struct addr server;
	__be16 client_port;
	__be16 server_port;
	__u32 generation;
	__u16 client_endpoint;
	__u16 server_endpoint;
	__u8 seen;
	__u8 enrolled;
	__u8 reason;
	__u8 _pad[1];
};

struct socket_state {
	__u64 cookie;
	__u64 own_cookie;
	__u64 nonce;
	__u64 opened;
	__u64 space;
	struct addr client;
	struct addr server;
	__be16 client_port;
	__be16 server_port;
	__u32 generation;
	__u32 sequence;
	__u16 client_endpoint;
	__u16 server_endpoint;
	__u8 side;
	__u8 stage;
	__u8 reason;
	__u8 flags;
	__u16 same_cpu;
	__u16 other_cpu;
};

struct stream {
	__u64 opened;
	__u64 refreshed;
	__u64 client_revision;
	__u64 server_revision;
	__u64 messages;
	__u64 redirected;
	__u64 tcp_messages;
	__u64 tcp_bytes;
	__u64 received;
	__u64 mark;
	__u64 stamp;
	__u64 stamp_position;
	__u64 latency_samples;
	__u64 latency_total;
	__u64 latency_most;
	__u64 meeting;
	struct addr client;
	struct addr server;
	__be16 client_port;
	__be16 server_port;
	__u32 sequence;
	__u16 client_endpoint;
	__u16 server_endpoint;
	__u8 side;
	__u8 reason;
	__u8 refused;
	__u8 cpu;
};

struct departure {
	__u8 step;
	__u8 reason;
	__u8 obstacle;
	__u8 _pad[1];
};

struct port_key {
	__be16 port;
};

struct port_rule {
	__u8 flags;
};

struct map_name {
	char name[16];
};

struct layout_version {
	__u32 version;
};

#endif
