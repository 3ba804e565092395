/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How a scenario ends early, and where it can be stopped. */
#ifndef RUN_H
#define RUN_H

/* The kernel refused: only for refusals, never for a surprise. */
void unsupported(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

/* Become another image of this program, which goes on with the scenario and reports it whole. */
void run_on(void) __attribute__((noreturn));

/* registered, populated, armed, written: where --stop-at can hold the child. */
void point(const char *name);

#endif
