// SPDX-License-Identifier: GPL-2.0-or-later
/* What x86-64 does in its own way: where page tables lie, and where a system call left its registers. */

static __always_inline void find_direct_map(struct direct_map *map, u64 mm)
{
	map->root = read64(mm + MM_PGD);
	map->begin = read64(PAGE_OFFSET_BASE);
	map->address_bits = read64(PHYSICAL_MASK) & PAGE_MASK;
	map->top_shift = TABLE_SHIFT(3);
#ifdef PGTABLE_L5_ENABLED
	if (read32(PGTABLE_L5_ENABLED))
		map->top_shift = TABLE_SHIFT(4);
#endif
}

/* Where the memory lies that an entry names. */
static __always_inline u64 in_direct_map(struct direct_map *map, u64 entry)
{
	return map->begin + (entry & map->address_bits);
}

/* 1 for an entry, above those of single pages, that maps memory; it may be absent. */
static __always_inline u64 is_huge(u64 entry)
{
	return entry / PTE_HUGE & 1;
}

/* arch/x86/include/asm/segment.h, __USER_CS: the code segment of 64-bit user mode. */
#define USER_CS 0x33

/*
 * The registers that the current thread saved when it entered the kernel, at the top of
 * its kernel stack. FRED leaves 16 bytes above them (TOP_OF_KERNEL_STACK_PADDING,
 * arch/x86/include/asm/thread_info.h): the segment of 64-bit user code tells where they
 * lie. Elsewhere, for a kernel thread and for a 32-bit program, 0.
 */
static __always_inline u64 saved_registers(void)
{
	u64 top = read64((u64)bpf_get_current_task() + TASK_STACK) + THREAD_SIZE - REGS_SIZE;
	u64 regs = (read64(top + REGS_CS) & 0xffff) == USER_CS ? top : top - 16;

	return (read64(regs + REGS_CS) & 0xffff) == USER_CS ? regs : 0;
}

/* A user address without what the program keeps in its upper bits: LAM gives it bits 62 to 57. */
static __always_inline u64 untagged(u64 address)
{
	return address & ~(0x3fUL << 57);
}
