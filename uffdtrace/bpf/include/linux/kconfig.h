/* SPDX-License-Identifier: GPL-2.0-or-later */
/* BCC force-includes this header; its maps need CONFIG_BPF_SYSCALL. */
#define CONFIG_BPF_SYSCALL 1
