// SPDX-License-Identifier: GPL-2.0-or-later
/* The tracked mappings and what /proc says about their pages. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pagemap.h"
#include "run.h"
#include "uffd.h"

#define PM_PRESENT (1ULL << 63)
#define PM_SWAP (1ULL << 62)
#define PM_UFFD_WP (1ULL << 57)

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
	return truth_new_range(start, pages, MEMORY_ANON);
}

struct range *map_huge(size_t pages)
{
	char *start = place(pages, HUGE_PAGE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	if (start == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
	advise(start, pages, MADV_HUGEPAGE);
	return truth_new_range(start, pages, MEMORY_ANON);
}

struct range *map_hugetlb(size_t pages)
{
	char *start = place(pages, HUGE_PAGE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1);

	if (start == MAP_FAILED)
		unsupported("mmap with MAP_HUGETLB: %s", strerror(errno));
	return truth_new_range(start, pages, MEMORY_HUGETLB);
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
	return truth_new_range(start, pages, MEMORY_SHMEM);
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
	if (madvise(r->start + first * PAGE, pages * PAGE, MADV_DONTNEED))
		fail("MADV_DONTNEED: %s", strerror(errno));
	truth_discarded(r, first, pages);
}

void unmap_from(struct range *r, size_t first)
{
	if (munmap(r->start + first * PAGE, (r->pages - first) * PAGE))
		fail("munmap: %s", strerror(errno));
	truth_disarmed(r, first, r->pages - first);
}

static uint64_t *read_pagemap(const struct range *r, size_t first, size_t pages)
{
	uint64_t *entries = malloc(pages * sizeof(*entries));
	off_t offset = ((unsigned long)r->start / PAGE + first) * sizeof(*entries);
	size_t done = 0, bytes = pages * sizeof(*entries);
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	if (!entries || fd < 0)
		fail("pagemap: %s", strerror(errno));
	while (done < bytes) {
		ssize_t n = pread(fd, (char *)entries + done, bytes - done, offset + done);

		if (n <= 0)
			fail("pagemap: %s", n ? strerror(errno) : "short read");
		done += n;
	}
	close(fd);
	return entries;
}

size_t pagemap_holes(const struct range *r, size_t first, size_t pages, bool *hole)
{
	uint64_t *entries = read_pagemap(r, first, pages);
	size_t holes = 0;

	for (size_t i = 0; i < pages; i++) {
		hole[i] = !(entries[i] & (PM_PRESENT | PM_SWAP));
		holes += hole[i];
	}
	free(entries);
	return holes;
}

void pagemap_expect(const struct range *r, size_t first, size_t pages, size_t protected)
{
	uint64_t *entries = read_pagemap(r, first, pages);
	size_t set = 0;

	for (size_t i = 0; i < pages; i++)
		set += !!(entries[i] & PM_UFFD_WP);
	free(entries);
	if (r->memory != MEMORY_HUGETLB && set && set != protected)
		fail("pagemap shows %zu of %zu pages protected, not %zu", set, pages, protected);
}

bool page_is_present(const struct range *r, size_t i)
{
	uint64_t *entry = read_pagemap(r, i, 1);
	bool present = *entry & PM_PRESENT;

	free(entry);
	return present;
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
