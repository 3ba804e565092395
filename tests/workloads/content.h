/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A judge without beliefs: what the pages held when they were armed, against what
 * they hold at the end. It knows neither why a page is lost nor when it may be.
 */
#ifndef CONTENT_H
#define CONTENT_H

#include "truth.h"

/*
 * Right after they were armed: copies what is in memory, populates nothing. Those in
 * empty[] had no page-table entry. Armed again they are judged no more.
 */
void content_armed(struct range *r, size_t first, size_t pages, const bool *empty);
/* The range goes on as another one with what it holds. */
void content_goes_on(struct range *from, struct range *to);
/*
 * Before their armings end: "announced", runs of pages of which a message was
 * read since; of the others "changed_unannounced" and "unchanged".
 */
void content_print(FILE *out, const struct range *r);

#endif
