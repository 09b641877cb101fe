//go:build ignore

// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
//
// The observer of a run: attached to the run's cgroup, it knows which process
// makes each connection and sends each datagram, and counts the connections that
// come about. It enforces nothing but that a datagram is one datagram: the
// boundary is the namespace.

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

// Who last connected a socket or sent on it.
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct owner);
} senders SEC(".maps");

// The owners of connections that are being opened. Who accepts one takes its owner
// away.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
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

// keep_path keeps the path of an owner's executable, if the owner is who sends: the
// kernel may send a packet again at any time, in anyone's name.
static __always_inline void keep_path(const struct owner *owner)
{
	void *task = (void *)bpf_get_current_task();
	struct image image;
	read_image(task, &image);
	if (image.pid != owner->image.pid || image.execs != owner->image.execs || image.started != owner->image.started)
		return;
	if (bpf_map_lookup_elem(&executables, &image))
		return;
	__u32 zero = 0;
	struct executable *e = bpf_map_lookup_elem(&scratch, &zero);
	if (!e)
		return;
	read_path(task, e);
	bpf_map_update_elem(&executables, &image, e, BPF_ANY);
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

// sender notes who uses a socket. Without room for it, the packets that follow
// have no owner, which the record shows. What is sent to no one host is refused:
// EPERM.
static __always_inline int sender(struct bpf_sock_addr *ctx, struct flow *flow)
{
	flow->destination_port = ctx->user_port;
	flow->protocol = ctx->protocol;
	struct bpf_sock *sk = ctx->sk;
	struct owner *owner = 0;
	if (sk)
		owner = bpf_sk_storage_get(&senders, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (owner) {
		void *task = (void *)bpf_get_current_task();
		read_image(task, &owner->image);
		owner->parent = member(__u32, member(void *, task, kernel.task_real_parent), kernel.task_tgid);
		owner->uid = bpf_get_current_uid_gid();
		bpf_get_current_comm(owner->comm, sizeof(owner->comm));
	}
	if (!leads_nowhere(flow))
		return 1;
	record_refusal(flow, owner);
	return 0;
}

static __always_inline int sender4(struct bpf_sock_addr *ctx)
{
	struct flow flow = { .family = AF_INET };
	flow.destination[0] = ctx->user_ip4;
	return sender(ctx, &flow);
}

static __always_inline int sender6(struct bpf_sock_addr *ctx)
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
	return sender(ctx, &flow);
}

SEC("cgroup/connect4")
int observe_connect4(struct bpf_sock_addr *ctx)
{
	return sender4(ctx);
}

SEC("cgroup/connect6")
int observe_connect6(struct bpf_sock_addr *ctx)
{
	return sender6(ctx);
}

SEC("cgroup/sendmsg4")
int observe_sendmsg4(struct bpf_sock_addr *ctx)
{
	return sender4(ctx);
}

SEC("cgroup/sendmsg6")
int observe_sendmsg6(struct bpf_sock_addr *ctx)
{
	return sender6(ctx);
}

#define TCP_SYN 0x02
#define TCP_ACK 0x10

// What a packet is.
enum {
	PACKET_OTHER, // of a connection that was opened before, or the kernel's own
	PACKET_OPENS, // a connection, or is a datagram
	PACKET_WRONG, // of a protocol that no socket of a run has
};

// read_flow reads the addresses and ports of a packet and tells what it is.
static __always_inline int read_flow(struct __sk_buff *skb, struct flow *flow)
{
	__u8 head[40];
	__u32 transport;
	if (bpf_skb_load_bytes(skb, 0, head, 20) < 0)
		return PACKET_OTHER;
	if (head[0] >> 4 == 4) {
		flow->family = AF_INET;
		flow->protocol = head[9];
		__builtin_memcpy(&flow->source[0], &head[12], 4);
		__builtin_memcpy(&flow->destination[0], &head[16], 4);
		transport = (head[0] & 0xf) * 4;
	} else {
		if (bpf_skb_load_bytes(skb, 0, head, 40) < 0)
			return PACKET_OTHER;
		flow->family = AF_INET6;
		flow->protocol = head[6]; // or the number of an extension header
		__builtin_memcpy(flow->source, &head[8], 16);
		__builtin_memcpy(flow->destination, &head[24], 16);
		transport = 40;
	}
	__u8 ports[14];
	if (flow->protocol == IPPROTO_TCP) {
		if (bpf_skb_load_bytes(skb, transport, ports, 14) < 0)
			return PACKET_OTHER;
		if ((ports[13] & (TCP_SYN | TCP_ACK)) != TCP_SYN)
			return PACKET_OTHER;
	} else if (flow->protocol == IPPROTO_UDP) {
		if (bpf_skb_load_bytes(skb, transport, ports, 4) < 0)
			return PACKET_OTHER;
	} else if (flow->protocol == IPPROTO_ICMP || flow->protocol == IPPROTO_ICMPV6) {
		return PACKET_OTHER;
	} else {
		return PACKET_WRONG;
	}
	__builtin_memcpy(&flow->source_port, &ports[0], 2);
	__builtin_memcpy(&flow->destination_port, &ports[2], 2);
	return PACKET_OPENS;
}

// Whether the host is at the other end, who wants to know the owner.
static __always_inline int is_hosts(const struct flow *flow)
{
	if (flow->family == AF_INET6)
		return !is_own6(flow->destination[0], flow->destination[1], flow->destination[2], flow->destination[3]);
	if (flow->protocol == IPPROTO_TCP && flow->destination_port == credential_port &&
	    flow->destination[0] == bpf_htonl(0x7f000001))
		return 1;
	return !is_own4(flow->destination[0]);
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
	struct flow flow = {};
	int packet = read_flow(skb, &flow);
	if (packet == PACKET_OTHER || !is_hosts(&flow))
		return 1;
	struct owner *owner = bpf_sk_storage_get(&senders, sk, 0, 0);
	if (owner)
		keep_path(owner);
	// With an IPv6 extension header a packet is dropped on its way, by whom no
	// record comes; many datagrams in one the redirect would count once.
	if (packet == PACKET_WRONG || (flow.protocol == IPPROTO_UDP && skb->gso_segs > 1)) {
		record_refusal(&flow, owner);
		return 0;
	}
	if (owner && flow.protocol == IPPROTO_TCP)
		bpf_map_update_elem(&connections, &flow, owner, BPF_ANY);
	else if (owner)
		bpf_map_update_elem(&datagrams, &flow, owner, BPF_ANY);
	// Here, since the redirect is also asked where an ICMP error belongs.
	if (flow.protocol == IPPROTO_UDP && flow.destination_port == bpf_htons(53))
		count(COUNT_DNS);
	return 1;
}

// The kernel calls this at the client's end of a connection when it is
// established, once.
SEC("sockops")
int observe_connections(struct bpf_sock_ops *ctx)
{
	if (ctx->op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB)
		return 1;
	int own;
	__u32 a = ctx->remote_ip6[0], b = ctx->remote_ip6[1], c = ctx->remote_ip6[2], d = ctx->remote_ip6[3];
	if (ctx->family == AF_INET)
		own = is_own4(ctx->remote_ip4);
	else if (a == 0 && b == 0 && c == bpf_htonl(0xffff)) // IPv4 on a socket for both
		own = is_own4(d);
	else
		own = is_own6(a, b, c, d);
	if (!own)
		count(COUNT_TCP);
	return 1;
}

char _license[] SEC("license") = "Dual BSD/GPL";
