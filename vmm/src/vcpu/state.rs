//! The state of a vCPU, to be saved and to be restored.

use std::time::Duration;

use kvm_bindings::{
    CpuId, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::Vcpu;
use crate::arch::msr::{IA32_TSC, IA32_TSC_DEADLINE};
use crate::kvm::{Doing, KvmError, KvmVm};

/// How far the frequencies of two time stamp counters may be apart, in parts per million, and count as the same: what a
/// host measures at its start varies by less.
const TSC_TOLERANCE_PPM: u64 = 250;

/// Registers that KVM takes at once (`KVM_MAX_MSR_ENTRIES`).
const BATCH: usize = 256;

/// The least that KVM sets a counter back by: what is within a second of where it is, it takes for where it is.
pub(crate) const LEAST_STEP: Duration = Duration::from_secs(2);

/// A vCPU's time stamp counter, and the deadline that is measured by it.
#[derive(Debug)]
pub(crate) struct VcpuClock(Vec<kvm_msr_entry>);

/// All of a vCPU that its guest can notice.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VcpuState {
    /// What CPUID shows.
    pub(crate) cpuid: Vec<kvm_cpuid_entry2>,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
    tsc_khz: u32,
}

impl Vcpu {
    /// The state of a vCPU that is paused, as are all others of its VM.
    ///
    /// The order matters: to read the multiprocessing state has KVM accept pending events, which changes the registers
    /// (Documentation/virt/kvm/api.rst), and the events come last, because reading the rest may change them.
    pub(crate) fn save(&self, vm: &KvmVm) -> Result<VcpuState, KvmError> {
        let fd = &self.fd;
        Ok(VcpuState {
            cpuid: self.cpuid.as_slice().to_vec(),
            mp_state: fd.get_mp_state().doing("read a vCPU's multiprocessing state")?,
            regs: fd.get_regs().doing("read a vCPU's registers")?,
            sregs: fd.get_sregs().doing("read a vCPU's segments")?,
            xsave: fd.get_xsave().doing("read a vCPU's extended registers")?,
            xcrs: fd.get_xcrs().doing("read a vCPU's extended control registers")?,
            debug_regs: fd.get_debug_regs().doing("read a vCPU's debug registers")?,
            lapic: fd.get_lapic().doing("read a vCPU's local APIC")?,
            msrs: read_msrs(fd, &vm.msr_indices)?,
            events: fd.get_vcpu_events().doing("read a vCPU's events")?,
            tsc_khz: fd.get_tsc_khz().doing("read a vCPU's clock rate")?,
        })
    }

    /// Makes vCPU `id` as it was saved.
    pub(crate) fn restore(vm: &KvmVm, id: u8, state: &VcpuState) -> Result<Self, KvmError> {
        let cpuid = CpuId::from_entries(&state.cpuid).map_err(|_| KvmError::Call {
            doing: "set a vCPU's features",
            source: std::io::ErrorKind::InvalidData.into(),
        })?;
        let vcpu = Self::create(vm, id, cpuid)?;
        let fd = &vcpu.fd;
        restore_tsc_rate(fd, state.tsc_khz)?;
        fd.set_mp_state(state.mp_state)
            .doing("restore a vCPU's multiprocessing state")?;
        fd.set_regs(&state.regs).doing("restore a vCPU's registers")?;
        fd.set_sregs(&state.sregs).doing("restore a vCPU's segments")?;
        // SAFETY: KVM reads more than 4 KiB only for features that a process must ask for, which this one never does.
        unsafe { fd.set_xsave(&state.xsave) }.doing("restore a vCPU's extended registers")?;
        fd.set_xcrs(&state.xcrs)
            .doing("restore a vCPU's extended control registers")?;
        fd.set_debug_regs(&state.debug_regs)
            .doing("restore a vCPU's debug registers")?;
        fd.set_lapic(&state.lapic).doing("restore a vCPU's local APIC")?;
        write_msrs(fd, &state.msrs)?;
        fd.set_vcpu_events(&state.events).doing("restore a vCPU's events")?;
        Ok(vcpu)
    }

    /// Where the clock of a vCPU is that is paused.
    pub(crate) fn clock(&self) -> Result<VcpuClock, KvmError> {
        read_msrs(&self.fd, &[IA32_TSC, IA32_TSC_DEADLINE]).map(VcpuClock)
    }

    /// Sets the clock back to where it was, [`LEAST_STEP`] ago or longer.
    pub(crate) fn set_clock(&self, clock: &VcpuClock) -> Result<(), KvmError> {
        write_msrs(&self.fd, &clock.0)
    }

    /// Tells the guest that it did not run for a while, so that it does not take that for a lockup of its own.
    pub(crate) fn excuse_absence(&self) {
        // A guest without kvm-clock cannot be told.
        let _ = self.fd.kvmclock_ctrl();
    }
}

/// Of the registers at `indices`, those that this vCPU has.
fn read_msrs(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, KvmError> {
    let mut read = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let asked: Vec<_> = rest.iter().take(BATCH).map(|index| entry(*index, 0)).collect();
        let mut msrs = batch(&asked);
        let count = fd.get_msrs(&mut msrs).doing("read a vCPU's MSRs")?;
        read.extend(msrs.as_slice().iter().take(count));
        // KVM stops at the first one that it cannot read.
        let unreadable = usize::from(count < asked.len());
        rest = &rest[count + unreadable..];
    }
    Ok(read)
}

/// Writes the registers: the deadline after the counter that it is measured by. One that KVM refuses must have its value
/// already.
fn write_msrs(fd: &VcpuFd, msrs: &[kvm_msr_entry]) -> Result<(), KvmError> {
    let (deadline, others): (Vec<_>, Vec<_>) = msrs.iter().copied().partition(|msr| msr.index == IA32_TSC_DEADLINE);
    let counter = others
        .iter()
        .find(|msr| msr.index == IA32_TSC)
        .map_or(0, |msr| msr.data);
    let deadline = deadline.into_iter().map(|msr| match msr.data {
        // One that had just passed reads as none; its interrupt may still be on its way. One too many is harmless.
        0 => entry(msr.index, counter),
        _ => msr,
    });
    let ordered: Vec<_> = others.into_iter().chain(deadline).collect();
    let mut rest = ordered.as_slice();
    while !rest.is_empty() {
        let asked = &rest[..rest.len().min(BATCH)];
        let written = fd.set_msrs(&batch(asked)).doing("restore a vCPU's MSRs")?;
        let refused = asked.get(written);
        if let Some(refused) = refused {
            let mut present = batch(&[entry(refused.index, 0)]);
            let is_same = fd.get_msrs(&mut present) == Ok(1) && present.as_slice()[0].data == refused.data;
            if !is_same {
                return Err(KvmError::Msr(refused.index));
            }
        }
        rest = &rest[written + usize::from(refused.is_some())..];
    }
    Ok(())
}

fn batch(entries: &[kvm_msr_entry]) -> Msrs {
    Msrs::from_entries(entries).expect("as many registers as KVM takes at once")
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }
}

fn restore_tsc_rate(fd: &VcpuFd, saved_khz: u32) -> Result<(), KvmError> {
    let present = u64::from(fd.get_tsc_khz().doing("read a vCPU's clock rate")?);
    let saved = u64::from(saved_khz);
    if saved.abs_diff(present).saturating_mul(1_000_000) <= present.saturating_mul(TSC_TOLERANCE_PPM) {
        return Ok(());
    }
    fd.set_tsc_khz(saved_khz).doing("run a vCPU at the saved clock rate")
}
