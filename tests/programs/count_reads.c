// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * LD_PRELOAD: counts, in the program itself, the messages that it reads from its
 * userfaultfds and the ioctls that succeed on them, in the file $UFFD_COUNTS/PID:
 * an array of 64-bit integers in the order of enum count. The file is a shared
 * mapping, so it is right after SIGKILL too; a process that never used a
 * userfaultfd has none.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define LINK "anon_inode:[userfaultfd]"

/* programs.py reads them by the same names. */
enum count {
	PID,
	MISSING,
	WP,
	MINOR,
	OTHER_EVENTS,
	PROTECT,
	PROTECT_BYTES,
	UNPROTECT,
	UNPROTECT_BYTES,
	COPY,
	COPY_BYTES,
	ZEROPAGE,
	ZEROPAGE_BYTES,
	CONTINUE,
	CONTINUE_BYTES,
	COUNTS
};

static uint64_t *counts;

static void die(const char *what, const char *name)
{
	dprintf(STDERR_FILENO, "count_reads: %s: %s: %s\n", what, name, strerror(errno));
	abort();
}

static void *next(const char *name)
{
	void *found = dlsym(RTLD_NEXT, name);

	if (!found) {
		errno = ENOSYS;
		die("dlsym", name);
	}
	return found;
}

static uint64_t *map_counts(pid_t pid)
{
	const char *folder = getenv("UFFD_COUNTS");
	char name[4096];
	uint64_t *mapped;
	int fd;

	if (!folder) {
		errno = EINVAL;
		die("getenv", "UFFD_COUNTS");
	}
	snprintf(name, sizeof(name), "%s/%d", folder, pid);
	fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	if (fd < 0)
		die("open", name);
	if (ftruncate(fd, COUNTS * sizeof(*mapped)))
		die("ftruncate", name);
	mapped = mmap(NULL, COUNTS * sizeof(*mapped), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (mapped == MAP_FAILED)
		die("mmap", name);
	close(fd);
	mapped[PID] = pid;
	return mapped;
}

/* Its own file for each process: a forked child has inherited its parent's. */
static uint64_t *own_counts(void)
{
	uint64_t *known = __atomic_load_n(&counts, __ATOMIC_ACQUIRE), *mapped;
	pid_t pid = getpid();

	if (known && known[PID] == (uint64_t)pid)
		return known;
	mapped = map_counts(pid);
	/* Another thread may have been first: both map the same file. */
	__atomic_store_n(&counts, mapped, __ATOMIC_RELEASE);
	return mapped;
}

static void add(enum count count, uint64_t number)
{
	__atomic_fetch_add(&own_counts()[count], number, __ATOMIC_RELAXED);
}

static int is_userfaultfd(int fd)
{
	char path[64], link[sizeof(LINK)];
	ssize_t length;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	length = readlink(path, link, sizeof(link));
	return length == sizeof(LINK) - 1 && !memcmp(link, LINK, length);
}

static enum count kind(const struct uffd_msg *message)
{
	if (message->event != UFFD_EVENT_PAGEFAULT)
		return OTHER_EVENTS;
	if (message->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP)
		return WP;
	if (message->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR)
		return MINOR;
	return MISSING;
}

static void count_messages(int fd, const void *buffer, ssize_t length)
{
	const struct uffd_msg *messages = buffer;
	int error = errno;

	/* What cannot be messages is not worth a look at the descriptor. */
	if (length <= 0 || length % sizeof(*messages) || messages->event < UFFD_EVENT_PAGEFAULT ||
	    messages->event > UFFD_EVENT_UNMAP || !is_userfaultfd(fd)) {
		errno = error;
		return;
	}
	for (size_t i = 0; i < length / sizeof(*messages); i++)
		add(kind(&messages[i]), 1);
	errno = error;
}

ssize_t read(int fd, void *buffer, size_t size)
{
	static ssize_t (*next_read)(int, void *, size_t);
	ssize_t length;

	if (!next_read)
		next_read = next("read");
	length = next_read(fd, buffer, size);
	count_messages(fd, buffer, length);
	return length;
}

/* read() as _FORTIFY_SOURCE calls it. */
ssize_t __read_chk(int fd, void *buffer, size_t size, size_t room)
{
	static ssize_t (*next_read_chk)(int, void *, size_t, size_t);
	ssize_t length;

	if (!next_read_chk)
		next_read_chk = next("__read_chk");
	length = next_read_chk(fd, buffer, size, room);
	count_messages(fd, buffer, length);
	return length;
}

static void count_ioctl(unsigned long request, const void *argument)
{
	const struct uffdio_writeprotect *wp = argument;
	const struct uffdio_copy *copy = argument;
	const struct uffdio_zeropage *zeropage = argument;
	const struct uffdio_continue *minor = argument;

	switch (request) {
	case UFFDIO_WRITEPROTECT:
		add(wp->mode & UFFDIO_WRITEPROTECT_MODE_WP ? PROTECT : UNPROTECT, 1);
		add(wp->mode & UFFDIO_WRITEPROTECT_MODE_WP ? PROTECT_BYTES : UNPROTECT_BYTES, wp->range.len);
		break;
	case UFFDIO_COPY:
		add(COPY, 1);
		add(COPY_BYTES, copy->copy);
		break;
	case UFFDIO_ZEROPAGE:
		add(ZEROPAGE, 1);
		add(ZEROPAGE_BYTES, zeropage->zeropage);
		break;
	case UFFDIO_CONTINUE:
		add(CONTINUE, 1);
		add(CONTINUE_BYTES, minor->mapped);
		break;
	}
}

int ioctl(int fd, unsigned long request, ...)
{
	static int (*next_ioctl)(int, unsigned long, ...);
	void *argument;
	va_list list;
	int result;

	va_start(list, request);
	argument = va_arg(list, void *);
	va_end(list);
	if (!next_ioctl)
		next_ioctl = next("ioctl");
	result = next_ioctl(fd, request, argument);
	/* No other driver has these numbers. */
	if (!result)
		count_ioctl(request, argument);
	return result;
}
