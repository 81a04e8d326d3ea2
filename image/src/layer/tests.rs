use std::io::Write as _;

use super::*;
use crate::content::Content;
use crate::limits::Limits;
use crate::tree::NodeId;
use ::tar::{Builder, EntryType, Header};
use proptest::prelude::*;

struct Image {
    tree: Tree,
    spool: Spool,
    budget: Budget,
}

impl Image {
    fn new() -> Self {
        Self::limited(Limits::default())
    }

    fn limited(limits: Limits) -> Self {
        Self {
            tree: Tree::new(limits.entries),
            spool: Spool::new(tempfile::tempfile().unwrap()),
            budget: Budget::new(limits),
        }
    }

    fn apply(&mut self, mut layer: &[u8]) -> Result<(), LayerError> {
        apply(
            &mut layer,
            Whiteouts::Apply,
            &mut self.tree,
            &mut self.spool,
            &mut self.budget,
        )
    }

    fn file(&self, path: &str) -> Vec<u8> {
        let id = self
            .tree
            .lookup(path.as_bytes())
            .unwrap_or_else(|| panic!("there is no {path}"));
        match &self.tree.node(id).kind {
            Kind::File(Content::Inline(bytes)) => bytes.to_vec(),
            other => panic!("{path} is {other:?}"),
        }
    }
}

fn archive(build: impl FnOnce(&mut Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    build(&mut builder);
    builder.into_inner().unwrap()
}

fn header(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o4755);
    header.set_uid(1000);
    header.set_gid(100);
    header.set_mtime(1_700_000_000);
    header.set_cksum();
    header
}

fn add_file(builder: &mut Builder<Vec<u8>>, path: &str, contents: &[u8]) {
    let mut header = header(EntryType::Regular, contents.len() as u64);
    builder.append_data(&mut header, path, contents).unwrap();
}

/// GNU tar's own archive of `files`, with more options.
fn gnu_tar(directory: &std::path::Path, options: &[&str]) -> Vec<u8> {
    let mut command = std::process::Command::new("tar");
    command.arg("-C").arg(directory).args(options).args(["-cf", "-", "."]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn attributes_and_odd_names_come_through() {
    let long = format!("{}/{}", "d".repeat(200), "n\n\u{1b}\u{fc}".repeat(30));
    let layer = archive(|builder| {
        let pax = [
            ("SCHILY.xattr.user.a", b"x\ny".as_slice()),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ];
        builder.append_pax_extensions(pax).unwrap();
        add_file(builder, "file", b"contents");
        add_file(builder, &long, b"long");
    });
    let mut image = Image::new();
    image.apply(&layer).unwrap();
    let node = image.tree.node(image.tree.lookup(b"file").unwrap());
    let attributes = &node.attributes;
    assert_eq!((attributes.mode, attributes.uid, attributes.gid), (0o4755, 1000, 100));
    assert_eq!(attributes.mtime, 1_700_000_000);
    let xattrs: Vec<_> = attributes
        .xattrs
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .collect();
    assert_eq!(xattrs, [(b"user.a".as_slice(), b"x\ny".as_slice())]);
    assert_eq!(image.file(&long), b"long");
}

#[test]
fn layers_lie_on_each_other() {
    let lower = archive(|builder| {
        add_file(builder, "etc/a", b"lower");
        add_file(builder, "etc/b", b"lower");
        add_file(builder, "var/x/y", b"lower");
    });
    let upper = archive(|builder| {
        add_file(builder, "etc/a", b"upper");
        add_file(builder, "etc/.wh.b", b"");
        add_file(builder, "var/.wh..wh..opq", b"");
        add_file(builder, "var/.wh..wh.plnk", b"");
        let mut link = header(EntryType::Link, 0);
        builder.append_link(&mut link, "var/link", "etc/a").unwrap();
    });
    let mut image = Image::new();
    image.apply(&lower).unwrap();
    image.apply(&upper).unwrap();
    assert_eq!(image.file("etc/a"), b"upper");
    assert_eq!(image.tree.lookup(b"var/link"), image.tree.lookup(b"etc/a"));
    let Kind::Directory(entries) = &image.tree.node(image.tree.lookup(b"var").unwrap()).kind else {
        panic!("var is no directory")
    };
    assert_eq!(entries.keys().map(|name| &**name).collect::<Vec<_>>(), [b"link"]);
    assert_eq!(image.tree.lookup(b"etc/b"), None);
}

#[test]
fn every_sparse_format_of_gnu_tar_gives_the_file_that_was_packed() {
    let directory = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(directory.path().join("sparse")).unwrap();
    let size = 3 << 20;
    file.set_len(size).unwrap();
    let pieces = (0..40_u64).map(|piece| (piece * 70_000, [u8::try_from(piece + 1).unwrap(); 500]));
    for (offset, bytes) in pieces.clone() {
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, offset).unwrap();
    }
    let expected = std::fs::read(directory.path().join("sparse")).unwrap();
    let formats: [&[&str]; 4] = [
        &["--sparse", "--format=gnu"],
        &["--sparse", "--format=posix", "--sparse-version=0.0"],
        &["--sparse", "--format=posix", "--sparse-version=0.1"],
        &["--sparse", "--format=posix", "--sparse-version=1.0"],
    ];
    for options in formats {
        let layer = gnu_tar(directory.path(), options);
        assert!(layer.len() < 1 << 20, "tar found no holes");
        let mut image = Image::new();
        image.apply(&layer).unwrap();
        let id = image.tree.lookup(b"sparse").unwrap();
        let Kind::File(Content::Blocks { first, size: found }) = image.tree.node(id).kind else {
            panic!("it is no large file")
        };
        let file = image.spool.into_file();
        file.set_len(u64::from(first) * 4096 + size).unwrap();
        let mut bytes = vec![0; expected.len()];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, u64::from(first) * 4096).unwrap();
        assert_eq!(found, size);
        assert!(bytes == expected, "{options:?}");
    }
}

#[test]
fn what_leads_out_of_the_image_is_refused() {
    let traversal = |kind: EntryType, path: &[u8], target: &[u8]| {
        let mut header = header(kind, 0);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..path.len()].copy_from_slice(path);
        gnu.linkname[..target.len()].copy_from_slice(target);
        header.set_cksum();
        archive(|builder| builder.append(&header, std::io::empty()).unwrap())
    };
    for layer in [
        traversal(EntryType::Regular, b"../../etc/cron.d/x", b""),
        traversal(EntryType::Regular, b"a/../../x", b""),
        traversal(EntryType::Link, b"shadow", b"../../../etc/shadow"),
        traversal(EntryType::Link, b"shadow", b"/etc/shadow"),
    ] {
        assert!(matches!(Image::new().apply(&layer), Err(LayerError::Tree(_))));
    }
    // A link may point anywhere: it is followed in the guest only.
    Image::new()
        .apply(&traversal(EntryType::Symlink, b"out", b"../../../etc/shadow"))
        .unwrap();
}

#[test]
fn an_archive_that_is_cut_anywhere_is_truncated_and_never_shorter() {
    let layer = archive(|builder| {
        add_file(builder, &"long/".repeat(60), b"");
        add_file(builder, "a", &[b'x'; 1000]);
    });
    for len in (0..layer.len() - 1024).step_by(7) {
        let applied = Image::new().apply(&layer[..len]);
        let content = matches!(&applied, Err(LayerError::Content { .. }));
        assert!(
            content || matches!(applied, Err(LayerError::Tar(TarError::Truncated))),
            "cut at {len}"
        );
    }
}

#[test]
fn a_bomb_is_refused_at_its_limit_and_not_unpacked() {
    let limits = Limits {
        entries: 50,
        bytes: 1 << 20,
        metadata: 10_000,
        layers: 1,
    };
    let entries = archive(|builder| (0..60).for_each(|number| add_file(builder, &format!("f{number}"), b"")));
    let metadata =
        archive(|builder| (0..30).for_each(|number| add_file(builder, &format!("{number:0>200}/{number:0>200}"), b"")));
    let mut lying = header(EntryType::Regular, 0);
    lying.set_size(1 << 40);
    lying.set_path("huge").unwrap();
    lying.set_cksum();
    let mut long_name = header(EntryType::GNULongName, 1 << 40);
    long_name.set_cksum();
    let of = |applied: Result<(), LayerError>| applied.unwrap_err().to_string();
    assert_eq!(
        of(Image::limited(limits).apply(&entries)),
        "it has more than 50 entries"
    );
    assert!(of(Image::limited(limits).apply(&metadata)).contains("names and attributes"));
    assert!(of(Image::limited(limits).apply(lying.as_bytes())).contains("1 MiB unpacked"));
    assert!(of(Image::limited(limits).apply(long_name.as_bytes())).contains("longer than it may be"));
}

#[test]
fn extended_headers_without_end_are_refused_at_their_limit() {
    let records = b"23 GNU.sparse.offset=1\n".repeat(20_000);
    for kind in [EntryType::XHeader, EntryType::XGlobalHeader] {
        let layer = archive(|builder| {
            let header = header(kind, records.len() as u64);
            for _ in 0..3 {
                let mut header = header.clone();
                header.set_path("headers").unwrap();
                header.set_cksum();
                builder.append(&header, records.as_slice()).unwrap();
            }
        });
        let error = Image::new().apply(&layer).unwrap_err().to_string();
        assert_eq!(error, "the extended header of 'headers' is longer than it may be");
    }
}

#[test]
fn a_checksum_behind_the_archive_is_looked_at() {
    let layer = archive(|builder| add_file(builder, "a", &[7; 5000]));
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&layer).unwrap();
    let mut packed = encoder.finish().unwrap();
    let crc = packed.len() - 6;
    packed[crc] ^= 1;
    let mut image = Image::new();
    let mut plain = Decompressed::new(packed.as_slice()).unwrap();
    let applied = apply(
        &mut plain,
        Whiteouts::Apply,
        &mut image.tree,
        &mut image.spool,
        &mut image.budget,
    );
    assert!(matches!(applied, Err(LayerError::Rest(_))), "{applied:?}");
}

#[test]
fn what_comes_behind_the_archive_counts_as_its_files_do() {
    let limits = Limits {
        bytes: 1 << 20,
        ..Limits::default()
    };
    let layer = archive(|builder| add_file(builder, "a", &[7; 5000]));
    let endless = |bytes: u64| layer.as_slice().chain(io::repeat(0).take(bytes));
    for (bytes, fits) in [(1 << 19, true), (u64::MAX, false)] {
        let Image { tree, spool, budget } = &mut Image::limited(limits);
        let applied = apply(&mut endless(bytes), Whiteouts::Apply, tree, spool, budget);
        assert_eq!(applied.is_ok(), fits, "{applied:?}");
    }
}

#[test]
fn files_named_like_whiteouts_are_files_where_nothing_lies_below() {
    let layer = archive(|builder| add_file(builder, "a/.wh.b", b"kept"));
    let mut image = Image::new();
    let Image { tree, spool, budget } = &mut image;
    apply(&mut layer.as_slice(), Whiteouts::Keep, tree, spool, budget).unwrap();
    assert_eq!(image.file("a/.wh.b"), b"kept");
    assert!(matches!(image.tree.node(NodeId::ROOT).kind, Kind::Directory(_)));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_or_grow(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let _ = Image::new().apply(&bytes);
    }

    /// Damage of a sound archive, with its checksums made right again so that it gets far.
    #[test]
    fn no_damage_makes_it_panic_or_grow(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
    ) {
        let mut layer = archive(|builder| {
            builder.append_pax_extensions([("mtime", b"1.5".as_slice()), ("SCHILY.xattr.user.a", b"b")]).unwrap();
            add_file(builder, "a", b"abc");
            let mut sparse = header(EntryType::GNUSparse, 512);
            let gnu = sparse.as_gnu_mut().unwrap();
            gnu.set_real_size(4096);
            gnu.sparse[0].set_offset(1024);
            gnu.sparse[0].set_length(512);
            sparse.set_path("sparse").unwrap();
            sparse.set_cksum();
            builder.append(&sparse, [1_u8; 512].as_slice()).unwrap();
        });
        for (index, value) in changes {
            let at = index.index(layer.len());
            layer[at] = value;
        }
        let blocks = layer.chunks_exact_mut(512);
        for block in blocks.filter(|block| block.iter().any(|&byte| byte != 0)) {
            let mut header = Header::from_byte_slice(block).clone();
            header.set_cksum();
            if Header::from_byte_slice(block).cksum().is_ok() {
                block.copy_from_slice(header.as_bytes());
            }
        }
        let _ = Image::new().apply(&layer);
    }
}
