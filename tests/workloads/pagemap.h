/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef PAGEMAP_H
#define PAGEMAP_H

#include "truth.h"

/* Pages with no page-table entry; marks each in hole[]. */
size_t pagemap_holes(const struct range *r, size_t first, size_t pages, bool *hole);
/*
 * Fails unless so many pages have their userfaultfd write-protect bit set. Old
 * kernels do not show it and hugetlb shows it in its own way: both pass.
 */
void pagemap_expect(const struct range *r, size_t first, size_t pages, size_t protected);

#endif
