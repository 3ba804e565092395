// SPDX-License-Identifier: GPL-2.0-or-later
/* Every way to lose the protection of a page, and what comes close to one. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "pagemap.h"
#include "run.h"
#include "scenarios.h"

/* Since 6.13 (662df3e5c376). */
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

/* What happens to a page of the mixed range. */
enum fate {
	POPULATED_WRITTEN,
	HOLE_WRITTEN,
	HOLE_READ_WRITTEN,
	HOLE_READ,
	HOLE_LEFT,
	DISCARDED_WRITTEN,
	DISCARDED_LEFT,
	COPIED_LEFT,
	COPIED_WP_WRITTEN,
	ZEROPAGED_WRITTEN,
	ZEROPAGED_LEFT,
	FATES,
};

/* Irregular, with runs of one page and of several. */
static enum fate fate(size_t i)
{
	return (i * i / 7 + i / 3) % FATES;
}

static bool is_discarded(enum fate f)
{
	return f == DISCARDED_WRITTEN || f == DISCARDED_LEFT;
}

static bool is_written(enum fate f)
{
	return f == POPULATED_WRITTEN || f == HOLE_WRITTEN || f == HOLE_READ_WRITTEN || f == DISCARDED_WRITTEN ||
	       f == COPIED_WP_WRITTEN || f == ZEROPAGED_WRITTEN;
}

static void *touch_mixed(void *range)
{
	struct range *r = range;

	for (size_t i = 0; i < r->pages; i++)
		if (fate(i) == HOLE_READ || fate(i) == HOLE_READ_WRITTEN)
			touch(&(struct work){.range = r, .first = i, .pages = 1, .read = true});
	for (size_t i = 0; i < r->pages; i++)
		if (is_written(fate(i)))
			touch(&(struct work){.range = r, .first = i, .pages = 1});
	return NULL;
}

void mixed(void)
{
	struct monitor m = {0};
	struct range *r = track_wp(PAGES, 0, &m);

	for (size_t i = 0; i < PAGES; i++)
		if (fate(i) == POPULATED_WRITTEN || is_discarded(fate(i)))
			populate(r, i, 1);
	point("populated");
	arm_all(r);
	for (size_t i = 0; i < PAGES; i++) {
		if (is_discarded(fate(i)))
			discard(r, i, 1);
		else if (fate(i) == COPIED_LEFT || fate(i) == COPIED_WP_WRITTEN)
			copy_page(r, i, fate(i) == COPIED_WP_WRITTEN);
		else if (fate(i) == ZEROPAGED_WRITTEN || fate(i) == ZEROPAGED_LEFT)
			zero_page(r, i);
	}
	thread_join(thread_start(touch_mixed, r));
	point("written");
	monitor_stop(&m);
}

void exposed(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, 0, 0, &m);

	read_pages(r, 0, PAGES);
	monitor_stop(&m);
}

void discarded_unpopulated(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES, UFFD_FEATURE_WP_UNPOPULATED, &m);

	discard(r, 0, PAGES / 2);
	pagemap_expect(r, 0, PAGES, PAGES / 2);
	write_and_stop(r, &m);
}

void huge_discarded_unpopulated(void)
{
	struct monitor m = {0};
	struct range *r = map_huge(BIG);

	track(r, MODE_WP, UFFD_FEATURE_WP_UNPOPULATED, &m);
	point("registered");
	populate(r, 0, r->pages);
	if (huge_kb(r) != r->pages * PAGE / 1024)
		fail("only %lu kB came as huge pages", huge_kb(r));
	point("populated");
	arm_all(r);
	discard(r, 0, r->pages);
	pagemap_expect(r, 0, r->pages, 0);
	write_blocks(r);
	monitor_stop(&m);
}

/* Frees the pages lazily; those that reclaim has taken are discarded. */
static void free_lazily(struct range *r, bool reclaim)
{
	bool hole[r->pages];

	if (madvise(r->start, r->pages * PAGE, MADV_FREE))
		fail("MADV_FREE: %s", strerror(errno));
	if (reclaim)
		page_out(r, 0, r->pages);
	pagemap_holes(r, 0, r->pages, hole);
	for (size_t i = 0; i < r->pages; i++)
		if (hole[i])
			truth_emptied(r, i, 1, CAUSE_DISCARDED);
}

void discarded_free(void)
{
	struct monitor m = {0};
	struct range *r;

	stay_on_one_cpu();
	r = track_armed(PAGES, PAGES, 0, &m);
	free_lazily(r, true);
	write_and_stop(r, &m);
}

void free_kept(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES, 0, &m);

	free_lazily(r, false);
	write_and_stop(r, &m);
}

void shmem_discarded(void)
{
	struct monitor m = {0};
	struct range *r = track_armed_shmem(PAGES, &m);

	discard(r, 0, PAGES / 2);
	truth_content_dropped(r, PAGES / 2, PAGES / 4);
	if (madvise(r->start + PAGES / 2 * PAGE, PAGES / 4 * PAGE, MADV_REMOVE))
		fail("MADV_REMOVE: %s", strerror(errno));
	pagemap_expect(r, 0, PAGES, PAGES);
	write_and_stop(r, &m);
}

void copy_over_armed(void)
{
	enum { AT_ONCE = 8 };
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES / 2, 0, &m);

	for (size_t i = PAGES / 2; i < PAGES; i += AT_ONCE)
		copy_pages(r, i, AT_ONCE, false);
	pagemap_expect(r, 0, PAGES, PAGES / 2);
	write_pages(r, 0, PAGES / 2);
	point("written");
	monitor_stop(&m);
}

static void copy_over_markers(struct range *r, enum on_missing answer)
{
	struct monitor m = {.missing = answer};

	track(r, MODE_MISSING | MODE_WP, 0, &m);
	point("registered");
	arm_all(r);
	/* The answer to a write lets the page go; the answer to a read only erases the marker. */
	if (answer == COPY)
		read_pages(r, 0, r->pages);
	write_and_stop(r, &m);
}

void shmem_copy_marker(void)
{
	copy_over_markers(map_shmem(PAGES, NULL), COPY);
}

void shmem_copy_wp(void)
{
	copy_over_markers(map_shmem(PAGES, NULL), COPY_WP);
}

void hugetlb_copy_marker(void)
{
	copy_over_markers(map_hugetlb(BIG), COPY);
}

static void continue_over_markers(bool wp)
{
	struct monitor m = {.continue_wp = wp};
	char *other;
	struct range *r = map_shmem(PAGES, &other);

	track(r, MODE_MINOR | MODE_WP, UFFD_FEATURE_MINOR_SHMEM, &m);
	point("registered");
	for (size_t i = 0; i < PAGES; i++)
		*(volatile char *)(other + i * PAGE) = 1;
	point("populated");
	arm_all(r);
	if (!wp)
		read_pages(r, 0, r->pages);
	write_and_stop(r, &m);
}

void continue_marker(void)
{
	continue_over_markers(false);
}

void continue_wp(void)
{
	continue_over_markers(true);
}

void move(void)
{
	struct monitor m = {0};
	struct range *dst = map_anon(PAGES), *src = map_anon(PAGES);
	int uffd = uffd_open(UFFD_FEATURE_MOVE);

	uffd_register(uffd, UFFD_FEATURE_MOVE, dst, MODE_WP);
	uffd_register(uffd, UFFD_FEATURE_MOVE, src, MODE_WP);
	monitor_start(&m, uffd);
	point("registered");
	populate(src, 0, PAGES);
	point("populated");
	arm(dst, 0, PAGES);
	arm(src, 0, PAGES);
	point("armed");
	move_pages(dst, 0, src, 0, PAGES / 2);
	pagemap_expect(dst, 0, PAGES, 0);
	pagemap_expect(src, 0, PAGES, PAGES / 2);
	write_pages(src, 0, PAGES / 4);
	point("written");
	monitor_stop(&m);
}

/* Half of the source is holes, which move as holes: what arrives where, the result does not tell. */
void move_holes(void)
{
	struct monitor m = {0};
	struct range *dst = map_anon(PAGES);
	char *src = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int uffd = uffd_open(UFFD_FEATURE_MOVE);
	struct uffdio_move move = {
		.dst = (unsigned long)dst->start,
		.src = (unsigned long)src,
		.len = PAGES * PAGE,
		.mode = UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES,
	};

	uffd_register(uffd, UFFD_FEATURE_MOVE, dst, MODE_WP);
	monitor_start(&m, uffd);
	point("registered");
	if (src == MAP_FAILED || (madvise(src, PAGES * PAGE, MADV_NOHUGEPAGE) && errno != EINVAL))
		fail("the source: %s", strerror(errno));
	for (size_t i = 0; i < PAGES; i += 2)
		src[i * PAGE] = 1;
	arm(dst, 0, PAGES);
	point("armed");
	truth_disarmed(dst, 0, PAGES);
	truth_finding(dst, "undecided", PAGES);
	if (ioctl(uffd, UFFDIO_MOVE, &move) || move.move != (int64_t)move.len)
		fail("UFFDIO_MOVE: %s after %lld bytes", strerror(errno), (long long)move.move);
	for (size_t i = 0; i < PAGES; i++)
		*(volatile char *)(dst->start + i * PAGE) = 1;
	point("written");
	monitor_stop(&m);
}

/* Through a mapping that nobody watches: no event tells of it, and markers keep the protection. */
void hole_punched(void)
{
	struct monitor m = {0};
	char *other;
	struct range *r = map_shmem(PAGES, &other);

	track(r, MODE_WP, 0, &m);
	populate(r, 0, PAGES);
	point("populated");
	arm_all(r);
	truth_content_dropped(r, 0, PAGES / 2);
	if (madvise(other, PAGES / 2 * PAGE, MADV_REMOVE))
		fail("MADV_REMOVE: %s", strerror(errno));
	pagemap_expect(r, 0, PAGES, PAGES);
	write_and_stop(r, &m);
}

/* A guard region discards what was there, and leaves nothing behind. */
void guard_installed(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES, 0, &m);

	truth_content_dropped(r, 0, PAGES / 2);
	if (madvise(r->start, PAGES / 2 * PAGE, MADV_GUARD_INSTALL))
		unsupported("MADV_GUARD_INSTALL: %s", strerror(errno));
	truth_emptied(r, 0, PAGES / 2, CAUSE_DISCARDED);
	if (madvise(r->start, PAGES / 2 * PAGE, MADV_GUARD_REMOVE))
		fail("MADV_GUARD_REMOVE: %s", strerror(errno));
	write_and_stop(r, &m);
}

/* The protection stays in the page table, but the range is no longer asked for it. */
void huge_mode_dropped(void)
{
	struct monitor m = {0};
	struct range *r = map_huge(BIG);

	track(r, MODE_WP, 0, &m);
	point("registered");
	populate(r, 0, r->pages);
	if (huge_kb(r) != r->pages * PAGE / 1024)
		fail("only %lu kB came as huge pages", huge_kb(r));
	point("populated");
	arm_all(r);
	r = uffd_reregister(r, MODE_MISSING);
	for (size_t block = 0; block < r->pages; block += PAGES_PER_HUGE) {
		write_pages(r, block, 1);
		truth_huge(r, block, block);
		write_pages(r, block + 1, PAGES_PER_HUGE - 1);
	}
	if (huge_kb(r) != r->pages * PAGE / 1024)
		fail("only %lu kB are huge pages still", huge_kb(r));
	point("written");
	monitor_stop(&m);
}

static void protect_mapping(struct range *r, int protection)
{
	if (mprotect(r->start, r->pages * PAGE, protection))
		fail("mprotect: %s", strerror(errno));
}

void mprotected(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES, 0, &m);

	protect_mapping(r, PROT_READ);
	protect_mapping(r, PROT_READ | PROT_WRITE);
	pagemap_expect(r, 0, PAGES, PAGES);
	write_and_stop(r, &m);
}

/* Linux 5.10 protects only what it copies to where writing is allowed. */
void copy_wp_read_only(void)
{
	enum { AT_ONCE = 8 };
	struct monitor m = {0};
	struct range *r = track_wp(PAGES, 0, &m);

	protect_mapping(r, PROT_READ);
	for (size_t i = 0; i < PAGES; i += AT_ONCE)
		copy_pages(r, i, AT_ONCE, true);
	protect_mapping(r, PROT_READ | PROT_WRITE);
	point("armed");
	write_and_stop(r, &m);
}
