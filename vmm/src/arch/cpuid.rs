//! The CPUID leaves a vCPU shows: what KVM supports, with this vCPU's place in the machine.

use kvm_bindings::CpuId;

const LEAF_FEATURES: u32 = 1;
const LEAF_CACHES: u32 = 4;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_AMD_CACHES: u32 = 0x8000_001d;
const LEAF_AMD_CORES: u32 = 0x8000_0008;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;

const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HYPER_THREADING: u32 = 1 << 28;
const TOPOLOGY_LEVEL_THREAD: u32 = 1 << 8;
const TOPOLOGY_LEVEL_CORE: u32 = 2 << 8;

/// Adapts KVM's `supported` leaves to vCPU `id` of `vcpus`: one package, one thread a core.
///
/// `tsc_deadline` says whether KVM emulates the TSC-deadline timer; it reports that as a capability and not as a leaf.
pub fn for_vcpu(supported: &CpuId, id: u8, vcpus: u8, tsc_deadline: bool) -> CpuId {
    let mut cpuid = supported.clone();
    let apic_id = u32::from(id);
    let cpus = u32::from(vcpus);
    let id_bits = cpus.next_power_of_two().trailing_zeros();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            LEAF_FEATURES => {
                entry.ebx = (entry.ebx & 0xffff) | (cpus << 16) | (apic_id << 24);
                entry.ecx |= ECX_HYPERVISOR | if tsc_deadline { ECX_TSC_DEADLINE } else { 0 };
                if vcpus > 1 {
                    entry.edx |= EDX_HYPER_THREADING;
                } else {
                    entry.edx &= !EDX_HYPER_THREADING;
                }
            }
            LEAF_CACHES | LEAF_AMD_CACHES => {
                let level = (entry.eax >> 5) & 7;
                let sharing = if level >= 3 { cpus - 1 } else { 0 };
                entry.eax &= 0x3fff;
                entry.eax |= sharing << 14;
                if entry.function == LEAF_CACHES {
                    entry.eax |= (cpus - 1) << 26;
                }
            }
            LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 => {
                entry.edx = apic_id;
                (entry.eax, entry.ebx, entry.ecx) = match entry.index {
                    0 => (0, 1, TOPOLOGY_LEVEL_THREAD),
                    1 => (id_bits, cpus, TOPOLOGY_LEVEL_CORE | 1),
                    level => (0, 0, level),
                };
            }
            LEAF_AMD_CORES => entry.ecx = (id_bits << 12) | (cpus - 1),
            LEAF_AMD_TOPOLOGY => (entry.eax, entry.ebx, entry.ecx) = (apic_id, apic_id, 0),
            _ => {}
        }
    }
    cpuid
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_cpuid_entry2;

    use super::*;

    fn leaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            ..Default::default()
        }
    }

    #[test]
    fn every_leaf_with_an_apic_id_shows_the_same_one() {
        let leaves = [
            leaf(LEAF_FEATURES, 0),
            leaf(LEAF_TOPOLOGY, 0),
            leaf(LEAF_TOPOLOGY, 1),
            leaf(LEAF_AMD_TOPOLOGY, 0),
        ];
        let cpuid = for_vcpu(&CpuId::from_entries(&leaves).unwrap(), 5, 6, true);
        let seen = cpuid.as_slice();
        assert_eq!(seen[0].ebx >> 24, 5);
        assert_eq!((seen[1].edx, seen[2].edx, seen[3].eax), (5, 5, 5));
        assert_eq!((seen[2].eax, seen[2].ebx), (3, 6));
        assert_ne!(seen[0].ecx & ECX_TSC_DEADLINE, 0);
    }

    #[test]
    fn a_timer_that_kvm_lacks_is_not_promised() {
        let cpuid = for_vcpu(&CpuId::from_entries(&[leaf(LEAF_FEATURES, 0)]).unwrap(), 0, 1, false);
        assert_eq!(cpuid.as_slice()[0].ecx & ECX_TSC_DEADLINE, 0);
    }
}
