package runtime

// allowedCalls are the system calls that programs of a Linux userland make, under
// the names that they have on any of the architectures. Some need a capability
// that a run does not have; the kernel says so.
var allowedCalls = []string{
	// Files and folders.
	"access", "chdir", "chmod", "chown", "chown32", "close", "close_range", "copy_file_range", "creat", "dup", "dup2",
	"dup3", "faccessat", "faccessat2", "fadvise64", "fadvise64_64", "arm_fadvise64_64", "fallocate", "fchdir", "fchmod",
	"fchmodat", "fchmodat2", "fchown", "fchown32", "fchownat", "fcntl", "fcntl64", "fdatasync", "fgetxattr", "flistxattr",
	"flock", "fremovexattr", "fsetxattr", "fstat", "fstat64", "fstatat64", "fstatfs", "fstatfs64", "fsync", "ftruncate",
	"ftruncate64", "futimesat", "getcwd", "getdents", "getdents64", "getxattr", "getxattrat", "ioctl", "lchown", "lchown32",
	"lgetxattr", "link", "linkat", "listxattr", "listxattrat", "llistxattr", "lremovexattr", "lseek", "_llseek", "lsetxattr",
	"lstat", "lstat64", "mkdir", "mkdirat", "mknod", "mknodat", "newfstatat", "open", "openat", "openat2", "pread64",
	"preadv", "preadv2", "pwrite64", "pwritev", "pwritev2", "read", "readahead", "readlink", "readlinkat", "readv",
	"removexattr", "removexattrat", "rename", "renameat", "renameat2", "rmdir", "sendfile", "sendfile64", "setxattr",
	"setxattrat", "splice", "stat", "stat64", "statfs", "statfs64", "statx", "symlink", "symlinkat", "sync",
	"sync_file_range", "sync_file_range2", "arm_sync_file_range", "syncfs", "tee", "truncate", "truncate64", "umask",
	"unlink", "unlinkat", "utime", "utimensat", "utimensat_time64", "utimes", "vmsplice", "write", "writev", "chroot",
	"name_to_handle_at", "cachestat", "file_getattr", "file_setattr",
	"inotify_add_watch", "inotify_init", "inotify_init1", "inotify_rm_watch",
	"io_cancel", "io_destroy", "io_getevents", "io_pgetevents", "io_pgetevents_time64", "io_setup", "io_submit",

	// Memory. None of it is another process's but where ptrace would be allowed.
	"brk", "get_mempolicy", "madvise", "map_shadow_stack", "mbind", "memfd_create", "memfd_secret", "mincore", "mlock",
	"mlock2", "mlockall", "mmap", "mmap2", "mprotect", "mremap", "mseal", "msync", "munlock", "munlockall", "munmap",
	"pkey_alloc", "pkey_free", "pkey_mprotect", "process_madvise", "process_mrelease", "remap_file_pages",
	"set_mempolicy", "set_mempolicy_home_node",

	// Processes and threads. clone and unshare are judged by their flags.
	"arch_prctl", "capget", "capset", "execve", "execveat", "exit", "exit_group", "fork", "futex", "futex_requeue",
	"futex_time64", "futex_wait", "futex_waitv", "futex_wake", "get_robust_list", "get_thread_area", "getcpu", "getegid",
	"getegid32", "geteuid", "geteuid32", "getgid", "getgid32", "getgroups", "getgroups32", "getitimer", "getpgid", "getpgrp",
	"getpid", "getppid", "getpriority", "getresgid", "getresgid32", "getresuid", "getresuid32", "getrlimit", "getrusage",
	"getsid", "gettid", "getuid", "getuid32", "ioprio_get", "ioprio_set", "kill", "membarrier", "nice", "pause",
	"pidfd_open", "pidfd_send_signal", "prctl", "prlimit64", "rseq", "sched_get_priority_max", "sched_get_priority_min",
	"sched_getaffinity", "sched_getattr", "sched_getparam", "sched_getscheduler", "sched_rr_get_interval",
	"sched_rr_get_interval_time64", "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler",
	"sched_yield", "set_robust_list", "set_thread_area", "set_tid_address", "set_tls", "setfsgid", "setfsgid32", "setfsuid",
	"setfsuid32", "setgid", "setgid32", "setgroups", "setgroups32", "setitimer", "setpgid", "setpriority", "setregid",
	"setregid32", "setresgid", "setresgid32", "setresuid", "setresuid32", "setreuid", "setreuid32", "setrlimit", "setsid",
	"setuid", "setuid32", "tgkill", "tkill", "ugetrlimit", "vfork", "wait4", "waitid", "waitpid",
	"landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self", "seccomp",
	"lsm_get_self_attr", "lsm_list_modules", "lsm_set_self_attr",

	// Debuggers and tracers. A process can be traced only by who has a number for
	// it, and the PID namespace has none for those of the host; its own first
	// process is not dumpable, which it takes CAP_SYS_PTRACE to pass over. Since
	// Linux 4.8 a tracer cannot exchange a call after the filter has seen it.
	"kcmp", "pidfd_getfd", "process_vm_readv", "process_vm_writev", "ptrace",

	// Signals, time, waiting.
	"alarm", "clock_getres", "clock_getres_time64", "clock_gettime", "clock_gettime64", "clock_nanosleep",
	"clock_nanosleep_time64", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_pwait", "epoll_pwait2",
	"epoll_wait", "epoll_wait_old", "eventfd", "eventfd2", "gettimeofday", "nanosleep", "_newselect", "poll", "ppoll",
	"ppoll_time64", "pselect6", "pselect6_time64", "restart_syscall", "rt_sigaction", "rt_sigpending", "rt_sigprocmask",
	"rt_sigqueueinfo", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "rt_sigtimedwait_time64", "rt_tgsigqueueinfo",
	"select", "sigaction", "sigaltstack", "signal", "signalfd", "signalfd4", "sigpending", "sigprocmask", "sigreturn",
	"sigsuspend", "time", "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime", "timer_gettime64",
	"timer_settime", "timer_settime64", "timerfd_create", "timerfd_gettime", "timerfd_gettime64", "timerfd_settime",
	"timerfd_settime64", "times",

	// Between processes. socket and socketpair are judged by their arguments.
	"accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen", "recv", "recvfrom",
	"recvmmsg", "recvmmsg_time64", "recvmsg", "send", "sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown",
	"ipc", "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedreceive_time64", "mq_timedsend",
	"mq_timedsend_time64", "mq_unlink", "msgctl", "msgget", "msgrcv", "msgsnd", "pipe", "pipe2", "semctl", "semget", "semop",
	"semtimedop", "semtimedop_time64", "shmat", "shmctl", "shmdt", "shmget",

	// What the system is.
	"getrandom", "sysinfo", "uname",

	// ARM's own.
	"breakpoint", "cacheflush",
}

// refusedCalls say of calls that are not allowed why they are not, and how many
// arguments they have. Any other is of no use to a run.
var refusedCalls = []struct {
	why   string
	calls map[string]int
}{
	{"a run's namespaces are given to it", map[string]int{"setns": 2, "clone": 1, "unshare": 1, "listns": 4}},
	{"a run's mounts are given to it", map[string]int{
		"mount": 5, "umount": 1, "umount2": 2, "pivot_root": 2, "fsopen": 2, "fsconfig": 5, "fsmount": 3, "fspick": 3,
		"open_tree": 3, "open_tree_attr": 5, "move_mount": 5, "mount_setattr": 5, "statmount": 4, "listmount": 4,
	}},
	{"a ring takes calls past the filter", map[string]int{"io_uring_setup": 2, "io_uring_enter": 6, "io_uring_register": 4}},
	{"it reaches into the kernel", map[string]int{
		"bpf": 3, "perf_event_open": 5, "userfaultfd": 1, "init_module": 3, "finit_module": 3, "delete_module": 2,
		"create_module": 2, "kexec_load": 4, "kexec_file_load": 5, "iopl": 1, "ioperm": 3, "vm86": 2, "vm86old": 1,
		"modify_ldt": 3, "lookup_dcookie": 3, "nfsservctl": 3, "_sysctl": 1,
	}},
	{"it makes a process easier to attack", map[string]int{"personality": 1}},
	{"keys belong to no container", map[string]int{"add_key": 5, "request_key": 4, "keyctl": 5}},
	{"it opens files around every mount", map[string]int{"open_by_handle_at": 3}},
	{"it would see what others do with files", map[string]int{"fanotify_init": 2}},
	{"the kernel's messages are the host's", map[string]int{"syslog": 3}},
	{"it would change the host", map[string]int{
		"swapon": 2, "swapoff": 1, "reboot": 4, "settimeofday": 2, "stime": 1, "clock_settime": 2, "clock_settime64": 2,
		"adjtimex": 1, "clock_adjtime": 2, "clock_adjtime64": 2, "quotactl": 4, "quotactl_fd": 4, "acct": 1,
		"sethostname": 2, "setdomainname": 2, "vhangup": 0,
	}},
	// On i386 one call stands for all of the socket calls. There, too, each has had
	// its own since Linux 4.3.
	{"a filter cannot see its arguments", map[string]int{"socketcall": 2}},
}
