// SPDX-License-Identifier: GPL-2.0-or-later
/* Monitors that answer late, wrongly or never, and faults that cannot wait for one. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pagemap.h"
#include "run.h"
#include "scenarios.h"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

#define SOME 64
#define SLEEPERS 3

/* Static: some sleep on when their scenario has ended. */
static struct work work[SLEEPERS];
static pthread_t sleeper[SLEEPERS];

/* Without a monitor. */
static struct range *armed_on(int uffd)
{
	struct range *r = map_anon(SOME);

	uffd_register(uffd, 0, r, MODE_WP);
	point("registered");
	populate(r, 0, SOME);
	point("populated");
	arm_all(r);
	return r;
}

/* Threads that write one page each: from page `first` on, up to page `end`. */
static void start_writers(struct range *r, size_t first, size_t end)
{
	for (size_t i = first; i < end; i++) {
		work[i] = (struct work){.range = r, .first = i, .pages = 1};
		sleeper[i] = thread_start(touch, &work[i]);
	}
}

static void join_writers(size_t threads)
{
	for (size_t i = 0; i < threads; i++)
		thread_join(sleeper[i]);
}

static void until_unread(int uffd, unsigned long faults)
{
	while (uffd_unread(uffd) != faults)
		usleep(2000);
}

static void until_read(const struct monitor *m, unsigned int messages)
{
	while (m->messages < messages)
		usleep(2000);
}

/* Returns with the threads still asleep in their faults. */
void never_read(void)
{
	struct range *r = armed_on(uffd_open(0));

	start_writers(r, 0, SLEEPERS);
	until_unread(r->uffd, SLEEPERS);
	usleep(1500000);
	r->killed = SLEEPERS;
	truth_finding(r, "killed-in-fault", SLEEPERS);
	truth_finding(r, "never-read", SLEEPERS);
}

#define SERVED 4

static bool answer_then_write(struct monitor *m, const struct uffd_msg *msg, struct range *r, size_t i)
{
	(void)m;
	(void)msg;
	release(r, i, 1);
	if (i == SERVED - 1)
		*(volatile char *)(r->start + SERVED * PAGE) = 2;
	return true;
}

/* Returns with the monitor asleep in its own fault. */
void monitor_fault(void)
{
	static struct monitor m = {.on_message = answer_then_write};
	struct range *r = track_armed(SOME, SOME, 0, &m);

	write_pages(r, 0, SERVED);
	point("written");
	until_unread(r->uffd, 1);
	usleep(1500000);
	r->killed = 1;
	truth_finding(r, "killed-in-fault", 1);
	truth_finding(r, "monitor-fault", 1);
}

static bool read_then_answer(struct monitor *m, const struct uffd_msg *msg, struct range *r, size_t i)
{
	(void)m;
	(void)msg;
	(void)*(volatile char *)(r->start + i * PAGE);
	return false;
}

/* As a snapshot does: the monitor reads its range, others of its process write. */
void monitor_process_fault(void)
{
	struct monitor m = {.on_message = read_then_answer};
	struct range *r = track_armed(SOME, SOME, 0, &m);

	truth_no_finding(r, "monitor-fault");
	write_and_stop(r, &m);
}

void slow_service(void)
{
	struct monitor m = {.delay_us = 80000};
	struct range *r = track_armed(20, 20, 0, &m);

	truth_finding(r, "slow-service", 0);
	write_and_stop(r, &m);
}

enum { CIRCLES = 4 };

/* Protects the page anew and wakes the writer, who only comes again; lets it go in the end. */
static bool answer_in_circles(struct monitor *m, const struct uffd_msg *msg, struct range *r, size_t i)
{
	(void)m;
	(void)msg;
	if (!r || r->page[i].messages[KIND_WP] > CIRCLES)
		return false;
	arm(r, i, 1);
	wake(r, i);
	return true;
}

void answered_in_circles(void)
{
	struct monitor m = {.on_message = answer_in_circles};
	struct range *r = track_armed(SOME, SOME, 0, &m);

	truth_finding(r, "answered-in-circles", SOME * CIRCLES);
	write_and_stop(r, &m);
}

/* So many that a moment's delay by the scheduler is below the 99th percentile. */
void prompt_service(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(500, 500, 0, &m);

	truth_no_finding(r, "slow-service");
	write_and_stop(r, &m);
}

/* Of two faults the message was read, of the third not. */
void closed_with_waiters(void)
{
	struct monitor m = {.wp = KEEP};
	struct range *r = track_armed(SOME, SOME, 0, &m);

	start_writers(r, 0, SLEEPERS - 1);
	until_read(&m, SLEEPERS - 1);
	monitor_stop(&m);
	start_writers(r, SLEEPERS - 1, SLEEPERS);
	until_unread(r->uffd, 1);
	uffd_close(r->uffd);
	join_writers(SLEEPERS);
	point("written");
	truth_finding(r, "closed-with-waiters", SLEEPERS);
}

void closed_after(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(SOME, SOME, 0, &m);

	write_and_stop(r, &m);
	uffd_close(r->uffd);
	write_pages(r, 0, SOME);
	truth_no_finding(r, "closed-with-waiters");
}

void unregistered_with_waiters(void)
{
	enum { WAITERS = 2 };
	struct monitor m = {.wp = KEEP};
	struct range *r = track_armed(SOME, SOME, 0, &m);

	start_writers(r, 0, WAITERS);
	until_read(&m, WAITERS);
	monitor_stop(&m);
	uffd_unregister_from(r, 0);
	usleep(50000);
	for (size_t i = 0; i < WAITERS; i++)
		if (r->page[i].written)
			fail("UFFDIO_UNREGISTER woke a thread");
	for (size_t i = 0; i < WAITERS; i++)
		wake(r, i);
	join_writers(WAITERS);
	point("written");
	truth_finding(r, "unregistered-with-waiters", WAITERS);
}

void unregistered_after(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(SOME, SOME, 0, &m);

	write_and_stop(r, &m);
	uffd_unregister_from(r, 0);
	write_pages(r, 0, SOME);
	truth_no_finding(r, "unregistered-with-waiters");
}

#define REFUSED 3

/* Of a write through /proc/self/mem nothing can sleep, so it fails. */
void cannot_wait(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(SOME, SOME, 0, &m);
	int mem = open("/proc/self/mem", O_RDWR | O_CLOEXEC);

	if (mem < 0)
		fail("/proc/self/mem: %s", strerror(errno));
	for (size_t i = 0; i < REFUSED; i++)
		if (pwrite(mem, "", 1, (off_t)(r->start + i * PAGE)) != -1 || errno != EIO)
			fail("a write through /proc/self/mem did not fail with EIO");
	close(mem);
	truth_finding(r, "cannot-wait", 0);
	write_and_stop(r, &m);
}

static int open_user_mode_only(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);

	if (uffd < 0 && errno == EINVAL)
		unsupported("userfaultfd() refuses UFFD_USER_MODE_ONLY");
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		fail("userfaultfd: %s", strerror(errno));
	return uffd;
}

void user_mode_only(void)
{
	struct monitor m = {0};
	struct range *r = armed_on(open_user_mode_only());
	int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);

	if (zero < 0)
		fail("/dev/zero: %s", strerror(errno));
	monitor_start(&m, r->uffd);
	for (size_t i = 0; i < REFUSED; i++)
		if (read(zero, r->start + i * PAGE, PAGE) != -1 || errno != EFAULT)
			fail("a write by the kernel did not fail with EFAULT");
	close(zero);
	truth_finding(r, "cannot-wait", 0);
	write_and_stop(r, &m);
}

static sigjmp_buf before_access;

static void on_bus_error(int signal)
{
	(void)signal;
	siglongjmp(before_access, 1);
}

static bool can_write(char *address)
{
	if (sigsetjmp(before_access, 1))
		return false;
	*(volatile char *)address = 2;
	return true;
}

/* A monitor without a thread: the one that gets SIGBUS fills the page itself. */
void sigbus_feature(void)
{
	struct sigaction action = {.sa_handler = on_bus_error};
	struct range *r = map_anon(SOME);

	if (sigaction(SIGBUS, &action, NULL))
		fail("sigaction: %s", strerror(errno));
	uffd_register(uffd_open(UFFD_FEATURE_SIGBUS), UFFD_FEATURE_SIGBUS, r, MODE_MISSING);
	point("registered");
	for (size_t i = 0; i < REFUSED; i++) {
		if (can_write(r->start + i * PAGE))
			fail("a write to an empty page brought no SIGBUS");
		copy_page(r, i, false);
		if (!can_write(r->start + i * PAGE))
			fail("a write to a filled page brought SIGBUS");
	}
	truth_written(r, 0, REFUSED, 1);
	point("written");
	truth_finding(r, "signals", REFUSED);
}

#define TOO_MUCH 4

/* The last chunk: longer than what is left of the mapping. */
static bool copy_too_much(struct monitor *m, const struct uffd_msg *msg, struct range *r, size_t i)
{
	struct uffdio_copy arg = {
		.dst = (unsigned long)r->start + (i + 2 - TOO_MUCH) * PAGE,
		.src = (unsigned long)zeroes,
		.len = TOO_MUCH * PAGE,
	};

	(void)m;
	(void)msg;
	for (int tries = 0; tries < TOO_MUCH; tries++)
		if (!ioctl(r->uffd, UFFDIO_COPY, &arg) || errno != ENOENT)
			fail("UFFDIO_COPY beyond the mapping: %s", strerror(errno));
	return true;
}

static struct range *left_asleep(struct monitor *m, size_t page)
{
	struct range *r = map_anon(SOME);

	track(r, MODE_MISSING, 0, m);
	point("registered");
	work[0] = (struct work){.range = r, .first = page, .pages = 1};
	thread_start(touch, &work[0]);
	until_read(m, 1);
	usleep(1500000);
	r->killed = 1;
	truth_finding(r, "killed-in-fault", 1);
	return r;
}

/* Returns with the thread still asleep in its fault. */
void answer_failed(void)
{
	static struct monitor m = {.on_message = copy_too_much};
	struct range *r = left_asleep(&m, SOME - 1);

	truth_finding(r, "answer-failed", 1);
	truth_finding(r, "call-failed", TOO_MUCH);
}

/* The page is there, and the second copy, which was to wake the thread, says so and does not. */
static bool copy_twice(struct monitor *m, const struct uffd_msg *msg, struct range *r, size_t i)
{
	struct uffdio_copy arg = {
		.dst = (unsigned long)r->start + i * PAGE,
		.src = (unsigned long)zeroes,
		.len = PAGE,
		.mode = UFFDIO_COPY_MODE_DONTWAKE,
	};

	(void)m;
	(void)msg;
	if (ioctl(r->uffd, UFFDIO_COPY, &arg))
		fail("UFFDIO_COPY: %s", strerror(errno));
	arg.mode = 0;
	if (!ioctl(r->uffd, UFFDIO_COPY, &arg) || errno != EEXIST)
		fail("the second UFFDIO_COPY: %s", strerror(errno));
	return true;
}

/* Returns with the thread still asleep in its fault. */
void eexist_asleep(void)
{
	static struct monitor m = {.on_message = copy_twice};
	struct range *r = left_asleep(&m, 3);

	truth_finding(r, "eexist-asleep", 1);
	truth_finding(r, "eexist", 1);
}

/* It answers POLLERR, whatever waits. */
void blocking_poll(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES, 0, &m);
	struct pollfd polled = {.fd = r->uffd, .events = POLLIN};

	if (fcntl(r->uffd, F_SETFL, 0) || poll(&polled, 1, 0) < 0 || fcntl(r->uffd, F_SETFL, O_NONBLOCK))
		fail("poll: %s", strerror(errno));
	if (polled.revents != POLLERR)
		fail("poll without O_NONBLOCK brought %#x", polled.revents);
	write_and_stop(r, &m);
	truth_finding(r, "blocking-poll", 0);
}

/* What is lost once it is written, and has not been yet. */
void holes_left(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, PAGES / 2, 0, &m);

	write_pages(r, 0, PAGES / 2);
	point("written");
	monitor_stop(&m);
}

/* The same holes, counted twice: how many are left, nobody can tell from outside. */
void rearmed_holes(void)
{
	struct monitor m = {0};
	struct range *r = track_armed(PAGES, 0, 0, &m);

	arm_all(r);
	truth_no_finding(r, "holes-left");
	monitor_stop(&m);
}
