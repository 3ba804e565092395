// SPDX-License-Identifier: GPL-2.0-or-later
/* Pages that appear without a message, and pages that lose their protection. */

/* include/linux/mm.h; the same in 5.10 to 7.2. */
#define VM_MERGEABLE 0x80000000UL

/* include/linux/mm_types.h, enum vm_fault_reason. */
#define VM_FAULT_FALLBACK 0x800

static __always_inline void mark(struct self *self, struct area *area, u64 address, u32 kind, u32 write)
{
	struct thread *thread = make_thread(self);

	if (!thread)
		return;
	thread->mark.page = address & PAGE_MASK;
	thread->mark.ctx = area->ctx;
	thread->mark.kind = kind;
	thread->mark.write = write;
}

/* The page that is committed next was there before. */
static __always_inline void unmark(struct self *self)
{
	if (self->thread)
		self->thread->mark.kind = 0;
}

/* Whether its stack is to be told, too. */
static __always_inline bool emit_page(struct self *self, struct area *area, u32 type, u32 kind, u64 start, u64 size,
				      u64 aux)
{
	struct event event = {.type = type, .kind = kind, .start = start, .end = start + size, .aux = aux};

	event.ctx = area->ctx;
	event.flags = memory_of(area);
	emit_often(area->typed, self->id, &event);
	return wants_stack(self, type, event.time);
}

/* do_anonymous_page(), where the compiler left it a function (6.12, 7.2). */
static __always_inline int on_anon_fault(bool typed, u64 vmf)
{
	struct access access;
	struct self self;
	struct area area;
	u64 address, pte;

	if (!registered_area(typed, load64(typed, vmf + VMF_VMA), VM_UFFD_WP, &area))
		return 0;
	self = myself();
	read_access(typed, vmf, &access);
	address = access.address & PAGE_MASK;
	/* Not none means a marker (WP_UNPOPULATED): the page arrives protected. */
	pte = access.flags & FAULT_FLAG_ORIG_PTE_VALID ? access.orig_pte : 0;
	mark(&self, &area, address, pte ? MARK_PROTECTED_HOLE : MARK_HOLE, access.flags & FAULT_FLAG_WRITE);
	if (!(access.flags & FAULT_FLAG_WRITE) && !pte && !(area.flags & VM_UFFD_MISSING))
		emit_page(&self, &area, EVENT_ZERO_PAGE, 0, address, PAGE_SIZE, 0);
	return 0;
}

/*
 * Where do_anonymous_page() is inlined (5.10, 6.1): those kernels have no
 * markers on anonymous memory, so what the fault found tells what it will do.
 */
static __always_inline int on_mm_fault(bool typed, u64 vma, u64 address, u64 flags)
{
	struct self self;
	struct area area;

	if (!registered_area(typed, vma, VM_UFFD_WP, &area) || area.flags & VM_HUGETLB)
		return 0;
	self = myself();
	address &= PAGE_MASK;
	mark(&self, &area, address, MARK_HOLE, flags & FAULT_FLAG_WRITE);
	if (flags & FAULT_FLAG_WRITE || area.flags & VM_UFFD_MISSING || load64(typed, vma + VMA_OPS))
		return 0;
	if (!walk(mm_of(&area), address).value)
		emit_page(&self, &area, EVENT_ZERO_PAGE, 0, address, PAGE_SIZE, 0);
	return 0;
}

static __always_inline int on_huge_fault(bool typed, u64 vmf)
{
	struct access access;
	struct self self;
	struct area area;
	u64 address, start;

	if (!registered_area(typed, load64(typed, vmf + VMF_VMA), VM_UFFD_WP, &area))
		return 0;
	self = myself();
	read_access(typed, vmf, &access);
	address = access.address & PAGE_MASK;
	mark(&self, &area, address, MARK_HUGE, access.flags & FAULT_FLAG_WRITE);
	start = address & ~(u64)(PMD_SIZE - 1);
	if (access.flags & FAULT_FLAG_WRITE || area.flags & VM_UFFD_MISSING)
		return 0;
	/* transhuge_vma_suitable() in 5.10 and 6.1, thp_vma_suitable_order() in 6.12. */
	if (start < area.start || start + PMD_SIZE > area.end)
		return 0;
	emit_page(&self, &area, EVENT_HUGE_ZERO_PAGE, 0, start, PMD_SIZE, address);
	return 0;
}

static __always_inline int on_huge_fault_return(bool typed, u64 result)
{
	struct thread *thread = myself().thread;
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
static __always_inline int on_huge_wp(bool typed, u64 vmf)
{
	struct huge_write write = {};
	struct self self;
	struct area area;
	u32 tid;

	if (!registered_area(typed, load64(typed, vmf + VMF_VMA), 0, &area) ||
	    load32(typed, vmf + VMF_FLAGS) & FAULT_FLAG_UNSHARE)
		return 0;
	self = myself();
	tid = self.id;
	write.ctx = area.ctx;
	write.mm = mm_of(&area);
	write.address = load64(typed, vmf + VMF_ADDRESS) & PAGE_MASK;
	write.memory = memory_of(&area);
	mark(&self, &area, write.address, MARK_HUGE_ZERO, FAULT_FLAG_WRITE);
	if (huge_writes.update(&tid, &write))
		lose(LOSS_MAP_FULL);
	return 0;
}

/* The function returns 0 also where it lost a race and did nothing: only the entry tells. */
static __always_inline int on_huge_wp_return(bool typed, u64 result)
{
	u32 tid = current_id();
	struct huge_write *write = huge_writes.lookup(&tid);
	struct event event = {.type = EVENT_HUGE_WRITE, .kind = 1};
	struct entry entry;
	struct self self;

	if (!write)
		return 0;
	event.ctx = write->ctx;
	event.aux = write->address;
	event.start = write->address & ~(u64)(PMD_SIZE - 1);
	event.end = event.start + PMD_SIZE;
	event.flags = write->memory;
	entry = walk(write->mm, write->address);
	huge_writes.delete(&tid);
	if (result & VM_FAULT_FALLBACK || entry.shift <= PAGE_SHIFT || !(entry.value & PTE_PRESENT) ||
	    !(entry.value & PTE_WRITE))
		return 0;
	emit_here(&event);
	self = myself();
	return wants_stack(&self, event.type, event.time);
}

/* The page a fault adds is committed here, once, however many threads raced. */
static __always_inline int on_anon_commit(bool typed, u64 page, u64 vma, u64 address)
{
	struct thread *thread;
	struct self self;
	struct area area;
	struct mark seen;
	bool huge;
	u32 type;

	if (!registered_area(typed, vma, 0, &area))
		return 0;
	self = myself();
	thread = self.thread;
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
		u32 tid = self.id;

		/* A new page, and not the one that was there. */
		huge_writes.delete(&tid);
		type = EVENT_HUGE_ZERO_WRITE;
	} else if (huge && seen.kind == MARK_HUGE) {
		type = EVENT_HUGE_PAGE;
	} else if (!huge && (seen.kind == MARK_HOLE || seen.kind == MARK_HUGE) && seen.write) {
		type = EVENT_FRESH_PAGE;
	} else {
		return 0;
	}
	return emit_page(&self, &area, type, seen.write ? 1 : 0, address, huge ? PMD_SIZE : PAGE_SIZE, seen.page);
}

/* Pages that swap brings back go through the same commit. */
static __always_inline int on_swap(bool typed, u64 vmf)
{
	struct self self;
	struct area area;

	if (!registered_area(typed, load64(typed, vmf + VMF_VMA), VM_UFFD_WP, &area))
		return 0;
	self = myself();
	unmark(&self);
	return 0;
}

static __always_inline int on_wp_fault(bool typed, u64 vmf)
{
	struct access access;
	struct self self;
	struct area area;
	u32 type, kind;
	u64 address;

	if (!read_area(typed, load64(typed, vmf + VMF_VMA), 0, &area))
		return 0;
	read_access(typed, vmf, &access);
	/* The write is announced: do_wp_page() goes to handle_userfault() and commits no page. */
	if (access.orig_pte & PTE_UFFD_WP && !(access.flags & FAULT_FLAG_UNSHARE) && area.flags & VM_UFFD_WP)
		return 0;
	/* Else the compiler has it loaded above, for what is announced, too. */
	asm volatile("" : "+r"(access.address));
	self = myself();
	/* A fault of this thread's may have asked. */
	if ((!self.thread || !passed(&self.thread->faults, area.ctx, generation())) && !is_traced(mm_of(&area)))
		return 0;
	unmark(&self);
	address = access.address & PAGE_MASK;
	if (!(access.flags & FAULT_FLAG_WRITE) || access.flags & FAULT_FLAG_UNSHARE)
		return 0;
	/* No write to a protected page comes here. A bit without the mode protects nothing: it outlives the mode. */
	type = EVENT_UNPROTECTED_WRITE;
	/* KSM may have put the zero page there (use_zero_pages). */
	kind = access.orig_pte & PTE_SPECIAL && !(area.flags & VM_MERGEABLE);
	/* break_ksm() up to 6.1 gives a page back by a write fault, though nobody writes. */
	if (access.flags & FAULT_FLAG_REMOTE && !(access.flags & (FAULT_FLAG_USER | FAULT_FLAG_ALLOW_RETRY))) {
		u32 tid = self.id;
		u64 *page = unmerging.lookup(&tid);

		if (page && *page == address) {
			type = EVENT_UNMERGED;
			kind = 1;
		}
	}
	return emit_page(&self, &area, type, kind, address, PAGE_SIZE, 0);
}

static __always_inline int on_file_fault(bool typed, u64 vmf)
{
	struct access access;
	struct self self;
	struct area area;
	u64 address;

	if (!registered_area(typed, load64(typed, vmf + VMF_VMA), VM_UFFD_WP, &area))
		return 0;
	self = myself();
	unmark(&self);
	read_access(typed, vmf, &access);
	address = access.address & PAGE_MASK;
	/* A marker makes finish_fault() map the page protected. */
	if (access.flags & FAULT_FLAG_ORIG_PTE_VALID && access.orig_pte)
		return 0;
	return emit_page(&self, &area, EVENT_FILE_PAGE, access.flags & FAULT_FLAG_WRITE ? 1 : 0, address, PAGE_SIZE, 0);
}

static __always_inline int on_hugetlb_fault(bool typed, u64 vma, u64 address, u64 flags)
{
	struct self self;
	struct area area;
	struct entry entry;
	u32 type, kind = 0;
	u64 size;

	if (!registered_area(typed, vma, VM_UFFD_WP, &area))
		return 0;
	self = myself();
	size = (u64)PAGE_SIZE << (memory_of(&area) >> MEMORY_ORDER_SHIFT & 31);
	address &= ~(size - 1);
	entry = walk(mm_of(&area), address);
	if (!entry.value && !(area.flags & VM_UFFD_MISSING)) {
		type = EVENT_FILE_PAGE;
		kind = flags & FAULT_FLAG_WRITE ? 1 : 0;
	} else if (entry.value & PTE_PRESENT && flags & FAULT_FLAG_WRITE &&
		   !(entry.value & (PTE_UFFD_WP | PTE_WRITE))) {
		type = EVENT_UNPROTECTED_WRITE;
	} else {
		return 0;
	}
	return emit_page(&self, &area, type, kind, address, size, 0);
}

/* ---- pages that lose their protection ------------------------------------ */

/* A page without kpage is the one the others will share: it keeps its entry. */
static __always_inline int on_merge(bool typed, u64 item, u64 kpage)
{
	u32 tid = current_id();

#ifdef RMAP_ITEM_MM
	if (kpage && is_traced(read64(item + RMAP_ITEM_MM)) && merges.update(&tid, &item))
		lose(LOSS_MAP_FULL);
#endif
	return 0;
}

static __always_inline int on_merge_return(bool typed, u64 result)
{
	u32 tid = current_id();
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
static __always_inline int on_unmerge(bool typed, u64 vma, u64 address)
{
	u32 tid = current_id();
	struct area area;

	address &= PAGE_MASK;
	if (registered_area(typed, vma, 0, &area) && unmerging.update(&tid, &address))
		lose(LOSS_MAP_FULL);
	return 0;
}

static __always_inline int on_unmerge_return(bool typed, u64 result)
{
	u32 tid = current_id();

	unmerging.delete(&tid);
	return 0;
}

/* unuse_pte() is inlined; swapoff is what runs as the OOM killer's first choice. */
static __always_inline int on_mapped_again(bool typed, u64 vma, u64 address, u64 compound)
{
	struct area area;
#ifdef SIGNAL_OOM_ORIGIN
	u64 task = (u64)bpf_get_current_task();
	struct self self;

	if (!registered_area(typed, vma, VM_UFFD_WP, &area))
		return 0;
	self = myself();
	if (read32(read64(task + TASK_SIGNAL) + SIGNAL_OOM_ORIGIN) & 0xff)
		emit_page(&self, &area, EVENT_SWAPPED_BACK, 0, address & PAGE_MASK, PAGE_SIZE, 0);
#endif
	return 0;
}
