# The first program of a guest: puts the programs that the machine has in memory into the file system, and becomes the
# agent, with its own arguments and environment.
#
# Where the machine has none, they are in the initramfs. It needs no stack but the one it starts with, and no library.

#include <sys/syscall.h>

#define MS_RDONLY_NOSUID_NODEV 7

    .globl _start
_start:
    mov (%rsp), %rcx
    lea 8(%rsp), %rbx               # arguments
    lea 16(%rsp, %rcx, 8), %rbp     # environment

    mov $SYS_mount, %eax
    lea rom(%rip), %rdi
    lea programs(%rip), %rsi
    lea cramfs(%rip), %rdx
    mov $MS_RDONLY_NOSUID_NODEV, %r10d
    xor %r8d, %r8d
    syscall

    mov $SYS_execve, %eax
    lea agent(%rip), %rdi
    mov %rbx, %rsi
    mov %rbp, %rdx
    syscall

    mov $SYS_write, %eax
    mov $2, %edi
    lea failure(%rip), %rsi
    mov $failure_end - failure, %edx
    syscall
    mov $SYS_exit, %eax
    mov $127, %edi
    syscall

    .section .rodata
rom:        .asciz "mtd:rom"
cramfs:     .asciz "cramfs"
programs:   .asciz "/usr/lib/msb/programs"
agent:      .asciz "/usr/lib/msb/programs/msb-agent"
failure:    .ascii "msb: cannot run the agent: the kernel needs CONFIG_MTD_PHRAM and CONFIG_CRAMFS_MTD\n"
failure_end:

    .section .note.GNU-stack, "", @progbits
