// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What uffdtrace sees in the kernel: one program, of the files that sources()
 * in collect/program.py names, in that order. Here is what it keeps, and how it tells.
 *
 * One on_<row>() per row of the probe table (kernel/probes.py); the loader adds
 * the entry points that call them, as kprobe or fentry, with arguments taken
 * from their places in the running kernel's BTF. Names in capitals that are not
 * defined are -D defines: VMA_*, VMF_*, CTX_* ... are member offsets, and
 * EVENT_*, KIND_* ... come from model/records/events.py.
 *
 * A handler returns whether the stack is to be told, which the entry points do.
 *
 * Nothing here depends on a return being seen: entry points lose nothing, exits
 * only add results (kernel-semantics.md 8.1).
 */

/* include/linux/mm.h; the same in 5.10 to 7.2. */
#define VM_UFFD_MISSING 0x200UL
#define VM_UFFD_WP 0x1000UL
#define VM_HUGETLB 0x400000UL

/* include/linux/mm_types.h, enum fault_flag (macros before 5.19). */
#define FAULT_FLAG_WRITE 0x1
#define FAULT_FLAG_ALLOW_RETRY 0x4
#define FAULT_FLAG_RETRY_NOWAIT 0x8
#define FAULT_FLAG_USER 0x40
#define FAULT_FLAG_REMOTE 0x80
#define FAULT_FLAG_UNSHARE 0x400
#define FAULT_FLAG_ORIG_PTE_VALID 0x800

/* include/uapi/linux/bpf.h; BCC 0.18 has an older one. */
#ifndef BPF_F_MMAPABLE
#define BPF_F_MMAPABLE (1U << 10)
#endif

/* In place of an argument, which a kretprobe is not given. */
#define UNTOLD (~0UL)

/* include/linux/sched.h. */
#define PF_EXITING 0x4
#define PF_DUMPCORE 0x200

/*
 * A number of this boot or this trace: an address of the kernel, COLLECTOR, or FOLLOW (one
 * of collect/program.py's FOLLOW_*). The loader writes it where the placeholder stands
 * (collect/image.py). The compiler does not know it, so that what was compiled is good for
 * other boots and traces, too.
 */
#define SETTING(placeholder)                                      \
	({                                                        \
		u64 setting_;                                     \
		asm("%0 = " #placeholder " ll" : "=r"(setting_)); \
		setting_;                                         \
	})

/*
 * VALUE_OF_<name> is the address of the first value of an array map, behind which the others lie: a program
 * reaches them without a lookup. The loader writes it as it does a SETTING; collect/program.py names the maps
 * in VALUES.
 */

#define PAGE_MASK (~(u64)(PAGE_SIZE - 1))

/* A table fills a page. Level 0 has the entries of single pages. */
#define TABLE_SHIFT(level) (PAGE_SHIFT + (level) * (PAGE_SHIFT - 3))
#define PMD_SIZE (1UL << TABLE_SHIFT(1))
#if TABLE_SHIFT(4) < 64
#define MOST_LEVELS 5
#else
#define MOST_LEVELS 4
#endif

/* How the tables of an address space are reached: a part of the kernel's addresses maps all memory, in its order. */
struct direct_map {
	/* The first table. */
	u64 root;
	u64 begin;
	/* The physical address that the map begins with, where that is not 0. */
	u64 memory_begins;
	/* The bits of an entry that are a physical address. */
	u64 address_bits;
	/* TABLE_SHIFT() of the first table. */
	u32 top_shift;
};

/* What a thread is doing between entering a fault path and adding a page. */
enum mark_kind { MARK_HOLE = 1, MARK_PROTECTED_HOLE, MARK_HUGE, MARK_HUGE_ZERO };

struct mark {
	u64 page;
	u64 ctx;
	/* 0 where there is none. */
	u32 kind;
	u32 write;
};

struct ioctl_call {
	/* 0 where there is none. */
	u64 ctx;
	u64 argument;
	u32 command;
	/* start, end and mode were in memory when the call began. */
	u32 readable;
	u64 start;
	u64 end;
	u64 mode;
	/* What it did, which its return tells: the first waiter that it woke, and a release of all of its range. */
	u64 woke_at;
	u64 released_at;
	u32 woke_tid;
	u32 woke_flags;
	u32 released_memory;
	u32 pad;
};

/* An area, as good as the range it lies in. */
struct place {
	u64 ctx;
	u64 vm_start;
};

struct sleeper {
	/* Its ctx is 0 where the thread is in no fault. */
	struct place place;
	u32 memory;
	/* Somebody woke it. */
	u32 woken;
};

/*
 * A userfaultfd or an address space that has passed a filter. It need not be looked up
 * again until one of either kind goes: only then can its address be another's.
 */
struct pass {
	u64 key;
	u64 generation;
};

/*
 * What a thread is in the middle of. It is written in place: an update and a delete of
 * a map for each fault would cost more than all the rest.
 */
struct thread {
	/* What the collector reads; `tid` says whose all of it is. */
	struct thread_head head;
	struct mark mark;
	struct ioctl_call call;
	/* The userfaultfd of the memory that change_protection() is arming, or 0. */
	u64 protects;
	struct sleeper sleeper;
	/* The userfaultfd whose memory it faulted in: all of that is of one address space, as handle_userfault() checks. */
	struct pass faults;
	/* The userfaultfd that it called. */
	struct pass calls;
	/* The userfaultfd whose monitor read its message. */
	struct pass told;
	/* The event of which the program that runs is to tell the stack. */
	u64 shown_at;
	u32 shown_type;
	/* By type of event: how far `shows.level` was when its stack was told. */
	u8 shown[16];
	/* UFFD_FEATURE_* of the userfaultfd in `faults`: UFFDIO_API sets them once, before memory can be registered. */
	u32 features;
};

/* Stacks are told once for each thread, type of event, and level. */
struct shows {
	/* One more than the power of two of how often memory was armed: what is armed again and again shows less often. */
	u64 level;
	u64 arms;
	/* How many stacks were told. */
	u64 told;
};

struct huge_write {
	u64 ctx;
	u64 mm;
	u64 address;
	u32 memory;
	u32 pad;
};

struct page_scan {
	u64 mm;
	u64 argument;
	/* The argument was in memory when the call began. */
	u64 readable;
};

struct counts {
	u64 slot[COUNTER_SLOTS];
};

/*
 * The last level of the page table is read in parts of so many entries: all of a table with pages
 * of 4 KiB. A table of pages of 64 KiB is more than a map has for one CPU.
 */
#define TABLE_PART 512
#define TABLE_PART_SHIFT (PAGE_SHIFT + 9)
/* How many of them a REGISTER has us read: 32 MiB of populated memory with pages of 4 KiB. */
#define MOST_TABLES 16

struct table {
	u64 entry[TABLE_PART];
	/* A program of another thread counts on this CPU, and was preempted. */
	u64 busy;
};

BPF_RINGBUF_OUTPUT(events, RING_PAGES);
/*
 * All memory of a map is taken when it is made. What finds it full is counted among the
 * dropped events. Processes, userfaultfds and address spaces: 16,384 are more than a
 * hypervisor has guests, and take a megabyte each. Threads and areas are several to each
 * of those. The smaller ones hold who is within one function now: ksmd alone merges, and
 * what scans or unmerges is one thread of a process.
 */
/* tgids we follow: their userfaultfds, or those on their memory. */
BPF_HASH(followed, u32, u8, 16384);
/* mm_structs, with 1 where their events are recorded. */
BPF_HASH(traced, u64, u8, 16384);
/* userfaultfd_ctxs that a USERFAULTFD event told of, or that we saw made, with what was told of each. */
#define KNOWN 1
#define BLOCKING 2
BPF_HASH(known, u64, u8, 16384);
/*
 * Threads that did something. Each has the slot of its tid's low bits, as an array costs a
 * tenth of a hash, unless another lives that came first (slot_owners, by slot): then it is
 * among the crowded ones, by tid. A thread gives its place away when it exits. The array is
 * one value for the kernel, which 5.10 limits to 4 MiB (collect/program.py, VALUES).
 */
#define THREAD_SLOTS 16384
BPF_F_TABLE("array", u32, struct thread, threads, THREAD_SLOTS, BPF_F_MMAPABLE);
_Static_assert(sizeof(struct thread) * THREAD_SLOTS <= 4 << 20, "the kernel makes no map with such a value");
BPF_HASH(slot_owners, u32, u32, THREAD_SLOTS);
/* Of 300 threads with tids at random three find their own slot taken. With the slots there is room for 98,304. */
BPF_HASH(crowded, u32, struct thread, 81920);
BPF_HASH(merges, u32, u64, 64);
/* Threads in ioctl(PAGEMAP_SCAN) with PM_SCAN_WP_MATCHING. */
BPF_HASH(page_scans, u32, struct page_scan, 1024);
/* Threads that drop the entries of an area, with its userfaultfd. */
BPF_HASH(zapping, u32, u64, 16384);
/* Threads in do_huge_pmd_wp_page(), with the address of their fault. */
BPF_HASH(huge_writes, u32, struct huge_write, 16384);
/* Threads in break_ksm(), with the page: ksmd, and who calls madvise(MADV_UNMERGEABLE). */
BPF_HASH(unmerging, u32, u64, 1024);
/* tgids whose names were told. */
BPF_HASH(named, u32, u8, 16384);
BPF_PERCPU_ARRAY(tables, struct table, 1);
BPF_HASH(counters, struct place, struct counts, 65536);
/* Read through mmap: while bpf(2) looks an entry up, kprobe programs are skipped on its CPU, also if it is preempted. */
BPF_F_TABLE("array", u32, u64, losses, LOSS_COUNT, BPF_F_MMAPABLE);
/* Grows as a userfaultfd or an address space goes. */
BPF_ARRAY(generations, u64, 1);
BPF_ARRAY(shows, struct shows, 1);
/*
 * A record costs least where nobody else writes: each CPU has lanes of its own, of
 * LANE_SLOTS records each, which the collector reads through mmap. What finds its lane full,
 * or another program in it, goes into the ring.
 */
/* LANES of each CPU: one for programs that run within a thread's call, one for a probe that may run as an NMI does. */
BPF_F_TABLE("array", u32, struct event, slots, (CPUS)*LANES *(LANE_SLOTS), BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, struct lane, lanes, (CPUS)*LANES, BPF_F_MMAPABLE);
/* How far the collector has read. */
BPF_F_TABLE("array", u32, u64, tails, (CPUS)*LANES, BPF_F_MMAPABLE);

#ifdef RDONLY_CAST
/*
 * void *bpf_rdonly_cast(const void *obj__ign, u32 btf_id__k)
 *
 * Any number becomes a pointer to a struct of this number in BTF: INTEGERS begins with one of
 * 64 bits. It costs nothing (the verifier puts a move in its place), and is pure: one cast does
 * for an address that is loaded from twice.
 */
static u64 (*rdonly_cast)(u64 address, u32 type) __attribute__((const)) = (void *)RDONLY_CAST;
#endif

#ifdef SESSION_IS_RETURN
/* bool bpf_session_is_return(void *ctx); up to 6.19 without an argument, which does no harm there. */
static bool (*session_is_return)(void *context) = (void *)SESSION_IS_RETURN;
#endif

/*
 * bpf_probe_read_user(). For each call by that name BCC looks whether the kernel has the function, and
 * reads all of the kernel's symbols to find out, which takes longer than to compile the call.
 */
static long (*read_user)(void *to, u32 size, const void *from) = (void *)BPF_FUNC_probe_read_user;

#ifdef CURRENT_TASK
/* bpf_get_current_task_btf(), which BCC 0.18 does not know. A program's task stays the same: one call does for all. */
static u64 (*current_task_btf)(void) __attribute__((const)) = (void *)CURRENT_TASK;
#endif

/*
 * What a pointer points to is loaded as by any instruction where the verifier knows its type: in
 * programs of fentry, which are given typed pointers, that of an argument and of a pointer loaded
 * so (`typed`), and where the kernel has bpf_rdonly_cast(), any. Else it takes a helper, which
 * costs some twenty times as much. Where there is nothing at an address, either brings 0.
 */
static __always_inline bool is_direct(bool typed)
{
#ifdef RDONLY_CAST
	return true;
#else
	return typed;
#endif
}

static __always_inline u64 load64(bool typed, u64 address)
{
	if (typed)
		return *(u64 *)address;
#ifdef RDONLY_CAST
	return *(u64 *)rdonly_cast(address, INTEGERS);
#else
	u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (void *)address);
	return value;
#endif
}

static __always_inline u32 load32(bool typed, u64 address)
{
	if (typed)
		return *(u32 *)address;
#ifdef RDONLY_CAST
	return *(u32 *)rdonly_cast(address, INTEGERS);
#else
	u32 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (void *)address);
	return value;
#endif
}

/*
 * A pointer to a struct of this number in BTF: its members are loaded as those of a typed one where
 * is_direct(). To cast once for all of them takes fewer instructions than a cast for each.
 */
static __always_inline u64 as_struct(bool typed, u64 address, u32 type)
{
#ifdef RDONLY_CAST
	if (!typed)
		return rdonly_cast(address, type);
#endif
	return address;
}

/* A member of the task that runs. */
static __always_inline u64 load64_of_task(u32 member)
{
#ifdef CURRENT_TASK
	return load64(true, current_task_btf() + member);
#else
	return load64(false, (u64)bpf_get_current_task() + member);
#endif
}

static __always_inline u32 load32_of_task(u32 member)
{
#ifdef CURRENT_TASK
	return load32(true, current_task_btf() + member);
#else
	return load32(false, (u64)bpf_get_current_task() + member);
#endif
}

/*
 * The tid of the task that runs, and its tgid in the upper half, as bpf_get_current_pid_tgid() tells them. Two loads
 * take fewer instructions than that helper, but where the kernel checks the address of each (not TRUSTED_TASK) more.
 */
static __always_inline u64 current_id(void)
{
#ifdef TRUSTED_TASK
	return (u64)load32_of_task(TASK_TGID) << 32 | load32_of_task(TASK_PID);
#else
	return bpf_get_current_pid_tgid();
#endif
}

static __always_inline u64 read64(u64 address)
{
	return load64(false, address);
}

static __always_inline u32 read32(u64 address)
{
	return load32(false, address);
}

static __always_inline void lose(int what)
{
	u64 *count = losses.lookup(&what);

	if (count)
		__sync_fetch_and_add(count, 1);
}

/* An event that has its time. False where there was no room for it. */
static __always_inline bool submit(struct event *event)
{
	struct event *record;

	record = events.ringbuf_reserve(sizeof(*record));
	if (!record) {
		lose(LOSS_RING_FULL);
		return false;
	}
	*record = *event;
	events.ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	return true;
}

/* The slot of a lane, by its number, that its head is at. */
static __always_inline struct event *slot_at(u64 number, u64 head)
{
	u32 place = head & ((LANE_SLOTS)-1);
#ifdef VALUE_OF_SLOTS
	struct event *first = (struct event *)VALUE_OF_SLOTS + number * (LANE_SLOTS);

	/* Else the compiler joins both numbers bit by bit, and the verifier sees a place behind the last slot. */
	asm volatile("" : "+r"(first));
	return first + place;
#else
	u32 index = number * (LANE_SLOTS) + place;

	return slots.lookup(&index);
#endif
}

/* Writes a record into a lane, by its number. False where it is full, or another program writes into it. */
static __always_inline bool keep(struct event *event, u64 number)
{
	volatile struct lane *lane;
	volatile u64 *tail;
	struct event *slot;
	bool kept = false;
	u64 head;

	/* No instruction that every kernel has for us would keep the head behind the slot. */
	if (!ORDERED)
		return false;
	/* Else the compiler may compare one copy of it and add another, of which the verifier knows no limit. */
	asm volatile("" : "+r"(number));
	if (number >= (CPUS)*LANES)
		return false;
	asm volatile("" : "+r"(number));
	lane = (struct lane *)VALUE_OF_LANES + number;
	tail = (u64 *)VALUE_OF_TAILS + number;
	if (lane->busy)
		return false;
	lane->busy = 1;
	head = lane->head;
	slot = slot_at(number, head);
	if (slot && head - *tail < (LANE_SLOTS)) {
		*slot = *event;
		/* The collector trusts the head: it must move last. */
		asm volatile("" ::: "memory");
		lane->head = head + 1;
		kept = true;
	}
	lane->busy = 0;
	return kept;
}

/*
 * An event of a program that may run often, and knows its thread. One of fentry can be preempted
 * where the kernel can (PREEMPTIBLE): two of them could take a lane for free at once.
 */
static __always_inline bool submit_often(bool typed, u64 id, struct event *event)
{
	event->tid = id;
	event->tgid = id >> 32;
	return (!(typed && PREEMPTIBLE) && keep(event, bpf_get_smp_processor_id() * LANES)) || submit(event);
}

static __always_inline void emit_often(bool typed, u64 id, struct event *event)
{
	event->time = bpf_ktime_get_ns();
	submit_often(typed, id, event);
}

static __always_inline void emit(struct event *event)
{
	event->time = bpf_ktime_get_ns();
	submit(event);
}

static __always_inline void emit_here(struct event *event)
{
	u64 id = current_id();

	event->tid = id;
	event->tgid = id >> 32;
	emit(event);
}

/* Of the probe that may run as an NMI does, for which the ring's lock is only tried. */
static __always_inline bool emit_message(struct event *event)
{
	event->time = bpf_ktime_get_ns();
	return keep(event, bpf_get_smp_processor_id() * LANES + 1) || submit(event);
}

/* A fault or message that could not be recorded: how many there were is known all the same. */
static __always_inline void count(u64 ctx, u64 vm_start, u32 slot)
{
	struct place key = {.ctx = ctx, .vm_start = vm_start};
	struct counts zero = {};
	struct counts *counts = counters.lookup(&key);

	if (!counts) {
		counters.insert(&key, &zero);
		counts = counters.lookup(&key);
	}
	/* The mask is for the verifier: a comparison may be moved away from the access. */
	if (counts)
		__sync_fetch_and_add(&counts->slot[slot & (COUNTER_SLOTS - 1)], 1);
	else
		lose(LOSS_MAP_FULL);
}
