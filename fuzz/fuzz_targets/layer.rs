//! Two layers of an image with anything in them, put on top of each other and written as a file system.
//!
//! Nothing is written beyond what the limits allow, and no name leads out of its directory. Checksums of headers are
//! made right first: they would keep everything else from being reached.
#![no_main]

use libfuzzer_sys::fuzz_target;
use msb_fuzz::archive::{BLOCK, seal};
use msb_image::content::Spool;
use msb_image::erofs;
use msb_image::layer::{self, Whiteouts};
use msb_image::limits::{Budget, Limits};
use msb_image::tree::{Kind, Tree};

const LIMITS: Limits = Limits {
    entries: 64,
    bytes: 1 << 20,
    metadata: 1 << 16,
    layers: 2,
};

/// What a file system has besides contents and metadata, generously.
const OVERHEAD: u64 = 1 << 20;

/// Writes the checksum of each header that a reader would come to.
fn with_checksums(archive: &[u8]) -> Vec<u8> {
    let mut archive = archive.to_vec();
    let mut at = 0;
    while let Some(header) = archive.get_mut(at..at + BLOCK) {
        seal(header);
        let octal = |sum: usize, byte: &u8| sum * 8 + usize::from(byte & 7);
        let size = header[124..135]
            .iter()
            .filter(|byte| byte.is_ascii_digit())
            .fold(0, octal);
        at += BLOCK + size.next_multiple_of(BLOCK);
    }
    archive
}

fuzz_target!(|input: &[u8]| {
    let Some((&blocks, archives)) = input.split_first() else {
        return;
    };
    let (first, second) = archives.split_at(archives.len().min(usize::from(blocks) * BLOCK));
    let mut tree = Tree::new(LIMITS.entries);
    let mut spool = Spool::new(tempfile::tempfile().expect("a file"));
    let mut budget = Budget::new(LIMITS);
    for archive in [first, second] {
        let archive = with_checksums(archive);
        let applied = layer::apply(&mut &archive[..], Whiteouts::Apply, &mut tree, &mut spool, &mut budget);
        if applied.is_err() {
            return;
        }
    }
    let mut directories = vec![tree.lookup(b"/").expect("a tree has a root")];
    let mut seen = 0;
    while let Some(id) = directories.pop() {
        seen += 1;
        assert!(seen <= tree.capacity(), "a directory is in itself");
        if let Kind::Directory(entries) = &tree.node(id).kind {
            for (name, child) in entries {
                assert!(!name.is_empty() && name.len() <= 255 && !name.contains(&b'/') && !name.contains(&0));
                assert!(**name != *b"." && **name != *b"..");
                directories.push(*child);
            }
        }
    }
    if let Ok(file) = erofs::write(&tree, spool, [7; 16]) {
        let written = file.metadata().expect("a file").len();
        assert!(written <= LIMITS.bytes + LIMITS.metadata + OVERHEAD, "{written} bytes");
    }
});
