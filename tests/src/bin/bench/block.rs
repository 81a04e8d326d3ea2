//! The block device alone: a program in the guest reads and writes a disk past the guest's page cache.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::time::Instant;

use msb_tests::Msb;

use crate::figure::Figure;
use crate::guest;

const DISK: &str = "/dev/vda";
/// Bytes of a large request, and of a small one.
const LARGE: usize = 1 << 20;
const SMALL: usize = 4 << 10;
/// Small reads of one sample.
const SMALL_READS: u64 = 500;

/// Measures with a disk of `disk_mib` MiB, which is in the page cache of the host.
pub(crate) fn measure(samples: usize, disk_mib: usize) -> Vec<Figure> {
    let msb = Msb::in_memory();
    let disk = msb.scratch("disk");
    std::fs::write(&disk, vec![7; disk_mib << 20]).expect("there is space");
    let sandbox = guest::start(&msb, "block", &["--disk", &disk.to_string_lossy()]);
    let mut figures = [
        Figure::warm("block: reads of 1 MiB", "MiB/s"),
        Figure::warm("block: writes of 1 MiB", "MiB/s"),
        Figure::warm("block: reads of 4 KiB, one at a time", "1/s"),
    ];
    for _ in 0..samples {
        let rates = guest::run(&sandbox, "block");
        for (figure, rate) in figures.iter_mut().zip(rates.split_whitespace()) {
            figure.add(rate.parse().expect("the guest prints numbers"));
        }
    }
    figures.into()
}

/// The guest's end: prints the three rates.
pub(crate) fn report() -> io::Result<()> {
    let mut options = OpenOptions::new();
    let disk = options.read(true).write(true).custom_flags(libc::O_DIRECT).open(DISK)?;
    let size = rustix::fs::seek(&disk, rustix::fs::SeekFrom::End(0))?;
    let mut space = vec![7; 2 * LARGE];
    let start = space.as_ptr().align_offset(SMALL);
    let buffer = &mut space[start..start + LARGE];
    let reads = rate(size / LARGE as u64, |place| {
        disk.read_exact_at(buffer, place * LARGE as u64)
    })?;
    let writes = rate(size / LARGE as u64, |place| {
        disk.write_all_at(buffer, place * LARGE as u64)
    })?;
    let small = rate(SMALL_READS, |turn| read_small(&disk, &mut buffer[..SMALL], turn, size))?;
    println!("{reads} {writes} {small}");
    Ok(())
}

/// Reads a page somewhere: the places of the turns are far from each other.
fn read_small(disk: &File, page: &mut [u8], turn: u64, size: u64) -> io::Result<()> {
    let pages = size / SMALL as u64;
    disk.read_exact_at(page, turn * 7919 % pages * SMALL as u64)
}

/// How often a second `work` can be done, which is done `times` times.
fn rate(times: u64, mut work: impl FnMut(u64) -> io::Result<()>) -> io::Result<f64> {
    let began = Instant::now();
    (0..times).try_for_each(&mut work)?;
    Ok(f64::from(u32::try_from(times).unwrap_or(u32::MAX)) / began.elapsed().as_secs_f64())
}
