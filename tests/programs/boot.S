/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A boot sector that writes one word into every page from 1 to 8 MiB, from the
 * last to the first, for ever, and says a byte on the debug console after each
 * SLICE of pages. With each key it starts 8 MiB higher: memory that was never touched.
 * It sleeps between slices, until the next tick of a timer, of 18 Hz and after a
 * key of 100 Hz: an emulated machine has no processor to burn.
 */
#define PAGE 4096
#define FIRST 0x100000
#define LAST (0x800000 - PAGE)
#define WIDER 0x800000
#define SLICE 64
#define ORIGIN 0x7c00
#define CODE 8
#define DATA 16
#define CR0_PE 1
#define A20_PORT 0x92
#define A20_BIT 2
#define KEYBOARD_PORT 0x60
#define KEYBOARD_STATUS_PORT 0x64
#define KEYBOARD_FULL 1
#define KEY_UP 0x80
#define DEBUG_PORT 0xe9
#define PIC_PORT 0x20
#define PIC_MASK_PORT 0x21
#define PIC_END 0x20
#define ONLY_TIMER 0xfe
#define TIMER_PORT 0x40
#define TIMER_COMMAND_PORT 0x43
#define TIMER_PERIODIC 0x34
#define TIMER_DIVISOR 11932
/* Where the BIOS leaves the timer's interrupt. */
#define TIMER_VECTOR 8
#define INTERRUPT_GATE 0x8e00

	.code16
	.globl start
start:
	cli
	xorw %ax, %ax
	movw %ax, %ds
	inb $A20_PORT, %al
	orb $A20_BIT, %al
	outb %al, $A20_PORT
	lgdtl gdt_pointer
	lidtl idt_pointer
	movl %cr0, %eax
	orb $CR0_PE, %al
	movl %eax, %cr0
	ljmpw $CODE, $flat

	.code32
flat:
	movw $DATA, %ax
	movw %ax, %ds
	movw %ax, %ss
	movl $ORIGIN, %esp
	movb $ONLY_TIMER, %al
	outb %al, $PIC_MASK_PORT
	/* What the BIOS has not read is no key. */
	inb $KEYBOARD_PORT, %al
	movl $LAST, %ebx
	xorl %edx, %edx
	sti
sweep:
	incl %edx
	movl %ebx, %edi
slice:
	hlt
	inb $KEYBOARD_STATUS_PORT, %al
	testb $KEYBOARD_FULL, %al
	jz no_key
	inb $KEYBOARD_PORT, %al
	testb $KEY_UP, %al
	jnz no_key
	addl $WIDER, %ebx
	movb $TIMER_PERIODIC, %al
	outb %al, $TIMER_COMMAND_PORT
	movb $(TIMER_DIVISOR & 0xff), %al
	outb %al, $TIMER_PORT
	movb $(TIMER_DIVISOR >> 8), %al
	outb %al, $TIMER_PORT
	jmp sweep
no_key:
	movl $SLICE, %ecx
write:
	movl %edx, (%edi)
	subl $PAGE, %edi
	loop write
	movb $'.', %al
	outb %al, $DEBUG_PORT
	cmpl $FIRST, %edi
	jae slice
	jmp sweep

tick:
	pushl %eax
	movb $PIC_END, %al
	outb %al, $PIC_PORT
	popl %eax
	iretl

	.balign 8
gdt:
	.quad 0
	.quad 0x00cf9a000000ffff	/* CODE: all 4 GiB, 32 bits */
	.quad 0x00cf92000000ffff	/* DATA */
gdt_pointer:
	.word gdt_pointer - gdt - 1
	.long gdt

	.balign 8
idt:
	.fill TIMER_VECTOR, 8, 0
	.word tick, CODE, INTERRUPT_GATE, 0
idt_pointer:
	.word idt_pointer - idt - 1
	.long idt

	.org 510
	.word 0xaa55
