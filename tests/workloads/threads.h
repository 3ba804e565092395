/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The monitor that answers messages, and the threads that touch the pages. */
#ifndef THREADS_H
#define THREADS_H

#include <pthread.h>

#include "truth.h"

enum on_missing { COPY, COPY_WP, ZEROPAGE };
enum on_wp { RELEASE, WAKE_THEN_RELEASE, KEEP };

struct monitor {
	int uffd;
	unsigned int batch; /* messages per read(); 0: 16 */
	unsigned int delay_us; /* before each answer */
	enum on_missing missing;
	enum on_wp wp;
	atomic_uint messages;
	int stop;
	pthread_t thread;
};

void monitor_start(struct monitor *m, int uffd);
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
