// What the programs of a run that have no library share: they ask the kernel itself, and
// know every text by its length. Each defines begin, which does not return.

typedef unsigned long size;

// Of the kernel's interface, what is the same on both architectures.
enum {
	EAGAIN = 11,
	AT_FDCWD = -100,
	O_CLOEXEC = 02000000,
	POLLOUT = 4,
	MSG_NOSIGNAL = 0x4000,
	SIGALRM = 14,
};

#if defined(__x86_64__)
enum {
	SYS_READ = 0,
	SYS_WRITE = 1,
	SYS_RT_SIGACTION = 13,
	SYS_RT_SIGPROCMASK = 14,
	SYS_SENDTO = 44,
	SYS_EXIT_GROUP = 231,
	SYS_PPOLL = 271,
};

// kernel makes a system call: what it returns below 0 is an error's number, negated.
static long kernel(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long result;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}
#elif defined(__aarch64__)
enum {
	SYS_READ = 63,
	SYS_WRITE = 64,
	SYS_PPOLL = 73,
	SYS_EXIT_GROUP = 94,
	SYS_RT_SIGACTION = 134,
	SYS_RT_SIGPROCMASK = 135,
	SYS_SENDTO = 206,
};

static long kernel(long number, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
}
#else
#error "the programs of a run know amd64 and arm64"
#endif

// text is bytes that may hold anything; no zero ends it.
struct text {
	const char *at;
	size length;
};

#define TEXT(literal) ((struct text){literal, sizeof(literal) - 1})

_Noreturn static void leave(int code)
{
	for (;;)
		kernel(SYS_EXIT_GROUP, code, 0, 0, 0, 0, 0);
}

// write_all returns 0, or an error's number. It waits for a reader also where who has
// made the descriptor would not.
static long write_all(int fd, struct text t)
{
	struct {
		int fd;
		short events, happened;
	} room = {fd, POLLOUT, 0};
	while (t.length > 0) {
		long n = kernel(SYS_WRITE, fd, (long)t.at, (long)t.length, 0, 0, 0);
		if (n == -EAGAIN) {
			kernel(SYS_PPOLL, (long)&room, 1, 0, 0, 0, 0);
			continue;
		}
		if (n < 0)
			return -n;
		t.at += n;
		t.length -= (size)n;
	}
	return 0;
}

// text_of takes a C string, of which the kernel has seen that it ends.
static struct text text_of(const char *string)
{
	size length = 0;
	while (string[length] != 0)
		length++;
	return (struct text){string, length};
}

// words_of are those of an error; none for one that is not known.
static struct text words_of(long error)
{
	switch (error) {
	case 1: return TEXT("operation not permitted");
	case 2: return TEXT("no such file or directory");
	case 5: return TEXT("input/output error");
	case 7: return TEXT("argument list too long");
	case 8: return TEXT("exec format error");
	case 9: return TEXT("bad file descriptor");
	case 11: return TEXT("resource temporarily unavailable");
	case 12: return TEXT("cannot allocate memory");
	case 13: return TEXT("permission denied");
	case 14: return TEXT("bad address");
	case 20: return TEXT("not a directory");
	case 21: return TEXT("is a directory");
	case 22: return TEXT("invalid argument");
	case 23: return TEXT("too many open files in system");
	case 24: return TEXT("too many open files");
	case 26: return TEXT("text file busy");
	case 27: return TEXT("file too large");
	case 28: return TEXT("no space left on device");
	case 32: return TEXT("broken pipe");
	case 36: return TEXT("file name too long");
	case 40: return TEXT("too many levels of symbolic links");
	case 80: return TEXT("accessing a corrupted shared library");
	case 99: return TEXT("cannot assign requested address");
	case 101: return TEXT("network is unreachable");
	case 104: return TEXT("connection reset by peer");
	case 105: return TEXT("no buffer space available");
	case 110: return TEXT("connection timed out");
	case 111: return TEXT("connection refused");
	case 113: return TEXT("no route to host");
	}
	return TEXT("");
}

_Noreturn void begin(int count, char **arguments, char **environment);

#ifdef HOSTED
// Of the tests, to be built with sanitizers.
int main(int count, char **arguments, char **environment)
{
	begin(count, arguments, environment);
}
#else
// start is given the stack as the kernel leaves it: the number of arguments, those,
// a zero, the variables, a zero.
__attribute__((used)) _Noreturn static void start(long *stack)
{
	char **arguments = (char **)(stack + 1);
	begin((int)stack[0], arguments, arguments + stack[0] + 1);
}

#if defined(__x86_64__)
__asm__(".globl _start\n_start: xor %ebp, %ebp\n mov %rsp, %rdi\n and $-16, %rsp\n call start\n");
#else
__asm__(".globl _start\n_start: mov x29, xzr\n mov x30, xzr\n mov x0, sp\n bl start\n");
#endif
#endif
