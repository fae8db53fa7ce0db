/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Reason codes: why a packet or a connection went where it went.
 *
 * The one table that C and Python share (datapath/reasons.py reads this file). Names and numbers are public:
 * they appear in metrics, flow events and the node command, so a number is never given a second meaning.
 * 0 is none. Below REASON_FIRST_DROP: outcomes that pass; from there on: drops and refusals.
 *
 * REASON(C name, number, "public-name", "what it means")
 */
#ifndef UNDERPASS_REASONS_H
#define UNDERPASS_REASONS_H

#define REASON_FIRST_DROP 64

#define REASON_TABLE(REASON) \
	REASON(TO_POD, 1, "to-pod", "delivered to a pod of this node") \
	REASON(TO_OVERLAY, 2, "to-overlay", "sent to another node through the overlay") \
	REASON(TO_HOST, 3, "to-host", "handed to this node's own network stack") \
	REASON(TO_OUTSIDE, 4, "to-outside", "leaves the cluster, with the node's address as its source") \
	REASON(ARP_ANSWERED, 5, "arp-answered", "a pod asked for its gateway and got the answer") \
	REASON(OPENED, 6, "opened", "a new connection that policy allows") \
	REASON(CLOSED, 7, "closed", "a connection closed by both ends or by a reset") \
	REASON(SERVICE_TRANSLATED, 8, "service-translated", "a service address was replaced by a backend's") \
	REASON(REPLY_TRANSLATED, 9, "reply-translated", "a backend's address was replaced by the service's") \
	REASON(RESET_SENT, 10, "reset-sent", "both ends of a revoked TCP connection were sent a reset") \
	REASON(NUDGED, 11, "nudged", "a segment from the agent that makes an idle end speak") \
	REASON(REDIRECTED, 12, "redirected", "bytes went from socket to socket") \
	REASON(ACCELERATED, 13, "accelerated", "both ends of a connection talk socket to socket from here on") \
	REASON(ACCELERATED_CLOSED, 14, "accelerated-closed", "an accelerated connection ended, with its totals") \
	REASON(REDIRECT_OFF, 15, "redirect-off", "plain TCP: socket redirect is switched off on this node") \
	REASON(BEFORE_AGENT, 16, "before-agent", "plain TCP: the listener is older than the datapath") \
	REASON(OPTED_OUT, 17, "opted-out", "plain TCP: the pod or the port asks for it") \
	REASON(PEER_NOT_LOCAL, 18, "peer-not-local", "plain TCP: the other end is no pod of this node") \
	REASON(NO_NONCE, 19, "no-nonce", "plain TCP: the two ends could not be told to belong together") \
	REASON(NONCE_FOREIGN, 20, "nonce-foreign", "plain TCP: a nonce that another connection was given") \
	REASON(SENT_FIRST, 21, "sent-first", "plain TCP: bytes left before both ends were ready") \
	REASON(OPTION_ZEROCOPY, 22, "option-zerocopy", "plain TCP: an end has set SO_ZEROCOPY") \
	REASON(OPTION_LOWAT, 23, "option-rcvlowat", "plain TCP: an end has set SO_RCVLOWAT above 1") \
	REASON(MPTCP, 24, "mptcp", "plain TCP: a subflow of MPTCP") \
	REASON(FOREIGN_OWNER, 25, "foreign-owner", "plain TCP: another program holds the socket") \
	REASON(REDIRECT_FULL, 26, "redirect-full", "plain TCP: a table of socket redirect is full") \
	REASON(NEEDS_PROXY, 27, "needs-proxy", "plain TCP: policy asks for more than an address and a port") \
	REASON(POLICY_MOVED, 28, "policy-moved", "by TCP: policy no longer allows it, which ends it there") \
	REASON(READER_BEHIND, 29, "reader-behind", "by TCP, which waits: more unread bytes than the budget") \
	REASON(PEER_GONE, 30, "peer-gone", "by TCP: the other end has closed its socket") \
	REASON(SMALL_MESSAGES, 31, "small-messages", "plain TCP again: a stream of messages so small that TCP is quicker") \
	REASON(SLOW_READER, 32, "slow-reader", "plain TCP again: a stream whose reader stays behind") \
	REASON(MALFORMED, 64, "malformed", "headers are cut short or contradict themselves") \
	REASON(PROTOCOL_UNSUPPORTED, 65, "protocol-unsupported", "neither plain IPv4 nor ARP") \
	REASON(ARP_REFUSED, 66, "arp-refused", "an ARP message other than a pod's question for its gateway") \
	REASON(SOURCE_SPOOFED, 67, "source-spoofed", "the source address is not the sending pod's") \
	REASON(MAC_SPOOFED, 68, "mac-spoofed", "the source MAC is not the sending pod's") \
	REASON(NO_ENDPOINT, 69, "no-endpoint", "nobody has this address") \
	REASON(IDENTITY_UNKNOWN, 70, "identity-unknown", "who has the address is not known yet") \
	REASON(POLICY_MISSING, 71, "policy-missing", "the pod has no policy table yet") \
	REASON(POLICY_DENIED, 72, "policy-denied", "a rule denies it") \
	REASON(POLICY_DEFAULT, 73, "policy-default", "no rule allows it") \
	REASON(CONNTRACK_FULL, 74, "conntrack-full", "the connection could not be remembered") \
	REASON(CONNECTION_REVOKED, 75, "connection-revoked", "the connection was allowed once and is no longer") \
	REASON(ICMP_UNRELATED, 76, "icmp-unrelated", "an ICMP error about a connection that does not exist") \
	REASON(FRAGMENT_UNKNOWN, 77, "fragment-unknown", "a later fragment whose first one was not seen") \
	REASON(AUTH_REQUIRED, 78, "auth-required", "the pair has to authenticate first") \
	REASON(PROXY_UNAVAILABLE, 79, "proxy-unavailable", "a rule asks for a proxy that is not there") \
	REASON(POD_SENT_OVERLAY, 80, "pod-sent-overlay", "a pod sent an overlay packet to a node") \
	REASON(OVERLAY_NOT_NODE, 81, "overlay-not-node", "an overlay packet from an address that is no node") \
	REASON(OVERLAY_IDENTITY, 82, "overlay-identity", "the identity does not fit the inner source address") \
	REASON(OVERLAY_RESERVED, 83, "overlay-reserved", "a reserved identity that no node may send") \
	REASON(OVERLAY_SOURCE, 84, "overlay-source", "the inner source does not live on the sending node") \
	REASON(SERVICE_NO_BACKEND, 85, "service-no-backend", "the service has no backend") \
	REASON(SERVICE_UNKNOWN, 86, "service-unknown", "a service address, but no such port") \
	REASON(TRANSLATION_FULL, 87, "translation-full", "no free port to translate with") \
	REASON(TRANSLATION_MISSING, 88, "translation-missing", "a reply whose translation is gone") \
	REASON(NOT_TUNNELLED, 89, "not-tunnelled", "claims to come from the cluster, but not by the overlay") \
	REASON(UNMASQUERADED, 90, "unmasqueraded", "a pod's address would have left the node") \
	REASON(MULTICAST_UNSUPPORTED, 91, "multicast-unsupported", "a multicast or broadcast destination") \
	REASON(NOT_CONFIGURED, 92, "not-configured", "the node's configuration is not written yet") \
	REASON(REWRITE_FAILED, 93, "rewrite-failed", "the packet could not be rewritten as it had to be") \
	REASON(PROGRAM_MISSING, 94, "program-missing", "a program to continue in is not loaded")

#define REASON_ENUM(name, number, text, meaning) REASON_##name = number,

enum reason { REASON_TABLE(REASON_ENUM) };

#endif
