// SPDX-License-Identifier: GPL-2.0-or-later
/* Which events are recorded: whose memory it is, and what is known of the thread. */

/* The slot that a thread has if nobody came before it. */
static __always_inline struct thread *slot_of(u32 tid)
{
	return (struct thread *)VALUE_OF_THREADS + (tid & (THREAD_SLOTS - 1));
}

/* What is known of a thread; null for one that did nothing yet. */
static __always_inline struct thread *thread_of(u32 tid)
{
	struct thread *thread = slot_of(tid);
	u64 wanted = tid;
	u32 key;

	/* Else the compiler clears the upper half of a register again for each comparison. */
	asm volatile("" : "+r"(wanted));
	/* The idle tasks have the tid of nobody. */
	if (!wanted)
		return 0;
	if (thread->head.tid == wanted)
		return thread;
	key = tid;
	return crowded.lookup(&key);
}

/* The thread that a program runs in: asked for once, and handed on. */
struct self {
	/* As current_id() tells it. */
	u64 id;
	/* As of thread_of(). */
	struct thread *thread;
};

static __always_inline struct self myself(void)
{
	struct self self = {.id = current_id()};

	self.thread = thread_of(self.id);
	return self;
}

/* The place of a thread that has none; null where there is no room for one more. */
static __always_inline struct thread *place_of(u64 id)
{
	u32 tid = id;
	u32 slot = tid & (THREAD_SLOTS - 1);
	struct thread nothing = {.head = {.tid = tid, .tgid = id >> 32}};
	struct thread *thread = slot_of(tid);

	/* Of two threads that want a slot at once one is its owner. */
	if (!slot_owners.insert(&slot, &tid)) {
		*thread = nothing;
		return thread;
	}
	crowded.insert(&tid, &nothing);
	thread = crowded.lookup(&tid);
	if (!thread)
		lose(LOSS_MAP_FULL);
	return thread;
}

/* Null only where there is no room for one more. */
static __always_inline struct thread *make_thread(struct self *self)
{
	if (!self->thread && (u32)self->id)
		self->thread = place_of(self->id);
	return self->thread;
}

/* ---- who did it ----------------------------------------------------------- */

/* A target has as many threads as it likes. */
#define MOST_SHOWN 4096

/* Memory is armed: who does something to it now may be another than who did before. */
static __always_inline void note_arm(void)
{
	struct shows *now = (struct shows *)VALUE_OF_SHOWS;

	now->arms++;
	if (!(now->arms & (now->arms - 1)))
		now->level++;
}

/* Whether the program is to tell its stack with the event that it has sent. */
static __always_inline bool wants_stack(struct self *self, u32 type, u64 time)
{
	struct shows *now = (struct shows *)VALUE_OF_SHOWS;
	struct thread *thread;

	/* Of these one asks who did it. */
	if (type != EVENT_FRESH_PAGE && type != EVENT_HUGE_PAGE && type != EVENT_HUGE_ZERO_WRITE &&
	    type != EVENT_FILE_PAGE && type != EVENT_UNPROTECTED_WRITE && type != EVENT_HUGE_WRITE &&
	    type != EVENT_PROTECT)
		return false;
	if (now->told >= MOST_SHOWN)
		return false;
	thread = make_thread(self);
	if (!thread || thread->shown[type & 15] > now->level)
		return false;
	thread->shown[type & 15] = now->level + 1;
	thread->shown_at = time;
	thread->shown_type = type;
	now->told++;
	return true;
}

/* BPF_F_USER_STACK (include/uapi/linux/bpf.h). */
#define OF_USER_SPACE (1UL << 8)
#define FRAMES_IN_SLOT 5

/*
 * In records of five frames each: bpf_get_stack() writes where the record has its members from ctx to
 * value, and passes over the frames that were told. For all at once there is no room. The last record
 * has the thread's name: it may be gone before anybody asks.
 */
static __always_inline int tell_stack(void *context, bool wanted)
{
	struct thread *thread;
	u64 id;

	if (!wanted)
		return 0;
	id = current_id();
	thread = thread_of(id);
	if (!thread)
		return 0;
#pragma clang loop unroll(disable)
	for (u32 slot = 0; slot <= STACK_NAME; slot++) {
		struct event *record = events.ringbuf_reserve(sizeof(*record));
		u64 passed_over = slot * FRAMES_IN_SLOT;

		/* No number rests on a stack. */
		if (!record)
			return 0;
		__builtin_memset(record, 0, sizeof(*record));
		record->type = EVENT_STACK;
		record->kind = slot;
		record->time = thread->shown_at;
		record->flags = thread->shown_type;
		record->tid = id;
		record->tgid = id >> 32;
		if (slot >= STACK_USER)
			passed_over = (slot - STACK_USER) * FRAMES_IN_SLOT | OF_USER_SPACE;
		if (slot == STACK_NAME)
			bpf_get_current_comm(&record->start, 16);
		else
			bpf_get_stack(context, &record->ctx, FRAMES_IN_SLOT * sizeof(u64), passed_over);
		events.ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	}
	return 0;
}

/* ---- what has passed a filter --------------------------------------------- */

/*
 * The generation of a pass that is made now; never 0, which an empty pass has. It is read
 * before the filter's maps are: what goes between the two makes the pass void.
 */
static __always_inline u64 generation(void)
{
	return *(volatile u64 *)VALUE_OF_GENERATIONS + 1;
}

/* Makes all passes void. A userfaultfd or address space leaves the filter's maps first, or a new pass could name it. */
static __always_inline void void_passes(void)
{
	__sync_fetch_and_add((u64 *)VALUE_OF_GENERATIONS, 1);
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
	u64 start;
	u64 end;
	u64 flags;
	/* Ask mm_of(). */
	u64 read_mm;
	u64 ctx;
};

/* Members that lie near each other, read at once: a helper for each costs half as much again as one for all. */
struct vma_words {
	u64 words[VMA_SPAN / 8];
};

struct vmf_words {
	u64 words[VMF_SPAN / 8];
};

/* What is asked of a struct vm_fault. */
struct access {
	u64 vma;
	u64 address;
	u64 orig_pte;
	u32 flags;
};

static __always_inline void read_access(bool typed, u64 vmf, struct access *access)
{
	struct vmf_words read = {};

	if (is_direct(typed)) {
		vmf = as_struct(typed, vmf, VM_FAULT);
		access->vma = load64(true, vmf + VMF_VMA);
		access->address = load64(true, vmf + VMF_ADDRESS);
		access->orig_pte = load64(true, vmf + VMF_ORIG_PTE);
		access->flags = load32(true, vmf + VMF_FLAGS);
		return;
	}
	bpf_probe_read_kernel(&read, sizeof(read), (void *)vmf);
	access->vma = read.words[VMF_VMA / 8];
	access->address = read.words[VMF_ADDRESS / 8];
	access->orig_pte = read.words[VMF_ORIG_PTE / 8];
	access->flags = read.words[VMF_FLAGS / 8] >> VMF_FLAGS % 8 * 8;
}

static __always_inline bool is_traced(u64 mm)
{
	u8 *value = traced.lookup(&mm);

	return value && *value;
}

/* An area with a userfaultfd, in whatever address space. */
static __always_inline bool read_area(bool typed, u64 vma, u64 wanted_flags, struct area *area)
{
	struct vma_words read = {};

	area->typed = typed;
	area->vma = vma;
	vma = as_struct(typed, vma, VM_AREA);
	area->ctx = load64(is_direct(typed), vma + VMA_CTX);
	if (!area->ctx)
		return false;
	if (is_direct(typed)) {
		area->start = load64(true, vma + VMA_START);
		area->end = load64(true, vma + VMA_END);
		area->flags = load64(true, vma + VMA_FLAGS);
	} else {
		bpf_probe_read_kernel(&read, sizeof(read), (void *)vma);
		area->start = read.words[VMA_START / 8];
		area->end = read.words[VMA_END / 8];
		area->flags = read.words[VMA_FLAGS / 8];
		area->read_mm = read.words[VMA_MM / 8];
	}
	return !wanted_flags || area->flags & wanted_flags;
}

/* Whose memory it is. It is loaded when it is asked for: most programs pass by what is known of their thread. */
static __always_inline u64 mm_of(struct area *area)
{
	if (is_direct(area->typed))
		return load64(true, as_struct(area->typed, area->vma, VM_AREA) + VMA_MM);
	return area->read_mm;
}

/* An area with a userfaultfd in an address space we trace. */
static __always_inline bool registered_area(bool typed, u64 vma, u64 wanted_flags, struct area *area)
{
	return read_area(typed, vma, wanted_flags, area) && is_traced(mm_of(area));
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
		return memory_by_ops(
			load64(is_direct(area->typed), as_struct(area->typed, area->vma, VM_AREA) + VMA_OPS));
	superblock = read64(read64(read64(area->vma + VMA_FILE) + FILE_INODE) + INODE_SB);
	hstate = read64(read64(superblock + SB_FS_INFO) + HUGETLBFS_HSTATE);
	return MEMORY_HUGETLB | read32(hstate + HSTATE_ORDER) << MEMORY_ORDER_SHIFT;
}

/* 0 where a kernel does not keep it (without CONFIG_MEMCG). */
static __always_inline u64 owner_task(u64 mm)
{
#ifdef MM_OWNER
	return read64(mm + MM_OWNER);
#else
	return 0;
#endif
}

static __always_inline u32 owner_of(u64 mm)
{
	u64 task = owner_task(mm);

	return task ? read32(task + TASK_TGID) : 0;
}

static __always_inline bool admit(u64 mm)
{
	u32 tgid = current_id() >> 32;
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
	if (FOLLOW != FOLLOW_ALL && !followed.lookup(&tgid) && !followed.lookup(&owner))
		return false;
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

/* Tells of a userfaultfd, and first the names of the process that uses it and of the one whose memory it watches. */
static __always_inline void tell_userfaultfd(u64 ctx, u8 late, bool in_message)
{
	u64 id = current_id();

	/* The compiler would copy what writes a record three times, which costs time at each start. */
#pragma clang loop unroll(disable)
	for (int part = 0; part < 3; part++) {
		struct event event = {};
		u64 task = (u64)bpf_get_current_task();

		if (part == 2) {
			event.kind = late;
			event.tid = id;
			event.tgid = id >> 32;
			describe(&event, ctx);
			know(ctx);
		} else {
			if (part == 1)
				task = owner_task(read64(ctx + CTX_MM));
			if (!describe_process(&event, task))
				continue;
		}
		if (in_message)
			emit_message(&event);
		else
			emit(&event);
	}
}
