//go:build ignore

// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// The redirect of a run: attached as sk_lookup to the run's network namespace,
// it decides which socket every new TCP connection and every unconnected UDP
// datagram is delivered to. Inside that namespace every address is local, so
// this program sees everything that anyone in it tries to send anywhere.

#include "run.h"

// Indexes of sockets, the one of IPv6 behind that of IPv4.
enum {
	SOCKET_TCP4,
	SOCKET_TCP6,
	SOCKET_DNS4,
	SOCKET_DNS6,
	SOCKET_RELAY4,
	SOCKET_RELAY6,
	SOCKETS,
};

// The listeners of the host's proxy, resolver and relays, opened inside the
// namespace.
// Sizes, not types: the kernel takes no type information with a SOCKMAP, and to
// find that out costs an RCU grace period at every load.
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, SOCKETS);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u64));
} sockets SEC(".maps");

// field loads a 32-bit member of the context. The verifier takes only loads at a
// constant offset of the unchanged context pointer; in C, the compiler computes a
// member's address once and shares it between branches.
#define field(ctx, member)                                                     \
	({                                                                     \
		__u32 value;                                                   \
		asm volatile("%0 = *(u32 *)(%1 + %2)"                          \
			     : "=r"(value)                                     \
			     : "r"(ctx), "i"(__builtin_offsetof(struct bpf_sk_lookup, member))); \
		value;                                                         \
	})

static __always_inline int is_own(struct bpf_sk_lookup *ctx)
{
	if (ctx->family == AF_INET)
		return is_own4(field(ctx, local_ip4));
	return is_own6(field(ctx, local_ip6[0]), field(ctx, local_ip6[1]),
		       field(ctx, local_ip6[2]), field(ctx, local_ip6[3]));
}

static __always_inline int is_from_own(struct bpf_sk_lookup *ctx)
{
	if (ctx->family == AF_INET)
		return is_own4(field(ctx, remote_ip4));
	return is_own6(field(ctx, remote_ip6[0]), field(ctx, remote_ip6[1]),
		       field(ctx, remote_ip6[2]), field(ctx, remote_ip6[3]));
}

// give assigns the socket at index. Without it (a closed listener) the packet is
// dropped: never may the lookup go on to a socket that the run has opened.
static __always_inline int give(struct bpf_sk_lookup *ctx, __u32 index)
{
	struct bpf_sock *sk = bpf_map_lookup_elem(&sockets, &index);
	if (!sk)
		return SK_DROP;
	long err = bpf_sk_assign(ctx, sk, 0);
	bpf_sk_release(sk);
	return err ? SK_DROP : SK_PASS;
}

// The observer knows the sender; it saw the datagram leave.
static __always_inline int refuse(struct bpf_sk_lookup *ctx)
{
	struct flow flow = {
		.source_port = ctx->remote_port, // in network byte order, the other is not
		.destination_port = bpf_htons(ctx->local_port),
		.family = ctx->family,
		.protocol = ctx->protocol,
	};
	if (ctx->family == AF_INET) {
		flow.source[0] = field(ctx, remote_ip4);
		flow.destination[0] = field(ctx, local_ip4);
	} else {
		flow.source[0] = field(ctx, remote_ip6[0]);
		flow.source[1] = field(ctx, remote_ip6[1]);
		flow.source[2] = field(ctx, remote_ip6[2]);
		flow.source[3] = field(ctx, remote_ip6[3]);
		flow.destination[0] = field(ctx, local_ip6[0]);
		flow.destination[1] = field(ctx, local_ip6[1]);
		flow.destination[2] = field(ctx, local_ip6[2]);
		flow.destination[3] = field(ctx, local_ip6[3]);
	}
	record_refusal(&flow, bpf_map_lookup_elem(&datagrams, &flow));
	return SK_DROP;
}

SEC("sk_lookup")
int redirect(struct bpf_sk_lookup *ctx)
{
	if (is_own(ctx))
		return SK_PASS;

	__u32 index = SOCKET_TCP4;
	if (ctx->protocol != IPPROTO_TCP) {
		switch (fate(ctx->local_port, is_from_own(ctx))) {
		case DATAGRAM_DNS:
			index = SOCKET_DNS4;
			break;
		case DATAGRAM_RELAYED:
			index = SOCKET_RELAY4;
			break;
		default: // Any other datagram. The sender gets ICMP port unreachable at once.
			return refuse(ctx);
		}
	}
	if (ctx->family == AF_INET6)
		index++;
	return give(ctx, index);
}

char _license[] SEC("license") = "Dual BSD/GPL";
