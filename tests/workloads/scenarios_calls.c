// SPDX-License-Identifier: GPL-2.0-or-later
/* Calls that fail, or do less than they were asked for. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pagemap.h"
#include "run.h"
#include "scenarios.h"

#define SIDE 64
#define GAP 8

/* UFFDIO_WRITEPROTECT with MODE_WP: 0 or the error. */
static int protect(int uffd, char *start, size_t pages)
{
	struct uffdio_writeprotect arg = {
		.range = {.start = (unsigned long)start, .len = pages * PAGE},
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &arg) ? errno : 0;
}

/* UFFDIO_COPY: 0 or the error, and how many pages it did. */
static int copy(struct range *r, size_t i, size_t pages, uint64_t mode, size_t *done)
{
	struct uffdio_copy arg = {
		.dst = (unsigned long)r->start + i * PAGE,
		.src = (unsigned long)zeroes,
		.len = pages * PAGE,
		.mode = mode,
	};
	int error = ioctl(r->uffd, UFFDIO_COPY, &arg) ? errno : 0;

	*done = arg.copy > 0 ? arg.copy / PAGE : 0;
	return error;
}

static void expect(const char *call, int error, int expected)
{
	if (error != expected)
		fail("%s: %s, not %s", call, strerror(error), strerror(expected));
}

/* Registered after it was populated: with MISSING that order asks nobody. */
static struct range *populated_range(uint64_t modes, struct monitor *m)
{
	struct range *r = map_anon(SIDE);

	populate(r, 0, SIDE);
	point("populated");
	track(r, modes, 0, m);
	point("registered");
	return r;
}

static void *discard_some(void *arg)
{
	discard(arg, 0, GAP);
	return NULL;
}

/* While an event waits to be read, nothing can be armed. */
static void arm_during_removal(unsigned int tries)
{
	struct monitor m = {0};
	struct range *r = map_anon(SIDE);
	int uffd = uffd_open(UFFD_FEATURE_EVENT_REMOVE);
	struct pollfd event = {.fd = uffd, .events = POLLIN};
	pthread_t remover;

	uffd_register(uffd, UFFD_FEATURE_EVENT_REMOVE, r, MODE_WP);
	point("registered");
	populate(r, 0, SIDE);
	point("populated");
	remover = thread_start(discard_some, r);
	if (poll(&event, 1, -1) != 1)
		fail("poll: %s", strerror(errno));
	for (unsigned int i = 0; i < tries; i++)
		expect("UFFDIO_WRITEPROTECT", protect(uffd, r->start + GAP * PAGE, SIDE - GAP), EAGAIN);
	if (tries >= 8)
		truth_finding(r, "eagain-storm", tries);
	else
		truth_no_finding(r, "eagain-storm");
	monitor_start(&m, uffd);
	thread_join(remover);
	arm(r, GAP, SIDE - GAP);
	point("armed");
	write_and_stop(r, &m);
}

void eagain_storm(void)
{
	arm_during_removal(20);
}

void eagain_once(void)
{
	arm_during_removal(2);
}

/* Without WP: that a copy which did nothing took no protection away must show. */
void eexist(void)
{
	enum { TRIES = 3 };
	struct monitor m = {.missing = COPY_WP};
	struct range *r = populated_range(MODE_MISSING | MODE_WP, &m);
	size_t done;

	arm_all(r);
	for (size_t i = 0; i < TRIES; i++)
		expect("UFFDIO_COPY", copy(r, i, 1, 0, &done), EEXIST);
	truth_finding(r, "eexist", TRIES);
	write_and_stop(r, &m);
}

void zeropage_eexist(void)
{
	struct monitor m = {.missing = COPY_WP};
	struct range *r = populated_range(MODE_MISSING | MODE_WP, &m);
	struct uffdio_zeropage arg = {.range = {.start = (unsigned long)r->start, .len = PAGE}};

	arm_all(r);
	expect("UFFDIO_ZEROPAGE", ioctl(r->uffd, UFFDIO_ZEROPAGE, &arg) ? errno : 0, EEXIST);
	truth_finding(r, "eexist", 1);
	write_and_stop(r, &m);
}

void copy_into_holes(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(SIDE, SIDE / 2, 0, &m);

	for (size_t i = SIDE / 2; i < SIDE; i += 8)
		copy_pages(r, i, 8, true);
	pagemap_expect(r, 0, SIDE, SIDE);
	truth_no_finding(r, "eexist");
	truth_no_finding(r, "partial-copy");
	write_and_stop(r, &m);
}

/* The fifth of eight pages is there: the copy ends in front of it. */
void partial_copy(void)
{
	enum { FIRST = 8, MANY = 8, THERE = 4 };
	struct monitor m = {0};
	struct range *r = track_wp(SIDE, 0, &m);
	size_t done;

	populate(r, 0, FIRST);
	populate(r, FIRST + THERE, 1);
	populate(r, FIRST + MANY, SIDE - FIRST - MANY);
	point("populated");
	arm_all(r);
	expect("UFFDIO_COPY", copy(r, FIRST, MANY, UFFDIO_COPY_MODE_WP, &done), EAGAIN);
	if (done != THERE)
		fail("UFFDIO_COPY did %zu pages, not %d", done, THERE);
	for (size_t i = FIRST; i < FIRST + THERE; i++) {
		truth_armed(r, i, false);
		truth_filled(r, i);
	}
	truth_finding(r, "partial-copy", 1);
	copy_pages(r, FIRST + THERE + 1, MANY - THERE - 1, true);
	pagemap_expect(r, 0, SIDE, SIDE);
	write_and_stop(r, &m);
}

/*
 * What a WRITEPROTECT over populated pages did to this range, and how many
 * pages it armed. A call that fails may have protected a part.
 */
static size_t armed_by(int error, struct range *r)
{
	bool protected[r->pages];
	size_t armed = 0;

	pagemap_protected(r, 0, r->pages, protected);
	for (size_t i = 0; i < r->pages; i++) {
		if (error && !protected[i])
			continue;
		truth_armed(r, i, false);
		armed++;
	}
	pagemap_expect(r, 0, r->pages, armed);
	return armed;
}

static void refused(struct range *r, int error, size_t armed)
{
	expect("UFFDIO_WRITEPROTECT", error, ENOENT);
	if (armed)
		truth_finding(r, "half-protected", 0);
	else
		truth_finding(r, "arm-failed", 1);
}

/* Two mappings with nothing between them, armed as if they were one. */
void gap(void)
{
	struct monitor m = {0};
	struct range *r[2] = {map_anon(SIDE + GAP + SIDE)};
	char *nothing = r[0]->start + SIDE * PAGE;
	int uffd = uffd_open(0), error;
	size_t armed;

	r[0]->pages = SIDE;
	r[1] = truth_new_range(nothing + GAP * PAGE, SIDE, 0, MEMORY_ANON);
	if (munmap(nothing, GAP * PAGE))
		fail("munmap: %s", strerror(errno));
	for (int i = 0; i < 2; i++)
		uffd_register(uffd, 0, r[i], MODE_WP);
	monitor_start(&m, uffd);
	point("registered");
	for (int i = 0; i < 2; i++)
		populate(r[i], 0, SIDE);
	point("populated");
	error = protect(uffd, r[0]->start, SIDE + GAP + SIDE);
	armed = armed_by(error, r[0]);
	armed_by(error, r[1]);
	point("armed");
	if (error)
		refused(r[0], error, armed);
	else
		truth_finding(r[0], "gap-skipped", GAP);
	for (int i = 0; i < 2; i++)
		write_pages(r[i], 0, SIDE);
	point("written");
	monitor_stop(&m);
}

/* One range, but two mappings, which older kernels arm only one by one. */
void adjacent(void)
{
	struct monitor m = {0};
	struct range *r = map_anon(2 * SIDE);
	size_t armed;
	int error;

	if (madvise(r->start + SIDE * PAGE, SIDE * PAGE, MADV_DONTDUMP))
		fail("MADV_DONTDUMP: %s", strerror(errno));
	track(r, MODE_WP, 0, &m);
	point("registered");
	populate(r, 0, 2 * SIDE);
	point("populated");
	error = protect(r->uffd, r->start, 2 * SIDE);
	armed = armed_by(error, r);
	truth_no_finding(r, "gap-skipped");
	if (error) {
		refused(r, error, armed);
		arm(r, 0, SIDE);
		arm(r, SIDE, SIDE);
	}
	point("armed");
	write_and_stop(r, &m);
}

/* What lies right behind the range is not registered. */
void half(void)
{
	struct monitor m = {0};
	struct range *r = map_anon(2 * SIDE);
	int error;

	r->pages = SIDE;
	track(r, MODE_WP, 0, &m);
	point("registered");
	populate(r, 0, SIDE);
	point("populated");
	error = protect(r->uffd, r->start, 2 * SIDE);
	refused(r, error, armed_by(error, r));
	point("armed");
	write_and_stop(r, &m);
}

void arm_failed(void)
{
	struct monitor m = {0};
	struct range *r = populated_range(MODE_WP, &m);

	expect("UFFDIO_WRITEPROTECT", protect(r->uffd, r->start, 0), EINVAL);
	truth_finding(r, "arm-failed", 1);
	arm_all(r);
	write_and_stop(r, &m);
}

/* What a call is given, in memory that nobody has touched: the call brings it in, who only looks on cannot. */
static void *untouched(const void *argument, size_t size)
{
	int fd = memfd_create("argument", MFD_CLOEXEC);
	void *copy = MAP_FAILED;

	if (fd >= 0 && write(fd, argument, size) == (ssize_t)size)
		copy = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (copy == MAP_FAILED)
		fail("memfd: %s", strerror(errno));
	close(fd);
	return copy;
}

void argument_untouched(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(SIDE, SIDE, 0, &m);
	struct uffdio_writeprotect release = {.range = {.start = (unsigned long)r->start, .len = GAP * PAGE}};

	truth_disarmed(r, 0, GAP);
	if (ioctl(r->uffd, UFFDIO_WRITEPROTECT, untouched(&release, sizeof(release))))
		fail("UFFDIO_WRITEPROTECT: %s", strerror(errno));
	point("released");
	/* This one the kernel cannot read either. */
	expect("UFFDIO_WRITEPROTECT", ioctl(r->uffd, UFFDIO_WRITEPROTECT, (void *)PAGE) ? errno : 0, EFAULT);
	write_and_stop(r, &m);
}
