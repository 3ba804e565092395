// SPDX-License-Identifier: GPL-2.0-or-later
/* The monitor's calls, and what they do to page tables; how it asks for messages. */

/* include/uapi/asm-generic/errno-base.h. */
#define EFAULT 14

#define UFFDIO 0xAA

/* include/linux/mm.h. */
#define MM_CP_UFFD_WP 0x4
#define MM_CP_UFFD_WP_RESOLVE 0x8

/*
 * Copies the members that every UFFDIO struct has, wherever they stand in it. False where
 * they are not in memory: the call brings them there, so its return can read them.
 */
static __always_inline bool read_argument(struct event *event, u32 command, u64 argument)
{
	u64 words[5] = {};
	/* _IOC_SIZE: reading past the struct could fault where the call does not. */
	u64 size = command >> 16 & 0x3fff;

	if (size > sizeof(words))
		size = sizeof(words);
	if (read_user(words, size, (void *)argument))
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

/* The waiter that a call woke, in a record of its own; it is older than what came since. */
static __always_inline void tell_wake(struct ioctl_call *call, u64 ctx)
{
	u64 id = current_id();
	struct event event = {.type = EVENT_WAKE, .time = call->woke_at, .ctx = ctx, .start = call->start};

	event.aux = call->woke_flags;
	event.value = (u32)id;
	event.tid = call->woke_tid;
	event.tgid = id >> 32;
	submit(&event);
}

/* The same of what it released. */
static __always_inline void tell_release(struct ioctl_call *call, u64 ctx)
{
	u64 id = current_id();
	struct event event = {.type = EVENT_PROTECT, .time = call->released_at, .ctx = ctx, .start = call->start};

	event.end = call->end;
	event.flags = call->released_memory;
	event.tid = id;
	event.tgid = id >> 32;
	submit(&event);
}

/*
 * What a call did on its way is told by its return (model/records/acts.py): a record of its own for
 * each would cost as much as the call's own.
 */
static __always_inline void tell_with(struct event *event, struct ioctl_call *call)
{
	u64 since = event->time - call->woke_at;

	if (call->woke_at && event->aux <= ACT_MODE && since <= ACT_WOKE_MOST) {
		event->flags |= ACT_WOKE;
		event->aux |= (u64)call->woke_flags << ACT_MESSAGE_SHIFT | (u64)call->woke_tid << ACT_TID_SHIFT |
			      since << ACT_SINCE_SHIFT;
	} else if (call->woke_at) {
		tell_wake(call, event->ctx);
	}
	if (call->released_at) {
		event->flags |= call->released_memory;
		event->value = event->time - call->released_at;
	}
}

/* The return of the thread's last call was lost; what it was to tell was not. */
static __always_inline void tell_lost(struct ioctl_call *call)
{
	if (call->released_at)
		tell_release(call, call->ctx);
	if (call->woke_at)
		tell_wake(call, call->ctx);
}

static __always_inline int on_ioctl(bool typed, u64 file, u64 command, u64 argument)
{
	struct event event = {.type = EVENT_IOCTL, .kind = command & 0xff};
	struct thread *thread;
	struct self self;
	bool readable;
	u64 now, ctx;

	if ((command >> 8 & 0xff) != UFFDIO)
		return 0;
	ctx = load64(typed, file + FILE_PRIVATE);
	event.ctx = ctx;
	now = generation();
	self = myself();
	thread = self.thread;
	/* The return of an earlier call was lost: this call's must not be taken for it. */
	if (thread && thread->call.ctx) {
		tell_lost(&thread->call);
		thread->call.ctx = 0;
	}
	if (event.kind == IOCTL_API || event.kind == IOCTL_REGISTER || !thread || !passed(&thread->calls, ctx, now)) {
		bool late;

		if (!admit(read64(ctx + CTX_MM)))
			return 0;
		late = !known.lookup(&ctx);
		if (event.kind == IOCTL_API)
			know(ctx);
		else if (late || event.kind == IOCTL_REGISTER)
			tell_userfaultfd(ctx, late, false);
		thread = make_thread(&self);
		/* The map may have been full: then each call tells of the userfaultfd again. */
		if (thread && known.lookup(&ctx))
			let_pass(&thread->calls, ctx, now);
	}
	if (thread) {
		/* What COPY and its kin commit is no page of a fault. */
		thread->mark.kind = 0;
		thread->call.ctx = ctx;
		thread->call.argument = argument;
		thread->call.command = command;
		thread->call.woke_at = thread->call.released_at = 0;
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
		emit_present(&event, read64(ctx + CTX_MM));
	emit_often(typed, self.id, &event);
	return 0;
}

/* The kernel enters the userfaultfd into an area while REGISTER runs, and takes it out with a null pointer. */
static __always_inline int on_set_uffd(bool typed, u64 vma, u64 uffd)
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

static __always_inline int on_ioctl_return(bool typed, u64 result)
{
	struct self self = myself();
	struct thread *thread = self.thread;
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
		tell_userfaultfd(event.ctx, 0, false);
	event.time = bpf_ktime_get_ns();
	tell_with(&event, &thread->call);
	submit_often(typed, self.id, &event);
	return 0;
}

static __always_inline int on_release(bool typed, u64 file)
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

static __always_inline int on_poll(bool typed, u64 file)
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

/* A release of more takes so long that what happens meanwhile must not wait for its return. */
#define MOST_RELEASED (512 * PAGE_SIZE)

/* Whether change_protection() is all that a WRITEPROTECT does: then its return tells of it. */
static __always_inline bool releases_all(struct ioctl_call *call, u64 ctx, u64 start, u64 end)
{
	return call->ctx == ctx && (call->command & 0xff) == IOCTL_WRITEPROTECT && call->readable &&
	       !call->released_at && call->start == start && call->end == end && end - start <= MOST_RELEASED;
}

/* Whether anybody asks what change_protection() returns: of mprotect() and of releases nobody does. */
static __always_inline bool is_arming(bool typed, u64 vma, u64 start, u64 end, u64 flags)
{
	return flags & MM_CP_UFFD_WP;
}

static __always_inline int on_protect(bool typed, u64 vma, u64 start, u64 end, u64 flags)
{
	struct event event = {.type = EVENT_PROTECT, .start = start, .end = end};
	struct thread *thread;
	struct self self;
	struct area area;

	if (!(flags & (MM_CP_UFFD_WP | MM_CP_UFFD_WP_RESOLVE)) || !read_area(typed, vma, 0, &area))
		return 0;
	self = myself();
	thread = self.thread;
	/* A call on this userfaultfd has passed the filter. */
	if ((!thread || thread->call.ctx != area.ctx) && !is_traced(mm_of(&area)))
		return 0;
	event.flags = memory_of(&area);
	if (thread && !(flags & MM_CP_UFFD_WP) && releases_all(&thread->call, area.ctx, start, end)) {
		thread->call.released_at = bpf_ktime_get_ns();
		thread->call.released_memory = event.flags;
		thread->protects = 0;
		return 0;
	}
	thread = make_thread(&self);
	event.ctx = area.ctx;
	event.kind = flags & MM_CP_UFFD_WP ? 1 : 0;
	event.aux = area.flags;
	/* What a release found says nothing, and the call around it tells when it was over. */
	if (thread) {
		/* Of one store the compiler may make arithmetic, which the verifier allows with no pointer. */
		*(volatile u64 *)&thread->protects = 0;
		if (event.kind)
			*(volatile u64 *)&thread->protects = area.ctx;
	}
	/* Swapped-out pages that are protected already are not in the return value. */
	if (event.kind)
		event.value = read64(TOTAL_SWAP_PAGES) != read64(FREE_SWAP_PAGES);
	emit_often(typed, self.id, &event);
	if (!event.kind)
		return 0;
	note_arm();
	return wants_stack(&self, EVENT_PROTECT, event.time);
}

static __always_inline int on_protect_return(bool typed, u64 pages, u64 flags)
{
	struct event event = {.type = EVENT_PROTECT_RETURN, .value = pages};
	struct thread *thread;
	struct self self;

	if (!(flags & MM_CP_UFFD_WP))
		return 0;
	self = myself();
	thread = self.thread;
	if (!thread || !thread->protects)
		return 0;
	event.ctx = thread->protects;
	thread->protects = 0;
	emit_often(typed, self.id, &event);
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
static __always_inline int on_page_scan(bool typed, u64 command, u64 argument, u64 file)
{
	u32 tid = current_id();
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
	scan.readable = !read_user(&words, sizeof(words), (void *)argument);
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

static __always_inline int on_page_scan_return(bool typed, u64 result)
{
	u32 tid = current_id();
	struct page_scan *scan = page_scans.lookup(&tid);
	struct event event = {.type = EVENT_PAGE_SCAN_RETURN};
	struct pm_scan_argument words = {};
	bool began, readable;

	if (!scan)
		return 0;
	event.ctx = scan->mm;
	began = scan->readable;
	readable = !read_user(&words, sizeof(words), (void *)scan->argument);
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

/* ---- threads that end ------------------------------------------------------ */

/* When the thread's last fault returned, if nothing has told of it yet. */
static __always_inline void tell_return(struct thread *thread)
{
	struct event event = {.type = EVENT_FAULT_RETURN, .ctx = thread->head.returned_in};

	if (!thread->head.returned_at)
		return;
	event.aux = bpf_ktime_get_ns() - thread->head.returned_at;
	emit_here(&event);
}

/* At a thread's exit: its number will be another's, and there is room for those that live. */
static __always_inline int forget_thread(void)
{
	u32 tid = current_id();
	u32 slot = tid & (THREAD_SLOTS - 1);
	struct thread *thread = thread_of(tid), *own = slot_of(tid);

	if (!thread)
		return 0;
	tell_return(thread);
	if (thread->call.ctx)
		tell_lost(&thread->call);
	if (own->head.tid == tid) {
		/* In this order: whoever becomes the owner writes the slot. */
		own->head.tid = 0;
		slot_owners.delete(&slot);
	} else {
		crowded.delete(&tid);
	}
	return 0;
}
