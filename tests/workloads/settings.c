// SPDX-License-Identifier: GPL-2.0-or-later
#include "settings.h"

#include <stdio.h>

static struct {
	const char *path;
	long value;
} saved[] = {{KSM_RUN, 0}, {KSM_SLEEP, 0}, {KSM_PAGES, 0}, {NR_HUGEPAGES, 0}};

#define SETTINGS (sizeof(saved) / sizeof(saved[0]))

long setting_get(const char *path)
{
	FILE *f = fopen(path, "r");
	long value = -1;

	if (!f)
		return -1;
	if (fscanf(f, "%ld", &value) != 1)
		value = -1;
	fclose(f);
	return value;
}

bool setting_set(const char *path, long value)
{
	FILE *f = fopen(path, "w");

	if (!f)
		return false;
	fprintf(f, "%ld\n", value);
	return !fclose(f);
}

void settings_save(void)
{
	for (size_t i = 0; i < SETTINGS; i++)
		saved[i].value = setting_get(saved[i].path);
}

void settings_restore(void)
{
	for (size_t i = 0; i < SETTINGS; i++)
		if (saved[i].value >= 0 && setting_get(saved[i].path) != saved[i].value)
			setting_set(saved[i].path, saved[i].value);
}
