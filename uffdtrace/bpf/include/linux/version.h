/* SPDX-License-Identifier: GPL-2.0-or-later */
/* BCC's helpers.h compares with these; kernels ignore a program's version since 5.0 (6c4fc209fcf9). */
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 10, 0)
