/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Mappings, userfaultfd ioctls and pagemap, each keeping the truth in step. */
#ifndef UFFD_H
#define UFFD_H

#include <linux/userfaultfd.h>

#include "truth.h"

/* Newer than the headers this may be built with. */
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif

#define MODE_MISSING UFFDIO_REGISTER_MODE_MISSING
#define MODE_WP UFFDIO_REGISTER_MODE_WP
#define MODE_MINOR UFFDIO_REGISTER_MODE_MINOR

struct range *map_anon(size_t pages);
struct range *map_huge(size_t pages);
struct range *map_hugetlb(size_t pages);
/* With other != NULL also a second, unregistered mapping of the same file. */
struct range *map_shmem(size_t pages, char **other);

/* Before anything is armed: these touches are nobody's loss. */
void populate(struct range *r, size_t first, size_t pages);
void populate_every(struct range *r, size_t first, size_t pages, size_t step);
void populate_by_reading(struct range *r, size_t first, size_t pages);

int uffd_open(uint64_t features);
void uffd_register(int uffd, uint64_t features, struct range *r, uint64_t modes);
struct range *uffd_reregister(struct range *r, uint64_t modes);
void uffd_unregister_from(struct range *r, size_t first);
void unmap_from(struct range *r, size_t first);
void discard(struct range *r, size_t first, size_t pages);

void arm(struct range *r, size_t first, size_t pages);
void release(struct range *r, size_t first, size_t pages);
void wake(struct range *r, size_t i);
void copy_page(struct range *r, size_t i, bool wp);
void zero_page(struct range *r, size_t i, bool write_fault);
void continue_page(struct range *r, size_t i);

bool page_is_present(const struct range *r, size_t i);
unsigned long huge_kb(const struct range *r);
/* Faults queued and not yet read, from fdinfo. */
unsigned long uffd_unread(int uffd);

#endif
