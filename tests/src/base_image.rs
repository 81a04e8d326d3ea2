//! A small image, made by hand: what busybox has, two users and a few files.

use std::fs;
use std::os::unix::fs::symlink;

use crate::msb::Msb;

/// The programs of busybox that the image has.
const PROGRAMS: [&str; 20] = [
    "sh", "cat", "chmod", "chown", "cp", "date", "echo", "grep", "httpd", "id", "ls", "mkdir", "mkfifo", "mv", "nc",
    "readlink", "rm", "sleep", "stat", "touch",
];

impl Msb {
    /// Imports the image `base:1`.
    ///
    /// # Panics
    /// When busybox-static is not installed, or the import fails.
    pub fn import_base(&self) {
        let root = self.scratch("root");
        for directory in ["bin", "etc/skel", "opt/dir", "home/app", "root"] {
            fs::create_dir_all(root.join(directory)).expect("the test's directory is writable");
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
        for program in PROGRAMS {
            symlink("busybox", root.join("bin").join(program)).expect("the test's directory is writable");
        }
        let passwd = "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n";
        for (path, contents) in [
            ("etc/passwd", passwd),
            ("etc/group", "root:x:0:\napp:x:1000:\n"),
            ("etc/motd", "gone"),
            ("etc/skel/old", "old"),
            ("opt/dir/file", "moved"),
        ] {
            fs::write(root.join(path), contents).expect("the test's directory is writable");
        }
        self.run(["image", "import", "--quiet", &root.to_string_lossy(), "base:1"])
            .expect(0);
    }
}
