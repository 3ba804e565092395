/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The monitor that answers messages, and the threads that touch the pages. */
#ifndef THREADS_H
#define THREADS_H

#include <pthread.h>

#include "truth.h"
#include "uffd.h"

enum on_missing { COPY, COPY_WP, ZEROPAGE };
enum on_wp { RELEASE, WAKE_THEN_RELEASE, KEEP };

struct monitor {
	int uffd;
	unsigned int batch; /* messages per read(); 0: 16 */
	unsigned int delay_us; /* before each answer */
	enum on_missing missing;
	enum on_wp wp;
	bool continue_wp; /* CONTINUE with MODE_WP */
	bool keep_forked; /* keep the userfaultfd of a FORK event, in `forked` */
	/*
	 * After the message is counted, before it is answered: true if it is dealt
	 * with. r is NULL for all but page faults; i is the page in r.
	 */
	bool (*on_message)(struct monitor *m, const struct uffd_msg *msg, struct range *r, size_t i);
	atomic_uint messages; /* page faults answered */
	atomic_uint events; /* all other messages: FORK, REMAP, REMOVE, UNMAP */
	int forked;
	int stop;
	pthread_t thread;
};

void monitor_start(struct monitor *m, int uffd);
/* Until it has counted so many events: the kernel goes on once one is read. */
void monitor_await(const struct monitor *m, unsigned int events);
void monitor_stop(struct monitor *m);

pthread_t thread_start(void *(*body)(void *), void *arg);
void thread_join(pthread_t thread);

struct work {
	struct range *range;
	size_t first;
	size_t pages;
	size_t step; /* 0: 1 */
	bool read;
};

/* Body of a thread that does one work; exposed for those never joined. */
void *touch(void *work);
/* One thread per work, all at once; returns when all are done. */
void touch_together(struct work *work, size_t threads);
void write_pages(struct range *r, size_t first, size_t pages);
void write_every(struct range *r, size_t first, size_t pages, size_t step);
void read_pages(struct range *r, size_t first, size_t pages);

#endif
