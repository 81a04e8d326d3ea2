//! What damaged, foreign and hostile files are taken for.

use proptest::prelude::*;

use super::*;

/// A file with these contents, all else in order.
fn file(contents: &[u8]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(Snapshot::VERSION.to_le_bytes());
    bytes.extend(u32::try_from(contents.len()).unwrap().to_le_bytes());
    bytes.extend(Sha256::digest(contents));
    bytes.extend(contents);
    bytes
}

fn refusal(bytes: &[u8]) -> SnapshotError {
    Snapshot::read(bytes).expect_err("this is no snapshot")
}

#[test]
fn each_kind_of_damage_has_its_name() {
    let whole = file(b"{}");
    assert!(matches!(refusal(&whole), SnapshotError::Contents(_)));
    assert!(matches!(refusal(b""), SnapshotError::NotASnapshot));
    assert!(matches!(refusal(b"#!/bin/sh\n"), SnapshotError::NotASnapshot));
    assert!(matches!(refusal(&whole[..whole.len() - 1]), SnapshotError::Length(2)));
    assert!(matches!(
        refusal(&[whole.clone(), vec![0]].concat()),
        SnapshotError::Length(2)
    ));
    let mut edited = whole.clone();
    edited[HEADER] ^= 1;
    assert!(matches!(refusal(&edited), SnapshotError::Checksum));
    let mut newer = whole;
    newer[8] += 1;
    assert!(matches!(refusal(&newer), SnapshotError::Version(version) if version == Snapshot::VERSION + 1));
}

#[test]
fn an_endless_file_is_not_read_to_its_end() {
    let header = file(b"");
    let mut endless = header.as_slice().chain(io::repeat(b' '));
    assert!(matches!(Snapshot::read(&mut endless), Err(SnapshotError::Length(0))));
}

#[test]
fn another_cpu_or_kernel_is_refused_with_both_names() {
    let facts = |cpu: &str, kernel: &str| HostFacts {
        cpu: cpu.into(),
        kernel: kernel.into(),
    };
    let saved = facts("AuthenticAMD 0x1", "6.1.0");
    assert!(saved.check(saved.clone()).is_ok());
    let cpu = saved.check(facts("GenuineIntel 0x2", "6.1.0")).unwrap_err().to_string();
    assert!(
        cpu.contains("AuthenticAMD 0x1") && cpu.contains("GenuineIntel 0x2"),
        "{cpu}"
    );
    let kernel = saved
        .check(facts("AuthenticAMD 0x1", "6.12.1"))
        .unwrap_err()
        .to_string();
    assert!(kernel.contains("6.1.0") && kernel.contains("6.12.1"), "{kernel}");
}

proptest! {
    #[test]
    fn no_bytes_are_taken_for_a_snapshot(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        refusal(&bytes);
        refusal(&file(&bytes));
    }
}
