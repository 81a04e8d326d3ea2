//! Archives that were made to do harm, by the command.

use std::io::Write as _;
use std::process::{Command, Stdio};

use msb_test_support::pattern;
use tar::{Builder, EntryType, Header};

use super::{Machine, assert_sound, docker_archive, tar_of};

/// One entry, its name and target just as they are given.
fn entry(kind: EntryType, name: &str, target: &str, size: u64) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(size);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.name[..name.len()].copy_from_slice(name.as_bytes());
    gnu.linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 1024]].concat()
}

#[test]
fn no_name_and_no_link_leads_out_of_the_image() {
    let machine = Machine::new();
    let outside = machine.path("outside");
    std::fs::create_dir(&outside).unwrap();
    let canary = outside.to_str().unwrap();
    let file = |name: &str| entry(EntryType::Regular, name, "", 0);
    let climbing = format!("../../../../../..{canary}/file");
    let absolute = format!("{canary}/file");
    let link = entry(EntryType::Symlink, "link", canary, 0);
    let refused = [
        ("climbing", vec![file(&climbing)]),
        ("climbing later", vec![file("a/../../b")]),
        ("climbing whiteout", vec![file("../.wh.b")]),
        (
            "hard link up",
            vec![entry(EntryType::Link, "passwd", "../../etc/passwd", 0)],
        ),
        (
            "hard link to the host",
            vec![entry(EntryType::Link, "passwd", "/etc/passwd", 0)],
        ),
        (
            "hard link through a link",
            vec![
                entry(EntryType::Symlink, "etc", "/etc", 0),
                entry(EntryType::Link, "passwd", "etc/passwd", 0),
            ],
        ),
    ];
    let taken = [
        ("absolute", vec![file(&absolute)]),
        ("through a link", vec![link.clone(), file("link/file")]),
        ("whiteout through a link", vec![link, file("link/.wh.file")]),
    ];
    std::fs::write(outside.join("file"), "the host's").unwrap();
    for (what, entries) in &refused {
        for (kind, contents) in both(&archive(entries)) {
            let path = machine.write("archive", &contents);
            let error = machine.refused(&["image", "import", &path, "bad:1"]);
            assert!(
                error.contains(&path) || error.contains("layer 1"),
                "{what}, {kind}: {error}"
            );
        }
    }
    for (what, entries) in &taken {
        for (kind, contents) in both(&archive(entries)) {
            let path = machine.write("archive", &contents);
            let id = machine.text(&["image", "import", &path, "odd:1"]);
            assert_sound(&machine, &id);
            let kept = std::fs::read_to_string(outside.join("file"));
            assert_eq!(kept.ok().as_deref(), Some("the host's"), "{what}, {kind}");
        }
    }
}

/// A root file system, and an image with that as its layer.
fn both(tar: &[u8]) -> [(&'static str, Vec<u8>); 2] {
    let image = docker_archive("bad:1", std::slice::from_ref(&tar.to_vec()));
    [("plain", tar.to_vec()), ("layer", image)]
}

#[test]
fn a_bomb_is_refused_before_it_takes_any_room() {
    let machine = Machine::new();
    // A sparse file of old GNU tar: no piece of it is there, and it claims four EiB.
    let mut sparse = Header::new_gnu();
    sparse.set_path("sparse").unwrap();
    sparse.set_entry_type(EntryType::GNUSparse);
    sparse.set_size(0);
    sparse.set_mode(0o644);
    let size = &mut sparse.as_gnu_mut().unwrap().realsize;
    size.fill(0);
    size[0] = 0x80;
    size[4] = 0x40;
    sparse.set_cksum();
    let sparse = archive(&[sparse.as_bytes().to_vec()]);
    let huge = archive(&[
        entry(EntryType::Regular, "huge", "", 7 << 30),
        entry(EntryType::Regular, "x", "", 0),
    ]);
    let mut many = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_size(1 << 40);
    header.set_path("a terabyte").unwrap();
    header.set_cksum();
    many.append(&header, std::io::empty()).unwrap();
    let terabyte = many.into_inner().unwrap();
    for (what, tar, reason) in [
        ("sparse", sparse, "65536 MiB"),
        ("terabyte", terabyte, "65536 MiB"),
        ("more than there is", huge, "truncated"),
    ] {
        let mut packed = Command::new("gzip");
        let mut packed = packed.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        packed.stdin.take().unwrap().write_all(&tar).unwrap();
        let packed = packed.wait_with_output().unwrap().stdout;
        for contents in [tar, packed] {
            let path = machine.write("bomb", &contents);
            let error = machine.refused(&["image", "import", &path, "bad:1"]);
            assert!(error.contains(reason), "{what}: {error}");
        }
    }
}

#[test]
fn ten_million_entries_are_refused_at_the_limit_in_little_memory() {
    let machine = Machine::new();
    let mut import = Command::new("sh");
    import.args([
        "-c",
        "ulimit -v 1500000 && exec \"$@\"",
        "sh",
        env!("CARGO_BIN_EXE_msb"),
    ]);
    import.args(["image", "import", "-", "bad:1"]);
    import.env("MSB_HOME", machine.path("home"));
    let import = import.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut import = import.unwrap();
    let mut stdin = import.stdin.take().unwrap();
    let written = std::thread::spawn(move || {
        let thousands = (0..10_000_000).step_by(1000);
        thousands
            .take_while(|first| stdin.write_all(&entries(*first..first + 1000)).is_ok())
            .count()
    });
    let output = import.wait_with_output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125), "{error}");
    assert!(error.contains("more than 1000000 entries"), "{error}");
    assert!(written.join().unwrap() < 2000, "it reads on long after it was too much");
    assert_eq!(machine.entries(), [""; 0]);
}

/// Empty files, one in a block.
fn entries(numbers: std::ops::Range<u32>) -> Vec<u8> {
    let block = entry(EntryType::Regular, "f00000000", "", 0);
    let blank: u32 = Header::from_byte_slice(&block).cksum().unwrap();
    let mut archive = Vec::with_capacity(512 * numbers.len());
    for number in numbers {
        let digits = format!("{number:08}");
        let sum = blank + digits.bytes().map(|digit| u32::from(digit - b'0')).sum::<u32>();
        archive.extend(&block);
        let header = archive.len() - 512;
        archive[header + 1..header + 9].copy_from_slice(digits.as_bytes());
        archive[header + 148..header + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    archive
}

#[test]
fn an_archive_that_is_cut_anywhere_is_refused_and_leaves_nothing() {
    let machine = Machine::new();
    let layers = [tar_of(&[("a", &pattern(20_000)), ("b", b"2")]), tar_of(&[("c", b"3")])];
    let docker = docker_archive("app:1", &layers);
    let mut packed = Command::new("gzip");
    let mut packed = packed.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    packed.stdin.take().unwrap().write_all(&docker).unwrap();
    let packed = packed.wait_with_output().unwrap().stdout;
    // Of the blocks of zeros at its end, an archive needs only the first.
    let needed = docker.len() - docker.iter().rev().take_while(|byte| **byte == 0).count();
    for (what, whole, end) in [("plain", &docker, needed), ("gzip", &packed, packed.len())] {
        for random in pattern(60).chunks(4) {
            let cut = u32::from_le_bytes(random.try_into().unwrap()) as usize % end;
            let path = machine.write("cut", &whole[..cut]);
            let error = machine.refused(&["image", "import", &path, "bad:1"]);
            assert!(error.starts_with("msb: cannot"), "{what}, {cut} bytes: {error}");
        }
    }
    assert!(!machine.path("home/images/refs.json").exists());
}
