// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Page faults that tell how long they took, for scripts/bench.
 *
 *   rounds wp PAGES
 *   rounds fresh PAGES
 *
 * Prints its PID, then for each line on stdin the mean ns per page of one round:
 * with wp a thread writes PAGES protected pages, and another reads each message
 * and releases the page; with fresh it touches PAGES anonymous pages, and there
 * is no userfaultfd. Protecting and dropping the pages again is not in the time.
 * All threads share CPU 0: waking another that idles is the host's cost in a guest,
 * and would hide that of the fault.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL

static char *memory;
static int uffd;

static void check(bool good, const char *what)
{
	if (good)
		return;
	fprintf(stderr, "rounds: %s: %s\n", what, strerror(errno));
	exit(2);
}

static void protect(unsigned long start, size_t pages, bool on)
{
	struct uffdio_writeprotect wp = {
		.range = {start, pages * PAGE},
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	check(!ioctl(uffd, UFFDIO_WRITEPROTECT, &wp), "UFFDIO_WRITEPROTECT");
}

static void *monitor(void *arg)
{
	struct uffd_msg message;

	(void)arg;
	for (;;) {
		check(read(uffd, &message, sizeof(message)) == sizeof(message), "read");
		protect(message.arg.pagefault.address & -PAGE, 1, false);
	}
	return NULL;
}

static void watch(size_t pages)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register reg = {
		.range = {(unsigned long)memory, pages * PAGE},
		.mode = UFFDIO_REGISTER_MODE_WP,
	};
	pthread_t thread;

	uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	check(uffd >= 0, "userfaultfd");
	check(!ioctl(uffd, UFFDIO_API, &api), "UFFDIO_API");
	check(!ioctl(uffd, UFFDIO_REGISTER, &reg), "UFFDIO_REGISTER");
	memset(memory, 1, pages * PAGE);
	errno = pthread_create(&thread, NULL, monitor, NULL);
	check(!errno, "pthread_create");
}

static double now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1e9 + now.tv_nsec;
}

int main(int argc, char **argv)
{
	size_t pages = argc == 3 ? strtoul(argv[2], NULL, 0) : 0;
	bool wp = pages && !strcmp(argv[1], "wp");
	cpu_set_t cpus = {};
	double began;

	if (!pages || (!wp && strcmp(argv[1], "fresh"))) {
		fprintf(stderr, "usage: rounds wp|fresh PAGES\n");
		return 2;
	}
	CPU_SET(0, &cpus);
	check(!sched_setaffinity(0, sizeof(cpus), &cpus), "sched_setaffinity");
	memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(memory != MAP_FAILED, "mmap");
	// A huge page would be one fault for 512 pages.
	check(!madvise(memory, pages * PAGE, MADV_NOHUGEPAGE), "MADV_NOHUGEPAGE");
	if (wp)
		watch(pages);
	printf("%d\n", (int)getpid());
	fflush(stdout);
	while (getchar() != EOF) {
		if (wp)
			protect((unsigned long)memory, pages, true);
		else
			check(!madvise(memory, pages * PAGE, MADV_DONTNEED), "MADV_DONTNEED");
		began = now_ns();
		for (size_t page = 0; page < pages; page++)
			*(volatile char *)(memory + page * PAGE) = 2;
		printf("%.1f\n", (now_ns() - began) / pages);
		fflush(stdout);
	}
	return 0;
}
