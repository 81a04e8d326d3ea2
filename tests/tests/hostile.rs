//! A guest that attacks its devices from inside harms itself at most.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::chown;
use std::process::Stdio;

use msb_tests::{Msb, finish_with_input, resident_beyond_guest};

/// Seeds of the attacks: one guest each.
const SEEDS: [&str; 2] = ["1", "20261121"];
const ROUNDS: &str = "3000";
/// What a device may need beyond the guest's memory, in KiB, a hundred times what it needs in peace.
const MOST_KIB: u32 = 64 << 10;

/// Whose the volume is: not root's, whose server would be root.
const USER: u32 = 54321;

/// Bytes of the VMM's log that a guest may cause.
const MOST_LOGGED: usize = 16 << 10;

/// The line with which the attacker ends, or what became of it.
fn last_line_of_attacker(msb: &Msb) -> String {
    let mut logs = msb.command(["logs", "--follow", "hostile"]);
    let mut logs = logs.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(logs.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let last = lines.find(|line| line.contains("hostile: done") || line.contains("Kernel panic"));
    logs.kill().unwrap();
    logs.wait().unwrap();
    last.unwrap_or_else(|| "the console ended".into())
}

#[test]
fn a_hostile_driver_breaks_only_its_own_devices() {
    let msb = Msb::new();
    let neighbour = msb.create("neighbour");
    for seed in SEEDS {
        let disk = msb.scratch(&format!("disk-{seed}"));
        fs::write(&disk, vec![0; 64 << 10]).unwrap();
        let beside = msb.scratch(&format!("volume-{seed}"));
        let volume = beside.join("volume");
        fs::create_dir_all(&volume).unwrap();
        chown(&volume, Some(USER), Some(USER)).unwrap();
        fs::write(beside.join("secret"), "secret").unwrap();
        let shared = format!("{}:/v", volume.display());
        let options = [
            "--disk",
            disk.to_str().unwrap(),
            "--volume",
            &shared,
            "--isolation=strict",
        ];
        let sandbox = msb.create_with("hostile", &options);
        let program = fs::read(env!("CARGO_BIN_EXE_hostile")).unwrap();
        let install = "cat > /tmp/hostile && chmod +x /tmp/hostile";
        finish_with_input(&mut sandbox.ssh_command(install), program).expect(0);
        let start = format!("setsid /tmp/hostile {seed} {ROUNDS} </dev/null >/dev/null 2>/dev/kmsg & true");
        sandbox.ssh(&start).expect(0);

        let last = last_line_of_attacker(&msb);

        // The user's disk, the tools, entropy, balloon, vsock and the volume.
        assert!(last.contains("hostile: done, 6 windows"), "seed {seed}: {last}");
        assert_eq!(msb.state("hostile"), "running");
        let overhead = resident_beyond_guest(sandbox.vm(), 256);
        assert!(overhead < MOST_KIB, "seed {seed}: {overhead} KiB");
        assert_eq!(fs::metadata(&disk).unwrap().len(), 64 << 10);
        assert_eq!(fs::read_to_string(beside.join("secret")).unwrap(), "secret");
        assert_eq!(fs::read_dir(&beside).unwrap().count(), 2);
        let vmm_log = msb.run(["logs", "--vmm", "hostile"]).expect(0).text();
        assert!(
            !vmm_log.contains("panicked") && vmm_log.len() < MOST_LOGGED,
            "{vmm_log}"
        );
        msb.run(["rm", "--force", "hostile"]).expect(0);
        assert_eq!(neighbour.ssh("echo fine").expect(0).text(), "fine\n");
    }
    msb.run(["rm", "--force", "neighbour"]).expect(0);
    assert_eq!(msb.leftovers(), [""; 0]);
}
