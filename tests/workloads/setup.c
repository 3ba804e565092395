// SPDX-License-Identifier: GPL-2.0-or-later
/* What scenarios begin and end with. */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <string.h>

#include "pagemap.h"
#include "run.h"
#include "scenarios.h"

#define HUGE_KB (HUGE_PAGE / 1024)

void track(struct range *r, uint64_t modes, uint64_t features, struct monitor *m)
{
	int uffd = uffd_open(features);

	uffd_register(uffd, features, r, modes);
	monitor_start(m, uffd);
}

struct range *track_wp(size_t pages, uint64_t features, struct monitor *m)
{
	struct range *r = map_anon(pages);

	track(r, MODE_WP, features, m);
	point("registered");
	return r;
}

struct range *track_armed(size_t pages, size_t full, uint64_t features, struct monitor *m)
{
	struct range *r = track_wp(pages, features, m);

	if (full) {
		populate(r, 0, full);
		point("populated");
	}
	arm_all(r);
	return r;
}

void arm_all(struct range *r)
{
	arm(r, 0, r->pages);
	point("armed");
}

void write_and_stop(struct range *r, struct monitor *m)
{
	write_pages(r, 0, r->pages);
	point("written");
	monitor_stop(m);
}

void write_blocks_of(struct range *r, size_t first, size_t blocks)
{
	for (size_t block = first; block < first + blocks * PAGES_PER_HUGE; block += PAGES_PER_HUGE) {
		unsigned long before = huge_kb(r);

		write_pages(r, block, 1);
		if (huge_kb(r) == before + HUGE_KB)
			truth_huge(r, block, block);
		pagemap_expect(r, block, PAGES_PER_HUGE, 0);
		write_pages(r, block + 1, PAGES_PER_HUGE - 1);
	}
}

void write_blocks(struct range *r)
{
	write_blocks_of(r, 0, r->pages / PAGES_PER_HUGE);
	point("written");
}

void expect_repeated_messages(struct range *r)
{
	size_t messages = 0, notified = 0;

	for (size_t i = 0; i < r->pages; i++) {
		messages += r->page[i].messages[KIND_WP];
		notified += r->page[i].notified;
	}
	if (messages > notified)
		truth_finding(r, "repeated-messages", 0);
}

void stay_on_one_cpu(void)
{
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(sched_getcpu(), &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus))
		fail("sched_setaffinity: %s", strerror(errno));
}

struct range *track_armed_shmem(size_t full, struct monitor *m)
{
	struct range *r = map_shmem(PAGES, NULL);

	track(r, MODE_WP, 0, m);
	point("registered");
	populate(r, 0, full);
	point("populated");
	arm_all(r);
	return r;
}
