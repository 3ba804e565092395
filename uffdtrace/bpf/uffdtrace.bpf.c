// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What uffdtrace sees in the kernel.
 *
 * One on_<row>() per row of the probe table (kernel/probes.py); the loader adds
 * the entry points that call them, as kprobe or fentry, with arguments taken
 * from their places in the running kernel's BTF. Names in capitals that are not
 * defined here are -D defines: VMA_*, VMF_*, CTX_* ... are member offsets, and
 * EVENT_*, KIND_* ... come from model/events.py.
 *
 * Nothing here depends on a return being seen: entry points lose nothing, exits
 * only add results (kernel-semantics.md 8.1).
 */

/* include/linux/mm.h; the same in 5.10 to 7.2. */
#define VM_UFFD_MISSING 0x200UL
#define VM_UFFD_WP 0x1000UL
#define VM_HUGETLB 0x400000UL
#define VM_WIPEONFORK 0x2000000UL
#define VM_MERGEABLE 0x80000000UL

/* include/linux/mm_types.h, enum fault_flag (macros before 5.19). */
#define FAULT_FLAG_WRITE 0x1
#define FAULT_FLAG_ALLOW_RETRY 0x4
#define FAULT_FLAG_RETRY_NOWAIT 0x8
#define FAULT_FLAG_USER 0x40
#define FAULT_FLAG_REMOTE 0x80
#define FAULT_FLAG_UNSHARE 0x400
#define FAULT_FLAG_ORIG_PTE_VALID 0x800

/* include/linux/mm_types.h, enum vm_fault_reason. */
#define VM_FAULT_FALLBACK 0x800

/* include/linux/mm.h. */
#define MM_CP_UFFD_WP 0x4
#define MM_CP_UFFD_WP_RESOLVE 0x8

/* arch/x86/include/asm/segment.h, __USER_CS: the code segment of 64-bit user mode. */
#define USER_CS 0x33

/* include/uapi/linux/bpf.h; BCC 0.18 has an older one. */
#ifndef BPF_F_MMAPABLE
#define BPF_F_MMAPABLE (1U << 10)
#endif

/* include/linux/signal.h, sigmask(SIGKILL). */
#define SIGKILL_PENDING (1UL << 8)

/* include/uapi/asm-generic/errno-base.h. */
#define EFAULT 14

/* include/linux/sched.h. */
#define PF_EXITING 0x4
#define PF_DUMPCORE 0x200

/* UFFD_FEATURE_*, UFFD_USER_MODE_ONLY. */
#define FEATURE_EVENT_FORK 0x2
#define FEATURE_EVENT_REMOVE 0x8
#define FEATURE_SIGBUS 0x80
#define USER_MODE_ONLY 0x1

#ifdef FOLLOW_ALL
#define FOLLOW_FORKS
#endif

/* arch/x86/entry/syscalls/syscall_64.tbl. */
#define SYS_PROCESS_MADVISE 440

#define UFFDIO 0xAA
#define PAGE_MASK (~(u64)(PAGE_SIZE - 1))

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
	u32 pad;
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
	struct mark mark;
	struct ioctl_call call;
	/* The userfaultfd of the memory that change_protection() is arming, or 0. */
	u64 protects;
	struct sleeper sleeper;
	/* The address space that it faulted in. */
	struct pass faults;
	/* The userfaultfd that it called. */
	struct pass calls;
	/* The userfaultfd whose monitor read its message. */
	struct pass told;
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

/* The last level of the page table: an entry for each page of PMD_SIZE. */
#define TABLE_ENTRIES 512
#define TABLE_SIZE 4096
/* How many of them a REGISTER has us read: 32 MiB of populated memory. */
#define MOST_TABLES 16

struct table {
	u64 entry[TABLE_ENTRIES];
	/* A program of another thread counts on this CPU, and was preempted. */
	u64 busy;
};

BPF_RINGBUF_OUTPUT(events, RING_PAGES);
/* tgids we follow: their userfaultfds, or those on their memory. */
BPF_HASH(followed, u32, u8, 16384);
/* mm_structs, with 1 where their events are recorded. */
BPF_HASH(traced, u64, u8, 16384);
/* userfaultfd_ctxs that a USERFAULTFD event told of, or that we saw made, with what was told of each. */
#define KNOWN 1
#define BLOCKING 2
BPF_HASH(known, u64, u8, 16384);
/* By tid; a thread takes its entry along when it exits. */
BPF_HASH(threads, u32, struct thread, 65536);
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
BPF_ARRAY(losses, u64, LOSS_COUNT);
/* Grows as a userfaultfd or an address space goes. */
BPF_ARRAY(generations, u64, 1);
/*
 * Messages. A probe inside a function runs in NMI context (int3), where the
 * ring's lock is only tried: so each CPU has slots of its own, written by one
 * program at a time and read through mmap. `heads` counts what was ever written.
 */
BPF_F_TABLE("array", u32, struct event, messages, (CPUS) * (MESSAGE_SLOTS), BPF_F_MMAPABLE);
BPF_F_TABLE("array", u32, u64, heads, CPUS, BPF_F_MMAPABLE);

/*
 * Programs of fentry are given typed pointers: what these point to is loaded as by any
 * instruction, and a pointer that is loaded so has a type again. Elsewhere, and behind a
 * void pointer, it takes a helper, which costs several times as much.
 */
static __always_inline u64 load64(bool typed, u64 address)
{
	u64 value = 0;

	if (typed)
		return *(u64 *)address;
	bpf_probe_read_kernel(&value, sizeof(value), (void *)address);
	return value;
}

static __always_inline u32 load32(bool typed, u64 address)
{
	u32 value = 0;

	if (typed)
		return *(u32 *)address;
	bpf_probe_read_kernel(&value, sizeof(value), (void *)address);
	return value;
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

static __always_inline void emit(struct event *event)
{
	struct event *record;

	event->time = bpf_ktime_get_ns();
	record = events.ringbuf_reserve(sizeof(*record));
	if (!record) {
		lose(LOSS_RING_FULL);
		return;
	}
	*record = *event;
	events.ringbuf_submit(record, BPF_RB_NO_WAKEUP);
}

static __always_inline void emit_here(struct event *event)
{
	u64 id = bpf_get_current_pid_tgid();

	event->tid = id;
	event->tgid = id >> 32;
	emit(event);
}

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

static __always_inline void keep_message(struct event *event)
{
	u32 cpu = bpf_get_smp_processor_id();
	u64 *head = heads.lookup(&cpu);
	struct event *slot;
	u32 index;

	if (!head)
		return;
	index = cpu * MESSAGE_SLOTS + (*head & (MESSAGE_SLOTS - 1));
	slot = messages.lookup(&index);
	if (!slot)
		return;
	event->time = bpf_ktime_get_ns();
	*slot = *event;
	/* The reader trusts the head: it must move last. */
	asm volatile("" ::: "memory");
	*(volatile u64 *)head = *head + 1;
}

/* ---- what a thread does --------------------------------------------------- */

/* What is known of a thread; null for one that did nothing yet. */
static __always_inline struct thread *thread_of(u32 tid)
{
	return threads.lookup(&tid);
}

static __always_inline struct thread *this_thread(void)
{
	return thread_of(bpf_get_current_pid_tgid());
}

/* Null only where there is no room for one more. */
static __always_inline struct thread *make_thread(void)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct thread *thread = threads.lookup(&tid);
	struct thread nothing = {};

	if (thread)
		return thread;
	threads.insert(&tid, &nothing);
	thread = threads.lookup(&tid);
	if (!thread)
		lose(LOSS_MAP_FULL);
	return thread;
}

/* At a thread's exit: its number will be another's, and the map has room for those that live. */
static __always_inline int forget_thread(void)
{
	u32 tid = bpf_get_current_pid_tgid();

	threads.delete(&tid);
	return 0;
}

/* ---- what has passed a filter --------------------------------------------- */

/*
 * The generation of a pass that is made now; never 0, which an empty pass has. It is read
 * before the filter's maps are: what goes between the two makes the pass void.
 */
static __always_inline u64 generation(void)
{
	int zero = 0;
	u64 *count = generations.lookup(&zero);

	return count ? *(volatile u64 *)count + 1 : 1;
}

/* Makes all passes void. A userfaultfd or address space leaves the filter's maps first, or a new pass could name it. */
static __always_inline void void_passes(void)
{
	int zero = 0;
	u64 *count = generations.lookup(&zero);

	if (count)
		__sync_fetch_and_add(count, 1);
}

static __always_inline bool passed(struct pass *pass, u64 key, u64 now)
{
	return pass->generation == now && pass->key == key;
}

static __always_inline void let_pass(struct pass *pass, u64 key, u64 now)
{
	pass->key = key;
	pass->generation = now;
}

/* ---- whose memory ------------------------------------------------------- */

struct area {
	bool typed;
	u64 vma;
	u64 flags;
	u64 mm;
	u64 ctx;
};

static __always_inline bool is_traced(u64 mm)
{
	u8 *value = traced.lookup(&mm);

	return value && *value;
}

/* An area with a userfaultfd, in whatever address space. */
static __always_inline bool read_area(bool typed, u64 vma, u64 wanted_flags, struct area *area)
{
	area->typed = typed;
	area->vma = vma;
	area->ctx = load64(typed, vma + VMA_CTX);
	if (!area->ctx)
		return false;
	area->flags = load64(typed, vma + VMA_FLAGS);
	if (wanted_flags && !(area->flags & wanted_flags))
		return false;
	area->mm = load64(typed, vma + VMA_MM);
	return true;
}

/* An area with a userfaultfd in an address space we trace. */
static __always_inline bool registered_area(bool typed, u64 vma, u64 wanted_flags, struct area *area)
{
	return read_area(typed, vma, wanted_flags, area) && is_traced(area->mm);
}

/* As vma_is_anonymous() and vma_is_shmem() tell them. */
static __always_inline u32 memory_by_ops(u64 ops)
{
	if (!ops)
		return MEMORY_ANON;
#ifdef SHMEM_VM_OPS
	if (ops == SHMEM_VM_OPS)
		return MEMORY_SHMEM;
#ifdef SHMEM_ANON_VM_OPS
	if (ops == SHMEM_ANON_VM_OPS)
		return MEMORY_SHMEM;
#endif
#ifdef SHM_VM_OPS
	if (ops == SHM_VM_OPS)
		return MEMORY_SHMEM;
#endif
	return MEMORY_FILE;
#else
	/* A kernel without CONFIG_SHMEM has tmpfs on ramfs, which is no memory of this kind. */
	return MEMORY_FILE;
#endif
}

static __always_inline u32 memory_of(struct area *area)
{
	u64 superblock, hstate;

	if (!(area->flags & VM_HUGETLB))
		return memory_by_ops(load64(area->typed, area->vma + VMA_OPS));
	superblock = read64(read64(read64(area->vma + VMA_FILE) + FILE_INODE) + INODE_SB);
	hstate = read64(read64(superblock + SB_FS_INFO) + HUGETLBFS_HSTATE);
	return MEMORY_HUGETLB | read32(hstate + HSTATE_ORDER) << MEMORY_ORDER_SHIFT;
}

static __always_inline u32 owner_of(u64 mm)
{
#ifdef MM_OWNER
	u64 task = read64(mm + MM_OWNER);

	return task ? read32(task + TASK_TGID) : 0;
#else
	return 0;
#endif
}

static __always_inline bool admit(u64 mm)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	u8 *value = traced.lookup(&mm);
	u32 owner;
	u8 one = 1;

	if (value)
		return *value;
	/* It tries what the kernel offers on memory of its own. */
	if (tgid == COLLECTOR)
		return false;
	owner = owner_of(mm);
#ifdef MM_OWNER
	/* Its memory is gone, and the address may be another's soon. */
	if (!owner)
		return false;
#endif
#ifndef FOLLOW_ALL
	if (!followed.lookup(&tgid) && !followed.lookup(&owner))
		return false;
#endif
	if (traced.update(&mm, &one)) {
		lose(LOSS_MAP_FULL);
		return false;
	}
	return true;
}

static __always_inline void know(u64 ctx)
{
	u8 value = KNOWN;

	if (known.update(&ctx, &value))
		lose(LOSS_MAP_FULL);
}

static __always_inline void describe(struct event *event, u64 ctx)
{
	event->type = EVENT_USERFAULTFD;
	event->ctx = ctx;
	event->start = read64(ctx + CTX_MM);
	event->end = read32(ctx + CTX_FEATURES);
	event->aux = owner_of(event->start);
}

/* A process may be gone before anybody looks into /proc. False where its name was told before. */
static __always_inline bool describe_process(struct event *event, u64 task)
{
	u32 tgid = task ? read32(task + TASK_TGID) : 0;
	u64 words[2] = {};
	u8 one = 1;

	if (!tgid || named.lookup(&tgid))
		return false;
	if (named.update(&tgid, &one))
		lose(LOSS_MAP_FULL);
	bpf_probe_read_kernel(words, sizeof(words), (void *)(read64(task + TASK_LEADER) + TASK_COMM));
	event->type = EVENT_PROCESS_NAME;
	event->tid = event->tgid = tgid;
	event->start = words[0];
	event->end = words[1];
	return true;
}

static __always_inline void emit_process(u64 task)
{
	struct event event = {};

	if (describe_process(&event, task))
		emit(&event);
}

static __always_inline void emit_userfaultfd(u64 ctx, u8 late)
{
	struct event event = {.kind = late};

	emit_process((u64)bpf_get_current_task());
#ifdef MM_OWNER
	emit_process(read64(read64(ctx + CTX_MM) + MM_OWNER));
#endif
	describe(&event, ctx);
	know(ctx);
	emit_here(&event);
}

/* ---- page tables --------------------------------------------------------- */

struct entry {
	u64 value;
	u32 shift;
};

/*
 * The entry that maps an address, read without locks: a hint that later events
 * confirm or correct, never a count by itself.
 */
static __always_inline struct entry walk(u64 mm, u64 address)
{
	struct entry found = {};
	u64 direct_map = read64(PAGE_OFFSET_BASE);
	u64 physical = read64(PHYSICAL_MASK) & PAGE_MASK;
	u64 table = read64(mm + MM_PGD);

#ifdef PGTABLE_L5_ENABLED
	if (read32(PGTABLE_L5_ENABLED)) {
		found.shift = 48;
		found.value = read64(table + ((address >> 48 & 511) << 3));
		if (!(found.value & PTE_PRESENT))
			return found;
		table = direct_map + (found.value & physical);
	}
#endif
#pragma unroll
	for (int shift = 39; shift >= 12; shift -= 9) {
		found.shift = shift;
		found.value = read64(table + ((address >> shift & 511) << 3));
		if (!(found.value & PTE_PRESENT) || (shift < 39 && shift > 12 && found.value & PTE_HUGE))
			return found;
		table = direct_map + (found.value & physical);
	}
	return found;
}

/* Where the table of an entry is, or 0 where the entry has none: reading there then brings zeroes. */
static __always_inline u64 table_of(u64 value, u64 direct_map, u64 physical, bool may_be_huge)
{
	u64 huge = may_be_huge ? value / PTE_HUGE & 1 : 0;

	return (direct_map + (value & physical)) & -(value & PTE_PRESENT & ~huge);
}

/*
 * Populated pages, of the `pages` from an address on that PMD_SIZE holds at most;
 * swapped ones do not count. `shift` becomes that of the entry which decided.
 * There is no branch in it: the verifier follows every path through every turn
 * of the caller's loop.
 */
static __always_inline u64 count_present(struct table *table, u64 mm, u64 address, u64 end, u32 *shift)
{
	u64 direct_map = read64(PAGE_OFFSET_BASE);
	u64 physical = read64(PHYSICAL_MASK) & PAGE_MASK;
	u64 top, upper, middle, place, present, outside;
	u64 pages, huge, last;

	top = read64(mm + MM_PGD);
#ifdef PGTABLE_L5_ENABLED
	if (read32(PGTABLE_L5_ENABLED))
		top = table_of(read64(top + ((address >> 48 & 511) << 3)), direct_map, physical, false);
#endif
	place = table_of(read64(top + ((address >> 39 & 511) << 3)), direct_map, physical, false);
	/* Nothing above the entries of 1 GiB is worth a turn of its own. */
	upper = read64(place + ((address >> 30 & 511) << 3));
	place = table_of(upper, direct_map, physical, true);
	middle = read64(place + ((address >> 21 & 511) << 3));
	*shift = 21 + 9 * (place == 0);
	place = table_of(middle, direct_map, physical, true);
	bpf_probe_read_kernel(table->entry, TABLE_SIZE, (void *)place);
	last = ((address >> *shift) + 1) << *shift;
	last = last < end ? last : end;
	pages = (last - address) >> 12;
	huge = (upper & upper / PTE_HUGE & PTE_PRESENT) | (middle & middle / PTE_HUGE & PTE_PRESENT);
	present = huge * pages;
	/* Counts up from below 0 at the first page, so that its sign says whether one lies before it. */
	outside = -(address >> 12 & 511);
#pragma clang loop unroll(disable)
	for (int i = 0; i < TABLE_ENTRIES; i += 16) {
#pragma unroll
		for (int j = 0; j < 16; j++) {
			u64 entry = table->entry[i + j];

			entry |= entry >> PTE_PROTNONE_SHIFT;
			present += entry & PTE_PRESENT & ((outside - pages & ~outside) >> 63);
			outside++;
			/* Else the compiler prepares all turns first, and has no room for what it prepared. */
			asm volatile("" : "+r"(present), "+r"(outside));
		}
	}
	return present;
}

/* The pages of start..end that will send no MISSING message, for they are there; kind=1 if there may be more. */
static __always_inline void emit_present(struct event *call, u64 mm)
{
	struct event event = {.type = EVENT_PRESENT, .ctx = call->ctx, .start = call->start, .end = call->end};
	u64 at = call->start & PAGE_MASK;
	u64 end = call->end & PAGE_MASK;
	struct table *table;
	u32 shift;
	int zero = 0;

	table = tables.lookup(&zero);
	if (!table)
		return;
	/* Swapped-out pages are there, too. */
	event.kind = table->busy || read64(TOTAL_SWAP_PAGES) != read64(FREE_SWAP_PAGES);
	if (!table->busy) {
		table->busy = 1;
#pragma clang loop unroll(disable)
		for (int i = 0; i < MOST_TABLES; i++) {
			if (at >= end)
				break;
			event.value += count_present(table, mm, at, end, &shift);
			at = ((at >> shift) + 1) << shift;
		}
		table->busy = 0;
	}
	if (at < end)
		event.kind = 1;
	emit_here(&event);
}

/* ---- descriptors and ioctls ---------------------------------------------- */

/* A struct userfaultfd_wait_queue, read at once: member by member it would take a helper for each. */
struct waiter {
	u64 words[UWQ_SIZE / 8];
};

/* `entry` is that of the wait queue. */
static __always_inline void read_waiter(struct waiter *waiter, u64 entry)
{
	__builtin_memset(waiter, 0, sizeof(*waiter));
	bpf_probe_read_kernel(waiter, sizeof(*waiter), (void *)(entry - UWQ_WQ));
}

static __always_inline u64 task_of(struct waiter *waiter)
{
	return waiter->words[(UWQ_WQ + WQE_PRIVATE) / 8];
}

static __always_inline void describe_waiter(struct event *event, struct waiter *waiter)
{
	event->ctx = waiter->words[UWQ_CTX / 8];
	event->aux = waiter->words[UWQ_MSG / 8 + 1];
	event->start = waiter->words[UWQ_MSG / 8 + 2];
}

static __always_inline u8 message_kind(u64 flags)
{
	return flags & MESSAGE_FLAG_WP ? KIND_WP : flags & MESSAGE_FLAG_MINOR ? KIND_MINOR : KIND_MISSING;
}

/* Of each queue of a userfaultfd: the loop below must have an end. */
#define MOST_WAITERS 512

/*
 * Who waits in a queue of a userfaultfd since before the trace. It is read without
 * the queue's lock: an entry that goes meanwhile leads elsewhere, so the walk ends
 * where an entry is not this userfaultfd's.
 */
static __always_inline void emit_waiters(u64 uffd, u64 head, u32 type, bool read)
{
	u64 next = read64(head);
	struct waiter waiter;
	struct event event;
	u64 entry;

#pragma clang loop unroll(disable)
	for (int i = 0; i < MOST_WAITERS; i++) {
		entry = next - WQE_ENTRY;
		read_waiter(&waiter, entry);
		if (next == head || waiter.words[UWQ_CTX / 8] != uffd)
			break;
		__builtin_memset(&event, 0, sizeof(event));
		event.type = type;
		describe_waiter(&event, &waiter);
		event.tid = read32(task_of(&waiter) + TASK_PID);
		if (type == EVENT_FAULT_FOUND) {
			event.kind = message_kind(event.aux);
			event.value = read;
		} else {
			event.kind = waiter.words[UWQ_MSG / 8] & 0xff;
		}
		event.tgid = read32(task_of(&waiter) + TASK_TGID);
		emit(&event);
		next = read64(next);
	}
}

int on_fdinfo(bool typed, u64 m, u64 file)
{
	struct event event = {};
	u64 uffd = read64(file + FILE_PRIVATE);

	if ((u32)(bpf_get_current_pid_tgid() >> 32) != COLLECTOR)
		return 0;
	describe(&event, uffd);
	emit_here(&event);
	emit_waiters(uffd, uffd + CTX_READ_FAULTS, EVENT_FAULT_FOUND, true);
	emit_waiters(uffd, uffd + CTX_UNREAD_FAULTS, EVENT_FAULT_FOUND, false);
	emit_waiters(uffd, uffd + CTX_UNREAD_EVENTS, EVENT_EVENT_FOUND, false);
	return 0;
}

/* The collector reads /proc/PID/maps: only here does the kernel say whose a mapping is. */
int on_area(bool typed, u64 m, u64 vma)
{
	struct event event = {.type = EVENT_AREA};
	struct area area;

	if ((u32)(bpf_get_current_pid_tgid() >> 32) != COLLECTOR || !registered_area(typed, vma, 0, &area))
		return 0;
	event.ctx = area.ctx;
	event.start = read64(vma + VMA_START);
	event.end = read64(vma + VMA_END);
	event.flags = memory_of(&area);
	emit_here(&event);
	return 0;
}

/*
 * Copies the members that every UFFDIO struct has, wherever they stand in it. False where
 * they are not in memory: the call brings them there, so its return can read them.
 */
static __always_inline bool read_argument(struct event *event, u32 command, u64 argument)
{
	u64 words[5] = {};
	u32 size = command >> 16 & 0x3fff;
	int failed;

	/* _IOC_SIZE: reading past the struct could fault where the call does not. */
	if (size >= 40)
		failed = bpf_probe_read_user(words, 40, (void *)argument);
	else if (size >= 32)
		failed = bpf_probe_read_user(words, 32, (void *)argument);
	else if (size >= 24)
		failed = bpf_probe_read_user(words, 24, (void *)argument);
	else
		failed = bpf_probe_read_user(words, 16, (void *)argument);
	if (failed)
		return false;
	event->start = words[0];
	if (event->kind == IOCTL_COPY || event->kind == IOCTL_MOVE) {
		event->end = words[0] + words[2];
		event->aux = words[3];
		event->value = event->type == EVENT_IOCTL ? words[1] : words[4];
	} else if (event->kind != IOCTL_API) {
		event->end = words[0] + words[1];
		event->aux = words[2];
		event->value = event->type == EVENT_IOCTL ? 0 : words[3];
	} else {
		event->start = 0;
		event->aux = words[1];
	}
	return true;
}

/* Whether the kernel writes a result into the struct that the call was given. */
static __always_inline bool has_result(u32 call)
{
	return call != IOCTL_WRITEPROTECT && call != IOCTL_UNREGISTER && call != IOCTL_WAKE;
}

int on_ioctl(bool typed, u64 file, u64 command, u64 argument)
{
	struct event event = {.type = EVENT_IOCTL, .kind = command & 0xff};
	struct thread *thread;
	bool readable;
	u64 now;

	if ((command >> 8 & 0xff) != UFFDIO)
		return 0;
	event.ctx = load64(typed, file + FILE_PRIVATE);
	now = generation();
	thread = this_thread();
	if (event.kind == IOCTL_API || event.kind == IOCTL_REGISTER || !thread ||
	    !passed(&thread->calls, event.ctx, now)) {
		if (!admit(read64(event.ctx + CTX_MM))) {
			/* The return of an earlier call may have been lost: this call's must not be taken for it. */
			if (thread)
				thread->call.ctx = 0;
			return 0;
		}
		if (event.kind == IOCTL_API)
			know(event.ctx);
		else if (!known.lookup(&event.ctx))
			emit_userfaultfd(event.ctx, 1);
		else if (event.kind == IOCTL_REGISTER)
			emit_userfaultfd(event.ctx, 0);
		thread = make_thread();
		/* The map may have been full: then each call tells of the userfaultfd again. */
		if (thread && known.lookup(&event.ctx))
			let_pass(&thread->calls, event.ctx, now);
	}
	if (thread) {
		/* What COPY and its kin commit is no page of a fault. */
		thread->mark.kind = 0;
		thread->call.ctx = event.ctx;
		thread->call.argument = argument;
		thread->call.command = command;
	}
	readable = read_argument(&event, command, argument);
	if (thread) {
		thread->call.readable = readable;
		thread->call.start = event.start;
		thread->call.end = event.end;
		thread->call.mode = event.aux;
	}
	/* With WP a page that is there is protected; with MINOR it is meant to be there. */
	if (event.kind == IOCTL_REGISTER && (event.aux & (MODE_MISSING | MODE_WP | MODE_MINOR)) == MODE_MISSING)
		emit_present(&event, read64(event.ctx + CTX_MM));
	emit_here(&event);
	return 0;
}

/* The kernel enters the userfaultfd into an area while REGISTER runs, and takes it out with a null pointer. */
int on_set_uffd(bool typed, u64 vma, u64 uffd)
{
	struct event event = {.type = EVENT_AREA_REGISTERED, .ctx = uffd};
	struct area area = {.typed = typed, .vma = vma, .ctx = uffd};

	if (!uffd || !is_traced(load64(typed, uffd + CTX_MM)))
		return 0;
	area.flags = load64(typed, vma + VMA_FLAGS);
	event.start = load64(typed, vma + VMA_START);
	event.end = load64(typed, vma + VMA_END);
	event.flags = memory_of(&area);
	emit_here(&event);
	return 0;
}

int on_ioctl_return(bool typed, u64 result)
{
	struct thread *thread = this_thread();
	struct event event = {.type = EVENT_IOCTL_RETURN, .ret = result};

	if (!thread || !thread->call.ctx)
		return 0;
	event.kind = thread->call.command & 0xff;
	event.ctx = thread->call.ctx;
	thread->call.ctx = 0;
	/* What the return cannot make up for: where pages came from, and what was there before. */
	if (!thread->call.readable && (event.kind == IOCTL_REGISTER || event.kind == IOCTL_MOVE) &&
	    (s64)result != -EFAULT)
		lose(LOSS_UNREADABLE);
	if (thread->call.readable && !has_result(event.kind)) {
		event.start = thread->call.start;
		event.end = thread->call.end;
		event.aux = thread->call.mode;
	} else if (!read_argument(&event, thread->call.command, thread->call.argument) &&
		   (thread->call.readable || (s64)result != -EFAULT)) {
		/* Else the kernel could not read it either, and did nothing. */
		lose(LOSS_UNREADABLE);
	}
	if (event.kind == IOCTL_API)
		emit_userfaultfd(event.ctx, 0);
	emit_here(&event);
	return 0;
}

int on_release(bool typed, u64 file)
{
	struct event event = {.type = EVENT_RELEASE};

	event.ctx = read64(file + FILE_PRIVATE);
	event.kind = read32((u64)bpf_get_current_task() + TASK_FLAGS) & PF_EXITING ? 1 : 0;
	known.delete(&event.ctx);
	void_passes();
	if (is_traced(read64(event.ctx + CTX_MM)))
		emit_here(&event);
	return 0;
}

/* ---- how the monitor asks for messages ------------------------------------ */

/* include/uapi/asm-generic/fcntl.h. */
#define O_NONBLOCK 0x800

int on_poll(bool typed, u64 file)
{
	struct event event = {.type = EVENT_POLL};
	u8 *seen;

	/* Monitors that do it right pay for no more than this. */
	if (load32(typed, file + FILE_FLAGS) & O_NONBLOCK)
		return 0;
	event.ctx = load64(typed, file + FILE_PRIVATE);
	seen = known.lookup(&event.ctx);
	/* A monitor that spins would fill the ring: each userfaultfd is told of once. */
	if (!seen || *seen & BLOCKING)
		return 0;
	if (!is_traced(read64(event.ctx + CTX_MM)))
		return 0;
	*seen |= BLOCKING;
	emit_here(&event);
	return 0;
}

/* ---- protection ---------------------------------------------------------- */

int on_protect(bool typed, u64 vma, u64 start, u64 end, u64 flags)
{
	struct event event = {.type = EVENT_PROTECT, .start = start, .end = end};
	struct thread *thread;
	struct area area;

	if (!(flags & (MM_CP_UFFD_WP | MM_CP_UFFD_WP_RESOLVE)) || !read_area(typed, vma, 0, &area))
		return 0;
	thread = this_thread();
	/* A call on this userfaultfd has passed the filter. */
	if ((!thread || thread->call.ctx != area.ctx) && !is_traced(area.mm))
		return 0;
	if (!thread)
		thread = make_thread();
	event.ctx = area.ctx;
	event.kind = flags & MM_CP_UFFD_WP ? 1 : 0;
	event.aux = area.flags;
	event.flags = memory_of(&area);
	/* What a release found says nothing, and the call around it tells when it was over. */
	if (thread)
		thread->protects = event.kind ? area.ctx : 0;
	/* Swapped-out pages that are protected already are not in the return value. */
	if (event.kind)
		event.value = read64(TOTAL_SWAP_PAGES) != read64(FREE_SWAP_PAGES);
	emit_here(&event);
	return 0;
}

int on_protect_return(bool typed, u64 pages)
{
	struct thread *thread = this_thread();
	struct event event = {.type = EVENT_PROTECT_RETURN, .value = pages};

	if (!thread || !thread->protects)
		return 0;
	event.ctx = thread->protects;
	thread->protects = 0;
	emit_here(&event);
	return 0;
}

/* include/uapi/linux/fs.h. */
#define PAGEMAP_SCAN_COMMAND ('f' << 8 | 16)
#define PM_SCAN_WP_MATCHING 1
#define PAGE_IS_WPALLOWED 1
#define PAGE_IS_WRITTEN 2

struct pm_scan_argument {
	u64 size;
	u64 flags;
	u64 start;
	u64 end;
	u64 walk_end;
	u64 vec;
	u64 vec_len;
	u64 max_pages;
	u64 category_inverted;
	u64 category_mask;
	u64 category_anyof_mask;
	u64 return_mask;
};

/*
 * long do_pagemap_cmd(struct file *file, unsigned int cmd, unsigned long arg)
 *
 * PM_SCAN_WP_MATCHING sets the bits of page-table entries itself, in areas with
 * WP_ASYNC: no other probe sees that these are armed.
 */
int on_page_scan(bool typed, u64 command, u64 argument, u64 file)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct page_scan scan = {.argument = argument};
	struct event event = {.type = EVENT_PAGE_SCAN};
	struct pm_scan_argument words = {};

	if ((command & 0xffff) != PAGEMAP_SCAN_COMMAND)
		return 0;
	/* The return of an earlier call may have been lost: it must not be taken for this one's. */
	page_scans.delete(&tid);
	scan.mm = event.ctx = read64(file + FILE_PRIVATE);
	if (!is_traced(scan.mm))
		return 0;
	scan.readable = !bpf_probe_read_user(&words, sizeof(words), (void *)argument);
	if (scan.readable && !(words.flags & PM_SCAN_WP_MATCHING))
		return 0;
	if (page_scans.update(&tid, &scan))
		lose(LOSS_MAP_FULL);
	if (!scan.readable)
		return 0;
	event.start = words.start;
	event.end = words.end;
	emit_here(&event);
	return 0;
}

int on_page_scan_return(bool typed, u64 result)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct page_scan *scan = page_scans.lookup(&tid);
	struct event event = {.type = EVENT_PAGE_SCAN_RETURN};
	struct pm_scan_argument words = {};
	bool began, readable;

	if (!scan)
		return 0;
	event.ctx = scan->mm;
	began = scan->readable;
	readable = !bpf_probe_read_user(&words, sizeof(words), (void *)scan->argument);
	page_scans.delete(&tid);
	if (!began) {
		/* What it protected, and from when on, was not seen; with EFAULT it did nothing. */
		if ((!readable && (s64)result != -EFAULT) || words.flags & PM_SCAN_WP_MATCHING)
			lose(LOSS_UNREADABLE);
		return 0;
	}
	if (!readable)
		lose(LOSS_UNREADABLE);
	event.start = words.start;
	event.end = words.walk_end;
	event.ret = (s64)result < 0 ? result : 0;
	event.kind = !words.category_inverted && (words.category_mask & ~(u64)PAGE_IS_WPALLOWED) == PAGE_IS_WRITTEN &&
		     (!words.category_anyof_mask || words.category_anyof_mask & PAGE_IS_WRITTEN);
	emit_here(&event);
	return 0;
}

/* ---- faults and messages ------------------------------------------------- */

/* handle_userfault()'s own conditions, in its order: these return at once, and nobody is told. */
static __always_inline bool cannot_sleep(bool typed, u64 uffd, u32 flags)
{
	u64 task = (u64)bpf_get_current_task();

	return read32(task + TASK_FLAGS) & (PF_EXITING | PF_DUMPCORE) ||
	       load32(typed, uffd + CTX_FEATURES) & FEATURE_SIGBUS ||
	       (!(flags & FAULT_FLAG_USER) && load32(typed, uffd + CTX_FLAGS) & USER_MODE_ONLY) ||
	       !(flags & FAULT_FLAG_ALLOW_RETRY) || flags & FAULT_FLAG_RETRY_NOWAIT;
}

int on_fault(bool typed, u64 vmf, u64 reason)
{
	struct event event = {.type = EVENT_FAULT};
	struct thread *thread;
	struct area area;
	u32 memory;
	u64 now;

	if (!read_area(typed, load64(typed, vmf + VMF_VMA), 0, &area))
		return 0;
	now = generation();
	thread = this_thread();
	if (!thread || !passed(&thread->faults, area.mm, now)) {
		if (!is_traced(area.mm))
			return 0;
		thread = make_thread();
		if (thread)
			let_pass(&thread->faults, area.mm, now);
	}
	/* The MINOR bit moves (37, 38, 41); the other two never did. */
	event.kind = reason == VM_UFFD_MISSING ? KIND_MISSING : reason == VM_UFFD_WP ? KIND_WP : KIND_MINOR;
	event.ctx = area.ctx;
	event.start = load64(typed, vmf + VMF_ADDRESS) & PAGE_MASK;
	event.aux = load32(typed, vmf + VMF_FLAGS);
	event.value = load64(typed, area.vma + VMA_START);
	event.end = load64(typed, area.vma + VMA_END);
	event.flags = memory = memory_of(&area);
	event.flags |= (area.flags & VM_UFFD_MISSING ? MODE_MISSING : 0) << MODES_SHIFT;
	event.flags |= (area.flags & VM_UFFD_WP ? MODE_WP : 0) << MODES_SHIFT;
	if (cannot_sleep(typed, area.ctx, event.aux)) {
		u32 tid = bpf_get_current_pid_tgid();

		/* break_ksm() up to 6.1 asks and goes on: no access of anybody's has failed. */
		if (unmerging.lookup(&tid))
			return 0;
		event.ret = 1;
		emit_here(&event);
		return 0;
	}
	if (thread) {
		thread->sleeper.place.ctx = area.ctx;
		thread->sleeper.place.vm_start = event.value;
		thread->sleeper.memory = memory;
	}
	count(area.ctx, event.value, COUNTER_FAULT_MISSING + event.kind);
	emit_here(&event);
	return 0;
}

int on_fault_return(bool typed, u64 result)
{
	struct thread *thread = this_thread();
	struct event event = {.type = EVENT_FAULT_RETURN, .value = (u32)result};
	u64 task;

	if (!thread || !thread->sleeper.place.ctx)
		return 0;
	event.ctx = thread->sleeper.place.ctx;
	thread->sleeper.place.ctx = 0;
	/*
	 * A thread that is killed in its fault was never served. SIGKILL is pending for each
	 * thread of a process that dies (complete_signal() and zap_other_threads() in
	 * kernel/signal.c, zap_process() in fs/coredump.c), and for all but one at an exec.
	 */
	task = (u64)bpf_get_current_task();
	event.kind = read64(task + TASK_PENDING) & SIGKILL_PENDING ? 1 : 0;
	emit_here(&event);
	return 0;
}

/*
 * userfaultfd_ctx_read() moves a fault from the pending to the read queue, once
 * for each message, with add_wait_queue(): at its call there, else in itself.
 */
int on_message(bool typed, u64 entry)
{
	u64 id = bpf_get_current_pid_tgid();
	struct event event = {.tid = id, .tgid = id >> 32, .kind = 1};
	struct thread *thread;
	u32 sleeper, memory = 0;
	struct waiter waiter;
	u64 vm_start = 0;
	u64 now;

	read_waiter(&waiter, entry);
	if (waiter.words[(UWQ_WQ + WQE_FUNC) / 8] != USERFAULTFD_WAKE_FUNCTION)
		return 0;
	event.ctx = waiter.words[UWQ_CTX / 8];
	sleeper = read32(task_of(&waiter) + TASK_PID);
	now = generation();
	thread = thread_of(sleeper);
	/* A thread that sleeps since before the trace has no entry; the fault of any other has passed the filter. */
	if (thread && thread->sleeper.place.ctx == event.ctx) {
		vm_start = thread->sleeper.place.vm_start;
		memory = thread->sleeper.memory;
	} else if (!admit(read64(event.ctx + CTX_MM))) {
		return 0;
	}
	if ((!thread || !passed(&thread->told, event.ctx, now)) && !known.lookup(&event.ctx)) {
		/* Its descriptor came from a process that we do not follow. */
		if (describe_process(&event, (u64)bpf_get_current_task()))
			keep_message(&event);
		event.tid = id;
		event.tgid = id >> 32;
		describe(&event, event.ctx);
		know(event.ctx);
		keep_message(&event);
		event.end = 0;
	} else if (thread) {
		let_pass(&thread->told, event.ctx, now);
	}
	event.type = EVENT_MESSAGE;
	describe_waiter(&event, &waiter);
	event.tid = sleeper;
	event.kind = message_kind(event.aux);
	event.value = (u32)id;
	event.flags = memory;
	count(event.ctx, vm_start, COUNTER_MESSAGE_MISSING + event.kind);
	keep_message(&event);
	return 0;
}

/* A struct userfaultfd_wake_range. */
struct wake_range {
	u64 words[WAKE_SIZE / 8];
};

/* Called for every waiter; the key is a struct userfaultfd_wake_range. */
int on_wake(bool typed, u64 entry, u64 key)
{
	u64 id = bpf_get_current_pid_tgid();
	struct event event = {.type = EVENT_WAKE};
	struct thread *thread = thread_of(id);
	struct wake_range range = {};
	struct waiter waiter;
	u64 length;

	read_waiter(&waiter, entry);
	/* Most wakes are those of a call on this userfaultfd, which has passed the filter. */
	if ((!thread || thread->call.ctx != waiter.words[UWQ_CTX / 8]) &&
	    !is_traced(read64(waiter.words[UWQ_CTX / 8] + CTX_MM)))
		return 0;
	bpf_probe_read_kernel(&range, sizeof(range), (void *)key);
	describe_waiter(&event, &waiter);
	length = range.words[WAKE_LEN / 8];
	/* As it is written in userfaultfd_wake_function(); with a length of 0 all are woken. */
	if (length &&
	    (event.start < range.words[WAKE_START / 8] || event.start >= range.words[WAKE_START / 8] + length))
		return 0;
	event.value = (u32)id;
	event.tid = read32(task_of(&waiter) + TASK_PID);
	event.tgid = id >> 32;
	emit(&event);
	return 0;
}

/* ---- pages that appear --------------------------------------------------- */

static __always_inline void mark(struct area *area, u64 address, u32 kind, u32 write)
{
	struct thread *thread = make_thread();

	if (!thread)
		return;
	thread->mark.page = address & PAGE_MASK;
	thread->mark.ctx = area->ctx;
	thread->mark.kind = kind;
	thread->mark.write = write;
}

/* The page that is committed next was there before. */
static __always_inline void unmark(void)
{
	struct thread *thread = this_thread();

	if (thread)
		thread->mark.kind = 0;
}

static __always_inline void emit_page(struct area *area, u32 type, u32 kind, u64 start, u64 size, u64 aux)
{
	struct event event = {.type = type, .kind = kind, .start = start, .end = start + size, .aux = aux};

	event.ctx = area->ctx;
	event.flags = memory_of(area);
	emit_here(&event);
}

/* do_anonymous_page(), where the compiler left it a function (6.12, 7.2). */
int on_anon_fault(bool typed, u64 vmf)
{
	struct area area;
	u32 flags;
	u64 address, pte;

	if (!registered_area(typed, load64(typed, vmf + VMF_VMA), VM_UFFD_WP, &area))
		return 0;
	flags = load32(typed, vmf + VMF_FLAGS);
	address = load64(typed, vmf + VMF_ADDRESS) & PAGE_MASK;
	/* Not none means a marker (WP_UNPOPULATED): the page arrives protected. */
	pte = flags & FAULT_FLAG_ORIG_PTE_VALID ? load64(typed, vmf + VMF_ORIG_PTE) : 0;
	mark(&area, address, pte ? MARK_PROTECTED_HOLE : MARK_HOLE, flags & FAULT_FLAG_WRITE);
	if (!(flags & FAULT_FLAG_WRITE) && !pte && !(area.flags & VM_UFFD_MISSING))
		emit_page(&area, EVENT_ZERO_PAGE, 0, address, PAGE_SIZE, 0);
	return 0;
}

/*
 * Where do_anonymous_page() is inlined (5.10, 6.1): those kernels have no
 * markers on anonymous memory, so what the fault found tells what it will do.
 */
int on_mm_fault(bool typed, u64 vma, u64 address, u64 flags)
{
	struct area area;

	if (!registered_area(typed, vma, VM_UFFD_WP, &area) || area.flags & VM_HUGETLB)
		return 0;
	address &= PAGE_MASK;
	mark(&area, address, MARK_HOLE, flags & FAULT_FLAG_WRITE);
	if (flags & FAULT_FLAG_WRITE || area.flags & VM_UFFD_MISSING || load64(typed, vma + VMA_OPS))
		return 0;
	if (!walk(area.mm, address).value)
		emit_page(&area, EVENT_ZERO_PAGE, 0, address, PAGE_SIZE, 0);
	return 0;
}

int on_huge_fault(bool typed, u64 vmf)
{
	u64 vma = load64(typed, vmf + VMF_VMA);
	struct area area;
	u64 address, start;
	u32 flags;

	if (!registered_area(typed, vma, VM_UFFD_WP, &area))
		return 0;
	flags = load32(typed, vmf + VMF_FLAGS);
	address = load64(typed, vmf + VMF_ADDRESS) & PAGE_MASK;
	mark(&area, address, MARK_HUGE, flags & FAULT_FLAG_WRITE);
	start = address & ~(u64)(PMD_SIZE - 1);
	if (flags & FAULT_FLAG_WRITE || area.flags & VM_UFFD_MISSING)
		return 0;
	/* transhuge_vma_suitable() in 5.10 and 6.1, thp_vma_suitable_order() in 6.12. */
	if (start < load64(typed, vma + VMA_START) || start + PMD_SIZE > load64(typed, vma + VMA_END))
		return 0;
	emit_page(&area, EVENT_HUGE_ZERO_PAGE, 0, start, PMD_SIZE, address);
	return 0;
}

int on_huge_fault_return(bool typed, u64 result)
{
	struct thread *thread = this_thread();
	struct event event = {.type = EVENT_HUGE_FALLBACK};

	if (!thread || thread->mark.kind != MARK_HUGE || !(result & VM_FAULT_FALLBACK))
		return 0;
	thread->mark.kind = MARK_HOLE;
	if (thread->mark.write)
		return 0;
	event.ctx = thread->mark.ctx;
	event.aux = thread->mark.page;
	event.start = thread->mark.page & ~(u64)(PMD_SIZE - 1);
	event.end = event.start + PMD_SIZE;
	emit_here(&event);
	return 0;
}

/*
 * vm_fault_t do_huge_pmd_wp_page(struct vm_fault *vmf)
 *
 * A write to a huge page that is present and not protected: it becomes writable
 * in one fault, or is split. The area need not have the WP mode: a page armed
 * before its range lost the mode comes here, too. In 7.2 a write to the huge zero
 * page takes a huge page in one fault, in 6.12 it splits.
 */
int on_huge_wp(bool typed, u64 vmf)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct huge_write write = {};
	struct area area;

	if (!registered_area(typed, load64(typed, vmf + VMF_VMA), 0, &area) ||
	    load32(typed, vmf + VMF_FLAGS) & FAULT_FLAG_UNSHARE)
		return 0;
	write.ctx = area.ctx;
	write.mm = area.mm;
	write.address = load64(typed, vmf + VMF_ADDRESS) & PAGE_MASK;
	write.memory = memory_of(&area);
	mark(&area, write.address, MARK_HUGE_ZERO, FAULT_FLAG_WRITE);
	if (huge_writes.update(&tid, &write))
		lose(LOSS_MAP_FULL);
	return 0;
}

/* The function returns 0 also where it lost a race and did nothing: only the entry tells. */
int on_huge_wp_return(bool typed, u64 result)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct huge_write *write = huge_writes.lookup(&tid);
	struct event event = {.type = EVENT_HUGE_WRITE, .kind = 1};
	struct entry entry;

	if (!write)
		return 0;
	event.ctx = write->ctx;
	event.aux = write->address;
	event.start = write->address & ~(u64)(PMD_SIZE - 1);
	event.end = event.start + PMD_SIZE;
	event.flags = write->memory;
	entry = walk(write->mm, write->address);
	huge_writes.delete(&tid);
	if (!(result & VM_FAULT_FALLBACK) && entry.shift > 12 && entry.value & PTE_PRESENT && entry.value & PTE_WRITE)
		emit_here(&event);
	return 0;
}

/* The page a fault adds is committed here, once, however many threads raced. */
int on_anon_commit(bool typed, u64 page, u64 vma, u64 address)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct thread *thread;
	struct area area;
	struct mark seen;
	bool huge;

	if (!registered_area(typed, vma, 0, &area))
		return 0;
	thread = thread_of(tid);
	if (!thread || !thread->mark.kind)
		return 0;
	seen = thread->mark;
	thread->mark.kind = 0;
	huge = load64(typed, page) >> PG_HEAD & 1;
	if (huge)
		address = address & ~(u64)(PMD_SIZE - 1);
	if (address != (huge ? seen.page & ~(u64)(PMD_SIZE - 1) : seen.page))
		return 0;
	if (huge && seen.kind == MARK_HUGE_ZERO) {
		/* A new page, and not the one that was there. */
		huge_writes.delete(&tid);
		emit_page(&area, EVENT_HUGE_ZERO_WRITE, 1, address, PMD_SIZE, seen.page);
	} else if (huge && seen.kind == MARK_HUGE)
		emit_page(&area, EVENT_HUGE_PAGE, seen.write, address, PMD_SIZE, seen.page);
	else if (!huge && (seen.kind == MARK_HOLE || seen.kind == MARK_HUGE) && seen.write)
		emit_page(&area, EVENT_FRESH_PAGE, 1, address, PAGE_SIZE, address);
	return 0;
}

/* Pages that swap brings back go through the same commit. */
int on_swap(bool typed, u64 vmf)
{
	struct area area;

	if (registered_area(typed, load64(typed, vmf + VMF_VMA), VM_UFFD_WP, &area))
		unmark();
	return 0;
}

int on_wp_fault(bool typed, u64 vmf)
{
	u64 vma = load64(typed, vmf + VMF_VMA);
	struct area area;
	u64 address, pte;
	u32 flags, zero;

	if (!load64(typed, vma + VMA_CTX))
		return 0;
	pte = load64(typed, vmf + VMF_ORIG_PTE);
	flags = load32(typed, vmf + VMF_FLAGS);
	/* The write is announced: do_wp_page() goes to handle_userfault() and commits no page. */
	if (pte & PTE_UFFD_WP && !(flags & FAULT_FLAG_UNSHARE) && load64(typed, vma + VMA_FLAGS) & VM_UFFD_WP)
		return 0;
	if (!registered_area(typed, vma, 0, &area))
		return 0;
	unmark();
	address = load64(typed, vmf + VMF_ADDRESS) & PAGE_MASK;
	if (!(flags & FAULT_FLAG_WRITE) || flags & FAULT_FLAG_UNSHARE)
		return 0;
	/* break_ksm() up to 6.1 gives a page back by a write fault, though nobody writes. */
	if (flags & FAULT_FLAG_REMOTE && !(flags & (FAULT_FLAG_USER | FAULT_FLAG_ALLOW_RETRY))) {
		u32 tid = bpf_get_current_pid_tgid();
		u64 *page = unmerging.lookup(&tid);

		if (page && *page == address) {
			emit_page(&area, EVENT_UNMERGED, 1, address, PAGE_SIZE, 0);
			return 0;
		}
	}
	/* KSM may have put the zero page there (use_zero_pages). */
	zero = pte & PTE_SPECIAL && !(area.flags & VM_MERGEABLE);
	/* No write to a protected page comes here. A bit without the mode protects nothing: it outlives the mode. */
	emit_page(&area, EVENT_UNPROTECTED_WRITE, zero, address, PAGE_SIZE, 0);
	return 0;
}

int on_file_fault(bool typed, u64 vmf)
{
	struct area area;
	u64 address;
	u32 flags;

	if (!registered_area(typed, load64(typed, vmf + VMF_VMA), VM_UFFD_WP, &area))
		return 0;
	unmark();
	address = load64(typed, vmf + VMF_ADDRESS) & PAGE_MASK;
	flags = load32(typed, vmf + VMF_FLAGS);
	/* A marker makes finish_fault() map the page protected. */
	if (flags & FAULT_FLAG_ORIG_PTE_VALID && load64(typed, vmf + VMF_ORIG_PTE))
		return 0;
	emit_page(&area, EVENT_FILE_PAGE, flags & FAULT_FLAG_WRITE ? 1 : 0, address, PAGE_SIZE, 0);
	return 0;
}

int on_hugetlb_fault(bool typed, u64 vma, u64 address, u64 flags)
{
	struct area area;
	struct entry entry;
	u64 size;

	if (!registered_area(typed, vma, VM_UFFD_WP, &area))
		return 0;
	size = (u64)PAGE_SIZE << (memory_of(&area) >> MEMORY_ORDER_SHIFT & 31);
	address &= ~(size - 1);
	entry = walk(area.mm, address);
	if (!entry.value && !(area.flags & VM_UFFD_MISSING))
		emit_page(&area, EVENT_FILE_PAGE, flags & FAULT_FLAG_WRITE ? 1 : 0, address, size, 0);
	else if (entry.value & PTE_PRESENT && flags & FAULT_FLAG_WRITE && !(entry.value & (PTE_UFFD_WP | PTE_WRITE)))
		emit_page(&area, EVENT_UNPROTECTED_WRITE, 0, address, size, 0);
	return 0;
}

/* ---- pages that lose their protection ------------------------------------ */

/* A page without kpage is the one the others will share: it keeps its entry. */
int on_merge(bool typed, u64 item, u64 kpage)
{
	u32 tid = bpf_get_current_pid_tgid();

#ifdef RMAP_ITEM_MM
	if (kpage && is_traced(read64(item + RMAP_ITEM_MM)) && merges.update(&tid, &item))
		lose(LOSS_MAP_FULL);
#endif
	return 0;
}

int on_merge_return(bool typed, u64 result)
{
	u32 tid = bpf_get_current_pid_tgid();
	u64 *item = merges.lookup(&tid);
	struct event event = {.type = EVENT_MERGED};

	if (!item)
		return 0;
#ifdef RMAP_ITEM_MM
	event.ctx = read64(*item + RMAP_ITEM_MM);
	/* The low bits are the item's flags. */
	event.start = read64(*item + RMAP_ITEM_ADDRESS) & PAGE_MASK;
	event.end = event.start + PAGE_SIZE;
	if (!(u32)result)
		emit_here(&event);
#endif
	merges.delete(&tid);
	return 0;
}

/*
 * int break_ksm(struct vm_area_struct *vma, unsigned long addr)
 *
 * Since "mm/ksm: fix KSM COW breaking with userfaultfd-wp via FAULT_FLAG_UNSHARE"
 * (6cce3314b928, 6.2) its faults unshare and leave the page protected.
 */
int on_unmerge(bool typed, u64 vma, u64 address)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct area area;

	address &= PAGE_MASK;
	if (registered_area(typed, vma, 0, &area) && unmerging.update(&tid, &address))
		lose(LOSS_MAP_FULL);
	return 0;
}

int on_unmerge_return(bool typed, u64 result)
{
	u32 tid = bpf_get_current_pid_tgid();

	unmerging.delete(&tid);
	return 0;
}

/* unuse_pte() is inlined; swapoff is what runs as the OOM killer's first choice. */
int on_mapped_again(bool typed, u64 vma, u64 address, u64 compound)
{
	struct area area;
#ifdef SIGNAL_OOM_ORIGIN
	u64 task = (u64)bpf_get_current_task();

	if (registered_area(typed, vma, VM_UFFD_WP, &area) &&
	    read32(read64(task + TASK_SIGNAL) + SIGNAL_OOM_ORIGIN) & 0xff)
		emit_page(&area, EVENT_SWAPPED_BACK, 0, address & PAGE_MASK, PAGE_SIZE, 0);
#endif
	return 0;
}

/* ---- the life of ranges -------------------------------------------------- */

/*
 * Which system call the current thread is in, from the registers that it saved on
 * entry, at the top of its kernel stack. FRED leaves 16 bytes above them
 * (TOP_OF_KERNEL_STACK_PADDING, arch/x86/include/asm/thread_info.h): the segment
 * of 64-bit user code tells where they lie. Elsewhere, for a kernel thread and for
 * a 32-bit program, the call stays 0.
 */
static __always_inline void name_call(struct event *event)
{
	u64 top = read64((u64)bpf_get_current_task() + TASK_STACK) + THREAD_SIZE - REGS_SIZE;
	u64 regs = (read64(top + REGS_CS) & 0xffff) == USER_CS ? top : top - 16;

	if ((read64(regs + REGS_CS) & 0xffff) != USER_CS)
		return;
	event->aux = read64(regs + REGS_ORIG_AX);
	/* The advice: madvise()'s third argument, process_madvise()'s fourth. */
	event->value = (u32)read64(regs + (event->aux == SYS_PROCESS_MADVISE ? REGS_R10 : REGS_DX));
}

static __always_inline int dropped(bool typed, u32 type, u64 vma, u64 start, u64 end, u64 wanted_flags)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct event event = {.type = type, .start = start, .end = end};
	struct area area;

	if (!registered_area(typed, vma, wanted_flags, &area))
		return 0;
	event.ctx = area.ctx;
	event.flags = memory_of(&area);
	/* userfaultfd_remove() waits until the monitor has read of it. */
	event.kind = type == EVENT_DISCARD && load32(typed, area.ctx + CTX_FEATURES) & FEATURE_EVENT_REMOVE ? 1 : 0;
	name_call(&event);
	if (type == EVENT_ZAP && zapping.update(&tid, &area.ctx))
		lose(LOSS_MAP_FULL);
	emit_here(&event);
	return 0;
}

/* bool userfaultfd_remove(struct vm_area_struct *vma, unsigned long start, unsigned long end) */
int on_discard(bool typed, u64 vma, u64 start, u64 end)
{
	return dropped(typed, EVENT_DISCARD, vma, start, end, 0);
}

/*
 * void zap_page_range_single(struct vm_area_struct *vma, unsigned long address, unsigned long size, ...)
 *
 * Entries go: madvise, but also hole punching and truncation of a file, and guard
 * regions, of which no event tells the monitor.
 */
int on_zap(bool typed, u64 vma, u64 address, u64 size)
{
	return dropped(typed, EVENT_ZAP, vma, address, address + size, VM_UFFD_WP);
}

/* void unmap_hugepage_range(struct vm_area_struct *vma, unsigned long start, unsigned long end, ...) */
int on_hugetlb_zap(bool typed, u64 vma, u64 start, u64 end)
{
	return dropped(typed, EVENT_ZAP, vma, start, end, VM_UFFD_WP);
}

/* Until here an entry may have been there still: what else acts on it meanwhile has no order with the drop. */
static __always_inline int zapped(void)
{
	u32 tid = bpf_get_current_pid_tgid();
	u64 *uffd = zapping.lookup(&tid);
	struct event event = {.type = EVENT_ZAP_RETURN};

	if (!uffd)
		return 0;
	event.ctx = *uffd;
	zapping.delete(&tid);
	emit_here(&event);
	return 0;
}

int on_zap_return(bool typed, u64 result)
{
	return zapped();
}

int on_hugetlb_zap_return(bool typed, u64 result)
{
	return zapped();
}

/* void zap_page_range(struct vm_area_struct *vma, unsigned long start, unsigned long size) */
int on_advised_zap(bool typed, u64 vma, u64 start, u64 size)
{
	return dropped(typed, EVENT_ZAP, vma, start, start + size, VM_UFFD_WP);
}

int on_advised_zap_return(bool typed, u64 result)
{
	return zapped();
}

static __always_inline int unmapped(u64 mm, u64 start, u64 end)
{
	struct event event = {.type = EVENT_UNMAP, .ctx = mm, .start = start, .end = end};

	if (is_traced(mm))
		emit_here(&event);
	return 0;
}

int on_unmap(bool typed, u64 mm, u64 start, u64 end)
{
	return unmapped(mm, start, end);
}

int on_unmap_vma(bool typed, u64 vma, u64 start, u64 end)
{
	u64 mm = vma ? load64(typed, vma + VMA_MM) : 0;

	/* 6.12 calls it for each area; 5.10 for the first, which says nothing of the others. */
	if (!mm || (!read64(vma + VMA_CTX) && end <= read64(vma + VMA_END)))
		return 0;
	return unmapped(mm, start, end);
}

int on_exit(bool typed, u64 mm)
{
	struct event event = {.type = EVENT_EXIT, .ctx = mm};
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	bool ours = is_traced(mm);

	/* Not where it becomes another program. */
	if (read32((u64)bpf_get_current_task() + TASK_FLAGS) & PF_EXITING) {
		followed.delete(&tgid);
		/* The number may be another's soon. */
		named.delete(&tgid);
	}
	/* The address may be another process's soon. */
	traced.delete(&mm);
	void_passes();
	if (ours)
		emit_here(&event);
	return 0;
}

int on_fork(bool typed, u64 parent, u64 child)
{
	u32 from = read32(parent + TASK_TGID);
	u32 to = read32(child + TASK_TGID);
	struct event event = {.type = EVENT_PROCESS, .tid = to, .tgid = to};
	struct event made = {.type = EVENT_CHILD, .value = to};
	u8 one = 1;

	/* A thread. */
	if (from == to)
		return 0;
	/* The child may be the monitor. */
	made.ctx = read64(parent + TASK_MM);
	if (is_traced(made.ctx)) {
		/* It may have read and be gone before anybody looks into /proc. */
		emit_process(child);
		emit_here(&made);
	}
#ifdef FOLLOW_FORKS
	if (followed.lookup(&from) && followed.update(&to, &one))
		lose(LOSS_MAP_FULL);
#endif
	/* Its memory had no owner yet when its userfaultfd was made. */
	event.ctx = read64(child + TASK_MM);
	if (event.ctx == made.ctx || !is_traced(event.ctx))
		return 0;
	emit_process(child);
	emit(&event);
	return 0;
}

/* For each area of the parent; the copy still names the parent's userfaultfd. */
int on_fork_area(bool typed, u64 vma)
{
	struct event event = {.type = EVENT_FORK};
	struct area area = {.typed = typed, .vma = vma, .flags = load64(typed, vma + VMA_FLAGS)};

	event.ctx = read64(vma + VMA_CTX);
	if (!event.ctx || !is_traced(read64(event.ctx + CTX_MM)))
		return 0;
	event.kind = read32(event.ctx + CTX_FEATURES) & FEATURE_EVENT_FORK ? 1 : 0;
#ifndef FOLLOW_FORKS
	/* Nobody will ask what the child has. */
	if (event.kind)
		return 0;
#endif
	event.start = read64(vma + VMA_START);
	event.end = read64(vma + VMA_END);
	event.aux = area.flags & VM_WIPEONFORK ? 1 : 0;
	event.flags = memory_of(&area);
	emit_here(&event);
	return 0;
}

static __always_inline u64 current_mm(void)
{
	return read64((u64)bpf_get_current_task() + TASK_MM);
}

int on_remap(bool typed, u64 regs)
{
	struct event event = {.type = EVENT_REMAP};

	event.ctx = current_mm();
	if (!is_traced(event.ctx))
		return 0;
	event.start = read64(regs + REGS_DI);
	event.end = event.start + read64(regs + REGS_SI);
	event.aux = read64(regs + REGS_DX);
	event.flags = read64(regs + REGS_R10);
	emit_here(&event);
	return 0;
}

int on_remap_return(bool typed, u64 result)
{
	struct event event = {.type = EVENT_REMAP_RETURN, .value = result};

	event.ctx = current_mm();
	if (is_traced(event.ctx))
		emit_here(&event);
	return 0;
}

/* The child's userfaultfd, before anybody can use it. */
static __always_inline void on_forked(u64 uffd, u64 queued)
{
	struct event event = {};
	u8 follow = 0;

#ifdef FOLLOW_FORKS
	follow = 1;
#endif
	describe(&event, read64(queued + UWQ_MSG + 8));
	event.type = EVENT_FORKED;
	event.aux = uffd;
	if (traced.update(&event.start, &follow))
		lose(LOSS_MAP_FULL);
	if (!follow)
		return;
	know(event.ctx);
	emit_here(&event);
}

int on_event(bool typed, u64 uffd, u64 queued)
{
	struct event event = {.type = EVENT_EVENT, .ctx = uffd};

	if (!is_traced(read64(uffd + CTX_MM)))
		return 0;
	event.kind = read32(queued + UWQ_MSG) & 0xff;
	emit_here(&event);
	if (event.kind == UFFD_EVENT_FORK)
		on_forked(uffd, queued);
	return 0;
}
