/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The verdict of an endpoint's policy for one peer identity, direction, protocol and port.
 *
 * Two look-ups in the endpoint's trie: the peer's identity and "any". Nothing found is a denial (a pod that no policy
 * selects has an "any" entry that allows). A denial from either look-up wins. The trie as a whole is replaced by the
 * agent in one step, so no packet ever sees half of a policy.
 *
 * Cost: one hash look-up and two trie look-ups, for the first packet of a connection and after a change alone.
 */
#ifndef UNDERPASS_POLICY_H
#define UNDERPASS_POLICY_H

#include "helpers.h"
#include "maps.h"
#include "reasons.h"

static __always_inline __u64 policy_revision(__u32 endpoint)
{
	struct revision *revision = map_lookup(MAP(revisions), &endpoint);

	return revision ? *(volatile __u64 *)&revision->revision : 0;
}

/* Returns 0 and fills `*found` when allowed, else a reason; `*found` is then the denying entry, or zeros. */
static __always_inline int policy_judge(__u32 endpoint, __u8 direction, __u32 identity, __u8 protocol, __be16 port,
					struct policy_entry *found)
{
	struct policy_key key = {
		.prefix = 8 * (sizeof(key) - sizeof(key.prefix)),
		.identity = identity,
		.direction = direction,
		.protocol = protocol,
		.port = port,
	};
	struct policy_entry *exact = 0, *any, *chosen;
	void *rules = map_lookup(MAP(policies), &endpoint);

	__builtin_memset(found, 0, sizeof(*found));
	if (!rules)
		return REASON_POLICY_MISSING;
	if (identity != IDENTITY_UNKNOWN)
		exact = map_lookup(rules, &key);
	key.identity = IDENTITY_UNKNOWN;
	any = map_lookup(rules, &key);

	if (exact && exact->verdict != VERDICT_ALLOW)
		chosen = exact;
	else if (any && any->verdict != VERDICT_ALLOW)
		chosen = any;
	else if (exact && any)
		chosen = any->specificity > exact->specificity ? any : exact;
	else
		chosen = exact ? exact : any;
	if (!chosen)
		return REASON_POLICY_DEFAULT;
	*found = *chosen;
	if (found->verdict != VERDICT_ALLOW)
		return REASON_POLICY_DENIED;
	if (found->flags & POLICY_AUTH_REQUIRED)
		return REASON_AUTH_REQUIRED;
	if (found->proxy_port)
		return REASON_PROXY_UNAVAILABLE;
	return 0;
}

#endif
