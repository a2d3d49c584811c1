# A guest of 512 bytes for tests: every tick of the BIOS clock (55 ms) it adds
# one to a counter in memory, writes it to sector 8 of its disk, and prints it in
# hexadecimal on the serial port. A guest that rebooted starts at 1 again.
#   as --32 -o counter.o counter.s && objcopy -O binary -j .text counter.o counter.bin
.code16
.text
start:
	cli
	xorw %ax, %ax
	movw %ax, %ds
	movw %ax, %es
	movw %ax, %ss
	movw $0x7c00, %sp
	sti
	movl $0, 0x500
again:
	incl 0x500
	movl 0x500, %eax
	movl %eax, 0x600
	movw $(0x7c00 + dap - start), %si
	movw $0x4300, %ax
	movb $0x80, %dl
	int $0x13
	movl 0x500, %eax
	movw $8, %cx
digit:
	roll $4, %eax
	pushl %eax
	andb $0xf, %al
	addb $'0', %al
	cmpb $'9', %al
	jbe 1f
	addb $39, %al
1:	call putc
	popl %eax
	loop digit
	movb $'\n', %al
	call putc
	movw 0x46c, %bx
2:	hlt
	cmpw 0x46c, %bx
	je 2b
	jmp again
putc:
	pushw %ax
	movw $0x3fd, %dx
3:	inb %dx, %al
	testb $0x20, %al
	jz 3b
	popw %ax
	movw $0x3f8, %dx
	outb %al, %dx
	ret
dap:	.byte 0x10, 0
	.word 1, 0x600, 0
	.long 8, 0
	.org 510
	.byte 0x55, 0xaa
