// SPDX-License-Identifier: GPL-2.0-or-later
/* A balloon gives memory back while it is tracked: the protection goes with the pages. */
#include "tracker.h"

static struct tracker tracker;

static void inflate(size_t first, size_t pages)
{
	must(!madvise(tracker.memory + first * PAGE, pages * PAGE, MADV_DONTNEED), "madvise");
}

int main(int argc, char **argv)
{
	int fixed = argc > 1 && !strcmp(argv[1], "--fixed");

	track(&tracker, UFFDIO_REGISTER_MODE_WP);
	memset(tracker.memory, 1, PAGES * PAGE);
	protect(&tracker, tracker.memory, PAGES, 1);
	/* The remedy: the balloon waits until nothing is protected. */
	if (!fixed)
		inflate(256, 128);
	write_all(&tracker);
	if (fixed)
		inflate(256, 128);
	return told(&tracker);
}
