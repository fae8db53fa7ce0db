/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every pinned map: one line each, read by the compiler and by datapath/maps/spec.py alike.
 *
 *   MAP_LIST(name, type, key, value, entries, flags, layout version)
 *
 * The layout version is stored beside the pins. A map whose version, type, key or value size differs is refused by
 * the loader; one that differs in its number of entries alone is copied into a new one. The version of the ring is that
 * of struct flow_event: raise it with every change there, and the ring is made anew.
 *
 *   map            | key -> value                         | written by       | read by     | an entry dies
 *   ---------------+--------------------------------------+------------------+-------------+----------------------------
 *   config         | 0 -> node configuration              | loader, agent    | all         | never
 *   endpoints      | address -> pod of this node          | agent            | tc          | with its pod
 *   ipcache        | prefix -> identity, node             | agent            | tc          | with pod, node, CIDR rule
 *   nodes          | address -> node                      | agent            | all         | with the node
 *   policies       | endpoint id -> trie of its rules     | agent, replaced  | tc          | with its pod
 *   revisions      | endpoint id -> policy revision       | agent            | tc          | never (a counter)
 *   conntrack      | connection of an endpoint -> state   | tc               | tc, agent   | expiry, LRU
 *   fragments      | fragmented packet -> ports           | tc               | tc          | LRU
 *   services       | service address -> id, count         | agent            | sockets, tc | with the service
 *   backends       | (service id, slot) -> backend        | agent            | sockets, tc | after its service id
 *   members        | (service id, backend id) -> slot     | agent            | sockets, tc | after its service id
 *   affinity       | (client, service) -> backend         | sockets, tc      | same        | LRU
 *   origins        | (socket, backend) -> service address | sockets          | sockets     | LRU
 *   translations   | packet's tuple -> rewritten tuple    | tc               | tc          | LRU
 *   namespaces     | netns cookie -> endpoint             | agent            | sockets     | with its pod
 *   metrics        | reason, place -> packets, bytes      | all              | agent       | never
 *   events         | ring of flow events                  | all              | agent       | when read
 *   event_budget   | 0 -> token bucket of a CPU           | all              | all         | never
 *   continuations  | slot -> program                      | loader           | tc          | replaced in place
 *   layouts        | map name -> layout version           | loader           | loader      | never
 *   sockets        | (client, generation, side) -> socket | pairing          | senders     | with its socket
 *   states         | socket -> connection, stage, reason  | pairing          | redirect    | with its socket
 *   streams        | one direction of a pair -> counters  | pairing, senders | all, agent  | when its sender closes
 *   offers         | nonce in a SYN -> who sent it        | pairing          | pairing     | taken, or its client closes
 *   departures     | sender that is to leave -> how far   | agent, leave     | leave, agent | the agent's, when it has left
 *   plain_ports    | port that is never accelerated       | loader           | pairing     | with the configuration
 *   senders        | slot -> sk_msg program               | loader           | its stub    | replaced in place
 *   readers        | slot -> program that counts reads    | loader           | its stub    | replaced in place
 *
 * Memory: hashes that the agent fills are not preallocated; LRU maps are (conntrack 65536 x ~200 B = 13 MB). Redirect:
 * offers 16384 x ~100 B = 2 MB; an accelerated connection costs two streams and two states, ~700 B.
 */
#ifndef UNDERPASS_MAPS_H
#define UNDERPASS_MAPS_H

#include "constants.h"
#include "types.h"

/* Storage is copied from a listener to what it accepts: options that were set before apply after. */
#define STORAGE_FLAGS (BPF_F_NO_PREALLOC | BPF_F_CLONE)

#define MAP_LIST(MAP_OF) \
	MAP_OF(config, ARRAY, array_index, config, 1, 0, 1) \
	MAP_OF(endpoints, HASH, addr, endpoint, 4096, BPF_F_NO_PREALLOC, 1) \
	MAP_OF(ipcache, LPM_TRIE, prefix_key, cache_entry, 262144, BPF_F_NO_PREALLOC, 1) \
	MAP_OF(nodes, HASH, addr, node, 16384, BPF_F_NO_PREALLOC, 1) \
	MAP_OF(revisions, ARRAY, endpoint_id, revision, 65536, 0, 1) \
	MAP_OF(conntrack, LRU_HASH, flow_key, conntrack_entry, 65536, 0, 1) \
	MAP_OF(fragments, LRU_HASH, fragment_key, fragment, 4096, 0, 1) \
	MAP_OF(services, HASH, service_key, service, 65536, BPF_F_NO_PREALLOC, 1) \
	MAP_OF(backends, HASH, backend_key, backend, 262144, BPF_F_NO_PREALLOC, 1) \
	MAP_OF(members, HASH, member_key, member, 65536, BPF_F_NO_PREALLOC, 1) \
	MAP_OF(affinity, LRU_HASH, affinity_key, affinity_entry, 16384, 0, 1) \
	MAP_OF(origins, LRU_HASH, origin_key, origin, 65536, 0, 1) \
	MAP_OF(translations, LRU_HASH, translation_key, translation, 65536, 0, 1) \
	MAP_OF(namespaces, HASH, namespace_key, namespace, 4096, BPF_F_NO_PREALLOC, 1) \
	MAP_OF(metrics, PERCPU_ARRAY, array_index, counter, 1024, 0, 1) \
	MAP_OF(event_budget, PERCPU_ARRAY, array_index, event_budget, 1, 0, 1) \
	MAP_OF(layouts, HASH, map_name, layout_version, 64, BPF_F_NO_PREALLOC, 1) \
	MAP_OF(sockets, SOCKHASH, socket_key, socket_cookie, 65536, 0, 1) \
	MAP_OF(states, SK_STORAGE, array_index, socket_state, 0, STORAGE_FLAGS, 1) \
	MAP_OF(streams, HASH, socket_key, stream, 131072, BPF_F_NO_PREALLOC, 1) \
	MAP_OF(offers, HASH, nonce, offer, 16384, 0, 1) \
	MAP_OF(departures, HASH, socket_key, departure, 4096, BPF_F_NO_PREALLOC, 1) \
	MAP_OF(plain_ports, HASH, port_key, port_rule, 256, BPF_F_NO_PREALLOC, 1)

/* Maps with no key or value struct of their own. RULES is the inner map of `policies`: its `entries` is what the
 * loader's template says; the agent makes each one as large as it has to be. */
#define OTHER_MAP_LIST(RULES, MAP_OF_RULES, RING, PROGRAMS) \
	RULES(rules, LPM_TRIE, policy_key, policy_entry, 16384, BPF_F_NO_PREALLOC, 1) \
	MAP_OF_RULES(policies, HASH_OF_MAPS, endpoint_id, rules, 4096, BPF_F_NO_PREALLOC, 1) \
	RING(events, RINGBUF, 0, 0, 1048576, 0, 2) \
	PROGRAMS(continuations, PROG_ARRAY, 0, 0, 8, 0, 1) \
	PROGRAMS(senders, PROG_ARRAY, 0, 0, 1, 0, 1) \
	PROGRAMS(readers, PROG_ARRAY, 0, 0, 1, 0, 1)

#ifdef UNDERPASS_BCC
/* Nothing but type information: the loader's maps get none from here, the tests compare layouts with it. */
#define ANNOTATE_MAP(name, kind, key_, value_, ...) BPF_ANNOTATE_KV_PAIR(name, struct key_, struct value_);
#define ANNOTATE_RING(name, ...) BPF_ANNOTATE_KV_PAIR(name, struct array_index, struct flow_event);
#define ANNOTATE_NOTHING(...)

MAP_LIST(ANNOTATE_MAP)
OTHER_MAP_LIST(ANNOTATE_MAP, ANNOTATE_NOTHING, ANNOTATE_RING, ANNOTATE_NOTHING)
#else
#define MAP_SECTION __attribute__((section(".maps"), used))
#define DEFINE_MAP(name, kind, key_, value_, entries, flags_, version) \
	struct { \
		int (*type)[BPF_MAP_TYPE_##kind]; \
		int (*max_entries)[entries]; \
		int (*map_flags)[flags_]; \
		struct key_ *key; \
		struct value_ *value; \
	} map_##name MAP_SECTION;
#define DEFINE_RULES(name, kind, key_, value_, entries, flags_, version) \
	struct name##_map { \
		int (*type)[BPF_MAP_TYPE_##kind]; \
		int (*max_entries)[entries]; \
		int (*map_flags)[flags_]; \
		int (*key_size)[sizeof(struct key_)]; \
		int (*value_size)[sizeof(struct value_)]; \
	};
#define DEFINE_MAP_OF_RULES(name, kind, key_, inner, entries, flags_, version) \
	struct { \
		int (*type)[BPF_MAP_TYPE_##kind]; \
		int (*max_entries)[entries]; \
		int (*map_flags)[flags_]; \
		struct key_ *key; \
		struct inner##_map *values[]; \
	} map_##name MAP_SECTION;
#define DEFINE_RING(name, kind, key_, value_, entries, flags_, version) \
	struct { \
		int (*type)[BPF_MAP_TYPE_##kind]; \
		int (*max_entries)[entries]; \
	} map_##name MAP_SECTION;
#define DEFINE_PROGRAMS(name, kind, key_, value_, entries, flags_, version) \
	struct { \
		int (*type)[BPF_MAP_TYPE_##kind]; \
		int (*max_entries)[entries]; \
		__u32 *key; \
		__u32 *value; \
	} map_##name MAP_SECTION;

MAP_LIST(DEFINE_MAP)
OTHER_MAP_LIST(DEFINE_RULES, DEFINE_MAP_OF_RULES, DEFINE_RING, DEFINE_PROGRAMS)
#endif

#endif
