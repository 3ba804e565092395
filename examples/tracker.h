/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the examples share: memory whose writes a monitor is told of, and how many it never heard of. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096UL
#define PAGES 1024UL

struct tracker {
	int uffd;
	char *memory;
	/* Answers a MISSING message; NULL where the range is registered for WP alone. */
	void (*fill)(struct tracker *tracker, char *page);
	_Atomic unsigned char dirty[PAGES];
};

static inline void must(int good, const char *what)
{
	if (good)
		return;
	perror(what);
	exit(2);
}

static inline void protect(struct tracker *tracker, char *start, size_t pages, int on)
{
	struct uffdio_writeprotect wp = {
		.range = {(unsigned long)start, pages * PAGE},
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	must(!ioctl(tracker->uffd, UFFDIO_WRITEPROTECT, &wp), "UFFDIO_WRITEPROTECT");
}

/* Notes each page that is written, and lets the writer go on. */
static inline void *monitor(void *arg)
{
	struct tracker *tracker = arg;
	struct pollfd ready = {.fd = tracker->uffd, .events = POLLIN};
	struct uffd_msg message;

	while (poll(&ready, 1, -1) > 0 && read(tracker->uffd, &message, sizeof(message)) == sizeof(message)) {
		char *page = (char *)(message.arg.pagefault.address & -PAGE);

		if (message.event != UFFD_EVENT_PAGEFAULT)
			continue;
		if (message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) {
			tracker->dirty[(page - tracker->memory) / PAGE] = 1;
			protect(tracker, page, 1, 0);
		} else {
			tracker->fill(tracker, page);
		}
	}
	return NULL;
}

static inline void track(struct tracker *tracker, unsigned long modes)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register reg = {.mode = modes};
	pthread_t thread;

	tracker->memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(tracker->memory != MAP_FAILED, "mmap");
	must(!madvise(tracker->memory, PAGES * PAGE, MADV_NOHUGEPAGE), "madvise");
	tracker->uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	must(tracker->uffd >= 0 && !ioctl(tracker->uffd, UFFDIO_API, &api), "userfaultfd");
	reg.range.start = (unsigned long)tracker->memory;
	reg.range.len = PAGES * PAGE;
	must(!ioctl(tracker->uffd, UFFDIO_REGISTER, &reg), "UFFDIO_REGISTER");
	errno = pthread_create(&thread, NULL, monitor, tracker);
	must(!errno, "pthread_create");
}

static inline void write_all(struct tracker *tracker)
{
	for (size_t page = 0; page < PAGES; page++)
		*(volatile char *)(tracker->memory + page * PAGE) = 2;
}

static inline int told(struct tracker *tracker)
{
	size_t noted = 0;

	for (size_t page = 0; page < PAGES; page++)
		noted += tracker->dirty[page];
	printf("%lu pages were written, the tracker knows of %zu\n", PAGES, noted);
	return noted != PAGES;
}
