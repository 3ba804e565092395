// SPDX-License-Identifier: GPL-2.0-or-later
/* The tracked mappings, and what happens to them besides userfaultfd's own calls. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pagemap.h"
#include "run.h"
#include "settings.h"
#include "uffd.h"

unsigned long page_size;
char *zeroes;

void memory_start(void)
{
	page_size = sysconf(_SC_PAGESIZE);
	zeroes = mmap(NULL, HUGE_PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (zeroes == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
}

/* Reserves room with gaps on both sides, so that nothing merges or neighbours. */
static char *reserve(size_t bytes, size_t align)
{
	size_t gap = align > 16 * PAGE ? align : 16 * PAGE;
	char *room = mmap(NULL, bytes + 2 * gap, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (room == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	return (char *)(((unsigned long)room + gap) & ~(align - 1));
}

static char *place(size_t pages, size_t align, int flags, int fd)
{
	size_t bytes = pages * PAGE;

	return mmap(reserve(bytes, align), bytes, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0);
}

static void advise(char *start, size_t pages, int advice)
{
	/* EINVAL: a kernel without huge pages has none to refuse. */
	if (madvise(start, pages * PAGE, advice) && !(advice == MADV_NOHUGEPAGE && errno == EINVAL))
		fail("madvise %d: %s", advice, strerror(errno));
}

struct range *map_anon(size_t pages)
{
	char *start = place(pages, PAGE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	if (start == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	advise(start, pages, MADV_NOHUGEPAGE);
	return truth_new_range(start, pages, 0, MEMORY_ANON);
}

struct range *map_anon_with_room(size_t pages, size_t room)
{
	char *start = reserve((pages + room) * PAGE, PAGE);

	start = mmap(start, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	if (start == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	advise(start, pages, MADV_NOHUGEPAGE);
	return truth_new_range(start, pages, room, MEMORY_ANON);
}

struct range *map_huge(size_t pages)
{
	char *start = place(pages, HUGE_PAGE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	if (start == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	/* PREEMPT_RT excludes them. */
	if (madvise(start, pages * PAGE, MADV_HUGEPAGE))
		unsupported("MADV_HUGEPAGE: %s", strerror(errno));
	return truth_new_range(start, pages, 0, MEMORY_ANON);
}

struct range *map_hugetlb(size_t pages)
{
	long wanted = 2 * pages / PAGES_PER_HUGE;
	char *start;

	/* Not root, or no hugetlb: mmap() then says so. */
	if (setting_get(NR_HUGEPAGES) < wanted)
		setting_set(NR_HUGEPAGES, wanted);
	start = place(pages, HUGE_PAGE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1);

	if (start == MAP_FAILED)
		unsupported("mmap with MAP_HUGETLB: %s", strerror(errno));
	return truth_new_range(start, pages, 0, MEMORY_HUGETLB);
}

struct range *map_shmem(size_t pages, char **other)
{
	int fd = memfd_create("workload", MFD_CLOEXEC);
	char *start;

	if (fd < 0 || ftruncate(fd, pages * PAGE))
		fail("memfd: %s", strerror(errno));
	start = place(pages, PAGE, MAP_SHARED, fd);
	if (start == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	advise(start, pages, MADV_NOHUGEPAGE);
	if (other) {
		*other = place(pages, PAGE, MAP_SHARED, fd);
		if (*other == MAP_FAILED)
			fail("mmap: %s", strerror(errno));
		advise(*other, pages, MADV_NOHUGEPAGE);
	}
	return truth_new_range(start, pages, 0, MEMORY_SHMEM);
}

struct range *map_file(size_t pages)
{
	int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	struct stat file;
	char *start;

	if (fd < 0 || fstat(fd, &file) || (size_t)file.st_size < pages * PAGE)
		fail("/proc/self/exe: %s", strerror(errno));
	start = place(pages, PAGE, MAP_PRIVATE, fd);
	if (start == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	close(fd);
	return truth_new_range(start, pages, 0, MEMORY_FILE);
}

void populate_every(struct range *r, size_t first, size_t pages, size_t step)
{
	for (size_t i = first; i < first + pages; i += step)
		*(volatile char *)(r->start + i * PAGE) = 1;
}

void populate(struct range *r, size_t first, size_t pages)
{
	populate_every(r, first, pages, 1);
}

void populate_by_reading(struct range *r, size_t first, size_t pages)
{
	for (size_t i = first; i < first + pages; i++)
		(void)*(volatile char *)(r->start + i * PAGE);
}

void discard(struct range *r, size_t first, size_t pages)
{
	truth_content_dropped(r, first, pages);
	if (madvise(r->start + first * PAGE, pages * PAGE, MADV_DONTNEED))
		fail("MADV_DONTNEED: %s", strerror(errno));
	if (r->memory == MEMORY_ANON)
		truth_emptied(r, first, pages, CAUSE_DISCARDED);
}

/* Its pages may still wait in another CPU's batch, where reclaim does not find them. */
void page_out(struct range *r, size_t first, size_t pages)
{
	for (int tries = 0; tries < 200; tries++) {
		if (madvise(r->start + first * PAGE, pages * PAGE, MADV_PAGEOUT))
			unsupported("MADV_PAGEOUT: %s", strerror(errno));
		if (!pagemap_present(r, first, pages))
			return;
		usleep(5000);
	}
	fail("%zu of %zu pages stay in memory", pagemap_present(r, first, pages), pages);
}

void unmap_from(struct range *r, size_t first)
{
	if (munmap(r->start + first * PAGE, (r->pages - first) * PAGE))
		fail("munmap: %s", strerror(errno));
	truth_unwatched(r, first, r->pages - first);
}

void map_over(struct range *r, size_t first, size_t pages)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;

	if (mmap(r->start + first * PAGE, pages * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	truth_unwatched(r, first, pages);
}

char *move_mapping(struct range *r)
{
	size_t bytes = r->pages * PAGE;
	char *to = reserve(bytes, PAGE);

	if (mremap(r->start, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
		fail("mremap: %s", strerror(errno));
	if (r->features & UFFD_FEATURE_EVENT_REMAP)
		truth_again(r, to, r->modes);
	else
		truth_unwatched(r, 0, r->pages);
	return to;
}

void move_content(struct range *r)
{
	size_t bytes = r->pages * PAGE;

	if (mremap(r->start, bytes, bytes, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL) == MAP_FAILED)
		fail("mremap: %s", strerror(errno));
	truth_emptied(r, 0, r->pages, CAUSE_DISCARDED);
}

void grow(struct range *r, size_t pages)
{
	size_t bytes = r->pages * PAGE;

	if (munmap(r->start + bytes, pages * PAGE))
		fail("munmap: %s", strerror(errno));
	if (mremap(r->start, bytes, bytes + pages * PAGE, 0) == MAP_FAILED)
		fail("mremap: %s", strerror(errno));
	truth_grown(r, pages);
}

unsigned long huge_kb(const struct range *r)
{
	unsigned long low, high, kb, total = 0;
	bool inside = false;
	char line[256];
	FILE *smaps = fopen("/proc/self/smaps", "r");

	if (!smaps)
		fail("smaps: %s", strerror(errno));
	while (fgets(line, sizeof(line), smaps)) {
		if (sscanf(line, "%lx-%lx ", &low, &high) == 2)
			inside = low >= (unsigned long)r->start && high <= (unsigned long)r->start + r->pages * PAGE;
		else if (inside && sscanf(line, "AnonHugePages: %lu", &kb) == 1)
			total += kb;
	}
	fclose(smaps);
	return total;
}
