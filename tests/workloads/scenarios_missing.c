// SPDX-License-Identifier: GPL-2.0-or-later
/* MISSING messages, and what their answers do to the protection. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pagemap.h"
#include "run.h"
#include "scenarios.h"

static struct range *track_missing(uint64_t modes, struct monitor *m)
{
	struct range *r = map_anon(PAGES);

	track(r, modes, 0, m);
	point("registered");
	return r;
}

static void armed_while_empty(enum on_missing answer)
{
	struct monitor m = {.missing = answer};
	struct range *r = track_missing(MODE_MISSING | MODE_WP, &m);

	arm_all(r);
	write_pages(r, 0, PAGES);
	pagemap_expect(r, 0, PAGES, 0);
	point("written");
	monitor_stop(&m);
}

void missing_wp_copy_wp(void)
{
	armed_while_empty(COPY_WP);
}

void missing_wp_copy(void)
{
	armed_while_empty(COPY);
}

void missing_wp_copy_read(void)
{
	struct monitor m = {.missing = COPY};
	struct range *r = track_missing(MODE_MISSING | MODE_WP, &m);

	arm_all(r);
	read_pages(r, 0, PAGES);
	write_and_stop(r, &m);
}

/* Written again after MADV_DONTNEED: the monitor is told, and lets the page go with a copy. */
void answered_by_copy(void)
{
	struct monitor m = {.missing = COPY};
	struct range *r = track_missing(MODE_MISSING | MODE_WP, &m);

	populate(r, 0, PAGES);
	arm_all(r);
	discard(r, 0, PAGES / 2);
	write_and_stop(r, &m);
}

/* One answer fills two pages, of which the monitor has read of a write to the first only. */
static bool answer_two(struct monitor *m, const struct uffd_msg *msg, struct range *r, size_t i)
{
	(void)m;
	if (!r || msg->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP)
		return false;
	truth_disarmed(r, i, 2);
	copy_pages(r, i, 2, false);
	return true;
}

void answer_of_two(void)
{
	struct monitor m = {.on_message = answer_two};
	struct range *r = track_missing(MODE_MISSING | MODE_WP, &m);

	arm_all(r);
	write_every(r, 0, PAGES, 2);
	write_every(r, 1, PAGES - 1, 2);
	point("written");
	truth_finding(r, "undecided", PAGES / 2);
	monitor_stop(&m);
}

void missing_wp_zeropage(void)
{
	armed_while_empty(ZEROPAGE);
}

void missing_wp_zeropage_read(void)
{
	struct monitor m = {.missing = ZEROPAGE};
	struct range *r = track_missing(MODE_MISSING | MODE_WP, &m);

	arm_all(r);
	read_pages(r, 0, PAGES);
	pagemap_expect(r, 0, PAGES, 0);
	write_and_stop(r, &m);
}

void missing(void)
{
	struct monitor m = {.missing = COPY};
	struct range *r = track_missing(MODE_MISSING, &m);

	write_and_stop(r, &m);
}

/* A reset that unregisters, maps anew and registers again; what is written meanwhile is never told. */
static void reset_after(size_t written, bool discarded)
{
	struct monitor m = {.missing = COPY};
	struct range *r = track_missing(MODE_MISSING, &m);
	struct range *again;
	int uffd = r->uffd;

	write_pages(r, 0, PAGES);
	uffd_unregister_from(r, 0);
	if (mmap(r->start, r->pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
	    r->start)
		fail("mmap: %s", strerror(errno));
	/* A kernel without huge pages knows of none to leave out. */
	if (madvise(r->start, r->pages * PAGE, MADV_NOHUGEPAGE) && errno != EINVAL)
		fail("madvise: %s", strerror(errno));
	again = truth_new_range(r->start, r->pages, 0, r->memory);
	populate(again, 0, written);
	uffd_register(uffd, 0, again, MODE_MISSING);
	if (discarded)
		discard(again, 0, written);
	write_and_stop(again, &m);
	if (discarded)
		truth_no_finding(again, "registered-late");
	else
		truth_finding(again, "registered-late", written);
}

void registered_late(void)
{
	reset_after(16, false);
}

void registered_late_and_discarded(void)
{
	reset_after(16, true);
}

/* As QEMU's postcopy after precopy, or CRIU's lazy pages. */
void already_populated(void)
{
	struct monitor m = {.missing = COPY};
	struct range *r = map_anon(PAGES);

	populate(r, 0, PAGES / 2);
	track(r, MODE_MISSING, 0, &m);
	truth_finding(r, "already-populated", PAGES / 2);
	write_and_stop(r, &m);
}

void missing_copy_wp_only(void)
{
	struct monitor m = {.missing = COPY_WP};
	struct range *r = track_missing(MODE_MISSING | MODE_WP, &m);

	/* A write's own retry meets the protection, a read's does not. */
	write_pages(r, 0, PAGES / 2);
	read_pages(r, PAGES / 2, PAGES / 2);
	pagemap_expect(r, 0, PAGES, PAGES / 2);
	point("armed");
	write_and_stop(r, &m);
}

void idle(void)
{
	struct monitor m = {0};

	track_missing(MODE_MISSING, &m);
	/* Nothing that happens here tells what memory this is: a tracer must have time to look. */
	sleep(6);
	monitor_stop(&m);
}
