/* SPDX-License-Identifier: GPL-2.0-or-later */
#define PAGE_SIZE 4096
