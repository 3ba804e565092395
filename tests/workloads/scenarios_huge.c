// SPDX-License-Identifier: GPL-2.0-or-later
/* Armed huge pages, and everything that splits, moves, empties or copies one. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pagemap.h"
#include "run.h"
#include "scenarios.h"

/* linux/mman.h since 6.1. */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

static void populate_huge(struct range *r)
{
	populate(r, 0, r->pages);
	if (huge_kb(r) != r->pages * PAGE / 1024)
		fail("only %lu kB came as huge pages", huge_kb(r));
	point("populated");
}

static struct range *track_armed_huge(uint64_t features, struct monitor *m)
{
	struct range *r = map_huge(BIG);

	track(r, MODE_WP, features, m);
	point("registered");
	populate_huge(r);
	arm_all(r);
	return r;
}

/* The source is empty then: the next write there populates a huge page. */
void huge_moved(void)
{
	struct monitor m = {0};
	struct range *dst = map_huge(BIG), *src = map_huge(BIG);
	int uffd = uffd_open(UFFD_FEATURE_MOVE);

	uffd_register(uffd, UFFD_FEATURE_MOVE, dst, MODE_WP);
	uffd_register(uffd, UFFD_FEATURE_MOVE, src, MODE_WP);
	monitor_start(&m, uffd);
	point("registered");
	populate_huge(src);
	arm(dst, 0, BIG);
	arm(src, 0, BIG);
	point("armed");
	move_pages(dst, 0, src, 0, PAGES_PER_HUGE);
	pagemap_expect(dst, 0, BIG, 0);
	pagemap_expect(src, 0, BIG, BIG - PAGES_PER_HUGE);
	write_blocks_of(src, 0, 1);
	write_pages(src, PAGES_PER_HUGE, PAGES_PER_HUGE);
	point("written");
	monitor_stop(&m);
}

void huge_remapped(void)
{
	struct monitor m = {0};
	struct range *r = track_armed_huge(0, &m);
	char *to = move_mapping(r);

	truth_finding(r, "mremap-without-event", BIG);
	for (size_t i = 0; i < BIG; i++)
		*(volatile char *)(to + i * PAGE) = 2;
	point("written");
	monitor_stop(&m);
}

void huge_remapped_event(void)
{
	struct monitor m = {0};
	struct range *r = truth_find(move_mapping(track_armed_huge(UFFD_FEATURE_EVENT_REMAP, &m)));

	pagemap_expect(r, 0, BIG, BIG);
	write_and_stop(r, &m);
}

static pid_t fork_huge(const struct range *r, int go)
{
	pid_t pid = fork();
	char c;

	if (pid < 0)
		fail("fork: %s", strerror(errno));
	if (pid)
		return pid;
	if (read(go, &c, 1) != 1)
		_exit(1);
	for (size_t i = 0; i < r->pages; i++)
		*(volatile char *)(r->start + i * PAGE) = 3;
	_exit(0);
}

static void let_go(pid_t pid, int go)
{
	int status;

	if (write(go, "", 1) != 1)
		fail("pipe: %s", strerror(errno));
	if (waitpid(pid, &status, 0) != pid || status)
		fail("the forked child ended with %#x", status);
}

void huge_forked(void)
{
	struct monitor m = {0};
	struct range *r = track_armed_huge(0, &m);
	int go[2];
	pid_t pid;

	if (pipe(go))
		fail("pipe: %s", strerror(errno));
	pid = fork_huge(r, go[0]);
	truth_finding(r, "fork-without-event", 1);
	write_pages(r, 0, BIG / 2);
	let_go(pid, go[1]);
	write_pages(r, BIG / 2, BIG / 2);
	point("written");
	monitor_stop(&m);
}

void huge_fork_followed(void)
{
	struct monitor m = {.keep_forked = true}, of_child = {0};
	struct range *r = track_armed_huge(UFFD_FEATURE_EVENT_FORK, &m), *copy;
	int go[2];
	pid_t pid;

	if (pipe(go))
		fail("pipe: %s", strerror(errno));
	pid = fork_huge(r, go[0]);
	monitor_await(&m, 1);
	copy = truth_forked(r, pid, m.forked);
	monitor_start(&of_child, m.forked);
	let_go(pid, go[1]);
	truth_written(copy, 0, BIG, 1);
	write_and_stop(r, &m);
	monitor_stop(&of_child);
}

void huge_part_released(void)
{
	struct monitor m = {0};
	struct range *r = track_armed_huge(0, &m);

	release(r, 100, 200);
	pagemap_expect(r, 0, BIG, BIG - 200);
	write_and_stop(r, &m);
}

void huge_part_discarded(void)
{
	struct monitor m = {0};
	struct range *r = track_armed_huge(0, &m);

	discard(r, 100, 200);
	pagemap_expect(r, 0, BIG, BIG - 200);
	write_and_stop(r, &m);
}

void huge_discarded(void)
{
	struct monitor m = {0};
	struct range *r = track_armed_huge(0, &m);

	discard(r, 0, BIG);
	pagemap_expect(r, 0, BIG, 0);
	write_blocks(r);
	monitor_stop(&m);
}

/* khugepaged's code takes no page whose protection is a userfaultfd's. */
void huge_collapsed(void)
{
	struct monitor m = {0};
	struct range *r = track_armed_huge(0, &m);

	release(r, 0, 1);
	if (!madvise(r->start, BIG * PAGE, MADV_COLLAPSE))
		fail("MADV_COLLAPSE made huge pages of protected ones");
	if (errno == EINVAL && !huge_kb(r))
		unsupported("MADV_COLLAPSE: %s", strerror(errno));
	pagemap_expect(r, 0, BIG, BIG - 1);
	write_and_stop(r, &m);
}

void huge_unpopulated(void)
{
	struct monitor m = {0};
	struct range *r = map_huge(BIG);

	track(r, MODE_WP, UFFD_FEATURE_WP_UNPOPULATED, &m);
	point("registered");
	populate(r, 0, BIG / 2);
	point("populated");
	arm_all(r);
	pagemap_expect(r, 0, BIG, BIG);
	write_and_stop(r, &m);
}
