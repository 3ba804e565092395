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

#ifndef UFFDIO_CONTINUE_MODE_WP
#define UFFDIO_CONTINUE_MODE_WP ((uint64_t)1 << 1)
#endif
#ifndef UFFD_FEATURE_MOVE
#define UFFD_FEATURE_MOVE (1 << 16)
struct uffdio_move {
	uint64_t dst;
	uint64_t src;
	uint64_t len;
	uint64_t mode;
	int64_t move;
};
#define UFFDIO_MOVE _IOWR(UFFDIO, 0x05, struct uffdio_move)
#define UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES 2
#endif

#define MODE_MISSING UFFDIO_REGISTER_MODE_MISSING
#define MODE_WP UFFDIO_REGISTER_MODE_WP
#define MODE_MINOR UFFDIO_REGISTER_MODE_MINOR

/* A huge page's worth of zeroes, for copies to read. */
extern char *zeroes;

/* Before anything else here: asks for the size of pages. */
void memory_start(void);

struct range *map_anon(size_t pages);
/* With so many pages of free address space behind it, for grow(). */
struct range *map_anon_with_room(size_t pages, size_t room);
struct range *map_huge(size_t pages);
struct range *map_hugetlb(size_t pages);
/* With other != NULL also a second, unregistered mapping of the same file. */
struct range *map_shmem(size_t pages, char **other);
/* Privately, of an ordinary file. */
struct range *map_file(size_t pages);

/* Before anything is armed: these touches are nobody's loss. */
void populate(struct range *r, size_t first, size_t pages);
void populate_every(struct range *r, size_t first, size_t pages, size_t step);
void populate_by_reading(struct range *r, size_t first, size_t pages);

int uffd_open(uint64_t features);
void uffd_register(int uffd, uint64_t features, struct range *r, uint64_t modes);
struct range *uffd_reregister(struct range *r, uint64_t modes);
/* Modes that it has already: the kernel leaves it as it is. */
void uffd_register_again(struct range *r, uint64_t modes);
void uffd_unregister_from(struct range *r, size_t first);
/* Closes it; none of its ranges is registered any more. */
void uffd_close(int uffd);
void unmap_from(struct range *r, size_t first);
/* New anonymous memory over these pages. */
void map_over(struct range *r, size_t first, size_t pages);
/* MADV_DONTNEED. Markers outlive it in files. */
void discard(struct range *r, size_t first, size_t pages);
/* MADV_PAGEOUT, until none is in memory. */
void page_out(struct range *r, size_t first, size_t pages);
/*
 * Moves the whole mapping elsewhere: its new start. With EVENT_REMAP, which a
 * monitor must read, truth_find() has the new range there.
 */
char *move_mapping(struct range *r);
/* MREMAP_DONTUNMAP: the mapping stays, registered and empty. */
void move_content(struct range *r);
/* Enlarges the mapping in place, by the room it was made with. */
void grow(struct range *r, size_t pages);

void arm(struct range *r, size_t first, size_t pages);
void release(struct range *r, size_t first, size_t pages);
void wake(struct range *r, size_t i);
void copy_page(struct range *r, size_t i, bool wp);
/* One UFFDIO_COPY; at most a huge page's worth. */
void copy_pages(struct range *r, size_t i, size_t n, bool wp);
void zero_page(struct range *r, size_t i);
void continue_page(struct range *r, size_t i, bool wp);
void move_pages(struct range *dst, size_t i, struct range *src, size_t j, size_t n);

unsigned long huge_kb(const struct range *r);
/* Faults queued and not yet read, from fdinfo. */
unsigned long uffd_unread(int uffd);

#endif
