// SPDX-License-Identifier: GPL-2.0-or-later
/* Faults that wait for the monitor, their messages, and who wakes them. */

/* include/linux/signal.h, sigmask(SIGKILL). */
#define SIGKILL_PENDING (1UL << 8)

/* UFFD_FEATURE_SIGBUS, UFFD_USER_MODE_ONLY (include/uapi/linux/userfaultfd.h). */
#define FEATURE_SIGBUS 0x80
#define USER_MODE_ONLY 0x1

/* handle_userfault()'s own conditions, in its order: these return at once, and nobody is told. */
static __always_inline bool cannot_sleep(bool typed, u64 uffd, u32 features, u32 flags)
{
	return load32_of_task(TASK_FLAGS) & (PF_EXITING | PF_DUMPCORE) || features & FEATURE_SIGBUS ||
	       (!(flags & FAULT_FLAG_USER) && load32(is_direct(typed), uffd + CTX_FLAGS) & USER_MODE_ONLY) ||
	       !(flags & FAULT_FLAG_ALLOW_RETRY) || flags & FAULT_FLAG_RETRY_NOWAIT;
}

/* How long ago (ns) the thread's last fault returned, where a FAULT's aux holds that; 0 where that is told already. */
static __always_inline u64 since_return(struct thread *thread, u64 now)
{
	u64 since = thread->head.returned_at ? now - thread->head.returned_at : 0;

	/* After days it is not worth a word. */
	return since <= ~0UL >> SINCE_RETURN_SHIFT ? since << SINCE_RETURN_SHIFT : 0;
}

static __always_inline int on_fault(bool typed, u64 vmf, u64 reason)
{
	struct event event = {.type = EVENT_FAULT};
	struct access access;
	struct thread *thread;
	struct self self;
	struct area area;
	u32 memory, features;
	u64 now;

	read_access(typed, vmf, &access);
	if (!read_area(typed, access.vma, 0, &area))
		return 0;
	now = generation();
	self = myself();
	thread = self.thread;
	if (!thread || !passed(&thread->faults, area.ctx, now)) {
		if (!is_traced(mm_of(&area)))
			return 0;
		features = load32(is_direct(typed), area.ctx + CTX_FEATURES);
		thread = make_thread(&self);
		if (thread) {
			let_pass(&thread->faults, area.ctx, now);
			thread->features = features;
		}
	} else {
		features = thread->features;
	}
	/* The MINOR bit moves (37, 38, 41); the other two never did. */
	event.kind = reason == VM_UFFD_MISSING ? KIND_MISSING : reason == VM_UFFD_WP ? KIND_WP : KIND_MINOR;
	event.ctx = area.ctx;
	event.start = access.address & PAGE_MASK;
	event.aux = access.flags & FAULT_FLAGS;
	event.value = area.start;
	event.end = area.end;
	event.flags = memory = memory_of(&area);
	event.flags |= (area.flags & VM_UFFD_MISSING ? MODE_MISSING : 0) << MODES_SHIFT;
	event.flags |= (area.flags & VM_UFFD_WP ? MODE_WP : 0) << MODES_SHIFT;
	if (cannot_sleep(typed, area.ctx, features, event.aux)) {
		u32 tid = self.id;

		/* break_ksm() up to 6.1 asks and goes on: no access of anybody's has failed. */
		if (unmerging.lookup(&tid))
			return 0;
		event.ret = 1;
		emit_here(&event);
		return 0;
	}
	event.time = bpf_ktime_get_ns();
	if (thread) {
		thread->sleeper.place.ctx = area.ctx;
		thread->sleeper.place.vm_start = event.value;
		thread->sleeper.memory = memory;
		thread->sleeper.woken = 0;
		event.aux |= since_return(thread, event.time);
		thread->head.returned_at = 0;
	}
	if (!submit_often(typed, self.id, &event))
		count(area.ctx, event.value, COUNTER_FAULT_MISSING + event.kind);
	return 0;
}

static __always_inline int on_fault_return(bool typed, u64 result)
{
	struct thread *thread = myself().thread;
	struct event event = {.type = EVENT_FAULT_RETURN, .value = (u32)result};

	if (!thread || !thread->sleeper.place.ctx)
		return 0;
	event.ctx = thread->sleeper.place.ctx;
	thread->sleeper.place.ctx = 0;
	/*
	 * A thread that is killed in its fault was never served. SIGKILL is pending for each
	 * thread of a process that dies (complete_signal() and zap_other_threads() in
	 * kernel/signal.c, zap_process() in fs/coredump.c), and for all but one at an exec.
	 */
	event.kind = load64_of_task(TASK_PENDING) & SIGKILL_PENDING ? 1 : 0;
	/* Nothing but its wake-up latency rests on the return of one that was woken: its next fault tells. */
	if (thread->sleeper.woken && !event.kind) {
		thread->head.returned_in = event.ctx;
		thread->head.returned_at = bpf_ktime_get_ns();
		return 0;
	}
	emit_here(&event);
	return 0;
}

/*
 * userfaultfd_ctx_read() moves a fault from the pending to the read queue, once
 * for each message, with add_wait_queue(): this is at its only call there.
 */
static __always_inline int on_message(bool typed, u64 entry)
{
	u64 id = current_id();
	struct event event = {.type = EVENT_MESSAGE, .value = (u32)id, .tgid = id >> 32};
	struct thread *thread;
	u32 sleeper, memory = 0;
	struct waiter waiter;
	u64 vm_start = 0;
	u64 now, ctx;

	read_waiter(&waiter, entry);
	ctx = waiter.words[UWQ_CTX / 8];
	sleeper = read32(task_of(&waiter) + TASK_PID);
	now = generation();
	thread = thread_of(sleeper);
	/* A thread that sleeps since before the trace has no entry; the fault of any other has passed the filter. */
	if (thread && thread->sleeper.place.ctx == ctx) {
		vm_start = thread->sleeper.place.vm_start;
		memory = thread->sleeper.memory;
	} else if (!admit(read64(ctx + CTX_MM))) {
		return 0;
	}
	if ((!thread || !passed(&thread->told, ctx, now)) && !known.lookup(&ctx))
		/* Its descriptor came from a process that we do not follow. */
		tell_userfaultfd(ctx, 1, true);
	else if (thread)
		let_pass(&thread->told, ctx, now);
	describe_waiter(&event, &waiter);
	event.tid = sleeper;
	event.kind = message_kind(event.aux);
	event.flags = memory;
	event.end = vm_start;
	if (!emit_message(&event))
		count(ctx, vm_start, COUNTER_MESSAGE_MISSING + event.kind);
	return 0;
}

/* The same in add_wait_queue() itself, where whoever waits for anything comes. */
static __always_inline int on_any_wait(bool typed, u64 entry)
{
	return load64(typed, entry + WQE_FUNC) == USERFAULTFD_WAKE_FUNCTION ? on_message(typed, entry) : 0;
}

/* A struct userfaultfd_wake_range. */
struct wake_range {
	u64 words[WAKE_SIZE / 8];
};

/* The calls that wake whoever waits for the pages that they name. */
#define WAKING (1 << IOCTL_WAKE | 1 << IOCTL_COPY | 1 << IOCTL_ZEROPAGE | 1 << IOCTL_WRITEPROTECT | 1 << IOCTL_CONTINUE)

/* Whether a call's return tells of a waiter that it wakes: the first one, if it waits for the call's first page. */
static __always_inline bool tells_wake(struct ioctl_call *call, struct event *wake)
{
	return call->ctx == wake->ctx && call->readable && !call->woke_at && (wake->start & PAGE_MASK) == call->start &&
	       WAKING >> (call->command & 0xff) & 1 && wake->aux <= ACT_MESSAGE;
}

/* Called for every waiter; the key is a struct userfaultfd_wake_range. */
static __always_inline int on_wake(bool typed, u64 entry, u64 key)
{
	struct self self = myself();
	struct event event = {.type = EVENT_WAKE};
	struct thread *thread = self.thread, *sleeper;
	struct wake_range range = {};
	struct waiter waiter;
	u64 length;
	bool told;

	read_waiter(&waiter, entry);
	/* Most wakes are those of a call on this userfaultfd, which has passed the filter. */
	if ((!thread || thread->call.ctx != waiter.words[UWQ_CTX / 8]) &&
	    !is_traced(read64(waiter.words[UWQ_CTX / 8] + CTX_MM)))
		return 0;
	describe_waiter(&event, &waiter);
	/* What the call names is what it wakes. */
	told = thread && tells_wake(&thread->call, &event);
	if (!told) {
		bpf_probe_read_kernel(&range, sizeof(range), (void *)key);
		length = range.words[WAKE_LEN / 8];
		/* As it is written in userfaultfd_wake_function(); with a length of 0 all are woken. */
		if (length &&
		    (event.start < range.words[WAKE_START / 8] || event.start >= range.words[WAKE_START / 8] + length))
			return 0;
	}
	event.tid = read32(task_of(&waiter) + TASK_PID);
	sleeper = thread_of(event.tid);
	if (sleeper)
		sleeper->sleeper.woken = 1;
	if (told) {
		thread->call.woke_at = bpf_ktime_get_ns();
		thread->call.woke_tid = event.tid;
		thread->call.woke_flags = event.aux;
		return 0;
	}
	event.value = (u32)self.id;
	event.tgid = self.id >> 32;
	emit(&event);
	return 0;
}
