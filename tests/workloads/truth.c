// SPDX-License-Identifier: GPL-2.0-or-later
#include "truth.h"

#include <stdlib.h>
#include <string.h>

#include "run.h"
#include "uffd.h"

static const char *const cause_names[CAUSES] = {
	[CAUSE_HOLE] = "hole",
	[CAUSE_ZERO_PAGE_AFTER_ARM] = "zero-page-after-arm",
	[CAUSE_HUGE_PAGE] = "huge-page",
	[CAUSE_DISCARDED] = "discarded",
	[CAUSE_COPY_WITHOUT_WP] = "copy-without-wp",
	[CAUSE_ZEROPAGE] = "zeropage",
	[CAUSE_CONTINUE_WITHOUT_WP] = "continue-without-wp",
	[CAUSE_MODE_REPLACED] = "mode-replaced",
	[CAUSE_UNKNOWN] = "unknown",
};

static const char *const memory_names[] = {
	[MEMORY_ANON] = "anon",
	[MEMORY_SHMEM] = "shmem",
	[MEMORY_HUGETLB] = "hugetlb",
};

static struct range *ranges;

struct range *truth_new_range(char *start, size_t pages, enum memory memory)
{
	struct range *r = calloc(1, sizeof(*r));
	struct range **end = &ranges;

	if (!r)
		fail("out of memory");
	r->page = calloc(pages, sizeof(*r->page));
	if (!r->page)
		fail("out of memory");
	r->start = start;
	r->pages = pages;
	r->memory = memory;
	r->unit = memory == MEMORY_HUGETLB ? HUGE_PAGE : PAGE;
	r->uffd = -1;
	while (*end)
		end = &(*end)->next;
	*end = r;
	return r;
}

/* The same addresses, from now on counted as another range. */
struct range *truth_find(const void *address)
{
	struct range *found = NULL;

	for (struct range *r = ranges; r; r = r->next)
		if ((const char *)address >= r->start && (const char *)address < r->start + r->pages * PAGE)
			found = r;
	return found;
}

static enum cause why_lost(const struct page *p)
{
	if (p->replaced)
		return CAUSE_MODE_REPLACED;
	if (p->discarded)
		return CAUSE_DISCARDED;
	if (p->zeropaged)
		return CAUSE_ZEROPAGE;
	if (p->bare && p->read)
		return CAUSE_ZERO_PAGE_AFTER_ARM;
	if (p->bare && p->huge)
		return CAUSE_HUGE_PAGE;
	if (p->bare)
		return CAUSE_HOLE;
	return CAUSE_UNKNOWN;
}

/* Ends one arming of one page. */
static void settle(const struct range *r, struct page *p)
{
	if (!p->armed)
		return;
	p->armed = false;
	if (r->features & UFFD_FEATURE_WP_ASYNC)
		return;

	if (p->bare && !p->filled) {
		if (p->read)
			p->skipped[SKIPPED_ZERO]++;
		else if (p->huge)
			p->skipped[SKIPPED_HUGE]++;
		else if (p->written)
			p->skipped[SKIPPED_FRESH]++;
	}

	if (p->blind) {
		p->blinded++;
		p->causes[p->blind]++;
	} else if (p->written && !p->wp_read) {
		p->observed++;
		p->causes[why_lost(p)]++;
	}
}

struct range *truth_again(struct range *old)
{
	struct range *r = truth_new_range(old->start, old->pages, old->memory);

	for (size_t i = 0; i < old->pages; i++) {
		r->page[i].armed = r->page[i].ever_armed = r->page[i].replaced = old->page[i].armed;
		settle(old, &old->page[i]);
	}
	return r;
}

void truth_armed(struct range *r, size_t i, bool hole)
{
	struct page *p = &r->page[i];

	settle(r, p);
	p->read = false;
	p->written = false;
	p->filled = false;
	p->zeropaged = false;
	p->discarded = false;
	p->huge = false;
	p->wp_read = false;
	p->blind = CAUSE_NONE;
	p->bare = hole;
	p->holes += hole;
	p->armed = true;
	p->ever_armed = true;
}

void truth_disarmed(struct range *r, size_t first, size_t pages)
{
	for (size_t i = first; i < first + pages; i++)
		settle(r, &r->page[i]);
}

void truth_discarded(struct range *r, size_t first, size_t pages)
{
	for (size_t i = first; i < first + pages; i++) {
		struct page *p = &r->page[i];

		if (!p->armed)
			continue;
		if (p->written)
			fail("page %zu discarded after a write: not modelled", i);
		p->discarded = true;
		p->bare = true;
		p->filled = false;
		p->read = false;
	}
}

void truth_filled(struct range *r, size_t i)
{
	r->page[i].filled = true;
}

void truth_zeropaged(struct range *r, size_t i)
{
	r->page[i].filled = true;
	r->page[i].zeropaged = true;
}

void truth_blind(struct range *r, size_t i, enum cause cause)
{
	if (r->page[i].armed)
		r->page[i].blind = cause;
}

/* One write populated the whole huge page at block; only that write was seen. */
void truth_huge(struct range *r, size_t block, size_t written)
{
	for (size_t i = block; i < block + PAGES_PER_HUGE; i++) {
		r->page[i].huge = true;
		if (i != written)
			truth_blind(r, i, CAUSE_HUGE_PAGE);
	}
}

void truth_read(struct range *r, size_t first, size_t pages)
{
	for (size_t i = first; i < first + pages; i++)
		r->page[i].read = true;
}

void truth_written(struct range *r, size_t first, size_t pages, size_t step)
{
	for (size_t i = first; i < first + pages; i += step)
		r->page[i].written = true;
}

void truth_message(struct range *r, size_t i, enum kind kind)
{
	r->page[i].messages[kind]++;
	for (size_t n = 0; n < r->unit / PAGE; n++) {
		r->page[i + n].notified = true;
		if (kind == KIND_WP)
			r->page[i + n].wp_read = true;
	}
}

struct sums {
	unsigned long armed, holes, notified, observed, blind;
	unsigned long messages[KINDS], skipped[SKIPS], causes[CAUSES];
};

static struct sums add_up(const struct range *r)
{
	struct sums s = {0};

	for (size_t i = 0; i < r->pages; i++) {
		const struct page *p = &r->page[i];

		s.armed += p->ever_armed;
		s.holes += p->holes;
		s.notified += p->notified;
		s.observed += p->observed;
		s.blind += p->blinded;
		for (int k = 0; k < KINDS; k++)
			s.messages[k] += p->messages[k];
		for (int k = 0; k < SKIPS; k++)
			s.skipped[k] += p->skipped[k];
		for (int k = 0; k < CAUSES; k++)
			s.causes[k] += p->causes[k];
	}
	return s;
}

static const char *verdict(const struct range *r, const struct sums *s)
{
	bool async = r->features & UFFD_FEATURE_WP_ASYNC;

	if (s->observed)
		return "lost-writes";
	if (s->blind)
		return "blind";
	if ((r->modes & UFFDIO_REGISTER_MODE_WP) && !s->armed && !async)
		return "never-armed";
	if (r->pending)
		return "pending";
	if (async)
		return "async";
	if (s->armed || s->notified)
		return "ok";
	return "idle";
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

static void print_range(FILE *out, const struct range *r)
{
	struct sums s = add_up(r);
	const char *comma = "";

	fprintf(out, "{\"start\": \"%#lx\", \"end\": \"%#lx\", \"modes\": [", (unsigned long)r->start,
		(unsigned long)r->start + r->pages * PAGE);
	print_modes(out, r->modes);
	fprintf(out, "], \"memory\": \"%s\", \"armed_pages\": %lu, \"holes\": %lu, ", memory_names[r->memory], s.armed,
		s.holes);
	fprintf(out, "\"messages\": {\"missing\": %lu, \"wp\": %lu, \"minor\": %lu}, ", s.messages[KIND_MISSING],
		s.messages[KIND_WP], s.messages[KIND_MINOR]);
	fprintf(out,
		"\"notified_pages\": %lu, \"skipped\": {\"zero_page\": %lu, "
		"\"fresh_page\": %lu, \"huge_page\": %lu, \"file_page\": %lu}, ",
		s.notified, s.skipped[SKIPPED_ZERO], s.skipped[SKIPPED_FRESH], s.skipped[SKIPPED_HUGE],
		s.skipped[SKIPPED_FILE]);
	fprintf(out, "\"lost\": {\"observed\": %lu, \"blind\": %lu, \"causes\": {", s.observed, s.blind);
	for (int k = 0; k < CAUSES; k++) {
		if (!s.causes[k])
			continue;
		fprintf(out, "%s\"%s\": %lu", comma, cause_names[k], s.causes[k]);
		comma = ", ";
	}
	fprintf(out, "}}, \"pending\": %u, \"verdict\": \"%s\"}", r->pending, verdict(r, &s));
}

void truth_print(FILE *out)
{
	fputc('[', out);
	for (struct range *r = ranges; r; r = r->next) {
		truth_disarmed(r, 0, r->pages);
		print_range(out, r);
		if (r->next)
			fputs(", ", out);
	}
	fputc(']', out);
}
