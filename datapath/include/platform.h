/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The macro layer: everything in which BCC and plain `clang -target bpf` differ.
 *
 * Under BCC (the loader defines UNDERPASS_BCC) maps are made by the loader before the compile and reach the
 * programs as file descriptors (-DMAP_FD_<name>=N), so BCC's own map sugar is never used: maps can be pinned,
 * re-used and checked by the loader, and the source stays plain C. Elsewhere maps are libbpf's BTF-defined ones.
 *
 * Only UAPI headers: the headers a node has may belong to another kernel than the one that runs (system
 * containers), and offsets of kernel structs would be wrong without a word.
 */
#ifndef UNDERPASS_PLATFORM_H
#define UNDERPASS_PLATFORM_H

#ifdef UNDERPASS_BCC
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#define PROGRAM(section_name)
#define MAP(name) ((void *)bpf_pseudo_fd(1, MAP_FD_##name))
/* The loader reads a field's place from the running kernel's BTF: headers may be another kernel's. */
#define KERNEL_FIELD(object, name, field, kind) ((kind *)((char *)(object) + OFFSET_##name##_##field))
#else
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#define PROGRAM(section_name) __attribute__((section(section_name), used))
#define MAP(name) ((void *)&map_##name)
struct sock {
	void *sk_user_data;
	int sk_write_pending;
} __attribute__((preserve_access_index));
struct tcp_sock {
	__u32 write_seq;
	__u32 copied_seq;
	__u32 rcv_nxt;
	__u64 bytes_received;
} __attribute__((preserve_access_index));
struct sk_psock {
	__u32 refcnt;
} __attribute__((preserve_access_index));
#define KERNEL_FIELD(object, name, field, kind) ((kind *)&((struct name *)(object))->field)
#endif
#define TCP_WRITE_SEQUENCE(tcp) (*KERNEL_FIELD(tcp, tcp_sock, write_seq, __u32))

/* Values that <errno.h> has; it is no UAPI header under BCC. */
#define UNDERPASS_ECONNREFUSED 111
#define UNDERPASS_EBUSY 16
#define UNDERPASS_EOPNOTSUPP 95

/* The UAPI's own __always_inline is a mere `inline`; a call that is not inlined does not load under BCC. */
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))
#ifndef likely
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#endif

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define to_be16(x) ((__be16)__builtin_bswap16((__u16)(x)))
#define to_be32(x) ((__be32)__builtin_bswap32((__u32)(x)))
#define from_be16(x) __builtin_bswap16((__u16)(x))
#define from_be32(x) __builtin_bswap32((__u32)(x))
#else
#define to_be16(x) ((__be16)(x))
#define to_be32(x) ((__be32)(x))
#define from_be16(x) ((__u16)(x))
#define from_be32(x) ((__u32)(x))
#endif

#define PACKET_TO_US 0 /* PACKET_HOST of <linux/if_packet.h> */

/* What tc programs return (tcx knows these four). */
#define TC_NEXT (-1)
#define TC_PASS 0
#define TC_DROP 2

#define SECOND_NS 1000000000ULL

/* Keeps the compiler from merging two adjacent stores to a context into one that the verifier refuses. */
#define STORE_ONCE(place, value) (*(volatile __typeof__(place) *)&(place) = (value))
/* Keeps it from joining the loads of two branches into one at a computed place of the context (refused on 6.18). */
#define BRANCH_APART() asm volatile("" ::: "memory")

#endif
