// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pagemap.h"
#include "run.h"

int uffd_open(uint64_t features)
{
	struct uffdio_api api = {.api = UFFD_API, .features = features};
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (uffd < 0)
		fail("userfaultfd: %s", strerror(errno));
	if (ioctl(uffd, UFFDIO_API, &api)) {
		if (errno == EINVAL && features)
			unsupported("UFFDIO_API refuses features %#lx", (unsigned long)features);
		fail("UFFDIO_API: %s", strerror(errno));
	}
	return uffd;
}

static struct uffdio_range span(const struct range *r, size_t first, size_t pages)
{
	return (struct uffdio_range){
		.start = (unsigned long)r->start + first * PAGE,
		.len = pages * PAGE,
	};
}

void uffd_register(int uffd, uint64_t features, struct range *r, uint64_t modes)
{
	struct uffdio_register reg = {
		.range = span(r, 0, r->pages),
		.mode = modes,
	};

	if (ioctl(uffd, UFFDIO_REGISTER, &reg)) {
		if (errno == EINVAL)
			unsupported("UFFDIO_REGISTER refuses modes %#lx here", (unsigned long)modes);
		fail("UFFDIO_REGISTER: %s", strerror(errno));
	}
	r->uffd = uffd;
	r->modes = modes;
	r->features = features;
}

/*
 * Replaces the modes, which silently drops the protection: the bits may stay in
 * the page table, and pagemap shows them, but no fault looks at them any more.
 */
struct range *uffd_reregister(struct range *r, uint64_t modes)
{
	struct uffdio_register reg = {
		.range = span(r, 0, r->pages),
		.mode = modes,
	};
	struct range *again;

	if (ioctl(r->uffd, UFFDIO_REGISTER, &reg))
		fail("second UFFDIO_REGISTER: %s", strerror(errno));
	again = truth_again(r);
	again->uffd = r->uffd;
	again->features = r->features;
	again->modes = modes;
	return again;
}

void uffd_unregister_from(struct range *r, size_t first)
{
	struct uffdio_range range = span(r, first, r->pages - first);

	if (ioctl(r->uffd, UFFDIO_UNREGISTER, &range))
		fail("UFFDIO_UNREGISTER: %s", strerror(errno));
	truth_disarmed(r, first, r->pages - first);
}

static void write_protect(struct range *r, size_t first, size_t pages, bool wp)
{
	struct uffdio_writeprotect arg = {
		.range = span(r, first, pages),
		.mode = wp ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	if (ioctl(r->uffd, UFFDIO_WRITEPROTECT, &arg))
		fail("UFFDIO_WRITEPROTECT: %s", strerror(errno));
}

/* Where the kernel leaves markers for empty pages. */
static bool has_markers(const struct range *r)
{
	return r->memory != MEMORY_ANON || r->features & (UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC);
}

void arm(struct range *r, size_t first, size_t pages)
{
	bool *hole = calloc(pages, sizeof(*hole));
	size_t holes = 0;

	if (!hole)
		fail("out of memory");
	if (!has_markers(r))
		holes = pagemap_holes(r, first, pages, hole);
	write_protect(r, first, pages, true);
	for (size_t i = 0; i < pages; i++)
		truth_armed(r, first + i, hole[i]);
	free(hole);
	pagemap_expect(r, first, pages, pages - holes);
}

void release(struct range *r, size_t first, size_t pages)
{
	truth_disarmed(r, first, pages);
	write_protect(r, first, pages, false);
}

void wake(struct range *r, size_t i)
{
	struct uffdio_range range = span(r, i, r->unit / PAGE);

	if (ioctl(r->uffd, UFFDIO_WAKE, &range))
		fail("UFFDIO_WAKE: %s", strerror(errno));
}

void copy_page(struct range *r, size_t i, bool wp)
{
	static char source[HUGE_PAGE] __attribute__((aligned(PAGE)));
	struct uffdio_copy arg = {
		.dst = (unsigned long)r->start + i * PAGE,
		.src = (unsigned long)source,
		.len = r->unit,
		.mode = wp ? UFFDIO_COPY_MODE_WP : 0,
	};

	/* First, for the ioctl wakes a writer that may fault again at once. */
	for (size_t n = i; n < i + r->unit / PAGE; n++) {
		if (wp)
			truth_armed(r, n, false);
		else
			truth_blind(r, n, CAUSE_COPY_WITHOUT_WP);
		truth_filled(r, n);
	}
	if (ioctl(r->uffd, UFFDIO_COPY, &arg))
		fail("UFFDIO_COPY: %s", strerror(errno));
}

/* The retry of a write makes the page writable; a read leaves it read-only. */
void zero_page(struct range *r, size_t i, bool write_fault)
{
	struct uffdio_zeropage arg = {.range = span(r, i, 1)};

	truth_zeropaged(r, i);
	if (write_fault)
		truth_blind(r, i, CAUSE_ZEROPAGE);
	if (ioctl(r->uffd, UFFDIO_ZEROPAGE, &arg))
		fail("UFFDIO_ZEROPAGE: %s", strerror(errno));
}

void continue_page(struct range *r, size_t i)
{
	struct uffdio_continue arg = {.range = span(r, i, r->unit / PAGE)};

	truth_filled(r, i);
	truth_blind(r, i, CAUSE_CONTINUE_WITHOUT_WP);
	if (ioctl(r->uffd, UFFDIO_CONTINUE, &arg))
		fail("UFFDIO_CONTINUE: %s", strerror(errno));
}

unsigned long uffd_unread(int uffd)
{
	char path[64], line[128];
	unsigned long unread = 0;
	FILE *info;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", uffd);
	info = fopen(path, "r");
	if (!info)
		fail("%s: %s", path, strerror(errno));
	while (fgets(line, sizeof(line), info))
		sscanf(line, "pending: %lu", &unread);
	fclose(info);
	return unread;
}
