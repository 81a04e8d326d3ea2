use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::assemble::Assembler;
use crate::content::Segment;
use crate::digest::Digest;
use crate::layer::Whiteouts;
use crate::limits::{Budget, Limits};
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

/// Everything of a tree but where contents are, by path.
fn described(tree: &Tree) -> BTreeMap<Vec<u8>, String> {
    let mut described = BTreeMap::new();
    let mut left = vec![(Vec::new(), NodeId::ROOT)];
    while let Some((path, id)) = left.pop() {
        let node = tree.node(id);
        let kind = match &node.kind {
            Kind::Directory(entries) => {
                let below = entries
                    .iter()
                    .map(|(name, id)| ([&path, b"/".as_slice(), name].concat(), *id));
                left.extend(below);
                "directory".to_owned()
            }
            other => format!("{other:?}"),
        };
        described.insert(path, format!("{kind} {:?}", node.attributes));
    }
    described
}

fn read_back(file: &File) -> Result<Tree, ReadError> {
    let (mut tree, mut budget) = (Tree::new(100_000), Budget::new(Limits::default()));
    read(file, &mut tree, &mut budget).map(|_| tree)
}

#[test]
fn what_was_written_is_read_as_it_was_and_can_be_written_again() {
    let directory = tempfile::tempdir().unwrap();
    let (file, path) = awkward(directory.path());
    let tree = read_back(&file).unwrap();
    let first = described(&tree);
    assert_eq!(first.len(), 3000 + 10 + 7 + 2 + 2 + 2 + 2 + 7);
    assert_eq!(tree.lookup(b"sizes/link"), tree.lookup(b"sizes/4097"));
    assert!(first[b"/xattrs/huge".as_slice()].len() > 9000 + 65_535);
    let blocks = file.metadata().unwrap().len() / BLOCK;
    let again = write(&tree, Spool::behind(file, blocks, 0), [8; 16]).unwrap();
    tool("fsck.erofs", &[], &path);
    assert_eq!(described(&read_back(&again).unwrap()), first);
}

#[test]
fn layers_go_on_top_of_an_image_and_what_they_replace_takes_no_room() {
    use std::os::unix::fs::MetadataExt as _;
    let directory = tempfile::tempdir().unwrap();
    let (file, path) = awkward(directory.path());
    let before = file.metadata().unwrap().blocks();
    let mut layer = tar::Builder::new(Vec::new());
    let data = vec![b'l'; 200_000];
    for (name, contents) in [
        ("many/.wh.0400", &[][..]),
        ("sizes/300000", &data),
        ("replaced", b"newer"),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        layer.append_data(&mut header, name, contents).unwrap();
    }
    let layer = layer.into_inner().unwrap();
    let mut assembler = Assembler::on(file, Limits::default()).unwrap();
    assembler
        .layer(&*layer, Whiteouts::Apply, Some(Digest::of(&layer)))
        .unwrap();
    let file = assembler.finish(&Digest::of(b"")).unwrap();
    let extracted = directory.path().join("extracted");
    tool("fsck.erofs", &[&format!("--extract={}", extracted.display())], &path);
    let read = |file: &str| std::fs::read(extracted.join(file)).unwrap();
    assert!(read("sizes/300000") == data && read("sizes/4097") == vec![b'x'; 4097]);
    assert_eq!(read("replaced"), b"newer");
    assert_eq!(std::fs::read_dir(extracted.join("many")).unwrap().count(), 2999);
    assert!(
        file.metadata().unwrap().blocks() <= before,
        "room of what was replaced is not given back"
    );
}

proptest! {
    #[test]
    fn no_damage_makes_reading_panic(at in any::<proptest::sample::Index>(), bytes in any::<[u8; 4]>()) {
        let file = tempfile::tempfile().unwrap();
        let (mut tree, mut spool) = (Tree::new(100), Spool::new(file));
        add_file(&mut tree, &mut spool, "a/file", &[b'x'; 5000]);
        add_file(&mut tree, &mut spool, "a/small", b"small");
        add(&mut tree, b"b", &[("user.a", b"1")], Kind::Symlink(b"a".as_slice().into()));
        let file = write(&tree, spool, [7; 16]).unwrap();
        let blocks = file.metadata().unwrap().len();
        // The superblock, and the inodes at the end.
        let places: Vec<u64> = (1024..1152).chain(blocks - BLOCK..blocks).collect();
        file.write_all_at(&bytes, *at.get(&places)).unwrap();
        let _ = read_back(&file);
    }
}
