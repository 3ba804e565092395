/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef PAGEMAP_H
#define PAGEMAP_H

#include "truth.h"

/*
 * Whether pagemap shows the write-protect bit. Learnt from the pages that
 * scenarios arm, this one's and earlier ones': a userfaultfd opened to find
 * out would be in the report. False until something was armed.
 */
bool kernel_tells_protection(void);

/* Pages with no page-table entry; marks each in hole[]. */
size_t pagemap_holes(const struct range *r, size_t first, size_t pages, bool *hole);
/*
 * Fails unless so many pages have their userfaultfd write-protect bit set. Old
 * kernels do not show it and hugetlb shows it in its own way: both pass.
 */
void pagemap_expect(const struct range *r, size_t first, size_t pages, size_t protected);
/* Whether each page has that bit, as far as the kernel tells. */
void pagemap_protected(const struct range *r, size_t first, size_t pages, bool *set);
/* Pages in memory. */
size_t pagemap_present(const struct range *r, size_t first, size_t pages);
/* Which of them are in memory. */
void pagemap_in_memory(const struct range *r, size_t first, size_t pages, bool *present);
bool page_is_present(const struct range *r, size_t i);
/* Pages in swap, and markers. */
size_t pagemap_swapped(const struct range *r, size_t first, size_t pages);
/* Pages that ioctl(PAGEMAP_SCAN) tells to be written; with `protect` it protects each of them. */
size_t pagemap_written(const struct range *r, size_t first, size_t pages, bool protect);
/* Whether all map the same page frame: merged. */
bool pagemap_one_frame(const struct range *r, size_t first, size_t pages);

/* Before anything that may tell first: shares what is learnt with later scenarios. */
void pagemap_start(void);

#endif
