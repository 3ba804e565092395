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

#include "content.h"
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
 * Replaces the modes. Without WP that silently drops the protection: the bits may
 * stay in the page table, and pagemap shows them, but no fault looks at them.
 */
void uffd_register_again(struct range *r, uint64_t modes)
{
	struct uffdio_register reg = {
		.range = span(r, 0, r->pages),
		.mode = modes,
	};

	if (ioctl(r->uffd, UFFDIO_REGISTER, &reg))
		fail("second UFFDIO_REGISTER: %s", strerror(errno));
}

struct range *uffd_reregister(struct range *r, uint64_t modes)
{
	uffd_register_again(r, modes);
	return truth_again(r, r->start, modes);
}

void uffd_unregister_from(struct range *r, size_t first)
{
	struct uffdio_range range = span(r, first, r->pages - first);

	if (ioctl(r->uffd, UFFDIO_UNREGISTER, &range))
		fail("UFFDIO_UNREGISTER: %s", strerror(errno));
	truth_unwatched(r, first, r->pages - first);
}

void uffd_close(int uffd)
{
	/* First: what it wakes writes at once. */
	for (struct range *r = truth_next(NULL); r; r = truth_next(r)) {
		if (r->uffd != uffd)
			continue;
		truth_unwatched(r, 0, r->pages);
		r->uffd = -1;
	}
	if (close(uffd))
		fail("close: %s", strerror(errno));
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

void arm(struct range *r, size_t first, size_t pages)
{
	bool *hole = calloc(pages, sizeof(*hole)), *empty = calloc(pages, sizeof(*empty));
	size_t holes = 0;

	if (!hole || !empty)
		fail("out of memory");
	pagemap_holes(r, first, pages, empty);
	if (!truth_has_markers(r))
		holes = pagemap_holes(r, first, pages, hole);
	write_protect(r, first, pages, true);
	for (size_t i = 0; i < pages; i++)
		truth_armed(r, first + i, hole[i]);
	free(hole);
	pagemap_expect(r, first, pages, pages - holes);
	content_armed(r, first, pages, empty);
	free(empty);
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

void copy_pages(struct range *r, size_t i, size_t n, bool wp)
{
	struct uffdio_copy arg = {
		.dst = (unsigned long)r->start + i * PAGE,
		.src = (unsigned long)zeroes,
		.len = n * PAGE,
		.mode = wp ? UFFDIO_COPY_MODE_WP : 0,
	};

	/* First, for the ioctl wakes a writer that may fault again at once. */
	for (size_t at = i; at < i + n; at++) {
		if (wp)
			truth_armed(r, at, false);
		else
			truth_unprotected_fill(r, at, CAUSE_COPY_WITHOUT_WP);
		truth_filled(r, at);
	}
	if (ioctl(r->uffd, UFFDIO_COPY, &arg))
		fail("UFFDIO_COPY: %s", strerror(errno));
}

void copy_page(struct range *r, size_t i, bool wp)
{
	copy_pages(r, i, r->unit / PAGE, wp);
}

/* The answer to a write lets the page go; else it stays read-only, and the next write shows. */
void zero_page(struct range *r, size_t i)
{
	struct uffdio_zeropage arg = {.range = span(r, i, 1)};

	truth_zeropaged(r, i);
	if (ioctl(r->uffd, UFFDIO_ZEROPAGE, &arg))
		fail("UFFDIO_ZEROPAGE: %s", strerror(errno));
}

void continue_page(struct range *r, size_t i, bool wp)
{
	struct uffdio_continue arg = {
		.range = span(r, i, r->unit / PAGE),
		.mode = wp ? UFFDIO_CONTINUE_MODE_WP : 0,
	};

	for (size_t at = i; at < i + r->unit / PAGE; at++) {
		if (wp)
			truth_armed(r, at, false);
		else
			truth_unprotected_fill(r, at, CAUSE_CONTINUE_WITHOUT_WP);
		truth_filled(r, at);
	}
	if (!ioctl(r->uffd, UFFDIO_CONTINUE, &arg))
		return;
	if (wp && errno == EINVAL)
		unsupported("UFFDIO_CONTINUE refuses UFFDIO_CONTINUE_MODE_WP");
	fail("UFFDIO_CONTINUE: %s", strerror(errno));
}

void move_pages(struct range *dst, size_t i, struct range *src, size_t j, size_t n)
{
	struct uffdio_move arg = {
		.dst = (unsigned long)dst->start + i * PAGE,
		.src = (unsigned long)src->start + j * PAGE,
		.len = n * PAGE,
	};

	if (ioctl(dst->uffd, UFFDIO_MOVE, &arg) || arg.move != (int64_t)arg.len)
		fail("UFFDIO_MOVE: %s after %lld bytes", strerror(errno), (long long)arg.move);
	for (size_t at = i; at < i + n; at++) {
		truth_blind(dst, at, CAUSE_MOVED);
		truth_filled(dst, at);
	}
	truth_emptied(src, j, n, CAUSE_MOVED);
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
