//! Directories: blocks of entries, each block with its names behind its entries.

use super::format::{DIRENT, FileType};

const BLOCK: usize = 4096;

/// One name in a directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dirent<'a> {
    pub(super) name: &'a [u8],
    pub(super) nid: u64,
    pub(super) file_type: FileType,
}

/// How many bytes a directory with these names has, in their order.
pub(super) fn size<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    let (mut full, mut used) = (0, 0);
    for name in names {
        let needed = DIRENT + name.len();
        if used + needed > BLOCK {
            full += BLOCK as u64;
            used = 0;
        }
        used += needed;
    }
    full + used as u64
}

/// The bytes of a directory. The entries are sorted by name, `.` and `..` among them: the kernel searches by halves.
pub(super) fn encode(entries: &[Dirent<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        let (block, after) = rest.split_at(fitting(rest));
        encode_block(block, &mut bytes);
        rest = after;
    }
    bytes
}

/// How many of the entries one block holds.
fn fitting(entries: &[Dirent<'_>]) -> usize {
    let mut used = 0;
    let fit = entries.iter().take_while(|entry| {
        used += DIRENT + entry.name.len();
        used <= BLOCK
    });
    fit.count()
}

fn encode_block(entries: &[Dirent<'_>], bytes: &mut Vec<u8>) {
    let mut name_offset = entries.len() * DIRENT;
    for entry in entries {
        let offset = u16::try_from(name_offset).expect("it is in a block");
        bytes.extend(entry.nid.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes.extend([entry.file_type as u8, 0]);
        name_offset += entry.name.len();
    }
    for entry in entries {
        bytes.extend(entry.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_size_is_that_of_the_bytes(names in proptest::collection::btree_set("[a-z]{1,255}", 0..100)) {
            let entries: Vec<_> = names
                .iter()
                .map(|name| Dirent { name: name.as_bytes(), nid: 7, file_type: FileType::Fifo })
                .collect();
            let bytes = encode(&entries);
            prop_assert_eq!(bytes.len() as u64, size(names.iter().map(String::as_bytes)));
        }
    }
}
