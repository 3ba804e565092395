// SPDX-License-Identifier: GPL-2.0-or-later
/* A child whose memory is watched like its parent's, and a process that becomes another program. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "run.h"
#include "scenarios.h"

static pid_t fork_writer(const struct range *r, int go)
{
	pid_t pid = fork();
	char c;

	if (pid < 0)
		fail("fork: %s", strerror(errno));
	if (pid)
		return pid;
	if (read(go, &c, 1) != 1)
		_exit(1);
	for (size_t i = 0; i < r->pages; i++)
		*(volatile char *)(r->start + i * PAGE) = 3;
	_exit(0);
}

/* The parent has written, noticed and lost, a part of its pages; the child writes all of its own. */
void fork_followed(void)
{
	struct monitor m = {.keep_forked = true}, of_child = {0};
	struct range *r = track_armed(PAGES, PAGES * 3 / 4, UFFD_FEATURE_EVENT_FORK, &m), *copy;
	int go[2], status;
	pid_t pid;

	if (pipe(go))
		fail("pipe: %s", strerror(errno));
	write_pages(r, 0, PAGES / 8);
	write_pages(r, PAGES * 3 / 4, PAGES / 8);
	pid = fork_writer(r, go[0]);
	monitor_await(&m, 1);
	copy = truth_forked(r, pid, m.forked);
	monitor_start(&of_child, m.forked);
	if (write(go[1], "", 1) != 1)
		fail("pipe: %s", strerror(errno));
	if (waitpid(pid, &status, 0) != pid || status)
		fail("the forked child ended with %#x", status);
	truth_written(copy, 0, PAGES, 1);
	write_and_stop(r, &m);
	monitor_stop(&of_child);
}

void exec_away(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES / 2, 0, &m);

	write_and_stop(r, &m);
	/* The new image has none of it. */
	truth_unwatched(r, 0, PAGES);
	run_on();
}

void exec_on(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES * 3 / 4, 0, &m);

	write_and_stop(r, &m);
}
