//go:build ignore

// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// The observer of a run: attached to the run's cgroup, it knows which process
// makes each connection and sends each datagram, and counts the connections that
// come about. It sees the packets as they are sent, in the name of who sends them:
// a program at every call that can send would cost each run several changes of
// the kernel's own code. It enforces little: the boundary is the namespace.

#include "run.h"

// The port of the run's credential server on 127.0.0.1, the one listener of the
// host's that is not behind the redirect. Network byte order.
volatile const __u16 credential_port = 0;

// Where the kernel's own structures hold what is read of them: bytes from their
// beginning, from the kernel's BTF. The loader could relocate accesses to them
// itself, but to read a whole kernel's types takes longer than to start a run.
volatile const struct layout {
	__u32 task_group_leader;
	__u32 task_real_parent;
	__u32 task_tgid;
	__u32 task_start_boottime;
	__u32 task_self_exec_id;
	__u32 task_mm;
	__u32 task_comm;
	__u32 task_cred;
	__u32 cred_uid;
	__u32 mm_exe_file;
	__u32 file_f_path;
	__u32 path_mnt;
	__u32 path_dentry;
	__u32 mount_mnt; // of struct mount, the struct vfsmount in it
	__u32 mount_mnt_parent;
	__u32 mount_mnt_mountpoint;
	__u32 vfsmount_mnt_root;
	__u32 dentry_d_parent;
	__u32 dentry_d_name;
	__u32 qstr_name;
} kernel = {};

// member reads a member of a type from a kernel structure. The kernel makes it zero
// if it cannot.
#define member(type, structure, offset)                                        \
	({                                                                     \
		type value;                                                    \
		bpf_probe_read_kernel(&value, sizeof(value), (void *)(structure) + (offset)); \
		value;                                                         \
	})

// What a TCP socket is used for.
struct use {
	struct owner owner;
	__u32 sequence; // of the segment that opens the connection
	__u32 counts;   // the connection is to be counted when it is established
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct use);
} uses SEC(".maps");

// The owners of connections that are being opened. Who accepts one takes its owner
// away.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__uint(key_size, sizeof(struct flow));
	__uint(value_size, sizeof(struct owner));
} connections SEC(".maps");

#define PATH_DEPTH 12
#define NAME_SIZE 64

// The path of an image's executable, last name first. A name is cut to its size
// and ended by a NUL; an empty one stands for the crossing of a mount.
struct executable {
	__u32 depth;    // how many names there are
	__u32 complete; // the root was reached
	char names[PATH_DEPTH][NAME_SIZE];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 128);
	__uint(key_size, sizeof(struct image));
	__uint(value_size, sizeof(struct executable));
} executables SEC(".maps");

const struct executable *const unused_executable __attribute__((unused)) = 0;

// A path that is put together, and where the walk to its root has come.
struct walk {
	void *dentry;
	void *mount;
	struct executable executable;
};

// Room for it: more than a stack has.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct walk));
} scratch SEC(".maps");

// step reads the name at index i of the path and goes on to what holds it. It
// returns 0 at the end.
//
// The verifier looks at a function that is not static once, not on each way that
// leads to it, and goes on from there on one way, whatever it has returned.
__noinline int step(__u64 i)
{
	__u32 zero = 0;
	struct walk *walk = bpf_map_lookup_elem(&scratch, &zero);
	if (!walk || i >= PATH_DEPTH)
		return 0;
	char *name = walk->executable.names[i];
	void *dentry = walk->dentry, *mount = walk->mount;
	if (dentry == member(void *, mount, kernel.mount_mnt + kernel.vfsmount_mnt_root)) {
		void *parent = member(void *, mount, kernel.mount_mnt_parent);
		if (parent == mount) {
			walk->executable.complete = 1;
			return 0;
		}
		name[0] = 0;
		walk->executable.depth = i + 1;
		walk->dentry = member(void *, mount, kernel.mount_mnt_mountpoint);
		walk->mount = parent;
		return 1;
	}
	bpf_probe_read_kernel_str(name, NAME_SIZE, member(void *, dentry, kernel.dentry_d_name + kernel.qstr_name));
	walk->executable.depth = i + 1;
	walk->dentry = member(void *, dentry, kernel.dentry_d_parent);
	return walk->dentry != dentry; // else it is in no folder, as a memfd
}

static __always_inline void read_image(void *task, struct image *image)
{
	void *leader = member(void *, task, kernel.task_group_leader);
	image->started = member(__u64, leader, kernel.task_start_boottime);
	image->execs = member(__u64, task, kernel.task_self_exec_id);
	image->pid = member(__u32, task, kernel.task_tgid);
}

// read_owner tells who calls the kernel.
static __always_inline void read_owner(struct owner *owner)
{
	void *task = (void *)bpf_get_current_task();
	read_image(task, &owner->image);
	owner->parent = member(__u32, member(void *, task, kernel.task_real_parent), kernel.task_tgid);
	owner->uid = member(__u32, member(void *, task, kernel.task_cred), kernel.cred_uid);
	bpf_probe_read_kernel(owner->comm, sizeof(owner->comm), task + kernel.task_comm);
}

// keep_path keeps the path of the caller's executable, from there up to the root of
// its mount namespace, which is the run's root.
__noinline int keep_path(void)
{
	void *task = (void *)bpf_get_current_task();
	struct image image;
	read_image(task, &image);
	if (bpf_map_lookup_elem(&executables, &image))
		return 0;
	__u32 zero = 0;
	struct walk *walk = bpf_map_lookup_elem(&scratch, &zero);
	if (!walk)
		return 0;
	void *mm = member(void *, task, kernel.task_mm);
	void *path = member(void *, mm, kernel.mm_exe_file) + kernel.file_f_path;
	walk->dentry = member(void *, path, kernel.path_dentry);
	walk->mount = member(void *, path, kernel.path_mnt) - kernel.mount_mnt;
	walk->executable.depth = 0;
	walk->executable.complete = 0;
	for (__u32 i = 0; i < PATH_DEPTH; i++)
		if (!step(i))
			break;
	bpf_map_update_elem(&executables, &image, &walk->executable, BPF_ANY);
	return 0;
}

// To these addresses there is no one host: the kernel delivers what is sent there
// without asking the redirect.
static __always_inline int leads_nowhere4(__u32 a)
{
	return (a & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || a == 0xffffffff;
}

static __always_inline int leads_nowhere6(__u32 a) // the first of four
{
	return (a & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

// To connect to where there is no one host is refused: EPERM.
static __always_inline int refuse_connection(struct bpf_sock_addr *ctx, struct flow *flow)
{
	flow->destination_port = ctx->user_port;
	flow->protocol = ctx->protocol;
	struct owner owner;
	read_owner(&owner);
	record_refusal(flow, &owner);
	return 0;
}

SEC("cgroup/connect4")
int observe_connect4(struct bpf_sock_addr *ctx)
{
	struct flow flow = { .family = AF_INET };
	flow.destination[0] = ctx->user_ip4;
	return leads_nowhere4(flow.destination[0]) ? refuse_connection(ctx, &flow) : 1;
}

SEC("cgroup/connect6")
int observe_connect6(struct bpf_sock_addr *ctx)
{
	__u32 a = ctx->user_ip6[0], b = ctx->user_ip6[1], c = ctx->user_ip6[2], d = ctx->user_ip6[3];
	struct flow flow = { .family = AF_INET6 };
	if (a == 0 && b == 0 && c == bpf_htonl(0xffff)) { // IPv4 on a socket for both
		if (!leads_nowhere4(d))
			return 1;
		flow.family = AF_INET;
		flow.destination[0] = d;
	} else {
		if (!leads_nowhere6(a))
			return 1;
		flow.destination[0] = a;
		flow.destination[1] = b;
		flow.destination[2] = c;
		flow.destination[3] = d;
	}
	return refuse_connection(ctx, &flow);
}

#define TCP_SYN 0x02
#define TCP_ACK 0x10

// What a packet is. Like places a bit each: from a bit that was tested the verifier
// learns nothing of the others, and so goes on on one way.
enum {
	PACKET_KERNELS = 1,   // the kernel's own
	PACKET_CONTINUES = 2, // of a connection that was opened before
	PACKET_OPENS = 4,     // a connection
	PACKET_DATAGRAM = 8,
	PACKET_WRONG = 16, // of a protocol that no socket of a run has
};

// read_addresses reads a packet's addresses and protocol, and where the header of
// that begins; not 0 if it cannot.
static __always_inline long read_addresses(struct __sk_buff *skb, struct flow *flow, __u32 *header)
{
	__u8 version = 0, protocol = 0;
	long err = bpf_skb_load_bytes(skb, 0, &version, sizeof(version));
	if (version >> 4 == 4) {
		flow->family = AF_INET;
		*header = (version & 0xf) * 4;
		err |= bpf_skb_load_bytes(skb, 9, &protocol, sizeof(protocol));
		err |= bpf_skb_load_bytes(skb, 12, flow->source, 4);
		err |= bpf_skb_load_bytes(skb, 16, flow->destination, 4);
	} else {
		flow->family = AF_INET6;
		*header = 40;
		err |= bpf_skb_load_bytes(skb, 6, &protocol, sizeof(protocol)); // or the number of an extension header
		err |= bpf_skb_load_bytes(skb, 8, flow->source, sizeof(flow->source) + sizeof(flow->destination));
	}
	flow->protocol = protocol;
	return err;
}

// kind tells what a packet is, by its protocol and where the header of that begins.
__noinline int kind(struct __sk_buff *skb, __u32 protocol, __u32 header)
{
	switch (protocol) {
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return PACKET_KERNELS;
	case IPPROTO_UDP:
		return PACKET_DATAGRAM;
	case IPPROTO_TCP:
		break;
	default:
		return PACKET_WRONG;
	}
	__u8 flags;
	if (bpf_skb_load_bytes(skb, header + 13, &flags, sizeof(flags)) < 0)
		return PACKET_KERNELS;
	return (flags & (TCP_SYN | TCP_ACK)) == TCP_SYN ? PACKET_OPENS : PACKET_CONTINUES;
}

// Where an address is.
enum {
	PLACE_OWN = 1,       // with the run
	PLACE_LOCALHOST = 2, // there, where the credential server is as well
	PLACE_NOWHERE = 4,   // with no one host
};

__noinline int place(__u32 family, __u32 a, __u32 b, __u32 c, __u32 d)
{
	if (family != AF_INET) {
		if (is_own6(a, b, c, d))
			return PLACE_OWN;
		return leads_nowhere6(a) ? PLACE_NOWHERE : 0;
	}
	if (a == bpf_htonl(0x7f000001))
		return PLACE_OWN | PLACE_LOCALHOST;
	if (is_own4(a))
		return PLACE_OWN;
	return leads_nowhere4(a) ? PLACE_NOWHERE : 0;
}

// continues counts a connection to the proxy when its first packet behind the
// opening one is sent: that one establishes it at the proxy's end.
static __always_inline int continues(struct bpf_sock *sk)
{
	struct use *use = bpf_sk_storage_get(&uses, sk, 0, 0);
	if (use && use->counts) {
		use->counts = 0;
		count(COUNT_TCP);
	}
	return 1;
}

static __always_inline int refuse(const struct flow *flow, const struct owner *owner)
{
	record_refusal(flow, owner);
	return 0;
}

SEC("cgroup_skb/egress")
int observe_egress(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	if (!sk)
		return 1;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 1;
	// Most packets by far. What the kernel sends in one large piece may have an option
	// of IPv6 before its TCP header (RFC 2675).
	if (sk->protocol == IPPROTO_TCP && sk->state != BPF_TCP_SYN_SENT)
		return continues(sk);
	struct flow flow = {};
	__u32 header;
	if (read_addresses(skb, &flow, &header))
		return 1;
	int packet = kind(skb, flow.protocol, header);
	if (packet & PACKET_CONTINUES)
		return continues(sk);
	if (packet & PACKET_KERNELS)
		return 1;
	if (packet & (PACKET_OPENS | PACKET_DATAGRAM) && bpf_skb_load_bytes(skb, header, &flow.source_port, 4)) // both ports
		return 1;
	// Between the run's processes it is nobody's business. The credential server is
	// the host's, without the redirect.
	int to = place(flow.family, flow.destination[0], flow.destination[1], flow.destination[2], flow.destination[3]);
	if (to & PLACE_OWN &&
	    !(to & PLACE_LOCALHOST && flow.protocol == IPPROTO_TCP && flow.destination_port == credential_port))
		return 1;

	// What is sent first is sent in a call, by the caller. TCP sends again at any
	// time, in anyone's name. A connection that there is no room to note would
	// not be counted: it is refused.
	struct owner owner;
	read_owner(&owner);
	struct use *use = 0;
	__u32 sequence = 0;
	if (sk->protocol == IPPROTO_TCP) {
		use = bpf_sk_storage_get(&uses, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
		if (!use)
			return refuse(&flow, 0);
		if (packet & PACKET_OPENS)
			bpf_skb_load_bytes(skb, header + 4, &sequence, sizeof(sequence));
	}
	if (use && use->owner.image.pid && use->sequence == sequence) {
		owner = use->owner;
	} else {
		keep_path();
		if (use) {
			use->owner = owner;
			use->sequence = sequence;
			use->counts = !(to & PLACE_OWN);
		}
	}
	if (packet & PACKET_OPENS) {
		bpf_map_update_elem(&connections, &flow, &owner, BPF_ANY);
		return 1;
	}
	// With an IPv6 extension header a packet is dropped on its way, by whom no
	// record comes; many datagrams in one the redirect would count once. The answer
	// to an address that is not the run's own would be given to the host's sockets,
	// like anything else.
	int from = place(flow.family, flow.source[0], flow.source[1], flow.source[2], flow.source[3]);
	if (packet & PACKET_WRONG || skb->gso_segs > 1 || !(from & PLACE_OWN) || to & PLACE_NOWHERE)
		return refuse(&flow, &owner);
	bpf_map_update_elem(&datagrams, &flow, &owner, BPF_ANY);
	// Here, since the redirect is also asked where an ICMP error belongs.
	switch (fate(bpf_ntohs(flow.destination_port), from & PLACE_OWN)) {
	case DATAGRAM_DNS:
		count(COUNT_DNS);
		break;
	case DATAGRAM_RELAYED:
		count(COUNT_RELAYED);
	}
	return 1;
}

char _license[] SEC("license") = "Dual BSD/GPL";
