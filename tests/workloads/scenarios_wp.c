// SPDX-License-Identifier: GPL-2.0-or-later
/* One write-protected range: what was populated when it was armed decides. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "pagemap.h"
#include "run.h"
#include "scenarios.h"

static void partly_populated(size_t pages, size_t full)
{
	struct monitor m = {0};
	struct range *r = track_armed(pages, full, 0, &m);

	write_and_stop(r, &m);
}

void populated(void)
{
	partly_populated(PAGES, PAGES);
}

void empty(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, 0, 0, &m);

	write_and_stop(r, &m);
}

void seed(void)
{
	partly_populated(4096, 1024);
}

void read_before(void)
{
	struct monitor m = {0};
	struct range *r = track_wp(PAGES, 0, &m);

	populate_by_reading(r, 0, PAGES);
	point("populated");
	arm_all(r);
	write_and_stop(r, &m);
}

static void read_then_written(uint64_t features)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, 0, features, &m);

	read_pages(r, 0, PAGES);
	pagemap_expect(r, 0, PAGES, features ? PAGES : 0);
	write_and_stop(r, &m);
}

void read_after(void)
{
	read_then_written(0);
}

void never_armed(void)
{
	struct monitor m = {0};
	struct range *r = track_wp(PAGES, 0, &m);

	populate(r, 0, PAGES / 2);
	point("populated");
	write_and_stop(r, &m);
}

void two_rounds(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES, 0, &m);

	write_pages(r, 0, PAGES);
	arm(r, 0, PAGES);
	write_every(r, 0, PAGES, 2);
	point("written");
	monitor_stop(&m);
}

void rounds_of_holes(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES / 2, 0, &m);

	write_pages(r, 0, PAGES);
	arm(r, 0, PAGES);
	write_and_stop(r, &m);
}

void wp_unpopulated(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, 0, UFFD_FEATURE_WP_UNPOPULATED, &m);

	write_and_stop(r, &m);
}

void wp_unpopulated_read(void)
{
	read_then_written(UFFD_FEATURE_WP_UNPOPULATED);
}

void wp_async(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES / 2, UFFD_FEATURE_WP_ASYNC, &m);

	write_and_stop(r, &m);
}

/* As the only mode it takes any memory. */
void wp_async_file(void)
{
	enum { FILE_PAGES = 32 };
	struct monitor m = {0};
	struct range *r = map_file(FILE_PAGES);

	populate_by_reading(r, 0, FILE_PAGES / 2);
	track(r, MODE_WP, UFFD_FEATURE_WP_ASYNC, &m);
	arm_all(r);
	write_and_stop(r, &m);
}

static void expect_written(struct range *r, size_t pages)
{
	size_t written = pagemap_written(r, 0, r->pages, false);

	if (written != pages)
		fail("%zu pages read as written, not %zu", written, pages);
}

void async_never_armed(void)
{
	struct monitor m = {0};
	struct range *r = track_wp(PAGES, UFFD_FEATURE_WP_ASYNC, &m);

	populate(r, 0, PAGES);
	expect_written(r, PAGES);
	monitor_stop(&m);
}

void async_part_armed(void)
{
	struct monitor m = {0};
	struct range *r = track_wp(PAGES, UFFD_FEATURE_WP_ASYNC, &m);

	populate_by_reading(r, 0, PAGES);
	arm(r, 0, PAGES / 4);
	expect_written(r, PAGES - PAGES / 4);
	truth_finding(r, "reads-as-written", PAGES - PAGES / 4);
	monitor_stop(&m);
}

/* Armed by the scan itself, as trackers do under WP_ASYNC. */
void async_scanned(void)
{
	struct monitor m = {0};
	struct range *r = track_wp(PAGES, UFFD_FEATURE_WP_ASYNC, &m);

	populate(r, 0, PAGES / 2);
	pagemap_written(r, 0, PAGES, true);
	for (size_t i = 0; i < PAGES; i++)
		truth_armed(r, i, false);
	expect_written(r, 0);
	for (size_t i = 0; i < PAGES; i += 4)
		*(volatile char *)(r->start + i * PAGE) = 1;
	expect_written(r, PAGES / 4);
	pagemap_written(r, 0, PAGES, true);
	expect_written(r, 0);
	truth_no_finding(r, "reads-as-written");
	monitor_stop(&m);
}

/* Nobody writes to these pages: they are dropped, and read. */
void async_discarded(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES, UFFD_FEATURE_WP_ASYNC, &m);

	expect_written(r, 0);
	if (madvise(r->start, PAGES / 8 * PAGE, MADV_DONTNEED))
		fail("MADV_DONTNEED: %s", strerror(errno));
	for (size_t i = 0; i < PAGES / 8; i++)
		(void)*(volatile char *)(r->start + i * PAGE);
	expect_written(r, PAGES / 8);
	truth_finding(r, "reads-as-written", PAGES / 8);
	monitor_stop(&m);
}

void wake_only(void)
{
	struct monitor m = {.wp = WAKE_THEN_RELEASE};
	struct range *r = track_armed(PAGES, PAGES, 0, &m);

	write_and_stop(r, &m);
	truth_finding(r, "repeated-messages", 0);
}

void discarded(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES, 0, &m);

	discard(r, 0, PAGES / 2);
	pagemap_expect(r, 0, PAGES, PAGES / 2);
	write_and_stop(r, &m);
}
