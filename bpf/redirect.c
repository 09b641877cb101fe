//go:build ignore

// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// The redirect of a run: attached as sk_lookup to the run's network namespace,
// it decides which socket every new TCP connection and every unconnected UDP
// datagram is delivered to. Inside that namespace every address is local, so
// this program sees everything that anyone in it tries to send anywhere.

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/socket.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define AF_INET 2
#define AF_INET6 10

// The run's own addresses, set before loading. Connections to them, as to
// loopback, stay between the run's processes. Network byte order.
volatile const __u32 own_addr4 = 0;
volatile const __u32 own_addr6[4] = {};

// Indexes of sockets.
enum {
	SOCKET_TCP4,
	SOCKET_TCP6,
	SOCKET_DNS4,
	SOCKET_DNS6,
	SOCKETS,
};

// The listeners of the host's proxy and resolver, opened inside the namespace.
// Sizes, not types: the kernel takes no type information with a SOCKMAP, and to
// find that out costs an RCU grace period at every load.
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, SOCKETS);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u64));
} sockets SEC(".maps");

// Indexes of counts.
enum {
	COUNT_TCP,     // segments given to the proxy's listener: those that open a
		       // connection, and late ones of connections that are gone
	COUNT_DNS,     // datagrams given to the resolver
	COUNT_REFUSED, // datagrams refused
	COUNT_LOST,    // refusals for which refusals had no room
	COUNTS,
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, COUNTS);
	__type(key, __u32);
	__type(value, __u64);
} counts SEC(".maps");

// A refused datagram, for the journal. Addresses and remote_port (the sender's)
// are in network byte order, local_port (the destination's) in the host's, as
// in struct bpf_sk_lookup.
struct refusal {
	__u32 family;
	__u32 protocol;
	__u32 source[4]; // IPv4: the first word
	__u32 destination[4];
	__u16 source_port;
	__u16 pad;
	__u32 destination_port;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} refusals SEC(".maps");

// Keeps the type in the object's BTF, for the Go bindings.
const struct refusal *unused_refusal __attribute__((unused));

static __always_inline void count(__u32 index)
{
	__u64 *value = bpf_map_lookup_elem(&counts, &index);
	if (value)
		__sync_fetch_and_add(value, 1);
}

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
	if (ctx->family == AF_INET) {
		__u32 addr = field(ctx, local_ip4);
		return (addr & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000) || addr == own_addr4;
	}
	__u32 a = field(ctx, local_ip6[0]), b = field(ctx, local_ip6[1]);
	__u32 c = field(ctx, local_ip6[2]), d = field(ctx, local_ip6[3]);
	if (a == own_addr6[0] && b == own_addr6[1] && c == own_addr6[2] && d == own_addr6[3])
		return 1;
	return a == 0 && b == 0 && c == 0 && d == bpf_htonl(1);
}

// give assigns the socket at index. Without it (a closed listener) the packet is
// dropped: never may the lookup go on to a socket that the run has opened.
static __always_inline int give(struct bpf_sk_lookup *ctx, __u32 index, __u32 counter)
{
	struct bpf_sock *sk = bpf_map_lookup_elem(&sockets, &index);
	if (!sk)
		return SK_DROP;
	long err = bpf_sk_assign(ctx, sk, 0);
	bpf_sk_release(sk);
	if (err)
		return SK_DROP;
	count(counter);
	return SK_PASS;
}

static __always_inline int refuse(struct bpf_sk_lookup *ctx)
{
	count(COUNT_REFUSED);
	struct refusal *r = bpf_ringbuf_reserve(&refusals, sizeof(*r), 0);
	if (!r) {
		count(COUNT_LOST);
		return SK_DROP;
	}
	__builtin_memset(r, 0, sizeof(*r));
	r->family = ctx->family;
	r->protocol = ctx->protocol;
	r->source_port = ctx->remote_port;
	r->destination_port = ctx->local_port;
	if (ctx->family == AF_INET) {
		r->source[0] = field(ctx, remote_ip4);
		r->destination[0] = field(ctx, local_ip4);
	} else {
		r->source[0] = field(ctx, remote_ip6[0]);
		r->source[1] = field(ctx, remote_ip6[1]);
		r->source[2] = field(ctx, remote_ip6[2]);
		r->source[3] = field(ctx, remote_ip6[3]);
		r->destination[0] = field(ctx, local_ip6[0]);
		r->destination[1] = field(ctx, local_ip6[1]);
		r->destination[2] = field(ctx, local_ip6[2]);
		r->destination[3] = field(ctx, local_ip6[3]);
	}
	bpf_ringbuf_submit(r, 0);
	return SK_DROP;
}

SEC("sk_lookup")
int redirect(struct bpf_sk_lookup *ctx)
{
	if (is_own(ctx))
		return SK_PASS;

	int v6 = ctx->family == AF_INET6;
	if (ctx->protocol == IPPROTO_TCP)
		return give(ctx, v6 ? SOCKET_TCP6 : SOCKET_TCP4, COUNT_TCP);
	if (ctx->protocol == IPPROTO_UDP && ctx->local_port == 53)
		return give(ctx, v6 ? SOCKET_DNS6 : SOCKET_DNS4, COUNT_DNS);

	// Any other datagram. The sender gets ICMP port unreachable at once.
	return refuse(ctx);
}

char _license[] SEC("license") = "Dual BSD/GPL";
