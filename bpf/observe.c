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

// member reads a member of a type from a kernel structure; zero if it cannot.
#define member(type, structure, offset)                                        \
	({                                                                     \
		type value = 0;                                                \
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
	__type(key, struct flow);
	__type(value, struct owner);
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
	__type(key, struct image);
	__type(value, struct executable);
} executables SEC(".maps");

// Room to put a path together in: more than a stack has.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct executable);
} scratch SEC(".maps");

// read_path walks from an executable up to the root of its mount namespace,
// which is the run's root.
static __always_inline void read_path(void *task, struct executable *e)
{
	void *mm = member(void *, task, kernel.task_mm);
	void *path = member(void *, mm, kernel.mm_exe_file) + kernel.file_f_path;
	void *dentry = member(void *, path, kernel.path_dentry);
	void *mount = member(void *, path, kernel.path_mnt) - kernel.mount_mnt;

	__u32 i;
	e->complete = 0;
	for (i = 0; i < PATH_DEPTH; i++) {
		if (dentry == member(void *, mount, kernel.mount_mnt + kernel.vfsmount_mnt_root)) {
			void *parent = member(void *, mount, kernel.mount_mnt_parent);
			if (parent == mount) {
				e->complete = 1;
				break;
			}
			e->names[i][0] = 0;
			dentry = member(void *, mount, kernel.mount_mnt_mountpoint);
			mount = parent;
			continue;
		}
		bpf_probe_read_kernel_str(e->names[i], NAME_SIZE,
					  member(void *, dentry, kernel.dentry_d_name + kernel.qstr_name));
		void *parent = member(void *, dentry, kernel.dentry_d_parent);
		if (parent == dentry) { // in no folder, as a memfd
			i++;
			break;
		}
		dentry = parent;
	}
	e->depth = i;
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

// keep_path keeps the path of the caller's executable. As a function that is not
// static the verifier looks at it once, not on each way that leads to it.
__noinline int keep_path(void)
{
	void *task = (void *)bpf_get_current_task();
	struct image image;
	read_image(task, &image);
	if (bpf_map_lookup_elem(&executables, &image))
		return 0;
	__u32 zero = 0;
	struct executable *e = bpf_map_lookup_elem(&scratch, &zero);
	if (!e)
		return 0;
	read_path(task, e);
	bpf_map_update_elem(&executables, &image, e, BPF_ANY);
	return 0;
}

// leads_nowhere tells the addresses behind which there is no one host: the kernel
// delivers what is sent there without asking the redirect.
static __always_inline int leads_nowhere(const struct flow *flow)
{
	if (flow->family == AF_INET)
		return (flow->destination[0] & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) ||
		       flow->destination[0] == 0xffffffff;
	return (flow->destination[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

// To connect to where there is no one host is refused: EPERM.
static __always_inline int connects(struct bpf_sock_addr *ctx, struct flow *flow)
{
	if (!leads_nowhere(flow))
		return 1;
	flow->destination_port = ctx->user_port;
	flow->protocol = ctx->protocol;
	struct owner owner = {};
	read_owner(&owner);
	record_refusal(flow, &owner);
	return 0;
}

SEC("cgroup/connect4")
int observe_connect4(struct bpf_sock_addr *ctx)
{
	struct flow flow = { .family = AF_INET };
	flow.destination[0] = ctx->user_ip4;
	return connects(ctx, &flow);
}

SEC("cgroup/connect6")
int observe_connect6(struct bpf_sock_addr *ctx)
{
	__u32 a = ctx->user_ip6[0], b = ctx->user_ip6[1], c = ctx->user_ip6[2], d = ctx->user_ip6[3];
	struct flow flow = { .family = AF_INET6 };
	if (a == 0 && b == 0 && c == bpf_htonl(0xffff)) { // IPv4 on a socket for both
		flow.family = AF_INET;
		flow.destination[0] = d;
	} else {
		flow.destination[0] = a;
		flow.destination[1] = b;
		flow.destination[2] = c;
		flow.destination[3] = d;
	}
	return connects(ctx, &flow);
}

#define TCP_SYN 0x02
#define TCP_ACK 0x10

// What a packet is.
enum {
	PACKET_KERNELS,   // the kernel's own
	PACKET_CONTINUES, // of a connection that was opened before
	PACKET_OPENS,     // a connection
	PACKET_DATAGRAM,
	PACKET_WRONG, // of a protocol that no socket of a run has
};

// read_flow reads the addresses and ports of a packet and tells what it is, and the
// sequence number of one of TCP.
static __always_inline int read_flow(struct __sk_buff *skb, struct flow *flow, __u32 *sequence)
{
	__u8 head[40];
	__u32 transport;
	if (bpf_skb_load_bytes(skb, 0, head, 20) < 0)
		return PACKET_KERNELS;
	if (head[0] >> 4 == 4) {
		flow->family = AF_INET;
		flow->protocol = head[9];
		__builtin_memcpy(&flow->source[0], &head[12], 4);
		__builtin_memcpy(&flow->destination[0], &head[16], 4);
		transport = (head[0] & 0xf) * 4;
	} else {
		if (bpf_skb_load_bytes(skb, 0, head, 40) < 0)
			return PACKET_KERNELS;
		flow->family = AF_INET6;
		flow->protocol = head[6]; // or the number of an extension header
		__builtin_memcpy(flow->source, &head[8], 16);
		__builtin_memcpy(flow->destination, &head[24], 16);
		transport = 40;
	}
	if (flow->protocol == IPPROTO_ICMP || flow->protocol == IPPROTO_ICMPV6)
		return PACKET_KERNELS;
	__u8 begin[14];
	int packet;
	if (flow->protocol == IPPROTO_TCP) {
		if (bpf_skb_load_bytes(skb, transport, begin, 14) < 0)
			return PACKET_KERNELS;
		packet = (begin[13] & (TCP_SYN | TCP_ACK)) == TCP_SYN ? PACKET_OPENS : PACKET_CONTINUES;
		__builtin_memcpy(sequence, &begin[4], 4);
	} else if (flow->protocol == IPPROTO_UDP) {
		if (bpf_skb_load_bytes(skb, transport, begin, 4) < 0)
			return PACKET_KERNELS;
		packet = PACKET_DATAGRAM;
	} else {
		return PACKET_WRONG;
	}
	__builtin_memcpy(&flow->source_port, &begin[0], 2);
	__builtin_memcpy(&flow->destination_port, &begin[2], 2);
	return packet;
}

// The credential server is the host's, without the redirect.
static __always_inline int is_credentials(const struct flow *flow)
{
	return flow->family == AF_INET && flow->destination[0] == bpf_htonl(0x7f000001) &&
	       flow->protocol == IPPROTO_TCP && flow->destination_port == credential_port;
}

static __always_inline int is_from_own(const struct flow *flow)
{
	if (flow->family == AF_INET)
		return is_own4(flow->source[0]);
	return is_own6(flow->source[0], flow->source[1], flow->source[2], flow->source[3]);
}

// Whether the host is at the other end, who wants to know the owner.
static __always_inline int is_hosts(const struct flow *flow)
{
	if (flow->family == AF_INET6)
		return !is_own6(flow->destination[0], flow->destination[1], flow->destination[2], flow->destination[3]);
	return is_credentials(flow) || !is_own4(flow->destination[0]);
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
	__u32 sequence = 0;
	int packet = read_flow(skb, &flow, &sequence);
	if (packet == PACKET_CONTINUES)
		return continues(sk);
	if (packet == PACKET_KERNELS || !is_hosts(&flow))
		return 1;

	// What is sent first is sent in a call, by the caller. TCP sends again at any
	// time, in anyone's name. A connection that there is no room to note would
	// not be counted: it is refused.
	struct owner owner = {};
	struct use *use = 0;
	if (sk->protocol == IPPROTO_TCP) {
		use = bpf_sk_storage_get(&uses, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
		if (!use)
			return refuse(&flow, 0);
	}
	if (use && use->owner.image.pid && use->sequence == sequence) {
		owner = use->owner;
	} else {
		read_owner(&owner);
		keep_path();
		if (use) {
			use->owner = owner;
			use->sequence = sequence;
			use->counts = !is_credentials(&flow);
		}
	}
	if (packet == PACKET_OPENS) {
		bpf_map_update_elem(&connections, &flow, &owner, BPF_ANY);
		return 1;
	}
	// With an IPv6 extension header a packet is dropped on its way, by whom no
	// record comes; many datagrams in one the redirect would count once. The answer
	// to an address that is not the run's own would be given to the host's sockets,
	// like anything else.
	int from_own = is_from_own(&flow);
	if (packet == PACKET_WRONG || skb->gso_segs > 1 || !from_own || leads_nowhere(&flow))
		return refuse(&flow, &owner);
	bpf_map_update_elem(&datagrams, &flow, &owner, BPF_ANY);
	// Here, since the redirect is also asked where an ICMP error belongs.
	switch (fate(bpf_ntohs(flow.destination_port), from_own)) {
	case DATAGRAM_DNS:
		count(COUNT_DNS);
		break;
	case DATAGRAM_RELAYED:
		count(COUNT_RELAYED);
	}
	return 1;
}

char _license[] SEC("license") = "Dual BSD/GPL";
