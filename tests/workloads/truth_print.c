// SPDX-License-Identifier: GPL-2.0-or-later
/* The truth as JSON, in the report's own words. */
#include <stdlib.h>
#include <string.h>

#include "content.h"
#include "pagemap.h"
#include "run.h"
#include "truth.h"
#include "uffd.h"

static const struct {
	const char *name;
	const char *finding;
} causes[CAUSES] = {
	[CAUSE_UNPOPULATED] = {"unpopulated", "unpopulated"},
	[CAUSE_ZERO_PAGE_AFTER_ARM] = {"zero-page-after-arm", "zero-page-after-arm"},
	[CAUSE_HUGE_PAGE_OVER_HOLE] = {"huge-page-over-hole", "huge-page-over-hole"},
	[CAUSE_DISCARDED] = {"discarded", "discarded"},
	[CAUSE_COPY_WITHOUT_WP] = {"copy-without-wp", "copy-without-wp"},
	[CAUSE_ZEROPAGE] = {"zeropage", "zeropage"},
	[CAUSE_CONTINUE_WITHOUT_WP] = {"continue-without-wp", "continue-without-wp"},
	[CAUSE_MOVED] = {"moved", "moved"},
	[CAUSE_KSM_MERGE] = {"ksm-merge", "ksm-merge"},
	[CAUSE_SWAPOFF] = {"swapoff", "swapoff"},
	[CAUSE_MODE_REPLACED] = {"mode-replaced", "mode-replaced"},
	[CAUSE_UNEXPLAINED] = {"unexplained", "unexplained"},
};

static const char *const how_names[HOWS] = {[OBSERVED] = "observed", [BLIND] = "blind"};

static const char *const memory_names[] = {
	[MEMORY_ANON] = "anon",
	[MEMORY_SHMEM] = "shmem",
	[MEMORY_HUGETLB] = "hugetlb",
	[MEMORY_FILE] = "file",
};

/* Luck and timing decide about these: never among the exact ones. */
static const char *const varying[] = {"repeated-messages", "slow-service", "undecided", "mapped-elsewhere"};

struct sums {
	unsigned long armed, holes, notified;
	unsigned long lost[HOWS], messages[KINDS], skipped[SKIPS], causes[CAUSES];
	/* Armed at the end and not lost. */
	unsigned long holes_left, exposed, wp_dropped;
};

struct finding {
	const char *id;
	unsigned long count; /* 0: not compared */
};

struct findings {
	struct finding list[64];
	size_t count;
};

/* Before its arming is ended. */
static void add_end(struct sums *s, const struct range *r, const struct page *p)
{
	bool untouched_hole = p->bare && !p->filled && !p->read;

	if (!p->armed || p->written || p->wp_read || truth_loss(r, p) || r->features & UFFD_FEATURE_WP_ASYNC)
		return;
	if (p->dropped || (p->bare && !p->filled && p->read))
		s->exposed++;
	else if (untouched_hole && !(r->modes & MODE_MISSING))
		s->holes_left++;
	s->wp_dropped += p->dropped == CAUSE_MODE_REPLACED;
}

static void add_page(struct sums *s, const struct page *p)
{
	s->armed += p->ever_armed;
	s->holes += p->holes;
	s->notified += p->notified;
	for (int k = 0; k < HOWS; k++)
		s->lost[k] += p->times[k];
	for (int k = 0; k < KINDS; k++)
		s->messages[k] += p->messages[k];
	for (int k = 0; k < SKIPS; k++)
		s->skipped[k] += p->skipped[k];
	for (int k = 0; k < CAUSES; k++)
		s->causes[k] += p->causes[k];
}

static struct sums add_up(struct range *r)
{
	struct sums s = {0};

	for (size_t i = 0; i < r->pages; i++)
		add_end(&s, r, &r->page[i]);
	truth_disarmed(r, 0, r->pages);
	for (size_t i = 0; i < r->pages; i++)
		add_page(&s, &r->page[i]);
	return s;
}

static bool is_async(const struct range *r)
{
	return r->features & UFFD_FEATURE_WP_ASYNC && r->modes & MODE_WP;
}

static bool never_armed(const struct range *r, const struct sums *s)
{
	return r->modes & MODE_WP && !s->armed;
}

static const char *verdict(const struct range *r, const struct sums *s)
{
	if (s->lost[OBSERVED])
		return "lost-writes";
	if (s->lost[BLIND])
		return "blind";
	if (never_armed(r, s))
		return "never-armed";
	if (is_async(r))
		return "async";
	if (s->armed || s->notified)
		return "ok";
	return "idle";
}

static bool varies(const char *id)
{
	for (size_t i = 0; i < sizeof(varying) / sizeof(varying[0]); i++)
		if (!strcmp(id, varying[i]))
			return true;
	return false;
}

static void add_finding(struct findings *f, const char *id, unsigned long count)
{
	if (f->count == sizeof(f->list) / sizeof(f->list[0]))
		fail("too many findings");
	f->list[f->count++] = (struct finding){id, count};
}

static int by_id(const void *a, const void *b)
{
	return strcmp(((const struct finding *)a)->id, ((const struct finding *)b)->id);
}

/* What follows from the counts, and what the scenario declared instead or besides. */
static struct findings find(const struct range *r, const struct sums *s)
{
	const struct {
		const char *id;
		bool there;
		unsigned long count;
	} derived[] = {
		{"marker-erased", r->marker_erased, r->marker_erased},
		{"never-armed", never_armed(r, s), 0},
		{"async", is_async(r), 0},
		{"holes-left", s->holes_left, s->holes_left},
		{"exposed", s->exposed, s->exposed},
		{"wp-dropped", s->wp_dropped, s->wp_dropped},
		{"content-dropped", r->content_dropped && !is_async(r), r->content_dropped},
	};
	struct findings f = {.count = 0};

	for (int k = 0; k < CAUSES; k++)
		if (s->causes[k] && !truth_declared(r, causes[k].finding))
			add_finding(&f, causes[k].finding, s->causes[k]);
	for (size_t i = 0; i < sizeof(derived) / sizeof(derived[0]); i++)
		if (derived[i].there && !truth_declared(r, derived[i].id))
			add_finding(&f, derived[i].id, derived[i].count);
	for (const struct declared *d = r->declared; d; d = d->next)
		if (!d->absent && !varies(d->id))
			add_finding(&f, d->id, d->count);
	qsort(f.list, f.count, sizeof(f.list[0]), by_id);
	return f;
}

static void print_findings(FILE *out, const struct range *r, const struct sums *s)
{
	struct findings f = find(r, s);
	const char *comma = "";

	fputs("\"findings\": [", out);
	for (size_t i = 0; i < f.count; i++)
		fprintf(out, "%s\"%s\"", i ? ", " : "", f.list[i].id);
	fputs("], \"counts\": {", out);
	for (size_t i = 0; i < f.count; i++) {
		if (!f.list[i].count)
			continue;
		fprintf(out, "%s\"%s\": %lu", comma, f.list[i].id, f.list[i].count);
		comma = ", ";
	}
	fputs("}, \"must\": {", out);
	comma = "";
	for (const struct declared *d = r->declared; d; d = d->next) {
		if (d->absent || !varies(d->id))
			continue;
		fprintf(out, "%s\"%s\": %lu", comma, d->id, d->count);
		comma = ", ";
	}
	fputs("}, \"must_not\": [", out);
	comma = "";
	for (const struct declared *d = r->declared; d; d = d->next) {
		if (!d->absent)
			continue;
		fprintf(out, "%s\"%s\"", comma, d->id);
		comma = ", ";
	}
	fputs("]", out);
}

static unsigned long address(const struct range *r, size_t i)
{
	return (unsigned long)r->start + i * PAGE;
}

/* Consecutive pages that in[] holds, as pairs of addresses. */
static void print_runs(FILE *out, const char *key, const struct range *r, const bool *in)
{
	const char *comma = "";

	fprintf(out, ", \"%s\": [", key);
	for (size_t i = 0, end; i < r->pages; i = end) {
		for (end = i + 1; in[i] && end < r->pages && in[end];)
			end++;
		if (!in[i])
			continue;
		fprintf(out, "%s[\"%#lx\", \"%#lx\"]", comma, address(r, i), address(r, end));
		comma = ", ";
	}
	fputs("]", out);
}

static void print_protection(FILE *out, const struct range *r)
{
	bool *in = calloc(r->pages, sizeof(*in));

	if (!in)
		fail("out of memory");
	/* A child's pagemap went with it. */
	if (kernel_tells_protection() && !r->pid) {
		pagemap_protected(r, 0, r->pages, in);
		for (size_t i = 0; i < r->pages; i++)
			in[i] &= !r->page[i].unwatched;
		print_runs(out, "protected", r, in);
	} else {
		fputs(", \"protected\": null", out);
	}
	for (size_t i = 0; i < r->pages; i++)
		in[i] = !r->page[i].unwatched;
	print_runs(out, "watched", r, in);
	free(in);
}

/* In the order of their names. */
static const enum how hows[HOWS] = {BLIND, OBSERVED};

static int by_name(const void *a, const void *b)
{
	return strcmp(causes[*(const int *)a].name, causes[*(const int *)b].name);
}

static bool is_lost(const struct range *r, size_t i, enum how how, int cause)
{
	return i < r->pages && r->page[i].lost[how] & 1U << cause;
}

static void print_lost_runs(FILE *out, const struct range *r)
{
	const char *comma = "";
	int named[CAUSES - 1];

	for (int k = 1; k < CAUSES; k++)
		named[k - 1] = k;
	qsort(named, CAUSES - 1, sizeof(named[0]), by_name);

	fputs(", \"lost_runs\": [", out);
	for (size_t i = 0; i < r->pages; i++) {
		for (int n = 0; n < HOWS * (CAUSES - 1); n++) {
			enum how how = hows[n / (CAUSES - 1)];
			int cause = named[n % (CAUSES - 1)];
			size_t end = i + 1;

			if (!is_lost(r, i, how, cause) || (i && is_lost(r, i - 1, how, cause)))
				continue;
			while (is_lost(r, end, how, cause))
				end++;
			fprintf(out, "%s[\"%#lx\", \"%#lx\", \"%s\", \"%s\"]", comma, address(r, i), address(r, end),
				how_names[how], causes[cause].name);
			comma = ", ";
		}
	}
	fputs("]", out);
}

static void print_modes(FILE *out, uint64_t modes)
{
	static const struct {
		uint64_t bit;
		const char *name;
	} names[] = {
		{UFFDIO_REGISTER_MODE_MISSING, "missing"},
		{UFFDIO_REGISTER_MODE_WP, "wp"},
		{UFFDIO_REGISTER_MODE_MINOR, "minor"},
	};
	const char *comma = "";

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		if (!(modes & names[i].bit))
			continue;
		fprintf(out, "%s\"%s\"", comma, names[i].name);
		comma = ", ";
	}
}

static void print_range(FILE *out, struct range *r)
{
	struct sums s;
	const char *comma = "";

	fprintf(out, "{\"pages\": %zu, \"page_size\": %lu", r->pages, PAGE);
	content_print(out, r);
	s = add_up(r);
	fprintf(out, ", \"start\": \"%#lx\", \"end\": \"%#lx\", \"modes\": [", address(r, 0), address(r, r->pages));
	print_modes(out, r->modes);
	fprintf(out, "], \"memory\": \"%s\", \"armed_pages\": %lu, ", memory_names[r->memory], s.armed);
	if (r->pid)
		fprintf(out, "\"pid\": %d, ", (int)r->pid);
	if (r->holes_of_parent)
		fputs("\"holes\": null, ", out);
	else
		fprintf(out, "\"holes\": %lu, ", s.holes);
	fprintf(out, "\"messages\": {\"missing\": %lu, \"wp\": %lu, \"minor\": %lu}, ", s.messages[KIND_MISSING],
		s.messages[KIND_WP], s.messages[KIND_MINOR]);
	fprintf(out,
		"\"notified_pages\": %lu, \"skipped\": {\"zero_page\": %lu, "
		"\"fresh_page\": %lu, \"huge_page\": %lu, \"file_page\": %lu}, ",
		s.notified, s.skipped[SKIPPED_ZERO], s.skipped[SKIPPED_FRESH], s.skipped[SKIPPED_HUGE],
		s.skipped[SKIPPED_FILE]);
	fprintf(out, "\"lost\": {\"observed\": %lu, \"blind\": %lu, \"causes\": {", s.lost[OBSERVED], s.lost[BLIND]);
	for (int k = 0; k < CAUSES; k++) {
		if (!s.causes[k])
			continue;
		fprintf(out, "%s\"%s\": %lu", comma, causes[k].name, s.causes[k]);
		comma = ", ";
	}
	fprintf(out, "}}, \"pending\": 0, \"killed\": %u, \"verdict\": \"%s\", ", r->killed, verdict(r, &s));
	print_findings(out, r, &s);
	print_lost_runs(out, r);
	print_protection(out, r);
	fputs("}", out);
}

void truth_print(FILE *out)
{
	for (struct range *r = truth_next(NULL); r; r = truth_next(r)) {
		print_range(out, r);
		if (truth_next(r))
			fputs(", ", out);
	}
}
