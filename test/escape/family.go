package main

import (
	"fmt"
	"slices"

	"agentops/test/escape/attempt"

	"golang.org/x/sys/unix"
)

// lastFamily is the last that Linux has a number for, AF_MCTP.
const lastFamily = 45

// ordinary are the families that a run has.
var ordinary = []int{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK}

// familyNames are the well-known ones; the others go by number.
var familyNames = map[int]string{
	0: "unspec", 3: "ax25", 4: "ipx", 5: "appletalk", 6: "netrom", 7: "bridge", 8: "atmpvc", 9: "x25", 11: "rose",
	15: "key", 17: "packet", 18: "ash", 19: "econet", 20: "atmsvc", 21: "rds", 23: "irda", 24: "pppox", 26: "llc",
	27: "ib", 28: "mpls", 29: "can", 30: "tipc", 31: "bluetooth", 32: "iucv", 33: "rxrpc", 34: "isdn", 35: "phonet",
	36: "ieee802154", 37: "caif", 38: "alg", 39: "nfc", 40: "vsock", 41: "kcm", 42: "qipcrtr", 43: "smc", 44: "xdp", 45: "mctp",
}

// socketKinds are all that a family may have.
var socketKinds = []int{unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_SEQPACKET, unix.SOCK_RAW, unix.SOCK_RDM}

// familyProbes make sockets of every family that the kernel has a number for.
func familyProbes() []probe {
	var list []probe
	for family := 0; family <= lastFamily; family++ {
		if slices.Contains(ordinary, family) {
			continue
		}
		name := familyNames[family]
		if name == "" {
			name = fmt.Sprintf("number-%d", family)
		}
		list = append(list, probe{
			name:  fmt.Sprintf("af-%s", name),
			needs: needsFamily(family),
			try:   func(t *try) verdict { return t.anySocket(family) },
		})
	}
	// What NETLINK_ROUTE is not.
	for protocol := 1; protocol <= 22; protocol++ {
		list = append(list, probe{
			name: fmt.Sprintf("netlink-%d", protocol),
			needs: func(stage *attempt.Stage) string {
				if slices.Contains(stage.Kernel.Netlinks, protocol) {
					return ""
				}
				return "the kernel has no such netlink protocol"
			},
			try: func(t *try) verdict {
				t.start()
				_, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, protocol)
				return t.judge(err)
			},
		})
	}
	list = append(list,
		probe{name: "af-high-bits", try: func(t *try) verdict {
			// The kernel takes the low half of the number alone.
			if unsafeWord < 8 {
				return t.absent("registers have no high half")
			}
			t.start()
			_, err := call(unix.SYS_SOCKET, uintptr(uint64(1)<<32|unix.AF_PACKET), unix.SOCK_RAW, 0x0300)
			return t.judge(err)
		}},
		probe{name: "af-beyond", try: func(t *try) verdict {
			t.start()
			_, err := unix.Socket(lastFamily+1, unix.SOCK_STREAM, 0)
			return t.judge(err, unix.EINVAL)
		}},
		probe{name: "socketpair", needs: needsFamily(unix.AF_VSOCK), try: func(t *try) verdict {
			t.start()
			_, err := unix.Socketpair(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
			return t.judge(err, unix.EOPNOTSUPP)
		}},
	)
	for i := range list {
		list[i].class, list[i].plain, list[i].record = "family", true, attempt.Refusal
	}
	return list
}

func needsFamily(family int) func(*attempt.Stage) string {
	return func(stage *attempt.Stage) string {
		if slices.Contains(stage.Kernel.Families, family) {
			return ""
		}
		return fmt.Sprintf("the kernel has no address family %d", family)
	}
}

// anySocket makes a socket of a family, of whatever kind it has.
func (t *try) anySocket(family int) verdict {
	var last error
	t.start()
	for _, kind := range socketKinds {
		fd, err := unix.Socket(family, kind, 0)
		if err == nil {
			unix.Close(fd)
			return t.reached("a socket of type %d", kind)
		}
		last = err
		if v := t.judge(err, unix.EINVAL); v.outcome == attempt.Reached {
			return v
		}
		if err == unix.EAFNOSUPPORT {
			break
		}
	}
	return t.blocked(last)
}
