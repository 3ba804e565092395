// SPDX-License-Identifier: GPL-2.0-or-later
/* Memory other than small anonymous pages. */
#include "pagemap.h"
#include "run.h"
#include "scenarios.h"

#define BIG (8UL * 1024 * 1024 / PAGE)
#define HUGE_KB (HUGE_PAGE / 1024)

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
	arm(r, 0, BIG);
	point("armed");
	write_pages(r, 0, BIG);
	point("written");
	monitor_stop(&m);
}

/* Whether this write populated its whole huge page is the kernel's choice. */
static void write_blocks(struct range *r)
{
	for (size_t block = 0; block < BIG; block += PAGES_PER_HUGE) {
		unsigned long before = huge_kb(r);

		write_pages(r, block, 1);
		if (huge_kb(r) == before + HUGE_KB)
			truth_huge(r, block, block);
		pagemap_expect(r, block, PAGES_PER_HUGE, 0);
		write_pages(r, block + 1, PAGES_PER_HUGE - 1);
	}
	point("written");
}

void huge_hole(void)
{
	struct monitor m = {0};
	struct range *r = track_huge(&m);

	arm(r, 0, BIG);
	point("armed");
	write_blocks(r);
	if (!r->page[0].huge)
		fail("a write to a hole did not populate a huge page");
	monitor_stop(&m);
}

void huge_zero(void)
{
	struct monitor m = {0};
	struct range *r = track_huge(&m);

	arm(r, 0, BIG);
	point("armed");
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
	struct range *r = map_shmem(PAGES, NULL);

	track(r, MODE_WP, 0, &m);
	point("registered");
	populate(r, 0, PAGES / 2);
	point("populated");
	arm(r, 0, PAGES);
	point("armed");
	write_pages(r, 0, PAGES);
	point("written");
	monitor_stop(&m);
}

void shmem_missing(void)
{
	struct monitor m = {0};
	struct range *r = map_shmem(PAGES, NULL);

	track(r, MODE_MISSING, 0, &m);
	point("registered");
	write_pages(r, 0, PAGES);
	point("written");
	monitor_stop(&m);
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
	write_pages(r, 0, PAGES);
	point("written");
	monitor_stop(&m);
}

static struct range *map_four_huge(void)
{
	FILE *f = fopen("/proc/sys/vm/nr_hugepages", "r+");
	long pages = 0;

	/* Not root, or no hugetlb: mmap() then says so. */
	if (f) {
		if (fscanf(f, "%ld", &pages) == 1 && pages < 8) {
			rewind(f);
			fputs("8\n", f);
		}
		fclose(f);
	}
	return map_hugetlb(4 * PAGES_PER_HUGE);
}

void hugetlb_missing(void)
{
	struct monitor m = {0};
	struct range *r = map_four_huge();

	track(r, MODE_MISSING, 0, &m);
	point("registered");
	write_pages(r, 0, r->pages);
	point("written");
	monitor_stop(&m);
}

void hugetlb_wp(void)
{
	struct monitor m = {0};
	struct range *r = map_four_huge();

	track(r, MODE_WP, 0, &m);
	point("registered");
	populate(r, 0, r->pages / 2);
	point("populated");
	arm(r, 0, r->pages);
	point("armed");
	write_pages(r, 0, r->pages);
	point("written");
	monitor_stop(&m);
}
