//! What a 64-bit Linux guest on x86 finds when it starts: memory layout, tables, registers.

pub mod boot;
pub mod cpuid;
pub(crate) mod kernel_code;
pub mod lapic;
pub mod layout;
pub mod mptable;
pub mod msr;
pub mod registers;
