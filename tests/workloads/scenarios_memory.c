// SPDX-License-Identifier: GPL-2.0-or-later
/* Memory other than small anonymous pages. */
#include <unistd.h>

#include "pagemap.h"
#include "run.h"
#include "scenarios.h"

static struct range *track_huge(struct monitor *m)
{
	struct range *r = map_huge(BIG);

	track(r, MODE_WP, 0, m);
	point("registered");
	return r;
}

void huge_populated(void)
{
	struct monitor m = {0};
	struct range *r = track_huge(&m);
	unsigned long kb;

	populate(r, 0, BIG);
	kb = huge_kb(r);
	if (kb != BIG * PAGE / 1024)
		fail("only %lu kB came as huge pages", kb);
	point("populated");
	arm_all(r);
	write_and_stop(r, &m);
}

void huge_hole(void)
{
	struct monitor m = {0};
	struct range *r = track_huge(&m);

	arm_all(r);
	write_blocks(r);
	if (!r->page[0].huge)
		fail("a write to a hole did not populate a huge page");
	monitor_stop(&m);
}

void huge_zero(void)
{
	struct monitor m = {0};
	struct range *r = track_huge(&m);

	arm_all(r);
	for (size_t block = 0; block < BIG; block += PAGES_PER_HUGE) {
		read_pages(r, block, 1);
		if (!page_is_present(r, block + 1) || huge_kb(r))
			fail("a read did not map the huge zero page");
		truth_read(r, block, PAGES_PER_HUGE);
	}
	write_blocks(r);
	monitor_stop(&m);
}

void shmem(void)
{
	struct monitor m = {0};
	struct range *r = track_armed_shmem(PAGES / 2, &m);

	write_and_stop(r, &m);
}

void shmem_missing(void)
{
	struct monitor m = {0};
	struct range *r = map_shmem(PAGES, NULL);

	track(r, MODE_MISSING, 0, &m);
	point("registered");
	write_and_stop(r, &m);
}

/* As vhost-user and DPDK have it: what is written there is told to nobody. */
void mapped_elsewhere(void)
{
	struct monitor m = {0};
	char *other;
	struct range *r = map_shmem(PAGES, &other);

	track(r, MODE_MISSING, 0, &m);
	for (size_t i = 0; i < PAGES / 4; i++)
		*(volatile char *)(other + i * PAGE) = 1;
	/* Long enough for a look at /proc. */
	sleep(10);
	truth_finding(r, "mapped-elsewhere", PAGES);
	write_and_stop(r, &m);
}

void minor(void)
{
	struct monitor m = {0};
	char *other;
	struct range *r = map_shmem(PAGES, &other);

	track(r, MODE_MINOR, UFFD_FEATURE_MINOR_SHMEM, &m);
	point("registered");
	for (size_t i = 0; i < PAGES; i++)
		*(volatile char *)(other + i * PAGE) = 1;
	point("populated");
	read_pages(r, 0, PAGES / 2);
	write_and_stop(r, &m);
}

void hugetlb_missing(void)
{
	struct monitor m = {0};
	struct range *r = map_hugetlb(BIG);

	track(r, MODE_MISSING, 0, &m);
	point("registered");
	write_and_stop(r, &m);
}

void hugetlb_wp(void)
{
	struct monitor m = {0};
	struct range *r = map_hugetlb(BIG);

	track(r, MODE_WP, 0, &m);
	point("registered");
	populate(r, 0, r->pages / 2);
	point("populated");
	arm_all(r);
	write_and_stop(r, &m);
}
