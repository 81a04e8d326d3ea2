//! What comes on the sockets around a VM's keeper: commands of clients, reports of the VM's process, and what the keeper
//! tells its starter. The models are in `msb/src/vmm_process/fuzzing.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use msb::vmm_process::fuzzing;
use msb::vmm_process::status::StatusDecoder;

fuzz_target!(|input: &[u8]| {
    let Some((&which, rest)) = input.split_first() else {
        return;
    };
    match which % 4 {
        0 => fuzzing::reports(rest),
        1 => {
            let mut decoder = StatusDecoder::default();
            for piece in rest.chunks(usize::from(which) + 1) {
                decoder.push(piece);
                while let Ok(Some(_)) = decoder.next_event() {}
            }
        }
        _ => fuzzing::control(rest, tempfile::tempdir().expect("a directory").path()),
    }
});
