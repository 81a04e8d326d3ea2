//! Stock `ssh` against a sandbox that runs.

use std::fs::File;
use std::io::Read;

use msb_tests::{Msb, Sandbox, finish_with_input};

use crate::figure::Figure;

const BULK: usize = 32 << 20;

pub(crate) fn measure(samples: usize) -> Vec<Figure> {
    let msb = Msb::new();
    let sandbox = msb.create("bench");
    let mut session = Figure::new("ssh true", "ms");
    let mut exec = Figure::new("msb exec -- true", "ms");
    let mut download = Figure::new("ssh: 32 MiB download", "ms");
    let mut upload = Figure::new("ssh: 32 MiB upload", "ms");
    sandbox.ssh("true").expect(0);
    let mut bulk = vec![0; BULK];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bulk))
        .expect("random bytes");
    for _ in 0..samples {
        session.add(sandbox.ssh("true").expect(0).took.as_secs_f64() * 1e3);
        exec.add(msb.run(["exec", "bench", "--", "true"]).expect(0).took.as_secs_f64() * 1e3);
        download.add(downloaded(&sandbox));
        let sent = finish_with_input(&mut sandbox.ssh_command("cat > /dev/null"), bulk.clone()).expect(0);
        upload.add(sent.took.as_secs_f64() * 1e3);
    }
    vec![session, exec, download, upload]
}

fn downloaded(sandbox: &Sandbox<'_>) -> f64 {
    let got = sandbox.ssh(&format!("head -c {BULK} /dev/zero")).expect(0);
    assert_eq!(got.stdout.len(), BULK);
    got.took.as_secs_f64() * 1e3
}
