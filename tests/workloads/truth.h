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
#include <sys/types.h>

/* This kernel's: one build runs on kernels of every page size. */
extern unsigned long page_size;

#define PAGE page_size
/* As many as one page of entries, of 8 bytes each, maps. */
#define PAGES_PER_HUGE (PAGE / sizeof(uint64_t))
#define HUGE_PAGE (PAGES_PER_HUGE * PAGE)

enum memory { MEMORY_ANON, MEMORY_SHMEM, MEMORY_HUGETLB, MEMORY_FILE };
enum kind { KIND_MISSING, KIND_WP, KIND_MINOR, KINDS };

enum cause {
	CAUSE_NONE,
	CAUSE_UNPOPULATED,
	CAUSE_ZERO_PAGE_AFTER_ARM,
	CAUSE_HUGE_PAGE_OVER_HOLE,
	CAUSE_DISCARDED,
	CAUSE_COPY_WITHOUT_WP,
	CAUSE_ZEROPAGE,
	CAUSE_CONTINUE_WITHOUT_WP,
	CAUSE_MOVED,
	CAUSE_KSM_MERGE,
	CAUSE_SWAPOFF,
	CAUSE_MODE_REPLACED,
	CAUSE_UNEXPLAINED,
	CAUSES,
};

enum how { OBSERVED, BLIND, HOWS };
enum skipped { SKIPPED_ZERO, SKIPPED_FRESH, SKIPPED_HUGE, SKIPPED_FILE, SKIPS };

struct page {
	/* Since the page was last armed. Writers set the two atomics. */
	atomic_bool read;
	atomic_bool written;
	bool armed;
	bool bare; /* no page-table entry keeps the protection */
	bool filled; /* the monitor populated it, not a skipped fault */
	bool huge; /* a write populated its whole huge page */
	bool wp_read;
	bool write_read; /* the monitor has read of a write here: a fill without protection lets the page go */
	uint8_t dropped; /* enum cause: what took the protection away, the last of them */
	uint8_t blind; /* enum cause */

	/* Over the whole scenario. */
	bool unwatched; /* no longer registered in this range */
	bool ever_armed;
	bool notified;
	uint16_t messages[KINDS];
	uint16_t holes;
	uint16_t skipped[SKIPS];
	uint16_t times[HOWS];
	uint16_t causes[CAUSES];
	uint16_t lost[HOWS]; /* a bit per enum cause */
};

/* A finding that the report must have, or must not have. */
struct declared {
	struct declared *next;
	const char *id;
	unsigned long count; /* 0: any */
	bool absent;
};

struct range {
	struct range *next;
	char *start;
	size_t pages;
	size_t room; /* pages that it may still grow by */
	size_t unit; /* bytes that one message or ioctl covers */
	enum memory memory;
	int uffd;
	pid_t pid; /* of a child whose memory it is; 0: this process's */
	bool holes_of_parent; /* which of its pages were holes only the parent's arming knew */
	uint64_t modes;
	uint64_t features;
	unsigned int killed; /* faults whose threads the end of the process kills */
	unsigned long marker_erased;
	unsigned long content_dropped;
	struct page *page;
	struct declared *declared;
	struct content *content; /* content.h */
};

/* room: pages that it may grow by later, see truth_grown(). */
struct range *truth_new_range(char *start, size_t pages, size_t room, enum memory memory);
/* The newest range over that address. */
struct range *truth_find(const void *address);
/* The same among those of one userfaultfd. */
struct range *truth_find_of(int uffd, const void *address);
/* The ranges in the order of their making; NULL: the first. */
struct range *truth_next(const struct range *r);
/* The range goes on as another one, armed as it is: registered anew, or moved. */
struct range *truth_again(struct range *old, char *start, uint64_t modes);
/* A child's copy of the range, watched by the userfaultfd that the fork made. */
struct range *truth_forked(const struct range *old, pid_t pid, int uffd);
void truth_grown(struct range *r, size_t pages);

void truth_armed(struct range *r, size_t i, bool hole);
/* Released: still registered. */
void truth_disarmed(struct range *r, size_t first, size_t pages);
/* Disarmed, and no longer registered in this range. */
void truth_unwatched(struct range *r, size_t first, size_t pages);
/* The page-table entries are gone, and their protection with them. */
void truth_emptied(struct range *r, size_t first, size_t pages, enum cause cause);
/* The protection is gone, the pages are not. */
void truth_dropped(struct range *r, size_t first, size_t pages, enum cause cause);
/* What armed pages held is gone, though no message told of a write there. */
void truth_content_dropped(struct range *r, size_t first, size_t pages);
void truth_filled(struct range *r, size_t i);
/* Filled without protection, for `cause`: blind, unless it answers a write that was read. */
void truth_unprotected_fill(struct range *r, size_t i, enum cause cause);
void truth_zeropaged(struct range *r, size_t i);
void truth_blind(struct range *r, size_t i, enum cause cause);
void truth_huge(struct range *r, size_t block, size_t written);
void truth_read(struct range *r, size_t first, size_t pages);
void truth_written(struct range *r, size_t first, size_t pages, size_t step);
void truth_message(struct range *r, size_t i, enum kind kind, bool write);

/*
 * Findings that do not follow from the counts; count 0: not compared. A declared
 * finding replaces the one that follows from the counts, if there is one.
 */
void truth_finding(struct range *r, const char *id, unsigned long count);
void truth_no_finding(struct range *r, const char *id);

/* Where the kernel leaves markers for empty pages. */
bool truth_has_markers(const struct range *r);
/* Whether the arming that goes on has lost the page, and why: p->blind or observed. */
enum cause truth_loss(const struct range *r, const struct page *p);
const struct declared *truth_declared(const struct range *r, const char *id);

/* Ends every arming and prints the ranges as JSON objects with commas between. */
void truth_print(FILE *out);

#endif
