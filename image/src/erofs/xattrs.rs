//! Extended attributes, kept behind their inode.

use super::format::{XATTR_ENTRY, XATTR_HEADER};
use crate::tree::Xattrs;

/// The most bytes of one inode: their number in units of four is 16 bits.
pub(super) const MAX_SIZE: usize = 4 * (u16::MAX as usize - 1) + XATTR_HEADER;

/// Beginnings of names, and the numbers that stand for them.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// How many bytes the attributes take.
pub(super) fn size(xattrs: &Xattrs) -> usize {
    match entries(xattrs).map(|(_, name, value)| entry_size(name, value)).sum() {
        0 => 0,
        entries => XATTR_HEADER + entries,
    }
}

/// Appends the attributes.
pub(super) fn encode(xattrs: &Xattrs, bytes: &mut Vec<u8>) {
    if size(xattrs) == 0 {
        return;
    }
    // Without a filter of names and without shared attributes.
    bytes.extend([0; XATTR_HEADER]);
    for (index, name, value) in entries(xattrs) {
        let start = bytes.len();
        bytes.push(u8::try_from(name.len()).expect("a name has at most 255 bytes"));
        bytes.push(index);
        let value_size = u16::try_from(value.len()).expect("a longer value was refused when it was read");
        bytes.extend(value_size.to_le_bytes());
        bytes.extend(name);
        bytes.extend(value);
        bytes.resize(start + entry_size(name, value), 0);
    }
}

/// What [`encode`] wrote; nothing when it did not write that.
pub(super) fn decode(bytes: &[u8]) -> Option<Xattrs> {
    let mut xattrs = Xattrs::new();
    let mut rest = bytes.get(XATTR_HEADER..).unwrap_or_default();
    while let Some((head, after)) = rest.split_first_chunk::<XATTR_ENTRY>() {
        let [name_len, index, value_low, value_high] = *head;
        let (name, value) = after.split_at_checked(usize::from(name_len))?;
        let value = value.get(..usize::from(u16::from_le_bytes([value_low, value_high])))?;
        let (prefix, _) = PREFIXES.iter().find(|(_, known)| *known == index)?;
        rest = rest.get(entry_size(name, value)..)?;
        xattrs.insert([prefix, name].concat().into(), value.into());
    }
    Some(xattrs)
}

/// Prefix, rest of the name, and value.
fn entries(xattrs: &Xattrs) -> impl Iterator<Item = (u8, &[u8], &[u8])> {
    xattrs.iter().filter_map(|(name, value)| {
        let of = |(prefix, index): &(&[u8], u8)| Some((*index, name.strip_prefix(*prefix)?));
        let (index, rest) = PREFIXES.iter().find_map(of)?;
        Some((index, rest, &**value))
    })
}

fn entry_size(name: &[u8], value: &[u8]) -> usize {
    (XATTR_ENTRY + name.len() + value.len()).next_multiple_of(4)
}
