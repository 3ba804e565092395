/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Numbers in /proc and /sys that scenarios change and that are put back in the end. */
#ifndef SETTINGS_H
#define SETTINGS_H

#include <stdbool.h>

#define NR_HUGEPAGES "/proc/sys/vm/nr_hugepages"
#define KSM_RUN "/sys/kernel/mm/ksm/run"
#define KSM_SLEEP "/sys/kernel/mm/ksm/sleep_millisecs"
#define KSM_PAGES "/sys/kernel/mm/ksm/pages_to_scan"

/* -1 where there is none. */
long setting_get(const char *path);
bool setting_set(const char *path, long value);

void settings_save(void);
void settings_restore(void);

#endif
