// SPDX-License-Identifier: GPL-2.0-or-later
/* A tracker that protects memory before anything is there: empty pages have nothing to protect. */
#include "tracker.h"

static struct tracker tracker;

int main(int argc, char **argv)
{
	int fixed = argc > 1 && !strcmp(argv[1], "--fixed");

	track(&tracker, UFFDIO_REGISTER_MODE_WP);
	/* A quarter of it is in use already. */
	memset(tracker.memory, 1, PAGES / 4 * PAGE);
	/* The remedy: each page is there, be it the zero page, before it is protected. */
	if (fixed)
		for (size_t page = 0; page < PAGES; page++)
			(void)*(volatile char *)(tracker.memory + page * PAGE);
	protect(&tracker, tracker.memory, PAGES, 1);
	write_all(&tracker);
	return told(&tracker);
}
