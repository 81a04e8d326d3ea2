//! A directory of the host in a guest: how fast large files pass, and what asking about many costs.

use std::fs;

use msb_tests::Msb;

use crate::figure::Figure;

/// MiB of the file that is read and written.
const BULK_MIB: u32 = 64;

/// How many files are asked about.
const FILES: usize = 1000;

/// Measures with a directory in memory, so that no disk is measured.
pub(crate) fn measure(samples: usize) -> Vec<Figure> {
    let mut read = Figure::warm("volume: reading a large file that the guest has not cached", "MiB/s");
    let mut write = Figure::warm("volume: writing a large file", "MiB/s");
    let mut first = Figure::warm("volume: ls -l of 1000 files", "ms");
    let mut again = Figure::warm("volume: stat of 1000 files that the guest knows", "ms");
    let msb = Msb::in_memory();
    let directory = tempfile::tempdir_in("/dev/shm").expect("there is space in memory");
    fs::write(directory.path().join("bulk"), vec![7; (BULK_MIB as usize) << 20]).expect("there is space in memory");
    fs::create_dir(directory.path().join("many")).expect("there is space in memory");
    for index in 0..FILES {
        fs::write(directory.path().join(format!("many/{index}")), "").expect("there is space in memory");
    }
    let option = format!("{}:/v", directory.path().display());
    let sandbox = msb.create_with("bench", &["--volume", &option]);
    // The guest's own clock, so that no connection is measured; microseconds.
    let timed = |script: &str| {
        // Not by `print`, which writes most large products with an exponent.
        let clock = r#"awk '{printf "%.0f", $1 * 1000000}' /proc/uptime"#;
        let script =
            format!("begin=$({clock}); {script} >/dev/null 2>&1 || exit; end=$({clock}); echo $((end - begin))");
        let micros: u32 = sandbox
            .ssh(&script)
            .expect(0)
            .text()
            .trim()
            .parse()
            .expect("a number of microseconds");
        f64::from(micros.max(1))
    };
    let rate = |micros: f64| f64::from(BULK_MIB) * 1e6 / micros;
    for _ in 0..samples {
        sandbox.ssh("echo 3 >/proc/sys/vm/drop_caches").expect(0);
        first.add(timed("ls -l /v/many") / 1e3);
        again.add(timed("ls -l /v/many") / 1e3);
        read.add(rate(timed("dd if=/v/bulk of=/dev/null bs=1M")));
        write.add(rate(timed(&format!(
            "dd if=/dev/zero of=/v/written bs=1M count={BULK_MIB}"
        ))));
    }
    vec![read, write, first, again]
}
