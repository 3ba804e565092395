/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef SCENARIOS_H
#define SCENARIOS_H

#include "threads.h"
#include "truth.h"
#include "uffd.h"

#define PAGES 1024
/* Of several huge pages. */
#define BIG (4 * PAGES_PER_HUGE)

struct scenario {
	const char *name;
	void (*run)(void);
};

/* In the order they run; ends with a NULL name. */
extern const struct scenario scenarios[];
/* What those of them that run_on() do there. */
extern const struct scenario continuations[];

/* Opens a userfaultfd, registers r on it and starts m. */
void track(struct range *r, uint64_t modes, uint64_t features, struct monitor *m);
/* An anonymous range so tracked with MODE_WP, and stopping points. */
struct range *track_wp(size_t pages, uint64_t features, struct monitor *m);
/* The same, its first `full` pages populated, and all of it armed. */
struct range *track_armed(size_t pages, size_t full, uint64_t features, struct monitor *m);
struct range *track_armed_shmem(size_t full, struct monitor *m);
void arm_all(struct range *r);
void write_and_stop(struct range *r, struct monitor *m);
/* Huge page by huge page: which of them one write populates is the kernel's choice. */
void write_blocks(struct range *r);
/* The same of so many of its huge pages. */
void write_blocks_of(struct range *r, size_t first, size_t blocks);
/* Where reclaim finds all that this thread populates: in no other CPU's batch. */
void stay_on_one_cpu(void);
/* More messages than armed pages. */
void expect_repeated_messages(struct range *r);

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
void wp_async_file(void);
void async_never_armed(void);
void async_part_armed(void);
void async_scanned(void);
void async_discarded(void);
void wake_only(void);
void discarded(void);

void fork_followed(void);
void exec_away(void);
void exec_on(void);
void stress(void);

void missing_wp_copy_wp(void);
void missing_wp_copy(void);
void missing_wp_copy_read(void);
void answered_by_copy(void);
void answer_of_two(void);
void hole_punched(void);
void guard_installed(void);
void ksm_unmerged(void);
void move_holes(void);
void huge_mode_dropped(void);
void missing_wp_zeropage(void);
void missing_wp_zeropage_read(void);
void missing(void);
void registered_late(void);
void registered_late_and_discarded(void);
void already_populated(void);
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
void mapped_elsewhere(void);
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
void shmem_fork(void);
void fork_event(void);

void mixed(void);
void exposed(void);
void discarded_unpopulated(void);
void huge_discarded_unpopulated(void);
void discarded_free(void);
void free_kept(void);
void shmem_discarded(void);
void copy_over_armed(void);
void shmem_copy_marker(void);
void shmem_copy_wp(void);
void hugetlb_copy_marker(void);
void continue_marker(void);
void continue_wp(void);
void move(void);
void mprotected(void);
void copy_wp_read_only(void);

void swapped(void);
void swapped_before_arm(void);
void swapped_off(void);
void ksm_merge(void);
void ksm_unwritten(void);
void ksm_merged_first(void);

void map_fixed(void);
void unmapped_event(void);
void remapped(void);
void remapped_event(void);
void remapped_kept(void);
void grown(void);
void stale_unregister(void);
void stale_close(void);
void stale_remap(void);
void wp_dropped(void);
void re_registered_wp(void);
void re_registered_subset(void);

void never_read(void);
void monitor_fault(void);
void monitor_process_fault(void);
void slow_service(void);
void answered_in_circles(void);
void prompt_service(void);
void closed_with_waiters(void);
void closed_after(void);
void unregistered_with_waiters(void);
void unregistered_after(void);
void cannot_wait(void);
void user_mode_only(void);
void sigbus_feature(void);
void huge_moved(void);
void huge_remapped(void);
void huge_remapped_event(void);
void huge_forked(void);
void huge_fork_followed(void);
void huge_part_released(void);
void huge_part_discarded(void);
void huge_discarded(void);
void huge_paged_out(void);
void huge_collapsed(void);
void huge_ksm_merged(void);
void huge_unpopulated(void);
void answer_failed(void);
void eexist_asleep(void);
void blocking_poll(void);
void holes_left(void);
void rearmed_holes(void);

void eagain_storm(void);
void eagain_once(void);
void eexist(void);
void zeropage_eexist(void);
void copy_into_holes(void);
void partial_copy(void);
void gap(void);
void adjacent(void);
void half(void);
void arm_failed(void);
void argument_untouched(void);

#endif
