/* SPDX-License-Identifier: GPL-2.0-or-later */
/* BCC includes this header for PAGE_SIZE, which is a -D define: the page size of this machine (kernel/layout.py). */
