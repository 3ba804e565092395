/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef SCENARIOS_H
#define SCENARIOS_H

#include "threads.h"
#include "truth.h"
#include "uffd.h"

#define PAGES 1024

struct scenario {
	const char *name;
	void (*run)(void);
};

/* In the order they run; ends with a NULL name. */
extern const struct scenario scenarios[];

/* Opens a userfaultfd, registers r on it and starts m. */
static inline void track(struct range *r, uint64_t modes, uint64_t features, struct monitor *m)
{
	int uffd = uffd_open(features);

	uffd_register(uffd, features, r, modes);
	monitor_start(m, uffd);
}

void populated(void);
void empty(void);
void seed(void);
void read_before(void);
void read_after(void);
void never_armed(void);
void two_rounds(void);
void rounds_of_holes(void);
void wp_unpopulated(void);
void wp_unpopulated_read(void);
void wp_async(void);
void wake_only(void);
void discarded(void);

void missing_wp_copy_wp(void);
void missing_wp_copy(void);
void missing_wp_zeropage(void);
void missing_wp_zeropage_read(void);
void missing(void);
void missing_copy_wp_only(void);
void idle(void);

void part_armed(void);
void part_released(void);
void part_unregistered(void);
void unmapped(void);
void reregistered(void);
void small_ranges(void);
void two_userfaultfds(void);

void huge_populated(void);
void huge_hole(void);
void huge_zero(void);
void shmem(void);
void shmem_missing(void);
void minor(void);
void hugetlb_missing(void);
void hugetlb_wp(void);

void racing_writers(void);
void racing_writers_single(void);
void racing_holes(void);
void asleep(void);
void signals(void);
void storm(void);
void storm_threads(void);
void pending(void);

void kernel_write(void);
void remote_write(void);
void fork_wp(void);

#endif
