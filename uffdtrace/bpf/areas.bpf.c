// SPDX-License-Identifier: GPL-2.0-or-later
/* The life of ranges: drops, unmaps, forks, moves, and the events that tell the monitor. */

/* include/linux/mm.h; the same in 5.10 to 7.2. */
#define VM_WIPEONFORK 0x2000000UL

/* UFFD_FEATURE_* (include/uapi/linux/userfaultfd.h). */
#define FEATURE_EVENT_FORK 0x2
#define FEATURE_EVENT_REMOVE 0x8

/* Since 5.10 (ecb8ac8b1f14); the same number everywhere. */
#define SYS_PROCESS_MADVISE 440

/* Which system call the current thread is in; outside of one, and where that cannot be told, it stays 0. */
static __always_inline void name_call(struct event *event)
{
	u64 regs = saved_registers();

	if (!regs)
		return;
	event->aux = read32(regs + REGS_CALL);
	/* The advice: madvise()'s third argument, process_madvise()'s fourth. */
	event->value = (u32)read64(regs + (event->aux == SYS_PROCESS_MADVISE ? REGS_ARGUMENT_4 : REGS_ARGUMENT_3));
}

static __always_inline int dropped(bool typed, u32 type, u64 vma, u64 start, u64 end, u64 wanted_flags)
{
	u32 tid = current_id();
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
static __always_inline int on_discard(bool typed, u64 vma, u64 start, u64 end)
{
	return dropped(typed, EVENT_DISCARD, vma, start, end, 0);
}

/*
 * void zap_page_range_single(struct vm_area_struct *vma, unsigned long address, unsigned long size, ...)
 *
 * Entries go: madvise, but also hole punching and truncation of a file, and guard
 * regions, of which no event tells the monitor.
 */
static __always_inline int on_zap(bool typed, u64 vma, u64 address, u64 size)
{
	return dropped(typed, EVENT_ZAP, vma, address, address + size, VM_UFFD_WP);
}

/* void unmap_hugepage_range(struct vm_area_struct *vma, unsigned long start, unsigned long end, ...) */
static __always_inline int on_hugetlb_zap(bool typed, u64 vma, u64 start, u64 end)
{
	return dropped(typed, EVENT_ZAP, vma, start, end, VM_UFFD_WP);
}

/* Until here an entry may have been there still: what else acts on it meanwhile has no order with the drop. */
static __always_inline int zapped(void)
{
	u32 tid = current_id();
	u64 *uffd = zapping.lookup(&tid);
	struct event event = {.type = EVENT_ZAP_RETURN};

	if (!uffd)
		return 0;
	event.ctx = *uffd;
	zapping.delete(&tid);
	emit_here(&event);
	return 0;
}

static __always_inline int on_zap_return(bool typed, u64 result)
{
	return zapped();
}

static __always_inline int on_hugetlb_zap_return(bool typed, u64 result)
{
	return zapped();
}

/* void zap_page_range(struct vm_area_struct *vma, unsigned long start, unsigned long size) */
static __always_inline int on_advised_zap(bool typed, u64 vma, u64 start, u64 size)
{
	return dropped(typed, EVENT_ZAP, vma, start, start + size, VM_UFFD_WP);
}

static __always_inline int on_advised_zap_return(bool typed, u64 result)
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

static __always_inline int on_unmap(bool typed, u64 mm, u64 start, u64 end)
{
	return unmapped(mm, start, end);
}

static __always_inline int on_unmap_vma(bool typed, u64 vma, u64 start, u64 end)
{
	u64 mm = vma ? load64(typed, vma + VMA_MM) : 0;

	/* 6.12 calls it for each area; 5.10 for the first, which says nothing of the others. */
	if (!mm || (!read64(vma + VMA_CTX) && end <= read64(vma + VMA_END)))
		return 0;
	return unmapped(mm, start, end);
}

static __always_inline int on_exit(bool typed, u64 mm)
{
	struct event event = {.type = EVENT_EXIT, .ctx = mm};
	u32 tgid = current_id() >> 32;
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

static __always_inline int on_fork(bool typed, u64 parent, u64 child)
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
	if (FOLLOW >= FOLLOW_FORKS && followed.lookup(&from) && followed.update(&to, &one))
		lose(LOSS_MAP_FULL);
	/* Its memory had no owner yet when its userfaultfd was made. */
	event.ctx = read64(child + TASK_MM);
	if (event.ctx == made.ctx || !is_traced(event.ctx))
		return 0;
	emit_process(child);
	emit(&event);
	return 0;
}

/* For each area of the parent; the copy still names the parent's userfaultfd. */
static __always_inline int on_fork_area(bool typed, u64 vma)
{
	struct event event = {.type = EVENT_FORK};
	struct area area = {.typed = typed, .vma = vma, .flags = load64(typed, vma + VMA_FLAGS)};

	event.ctx = read64(vma + VMA_CTX);
	if (!event.ctx || !is_traced(read64(event.ctx + CTX_MM)))
		return 0;
	event.kind = read32(event.ctx + CTX_FEATURES) & FEATURE_EVENT_FORK ? 1 : 0;
	/* Nobody will ask what the child has. */
	if (event.kind && FOLLOW < FOLLOW_FORKS)
		return 0;
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

static __always_inline int on_remap(bool typed, u64 regs)
{
	struct event event = {.type = EVENT_REMAP};

	event.ctx = current_mm();
	if (!is_traced(event.ctx))
		return 0;
	event.start = untagged(read64(regs + REGS_ARGUMENT_1));
	event.end = event.start + read64(regs + REGS_ARGUMENT_2);
	event.aux = read64(regs + REGS_ARGUMENT_3);
	event.flags = read64(regs + REGS_ARGUMENT_4);
	emit_here(&event);
	return 0;
}

static __always_inline int on_remap_return(bool typed, u64 result)
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
	u8 follow = FOLLOW >= FOLLOW_FORKS;

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

static __always_inline int on_event(bool typed, u64 uffd, u64 queued)
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
