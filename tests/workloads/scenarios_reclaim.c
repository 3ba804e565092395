// SPDX-License-Identifier: GPL-2.0-or-later
/* Pages that leave memory for swap, and pages that ksmd merges. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/swap.h>
#include <time.h>
#include <unistd.h>

#include "pagemap.h"
#include "run.h"
#include "scenarios.h"
#include "settings.h"

static const char *swap_device(void)
{
	const char *device = getenv("UFFDTRACE_SWAP");

	if (!device)
		unsupported("UFFDTRACE_SWAP names no swap device");
	return device;
}

static void swap_on(void)
{
	/* EBUSY: a scenario that failed left it on. */
	if (swapon(swap_device(), 0) && errno != EBUSY)
		fail("swapon: %s", strerror(errno));
}

static void swap_off(void)
{
	if (swapoff(swap_device()))
		fail("swapoff: %s", strerror(errno));
}

static void swap_out(struct range *r)
{
	page_out(r, 0, r->pages);
	if (pagemap_swapped(r, 0, r->pages) != r->pages)
		fail("only %zu pages are in swap", pagemap_swapped(r, 0, r->pages));
}

static struct range *track_swappable(struct monitor *m)
{
	struct range *r;

	swap_on();
	stay_on_one_cpu();
	r = track_wp(PAGES, 0, m);
	populate(r, 0, PAGES);
	point("populated");
	return r;
}

void swapped(void)
{
	struct monitor m = {0};
	struct range *r = track_swappable(&m);

	arm_all(r);
	swap_out(r);
	pagemap_expect(r, 0, PAGES, PAGES);
	read_pages(r, 0, PAGES / 2);
	write_and_stop(r, &m);
	swap_off();
}

void swapped_before_arm(void)
{
	struct monitor m = {0};
	struct range *r = track_swappable(&m);

	swap_out(r);
	arm_all(r);
	write_and_stop(r, &m);
	swap_off();
}

void huge_paged_out(void)
{
	struct monitor m = {0};
	struct range *r;

	swap_on();
	stay_on_one_cpu();
	r = map_huge(2 * PAGES_PER_HUGE);
	track(r, MODE_WP, 0, &m);
	point("registered");
	populate(r, 0, r->pages);
	if (huge_kb(r) != r->pages * PAGE / 1024)
		fail("only %lu kB came as huge pages", huge_kb(r));
	point("populated");
	arm_all(r);
	swap_out(r);
	pagemap_expect(r, 0, r->pages, r->pages);
	write_and_stop(r, &m);
	swap_off();
}

/* Linux 5.10 forgets the protection of what it brings back. */
void swapped_off(void)
{
	struct monitor m = {0};
	struct range *r = track_swappable(&m);

	arm_all(r);
	swap_out(r);
	swap_off();
	truth_dropped(r, 0, PAGES, CAUSE_SWAPOFF);
	write_and_stop(r, &m);
}

#define MERGED 64

static void set_ksm(const char *path, long value)
{
	if (!setting_set(path, value))
		unsupported("%s cannot be set", path);
}

static void fill_alike(struct range *r)
{
	struct timespec now;

	/* Like no other page of this machine. */
	clock_gettime(CLOCK_MONOTONIC, &now);
	for (size_t i = 0; i < MERGED; i++) {
		long *words = (long *)(r->start + i * PAGE);

		words[0] = getpid();
		words[1] = now.tv_nsec;
		words[2] = now.tv_sec;
	}
	point("populated");
}

static struct range *track_identical(struct monitor *m)
{
	struct range *r = track_wp(MERGED, 0, m);

	fill_alike(r);
	return r;
}

/* Until all pages are one. ksmd stops then, so that nothing merges later. */
static void merge(struct range *r)
{
	if (madvise(r->start, r->pages * PAGE, MADV_MERGEABLE))
		unsupported("MADV_MERGEABLE: %s", strerror(errno));
	set_ksm(KSM_SLEEP, 1);
	set_ksm(KSM_PAGES, 10000);
	set_ksm(KSM_RUN, 1);
	for (int tries = 0; !pagemap_one_frame(r, 0, MERGED); tries++) {
		if (tries == 2000)
			fail("ksmd has not merged the pages");
		usleep(5000);
	}
	set_ksm(KSM_RUN, 0);
}

/* The merge protects the first page's frame with its bit; the others lose theirs. */
static struct range *arm_and_merge(struct range *r)
{
	bool protected[r->pages];

	arm_all(r);
	merge(r);
	pagemap_protected(r, 0, r->pages, protected);
	for (size_t i = 0; i < r->pages; i++)
		if (!protected[i])
			truth_dropped(r, i, 1, CAUSE_KSM_MERGE);
	return r;
}

static struct range *merge_armed(struct monitor *m)
{
	return arm_and_merge(track_identical(m));
}

/* ksmd splits it first. */
void huge_ksm_merged(void)
{
	struct monitor m = {0};
	struct range *r = map_huge(PAGES_PER_HUGE);

	track(r, MODE_WP, 0, &m);
	point("registered");
	fill_alike(r);
	/* As many sharers as ksmd puts up with, and pages that are like no other. */
	for (size_t i = MERGED; i < r->pages; i++)
		*(volatile long *)(r->start + i * PAGE + sizeof(long)) = (long)(getpid() + i);
	if (huge_kb(r) != r->pages * PAGE / 1024)
		fail("only %lu kB came as huge pages", huge_kb(r));
	arm_and_merge(r);
	write_and_stop(r, &m);
}

void ksm_merge(void)
{
	struct monitor m = {0};
	struct range *r = merge_armed(&m);

	write_and_stop(r, &m);
}

void ksm_unwritten(void)
{
	struct monitor m = {0};
	struct range *r = merge_armed(&m);

	/* One keeps its bit; which one, only pagemap could say. */
	if (!kernel_tells_protection())
		truth_finding(r, "exposed", MERGED - 1);
	monitor_stop(&m);
}

/*
 * Each page gets one of its own again, without the protection: up to 6.1 by a write
 * fault that leaves it writable, so that no later write faults; since 6.2
 * (6cce3314b928) unshared, and read-only.
 */
void ksm_unmerged(void)
{
	struct monitor m = {0};
	struct range *r = merge_armed(&m);
	struct rusage before, after;

	if (madvise(r->start, r->pages * PAGE, MADV_UNMERGEABLE))
		fail("MADV_UNMERGEABLE: %s", strerror(errno));
	for (size_t i = 0; i < r->pages; i++) {
		getrusage(RUSAGE_THREAD, &before);
		*(volatile char *)(r->start + i * PAGE) = 1;
		getrusage(RUSAGE_THREAD, &after);
		if (r->page[i].dropped && after.ru_minflt == before.ru_minflt)
			truth_blind(r, i, CAUSE_KSM_MERGE);
		truth_written(r, i, 1, 1);
	}
	point("written");
	monitor_stop(&m);
}

void ksm_merged_first(void)
{
	struct monitor m = {0};
	struct range *r = track_identical(&m);

	merge(r);
	arm_all(r);
	write_and_stop(r, &m);
}
