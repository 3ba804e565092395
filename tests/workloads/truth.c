// SPDX-License-Identifier: GPL-2.0-or-later
#include "truth.h"

#include <stdlib.h>
#include <string.h>

#include "content.h"
#include "run.h"
#include "uffd.h"

static struct range *ranges;

struct range *truth_new_range(char *start, size_t pages, size_t room, enum memory memory)
{
	struct range *r = calloc(1, sizeof(*r));
	struct range **end = &ranges;

	if (!r)
		fail("out of memory");
	r->page = calloc(pages + room, sizeof(*r->page));
	if (!r->page)
		fail("out of memory");
	r->start = start;
	r->pages = pages;
	r->room = room;
	r->memory = memory;
	r->unit = memory == MEMORY_HUGETLB ? HUGE_PAGE : PAGE;
	r->uffd = -1;
	while (*end)
		end = &(*end)->next;
	*end = r;
	return r;
}

struct range *truth_find(const void *address)
{
	struct range *found = NULL;

	for (struct range *r = ranges; r; r = r->next)
		if ((const char *)address >= r->start && (const char *)address < r->start + r->pages * PAGE)
			found = r;
	return found;
}

struct range *truth_find_of(int uffd, const void *address)
{
	struct range *found = NULL;

	for (struct range *r = ranges; r; r = r->next)
		if (r->uffd == uffd && (const char *)address >= r->start &&
		    (const char *)address < r->start + r->pages * PAGE)
			found = r;
	return found;
}

struct range *truth_next(const struct range *r)
{
	return r ? r->next : ranges;
}

bool truth_has_markers(const struct range *r)
{
	return r->memory != MEMORY_ANON || r->features & (UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC);
}

enum cause truth_loss(const struct range *r, const struct page *p)
{
	if (!p->armed || r->features & UFFD_FEATURE_WP_ASYNC)
		return CAUSE_NONE;
	if (p->blind)
		return p->blind;
	if (!p->written || p->wp_read)
		return CAUSE_NONE;
	if (p->dropped)
		return p->dropped;
	if (p->bare && p->read)
		return CAUSE_ZERO_PAGE_AFTER_ARM;
	if (p->bare && p->huge)
		return CAUSE_HUGE_PAGE_OVER_HOLE;
	if (p->bare)
		return CAUSE_UNPOPULATED;
	return CAUSE_UNEXPLAINED;
}

/* Ends one arming of one page. */
static void settle(struct range *r, struct page *p)
{
	enum cause cause = truth_loss(r, p);
	enum how how = p->blind ? BLIND : OBSERVED;
	bool skipped = p->armed && p->bare && !p->filled && !(r->features & UFFD_FEATURE_WP_ASYNC);

	p->armed = false;
	if (skipped) {
		if (p->read)
			p->skipped[SKIPPED_ZERO]++;
		else if (p->huge)
			p->skipped[SKIPPED_HUGE]++;
		else if (p->written)
			p->skipped[SKIPPED_FRESH]++;
	}
	if (!cause)
		return;
	p->times[how]++;
	p->lost[how] |= 1U << cause;
	p->causes[cause]++;
	if (cause == CAUSE_COPY_WITHOUT_WP || cause == CAUSE_CONTINUE_WITHOUT_WP)
		r->marker_erased += truth_has_markers(r);
}

struct range *truth_again(struct range *old, char *start, uint64_t modes)
{
	struct range *r = truth_new_range(start, old->pages, 0, old->memory);

	r->uffd = old->uffd;
	r->features = old->features;
	r->modes = modes;
	for (size_t i = 0; i < old->pages; i++) {
		struct page *from = &old->page[i], *to = &r->page[i];

		if (!from->armed)
			continue;
		if (from->read || from->written || from->blind)
			fail("page %zu goes on in another range after a touch: not modelled", i);
		to->armed = to->ever_armed = true;
		to->bare = from->bare;
		to->filled = from->filled;
		to->dropped = modes & UFFDIO_REGISTER_MODE_WP ? from->dropped : CAUSE_MODE_REPLACED;
	}
	content_goes_on(old, r);
	truth_unwatched(old, 0, old->pages);
	return r;
}

struct range *truth_forked(const struct range *old, pid_t pid, int uffd)
{
	struct range *r = truth_new_range(old->start, old->pages, 0, old->memory);

	r->uffd = uffd;
	r->pid = pid;
	r->features = old->features;
	r->modes = old->modes;
	for (size_t i = 0; i < old->pages; i++) {
		const struct page *from = &old->page[i];
		struct page *to = &r->page[i];
		enum cause cause = truth_loss(old, from);

		r->holes_of_parent |= from->holes;
		if (!from->armed)
			continue;
		to->armed = to->ever_armed = true;
		/* What the parent wrote there unseen is populated, and no better protected in the child. */
		to->bare = from->bare && !cause;
		to->dropped = cause ? cause : from->dropped;
	}
	return r;
}

void truth_grown(struct range *r, size_t pages)
{
	if (pages > r->room)
		fail("the range has no room for %zu more pages", pages);
	r->pages += pages;
	r->room -= pages;
}

void truth_armed(struct range *r, size_t i, bool hole)
{
	struct page *p = &r->page[i];

	settle(r, p);
	p->read = false;
	p->written = false;
	p->filled = false;
	p->huge = false;
	p->wp_read = false;
	p->write_read = false;
	p->dropped = CAUSE_NONE;
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

void truth_unwatched(struct range *r, size_t first, size_t pages)
{
	truth_disarmed(r, first, pages);
	for (size_t i = first; i < first + pages; i++)
		r->page[i].unwatched = true;
}

void truth_emptied(struct range *r, size_t first, size_t pages, enum cause cause)
{
	truth_dropped(r, first, pages, cause);
	for (size_t i = first; i < first + pages; i++) {
		struct page *p = &r->page[i];

		if (!p->armed)
			continue;
		p->bare = true;
		p->filled = false;
		p->read = false;
	}
}

void truth_dropped(struct range *r, size_t first, size_t pages, enum cause cause)
{
	for (size_t i = first; i < first + pages; i++) {
		struct page *p = &r->page[i];

		if (!p->armed)
			continue;
		if (p->written)
			fail("page %zu unprotected after a write: not modelled", i);
		p->dropped = cause;
	}
}

void truth_content_dropped(struct range *r, size_t first, size_t pages)
{
	for (size_t i = first; i < first + pages; i++) {
		const struct page *p = &r->page[i];
		bool told = p->wp_read || p->write_read;

		r->content_dropped += p->armed && !told && !p->written && !p->blind && !(p->bare && p->read);
	}
}

void truth_unprotected_fill(struct range *r, size_t i, enum cause cause)
{
	truth_filled(r, i);
	if (r->page[i].wp_read || r->page[i].write_read)
		truth_disarmed(r, i, 1);
	else
		truth_blind(r, i, cause);
}

void truth_filled(struct range *r, size_t i)
{
	r->page[i].filled = true;
}

void truth_zeropaged(struct range *r, size_t i)
{
	r->page[i].filled = true;
	if (r->page[i].wp_read || r->page[i].write_read)
		truth_disarmed(r, i, 1);
	r->page[i].dropped = CAUSE_ZEROPAGE;
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
		struct page *p = &r->page[i];

		p->huge = true;
		if (i != written)
			truth_blind(r, i, p->dropped ? p->dropped : CAUSE_HUGE_PAGE_OVER_HOLE);
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

void truth_message(struct range *r, size_t i, enum kind kind, bool write)
{
	r->page[i].messages[kind]++;
	for (size_t n = 0; n < r->unit / PAGE; n++) {
		r->page[i + n].notified = true;
		if (kind == KIND_WP)
			r->page[i + n].wp_read = true;
		if (write)
			r->page[i + n].write_read = true;
	}
}

const struct declared *truth_declared(const struct range *r, const char *id)
{
	const struct declared *d = r->declared;

	while (d && strcmp(d->id, id))
		d = d->next;
	return d;
}

static void declare(struct range *r, const char *id, unsigned long count, bool absent)
{
	struct declared *d = malloc(sizeof(*d));

	if (!d)
		fail("out of memory");
	if (truth_declared(r, id))
		fail("%s declared twice", id);
	*d = (struct declared){r->declared, id, count, absent};
	r->declared = d;
}

void truth_finding(struct range *r, const char *id, unsigned long count)
{
	declare(r, id, count, false);
}

void truth_no_finding(struct range *r, const char *id)
{
	declare(r, id, 0, true);
}
