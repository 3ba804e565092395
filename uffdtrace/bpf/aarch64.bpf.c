// SPDX-License-Identifier: GPL-2.0-or-later
/* What arm64 does in its own way: where page tables lie, and where a system call left its registers. */

/*
 * The direct map is the lower half of the kernel's addresses (arch/arm64/include/asm/memory.h),
 * and a mm's first table lies in it: above the highest bit of that address that is clear, all
 * bits are set in all of the direct map. So many bits addresses have, which tells how many
 * levels of tables there are, too: a kernel that is built for 52 bits runs with 48 where the
 * CPU has no more.
 */
static __always_inline void find_direct_map(struct direct_map *map, u64 mm)
{
	u64 below;

	map->root = read64(mm + MM_PGD);
	/* The top byte may have a tag of KASAN's. */
	below = ~(map->root | 0xffUL << 56);
	below |= below >> 1;
	below |= below >> 2;
	below |= below >> 4;
	below |= below >> 8;
	below |= below >> 16;
	below |= below >> 32;
	map->begin = ~below;
	map->memory_begins = read64(MEMSTART_ADDR);
	/* 50 bits of an address stand in their places, and no machine has memory above. */
	map->address_bits = ((1UL << 50) - 1) & PAGE_MASK;
	map->top_shift = TABLE_SHIFT(2);
	if (below >> TABLE_SHIFT(3))
		map->top_shift = TABLE_SHIFT(3);
#if TABLE_SHIFT(4) < 64
	if (below >> TABLE_SHIFT(4))
		map->top_shift = TABLE_SHIFT(4);
#endif
}

/* Where the memory lies that an entry names: __phys_to_virt(). */
static __always_inline u64 in_direct_map(struct direct_map *map, u64 entry)
{
	return ((entry & map->address_bits) - map->memory_begins) | map->begin;
}

/* 1 for an entry, above those of single pages, that maps memory; it may be absent. */
static __always_inline u64 is_huge(u64 entry)
{
	return ~(entry / PTE_TABLE) & 1;
}

/* arch/arm64/include/uapi/asm/ptrace.h: where both are clear, a 64-bit program was running. */
#define PSTATE_MODE 0xf
#define PSTATE_32_BIT 0x10

/*
 * The registers that the current thread saved when it entered the kernel, at the top of its
 * kernel stack: task_pt_regs(). 0 for a kernel thread, whose mode is that of the kernel, for a
 * 32-bit program, and outside of a system call.
 */
static __always_inline u64 saved_registers(void)
{
	u64 regs = read64((u64)bpf_get_current_task() + TASK_STACK) + THREAD_SIZE - REGS_SIZE;

	if (read64(regs + REGS_PSTATE) & (PSTATE_MODE | PSTATE_32_BIT) || (s32)read32(regs + REGS_CALL) < 0)
		return 0;
	return regs;
}

/* A user address without what the program keeps in its top byte. */
static __always_inline u64 untagged(u64 address)
{
	return address & ((1UL << 56) - 1);
}
