/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Checksums of headers that the programs write themselves. */
#ifndef UNDERPASS_CHECKSUM_H
#define UNDERPASS_CHECKSUM_H

#include "helpers.h"

static __always_inline __u16 checksum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* The checksum of an IPv4 header without options whose checksum field is zero. */
static __always_inline __u16 checksum_ipv4(void *header)
{
	return ~checksum_fold(checksum_diff(0, 0, header, 20, 0));
}

#endif
