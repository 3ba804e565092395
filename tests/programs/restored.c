// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * restored FOLDER PAGES: fills PAGES pages, writes its number to FOLDER/pid, and
 * waits for FOLDER/go; then says in FOLDER/result whether every page is as it was.
 * Between the two it is checkpointed, and restored lazily.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE ((size_t)getpagesize())

static char folder[200];

static void say(const char *name, const char *what)
{
	char part[256], path[256];
	FILE *file;

	snprintf(part, sizeof(part), "%s/%s.part", folder, name);
	snprintf(path, sizeof(path), "%s/%s", folder, name);
	file = fopen(part, "w");
	if (!file || fputs(what, file) < 0 || fclose(file) || rename(part, path))
		abort();
}

int main(int argc, char **argv)
{
	size_t pages = argc == 3 ? strtoul(argv[2], NULL, 10) : 0;
	char text[64], go[256], *memory;
	size_t wrong = 0;

	if (!pages)
		return 2;
	snprintf(folder, sizeof(folder), "%s", argv[1]);
	snprintf(go, sizeof(go), "%s/go", folder);
	memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return 2;
	for (size_t page = 0; page < pages; page++)
		memset(memory + page * PAGE, (int)(page % 255) + 1, PAGE);
	snprintf(text, sizeof(text), "%d %#lx", (int)getpid(), (unsigned long)memory);
	say("pid", text);
	while (access(go, F_OK))
		usleep(20000);
	for (size_t page = 0; page < pages; page++)
		for (size_t i = 0; i < PAGE; i += 64)
			wrong += (unsigned char)memory[page * PAGE + i] != page % 255 + 1;
	say("result", wrong ? "wrong" : "right");
	return 0;
}
