package bpf

import (
	"fmt"

	"github.com/cilium/ebpf/btf"
)

// Layout is where this kernel's structures hold what the observer reads of them,
// in bytes from their beginning: struct layout of observe.c. It stays the same
// until the next boot.
type Layout struct {
	TaskGroupLeader    uint32
	TaskRealParent     uint32
	TaskTgid           uint32
	TaskStartBoottime  uint32
	TaskSelfExecID     uint32
	TaskMm             uint32
	TaskComm           uint32
	TaskCred           uint32
	CredUID            uint32
	MmExeFile          uint32
	FileFPath          uint32
	PathMnt            uint32
	PathDentry         uint32
	MountMnt           uint32
	MountMntParent     uint32
	MountMntMountpoint uint32
	VfsmountMntRoot    uint32
	DentryDParent      uint32
	DentryDName        uint32
	QstrName           uint32
}

// ReadLayout looks the layout up in the kernel's own description of its types,
// which takes some 20 ms.
func ReadLayout() (Layout, error) {
	var l Layout
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return l, fmt.Errorf("read the kernel's BTF (it takes Linux 5.4 with CONFIG_DEBUG_INFO_BTF): %w", err)
	}
	for _, m := range []struct {
		structure, name string
		offset          *uint32
	}{
		{"task_struct", "group_leader", &l.TaskGroupLeader},
		{"task_struct", "real_parent", &l.TaskRealParent},
		{"task_struct", "tgid", &l.TaskTgid},
		{"task_struct", "start_boottime", &l.TaskStartBoottime},
		{"task_struct", "self_exec_id", &l.TaskSelfExecID},
		{"task_struct", "mm", &l.TaskMm},
		{"task_struct", "comm", &l.TaskComm},
		{"task_struct", "cred", &l.TaskCred},
		{"cred", "uid", &l.CredUID},
		{"mm_struct", "exe_file", &l.MmExeFile},
		{"file", "f_path", &l.FileFPath},
		{"path", "mnt", &l.PathMnt},
		{"path", "dentry", &l.PathDentry},
		{"mount", "mnt", &l.MountMnt},
		{"mount", "mnt_parent", &l.MountMntParent},
		{"mount", "mnt_mountpoint", &l.MountMntMountpoint},
		{"vfsmount", "mnt_root", &l.VfsmountMntRoot},
		{"dentry", "d_parent", &l.DentryDParent},
		{"dentry", "d_name", &l.DentryDName},
		{"qstr", "name", &l.QstrName},
	} {
		var structure *btf.Struct
		if err := kernel.TypeByName(m.structure, &structure); err != nil {
			return l, fmt.Errorf("find struct %s in the kernel's BTF: %w", m.structure, err)
		}
		offset, ok := offsetOf(structure.Members, m.name)
		if !ok {
			return l, fmt.Errorf("struct %s of this kernel has no %s", m.structure, m.name)
		}
		*m.offset = offset
	}
	return l, nil
}

// offsetOf finds a member, also in structures without a name, as the kernel has
// many.
func offsetOf(members []btf.Member, name string) (uint32, bool) {
	for _, m := range members {
		if m.Name == name {
			return m.Offset.Bytes(), true
		}
		if m.Name != "" {
			continue
		}
		var inner []btf.Member
		switch t := btf.UnderlyingType(m.Type).(type) {
		case *btf.Struct:
			inner = t.Members
		case *btf.Union:
			inner = t.Members
		}
		if offset, ok := offsetOf(inner, name); ok {
			return m.Offset.Bytes() + offset, true
		}
	}
	return 0, false
}
