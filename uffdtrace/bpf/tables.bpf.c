// SPDX-License-Identifier: GPL-2.0-or-later
/* Page tables, read without locks. */

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
