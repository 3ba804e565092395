// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * LD_PRELOAD: logs, in the program itself, every message that it reads from its
 * userfaultfds and every UFFDIO call that it makes, in the file $UFFD_LOG/PID: a
 * struct head and then struct record after struct record, as uffd_log.py reads
 * them. The file is a shared mapping, so it is right after SIGKILL too; a process
 * that never used a userfaultfd has none, and a forked child begins its own.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define LINK "anon_inode:[userfaultfd]"
#define RECORDS (1UL << 20)
#define DESCRIPTORS 65536
/* Above every UFFD_EVENT_*: a call's record is CALL + the number of its ioctl. */
#define CALL 0x100

struct record {
	uint32_t what;
	/* Which userfaultfd of the process: a descriptor's number comes again. */
	uint32_t userfaultfd;
	/* Of a fault its address and flags; else a range, `length` bytes. */
	uint64_t start;
	uint64_t length;
	uint64_t mode;
	/* -errno of a call that failed; else the bytes that it says it did. */
	int64_t result;
};

struct head {
	uint64_t used;
	uint64_t pid;
};

struct log {
	struct head head;
	struct record records[RECORDS];
};

static struct log *log_of_process;
static uint32_t userfaultfd_of[DESCRIPTORS];
static uint32_t userfaultfds;

static void die(const char *what, const char *name)
{
	dprintf(STDERR_FILENO, "uffd_log: %s: %s: %s\n", what, name, strerror(errno));
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

static struct log *map_log(pid_t pid)
{
	const char *folder = getenv("UFFD_LOG");
	struct log *mapped;
	char name[4096];
	int fd;

	if (!folder) {
		errno = EINVAL;
		die("getenv", "UFFD_LOG");
	}
	snprintf(name, sizeof(name), "%s/%d", folder, pid);
	fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	if (fd < 0)
		die("open", name);
	if (ftruncate(fd, sizeof(*mapped)))
		die("ftruncate", name);
	mapped = mmap(NULL, sizeof(*mapped), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (mapped == MAP_FAILED)
		die("mmap", name);
	close(fd);
	mapped->head.pid = pid;
	return mapped;
}

static struct log *own_log(void)
{
	struct log *known = __atomic_load_n(&log_of_process, __ATOMIC_ACQUIRE), *mapped;
	pid_t pid = getpid();

	if (known && known->head.pid == (uint64_t)pid)
		return known;
	mapped = map_log(pid);
	/* Another thread may have been first: both map the same file. */
	__atomic_store_n(&log_of_process, mapped, __ATOMIC_RELEASE);
	return mapped;
}

static void add(int fd, struct record record)
{
	struct log *log = own_log();
	uint64_t at = __atomic_fetch_add(&log->head.used, 1, __ATOMIC_RELAXED);

	record.userfaultfd = fd < DESCRIPTORS ? userfaultfd_of[fd] : 0;
	/* `used` tells that there were more. */
	if (at < RECORDS)
		log->records[at] = record;
}

/* A new one has this descriptor. */
static void opened(int fd)
{
	if (fd < DESCRIPTORS)
		userfaultfd_of[fd] = __atomic_add_fetch(&userfaultfds, 1, __ATOMIC_RELAXED);
}

static int is_userfaultfd(int fd)
{
	char path[64], link[sizeof(LINK)];
	ssize_t length;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	length = readlink(path, link, sizeof(link));
	return length == sizeof(LINK) - 1 && !memcmp(link, LINK, length);
}

static void add_message(int fd, const struct uffd_msg *message)
{
	struct record record = {.what = message->event};

	switch (message->event) {
	case UFFD_EVENT_PAGEFAULT:
		record.start = message->arg.pagefault.address;
		record.mode = message->arg.pagefault.flags;
		break;
	case UFFD_EVENT_FORK:
		opened(message->arg.fork.ufd);
		break;
	case UFFD_EVENT_REMAP:
		record.start = message->arg.remap.from;
		record.length = message->arg.remap.len;
		record.mode = message->arg.remap.to;
		break;
	default:
		record.start = message->arg.remove.start;
		record.length = message->arg.remove.end - message->arg.remove.start;
	}
	add(fd, record);
}

static void add_messages(int fd, const void *buffer, ssize_t length)
{
	const struct uffd_msg *messages = buffer;
	int error = errno;

	/* What cannot be messages is not worth a look at the descriptor. */
	if (length > 0 && !(length % sizeof(*messages)) && messages->event >= UFFD_EVENT_PAGEFAULT &&
	    messages->event <= UFFD_EVENT_UNMAP && is_userfaultfd(fd))
		for (size_t i = 0; i < length / sizeof(*messages); i++)
			add_message(fd, &messages[i]);
	errno = error;
}

struct reading {
	int fd;
	void *buffer;
	/* 0 where it is no userfaultfd. */
	size_t size;
};

static struct reading begin_reading(int fd, void *buffer, size_t size)
{
	struct reading reading = {.fd = fd, .buffer = buffer};

	if (fd >= 0 && fd < DESCRIPTORS && userfaultfd_of[fd]) {
		memset(buffer, 0, size);
		reading.size = size;
	}
	return reading;
}

/*
 * A thread that is cancelled in read(2) may have been given messages all the same, of which its program never
 * hears (uffd-stress ends its threads so): the buffer, which was empty before, has them.
 */
static void cancelled(void *argument)
{
	const struct reading *reading = argument;
	const struct uffd_msg *messages = reading->buffer;
	size_t count = 0;

	while (count < reading->size / sizeof(*messages) && messages[count].event)
		count++;
	add_messages(reading->fd, messages, count * sizeof(*messages));
}

ssize_t read(int fd, void *buffer, size_t size)
{
	struct reading reading = begin_reading(fd, buffer, size);
	static ssize_t (*next_read)(int, void *, size_t);
	ssize_t length;

	if (!next_read)
		next_read = next("read");
	pthread_cleanup_push(cancelled, &reading);
	length = next_read(fd, buffer, size);
	pthread_cleanup_pop(0);
	add_messages(fd, buffer, length);
	return length;
}

/* read() as _FORTIFY_SOURCE calls it. */
ssize_t __read_chk(int fd, void *buffer, size_t size, size_t room)
{
	struct reading reading = begin_reading(fd, buffer, size);
	static ssize_t (*next_read_chk)(int, void *, size_t, size_t);
	ssize_t length;

	if (!next_read_chk)
		next_read_chk = next("__read_chk");
	pthread_cleanup_push(cancelled, &reading);
	length = next_read_chk(fd, buffer, size, room);
	pthread_cleanup_pop(0);
	add_messages(fd, buffer, length);
	return length;
}

/* The structs as 64-bit words: dst, src, len, mode, done; or start, len, mode, done; REGISTER has the mode third, too. */
static void add_call(int fd, unsigned long request, const uint64_t *words, int error)
{
	struct record record = {.what = CALL + _IOC_NR(request), .start = words[0], .result = -error};

	switch (request) {
	case UFFDIO_API:
		if (!error)
			opened(fd);
		record.start = 0;
		record.mode = words[1];
		break;
	case UFFDIO_COPY:
#ifdef UFFDIO_MOVE
	case UFFDIO_MOVE:
#endif
		record.length = words[2];
		record.mode = words[3];
		if (!error)
			record.result = words[4];
		break;
	case UFFDIO_ZEROPAGE:
	case UFFDIO_CONTINUE:
		record.length = words[1];
		record.mode = words[2];
		if (!error)
			record.result = words[3];
		break;
	case UFFDIO_REGISTER:
	case UFFDIO_WRITEPROTECT:
		record.length = words[1];
		record.mode = words[2];
		break;
	default:
		record.length = words[1];
	}
	add(fd, record);
}

int ioctl(int fd, unsigned long request, ...)
{
	static int (*next_ioctl)(int, unsigned long, ...);
	void *argument;
	int result, error;
	va_list list;

	va_start(list, request);
	argument = va_arg(list, void *);
	va_end(list);
	if (!next_ioctl)
		next_ioctl = next("ioctl");
	result = next_ioctl(fd, request, argument);
	error = errno;
	if (_IOC_TYPE(request) == UFFDIO && argument && is_userfaultfd(fd))
		add_call(fd, request, argument, result ? error : 0);
	errno = error;
	return result;
}
