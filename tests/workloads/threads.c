// SPDX-License-Identifier: GPL-2.0-or-later
#define _GNU_SOURCE
#include "threads.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "run.h"
#include "uffd.h"

#define BATCH 16

static void answer_missing(struct monitor *m, struct range *r, size_t i)
{
	switch (m->missing) {
	case COPY:
		copy_page(r, i, false);
		break;
	case COPY_WP:
		copy_page(r, i, true);
		break;
	case ZEROPAGE:
		zero_page(r, i);
		break;
	}
}

static void answer_wp(struct monitor *m, struct range *r, size_t i)
{
	if (m->wp == KEEP)
		return;
	if (m->wp == WAKE_THEN_RELEASE && r->page[i].messages[KIND_WP] == 1)
		wake(r, i);
	else
		release(r, i, r->unit / PAGE);
}

static void answer_fault(struct monitor *m, struct range *r, size_t i, uint64_t flags)
{
	if (m->delay_us)
		usleep(m->delay_us);
	if (flags & UFFD_PAGEFAULT_FLAG_WP)
		answer_wp(m, r, i);
	else if (flags & UFFD_PAGEFAULT_FLAG_MINOR)
		continue_page(r, i, m->continue_wp);
	else
		answer_missing(m, r, i);
}

static void fault(struct monitor *m, const struct uffd_msg *msg)
{
	uint64_t flags = msg->arg.pagefault.flags;
	char *address = (char *)(unsigned long)msg->arg.pagefault.address;
	struct range *r = truth_find_of(m->uffd, address);
	size_t i;

	if (!r)
		fail("message for a foreign address %p", (void *)address);
	i = (address - r->start) / r->unit * (r->unit / PAGE);

	if (flags & UFFD_PAGEFAULT_FLAG_WP)
		truth_message(r, i, KIND_WP, true);
	else
		truth_message(r, i, flags & UFFD_PAGEFAULT_FLAG_MINOR ? KIND_MINOR : KIND_MISSING,
			      flags & UFFD_PAGEFAULT_FLAG_WRITE);
	if (!m->on_message || !m->on_message(m, msg, r, i))
		answer_fault(m, r, i, flags);
	m->messages++;
}

static void event(struct monitor *m, const struct uffd_msg *msg)
{
	bool done = m->on_message && m->on_message(m, msg, NULL, 0);

	if (!done && msg->event == UFFD_EVENT_FORK) {
		if (m->keep_forked)
			m->forked = msg->arg.fork.ufd;
		else
			close(msg->arg.fork.ufd);
	}
	m->events++;
}

static void *monitor_main(void *arg)
{
	struct monitor *m = arg;
	struct pollfd fds[2] = {
		{.fd = m->uffd, .events = POLLIN},
		{.fd = m->stop, .events = POLLIN},
	};
	struct uffd_msg messages[BATCH];
	ssize_t n;

	for (;;) {
		if (poll(fds, 2, -1) < 0) {
			if (errno == EINTR)
				continue;
			fail("poll: %s", strerror(errno));
		}
		if (fds[0].revents & POLLIN) {
			n = read(m->uffd, messages, m->batch * sizeof(messages[0]));
			if (n < 0 && errno != EAGAIN)
				fail("read of the userfaultfd: %s", strerror(errno));
			for (ssize_t i = 0; i * (ssize_t)sizeof(messages[0]) < n; i++)
				(messages[i].event == UFFD_EVENT_PAGEFAULT ? fault : event)(m, &messages[i]);
		} else if (fds[1].revents) {
			return NULL;
		}
	}
}

void monitor_start(struct monitor *m, int uffd)
{
	m->uffd = uffd;
	if (!m->batch)
		m->batch = BATCH;
	m->stop = eventfd(0, EFD_CLOEXEC);
	if (m->stop < 0)
		fail("eventfd: %s", strerror(errno));
	m->thread = thread_start(monitor_main, m);
}

void monitor_await(const struct monitor *m, unsigned int events)
{
	while (m->events < events)
		usleep(1000);
}

void monitor_stop(struct monitor *m)
{
	if (eventfd_write(m->stop, 1))
		fail("eventfd: %s", strerror(errno));
	thread_join(m->thread);
}

pthread_t thread_start(void *(*body)(void *), void *arg)
{
	pthread_t thread;
	int error = pthread_create(&thread, NULL, body, arg);

	if (error)
		fail("pthread_create: %s", strerror(error));
	return thread;
}

void thread_join(pthread_t thread)
{
	int error = pthread_join(thread, NULL);

	if (error)
		fail("pthread_join: %s", strerror(error));
}

/* Stores first and keeps books after, to write as fast as a real tracker's. */
void *touch(void *arg)
{
	const struct work *w = arg;
	size_t step = w->step ? w->step : 1;
	size_t end = w->first + w->pages;

	if (w->read) {
		populate_by_reading(w->range, w->first, w->pages);
		truth_read(w->range, w->first, w->pages);
		return NULL;
	}
	for (size_t i = w->first; i < end; i += step)
		*(volatile char *)(w->range->start + i * PAGE) = 2;
	truth_written(w->range, w->first, w->pages, step);
	return NULL;
}

void touch_together(struct work *work, size_t threads)
{
	pthread_t thread[threads];

	for (size_t i = 0; i < threads; i++)
		thread[i] = thread_start(touch, &work[i]);
	for (size_t i = 0; i < threads; i++)
		thread_join(thread[i]);
}

void write_every(struct range *r, size_t first, size_t pages, size_t step)
{
	touch_together(&(struct work){r, first, pages, step, false}, 1);
}

void write_pages(struct range *r, size_t first, size_t pages)
{
	write_every(r, first, pages, 1);
}

void read_pages(struct range *r, size_t first, size_t pages)
{
	touch_together(&(struct work){r, first, pages, 1, true}, 1);
}
