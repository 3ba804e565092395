// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Faults at full rate, by a program that writes down each message that it reads.
 *
 *   soak THREADS PAGES LOG          THREADS write PAGES protected pages each, again and again
 *   soak churn RANGES LOG           one thread registers a range, has its page protected and written, and
 *                                   unregisters it, RANGES times, some 1,000 at a time
 *   soak dying WAVES THREADS LOG    WAVES processes after each other, each killed while its THREADS sleep in faults
 *
 * Prints its PID, waits for a line on stdin, begins, and with the next line (or by
 * itself, for churn and dying) stops and prints how many messages it read. LOG is a
 * sparse file of struct entry, one for each message in the order of reading.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE ((size_t)getpagesize())
#define AT_ONCE 1000UL
/* As many as twenty minutes of an emulated CPU may bring. */
#define MOST_MESSAGES (1UL << 26)

/* A message, and when read(2) had returned (CLOCK_MONOTONIC). */
struct entry {
	uint64_t time_ns;
	uint64_t address;
};

static struct entry *messages;
static _Atomic size_t read_so_far;
static _Atomic bool stopping;

static void check(bool good, const char *what)
{
	if (good)
		return;
	fprintf(stderr, "soak: %s: %s\n", what, strerror(errno));
	exit(2);
}

static void protect(int uffd, char *start, size_t pages, bool on)
{
	struct uffdio_writeprotect wp = {
		.range = {(unsigned long)start, pages * PAGE},
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	while (ioctl(uffd, UFFDIO_WRITEPROTECT, &wp))
		check(errno == EAGAIN, "UFFDIO_WRITEPROTECT");
}

static int opened(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	check(uffd >= 0, "userfaultfd");
	check(!ioctl(uffd, UFFDIO_API, &api), "UFFDIO_API");
	return uffd;
}

static void watch(int uffd, char *start, size_t pages)
{
	struct uffdio_register reg = {
		.range = {(unsigned long)start, pages * PAGE},
		.mode = UFFDIO_REGISTER_MODE_WP,
	};

	check(!ioctl(uffd, UFFDIO_REGISTER, &reg), "UFFDIO_REGISTER");
}

/* Pages that are there, none of them huge. */
static char *populated(size_t pages)
{
	char *start = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	check(start != MAP_FAILED, "mmap");
	check(!madvise(start, pages * PAGE, MADV_NOHUGEPAGE), "MADV_NOHUGEPAGE");
	memset(start, 1, pages * PAGE);
	return start;
}

static void *monitor(void *arg)
{
	struct pollfd ready = {.fd = *(int *)arg, .events = POLLIN};
	struct uffd_msg message;
	struct timespec now;

	while (poll(&ready, 1, 100) >= 0) {
		size_t number = read_so_far;

		if (read(ready.fd, &message, sizeof(message)) != sizeof(message)) {
			check(errno == EAGAIN, "read");
			continue;
		}
		check(number < MOST_MESSAGES, "more messages than the log takes");
		clock_gettime(CLOCK_MONOTONIC, &now);
		messages[number].time_ns = now.tv_sec * 1000000000ULL + now.tv_nsec;
		messages[number].address = message.arg.pagefault.address & -PAGE;
		read_so_far = number + 1;
		protect(ready.fd, (char *)(message.arg.pagefault.address & -PAGE), 1, false);
	}
	return NULL;
}

static void start(pthread_t *thread, void *(*body)(void *), void *arg)
{
	pthread_attr_t small;

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 128 << 10);
	errno = pthread_create(thread, &small, body, arg);
	check(!errno, "pthread_create");
}

struct share {
	int uffd;
	char *start;
	size_t pages;
};

static void *writer(void *arg)
{
	struct share *share = arg;

	while (!stopping) {
		protect(share->uffd, share->start, share->pages, true);
		for (size_t page = 0; page < share->pages && !stopping; page++)
			*(volatile char *)(share->start + page * PAGE) = 2;
	}
	return NULL;
}

static void line(void)
{
	char word[8];

	check(fgets(word, sizeof(word), stdin) != NULL, "a line on stdin");
}

static void steady(size_t threads, size_t pages)
{
	struct share *shares = calloc(threads, sizeof(*shares));
	pthread_t *ids = calloc(threads, sizeof(*ids)), reader;
	char *all = populated(threads * pages);
	int uffd = opened();

	check(shares && ids, "calloc");
	watch(uffd, all, threads * pages);
	start(&reader, monitor, &uffd);
	line();
	for (size_t i = 0; i < threads; i++) {
		shares[i] = (struct share){uffd, all + i * pages * PAGE, pages};
		start(&ids[i], writer, &shares[i]);
	}
	line();
	stopping = true;
	for (size_t i = 0; i < threads; i++)
		pthread_join(ids[i], NULL);
}

static void churn(size_t ranges)
{
	/* Every other page, so that no two ranges are adjacent. */
	char *all = populated(2 * AT_ONCE);
	int uffd = opened();
	pthread_t reader;

	start(&reader, monitor, &uffd);
	line();
	for (size_t done = 0; done < ranges; done += AT_ONCE) {
		for (size_t i = 0; i < AT_ONCE; i++)
			watch(uffd, all + 2 * i * PAGE, 1);
		for (size_t i = 0; i < AT_ONCE; i++) {
			protect(uffd, all + 2 * i * PAGE, 1, true);
			*(volatile char *)(all + 2 * i * PAGE) = 2;
		}
		for (size_t i = 0; i < AT_ONCE; i++) {
			struct uffdio_range range = {(unsigned long)(all + 2 * i * PAGE), PAGE};

			check(!ioctl(uffd, UFFDIO_UNREGISTER, &range), "UFFDIO_UNREGISTER");
		}
	}
}

static void *sleeper(void *arg)
{
	*(volatile char *)arg = 2;
	return NULL;
}

/* How many threads of a process sleep in faults: by /proc/PID/fdinfo of its userfaultfd. */
static size_t asleep(pid_t pid, int fd)
{
	size_t pending = 0;
	char path[64];
	FILE *info;

	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", (int)pid, fd);
	info = fopen(path, "r");
	if (!info)
		return 0;
	while (fgets(path, sizeof(path), info))
		sscanf(path, "pending: %zu", &pending);
	fclose(info);
	return pending;
}

static void dying(size_t waves, size_t threads)
{
	line();
	for (size_t wave = 0; wave < waves; wave++) {
		int told[2], uffd = -1;
		pid_t child;

		check(!pipe(told), "pipe");
		child = fork();
		check(child >= 0, "fork");
		if (!child) {
			char *all = populated(threads);
			pthread_t thread;

			uffd = opened();
			watch(uffd, all, threads);
			protect(uffd, all, threads, true);
			for (size_t i = 0; i < threads; i++)
				start(&thread, sleeper, all + i * PAGE);
			check(write(told[1], &uffd, sizeof(uffd)) == sizeof(uffd), "write");
			pause();
		}
		check(read(told[0], &uffd, sizeof(uffd)) == sizeof(uffd), "read");
		while (asleep(child, uffd) < threads)
			usleep(10000);
		check(!kill(child, SIGKILL) && waitpid(child, NULL, 0) == child, "kill");
		close(told[0]);
		close(told[1]);
	}
}

int main(int argc, char **argv)
{
	size_t first, second = 0;
	const char *kind = "";
	int at = 1, file;

	if (argc > 1 && (argv[1][0] < '0' || argv[1][0] > '9'))
		kind = argv[at++];
	if (argc - at != (strcmp(kind, "churn") ? 3 : 2)) {
		fprintf(stderr, "usage: soak [dying] NUMBER NUMBER LOG | soak churn RANGES LOG\n");
		return 2;
	}
	first = strtoul(argv[at++], NULL, 0);
	if (strcmp(kind, "churn"))
		second = strtoul(argv[at++], NULL, 0);
	file = open(argv[at], O_RDWR | O_CREAT | O_TRUNC, 0600);
	check(file >= 0 && !ftruncate(file, MOST_MESSAGES * sizeof(*messages)), argv[at]);
	messages = mmap(NULL, MOST_MESSAGES * sizeof(*messages), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	check(messages != MAP_FAILED, "mmap of the log");
	printf("%d\n", (int)getpid());
	fflush(stdout);
	if (!strcmp(kind, "churn"))
		churn(first);
	else if (!strcmp(kind, "dying"))
		dying(first, second);
	else
		steady(first, second);
	/* The file shows what was written, not what was mapped. */
	check(!ftruncate(file, read_so_far * sizeof(*messages)), "ftruncate");
	printf("%zu\n", (size_t)read_so_far);
	return 0;
}
