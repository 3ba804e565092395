// SPDX-License-Identifier: GPL-2.0-or-later
/* What the kernel's page tables say about the pages. */
#include "pagemap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "run.h"

#define PM_PRESENT (1ULL << 63)
#define PM_SWAP (1ULL << 62)
#define PM_UFFD_WP (1ULL << 57)
#define PM_FRAME ((1ULL << 55) - 1)

/* include/uapi/linux/fs.h, since Linux 6.7. */
#ifndef PAGEMAP_SCAN
#define PAGE_IS_WRITTEN (1 << 1)
#define PM_SCAN_WP_MATCHING (1 << 0)
struct page_region {
	uint64_t start;
	uint64_t end;
	uint64_t categories;
};
struct pm_scan_arg {
	uint64_t size;
	uint64_t flags;
	uint64_t start;
	uint64_t end;
	uint64_t walk_end;
	uint64_t vec;
	uint64_t vec_len;
	uint64_t max_pages;
	uint64_t category_inverted;
	uint64_t category_mask;
	uint64_t category_anyof_mask;
	uint64_t return_mask;
};
#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#endif

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

size_t pagemap_written(const struct range *r, size_t first, size_t pages, bool protect)
{
	struct page_region *regions = calloc(pages, sizeof(*regions));
	struct pm_scan_arg scan = {.size = sizeof(scan), .start = (unsigned long)r->start + first * PAGE};
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), found;
	size_t n = 0;

	if (!regions || fd < 0)
		fail("pagemap: %s", strerror(errno));
	scan.end = scan.start + pages * PAGE;
	scan.flags = protect ? PM_SCAN_WP_MATCHING : 0;
	scan.vec = (unsigned long)regions;
	scan.vec_len = pages;
	scan.category_mask = scan.return_mask = PAGE_IS_WRITTEN;
	found = ioctl(fd, PAGEMAP_SCAN, &scan);
	if (found < 0 && errno == ENOTTY)
		unsupported("PAGEMAP_SCAN: %s", strerror(errno));
	if (found < 0 || scan.walk_end != scan.end)
		fail("PAGEMAP_SCAN: %s", found < 0 ? strerror(errno) : "it stopped early");
	for (int i = 0; i < found; i++)
		n += (regions[i].end - regions[i].start) / PAGE;
	close(fd);
	free(regions);
	return n;
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
