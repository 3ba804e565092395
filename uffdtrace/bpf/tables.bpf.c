// SPDX-License-Identifier: GPL-2.0-or-later
/* Page tables, read without locks. */

/* Where in a table of this level the entry of an address is, in bytes. */
static __always_inline u64 table_place(u64 address, u32 level)
{
	return address >> TABLE_SHIFT(level) << 3 & (PAGE_SIZE - 1);
}

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
	struct direct_map map = {};
	struct entry found = {};
	u64 table;

	find_direct_map(&map, mm);
	table = map.root;
#pragma unroll
	for (int level = MOST_LEVELS - 1; level >= 0; level--) {
		if (TABLE_SHIFT(level) > map.top_shift)
			continue;
		found.shift = TABLE_SHIFT(level);
		found.value = read64(table + table_place(address, level));
		if (!(found.value & PTE_PRESENT) || (level < 3 && level > 0 && is_huge(found.value)))
			return found;
		table = in_direct_map(&map, found.value);
	}
	return found;
}

/* Where the table of an entry is, or 0 where the entry has none: reading there then brings zeroes. */
static __always_inline u64 table_of(struct direct_map *map, u64 value, bool may_be_huge)
{
	u64 huge = may_be_huge ? is_huge(value) : 0;

	return in_direct_map(map, value) & -(value & PTE_PRESENT & ~huge);
}

/*
 * Populated pages, of those from an address on that one part of a table holds, or one
 * entry above where that decides; swapped ones do not count. `shift` becomes that of
 * what decided. There is no branch in it but for the levels: the verifier follows every
 * path through every turn of the caller's loop.
 */
static __always_inline u64 count_present(struct table *table, u64 mm, u64 address, u64 end, u32 *shift)
{
	struct direct_map map = {};
	u64 upper, middle, place, present, outside;
	u64 pages, huge, last;

	find_direct_map(&map, mm);
	place = map.root;
#if MOST_LEVELS > 4
	if (map.top_shift > TABLE_SHIFT(3))
		place = table_of(&map, read64(place + table_place(address, 4)), false);
#endif
	if (map.top_shift > TABLE_SHIFT(2))
		place = table_of(&map, read64(place + table_place(address, 3)), false);
	/* Nothing above these entries, of 1 GiB with pages of 4 KiB, is worth a turn of its own. */
	upper = read64(place + table_place(address, 2));
	place = table_of(&map, upper, true);
	middle = read64(place + table_place(address, 1));
	*shift = TABLE_PART_SHIFT + (TABLE_SHIFT(2) - TABLE_PART_SHIFT) * (place == 0);
	place = table_of(&map, middle, true);
	bpf_probe_read_kernel(table->entry, sizeof(table->entry),
			      (void *)place + (table_place(address, 0) & -sizeof(table->entry)));
	last = ((address >> *shift) + 1) << *shift;
	last = last < end ? last : end;
	pages = (last - address) >> PAGE_SHIFT;
	huge = (upper & is_huge(upper) & PTE_PRESENT) | (middle & is_huge(middle) & PTE_PRESENT);
	present = huge * pages;
	/* Counts up from below 0 at the first page, so that its sign says whether one lies before it. */
	outside = -(address >> PAGE_SHIFT & (TABLE_PART - 1));
#pragma clang loop unroll(disable)
	for (int i = 0; i < TABLE_PART; i += 16) {
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
