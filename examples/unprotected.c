// SPDX-License-Identifier: GPL-2.0-or-later
/* Memory that arrives page by page, and is tracked from then on: a page that is put there unprotected is not. */
#include "tracker.h"

static struct tracker tracker;
static int fixed;
static char content[PAGE] __attribute__((aligned(PAGE)));

static void arrive(struct tracker *tracker, char *page)
{
	struct uffdio_copy copy = {
		.dst = (unsigned long)page,
		.src = (unsigned long)content,
		.len = PAGE,
		/* The remedy: it is protected before anybody can write to it. */
		.mode = fixed ? UFFDIO_COPY_MODE_WP : 0,
	};

	must(!ioctl(tracker->uffd, UFFDIO_COPY, &copy) || errno == EEXIST, "UFFDIO_COPY");
}

int main(int argc, char **argv)
{
	fixed = argc > 1 && !strcmp(argv[1], "--fixed");
	tracker.fill = arrive;
	track(&tracker, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
	protect(&tracker, tracker.memory, PAGES, 1);
	/* Half of it is read before it is written; that brings it. */
	for (size_t page = 0; page < PAGES; page += 2)
		(void)*(volatile char *)(tracker.memory + page * PAGE);
	write_all(&tracker);
	return told(&tracker);
}
