// SPDX-License-Identifier: GPL-2.0-or-later
/* Ranges armed, released, cut, replaced or multiplied. */
#include "pagemap.h"
#include "run.h"
#include "scenarios.h"

static struct range *track_wp(size_t pages, struct monitor *m)
{
	struct range *r = map_anon(pages);

	track(r, MODE_WP, 0, m);
	point("registered");
	return r;
}

void part_armed(void)
{
	struct monitor m = {0};
	struct range *r = track_wp(PAGES, &m);

	/* Every other page, so that each third holds pages of both kinds. */
	populate_every(r, 0, PAGES, 2);
	point("populated");
	arm(r, PAGES / 3, PAGES / 3);
	point("armed");
	write_pages(r, 0, PAGES);
	point("written");
	monitor_stop(&m);
}

void part_released(void)
{
	struct monitor m = {0};
	struct range *r = track_wp(PAGES, &m);

	populate(r, 0, PAGES);
	point("populated");
	arm(r, 0, PAGES);
	point("armed");
	release(r, PAGES / 3, PAGES / 3);
	pagemap_expect(r, 0, PAGES, PAGES - PAGES / 3);
	write_pages(r, 0, PAGES);
	point("written");
	monitor_stop(&m);
}

void part_unregistered(void)
{
	struct monitor m = {0};
	struct range *r = track_wp(PAGES, &m);

	populate(r, 0, PAGES / 2);
	point("populated");
	arm(r, 0, PAGES);
	point("armed");
	uffd_unregister_from(r, PAGES * 3 / 4);
	write_pages(r, 0, PAGES);
	point("written");
	monitor_stop(&m);
}

void unmapped(void)
{
	struct monitor m = {0};
	struct range *r = track_wp(PAGES, &m);

	populate(r, 0, PAGES);
	point("populated");
	arm(r, 0, PAGES);
	point("armed");
	unmap_from(r, PAGES * 3 / 4);
	write_pages(r, 0, PAGES * 3 / 4);
	point("written");
	monitor_stop(&m);
}

void reregistered(void)
{
	struct monitor m = {0};
	struct range *r = track_wp(PAGES, &m);

	populate(r, 0, PAGES);
	point("populated");
	arm(r, 0, PAGES);
	point("armed");
	r = uffd_reregister(r, MODE_MISSING);
	write_pages(r, 0, PAGES);
	point("written");
	monitor_stop(&m);
}

void small_ranges(void)
{
	enum { RANGES = 400, SIZE = 4 };
	struct range *r[RANGES];
	struct monitor m = {0};
	int uffd = uffd_open(0);

	for (int i = 0; i < RANGES; i++) {
		r[i] = map_anon(SIZE);
		uffd_register(uffd, 0, r[i], MODE_WP);
	}
	monitor_start(&m, uffd);
	point("registered");
	for (int i = 0; i < RANGES; i++)
		populate(r[i], 0, SIZE / 2);
	point("populated");
	for (int i = 0; i < RANGES; i++)
		arm(r[i], 0, SIZE);
	point("armed");
	for (int i = 0; i < RANGES; i++)
		write_pages(r[i], 0, SIZE);
	point("written");
	monitor_stop(&m);
}

void two_userfaultfds(void)
{
	struct monitor m[2] = {0};
	struct range *r[2] = {map_anon(PAGES), map_anon(PAGES)};

	for (int i = 0; i < 2; i++)
		track(r[i], MODE_WP, 0, &m[i]);
	point("registered");
	/* Differently full, so that mixing the two up shows. */
	populate(r[0], 0, PAGES);
	populate(r[1], 0, PAGES / 2);
	point("populated");
	for (int i = 0; i < 2; i++)
		arm(r[i], 0, PAGES);
	point("armed");
	touch_together(
		(struct work[]){
			{.range = r[0], .pages = PAGES},
			{.range = r[1], .pages = PAGES},
		},
		2);
	point("written");
	for (int i = 0; i < 2; i++)
		monitor_stop(&m[i]);
}
