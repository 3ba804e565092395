// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Page faults that tell how long they took, for scripts/bench.
 *
 *   rounds PAGES
 *
 * Prints its PID, then for each line on stdin, the name of a kind, the mean ns per
 * page of one round over PAGES pages of that kind:
 *
 *   wp        writes protected pages; another thread reads each message and releases the page
 *   missing   writes empty pages; another thread reads each message and copies a page in
 *   hole      writes pages that were empty when they were armed: nobody is told
 *   released  writes pages that were armed and released again
 *   fresh     writes anonymous pages without a userfaultfd
 *
 * What brings the pages into that state is not in the time, and a kind takes its
 * memory when it is first named. All threads share CPU 0: waking another that idles is
 * the host's cost in a guest, and would hide that of the fault.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PAGE ((size_t)getpagesize())

static size_t pages;

struct memory {
	const char *kind;
	uint64_t modes;
	/* Each page is there before a round. */
	bool populated;
	/* How a round begins. */
	bool armed;
	bool released;
	char *start;
	int uffd;
};

static struct memory kinds[] = {
	{.kind = "wp", .modes = UFFDIO_REGISTER_MODE_WP, .populated = true, .armed = true},
	{.kind = "missing", .modes = UFFDIO_REGISTER_MODE_MISSING},
	{.kind = "hole", .modes = UFFDIO_REGISTER_MODE_WP, .armed = true},
	{.kind = "released", .modes = UFFDIO_REGISTER_MODE_WP, .populated = true, .armed = true, .released = true},
	{.kind = "fresh"},
};

static void check(bool good, const char *what)
{
	if (good)
		return;
	fprintf(stderr, "rounds: %s: %s\n", what, strerror(errno));
	exit(2);
}

static void protect(int uffd, unsigned long start, size_t length, bool on)
{
	struct uffdio_writeprotect wp = {
		.range = {start, length},
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	check(!ioctl(uffd, UFFDIO_WRITEPROTECT, &wp), "UFFDIO_WRITEPROTECT");
}

static void *monitor(void *arg)
{
	/* No kernel has larger pages. */
	static char source[1 << 16] __attribute__((aligned(1 << 16)));
	int uffd = *(int *)arg;
	struct uffd_msg message;

	for (;;) {
		check(read(uffd, &message, sizeof(message)) == sizeof(message), "read");
		if (message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) {
			protect(uffd, message.arg.pagefault.address & -PAGE, PAGE, false);
		} else {
			struct uffdio_copy copy = {
				.dst = message.arg.pagefault.address & -PAGE,
				.src = (unsigned long)source,
				.len = PAGE,
			};

			check(!ioctl(uffd, UFFDIO_COPY, &copy), "UFFDIO_COPY");
		}
	}
	return NULL;
}

static void watch(struct memory *memory)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register reg = {
		.range = {(unsigned long)memory->start, pages * PAGE},
		.mode = memory->modes,
	};
	pthread_t thread;

	memory->uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	check(memory->uffd >= 0, "userfaultfd");
	check(!ioctl(memory->uffd, UFFDIO_API, &api), "UFFDIO_API");
	check(!ioctl(memory->uffd, UFFDIO_REGISTER, &reg), "UFFDIO_REGISTER");
	errno = pthread_create(&thread, NULL, monitor, &memory->uffd);
	check(!errno, "pthread_create");
}

static void take(struct memory *memory)
{
	memory->start = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(memory->start != MAP_FAILED, "mmap");
	// A huge page would be one fault for 512 pages.
	check(!madvise(memory->start, pages * PAGE, MADV_NOHUGEPAGE), "MADV_NOHUGEPAGE");
	if (memory->populated)
		memset(memory->start, 1, pages * PAGE);
	if (memory->modes)
		watch(memory);
}

static double now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1e9 + now.tv_nsec;
}

static double one_round(struct memory *memory)
{
	const size_t size = PAGE;
	double began;

	if (!memory->start)
		take(memory);
	if (!memory->populated)
		check(!madvise(memory->start, pages * PAGE, MADV_DONTNEED), "MADV_DONTNEED");
	if (memory->armed)
		protect(memory->uffd, (unsigned long)memory->start, pages * PAGE, true);
	if (memory->released)
		protect(memory->uffd, (unsigned long)memory->start, pages * PAGE, false);
	began = now_ns();
	for (size_t page = 0; page < pages; page++)
		*(volatile char *)(memory->start + page * size) = 2;
	return (now_ns() - began) / pages;
}

int main(int argc, char **argv)
{
	cpu_set_t cpus = {};
	char line[32];

	pages = argc == 2 ? strtoul(argv[1], NULL, 0) : 0;
	if (!pages) {
		fprintf(stderr, "usage: rounds PAGES\n");
		return 2;
	}
	CPU_SET(0, &cpus);
	check(!sched_setaffinity(0, sizeof(cpus), &cpus), "sched_setaffinity");
	printf("%d\n", (int)getpid());
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		struct memory *memory = NULL;

		line[strcspn(line, "\n")] = 0;
		for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++)
			if (!strcmp(kinds[i].kind, line))
				memory = &kinds[i];
		if (!memory) {
			fprintf(stderr, "rounds: no kind is named %s\n", line);
			return 2;
		}
		printf("%.1f\n", one_round(memory));
		fflush(stdout);
	}
	return 0;
}
