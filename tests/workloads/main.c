// SPDX-License-Identifier: GPL-2.0-or-later
/* The command line, and one forked child per scenario. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "pagemap.h"
#include "run.h"
#include "scenarios.h"
#include "settings.h"
#include "truth.h"
#include "uffd.h"

#define TIMEOUT_S 240

enum { CHILD_DONE, CHILD_FAILED };

static const char *out_path;
static const char *stop_at;
static const char *current;
static struct timespec began;
/* Ranges of the image that this one came from. */
static char earlier[1 << 16];

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)(now.tv_sec - began.tv_sec) + (double)(now.tv_nsec - began.tv_nsec) / 1e9;
}

static void report(pid_t pid, const char *status, const char *reason)
{
	FILE *out = out_path ? fopen(out_path, "a") : stdout;

	if (!out) {
		fprintf(stderr, "workload: %s: %s\n", out_path, strerror(errno));
		_exit(CHILD_FAILED);
	}
	fprintf(out, "{\"scenario\": \"%s\", \"pid\": %d, \"status\": \"%s\", ", current, (int)pid, status);
	fprintf(out, "\"seconds\": %.1f, ", seconds());
	if (reason)
		fprintf(out, "\"reason\": \"%s\", ", reason);
	fprintf(out, "\"ranges\": [%s", earlier);
	if (!reason)
		truth_print(out);
	fputs("]}\n", out);
	fflush(out);
	if (out_path)
		fclose(out);
}

static void end_early(const char *status, int code, const char *format, va_list args) __attribute__((noreturn));
static void end_early(const char *status, int code, const char *format, va_list args)
{
	static atomic_flag ending = ATOMIC_FLAG_INIT;
	char reason[256];

	while (atomic_flag_test_and_set(&ending))
		pause();
	vsnprintf(reason, sizeof(reason), format, args);
	fprintf(stderr, "workload: %s: %s: %s\n", current, status, reason);
	report(getpid(), status, reason);
	_exit(code);
}

void unsupported(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	end_early("unsupported", CHILD_DONE, format, args);
}

void fail(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	end_early("failed", CHILD_FAILED, format, args);
}

void point(const char *name)
{
	char c = 0;

	if (!stop_at || strcmp(stop_at, name))
		return;
	/* Whoever attaches here takes its time. */
	alarm(0);
	printf("{\"pid\": %d, \"stopped\": \"%s\"}\n", (int)getpid(), name);
	fflush(stdout);
	/* Unbuffered: later children read the next lines of the same stdin. */
	while (read(STDIN_FILENO, &c, 1) == 1 && c != '\n')
		;
	alarm(TIMEOUT_S);
}

void run_on(void)
{
	int fd = memfd_create("truth", 0);
	FILE *truth = fdopen(fd, "w");
	char number[16];

	if (!truth)
		fail("memfd_create: %s", strerror(errno));
	truth_print(truth);
	fputs(", ", truth);
	fflush(truth);
	snprintf(number, sizeof(number), "%d", fd);
	execl("/proc/self/exe", "workload", "go-on", current, number, out_path, NULL);
	fail("execl: %s", strerror(errno));
}

static void child(const struct scenario *s)
{
	alarm(TIMEOUT_S);
	s->run();
	report(getpid(), "ran", NULL);
	/* Without unwinding: descriptors and mappings stay until the very end. */
	_exit(CHILD_DONE);
}

static bool run_one(const struct scenario *s)
{
	char reason[64];
	int status;
	pid_t pid;

	current = s->name;
	clock_gettime(CLOCK_MONOTONIC, &began);
	fflush(NULL);
	pid = fork();
	if (!pid)
		child(s);
	if (pid < 0 || waitpid(pid, &status, 0) < 0) {
		perror("workload: fork");
		return false;
	}
	if (WIFEXITED(status) && WEXITSTATUS(status) <= CHILD_FAILED)
		return WEXITSTATUS(status) == CHILD_DONE;
	snprintf(reason, sizeof(reason), WIFSIGNALED(status) ? "killed by signal %d" : "exited with status %d",
		 WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	fprintf(stderr, "workload: %s: failed: %s\n", current, reason);
	report(pid, "failed", reason);
	return false;
}

static bool in_list(const char *list, const char *name)
{
	size_t length = strlen(name);

	for (const char *at = list; at; at = strchr(at, ',')) {
		at += *at == ',';
		if (!strncmp(at, name, length) && (!at[length] || at[length] == ','))
			return true;
	}
	return false;
}

static const struct scenario *find(const struct scenario *among, const char *name, size_t length)
{
	for (const struct scenario *s = among; s->name; s++)
		if (strlen(s->name) == length && !strncmp(s->name, name, length))
			return s;
	return NULL;
}

static void check_list(const char *list)
{
	for (const char *at = list; at; at = strchr(at, ',')) {
		at += *at == ',';
		if (!find(scenarios, at, strcspn(at, ","))) {
			fprintf(stderr, "workload: no scenario %.*s, see workload list\n", (int)strcspn(at, ","), at);
			exit(2);
		}
	}
}

static bool is_point(const char *name)
{
	return !strcmp(name, "registered") || !strcmp(name, "populated") || !strcmp(name, "armed") ||
	       !strcmp(name, "asleep") || !strcmp(name, "written");
}

static void usage(void)
{
	fputs("usage: workload list\n"
	      "       workload run [--only A,B] [--skip A,B] [--out FILE]\n"
	      "                    [--stop-at registered|populated|armed|asleep|written]\n",
	      stderr);
	exit(2);
}

static int run(int argc, char **argv)
{
	const char *only = NULL, *skip = NULL;
	bool good = true;

	for (int i = 0; i < argc; i += 2) {
		const char **value;

		if (!strcmp(argv[i], "--only"))
			value = &only;
		else if (!strcmp(argv[i], "--skip"))
			value = &skip;
		else if (!strcmp(argv[i], "--out"))
			value = &out_path;
		else if (!strcmp(argv[i], "--stop-at"))
			value = &stop_at;
		else
			usage();
		if (i + 1 == argc)
			usage();
		*value = argv[i + 1];
	}
	if (stop_at && !is_point(stop_at))
		usage();
	check_list(only);
	check_list(skip);

	settings_save();
	for (const struct scenario *s = scenarios; s->name; s++) {
		if (only && !in_list(only, s->name))
			continue;
		if (skip && in_list(skip, s->name))
			continue;
		good &= run_one(s);
	}
	settings_restore();
	return good ? 0 : 1;
}

static int go_on(const char *name, int truth, const char *out)
{
	const struct scenario *s = find(continuations, name, strlen(name));

	if (!s)
		usage();
	out_path = out;
	current = s->name;
	clock_gettime(CLOCK_MONOTONIC, &began);
	if (pread(truth, earlier, sizeof(earlier) - 1, 0) <= 0)
		fail("pread: %s", strerror(errno));
	s->run();
	report(getpid(), "ran", NULL);
	_exit(CHILD_DONE);
}

int main(int argc, char **argv)
{
	memory_start();
	pagemap_start();
	if (argc >= 4 && !strcmp(argv[1], "go-on"))
		return go_on(argv[2], atoi(argv[3]), argv[4]);
	if (argc == 2 && !strcmp(argv[1], "list")) {
		for (const struct scenario *s = scenarios; s->name; s++)
			puts(s->name);
		return 0;
	}
	if (argc >= 2 && !strcmp(argv[1], "run"))
		return run(argc - 2, argv + 2);
	usage();
}
