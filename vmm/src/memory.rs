//! Guest memory.

use vm_memory::GuestMemoryMmap;

/// The memory of one guest: cloning shares it.
pub type GuestMemory = GuestMemoryMmap<()>;
