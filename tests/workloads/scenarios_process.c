// SPDX-License-Identifier: GPL-2.0-or-later
/* Writes by the kernel and by other processes, and a fork in between. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pagemap.h"
#include "run.h"
#include "scenarios.h"

#define CHUNK 16

static void *read_data(void *arg)
{
	struct range *r = arg;
	int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		fail("/dev/urandom: %s", strerror(errno));
	for (size_t i = 0; i < r->pages; i += CHUNK)
		if (read(fd, r->start + i * PAGE, CHUNK * PAGE) != (ssize_t)(CHUNK * PAGE))
			fail("short read of /dev/urandom");
	close(fd);
	truth_written(r, 0, r->pages, 1);
	return NULL;
}

void kernel_write(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES / 2, 0, &m);

	thread_join(thread_start(read_data, r));
	point("written");
	monitor_stop(&m);
}

static void remote_writer(pid_t target, int from, int to)
{
	size_t bytes = CHUNK * PAGE;
	struct iovec local = {malloc(bytes), bytes};
	struct iovec remote = {NULL, bytes};
	char *start;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (!local.iov_base)
		_exit(1);
	memset(local.iov_base, 4, bytes);
	if (read(from, &start, sizeof(start)) != sizeof(start))
		_exit(1);
	for (size_t i = 0; i < PAGES; i += CHUNK) {
		remote.iov_base = start + i * PAGE;
		if (process_vm_writev(target, &local, 1, &remote, 1, 0) != (ssize_t)bytes)
			_exit(1);
	}
	if (write(to, "", 1) != 1)
		_exit(1);
	_exit(0);
}

void remote_write(void)
{
	struct monitor m = {0};
	int there[2], back[2];
	pid_t target = getpid(), helper;
	struct range *r;
	int status;
	char done;

	if (pipe(there) || pipe(back))
		fail("pipe: %s", strerror(errno));
	/* Before the mapping: a later fork would share its pages. */
	helper = fork();
	if (helper < 0)
		fail("fork: %s", strerror(errno));
	if (!helper) {
		close(there[1]);
		remote_writer(target, there[0], back[1]);
	}
	close(back[1]);
	r = track_armed(PAGES, PAGES / 2, 0, &m);
	if (write(there[1], &r->start, sizeof(r->start)) != sizeof(r->start))
		fail("pipe: %s", strerror(errno));
	if (read(back[0], &done, 1) != 1)
		fail("process_vm_writev failed in the helper");
	if (waitpid(helper, &status, 0) != helper || status)
		fail("the helper ended with %#x", status);
	truth_written(r, 0, PAGES, 1);
	point("written");
	monitor_stop(&m);
}

static pid_t fork_and_wait(void)
{
	pid_t pid = fork();
	int status;

	if (pid < 0)
		fail("fork: %s", strerror(errno));
	if (!pid)
		_exit(0);
	if (waitpid(pid, &status, 0) != pid || status)
		fail("the forked child ended with %#x", status);
	return pid;
}

void fork_wp(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES, 0, &m);

	fork_and_wait();
	truth_finding(r, "fork-without-event", 1);
	pagemap_expect(r, 0, PAGES, PAGES);
	write_and_stop(r, &m);
}

void shmem_fork(void)
{
	struct monitor m = {0};
	struct range *r = track_armed_shmem(PAGES / 2, &m);

	fork_and_wait();
	truth_finding(r, "fork-without-event", 1);
	pagemap_expect(r, 0, PAGES, PAGES);
	write_and_stop(r, &m);
}

void fork_event(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES, UFFD_FEATURE_EVENT_FORK, &m);
	pid_t pid;

	pid = fork_and_wait();
	monitor_await(&m, 1);
	truth_forked(r, pid, -1);
	pagemap_expect(r, 0, PAGES, PAGES);
	write_and_stop(r, &m);
}
