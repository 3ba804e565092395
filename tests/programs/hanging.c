// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A process that hangs, as people attach to them.
 *
 *   hanging event      a thread sleeps in munmap() until somebody reads UFFD_EVENT_UNMAP
 *   hanging later      the same, begun after a line of input
 *   hanging many       600 threads sleep in faults of which nobody read
 *   hanging monitor    a thread sleeps in a fault whose message a thread read that has ended
 *   hanging process    the same, and that thread was a process that was forked for it
 *   hanging forks      the thread that read a fault's message forks before it answers
 *
 * The last three, and `later`, print their process's number, and wait for a line
 * before they come to that. Prints the number of a thread that sleeps, and of the
 * thread that read, 0 for none. After another line it reads the event, or answers
 * the faults, and ends with status 0 if the threads went on.
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
#include <sys/wait.h>
#include <unistd.h>

#define PAGE ((size_t)getpagesize())
#define PAGES 1024UL
/* More than a look at a userfaultfd's queue goes through. */
#define MANY 600
/* The least that every architecture takes. */
#define STACK (128 << 10)

static char *memory;
static int uffd;
static volatile int sleeper, reader;
static bool forks;

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

static void *writes(void *page)
{
	sleeper = gettid();
	/* Volatile, or it may come before the number. */
	*(volatile char *)page = 1;
	return NULL;
}

/* As system() would do. */
static void fork_and_wait(void)
{
	pid_t pid = fork();
	int status;

	check(pid >= 0, "fork");
	if (!pid)
		_exit(0);
	check(waitpid(pid, &status, 0) == pid && !status, "waitpid");
}

static void *reads(void *arg)
{
	(void)arg;
	reader = gettid();
	read_one(UFFD_EVENT_PAGEFAULT);
	if (forks)
		fork_and_wait();
	return NULL;
}

static void wait_for_message(void)
{
	struct pollfd polled = {.fd = uffd, .events = POLLIN};

	check(poll(&polled, 1, -1) == 1 && polled.revents == POLLIN, "poll");
}

/* Whoever reads ends after that; the descriptor stays open here. */
static void read_in_a_process(void)
{
	pid_t pid = fork();
	int status;

	check(pid >= 0, "fork");
	if (!pid) {
		wait_for_message();
		read_one(UFFD_EVENT_PAGEFAULT);
		_exit(0);
	}
	check(waitpid(pid, &status, 0) == pid && !status, "waitpid");
	reader = pid;
}

static void say(int number, int other)
{
	printf("%d %d\n", number, other);
	fflush(stdout);
	next_line();
}

static void answer(unsigned long first, unsigned long pages)
{
	struct uffdio_zeropage zero = {.range = {(unsigned long)memory + first * PAGE, pages * PAGE}};

	check(!ioctl(uffd, UFFDIO_ZEROPAGE, &zero), "UFFDIO_ZEROPAGE");
}

static void sleep_in_event(void)
{
	pthread_t thread;

	check(!pthread_create(&thread, NULL, unmaps, NULL), "pthread_create");
	wait_for_message();
	say(sleeper, 0);
	read_one(UFFD_EVENT_UNMAP);
	pthread_join(thread, NULL);
}

static void sleep_in_faults(int count)
{
	static pthread_t threads[MANY];
	pthread_attr_t small;

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, STACK);
	for (int i = 0; i < count; i++)
		check(!pthread_create(&threads[i], &small, writes, memory + i * PAGE), "pthread_create");
	say(sleeper, 0);
	answer(0, count);
	for (int i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
}

static void sleep_unanswered(bool process)
{
	pthread_t thread, monitor;

	check(!pthread_create(&thread, NULL, writes, memory + 3 * PAGE), "pthread_create");
	wait_for_message();
	if (process) {
		read_in_a_process();
	} else {
		check(!pthread_create(&monitor, NULL, reads, NULL), "pthread_create");
		pthread_join(monitor, NULL);
	}
	say(sleeper, reader);
	answer(3, 1);
	pthread_join(thread, NULL);
}

int main(int argc, char **argv)
{
	const char *what = argc == 2 ? argv[1] : "";
	bool later = !strcmp(what, "later"), event = later || !strcmp(what, "event"), many = !strcmp(what, "many");
	bool process = !strcmp(what, "process");
	struct uffdio_api api = {.api = UFFD_API, .features = event ? UFFD_FEATURE_EVENT_UNMAP : 0};
	struct uffdio_register registration = {.mode = UFFDIO_REGISTER_MODE_MISSING};

	forks = !strcmp(what, "forks");
	check(event || many || process || forks || !strcmp(what, "monitor"), "one of event, later, many, ...");
	uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	check(uffd >= 0, "userfaultfd");
	check(!ioctl(uffd, UFFDIO_API, &api), "UFFDIO_API");
	memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(memory != MAP_FAILED, "mmap");
	registration.range.start = (unsigned long)memory;
	registration.range.len = PAGES * PAGE;
	check(!ioctl(uffd, UFFDIO_REGISTER, &registration), "UFFDIO_REGISTER");
	if (later || !(event || many))
		say(getpid(), uffd);
	if (event)
		sleep_in_event();
	else if (many)
		sleep_in_faults(MANY);
	else
		sleep_unanswered(process);
	return 0;
}
