// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Threads that write to armed empty pages, each in a way of its own: all of these writes are lost.
 *
 *   writers
 *
 * Prints a line for each: `way tid`. `armed tid` is the thread that armed the memory. io_uring is
 * left out where the kernel has none (kernel.io_uring_disabled).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGE ((size_t)getpagesize())

struct way {
	const char *name;
	void (*write)(char *page);
};

static void check(bool good, const char *what)
{
	if (good)
		return;
	fprintf(stderr, "writers: %s: %s\n", what, strerror(errno));
	exit(2);
}

static __attribute__((noinline)) void write_here(char *page)
{
	*(volatile char *)page = 1;
	/* Not the last thing that it does, or its caller would be gone from the stack. */
	asm volatile("");
}

static void own(char *page)
{
	write_here(page);
	asm volatile("");
}

static void by_read(char *page)
{
	int zero = open("/dev/zero", O_RDONLY);

	check(zero >= 0 && read(zero, page, 16) == 16, "read");
	close(zero);
}

static void by_writev(char *page)
{
	char data[16] = {1};
	struct iovec from = {data, sizeof(data)}, to = {page, sizeof(data)};

	check(process_vm_writev(getpid(), &from, 1, &to, 1, 0) == sizeof(data), "process_vm_writev");
}

static void by_mlock(char *page)
{
	check(!mlock(page, PAGE), "mlock");
}

/* A ring of one entry, by hand: read(2) of a file with bytes. */
static int ring_fd = -1;

static void by_ring(char *page)
{
	struct io_uring_params parameters = {};
	struct io_uring_sqe *entry;
	unsigned *array, *tail;
	char *ring;
	int file;

	ring_fd = syscall(SYS_io_uring_setup, 1, &parameters);
	if (ring_fd < 0)
		return;
	ring = mmap(NULL, parameters.sq_off.array + parameters.sq_entries * sizeof(unsigned), PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_POPULATE, ring_fd, IORING_OFF_SQ_RING);
	entry = mmap(NULL, parameters.sq_entries * sizeof(*entry), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
		     ring_fd, IORING_OFF_SQES);
	file = open("/proc/self/exe", O_RDONLY);
	check(ring != MAP_FAILED && entry != MAP_FAILED && file >= 0, "io_uring");
	memset(entry, 0, sizeof(*entry));
	entry->opcode = IORING_OP_READ;
	entry->fd = file;
	entry->addr = (unsigned long)page;
	entry->len = 16;
	array = (unsigned *)(ring + parameters.sq_off.array);
	tail = (unsigned *)(ring + parameters.sq_off.tail);
	array[0] = 0;
	atomic_store((_Atomic unsigned *)tail, 1);
	check(syscall(SYS_io_uring_enter, ring_fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) == 1, "io_uring_enter");
}

static const struct way ways[] = {
	{"own", own}, {"read", by_read}, {"process_vm_writev", by_writev}, {"mlock", by_mlock}, {"io_uring", by_ring},
};

#define WAYS (sizeof(ways) / sizeof(ways[0]))

static char *memory;

static void *act(void *number)
{
	size_t at = (size_t)number;

	ways[at].write(memory + at * PAGE);
	if (ways[at].write != by_ring || ring_fd >= 0)
		printf("%s %ld\n", ways[at].name, syscall(SYS_gettid));
	return NULL;
}

int main(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register range = {};
	struct uffdio_writeprotect protect = {};
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	memory = mmap(NULL, WAYS * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(uffd >= 0 && memory != MAP_FAILED && !madvise(memory, WAYS * PAGE, MADV_NOHUGEPAGE), "memory");
	check(!ioctl(uffd, UFFDIO_API, &api), "UFFDIO_API");
	range.range.start = protect.range.start = (unsigned long)memory;
	range.range.len = protect.range.len = WAYS * PAGE;
	range.mode = UFFDIO_REGISTER_MODE_WP;
	protect.mode = UFFDIO_WRITEPROTECT_MODE_WP;
	check(!ioctl(uffd, UFFDIO_REGISTER, &range), "UFFDIO_REGISTER");
	check(!ioctl(uffd, UFFDIO_WRITEPROTECT, &protect), "UFFDIO_WRITEPROTECT");
	printf("armed %ld\n", syscall(SYS_gettid));
	for (size_t at = 0; at < WAYS; at++) {
		pthread_t thread;

		check(!pthread_create(&thread, NULL, act, (void *)at), "pthread_create");
		pthread_join(thread, NULL);
	}
	/* The tracer asks what the frames are called while there is somebody to ask. */
	sleep(2);
	return 0;
}
