/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Kernel helpers by their numbers of <linux/bpf.h>, under names of our own: BCC declares some of them with other
 * types (bpf_get_socket_cookie as 32 bits), under other names (map helpers end in `_`), or not at all
 * (bpf_get_netns_cookie), and plain clang has none of them.
 */
#ifndef UNDERPASS_HELPERS_H
#define UNDERPASS_HELPERS_H

#include "platform.h"

#define HELPER(result, name, number, ...) static result (*const name)(__VA_ARGS__) = (void *)(number)

HELPER(void *, map_lookup, BPF_FUNC_map_lookup_elem, void *map, const void *key);
HELPER(long, map_update, BPF_FUNC_map_update_elem, void *map, const void *key, const void *value, __u64 flags);
HELPER(long, map_delete, BPF_FUNC_map_delete_elem, void *map, const void *key);
HELPER(__u64, clock_ns, BPF_FUNC_ktime_get_ns, void);
HELPER(__u64, clock_coarse_ns, BPF_FUNC_ktime_get_coarse_ns, void);
HELPER(__u32, processor, BPF_FUNC_get_smp_processor_id, void);
HELPER(__u32, random_u32, BPF_FUNC_get_prandom_u32, void);
HELPER(long, tail_call, BPF_FUNC_tail_call, void *ctx, void *programs, __u32 index);

HELPER(long, packet_read, BPF_FUNC_skb_load_bytes, const void *skb, __u32 offset, void *to, __u32 size);
HELPER(long, packet_write, BPF_FUNC_skb_store_bytes, void *skb, __u32 offset, const void *from, __u32 size,
       __u64 flags);
HELPER(long, packet_resize, BPF_FUNC_skb_change_tail, void *skb, __u32 size, __u64 flags);
HELPER(long, packet_add_room, BPF_FUNC_skb_adjust_room, void *skb, int bytes, __u32 where, __u64 flags);
HELPER(__u32, packet_hash, BPF_FUNC_get_hash_recalc, void *skb);
HELPER(long, packet_set_type, BPF_FUNC_skb_change_type, void *skb, __u32 type);
HELPER(long, checksum_l3_replace, BPF_FUNC_l3_csum_replace, void *skb, __u32 offset, __u64 from, __u64 to,
       __u64 flags);
HELPER(long, checksum_l4_replace, BPF_FUNC_l4_csum_replace, void *skb, __u32 offset, __u64 from, __u64 to,
       __u64 flags);
HELPER(__s64, checksum_diff, BPF_FUNC_csum_diff, __be32 *from, __u32 from_size, __be32 *to, __u32 to_size,
       __u32 seed);

HELPER(long, redirect, BPF_FUNC_redirect, __u32 ifindex, __u64 flags);
HELPER(long, redirect_peer, BPF_FUNC_redirect_peer, __u32 ifindex, __u64 flags);
HELPER(long, redirect_neighbour, BPF_FUNC_redirect_neigh, __u32 ifindex, void *params, int size, __u64 flags);
HELPER(long, fib_lookup, BPF_FUNC_fib_lookup, void *ctx, struct bpf_fib_lookup *road, int size, __u32 flags);
HELPER(long, clone_redirect, BPF_FUNC_clone_redirect, void *skb, __u32 ifindex, __u64 flags);
HELPER(long, tunnel_get, BPF_FUNC_skb_get_tunnel_key, void *skb, struct bpf_tunnel_key *key, __u32 size,
       __u64 flags);
HELPER(long, tunnel_set, BPF_FUNC_skb_set_tunnel_key, void *skb, struct bpf_tunnel_key *key, __u32 size,
       __u64 flags);

HELPER(void *, ring_reserve, BPF_FUNC_ringbuf_reserve, void *ring, __u64 size, __u64 flags);
HELPER(void, ring_submit, BPF_FUNC_ringbuf_submit, void *record, __u64 flags);
HELPER(__u64, ring_query, BPF_FUNC_ringbuf_query, void *ring, __u64 what);

HELPER(__u64, current_uid_gid, BPF_FUNC_get_current_uid_gid, void);
HELPER(void *, storage_get, BPF_FUNC_sk_storage_get, void *map, void *sk, void *initial, __u64 flags);
HELPER(void *, tcp_sock_of, BPF_FUNC_skc_to_tcp_sock, void *sk);
HELPER(void *, mptcp_sock_of, BPF_FUNC_skc_to_mptcp_sock, void *sk);
HELPER(long, sockets_add, BPF_FUNC_sock_hash_update, struct bpf_sock_ops *ctx, void *map, void *key, __u64 flags);
HELPER(long, message_redirect, BPF_FUNC_msg_redirect_hash, struct sk_msg_md *msg, void *map, void *key, __u64 flags);
HELPER(long, callbacks_set, BPF_FUNC_sock_ops_cb_flags_set, struct bpf_sock_ops *ctx, int flags);
HELPER(long, option_set, BPF_FUNC_setsockopt, void *ctx, int level, int name, void *value, int size);
HELPER(long, header_load, BPF_FUNC_load_hdr_opt, struct bpf_sock_ops *ctx, void *option, __u32 size, __u64 flags);
HELPER(long, header_store, BPF_FUNC_store_hdr_opt, struct bpf_sock_ops *ctx, const void *option, __u32 size,
       __u64 flags);
HELPER(long, header_reserve, BPF_FUNC_reserve_hdr_opt, struct bpf_sock_ops *ctx, __u32 size, __u64 flags);
HELPER(long, kernel_read, BPF_FUNC_probe_read_kernel, void *to, __u32 size, const void *from);
HELPER(long, list_write, BPF_FUNC_seq_write, void *list, const void *data, __u32 size);

HELPER(__u64, socket_cookie, BPF_FUNC_get_socket_cookie, void *ctx);
HELPER(__u64, namespace_cookie, BPF_FUNC_get_netns_cookie, void *ctx);
HELPER(int, set_return_value, BPF_FUNC_set_retval, int value);

#endif
