// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Threads that write to armed empty pages, each in a way of its own: all of these writes are lost, but for
 * kvm_async's, which the monitor is told of.
 *
 *   writers
 *
 * Prints a line for each: `way tid`. `armed tid` is the thread that armed the memory. For vhost it is
 * the owner's, of which the kernel names the thread that writes: vhost-TID; of kvm_async a thread of the
 * kernel's writes, too. io_uring is left out where the kernel has none (kernel.io_uring_disabled), KVM
 * and vhost where their devices cannot be opened.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <linux/vhost.h>
#include <linux/virtio_ring.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
/* Needs sys/socket.h before it. */
#include <linux/vm_sockets.h>

#define PAGE ((size_t)getpagesize())

struct way {
	const char *name;
	/* Whether this machine has it. */
	bool (*write)(char *page);
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

static bool own(char *page)
{
	write_here(page);
	asm volatile("");
	return true;
}

static bool by_read(char *page)
{
	int zero = open("/dev/zero", O_RDONLY);

	check(zero >= 0 && read(zero, page, 16) == 16, "read");
	close(zero);
	return true;
}

static bool by_writev(char *page)
{
	char data[16] = {1};
	struct iovec from = {data, sizeof(data)}, to = {page, sizeof(data)};

	check(process_vm_writev(getpid(), &from, 1, &to, 1, 0) == sizeof(data), "process_vm_writev");
	return true;
}

static bool by_mlock(char *page)
{
	check(!mlock(page, PAGE), "mlock");
	return true;
}

/* A ring of one entry, by hand: read(2) of a file with bytes. */
static bool by_ring(char *page)
{
	struct io_uring_params parameters = {};
	struct io_uring_sqe *entry;
	unsigned *array, *tail;
	char *ring;
	int ring_fd = syscall(SYS_io_uring_setup, 1, &parameters), file;

	if (ring_fd < 0)
		return false;
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
	return true;
}

/* Where a guest has the page: of KVM's, beside its code; of vhost's. */
#define IN_GUEST 0x1000

#define ANSWERED_MS 30000

#ifdef __x86_64__
/* A guest whose code stores to the page; with a local APIC of KVM's, and interrupts let in. */
static bool run_guest(char *page, bool interruptible)
{
	/* In real mode: movb $1, IN_GUEST; out %al, $1 */
	static const unsigned char code[] = {0xc6, 0x06, IN_GUEST & 0xff, IN_GUEST >> 8, 1, 0xe6, 1};
	struct kvm_userspace_memory_region slot = {.memory_size = PAGE};
	struct kvm_regs registers = {.rflags = interruptible ? 0x202 : 2};
	struct kvm_sregs segments;
	struct kvm_run *run;
	char *first = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), machine, cpu;

	if (kvm < 0)
		return false;
	machine = ioctl(kvm, KVM_CREATE_VM, 0);
	check(machine >= 0 && first != MAP_FAILED, "KVM_CREATE_VM");
	check(!interruptible || !ioctl(machine, KVM_CREATE_IRQCHIP), "KVM_CREATE_IRQCHIP");
	memcpy(first, code, sizeof(code));
	slot.userspace_addr = (unsigned long)first;
	check(!ioctl(machine, KVM_SET_USER_MEMORY_REGION, &slot), "KVM_SET_USER_MEMORY_REGION");
	slot.slot = 1;
	slot.guest_phys_addr = IN_GUEST;
	slot.userspace_addr = (unsigned long)page;
	check(!ioctl(machine, KVM_SET_USER_MEMORY_REGION, &slot), "KVM_SET_USER_MEMORY_REGION");
	cpu = ioctl(machine, KVM_CREATE_VCPU, 0);
	check(cpu >= 0 && !ioctl(cpu, KVM_GET_SREGS, &segments), "KVM_CREATE_VCPU");
	run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
	segments.cs.base = segments.cs.selector = 0;
	check(!ioctl(cpu, KVM_SET_SREGS, &segments) && !ioctl(cpu, KVM_SET_REGS, &registers), "KVM_SET_REGS");
	check(run != MAP_FAILED && !ioctl(cpu, KVM_RUN, 0), "KVM_RUN");
	check(run->exit_reason == KVM_EXIT_IO && page[0] == 1, "the guest's code");
	return true;
}

#else
/* The guest's code is x86's. */
static bool run_guest(char *page, bool interruptible)
{
	(void)page, (void)interruptible;
	return false;
}
#endif

static bool by_kvm(char *page)
{
	return run_guest(page, false);
}

/* Of the monitor of the page that has one. */
static int uffd;

static void *answer(void *page)
{
	struct pollfd waits = {uffd, POLLIN, 0};
	struct uffdio_zeropage zeroes = {.range = {(unsigned long)page, PAGE}};
	struct uffd_msg message;

	check(poll(&waits, 1, ANSWERED_MS) == 1 && read(uffd, &message, sizeof(message)) == sizeof(message), "read");
	check(message.event == UFFD_EVENT_PAGEFAULT && !ioctl(uffd, UFFDIO_ZEROPAGE, &zeroes), "UFFDIO_ZEROPAGE");
	return NULL;
}

/*
 * A page that is missing, as in postcopy: the guest's CPU would have to wait for the monitor, so KVM lets a
 * thread of the kernel's have the fault. Once the monitor has given the zero page, that thread writes.
 */
static bool by_kvm_async(char *page)
{
	pthread_t monitor;

#ifndef __x86_64__
	return false;
#endif
	if (access("/dev/kvm", R_OK | W_OK))
		return false;
	check(!pthread_create(&monitor, NULL, answer, page), "pthread_create");
	check(run_guest(page, true), "/dev/kvm");
	pthread_join(monitor, NULL);
	return true;
}

/* A queue of one buffer: the least that vhost takes. */
struct queue {
	struct vring_desc buffer;
	struct {
		unsigned short flags, index, entry, event;
	} available;
	struct {
		unsigned short flags;
		_Atomic unsigned short index;
		struct vring_used_elem entry;
		unsigned short event;
	} used;
} __attribute__((aligned(VRING_DESC_ALIGN_SIZE)));

#define CID 42
/* Somebody connects to a guest, whose device writes the request for it into a buffer that the guest gave. */
static bool by_vhost(char *page)
{
	/* Received, and sent. The queues are in memory that nobody watches. */
	static struct queue queues[2];
	struct sockaddr_vm guest = {.svm_family = AF_VSOCK, .svm_cid = CID, .svm_port = 1};
	struct vhost_memory *table = calloc(1, sizeof(*table) + sizeof(table->regions[0]));
	unsigned long long cid = CID;
	int device = open("/dev/vhost-vsock", O_RDWR | O_CLOEXEC), starts = 1, client;

	if (device < 0)
		return false;
	check(table && !ioctl(device, VHOST_SET_OWNER), "VHOST_SET_OWNER");
	table->nregions = 1;
	table->regions[0].guest_phys_addr = IN_GUEST;
	table->regions[0].memory_size = PAGE;
	table->regions[0].userspace_addr = (unsigned long)page;
	check(!ioctl(device, VHOST_SET_MEM_TABLE, table), "VHOST_SET_MEM_TABLE");
	queues[0].buffer = (struct vring_desc){.addr = IN_GUEST, .len = PAGE, .flags = VRING_DESC_F_WRITE};
	queues[0].available.index = 1;
	for (unsigned at = 0; at < 2; at++) {
		struct vhost_vring_state size = {at, 1};
		struct vhost_vring_addr where = {
			.index = at,
			.desc_user_addr = (unsigned long)&queues[at].buffer,
			.avail_user_addr = (unsigned long)&queues[at].available,
			.used_user_addr = (unsigned long)&queues[at].used,
		};

		check(!ioctl(device, VHOST_SET_VRING_NUM, &size), "VHOST_SET_VRING_NUM");
		check(!ioctl(device, VHOST_SET_VRING_ADDR, &where), "VHOST_SET_VRING_ADDR");
	}
	check(!ioctl(device, VHOST_VSOCK_SET_GUEST_CID, &cid), "VHOST_VSOCK_SET_GUEST_CID");
	check(!ioctl(device, VHOST_VSOCK_SET_RUNNING, &starts), "VHOST_VSOCK_SET_RUNNING");
	client = socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	check(client >= 0, "AF_VSOCK");
	/* Nobody accepts. */
	check(connect(client, (struct sockaddr *)&guest, sizeof(guest)) && errno == EINPROGRESS, "connect");
	for (int waited = 0; !queues[0].used.index && waited < ANSWERED_MS; waited++)
		usleep(1000);
	check(queues[0].used.index == 1, "vhost's answer");
	return true;
}

/* The last one's page is registered for MISSING, too. */
static const struct way ways[] = {
	{"own", own},	     {"read", by_read},		  {"process_vm_writev", by_writev},
	{"mlock", by_mlock}, {"io_uring", by_ring},	  {"kvm", by_kvm},
	{"vhost", by_vhost}, {"kvm_async", by_kvm_async},
};

#define WAYS (sizeof(ways) / sizeof(ways[0]))

static char *memory;

static void *act(void *number)
{
	size_t at = (size_t)number;

	if (ways[at].write(memory + at * PAGE))
		printf("%s %ld\n", ways[at].name, syscall(SYS_gettid));
	return NULL;
}

static void arm(char *first, size_t pages, unsigned long modes)
{
	struct uffdio_register range = {.range = {(unsigned long)first, pages * PAGE}, .mode = modes};
	struct uffdio_writeprotect protect = {.range = range.range, .mode = UFFDIO_WRITEPROTECT_MODE_WP};

	check(!ioctl(uffd, UFFDIO_REGISTER, &range), "UFFDIO_REGISTER");
	check(!ioctl(uffd, UFFDIO_WRITEPROTECT, &protect), "UFFDIO_WRITEPROTECT");
}

int main(void)
{
	struct uffdio_api api = {.api = UFFD_API};

	uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	memory = mmap(NULL, WAYS * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check(uffd >= 0 && memory != MAP_FAILED && !madvise(memory, WAYS * PAGE, MADV_NOHUGEPAGE), "memory");
	check(!ioctl(uffd, UFFDIO_API, &api), "UFFDIO_API");
	arm(memory, WAYS - 1, UFFDIO_REGISTER_MODE_WP);
	arm(memory + (WAYS - 1) * PAGE, 1, UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MISSING);
	printf("armed %ld\n", syscall(SYS_gettid));
	for (size_t at = 0; at < WAYS; at++) {
		pthread_t thread;

		check(!pthread_create(&thread, NULL, act, (void *)at), "pthread_create");
		pthread_join(thread, NULL);
	}
	/* The tracer asks what the frames are called while there is somebody to ask; it may be slow where much else runs. */
	sleep(8);
	return 0;
}
