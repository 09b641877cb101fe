//go:build ignore

// The first process of a run, its PID 1:
//
//	init [--terminal] FD -- COMMAND [ARG...]
//
// FD is the lifeline, a stream socket to the agent that drives the run. From the agent
// comes first the filter of system calls: the number of its instructions, in 16 bits,
// and these; then one byte for each signal to pass on. To it go pairs of a word below
// and a signal. When it ends, the agent is gone and so is the run. (It is a socket and
// not a pipe because a pipe's other end can be opened by whoever can read /proc/1/fd,
// which would keep the run alive.)
//
// With --terminal the command gets init's own stdio, which is a terminal, and its
// foreground; else the three descriptors after FD. Init puts the filter on itself, and
// with that on all that it starts, runs the command, reaps what else dies, and returns
// the command's exit code, at which the kernel ends all that is left of the PID
// namespace.
//
// Nothing in the run can keep it from that. It cannot be stopped or killed from inside,
// which the kernel sees to for PID 1: it takes the signals that it passes on as data,
// and has a handler for none. It is not dumpable, so that root without CAP_SYS_PTRACE
// can neither trace it nor reach its descriptors. While the command runs it waits for
// nothing but the agent, and takes of what happens in the run only so much between two
// looks at the lifeline. A parent-death signal would be of no use: the kernel (6.18) does not deliver it to PID 1
// of a namespace, even if PID 1 asks for it itself.
//
// It has no library because it starts with every run, which may hold none, and a start
// costs what the new process touches.

#include "kernel.h"

// The words of the lifeline.
enum {
	WORD_STOPPED = 'S', // the command was stopped by a signal
	WORD_KILLED = 'K',  // the command died of a signal

	WORD_FILTERED = 'F', // the filter is on; its descriptor is with the word, which is the first
};

enum {
	EXIT_OURS = 125, // a failure of init itself

	// Those of a shell for a command that it could not start.
	EXIT_NOT_EXECUTABLE = 126,
	EXIT_NOT_FOUND = 127,

	EXIT_SIGNAL = 128, // and its number
};

enum {
	MAX_FILTER = 4096, // instructions that the kernel takes
	MAX_PATH = 4096,   // of the kernel
	MAX_TURN = 64,     // processes that are reaped, and signals, between two looks at the lifeline
};

// Of the kernel's interface, what is the same on both architectures.
enum {
	ENOENT = 2,
	EINTR = 4,
	ENOEXEC = 8,
	ENOTDIR = 20,
	EISDIR = 21,
	EINVAL = 22,
	EPIPE = 32,
	ENAMETOOLONG = 36,
	X_OK = 1,
	S_IFMT = 0170000,
	S_IFDIR = 0040000,
	STATX_TYPE = 1,
	O_NONBLOCK = 04000,
	F_SETFD = 2,
	FD_CLOEXEC = 1,
	POLLIN = 1,
	SOL_SOCKET = 1,
	SCM_RIGHTS = 1,
	TIOCSPGRP = 0x5410,
	PR_SET_DUMPABLE = 4,
	WNOHANG = 1,
	WUNTRACED = 2,
	SIG_BLOCK = 0,
	SIG_SETMASK = 2,
	SECCOMP_SET_MODE_FILTER = 1,
	SECCOMP_SPECULATION_AS_IS = 1 << 2,
	SECCOMP_NEW_LISTENER = 1 << 3,
	SECCOMP_WAIT_KILLABLE = 1 << 5, // Linux 5.19; before that a signal makes a caller ask again
};

enum {
	SIGHUP = 1,
	SIGINT = 2,
	SIGQUIT = 3,
	SIGABRT = 6,
	SIGKILL = 9,
	SIGUSR1 = 10,
	SIGUSR2 = 12,
	SIGTERM = 15,
	SIGCHLD = 17,
	SIGCONT = 18,
	SIGTSTP = 20,
	SIGWINCH = 28,
};

#if defined(__x86_64__)
enum {
	SYS_CLOSE = 3,
	SYS_IOCTL = 16,
	SYS_GETPID = 39,
	SYS_SENDMSG = 46,
	SYS_CLONE = 56,
	SYS_EXECVE = 59,
	SYS_WAIT4 = 61,
	SYS_KILL = 62,
	SYS_FCNTL = 72,
	SYS_SETPGID = 109,
	SYS_PRCTL = 157,
	SYS_FACCESSAT = 269,
	SYS_SIGNALFD4 = 289,
	SYS_DUP3 = 292,
	SYS_PIPE2 = 293,
	SYS_SECCOMP = 317,
	SYS_STATX = 332,
};
#else
enum {
	SYS_DUP3 = 24,
	SYS_FCNTL = 25,
	SYS_IOCTL = 29,
	SYS_FACCESSAT = 48,
	SYS_CLOSE = 57,
	SYS_PIPE2 = 59,
	SYS_SIGNALFD4 = 74,
	SYS_KILL = 129,
	SYS_SETPGID = 154,
	SYS_PRCTL = 167,
	SYS_GETPID = 172,
	SYS_SENDMSG = 211,
	SYS_CLONE = 220,
	SYS_EXECVE = 221,
	SYS_WAIT4 = 260,
	SYS_SECCOMP = 277,
	SYS_STATX = 291,
};
#endif

struct instruction {
	unsigned short code;
	unsigned char yes, no;
	unsigned int k;
};

// All that is long.
static struct {
	struct instruction filter[MAX_FILTER];
	char path[MAX_PATH];
} memory __attribute__((aligned(4096)));

// errors is where messages go.
static int errors = 2;

static void say(struct text t)
{
	write_all(errors, t); // there is nobody else to tell
}

_Noreturn static void fail(int code, struct text what, struct text reason)
{
	say(TEXT("agent: error: "));
	say(what);
	say(reason);
	say(TEXT("\n"));
	leave(code);
}

// say_reason says what an error is, and ends the message.
static void say_reason(long error)
{
	struct text words = words_of(error);
	say(TEXT(": "));
	say(words.length > 0 ? words : TEXT("unknown error"));
	say(TEXT("\n"));
}

_Noreturn static void fail_preparing(struct text what, long error)
{
	say(TEXT("agent: error: prepare the run's init: "));
	say(what);
	say_reason(error);
	leave(EXIT_OURS);
}

static int equal(const char *a, struct text b)
{
	struct text t = text_of(a);
	if (t.length != b.length)
		return 0;
	for (size i = 0; i < b.length; i++)
		if (a[i] != b.at[i])
			return 0;
	return 1;
}

// descriptor_of is the number that a text says, else -1.
static int descriptor_of(struct text t)
{
	int value = 0;
	if (t.length < 1 || t.length > 6)
		return -1;
	for (size i = 0; i < t.length; i++) {
		if (t.at[i] < '0' || t.at[i] > '9')
			return -1;
		value = value * 10 + (t.at[i] - '0');
	}
	return value;
}

// guard ties init's life to the agent's and shuts the command out of init.
static void guard(int lifeline, const int *stdio)
{
	long error;
	kernel(SYS_FCNTL, lifeline, F_SETFD, FD_CLOEXEC, 0, 0, 0);
	for (int i = 0; i < 3; i++)
		if (stdio[i] > 2)
			kernel(SYS_FCNTL, stdio[i], F_SETFD, FD_CLOEXEC, 0, 0, 0);
	error = -kernel(SYS_PRCTL, PR_SET_DUMPABLE, 0, 0, 0, 0, 0);
	if (error != 0)
		fail_preparing(TEXT("set not dumpable"), error);
}

static void receive(int lifeline, void *to, size length)
{
	char *bytes = to;
	while (length > 0) {
		long n = kernel(SYS_READ, lifeline, (long)bytes, (long)length, 0, 0, 0);
		if (n == -EINTR)
			continue;
		if (n <= 0)
			fail_preparing(TEXT("receive the filter"), n == 0 ? EPIPE : -n);
		bytes += n;
		length -= (size)n;
	}
}

// install_filter takes a filter of system calls from the lifeline, puts it on init and
// with that on all that it starts, and hands the kernel's descriptor of what the filter
// refers to the agent. Who has started init has set no new privileges.
static void install_filter(int lifeline)
{
	unsigned short length;
	struct {
		unsigned short length;
		struct instruction *filter;
	} program = {0, memory.filter};
	const long flags = SECCOMP_SPECULATION_AS_IS | SECCOMP_NEW_LISTENER;
	char word[2] = {WORD_FILTERED, 0};
	struct {
		char *bytes;
		size length;
	} part = {word, sizeof(word)};
	struct {
		size length;
		int level, kind;
		int fd, padding;
	} rights = {20, SOL_SOCKET, SCM_RIGHTS, 0, 0};
	struct {
		void *name;
		unsigned int name_length;
		void *parts;
		size part_count;
		void *control;
		size control_length;
		int flags;
	} message = {0, 0, &part, 1, &rights, sizeof(rights), 0};
	long fd, n;
	receive(lifeline, &length, sizeof(length));
	if (length > MAX_FILTER)
		fail_preparing(TEXT("receive the filter"), EINVAL);
	receive(lifeline, memory.filter, length * sizeof(memory.filter[0]));
	program.length = length;
	fd = kernel(SYS_SECCOMP, SECCOMP_SET_MODE_FILTER, flags | SECCOMP_WAIT_KILLABLE, (long)&program, 0, 0, 0);
	if (fd == -EINVAL)
		fd = kernel(SYS_SECCOMP, SECCOMP_SET_MODE_FILTER, flags, (long)&program, 0, 0, 0);
	if (fd < 0)
		fail_preparing(TEXT("put the filter on"), -fd);
	rights.fd = (int)fd;
	do
		n = kernel(SYS_SENDMSG, lifeline, (long)&message, MSG_NOSIGNAL, 0, 0, 0);
	while (n == -EINTR);
	if (n < 0)
		fail_preparing(TEXT("hand the filter to the agent"), -n);
	kernel(SYS_CLOSE, fd, 0, 0, 0, 0, 0); // nothing in the run keeps a copy
}

// take_signals returns a descriptor of those signals to pass on that others than the
// agent, whose come by the lifeline, send to PID 1: those that a person or an engine
// sends; and of the end of processes. Those that the agent was started to ignore (nohup)
// the command inherits. *before is what was blocked.
static int take_signals(unsigned long *before)
{
	static const unsigned char passed[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2,
					       SIGALRM, SIGABRT, SIGCONT, SIGTSTP, SIGWINCH};
	struct {
		unsigned long handler, flags, restorer, mask;
	} action, usual = {0, 0, 0, 0};
	unsigned long signals = 1UL << (SIGCHLD - 1);
	long fd;
	kernel(SYS_RT_SIGACTION, SIGCHLD, (long)&usual, 0, sizeof(signals), 0, 0); // or none would wait for us
	for (size i = 0; i < sizeof(passed); i++) {
		action.handler = 0;
		kernel(SYS_RT_SIGACTION, passed[i], 0, (long)&action, sizeof(signals), 0, 0);
		if (action.handler == 0)
			signals |= 1UL << (passed[i] - 1);
	}
	kernel(SYS_RT_SIGPROCMASK, SIG_BLOCK, (long)&signals, (long)before, sizeof(signals), 0, 0);
	fd = kernel(SYS_SIGNALFD4, -1, (long)&signals, sizeof(signals), O_CLOEXEC | O_NONBLOCK, 0, 0);
	if (fd < 0)
		fail_preparing(TEXT("take signals"), -fd);
	return (int)fd;
}

// executable says why a file cannot be started, as far as its mode tells: an error's
// number or 0.
static long executable(const char *file)
{
	struct {
		unsigned char before[28];
		unsigned short mode;
		unsigned char after[226];
	} st;
	long error = -kernel(SYS_STATX, AT_FDCWD, (long)file, 0, STATX_TYPE, (long)&st, 0);
	if (error != 0)
		return error;
	if ((st.mode & S_IFMT) == S_IFDIR)
		return EISDIR;
	return -kernel(SYS_FACCESSAT, AT_FDCWD, (long)file, X_OK, 0, 0, 0);
}

// code_of is the exit code that says that a command did not start.
static int code_of(long error)
{
	return error == ENOENT || error == ENOTDIR ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE;
}

// fail_to_start says why a command's file does not start, as a shell would.
_Noreturn static void fail_to_start(const char *file, long error)
{
	say(TEXT("agent: error: "));
	say(text_of(file));
	say_reason(error);
	leave(code_of(error));
}

// join writes folder/name, or returns 0 if that is too long.
static int join(struct text folder, struct text name)
{
	char *to = memory.path;
	if (folder.length + 1 + name.length >= MAX_PATH)
		return 0;
	for (size i = 0; i < folder.length; i++)
		*to++ = folder.at[i];
	*to++ = '/';
	for (size i = 0; i < name.length; i++)
		*to++ = name.at[i];
	*to = 0;
	return 1;
}

static int has_slash(struct text t)
{
	for (size i = 0; i < t.length; i++)
		if (t.at[i] == '/')
			return 1;
	return 0;
}

// lookup finds a command as a shell does: a name with a slash is a path, any other is
// sought in the folders of path, where an executable file wins over one that is not.
static const char *lookup(const char *command, const char *path)
{
	struct text name = text_of(command), refuser = TEXT("");
	long refused = 0;
	int more = path != 0 && *path != 0;
	if (name.length == 0)
		fail(EXIT_NOT_FOUND, TEXT("the command is empty"), TEXT(""));
	if (has_slash(name)) {
		long error = executable(command);
		if (error != 0)
			fail_to_start(command, error);
		return command;
	}
	while (more) {
		struct text folder = {path, 0};
		long error;
		while (path[folder.length] != 0 && path[folder.length] != ':')
			folder.length++;
		path += folder.length;
		more = *path++ == ':';
		if (folder.length == 0)
			folder = TEXT("."); // as POSIX has it
		error = join(folder, name) ? executable(memory.path) : ENAMETOOLONG;
		if (error == 0)
			return memory.path;
		if (refused == 0 && code_of(error) == EXIT_NOT_EXECUTABLE) {
			refused = error;
			refuser = folder;
		}
	}
	if (refused == 0)
		fail(EXIT_NOT_FOUND, name, TEXT(": command not found"));
	say(TEXT("agent: error: "));
	say(refuser);
	say(TEXT("/"));
	say(name);
	say_reason(refused);
	leave(EXIT_NOT_EXECUTABLE);
}

static const char *variable(char **environment, struct text name)
{
	for (; *environment != 0; environment++) {
		size i = 0;
		while (i < name.length && (*environment)[i] == name.at[i])
			i++;
		if (i == name.length)
			return *environment + i;
	}
	return 0;
}

// become replaces the new process by the command, or returns an error's number.
static long become(const char *file, char **command, char **environment)
{
	long error = -kernel(SYS_EXECVE, (long)file, (long)command, (long)environment, 0, 0, 0);
	if (error == ENOEXEC) {
		// A script without #! is the shell's, as execvp has it. What is before the
		// command, its "--" and what precedes that, is init's.
		command[-1] = (char *)"sh";
		command[0] = (char *)file;
		error = -kernel(SYS_EXECVE, (long)"/bin/sh", (long)(command - 1), (long)environment, 0, 0, 0);
	}
	return error;
}

// run_child is the new process until it is the command: a process group of its own,
// which has the terminal's foreground if there is one. It returns an error's number.
static long run_child(const char *file, char **command, char **environment, const int *stdio, int terminal, const unsigned long *mask)
{
	unsigned long all = ~0UL;
	long error = -kernel(SYS_SETPGID, 0, 0, 0, 0, 0, 0);
	if (error == 0 && terminal) {
		// The signals are blocked: a process of the background that asks for the
		// terminal would be stopped.
		int group = 0;
		kernel(SYS_RT_SIGPROCMASK, SIG_BLOCK, (long)&all, 0, sizeof(all), 0, 0);
		group = (int)kernel(SYS_GETPID, 0, 0, 0, 0, 0, 0);
		error = -kernel(SYS_IOCTL, 0, TIOCSPGRP, (long)&group, 0, 0, 0);
	}
	for (int i = 0; error == 0 && !terminal && i < 3; i++) {
		long fd = kernel(SYS_DUP3, stdio[i], i, 0, 0, 0, 0);
		if (fd < 0)
			error = -fd;
	}
	if (error != 0)
		return error;
	kernel(SYS_RT_SIGPROCMASK, SIG_SETMASK, (long)mask, 0, sizeof(*mask), 0, 0);
	return become(file, command, environment);
}

// start_command returns the command's process.
static int start_command(char **command, char **environment, const int *stdio, int terminal, const unsigned long *mask)
{
	const char *file = lookup(command[0], variable(environment, TEXT("PATH=")));
	int ends[2];
	int failed = 0;
	long n, pid = kernel(SYS_PIPE2, (long)ends, O_CLOEXEC, 0, 0, 0, 0);
	if (pid == 0)
		pid = kernel(SYS_CLONE, SIGCHLD, 0, 0, 0, 0, 0);
	if (pid < 0)
		fail_to_start(file, -pid);
	if (pid == 0) {
		failed = (int)run_child(file, command, environment, stdio, terminal, mask);
		kernel(SYS_WRITE, ends[1], (long)&failed, sizeof(failed), 0, 0, 0);
		leave(EXIT_OURS);
	}
	kernel(SYS_CLOSE, ends[1], 0, 0, 0, 0, 0);
	do
		n = kernel(SYS_READ, ends[0], (long)&failed, sizeof(failed), 0, 0, 0);
	while (n == -EINTR);
	kernel(SYS_CLOSE, ends[0], 0, 0, 0, 0, 0);
	if (n == sizeof(failed))
		fail_to_start(file, failed);
	return (int)pid;
}

// pass gives the command a signal. Those that a terminal sends go to its whole process
// group, as they would from a terminal. It may have ended.
static void pass(int pid, int signal)
{
	int group = signal == SIGINT || signal == SIGQUIT || signal == SIGHUP || signal == SIGTSTP || signal == SIGCONT;
	kernel(SYS_KILL, group ? -pid : pid, signal, 0, 0, 0, 0);
}

// follow passes on what the agent sends, and ends with the agent.
static void follow(int lifeline, int pid)
{
	unsigned char signals[MAX_TURN];
	long n = kernel(SYS_READ, lifeline, (long)signals, sizeof(signals), 0, 0, 0);
	if (n == -EINTR)
		return;
	if (n <= 0)
		leave(EXIT_SIGNAL + SIGKILL);
	for (long i = 0; i < n; i++)
		pass(pid, signals[i]);
}

static void tell(int lifeline, char word, int signal)
{
	char pair[2] = {word, (char)signal};
	while (kernel(SYS_SENDTO, lifeline, (long)pair, sizeof(pair), MSG_NOSIGNAL, 0, 0) == -EINTR)
		;
}

// reap takes dead processes, adopted ones included, and ends with the command. It
// returns 0 when there are no more.
static int reap(int lifeline, int command)
{
	for (int i = 0; i < MAX_TURN; i++) {
		int status = 0;
		long pid = kernel(SYS_WAIT4, -1, (long)&status, WNOHANG | WUNTRACED, 0, 0, 0);
		if (pid == 0)
			return 0;
		if (pid == -EINTR)
			continue;
		if (pid < 0)
			leave(EXIT_OURS); // no child is left, not even the command
		if (pid != command)
			continue;
		if ((status & 0xff) == 0x7f) {
			tell(lifeline, WORD_STOPPED, status >> 8 & 0xff);
		} else if ((status & 0x7f) != 0) {
			tell(lifeline, WORD_KILLED, status & 0x7f);
			leave(EXIT_SIGNAL + (status & 0x7f));
		} else {
			leave(status >> 8 & 0xff);
		}
	}
	return 1;
}

// receive_signals passes on what others send, and says whether processes have ended.
static int receive_signals(int fd, int pid)
{
	int ended = 0;
	for (int i = 0; i < MAX_TURN; i++) {
		struct {
			unsigned int number;
			unsigned char more[124];
		} info;
		if (kernel(SYS_READ, fd, (long)&info, sizeof(info), 0, 0, 0) != sizeof(info))
			break;
		if (info.number == SIGCHLD)
			ended = 1;
		else
			pass(pid, (int)info.number);
	}
	return ended;
}

_Noreturn static void supervise(int lifeline, int signals, int pid)
{
	int ended = 0;
	for (;;) {
		struct {
			int fd;
			short events, happened;
		} sources[2] = {{lifeline, POLLIN, 0}, {signals, POLLIN, 0}};
		const long now[2] = {0, 0};
		if (kernel(SYS_PPOLL, (long)sources, 2, ended ? (long)now : 0, 0, sizeof(unsigned long), 0) < 0)
			continue; // a signal that is not for us
		if (sources[0].happened != 0)
			follow(lifeline, pid);
		if (sources[1].happened != 0 && receive_signals(signals, pid))
			ended = 1;
		if (ended)
			ended = reap(lifeline, pid);
	}
}

_Noreturn void begin(int count, char **arguments, char **environment)
{
	int stdio[3] = {0, 1, 2};
	int terminal = count > 1 && equal(arguments[1], TEXT("--terminal"));
	char **rest = arguments + 1 + terminal;
	int lifeline, signals, pid;
	unsigned long mask;
	if (count - 1 - terminal < 3 || !equal(rest[1], TEXT("--")))
		fail(EXIT_OURS, TEXT("usage: init [--terminal] FD -- COMMAND [ARG...]"), TEXT(""));
	lifeline = descriptor_of(text_of(rest[0]));
	if (lifeline < 3)
		fail(EXIT_OURS, text_of(rest[0]), TEXT(" is not a lifeline"));
	for (int i = 0; !terminal && i < 3; i++)
		stdio[i] = lifeline + 1 + i;
	errors = stdio[2];
	guard(lifeline, stdio);
	install_filter(lifeline);
	signals = take_signals(&mask);
	pid = start_command(rest + 2, environment, stdio, terminal, &mask);
	// Without a terminal the command alone holds its streams, so that their other ends
	// see it close them.
	for (int i = 0; !terminal && i < 3; i++)
		kernel(SYS_CLOSE, stdio[i], 0, 0, 0, 0, 0);
	supervise(lifeline, signals, pid);
}
