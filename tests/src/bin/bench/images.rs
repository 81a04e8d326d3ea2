//! A Debian image: importing it, the starts of a sandbox of it, and what ten of them take on the disk.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Instant;

use msb_tests::Msb;

use crate::figure::Figure;

/// How many sandboxes of one image there are at once in the end.
const SANDBOXES: usize = 10;

/// Measures with the root file system in the archive `rootfs`.
pub(crate) fn measure(samples: usize, rootfs: &Path) -> Vec<Figure> {
    let rootfs_path = rootfs.to_string_lossy();
    let mut size = Figure::cold("archive of the image", "MiB");
    size.add(mib(std::fs::metadata(rootfs).map_or(0, |file| file.len())));
    let mut import = Figure::cold("msb image import", "ms");
    let mut first = Figure::cold("first start of a sandbox: msb create, with its disk formatted", "ms");
    let mut second = Figure::cold("second start of a sandbox: msb start", "ms");
    let mut image = Figure::cold("the image on the disk", "MiB");
    let mut sandbox = Figure::cold("a new sandbox on the disk", "MiB");
    let mut ten = Figure::cold("ten sandboxes and their image on the disk", "MiB");
    for _ in 0..samples {
        let msb = Msb::in_memory();
        import.add(millis(
            &msb,
            &["image", "import", "--quiet", &rootfs_path, "debian:bench"],
        ));
        first.add(millis(&msb, &["create", "--name", "box0", "debian:bench"]));
        msb.run(["stop", "box0"]).expect(0);
        second.add(millis(&msb, &["start", "box0"]));
        msb.run(["stop", "box0"]).expect(0);
        for number in 1..SANDBOXES {
            let name = format!("box{number}");
            msb.run(["create", "--name", &name, "debian:bench"]).expect(0);
            msb.run(["stop", &name]).expect(0);
        }
        let (images, sandboxes) = (usage(&msb.home().join("images")), usage(&msb.home().join("sandboxes")));
        image.add(mib(images));
        sandbox.add(mib(sandboxes / SANDBOXES as u64));
        ten.add(mib(images + sandboxes));
    }
    vec![size, import, first, second, image, sandbox, ten]
}

fn millis(msb: &Msb, arguments: &[&str]) -> f64 {
    let began = Instant::now();
    msb.run(arguments).expect(0);
    began.elapsed().as_secs_f64() * 1e3
}

fn mib(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)) / 1024.0
}

/// What the files in a directory take on the disk, in bytes: without holes.
fn usage(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => usage(&entry.path()),
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}
