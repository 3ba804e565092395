// SPDX-License-Identifier: GPL-2.0-or-later
/* What the kernel's page tables say about the pages. */
#include "pagemap.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "run.h"

#define PM_PRESENT (1ULL << 63)
#define PM_SWAP (1ULL << 62)
#define PM_UFFD_WP (1ULL << 57)
#define PM_FRAME ((1ULL << 55) - 1)

/* Shared by all scenarios, each of which is a process. */
static atomic_bool *tells;

void pagemap_start(void)
{
	tells = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (tells == MAP_FAILED)
		fail("mmap: %s", strerror(errno));
}

bool kernel_tells_protection(void)
{
	return *tells;
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

static size_t count(const struct range *r, size_t first, size_t pages, uint64_t bits)
{
	uint64_t *entries = read_pagemap(r, first, pages);
	size_t n = 0;

	for (size_t i = 0; i < pages; i++)
		n += !!(entries[i] & bits);
	free(entries);
	return n;
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

size_t pagemap_present(const struct range *r, size_t first, size_t pages)
{
	return count(r, first, pages, PM_PRESENT);
}

size_t pagemap_swapped(const struct range *r, size_t first, size_t pages)
{
	return count(r, first, pages, PM_SWAP);
}

bool pagemap_one_frame(const struct range *r, size_t first, size_t pages)
{
	uint64_t *entries = read_pagemap(r, first, pages);
	uint64_t frame = entries[0] & PM_FRAME;
	bool one = true;

	if (!frame)
		unsupported("pagemap hides the page frames");
	for (size_t i = 0; i < pages; i++)
		one &= (entries[i] & PM_FRAME) == frame;
	free(entries);
	return one;
}

void pagemap_protected(const struct range *r, size_t first, size_t pages, bool *set)
{
	uint64_t *entries = read_pagemap(r, first, pages);

	for (size_t i = 0; i < pages; i++)
		set[i] = entries[i] & PM_UFFD_WP;
	free(entries);
}

void pagemap_expect(const struct range *r, size_t first, size_t pages, size_t protected)
{
	size_t set = count(r, first, pages, PM_UFFD_WP);

	if (set)
		*tells = true;
	if (r->memory != MEMORY_HUGETLB && *tells && set != protected)
		fail("pagemap shows %zu of %zu pages protected, not %zu", set, pages, protected);
}

void pagemap_in_memory(const struct range *r, size_t first, size_t pages, bool *present)
{
	uint64_t *entries = read_pagemap(r, first, pages);

	for (size_t i = 0; i < pages; i++)
		present[i] = entries[i] & PM_PRESENT;
	free(entries);
}

bool page_is_present(const struct range *r, size_t i)
{
	return pagemap_present(r, i, 1);
}
