// SPDX-License-Identifier: GPL-2.0-or-later
/* MISSING messages, and what their answers do to the protection. */
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
