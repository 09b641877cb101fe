#define _GNU_SOURCE
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LARGE (2UL << 20)   // bytes of a large page
#define PART (4UL << 20)    // what Go's heap grows by
#define MOST 3              // parts: more than a start needs
#define CHUNK (256UL << 10) // what Go's runtime takes for records of its own

static struct {
	void *start;
	size_t length;
} advised[MOST];
static int parts;

// A large page for those records, of which it touches a few bytes in each of many small
// ones. It is never given out twice.
static char *records;
static size_t handed;

static void *kernel_mmap(void *start, size_t length, int prot, int flags, int fd, off_t offset)
{
	return (void *)syscall(SYS_mmap, start, length, prot, flags, fd, offset);
}

// prepare is called before Go starts.
static void __attribute__((constructor)) prepare(void)
{
	mallopt(M_ARENA_MAX, 1); // or each thread of Go's would make a heap of C's

	// A container's first process lives for less than it takes to clear them.
	if (getenv("_LIBCONTAINER_INITPIPE") != NULL) {
		parts = MOST;
		return;
	}
	char *got = kernel_mmap(NULL, 2 * LARGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (got == MAP_FAILED)
		return;
	records = (char *)(((uintptr_t)got + LARGE - 1) & ~(LARGE - 1));
	if (records > got)
		munmap(got, records - got);
	munmap(records + LARGE, got + LARGE - records);
	madvise(records, LARGE, MADV_HUGEPAGE);
}

// mmap is the kernel's, but for the records, and for an advice for what looks like a
// part of the heap. If the kernel does not take it, nothing is lost.
void *mmap(void *start, size_t length, int prot, int flags, int fd, off_t offset)
{
	int ours = prot == (PROT_READ | PROT_WRITE) && fd == -1;

	if (ours && start == NULL && length == CHUNK && records != NULL) {
		size_t at = __atomic_fetch_add(&handed, CHUNK, __ATOMIC_RELAXED);
		if (at < LARGE)
			return records + at;
	}
	void *got = kernel_mmap(start, length, prot, flags, fd, offset);

	if (got == MAP_FAILED || !ours || !(flags & MAP_FIXED) || length % PART != 0)
		return got;
	int i = __atomic_fetch_add(&parts, 1, __ATOMIC_RELAXED);
	if (i >= MOST)
		return got;
	advised[i].start = got;
	advised[i].length = length;
	madvise(got, length, MADV_HUGEPAGE);
	return got;
}

void agentops_small_pages(void)
{
	for (int i = 0; i < MOST && advised[i].length > 0; i++)
		madvise(advised[i].start, advised[i].length, MADV_NOHUGEPAGE);
	// What nobody has got, nobody gets from here on.
	size_t at = __atomic_fetch_add(&handed, LARGE, __ATOMIC_RELAXED);
	if (records != NULL && at < LARGE)
		munmap(records + at, LARGE - at);
}
