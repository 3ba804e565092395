/* SPDX-License-Identifier: GPL-2.0-or-later */
/* BCC's bpf.h includes this header; only hand-made instructions need it. */
