/* SPDX-License-Identifier: GPL-2.0-or-later */
/* BCC includes this header and needs nothing of it. */
