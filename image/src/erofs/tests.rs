use std::path::Path;
use std::process::Command;

use super::*;
use crate::content::Segment;
use crate::tree::Attributes;

fn add_file(tree: &mut Tree, spool: &mut Spool, path: &str, bytes: &[u8]) {
    let whole = [Segment {
        offset: 0,
        len: bytes.len() as u64,
    }];
    let content = spool.add(bytes.len() as u64, &whole, &mut &*bytes).unwrap();
    let attributes = Attributes {
        mode: 0o640,
        uid: 70_000,
        gid: 5,
        mtime: 1_700_000_000,
        mtime_nsec: 123,
        ..Attributes::default()
    };
    tree.insert(path.as_bytes(), attributes, Kind::File(content)).unwrap();
}

fn add(tree: &mut Tree, path: &[u8], xattrs: &[(&str, &[u8])], kind: Kind) {
    let xattrs = xattrs
        .iter()
        .map(|(name, value)| (name.as_bytes().into(), (*value).into()));
    let attributes = Attributes {
        mode: 0o755,
        xattrs: xattrs.collect(),
        ..Attributes::default()
    };
    tree.insert(path, attributes, kind).unwrap();
}

/// A tree with all that is awkward.
fn awkward(directory: &Path) -> (File, std::path::PathBuf) {
    let path = directory.join("image");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    let (mut tree, mut spool) = (Tree::new(100_000), Spool::new(file));
    for number in 0..3000 {
        add_file(
            &mut tree,
            &mut spool,
            &format!("many/{number:0>width$}", width = number % 200 + 4),
            b"small",
        );
    }
    for size in [0, 1, 2047, 2048, 2049, 4095, 4096, 4097, 300_000] {
        add_file(&mut tree, &mut spool, &format!("sizes/{size}"), &vec![b'x'; size]);
    }
    for name in [b"!".as_slice(), b"-", b".a", b"..b", b"\xff\xfe", b"a\nb", &[b'n'; 255]] {
        add(&mut tree, &[b"odd/".as_slice(), name].concat(), &[], Kind::Fifo);
    }
    let target: Box<[u8]> = vec![b't'; 4095].into();
    add(&mut tree, b"links/long", &[], Kind::Symlink(target.clone()));
    add(
        &mut tree,
        b"links/long-with-xattr",
        &[("trusted.a", &[1; 3000])],
        Kind::Symlink(target),
    );
    add(
        &mut tree,
        b"xattrs/one",
        &[("user.a", b"1"), ("security.capability", &[7; 20])],
        Kind::Fifo,
    );
    add(
        &mut tree,
        b"xattrs/huge",
        &[("user.a", &[2; 65_535]), ("user.b", &[3; 9000])],
        Kind::Fifo,
    );
    add(
        &mut tree,
        b"dev/null",
        &[],
        Kind::CharDevice(Device { major: 1, minor: 3 }),
    );
    add(
        &mut tree,
        b"dev/large",
        &[],
        Kind::BlockDevice(Device {
            major: 4095,
            minor: 0xf_ffff,
        }),
    );
    add(&mut tree, b"socket", &[], Kind::Socket);
    tree.link(b"sizes/link", b"sizes/4097").unwrap();
    add_file(&mut tree, &mut spool, "replaced", &vec![b'r'; 1 << 20]);
    add_file(&mut tree, &mut spool, "replaced", b"new");
    (write(&tree, spool, [7; 16]).unwrap(), path)
}

/// Runs a tool of erofs-utils and returns what it printed.
fn tool(name: &str, arguments: &[&str], image: &Path) -> String {
    let output = Command::new(name).args(arguments).arg(image).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {name} of erofs-utils: {error}"));
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{name} {arguments:?}: {text}");
    text
}

#[test]
fn fsck_finds_nothing_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let (_, path) = awkward(directory.path());
    tool("fsck.erofs", &[], &path);
}

#[test]
fn every_file_is_found_as_it_was_put_there() {
    let directory = tempfile::tempdir().unwrap();
    let (_, path) = awkward(directory.path());
    let of = |file: &str| tool("dump.erofs", &[&format!("--path={file}")], &path);
    for size in [0, 1, 2047, 2048, 2049, 4095, 4096, 4097, 300_000] {
        let dumped = of(&format!("/sizes/{size}"));
        assert!(
            dumped.contains(&format!("Size: {size} ")) && dumped.contains("Uid: 70000"),
            "{dumped}"
        );
        assert!(
            dumped.contains(&format!("Links: {}", if size == 4097 { 2 } else { 1 })),
            "{dumped}"
        );
    }
    assert!(of("/many/0400").contains("Size: 5 "));
    let extracted = directory.path().join("extracted");
    tool("fsck.erofs", &[&format!("--extract={}", extracted.display())], &path);
    let read = |file: &str| std::fs::read(extracted.join(file)).unwrap();
    assert_eq!(
        (read("many/0400"), read("replaced")),
        (b"small".to_vec(), b"new".to_vec())
    );
    assert!(read("sizes/2048") == [b'x'; 2048] && read("sizes/300000") == vec![b'x'; 300_000]);
    assert_eq!(std::fs::read_dir(extracted.join("many")).unwrap().count(), 3000);
    assert_eq!(std::fs::read_dir(extracted.join("odd")).unwrap().count(), 7);
}

#[test]
fn what_was_replaced_takes_no_room() {
    use std::os::unix::fs::MetadataExt as _;
    let directory = tempfile::tempdir().unwrap();
    let (file, _) = awkward(directory.path());
    let metadata = file.metadata().unwrap();
    assert!(
        metadata.blocks() * 512 + (1 << 20) <= metadata.len() + 8192,
        "{metadata:?}"
    );
}
