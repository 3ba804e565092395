// SPDX-License-Identifier: GPL-2.0-or-later
#include "content.h"

#include <stdlib.h>
#include <string.h>

#include "pagemap.h"
#include "run.h"
#include "uffd.h"

enum judged { NOT_ARMED, ARMED_FULL, ARMED_EMPTY, ARMED_TWICE };

struct content {
	char *before;
	uint8_t *judged; /* enum judged of each page */
	unsigned int *messages; /* that had been read of it then */
};

static unsigned int messages_of(const struct range *r, size_t i)
{
	const struct page *p = &r->page[i - i % (r->unit / PAGE)];
	unsigned int sum = 0;

	for (int k = 0; k < KINDS; k++)
		sum += p->messages[k];
	return sum;
}

static struct content *content_of(struct range *r)
{
	size_t pages = r->pages + r->room;

	if (r->content)
		return r->content;
	r->content = calloc(1, sizeof(*r->content));
	if (!r->content)
		fail("out of memory");
	r->content->before = calloc(pages, PAGE);
	r->content->judged = calloc(pages, sizeof(*r->content->judged));
	r->content->messages = calloc(pages, sizeof(*r->content->messages));
	if (!r->content->before || !r->content->judged || !r->content->messages)
		fail("out of memory");
	return r->content;
}

void content_armed(struct range *r, size_t first, size_t pages, const bool *empty)
{
	struct content *c = content_of(r);
	bool *present = calloc(pages, sizeof(*present));

	if (!present)
		fail("out of memory");
	pagemap_in_memory(r, first, pages, present);
	for (size_t i = first; i < first + pages; i++) {
		if (c->judged[i] != NOT_ARMED) {
			c->judged[i] = ARMED_TWICE;
			continue;
		}
		/* What is in swap stays there. */
		if (present[i - first])
			memcpy(c->before + i * PAGE, r->start + i * PAGE, PAGE);
		else if (!empty[i - first])
			continue;
		c->judged[i] = present[i - first] ? ARMED_FULL : ARMED_EMPTY;
		c->messages[i] = messages_of(r, i);
	}
	free(present);
}

void content_goes_on(struct range *from, struct range *to)
{
	struct content *old = from->content, *new;

	if (!old)
		return;
	new = content_of(to);
	memcpy(new->before, old->before, from->pages * PAGE);
	for (size_t i = 0; i < from->pages; i++)
		new->judged[i] = messages_of(from, i) == old->messages[i] ? old->judged[i] : ARMED_TWICE;
}

static bool is_zero(const char *page)
{
	return !page[0] && !memcmp(page, page + 1, PAGE - 1);
}

/* Runs of pages whose verdict is `wanted`. */
static void print_pages(FILE *out, const char *key, const struct range *r, const char *verdict, char wanted)
{
	const char *comma = "";

	fprintf(out, ", \"%s\": [", key);
	for (size_t i = 0, end; i < r->pages; i = end) {
		for (end = i + 1; end < r->pages && verdict[end] == verdict[i];)
			end++;
		if (verdict[i] != wanted)
			continue;
		fprintf(out, "%s[\"%#lx\", \"%#lx\"]", comma, (unsigned long)r->start + i * PAGE,
			(unsigned long)r->start + end * PAGE);
		comma = ", ";
	}
	fputs("]", out);
}

static char judge(const struct range *r, size_t i, bool present)
{
	const struct content *c = r->content;
	const struct page *p = &r->page[i];

	/* Armed anew, let go or gone: nobody relies on it. */
	if (c->judged[i] == NOT_ARMED || c->judged[i] == ARMED_TWICE)
		return ' ';
	if (messages_of(r, i) != c->messages[i])
		return 'm';
	if (!p->armed || p->unwatched)
		return ' ';
	if (!present)
		return c->judged[i] == ARMED_EMPTY ? '=' : ' ';
	/* Dropped content is no write. */
	if (c->judged[i] == ARMED_FULL && is_zero(r->start + i * PAGE) && !is_zero(c->before + i * PAGE))
		return ' ';
	return memcmp(r->start + i * PAGE, c->before + i * PAGE, PAGE) ? '!' : '=';
}

void content_print(FILE *out, const struct range *r)
{
	char *verdict = malloc(r->pages + 1);
	bool *present = calloc(r->pages, sizeof(*present));

	if (!verdict || !present)
		fail("out of memory");
	/* A child's memory went with it; where nobody is told by design nothing is lost. */
	if (r->content && !r->pid && !(r->features & UFFD_FEATURE_WP_ASYNC)) {
		pagemap_in_memory(r, 0, r->pages, present);
		for (size_t i = 0; i < r->pages; i++)
			verdict[i] = judge(r, i, present[i]);
	} else {
		memset(verdict, ' ', r->pages);
	}
	print_pages(out, "changed_unannounced", r, verdict, '!');
	print_pages(out, "unchanged", r, verdict, '=');
	print_pages(out, "announced", r, verdict, 'm');
	free(verdict);
	free(present);
}
