//go:build ignore

// The credential helper of a run, which AWS SDKs start as their credential_process:
//
//	helper credential GRANT
//
// It asks the run's credential server and prints the answer: JSON on stdout and
// nothing else, or one line of reason on stderr.
//
// It is started at every refresh of every SDK, and a start costs what the new process
// touches: with Go's runtime it took 200 page faults, with a C library it would take
// 50, as it is it takes 4. So it has no library and asks the kernel itself. It keeps
// all that it writes in one struct of fixed size, and knows every text by its length.
// Who starts it chooses its arguments, its variables and the file of the token; what
// listens on the port chooses the answer. All of them may be hostile.

#include "kernel.h"

enum {
	TIMEOUT = 4, // seconds in all: the AWS SDKs have no limit of their own
	MAX_GRANT = 256,
	MAX_TOKEN = 256,
	MAX_REQUEST = MAX_GRANT + MAX_TOKEN + 128, // all else of it has 92 at most
	MAX_MESSAGE = 768,
	MAX_ANSWER = 64 << 10,
};

// Of the kernel's interface, what is the same on both architectures.
enum {
	AF_INET = 2,
	SOCK_STREAM = 1,
	SOCK_CLOEXEC = 02000000,
	ITIMER_REAL = 0,
	SIG_UNBLOCK = 1,
	SA_RESTORER = 0x04000000,
};

#if defined(__x86_64__)
enum {
	SYS_SETITIMER = 38,
	SYS_SOCKET = 41,
	SYS_CONNECT = 42,
	SYS_OPENAT = 257,
};
#else
enum {
	SYS_OPENAT = 56,
	SYS_SETITIMER = 103,
	SYS_SOCKET = 198,
	SYS_CONNECT = 203,
};
#endif

// All that is written to: what a usual exchange touches is one page.
static struct {
	size message_length;
	size request_length;
	char message[MAX_MESSAGE];
	char token[MAX_TOKEN + 1]; // one more than there may be
	char request[MAX_REQUEST];
	char answer[MAX_ANSWER + 1]; // likewise
} memory __attribute__((aligned(4096)));

// say adds to the message what any terminal shows in one line, as far as there is room.
static void say(struct text t)
{
	for (size i = 0; i < t.length; i++) {
		unsigned char c = (unsigned char)t.at[i];
		if (c >= 0x20 && c < 0x7f && memory.message_length < MAX_MESSAGE - 1) // and the line's end
			memory.message[memory.message_length++] = t.at[i];
	}
}

// say_quoted adds a text in quotes, and shows what say would leave out.
static void say_quoted(struct text t)
{
	say(TEXT("\""));
	for (size i = 0; i < t.length; i++) {
		unsigned char c = (unsigned char)t.at[i];
		if (c < 0x20 || c >= 0x7f) {
			say(TEXT("\\x"));
			say((struct text){&"0123456789abcdef"[c >> 4], 1});
			say((struct text){&"0123456789abcdef"[c & 15], 1});
			continue;
		}
		if (c == '"' || c == '\\')
			say(TEXT("\\"));
		say((struct text){t.at + i, 1});
	}
	say(TEXT("\""));
}

static void say_number(unsigned long number)
{
	char digits[20]; // of 64 bits
	size first = sizeof(digits);
	do {
		digits[--first] = (char)('0' + number % 10);
		number /= 10;
	} while (number > 0);
	say((struct text){digits + first, sizeof(digits) - first});
}

// say_error adds the words of an error.
static void say_error(long error)
{
	struct text words = words_of(error);
	if (words.length > 0)
		return say(words);
	say(TEXT("errno "));
	say_number((unsigned long)error);
}

// fail writes the message and what it lacks, as one line.
_Noreturn static void fail(struct text reason)
{
	say(reason);
	memory.message[memory.message_length++] = '\n';
	write_all(2, (struct text){memory.message, memory.message_length}); // there is nobody else to tell
	leave(1);
}

_Noreturn static void fail_for(struct text what, long error)
{
	say(what);
	say(TEXT(": "));
	say_error(error);
	fail(TEXT(""));
}

static int equal(struct text a, struct text b)
{
	if (a.length != b.length)
		return 0;
	for (size i = 0; i < a.length; i++)
		if (a.at[i] != b.at[i])
			return 0;
	return 1;
}

static char lower(char c)
{
	return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

// named is equal for the names of headers, whose case does not matter.
static int named(struct text given, struct text name)
{
	if (given.length != name.length)
		return 0;
	for (size i = 0; i < given.length; i++)
		if (lower(given.at[i]) != name.at[i])
			return 0;
	return 1;
}

// cut takes from *rest what is before a separator, and the separator. Without one
// it takes all, and returns 0.
static int cut(struct text *rest, struct text separator, struct text *before)
{
	for (size i = 0; i + separator.length <= rest->length; i++) {
		if (!equal((struct text){rest->at + i, separator.length}, separator))
			continue;
		*before = (struct text){rest->at, i};
		rest->at += i + separator.length;
		rest->length -= i + separator.length;
		return 1;
	}
	*before = *rest;
	*rest = TEXT("");
	return 0;
}

// take_prefix takes a prefix from *rest, or returns 0.
static int take_prefix(struct text *rest, struct text prefix)
{
	if (rest->length < prefix.length || !equal((struct text){rest->at, prefix.length}, prefix))
		return 0;
	rest->at += prefix.length;
	rest->length -= prefix.length;
	return 1;
}

static int is_space(char c)
{
	return c == ' ' || (c >= '\t' && c <= '\r');
}

static struct text trim(struct text t)
{
	while (t.length > 0 && is_space(t.at[0])) {
		t.at++;
		t.length--;
	}
	while (t.length > 0 && is_space(t.at[t.length - 1]))
		t.length--;
	return t;
}

// number is that of one to nine digits, else -1.
static long number(struct text t)
{
	long value = 0;
	if (t.length < 1 || t.length > 9)
		return -1;
	for (size i = 0; i < t.length; i++) {
		if (t.at[i] < '0' || t.at[i] > '9')
			return -1;
		value = value * 10 + (t.at[i] - '0');
	}
	return value;
}

// variable finds one of the environment by its name and the sign behind it. The first
// counts.
static const char *variable(char **environment, struct text name)
{
	for (; *environment != 0; environment++) {
		struct text rest = text_of(*environment);
		if (take_prefix(&rest, name))
			return rest.at;
	}
	return "";
}

// too_late may come between any two instructions: it looks at nothing that they change.
// It does not return, and is the only handler, so that no call here is interrupted.
static void too_late(int signal)
{
	(void)signal;
	write_all(2, TEXT("agentops: the credential server has not answered in 4s\n"));
	leave(1);
}

// limit_time ends the program after TIMEOUT, whatever it waits for then. Who has started
// it may have blocked or ignored the signal.
static void limit_time(void)
{
	struct {
		void (*handler)(int);
		unsigned long flags;
		void (*restorer)(int); // amd64 has no signals without; no handler of ours returns
		unsigned long mask;
	} action = {too_late, SA_RESTORER, too_late, 0};
	unsigned long signals = 1UL << (SIGALRM - 1);
	long timer[4] = {0, 0, TIMEOUT, 0}; // the interval's and the first's seconds and microseconds
	kernel(SYS_RT_SIGACTION, SIGALRM, (long)&action, 0, sizeof(signals), 0, 0);
	kernel(SYS_RT_SIGPROCMASK, SIG_UNBLOCK, (long)&signals, 0, sizeof(signals), 0, 0);
	kernel(SYS_SETITIMER, ITIMER_REAL, (long)timer, 0, 0, 0, 0);
}

// read_up_to reads to the end, or until there is no room, and returns the length, or an
// error's number, negated.
static long read_up_to(int fd, char *bytes, size room)
{
	size length = 0;
	while (length < room) {
		long n = kernel(SYS_READ, fd, (long)(bytes + length), (long)(room - length), 0, 0, 0);
		if (n < 0)
			return n;
		if (n == 0)
			break;
		length += (size)n;
	}
	return (long)length;
}

// read_token returns what is in a file, less the space around it.
static struct text read_token(const char *path)
{
	long fd = kernel(SYS_OPENAT, AT_FDCWD, (long)path, O_CLOEXEC, 0, 0, 0);
	long length = fd < 0 ? fd : read_up_to((int)fd, memory.token, sizeof(memory.token));
	if (length < 0) {
		say(TEXT("read AGENTOPS_CREDENTIAL_TOKEN_FILE: "));
		say(fd < 0 ? TEXT("open ") : TEXT("read "));
		fail_for(text_of(path), -length);
	}
	if (length > MAX_TOKEN)
		fail(TEXT("read AGENTOPS_CREDENTIAL_TOKEN_FILE: the token is too long"));
	return trim((struct text){memory.token, (size)length});
}

// port_of takes http://127.0.0.1:PORT and nothing else: the token goes nowhere but to
// the run's own loopback.
static struct text port_of(struct text url)
{
	struct text digits = url;
	if (take_prefix(&digits, TEXT("http://127.0.0.1:")) && number(digits) >= 1 && number(digits) <= 65535)
		return digits;
	say(TEXT("AGENTOPS_CREDENTIAL_URL is "));
	say_quoted(url);
	fail(TEXT(", not http://127.0.0.1:PORT: is this a run with a grant?"));
}

// ask adds to the request, which has room for all that there may be.
static void ask(struct text t)
{
	for (size i = 0; i < t.length; i++)
		memory.request[memory.request_length++] = t.at[i];
}

// exchange sends the request to a port on loopback and returns the answer, which ends
// with the connection.
static struct text exchange(struct text port)
{
	unsigned char address[16] = {AF_INET, 0, (unsigned char)(number(port) >> 8), (unsigned char)number(port), 127, 0, 0, 1};
	long fd, error, length;
	size said = memory.message_length;
	say(TEXT("ask the credential server: ")); // is in front of each reason here
	fd = kernel(SYS_SOCKET, AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0, 0, 0, 0);
	if (fd < 0)
		fail_for(TEXT("socket"), -fd);
	error = -kernel(SYS_CONNECT, fd, (long)address, sizeof(address), 0, 0, 0);
	if (error != 0) {
		say(TEXT("connect to 127.0.0.1:"));
		fail_for(port, error);
	}
	for (size sent = 0; sent < memory.request_length;) {
		long n = kernel(SYS_SENDTO, fd, (long)(memory.request + sent), (long)(memory.request_length - sent), MSG_NOSIGNAL, 0, 0);
		if (n < 0)
			fail_for(TEXT("write"), -n);
		sent += (size)n;
	}
	length = read_up_to((int)fd, memory.answer, sizeof(memory.answer));
	if (length < 0)
		fail_for(TEXT("read"), -length);
	if (length > MAX_ANSWER)
		fail(TEXT("the answer is too long"));
	memory.message_length = said;
	return (struct text){memory.answer, (size)length};
}

// body_of returns the body of a 200 of the length that it says, or fails for the reason
// that another status has in Agentops-Error.
static struct text body_of(struct text body)
{
	struct text head, status, version, code, rest, reason = TEXT("");
	long length = -1;
	int whole = cut(&body, TEXT("\r\n\r\n"), &head);
	cut(&head, TEXT("\r\n"), &status);
	cut(&status, TEXT(" "), &version);
	if (!whole || !take_prefix(&version, TEXT("HTTP/1.")))
		fail(TEXT("the answer of the credential server is no HTTP"));
	while (head.length > 0) {
		struct text name, value;
		cut(&head, TEXT("\r\n"), &value);
		cut(&value, TEXT(":"), &name);
		value = trim(value);
		if (named(name, TEXT("content-length"))) {
			length = number(value);
			if (length < 0)
				fail(TEXT("the answer of the credential server has no valid length"));
		} else if (named(name, TEXT("agentops-error"))) {
			reason = value;
		}
	}
	rest = status;
	cut(&rest, TEXT(" "), &code);
	if (!equal(code, TEXT("200"))) {
		if (reason.length > 0)
			fail(reason);
		say(TEXT("the credential server answered "));
		fail(status);
	}
	if (length < 0 || (size)length != body.length)
		fail(TEXT("the answer of the credential server is cut off"));
	return body;
}

_Noreturn static void credential(struct text grant, char **environment)
{
	struct text port, token, body;
	long error;
	say(TEXT("agentops: credentials of grant "));
	say(grant);
	say(TEXT(": "));
	port = port_of(text_of(variable(environment, TEXT("AGENTOPS_CREDENTIAL_URL="))));
	token = read_token(variable(environment, TEXT("AGENTOPS_CREDENTIAL_TOKEN_FILE=")));
	ask(TEXT("GET /v1/process/"));
	ask(grant);
	ask(TEXT(" HTTP/1.1\r\nHost: 127.0.0.1:"));
	ask(port);
	ask(TEXT("\r\nAuthorization: "));
	ask(token);
	ask(TEXT("\r\nConnection: close\r\n\r\n"));
	body = body_of(exchange(port));
	error = write_all(1, body);
	if (error != 0)
		fail_for(TEXT("write /dev/stdout"), error);
	leave(0);
}

// is_grant refuses what would be more than one part of a path of one line.
static int is_grant(struct text name)
{
	if (name.length > MAX_GRANT)
		return 0;
	for (size i = 0; i < name.length; i++)
		if (name.at[i] == '/' || name.at[i] == ' ' || name.at[i] == '\r' || name.at[i] == '\n')
			return 0;
	return 1;
}

_Noreturn void begin(int count, char **arguments, char **environment)
{
	limit_time();
	if (count != 3 || !equal(text_of(arguments[1]), TEXT("credential")) || !is_grant(text_of(arguments[2])))
		fail(TEXT("usage: helper credential GRANT"));
	credential(text_of(arguments[2]), environment);
}
