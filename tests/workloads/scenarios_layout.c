// SPDX-License-Identifier: GPL-2.0-or-later
/* Ranges armed, released, cut, replaced or multiplied. */
#include "pagemap.h"
#include "run.h"
#include "scenarios.h"

void part_armed(void)
{
	struct monitor m = {0};
	struct range *r = track_wp(PAGES, 0, &m);

	/* Every other page, so that each third holds pages of both kinds. */
	populate_every(r, 0, PAGES, 2);
	point("populated");
	arm(r, PAGES / 3, PAGES / 3);
	point("armed");
	write_and_stop(r, &m);
}

void part_released(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES, 0, &m);

	release(r, PAGES / 3, PAGES / 3);
	pagemap_expect(r, 0, PAGES, PAGES - PAGES / 3);
	write_and_stop(r, &m);
}

void part_unregistered(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES / 2, 0, &m);

	uffd_unregister_from(r, PAGES * 3 / 4);
	write_and_stop(r, &m);
}

void unmapped(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES, 0, &m);

	unmap_from(r, PAGES * 3 / 4);
	truth_finding(r, "unmapped-without-event", PAGES / 4);
	write_pages(r, 0, PAGES * 3 / 4);
	point("written");
	monitor_stop(&m);
}

void reregistered(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES, 0, &m);

	write_and_stop(uffd_reregister(r, MODE_MISSING), &m);
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

void map_fixed(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES, 0, &m);

	map_over(r, PAGES / 2, PAGES / 2);
	truth_finding(r, "unmapped-without-event", PAGES / 2);
	write_and_stop(r, &m);
}

void unmapped_event(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES, UFFD_FEATURE_EVENT_UNMAP, &m);

	unmap_from(r, PAGES * 3 / 4);
	write_pages(r, 0, PAGES * 3 / 4);
	point("written");
	monitor_stop(&m);
	if (m.events != 1)
		fail("%u events for one munmap", m.events);
}

void remapped(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES, 0, &m);
	char *to = move_mapping(r);

	truth_finding(r, "mremap-without-event", PAGES);
	for (size_t i = 0; i < PAGES; i++)
		*(volatile char *)(to + i * PAGE) = 2;
	point("written");
	monitor_stop(&m);
}

void remapped_event(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES, UFFD_FEATURE_EVENT_REMAP, &m);

	r = truth_find(move_mapping(r));
	pagemap_expect(r, 0, PAGES, PAGES);
	write_and_stop(r, &m);
	if (m.events != 1)
		fail("%u events for one mremap", m.events);
}

void remapped_kept(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES, 0, &m);

	move_content(r);
	truth_finding(r, "mremap-without-event", PAGES);
	write_and_stop(r, &m);
}

void grown(void)
{
	struct monitor m = {0};
	struct range *r = map_anon_with_room(PAGES, PAGES / 4);

	track(r, MODE_WP, 0, &m);
	point("registered");
	populate(r, 0, PAGES);
	point("populated");
	arm_all(r);
	grow(r, PAGES / 4);
	truth_finding(r, "grown", PAGES / 4);
	write_and_stop(r, &m);
}

/* Registered once more by uffd, armed by nobody: what was armed before may still send messages. */
static void write_unarmed(struct range *r, char *start, int uffd, struct monitor *m)
{
	struct range *again = truth_new_range(start, r->pages, 0, r->memory);
	size_t stale = 0;

	uffd_register(uffd, 0, again, MODE_WP);
	write_and_stop(again, m);
	for (size_t i = 0; i < again->pages; i++)
		stale += again->page[i].notified;
	if (stale)
		truth_finding(again, "stale-protection", stale);
}

void stale_unregister(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES, 0, &m);

	uffd_unregister_from(r, 0);
	write_unarmed(r, r->start, r->uffd, &m);
}

void stale_close(void)
{
	struct monitor old = {0}, new = {0};
	struct range *r = track_armed(PAGES, PAGES, 0, &old);
	int uffd;

	monitor_stop(&old);
	uffd_close(r->uffd);
	uffd = uffd_open(0);
	monitor_start(&new, uffd);
	write_unarmed(r, r->start, uffd, &new);
}

void stale_remap(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES, 0, &m);
	char *to = move_mapping(r);

	truth_finding(r, "mremap-without-event", PAGES);
	write_unarmed(r, to, r->uffd, &m);
}

void wp_dropped(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES, 0, &m);

	uffd_reregister(r, MODE_MISSING);
	monitor_stop(&m);
}

void re_registered_wp(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES, 0, &m);

	r = uffd_reregister(r, MODE_MISSING | MODE_WP);
	pagemap_expect(r, 0, PAGES, PAGES);
	write_and_stop(r, &m);
}

void re_registered_subset(void)
{
	struct monitor m = {0};
	struct range *r = map_anon(PAGES);

	track(r, MODE_MISSING | MODE_WP, 0, &m);
	point("registered");
	populate(r, 0, PAGES);
	point("populated");
	arm_all(r);
	uffd_register_again(r, MODE_MISSING);
	pagemap_expect(r, 0, PAGES, PAGES);
	write_and_stop(r, &m);
}
