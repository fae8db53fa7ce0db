/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Services: from an address to a backend. Shared by the socket programs and the tc programs.
 *
 * Two hash look-ups whatever the number of services and backends; two or three more with session affinity.
 * The agent changes a service by writing slots under a new id and then the service's entry, so a slot that is not
 * found means that the entry read is the old one: it is read once more.
 */
#ifndef UNDERPASS_SERVICES_H
#define UNDERPASS_SERVICES_H

#include "address.h"
#include "helpers.h"
#include "identity.h"
#include "maps.h"

static __always_inline struct service *service_at(const struct addr *address, __be16 port, __u8 protocol, __u8 scope)
{
	struct service_key key = { .address = *address, .port = port, .protocol = protocol, .scope = scope };

	return map_lookup(MAP(services), &key);
}

/* A service at this very address, or a NodePort when the address is a node's. */
static __always_inline struct service *service_find(const struct addr *address, __be16 port, __u8 protocol, __u8 scope,
						    int is_node)
{
	struct addr any = {};
	struct service *service = service_at(address, port, protocol, scope);

	if (service || !is_node)
		return service;
	return service_at(&any, port, protocol, scope);
}

static __always_inline struct backend *service_slot(__u32 service, __u32 slot)
{
	struct backend_key key = { .service = service, .slot = slot };

	return map_lookup(MAP(backends), &key);
}

/* The backend that this client had before, if it still is one. */
static __always_inline struct backend *service_affine(const struct service *service, struct affinity_key *client,
						      __u64 now)
{
	struct affinity_entry *entry = map_lookup(MAP(affinity), client);
	struct member_key member = { .service = service->id };
	struct member *slot;
	struct backend *backend;

	if (!entry || now - entry->last_used > service->affinity_seconds * SECOND_NS)
		return 0;
	member.backend = entry->backend;
	slot = map_lookup(MAP(members), &member);
	if (!slot)
		return 0;
	backend = service_slot(service->id, slot->slot);
	if (!backend || backend->id != member.backend)
		return 0;
	entry->last_used = now;
	return backend;
}

/*
 * Choose a backend. client: who asks, for affinity (service is filled in here). lot: any number; the same one gets the
 * same backend while the service does not change. Returns 0 when there is none.
 */
static __always_inline struct backend *service_pick(const struct service *service, struct affinity_key *client,
						    __u32 lot)
{
	struct backend *backend = 0;

	if (!service->count)
		return 0;
	if (service->flags & SERVICE_AFFINITY) {
		__u64 now = clock_ns();

		client->service = service->affinity;
		backend = service_affine(service, client, now);
		if (!backend) {
			struct affinity_entry entry = { .last_used = now };

			backend = service_slot(service->id, lot % service->count);
			if (backend) {
				entry.backend = backend->id;
				map_update(MAP(affinity), client, &entry, BPF_ANY);
			}
		}
		return backend;
	}
	return service_slot(service->id, lot % service->count);
}

struct choice {
	struct service *service; /* 0: no such service */
	struct backend *backend; /* 0: it has none */
};

/* What is asked of the table of services. */
struct question {
	const struct addr *address;
	__be16 port;
	__u8 protocol;
	__u8 scope;
	__u8 is_node;
	__u32 lot;
};

static __always_inline struct choice service_choose(const struct question *ask, struct affinity_key *client)
{
	struct choice choice = {
		.service = service_find(ask->address, ask->port, ask->protocol, ask->scope, ask->is_node),
	};

	if (!choice.service)
		return choice;
	choice.backend = service_pick(choice.service, client, ask->lot);
	if (!choice.backend && choice.service->count) {
		choice.service = service_find(ask->address, ask->port, ask->protocol, ask->scope, ask->is_node);
		if (choice.service)
			choice.backend = service_pick(choice.service, client, ask->lot);
	}
	return choice;
}

#endif
