// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A background snapshot as QEMU takes it, or as one that forgets a step does.
 *
 *   snapshot [--populate] [--hold]
 *
 * 16 MiB of memory, a quarter of it used so far. It is write-protected, then a
 * thread (the guest's CPU) goes on writing, while another saves every page: a
 * page that is written first is saved first, and released. Then the snapshot is
 * held against what memory was when it began. --populate reads every page before
 * the protection, as QEMU's ram_block_populate_read() does. --hold waits for
 * Enter once memory is protected. Exits with 1 if the snapshot is corrupt.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE ((size_t)getpagesize())
#define PAGES 4096UL
#define USED (PAGES / 4)

enum { BEFORE = 1, AFTER = 2 };

static char *ram;
static char *saved;
static bool done[PAGES];
static int uffd;
static atomic_bool idle;

static void check(bool good, const char *what)
{
	if (good)
		return;
	fprintf(stderr, "snapshot: %s: %s\n", what, strerror(errno));
	exit(2);
}

static void protect(size_t page, size_t pages, bool on)
{
	struct uffdio_writeprotect wp = {
		.range = {(unsigned long)ram + page * PAGE, pages * PAGE},
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	check(!ioctl(uffd, UFFDIO_WRITEPROTECT, &wp), "UFFDIO_WRITEPROTECT");
}

static void save(size_t page)
{
	if (!done[page])
		memcpy(saved + page * PAGE, ram + page * PAGE, PAGE);
	done[page] = true;
	protect(page, 1, false);
}

/* Saves what is written before its turn, for as long as somebody writes. */
static void *monitor(void *arg)
{
	struct pollfd ready = {.fd = uffd, .events = POLLIN};
	struct uffd_msg message;

	(void)arg;
	while (!idle || poll(&ready, 1, 0) > 0) {
		if (poll(&ready, 1, 10) <= 0 || read(uffd, &message, sizeof(message)) != sizeof(message))
			continue;
		if (message.event == UFFD_EVENT_PAGEFAULT)
			save((message.arg.pagefault.address - (unsigned long)ram) / PAGE);
	}
	return NULL;
}

static void *guest_cpu(void *arg)
{
	(void)arg;
	for (size_t page = 0; page < PAGES; page++)
		*(volatile char *)(ram + page * PAGE) = AFTER;
	idle = true;
	return NULL;
}

static void begin(bool populate)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register reg = {
		.range = {(unsigned long)ram, PAGES * PAGE},
		.mode = UFFDIO_REGISTER_MODE_WP,
	};

	uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	check(uffd >= 0, "userfaultfd");
	check(!ioctl(uffd, UFFDIO_API, &api), "UFFDIO_API");
	check(!ioctl(uffd, UFFDIO_REGISTER, &reg), "UFFDIO_REGISTER");
	for (size_t page = 0; populate && page < PAGES; page++)
		(void)*(volatile char *)(ram + page * PAGE);
	protect(0, PAGES, true);
}

int main(int argc, char **argv)
{
	bool populate = false, hold = false;
	pthread_t cpu, saver;
	size_t corrupt = 0;

	for (int i = 1; i < argc; i++) {
		populate |= !strcmp(argv[i], "--populate");
		hold |= !strcmp(argv[i], "--hold");
	}
	ram = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	saved = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(ram != MAP_FAILED && saved != MAP_FAILED, "mmap");
	madvise(ram, PAGES * PAGE, MADV_NOHUGEPAGE);
	for (size_t page = 0; page < USED; page++)
		ram[page * PAGE] = BEFORE;

	begin(populate);
	if (hold) {
		printf("%d\n", (int)getpid());
		fflush(stdout);
		getchar();
	}
	check(!pthread_create(&saver, NULL, monitor, NULL), "pthread_create");
	check(!pthread_create(&cpu, NULL, guest_cpu, NULL), "pthread_create");
	pthread_join(cpu, NULL);
	pthread_join(saver, NULL);
	for (size_t page = 0; page < PAGES; page++)
		save(page);

	for (size_t page = 0; page < PAGES; page++)
		corrupt += saved[page * PAGE] != (page < USED ? BEFORE : 0);
	if (corrupt)
		printf("snapshot: corrupt: %zu of %lu pages hold what was written after it began\n", corrupt, PAGES);
	else
		printf("snapshot: good: all %lu pages are as they were when it began\n", PAGES);
	return corrupt ? 1 : 0;
}
