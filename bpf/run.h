/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What the redirect (redirect.c) and the observer (observe.c) of a run share:
 * they are loaded one after the other, the second with the first's maps.
 */

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define AF_INET 2
#define AF_INET6 10

/*
 * The run's own addresses, set before loading. Connections to them, as to
 * loopback, stay between the run's processes. Network byte order.
 */
volatile const __u32 own_addr4 = 0;
volatile const __u32 own_addr6[4] = {};

static __always_inline int is_own4(__u32 addr)
{
	return (addr & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000) || addr == own_addr4;
}

static __always_inline int is_own6(__u32 a, __u32 b, __u32 c, __u32 d)
{
	if (a == own_addr6[0] && b == own_addr6[1] && c == own_addr6[2] && d == own_addr6[3])
		return 1;
	return a == 0 && b == 0 && c == 0 && d == bpf_htonl(1);
}

/*
 * The ports at which datagrams are relayed, since there are rules that allow some:
 * a bit each, set before loading.
 */
volatile const __u8 relayed_ports[8192] = {};

/* What becomes of a datagram that does not stay between the run's processes. */
enum {
	DATAGRAM_REFUSED,
	DATAGRAM_DNS,     /* is for the resolver */
	DATAGRAM_RELAYED, /* is for the relays, which judge it */
};

/*
 * fate is the one answer of observer, which counts, and redirect, which gives:
 * it depends on nothing that changes, so that the two are never of two minds.
 */
static __always_inline int fate(__u16 port, int from_own) /* in the host's byte order */
{
	if (!from_own)
		return DATAGRAM_REFUSED;
	if (port == 53)
		return DATAGRAM_DNS;
	return relayed_ports[port >> 3] & (1 << (port & 7)) ? DATAGRAM_RELAYED : DATAGRAM_REFUSED;
}

/* Indexes of counts. */
enum {
	COUNT_TCP,     /* connections that the run has established to the proxy */
	COUNT_DNS,     /* datagrams that the run has sent to the resolver */
	COUNT_RELAYED, /* datagrams that the run has sent to the relays */
	COUNT_REFUSED, /* datagrams refused */
	COUNT_LOST,    /* refusals for which the ring buffer had no room */
	COUNTS,
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, COUNTS);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u64));
} counts SEC(".maps");

static __always_inline void count(__u32 index)
{
	__u64 *value = bpf_map_lookup_elem(&counts, &index);
	if (value)
		__sync_fetch_and_add(value, 1);
}

/* A connection or datagram of the run, all in network byte order. */
struct flow {
	__u32 source[4]; /* IPv4: the first word */
	__u32 destination[4];
	__u16 source_port;
	__u16 destination_port;
	__u16 family; /* in the host's byte order, like protocol */
	__u16 protocol;
};

/* One program that a process runs: a process that executes another is another. */
struct image {
	__u64 started; /* nanoseconds since boot */
	__u64 execs;
	__u64 pid; /* in the host's numbers */
};

/* Who made a connection or sent a datagram. */
struct owner {
	struct image image;
	__u32 parent;
	__u32 uid;
	char comm[16];
};

/*
 * The owners of datagrams on their way to the resolver or the relays, which look
 * them up when they have read them, or to be refused: as many as the sockets have
 * room for.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 2048);
	__uint(key_size, sizeof(struct flow));
	__uint(value_size, sizeof(struct owner));
} datagrams SEC(".maps");

/* A refused datagram, for the journal. The owner is zero when it is not known. */
struct refusal {
	struct flow flow;
	struct owner owner;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} refusals SEC(".maps");

/* Keeps the type in the object's BTF, for the Go bindings. */
const struct refusal *const unused_refusal __attribute__((unused)) = 0;

static __always_inline void record_refusal(const struct flow *flow, const struct owner *owner)
{
	count(COUNT_REFUSED);
	struct refusal *r = bpf_ringbuf_reserve(&refusals, sizeof(*r), 0);
	if (!r) {
		count(COUNT_LOST);
		return;
	}
	r->flow = *flow;
	if (owner)
		r->owner = *owner;
	else
		__builtin_memset(&r->owner, 0, sizeof(r->owner));
	bpf_ringbuf_submit(r, 0);
}
