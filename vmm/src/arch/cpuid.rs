//! The CPUID leaves a vCPU shows: what KVM supports, with this vCPU's place in the machine.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

const LEAF_VENDOR: u32 = 0;
const LEAF_FEATURES: u32 = 1;
const LEAF_CACHES: u32 = 4;
const LEAF_MORE_FEATURES: u32 = 7;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_EXTENDED_STATE: u32 = 0xd;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_EXTENDED_FEATURES: u32 = 0x8000_0001;
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

/// The extended state that a vCPU with `shown` can turn on, as its XCR0 has it (Intel SDM volume 1, section 13.3); none
/// without XSAVE.
pub fn extended_state(shown: &CpuId) -> Option<u64> {
    let mut leaves = shown.as_slice().iter();
    let leaf = leaves.find(|leaf| (leaf.function, leaf.index) == (LEAF_EXTENDED_STATE, 0))?;
    let state = u64::from(leaf.edx) << 32 | u64::from(leaf.eax);
    (state != 0).then_some(state)
}

/// Vendor, and family, model and stepping as CPUID shows them.
pub fn name(supported: &CpuId) -> String {
    let leaf = |function| supported.as_slice().iter().find(|leaf| leaf.function == function);
    let vendor = leaf(LEAF_VENDOR).map_or_else(Vec::new, |leaf| {
        [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat()
    });
    let signature = leaf(LEAF_FEATURES).map_or(0, |leaf| leaf.eax);
    format!("{} {signature:#x}", String::from_utf8_lossy(&vendor))
}

/// The first leaf of a vCPU with `shown` that has a feature which a host with `supported` does not offer.
pub fn lacking(supported: &CpuId, shown: &[kvm_cpuid_entry2], tsc_deadline: bool) -> Option<u32> {
    let has_feature_beyond = |shown: &&kvm_cpuid_entry2| {
        // What is no feature: the number of logical CPUs and the APIC ID, and that there are several.
        let (ignored_ebx, added_ecx, ignored_edx) = match (shown.function, shown.index) {
            (LEAF_FEATURES, _) => {
                let deadline = if tsc_deadline { ECX_TSC_DEADLINE } else { 0 };
                (u32::MAX, ECX_HYPERVISOR | deadline, EDX_HYPER_THREADING)
            }
            (LEAF_MORE_FEATURES, 0) => (0, 0, 0),
            (LEAF_EXTENDED_FEATURES, _) => (u32::MAX, 0, 0),
            _ => return false,
        };
        let same = |leaf: &&kvm_cpuid_entry2| (leaf.function, leaf.index) == (shown.function, shown.index);
        let offered = supported.as_slice().iter().find(same).copied().unwrap_or_default();
        shown.ebx & !(offered.ebx | ignored_ebx) != 0
            || shown.ecx & !(offered.ecx | added_ecx) != 0
            || shown.edx & !(offered.edx | ignored_edx) != 0
    };
    shown.iter().find(has_feature_beyond).map(|leaf| leaf.function)
}

#[cfg(test)]
mod tests {
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
    fn a_host_with_less_is_told_from_one_with_the_same() {
        let features = |ecx| {
            let features = kvm_cpuid_entry2 {
                ecx,
                ..leaf(LEAF_FEATURES, 0)
            };
            CpuId::from_entries(&[features]).unwrap()
        };
        let shown = for_vcpu(&features(0b11), 3, 4, true);
        assert_eq!(lacking(&features(0b111), shown.as_slice(), true), None);
        assert_eq!(lacking(&features(0b01), shown.as_slice(), true), Some(LEAF_FEATURES));
        assert_eq!(lacking(&features(0b11), shown.as_slice(), false), Some(LEAF_FEATURES));
    }

    #[test]
    fn a_timer_that_kvm_lacks_is_not_promised() {
        let cpuid = for_vcpu(&CpuId::from_entries(&[leaf(LEAF_FEATURES, 0)]).unwrap(), 0, 1, false);
        assert_eq!(cpuid.as_slice()[0].ecx & ECX_TSC_DEADLINE, 0);
    }
}
