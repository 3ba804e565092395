// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A process that hangs, as people attach to them.
 *
 *   hanging event      a thread sleeps in munmap() until somebody reads UFFD_EVENT_UNMAP
 *   hanging monitor    a thread sleeps in a fault whose message a thread read that has ended
 *
 * Prints the number of the thread that sleeps; `monitor` waits for a line before
 * it comes to that. After another line it reads the event, or answers the fault,
 * and ends with status 0 if the thread went on.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096UL
#define PAGES 16UL

static char *memory;
static int uffd;
static volatile int sleeper;

static void check(bool good, const char *what)
{
	if (good)
		return;
	fprintf(stderr, "hanging: %s: %s\n", what, strerror(errno));
	exit(2);
}

static void next_line(void)
{
	char line[16];

	check(fgets(line, sizeof(line), stdin) != NULL, "standard input");
}

static void read_one(unsigned int event)
{
	struct uffd_msg message;

	check(read(uffd, &message, sizeof(message)) == sizeof(message) && message.event == event, "read");
}

static void *unmaps(void *arg)
{
	(void)arg;
	sleeper = gettid();
	check(!munmap(memory, PAGE), "munmap");
	return NULL;
}

static void *writes(void *arg)
{
	(void)arg;
	sleeper = gettid();
	memory[3 * PAGE] = 1;
	return NULL;
}

static void *reads(void *arg)
{
	(void)arg;
	read_one(UFFD_EVENT_PAGEFAULT);
	return NULL;
}

static void wait_for_message(void)
{
	struct pollfd polled = {.fd = uffd, .events = POLLIN};

	check(poll(&polled, 1, -1) == 1 && polled.revents == POLLIN, "poll");
}

int main(int argc, char **argv)
{
	bool event = argc == 2 && !strcmp(argv[1], "event");
	struct uffdio_api api = {.api = UFFD_API, .features = event ? UFFD_FEATURE_EVENT_UNMAP : 0};
	struct uffdio_register registration = {.mode = UFFDIO_REGISTER_MODE_MISSING};
	struct uffdio_zeropage answer = {.mode = 0};
	pthread_t thread, reader;

	check(event || (argc == 2 && !strcmp(argv[1], "monitor")), "event or monitor");
	uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	check(uffd >= 0, "userfaultfd");
	check(!ioctl(uffd, UFFDIO_API, &api), "UFFDIO_API");
	memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(memory != MAP_FAILED, "mmap");
	registration.range.start = answer.range.start = (unsigned long)memory;
	registration.range.len = PAGES * PAGE;
	check(!ioctl(uffd, UFFDIO_REGISTER, &registration), "UFFDIO_REGISTER");
	if (!event) {
		printf("%d\n", getpid());
		fflush(stdout);
		next_line();
	}
	check(!pthread_create(&thread, NULL, event ? unmaps : writes, NULL), "pthread_create");
	wait_for_message();
	if (!event) {
		check(!pthread_create(&reader, NULL, reads, NULL), "pthread_create");
		pthread_join(reader, NULL);
	}
	printf("%d\n", sleeper);
	fflush(stdout);
	next_line();
	if (event) {
		read_one(UFFD_EVENT_UNMAP);
	} else {
		answer.range.start += 3 * PAGE;
		answer.range.len = PAGE;
		check(!ioctl(uffd, UFFDIO_ZEROPAGE, &answer), "UFFDIO_ZEROPAGE");
	}
	pthread_join(thread, NULL);
	return 0;
}
