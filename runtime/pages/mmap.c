#define _GNU_SOURCE
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PART (4UL << 20) // what Go's heap grows by
#define MOST 3           // parts: more than a start needs

static struct {
	void *start;
	size_t length;
} advised[MOST];
static int count;

// mmap is the kernel's, with an advice for what looks like a part of the heap. If the
// kernel does not take it, nothing is lost.
void *mmap(void *start, size_t length, int prot, int flags, int fd, off_t offset)
{
	void *got = (void *)syscall(SYS_mmap, start, length, prot, flags, fd, offset);

	if (got == MAP_FAILED || prot != (PROT_READ | PROT_WRITE) || !(flags & MAP_FIXED) || length % PART != 0)
		return got;
	int i = __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED);
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
}
