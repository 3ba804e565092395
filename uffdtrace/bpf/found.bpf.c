// SPDX-License-Identifier: GPL-2.0-or-later
/* What the kernel tells while the collector reads /proc: who waits since before the trace, whose a mapping is. */

/* A struct userfaultfd_wait_queue. */
struct waiter {
	u64 words[UWQ_SIZE / 8];
};

/* `entry` is that of the wait queue. */
static __always_inline void read_waiter(struct waiter *waiter, u64 entry)
{
	u64 queued = entry - UWQ_WQ;

	__builtin_memset(waiter, 0, sizeof(*waiter));
	if (is_direct(false)) {
		/* Members that begin here, of one byte each, take no load of eight by their type. */
		waiter->words[UWQ_MSG / 8] = read64(queued + UWQ_MSG);
		queued = as_struct(false, queued, WAITER);
		waiter->words[UWQ_CTX / 8] = load64(true, queued + UWQ_CTX);
		for (int i = 1; i < 3; i++)
			waiter->words[UWQ_MSG / 8 + i] = load64(true, queued + UWQ_MSG + 8 * i);
		waiter->words[(UWQ_WQ + WQE_PRIVATE) / 8] = load64(true, queued + UWQ_WQ + WQE_PRIVATE);
		return;
	}
	/* At once: member by member it would take a helper for each. */
	bpf_probe_read_kernel(waiter, sizeof(*waiter), (void *)queued);
}

static __always_inline u64 task_of(struct waiter *waiter)
{
	return waiter->words[(UWQ_WQ + WQE_PRIVATE) / 8];
}

static __always_inline void describe_waiter(struct event *event, struct waiter *waiter)
{
	event->ctx = waiter->words[UWQ_CTX / 8];
	event->aux = waiter->words[UWQ_MSG / 8 + 1];
	event->start = waiter->words[UWQ_MSG / 8 + 2];
}

static __always_inline u8 message_kind(u64 flags)
{
	return flags & MESSAGE_FLAG_WP ? KIND_WP : flags & MESSAGE_FLAG_MINOR ? KIND_MINOR : KIND_MISSING;
}

/* Of all queues of a userfaultfd. The loop must have an end; each turn is verified at every start, and lengthens it. */
#define MOST_WAITERS 512

/*
 * Who waits in a userfaultfd's queues since before the trace: faults that were read, faults
 * that were not, and events that were not. They are read without the queues' lock: an entry
 * that goes meanwhile leads elsewhere, so a queue ends where an entry is not this
 * userfaultfd's. One loop is for all three, as the verifier follows each turn of each loop.
 */
static __always_inline void emit_waiters(u64 uffd)
{
	u64 head = uffd + CTX_READ_FAULTS;
	u64 next = read64(head);
	struct waiter waiter;
	struct event event;
	u64 entry;

#pragma clang loop unroll(disable)
	for (int i = 0; i < MOST_WAITERS; i++) {
		entry = next - WQE_ENTRY;
		read_waiter(&waiter, entry);
		if (next == head || waiter.words[UWQ_CTX / 8] != uffd) {
			if (head == uffd + CTX_UNREAD_EVENTS)
				return;
			head = head == uffd + CTX_READ_FAULTS ? uffd + CTX_UNREAD_FAULTS : uffd + CTX_UNREAD_EVENTS;
			next = read64(head);
			continue;
		}
		__builtin_memset(&event, 0, sizeof(event));
		describe_waiter(&event, &waiter);
		event.tid = read32(task_of(&waiter) + TASK_PID);
		if (head == uffd + CTX_UNREAD_EVENTS) {
			event.type = EVENT_EVENT_FOUND;
			event.kind = waiter.words[UWQ_MSG / 8] & 0xff;
		} else {
			event.type = EVENT_FAULT_FOUND;
			event.kind = message_kind(event.aux);
			event.value = head == uffd + CTX_READ_FAULTS;
		}
		event.tgid = read32(task_of(&waiter) + TASK_TGID);
		emit(&event);
		next = read64(next);
	}
	/* There are more: who is not told of is missing among those that wait. */
	lose(LOSS_MAP_FULL);
}

static __always_inline int on_fdinfo(bool typed, u64 m, u64 file)
{
	struct event event = {};
	u64 uffd = read64(file + FILE_PRIVATE);

	if ((u32)(current_id() >> 32) != COLLECTOR)
		return 0;
	describe(&event, uffd);
	emit_here(&event);
	emit_waiters(uffd);
	return 0;
}

/* The collector reads /proc/PID/maps: only here does the kernel say whose a mapping is. */
static __always_inline int on_area(bool typed, u64 m, u64 vma)
{
	struct event event = {.type = EVENT_AREA};
	struct area area;

	if ((u32)(current_id() >> 32) != COLLECTOR || !registered_area(typed, vma, 0, &area))
		return 0;
	event.ctx = area.ctx;
	event.start = area.start;
	event.end = area.end;
	event.flags = memory_of(&area);
	emit_here(&event);
	return 0;
}
