package runtime

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// verdict is what becomes of a call that the filter does not decide.
type verdict struct {
	call  string
	why   string
	errno unix.Errno
}

// judge says how a call is refused.
func judge(name string, n *notification) verdict {
	args := n.data.args
	v := verdict{errno: unix.EPERM}
	switch name {
	case "socket", "socketpair":
		family, kind, protocol := int(int32(args[0])), int(int32(args[1])), int(int32(args[2]))
		v.call = fmt.Sprintf("%s(%s, %s, %s)", name, familyName(family), kindName(kind), protocolName(family, protocol))
		v.why = "a run has unix sockets, TCP, UDP and NETLINK_ROUTE"
		v.errno = socketErrno(name, family, kind&socketKind, protocol)
		return v
	case "clone", "unshare":
		v.call = fmt.Sprintf("%s(%s)", name, flagNames(args[0]))
	case "setns":
		v.call = fmt.Sprintf("setns(%d, %s)", int32(args[0]), flagNames(args[1]))
	case "socketcall":
		v.errno = unix.ENOSYS
	}
	count := len(args)
	v.why = "no run needs it"
	for _, group := range refusedCalls {
		if c, ok := group.calls[name]; ok {
			count, v.why = c, group.why
		}
	}
	if v.call == "" {
		words := make([]string, count)
		for i := range words {
			words[i] = fmt.Sprintf("%#x", args[i])
		}
		v.call = name + "(" + strings.Join(words, ", ") + ")"
	}
	return v
}

// socketErrno is what a kernel without it would answer.
func socketErrno(call string, family, kind, protocol int) unix.Errno {
	switch {
	case call == "socketpair" && (family == unix.AF_INET || family == unix.AF_INET6):
		return unix.EOPNOTSUPP
	case family == unix.AF_NETLINK:
		return unix.EPROTONOSUPPORT
	case family != unix.AF_INET && family != unix.AF_INET6:
		return unix.EAFNOSUPPORT
	case kind == unix.SOCK_RAW, kind == unix.SOCK_PACKET:
		return unix.EPERM
	case kind != unix.SOCK_STREAM && kind != unix.SOCK_DGRAM:
		return unix.ESOCKTNOSUPPORT
	case kind == unix.SOCK_DGRAM && family == unix.AF_INET && protocol == unix.IPPROTO_ICMP,
		kind == unix.SOCK_DGRAM && family == unix.AF_INET6 && protocol == unix.IPPROTO_ICMPV6:
		return unix.EACCES // as to who is not in net.ipv4.ping_group_range
	}
	return unix.EPROTONOSUPPORT
}

// families are the names of address families by number.
var families = []string{
	"UNSPEC", "UNIX", "INET", "AX25", "IPX", "APPLETALK", "NETROM", "BRIDGE", "ATMPVC", "X25", "INET6", "ROSE", "DECnet",
	"NETBEUI", "SECURITY", "KEY", "NETLINK", "PACKET", "ASH", "ECONET", "ATMSVC", "RDS", "SNA", "IRDA", "PPPOX", "WANPIPE",
	"LLC", "IB", "MPLS", "CAN", "TIPC", "BLUETOOTH", "IUCV", "RXRPC", "ISDN", "PHONET", "IEEE802154", "CAIF", "ALG", "NFC",
	"VSOCK", "KCM", "QIPCRTR", "SMC", "XDP", "MCTP",
}

func familyName(family int) string {
	if family < 0 || family >= len(families) {
		return fmt.Sprint(family)
	}
	return "AF_" + families[family]
}

func kindName(kind int) string {
	names := map[int]string{
		unix.SOCK_STREAM: "SOCK_STREAM", unix.SOCK_DGRAM: "SOCK_DGRAM", unix.SOCK_RAW: "SOCK_RAW", unix.SOCK_RDM: "SOCK_RDM",
		unix.SOCK_SEQPACKET: "SOCK_SEQPACKET", unix.SOCK_DCCP: "SOCK_DCCP", unix.SOCK_PACKET: "SOCK_PACKET",
	}
	name, ok := names[kind&socketKind]
	if !ok {
		name = fmt.Sprint(kind & socketKind)
	}
	for _, flag := range []struct {
		bit  int
		name string
	}{{unix.SOCK_NONBLOCK, "SOCK_NONBLOCK"}, {unix.SOCK_CLOEXEC, "SOCK_CLOEXEC"}} {
		if kind&flag.bit != 0 {
			name, kind = name+"|"+flag.name, kind&^flag.bit
		}
	}
	if rest := kind &^ socketKind; rest != 0 {
		name += fmt.Sprintf("|%#x", uint32(rest))
	}
	return name
}

func protocolName(family, protocol int) string {
	names := map[int]string{
		unix.IPPROTO_ICMP: "IPPROTO_ICMP", unix.IPPROTO_TCP: "IPPROTO_TCP", unix.IPPROTO_UDP: "IPPROTO_UDP",
		unix.IPPROTO_DCCP: "IPPROTO_DCCP", unix.IPPROTO_IPV6: "IPPROTO_IPV6", unix.IPPROTO_GRE: "IPPROTO_GRE",
		unix.IPPROTO_ESP: "IPPROTO_ESP", unix.IPPROTO_ICMPV6: "IPPROTO_ICMPV6", unix.IPPROTO_IPIP: "IPPROTO_IPIP",
		unix.IPPROTO_L2TP: "IPPROTO_L2TP", unix.IPPROTO_SCTP: "IPPROTO_SCTP", unix.IPPROTO_UDPLITE: "IPPROTO_UDPLITE",
		unix.IPPROTO_RAW: "IPPROTO_RAW", unix.IPPROTO_SMC: "IPPROTO_SMC", unix.IPPROTO_MPTCP: "IPPROTO_MPTCP",
	}
	switch family {
	case unix.AF_NETLINK:
		names = map[int]string{
			unix.NETLINK_SOCK_DIAG: "NETLINK_SOCK_DIAG", unix.NETLINK_XFRM: "NETLINK_XFRM", unix.NETLINK_AUDIT: "NETLINK_AUDIT",
			unix.NETLINK_CONNECTOR: "NETLINK_CONNECTOR", unix.NETLINK_NETFILTER: "NETLINK_NETFILTER",
			unix.NETLINK_KOBJECT_UEVENT: "NETLINK_KOBJECT_UEVENT", unix.NETLINK_GENERIC: "NETLINK_GENERIC",
			unix.NETLINK_CRYPTO: "NETLINK_CRYPTO", unix.NETLINK_RDMA: "NETLINK_RDMA",
		}
	case unix.AF_INET, unix.AF_INET6:
	default:
		names = nil
	}
	if name, ok := names[protocol]; ok {
		return name
	}
	return fmt.Sprint(protocol)
}

// flagNames writes the flags of clone and its kin, namespaces by name.
func flagNames(flags uint64) string {
	var words []string
	for _, flag := range []struct {
		bit  uint64
		name string
	}{
		{unix.CLONE_NEWNS, "CLONE_NEWNS"}, {unix.CLONE_NEWCGROUP, "CLONE_NEWCGROUP"}, {unix.CLONE_NEWUTS, "CLONE_NEWUTS"},
		{unix.CLONE_NEWIPC, "CLONE_NEWIPC"}, {unix.CLONE_NEWUSER, "CLONE_NEWUSER"}, {unix.CLONE_NEWPID, "CLONE_NEWPID"},
		{unix.CLONE_NEWNET, "CLONE_NEWNET"}, {unix.CLONE_NEWTIME, "CLONE_NEWTIME"},
	} {
		if flags&flag.bit != 0 {
			words, flags = append(words, flag.name), flags&^flag.bit
		}
	}
	if flags != 0 || words == nil {
		words = append(words, fmt.Sprintf("%#x", flags))
	}
	return strings.Join(words, "|")
}
