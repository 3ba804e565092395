/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the program itself knows about each registered page, and the words of
 * the report computed from it. Nothing here ever asks a tracer.
 */
#ifndef TRUTH_H
#define TRUTH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define PAGE 4096UL
#define HUGE_PAGE (2UL << 20)
#define PAGES_PER_HUGE (HUGE_PAGE / PAGE)

enum memory { MEMORY_ANON, MEMORY_SHMEM, MEMORY_HUGETLB };
enum kind { KIND_MISSING, KIND_WP, KIND_MINOR, KINDS };

enum cause {
	CAUSE_NONE,
	CAUSE_HOLE,
	CAUSE_ZERO_PAGE_AFTER_ARM,
	CAUSE_HUGE_PAGE,
	CAUSE_DISCARDED,
	CAUSE_COPY_WITHOUT_WP,
	CAUSE_ZEROPAGE,
	CAUSE_CONTINUE_WITHOUT_WP,
	CAUSE_MODE_REPLACED,
	CAUSE_UNKNOWN,
	CAUSES,
};

enum skipped { SKIPPED_ZERO, SKIPPED_FRESH, SKIPPED_HUGE, SKIPPED_FILE, SKIPS };

struct page {
	/* Since the page was last armed. Writers set the two atomics. */
	atomic_bool read;
	atomic_bool written;
	bool armed;
	bool bare; /* no page-table entry keeps the protection */
	bool filled; /* the monitor populated it, not a skipped fault */
	bool zeropaged;
	bool discarded;
	bool replaced; /* registered again without WP while armed */
	bool huge; /* a write populated its whole huge page */
	bool wp_read;
	uint8_t blind; /* enum cause */

	/* Over the whole scenario. */
	bool ever_armed;
	bool notified;
	uint16_t messages[KINDS];
	uint16_t holes;
	uint16_t skipped[SKIPS];
	uint16_t observed;
	uint16_t blinded;
	uint16_t causes[CAUSES];
};

struct range {
	struct range *next;
	char *start;
	size_t pages;
	size_t unit; /* bytes that one message or ioctl covers */
	enum memory memory;
	int uffd;
	uint64_t modes;
	uint64_t features;
	unsigned int pending;
	struct page *page;
};

struct range *truth_new_range(char *start, size_t pages, enum memory memory);
struct range *truth_find(const void *address);
struct range *truth_again(struct range *old);

void truth_armed(struct range *r, size_t i, bool hole);
void truth_disarmed(struct range *r, size_t first, size_t pages);
void truth_discarded(struct range *r, size_t first, size_t pages);
void truth_filled(struct range *r, size_t i);
void truth_zeropaged(struct range *r, size_t i);
void truth_blind(struct range *r, size_t i, enum cause cause);
void truth_huge(struct range *r, size_t block, size_t written);
void truth_read(struct range *r, size_t first, size_t pages);
void truth_written(struct range *r, size_t first, size_t pages, size_t step);
void truth_message(struct range *r, size_t i, enum kind kind);

/* Ends every arming and prints the ranges as a JSON array. */
void truth_print(FILE *out);

#endif
