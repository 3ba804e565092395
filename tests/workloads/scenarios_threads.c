// SPDX-License-Identifier: GPL-2.0-or-later
/* Many writers, many faults, faults that sleep. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "pagemap.h"
#include "run.h"
#include "scenarios.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

static void race(struct range *r, struct monitor *m)
{
	struct work w = {.range = r, .pages = r->pages};

	touch_together((struct work[]){w, w, w, w}, 4);
	point("written");
	monitor_stop(m);
}

void racing_writers(void)
{
	struct monitor m = {0};

	race(track_armed(200, 200, 0, &m), &m);
}

void racing_writers_single(void)
{
	struct monitor m = {.batch = 1};

	race(track_armed(200, 200, 0, &m), &m);
}

void racing_holes(void)
{
	struct monitor m = {0};

	race(track_armed(2000, 0, 0, &m), &m);
}

static void storm_of(size_t threads)
{
	enum { HOLES = 60000 };
	struct monitor m = {0};
	struct range *r = track_armed(HOLES, 0, 0, &m);
	struct work work[threads];
	size_t share = HOLES / threads;

	for (size_t i = 0; i < threads; i++)
		work[i] = (struct work){.range = r, .first = i * share, .pages = share};
	touch_together(work, threads);
	point("written");
	monitor_stop(&m);
}

void storm(void)
{
	storm_of(1);
}

void storm_threads(void)
{
	storm_of(2);
}

void asleep(void)
{
	enum { SLEEPERS = 64 };
	struct monitor m = {0};
	struct range *r = map_anon(SLEEPERS);
	struct work work[SLEEPERS];
	pthread_t thread[SLEEPERS];
	int uffd = uffd_open(0);

	uffd_register(uffd, 0, r, MODE_WP);
	point("registered");
	populate(r, 0, SLEEPERS);
	point("populated");
	arm(r, 0, SLEEPERS);
	point("armed");
	for (size_t i = 0; i < SLEEPERS; i++) {
		work[i] = (struct work){.range = r, .first = i, .pages = 1};
		thread[i] = thread_start(touch, &work[i]);
	}
	while (uffd_unread(uffd) != SLEEPERS)
		usleep(2000);
	point("asleep");
	monitor_start(&m, uffd);
	for (size_t i = 0; i < SLEEPERS; i++)
		thread_join(thread[i]);
	point("written");
	monitor_stop(&m);
}

static void on_alarm(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	/* The child's own time limit uses the same signal. */
	if (info->si_code != SI_TIMER)
		_exit(124);
}

static void *write_under_signals(void *work)
{
	const struct itimerspec every = {
		.it_interval.tv_nsec = 3000000,
		.it_value.tv_nsec = 3000000,
	};
	struct sigevent event = {
		.sigev_notify = SIGEV_THREAD_ID,
		.sigev_signo = SIGALRM,
	};
	timer_t timer;

	event.sigev_notify_thread_id = syscall(__NR_gettid);
	if (timer_create(CLOCK_MONOTONIC, &event, &timer) || timer_settime(timer, 0, &every, NULL))
		fail("timer: %s", strerror(errno));
	touch(work);
	timer_delete(timer);
	return NULL;
}

void signals(void)
{
	struct sigaction action = {
		.sa_sigaction = on_alarm,
		.sa_flags = SA_SIGINFO | SA_RESTART,
	};
	struct monitor m = {.delay_us = 5000};
	struct range *r = track_armed(200, 200, 0, &m);
	struct work work = {.range = r, .pages = 200};

	if (sigaction(SIGALRM, &action, NULL))
		fail("sigaction: %s", strerror(errno));
	thread_join(thread_start(write_under_signals, &work));
	point("written");
	monitor_stop(&m);
	expect_repeated_messages(r);
}

/* Returns with the threads still asleep in their faults. */
void pending(void)
{
	enum { SLEEPERS = 4 };
	/* They outlive this function. */
	static struct monitor m = {.wp = KEEP};
	static struct work work[SLEEPERS];
	struct range *r = track_armed(PAGES, PAGES, 0, &m);

	for (size_t i = 0; i < SLEEPERS; i++) {
		work[i] = (struct work){.range = r, .first = i, .pages = 1};
		thread_start(touch, &work[i]);
	}
	while (m.messages < SLEEPERS)
		usleep(2000);
	pagemap_expect(r, 0, PAGES, PAGES);
	point("asleep");
	/* So long that the end of the process is no accident of theirs. */
	usleep(1500000);
	r->killed = SLEEPERS;
	truth_finding(r, "killed-in-fault", SLEEPERS);
}

/* One of several that each have ranges come and go under one userfaultfd. */
struct churn {
	struct range **range;
	size_t ranges;
	int uffd;
};

static void *come_and_go(void *arg)
{
	static const uint64_t modes[] = {MODE_WP, MODE_MISSING | MODE_WP, MODE_MISSING};
	struct churn *c = arg;

	for (size_t i = 0; i < c->ranges; i++) {
		struct range *r = c->range[i];
		uint64_t mode = modes[i % 3];

		uffd_register(c->uffd, 0, r, mode);
		if (mode & MODE_WP) {
			if (!(mode & MODE_MISSING))
				populate(r, 0, r->pages / 2);
			arm(r, 0, r->pages);
		}
		write_pages(r, 0, r->pages);
		if (i % 2) {
			uffd_unregister_from(r, 0);
		} else {
			unmap_from(r, 0);
			truth_finding(r, "unmapped-without-event", r->pages);
		}
	}
	return NULL;
}

void stress(void)
{
	enum { THREADS = 4, EACH = 75, SIZE = 8 };
	struct monitor m = {0};
	int uffd = uffd_open(0);
	struct range *r[THREADS * EACH];
	struct churn churn[THREADS];
	pthread_t thread[THREADS];

	for (int i = 0; i < THREADS * EACH; i++)
		r[i] = map_anon(SIZE);
	monitor_start(&m, uffd);
	for (int i = 0; i < THREADS; i++) {
		churn[i] = (struct churn){&r[i * EACH], EACH, uffd};
		thread[i] = thread_start(come_and_go, &churn[i]);
	}
	for (int i = 0; i < THREADS; i++)
		thread_join(thread[i]);
	point("written");
	monitor_stop(&m);
}
