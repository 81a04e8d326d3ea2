//! Sandboxes of images: what an image says holds in the guest, and what a guest writes stays its own.

use msb_test_support::images::docker_archive;
use msb_tests::{Msb, finish_with_input, sha256};
use serde_json::json;
use tar::{Builder, EntryType, Header};

/// A layer that is put together entry by entry.
struct Layer(Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn header(kind: EntryType, size: u64, mode: u32) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(mode);
        header.set_uid(1000);
        header.set_gid(100);
        header.set_mtime(1_600_000_000);
        header
    }

    fn file(mut self, path: &str, mode: u32, contents: &[u8]) -> Self {
        let mut header = Self::header(EntryType::Regular, contents.len() as u64, mode);
        self.0.append_data(&mut header, path, contents).unwrap();
        self
    }

    fn link(mut self, kind: EntryType, path: &str, target: &str) -> Self {
        let mut header = Self::header(kind, 0, 0o777);
        self.0.append_link(&mut header, path, target).unwrap();
        self
    }

    fn device(mut self, path: &str, major: u32, minor: u32) -> Self {
        let mut header = Self::header(EntryType::Char, 0, 0o666);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.0.append_data(&mut header, path, std::io::empty()).unwrap();
        self
    }

    fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        let name = format!("SCHILY.xattr.{name}");
        self.0.append_pax_extensions([(name.as_str(), value)]).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A static program that is many; the image has no other, and no shell where one is looked for.
fn busybox() -> Vec<u8> {
    std::fs::read("/bin/busybox").expect("busybox-static is installed: scripts/test as root does it")
}

fn import(msb: &Msb, config: &serde_json::Value, layers: &[Vec<u8>]) {
    let archive = msb.scratch("app.tar");
    std::fs::write(&archive, docker_archive("app:1", config, layers)).unwrap();
    msb.run(["image", "import", "--quiet", &archive.to_string_lossy()])
        .expect(0);
}

/// The hash of what was written to the disk, and of names, modes, owners, sizes and times of all there is on it.
const HASH: &str = "cd / && busybox sha256sum data file rounds && \
    busybox find . -xdev -type f -exec busybox stat -c '%n %f %u %g %s %Y' {} + | busybox sort | busybox sha256sum";

const ODD: &str = "odd \u{fc}\n\u{1b}name";

#[test]
fn an_image_without_a_shell_runs_as_it_says_with_its_files_as_they_were_packed() {
    let msb = Msb::new();
    let lower = Layer::new()
        .file("busybox", 0o755, &busybox())
        .file("gone", 0o644, b"")
        .file("covered/old", 0o644, b"")
        .file("kept", 0o4750, b"lower")
        .link(EntryType::Link, "same", "kept")
        .link(EntryType::Symlink, "pointer", "../kept")
        .xattr(
            "security.capability",
            &[1, 0, 0, 2, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        )
        .file("busybox-capable", 0o755, &busybox())
        .device("node", 1, 3)
        .file(ODD, 0o644, b"odd");
    let upper = Layer::new()
        .file(".wh.gone", 0o644, b"")
        .file("covered/.wh..wh..opq", 0o644, b"")
        .file("covered/new", 0o644, b"upper");
    let config = json!({
        "Env": ["PATH=/nowhere", "GREETING=hello from the image"], "User": "1000:100", "WorkingDir": "/made/here",
        "Entrypoint": ["/busybox", "sh", "-c"], "Cmd": ["exit 9"],
    });
    import(&msb, &config, &[lower.bytes(), upper.bytes()]);
    msb.run(["run", "app:1"]).expect(9);
    let script = format!(
        "b=/busybox; $b id -u; $b id -g; $b pwd; echo \"$GREETING\"; $b ls / | $b grep -c -x -e gone -e old; \
         $b ls /covered; $b stat -c '%a %u %g %h %Y' /kept; [ /kept -ef /same ] && echo same; $b readlink /pointer; \
         $b cat /pointer; $b stat -c '%t %T %F' /node; echo x > /node && echo null; $b cat '/{ODD}'; echo; \
         /busybox-capable chroot / /busybox echo capable; $b cat /etc/hostname"
    );
    let run = msb.run(["run", "--name", "app", "app:1", "--", &script]).expect(0);
    let expected = "1000\n100\n/made/here\nhello from the image\n0\nnew\n4750 1000 100 2 1600000000\nsame\n../kept\n\
        lower1 3 character special file\nnull\nodd\ncapable\napp\n";
    assert_eq!(run.text(), expected, "{}", run.stderr);
}

#[test]
fn what_a_sandbox_writes_survives_it_alone_and_only_up_to_its_limit() {
    let msb = Msb::new();
    let image = Layer::new()
        .file("bin/busybox", 0o755, &busybox())
        .file("file", 0o644, b"image");
    let image = image.link(EntryType::Symlink, "bin/sh", "busybox");
    import(&msb, &json!({}), &[image.bytes()]);
    let sandbox = msb.create_with("one", &["--disk-size", "48M", "app:1"]);
    let data: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).collect();
    let digest = sha256(data.clone());
    let mut write = sandbox.ssh_command("cat > /data && echo changed > /file");
    finish_with_input(&mut write, data).expect(0);
    // Ten times: what lies on the disk when the sandbox stops lies there when it has started again.
    for round in 1..=10 {
        let before = sandbox
            .ssh(&format!("echo {round} >> /rounds; {HASH}"))
            .expect(0)
            .text();
        msb.run(["stop", "one"]).expect(0);
        msb.run(["start", "one"]).expect(0);
        assert_eq!(sandbox.ssh(HASH).expect(0).text(), before, "after {round} restarts");
    }
    let read = sandbox
        .ssh("busybox sha256sum /data; busybox cat /file")
        .expect(0)
        .text();
    assert_eq!(read, format!("{digest}  /data\nchanged\n"));
    let fill = "busybox dd if=/dev/zero of=/fill bs=1M; busybox rm /fill; busybox sha256sum /data";
    let filled = sandbox.ssh(fill).expect(0);
    assert!(filled.stderr.contains("No space left on device"), "{}", filled.stderr);
    assert_eq!(filled.text(), format!("{digest}  /data\n"));
    let written = msb
        .home()
        .join("sandboxes")
        .join(sandbox.inspect()["id"].as_str().unwrap());
    let metadata = std::fs::metadata(written.join("writable.img")).unwrap();
    assert_eq!(metadata.len(), 48 << 20);
    let other = msb.run(["run", "app:1", "--", "busybox", "cat", "/file"]).expect(0);
    assert_eq!(other.text(), "image");
}
