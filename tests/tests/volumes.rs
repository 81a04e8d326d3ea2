//! Directories and files of the host in a guest.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use msb_tests::{Msb, Sandbox, finish, sha256_of_file};
use rustix::process::{Pid, Signal, kill_process};

/// Somebody without any right.
const USER: u32 = 54321;

/// A directory of the test, as an option's value at `guest`.
fn option(host: &Path, guest: &str) -> String {
    format!("{}:{guest}", host.display())
}

fn shared(msb: &Msb, name: &str) -> PathBuf {
    let path = msb.scratch(name);
    fs::create_dir(&path).unwrap();
    path
}

fn digest_in_guest(sandbox: &Sandbox<'_>, path: &str) -> String {
    let line = sandbox.ssh(&format!("sha256sum {path}")).expect(0).text();
    line.split(' ').next().unwrap().to_owned()
}

fn server(sandbox: &Sandbox<'_>, index: usize) -> Option<Pid> {
    let pid = sandbox.inspect()["volumes"][index]["server"]["pid"].as_i64()?;
    Pid::from_raw(i32::try_from(pid).unwrap())
}

#[test]
fn files_pass_both_ways_unchanged_and_changes_are_seen_at_once() {
    let msb = Msb::new();
    let (host, ro) = (shared(&msb, "host"), shared(&msb, "ro"));
    let large: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    fs::write(host.join("from-host"), &large).unwrap();
    fs::write(ro.join("fixed"), "fixed").unwrap();
    fs::write(msb.scratch("one"), "first").unwrap();
    let options = [
        option(&host, "/mnt/deep/host"),
        option(&ro, "/ro") + ":ro",
        option(&msb.scratch("one"), "/etc/one"),
    ];
    let sandbox = msb.create_with("both", &["-v", &options[0], "--volume", &options[1], "-v", &options[2]]);

    assert_eq!(
        digest_in_guest(&sandbox, "/mnt/deep/host/from-host"),
        sha256_of_file(&host.join("from-host"))
    );
    let script = "cd /mnt/deep/host && cat from-host from-host >from-guest && sync && mkdir -p a/b && mv from-host a/b/moved \
                  && ln a/b/moved linked && ln -s ../../outside soft && touch -d @1000000000 a && echo more >>a/b/moved \
                  && dd if=/dev/zero of=sparse bs=1 count=1 seek=100000000 2>/dev/null && truncate -s 5 linked \
                  && printf x >\"$(printf '\\377\\001 odd')\" && stat -c %h linked && cat linked | od -An -tx1";
    assert_eq!(sandbox.ssh(script).expect(0).text(), "2\n 00 00 00 00 01\n");
    assert_eq!(
        fs::read(host.join("from-guest")).unwrap(),
        [large.as_slice(), &large].concat()
    );
    assert_eq!(fs::read(host.join("a/b/moved")).unwrap(), large[..5]);
    assert_eq!(fs::metadata(host.join("linked")).unwrap().nlink(), 2);
    assert_eq!(fs::metadata(host.join("a")).unwrap().mtime(), 1_000_000_000);
    assert_eq!(fs::read_link(host.join("soft")).unwrap(), Path::new("../../outside"));
    let sparse = fs::metadata(host.join("sparse")).unwrap();
    assert!(sparse.len() == 100_000_001 && sparse.blocks() < 1000, "{sparse:?}");
    let odd = std::os::unix::ffi::OsStrExt::from_bytes(b"\xff\x01 odd");
    assert_eq!(fs::read(host.join::<&std::ffi::OsStr>(odd)).unwrap(), b"x");

    // A file that the guest holds open while the host writes to it, replaces and removes others.
    let steps = "cd /mnt/deep/host && exec 3<from-guest && head -c 4 <&3 | od -An -tx4 && cat news 2>&1; read -r go; \
                 cat news && test ! -e sparse && cat from-guest && read -r go; cat news";
    let mut watching = sandbox.ssh_command(steps);
    watching
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped());
    let mut watching = watching.spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(watching.stdout.take().unwrap()));
    let mut next = || lines.next().unwrap().unwrap();
    assert_eq!(next(), " 00000000");
    assert!(next().contains("No such file"));
    fs::write(host.join("news"), "one\n").unwrap();
    fs::remove_file(host.join("sparse")).unwrap();
    fs::write(host.join("from-guest"), "short now\n").unwrap();
    let mut stdin = watching.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, b"go\n").unwrap();
    assert_eq!((next().as_str(), next().as_str()), ("one", "short now"));
    fs::write(host.join("news.new"), "two, longer\n").unwrap();
    fs::rename(host.join("news.new"), host.join("news")).unwrap();
    std::io::Write::write_all(&mut stdin, b"go\n").unwrap();
    assert_eq!(next(), "two, longer");
    assert!(watching.wait().unwrap().success());

    // Read-only is what the host says, whatever the guest's mount says.
    assert_eq!(sandbox.ssh("cat /ro/fixed").expect(0).text(), "fixed");
    let tried = sandbox.ssh("mount -o remount,rw /ro && (echo x >/ro/new; rm /ro/fixed; echo y >/ro/fixed) 2>&1");
    assert_eq!(tried.text().matches("Read-only file system").count(), 3, "{tried:?}");
    assert_eq!(fs::read_dir(&ro).unwrap().count(), 1);

    assert_eq!(
        sandbox.ssh("cat /etc/one && printf second >/etc/one").expect(0).text(),
        "first"
    );
    assert_eq!(fs::read_to_string(msb.scratch("one")).unwrap(), "second");
    let mounts = sandbox.ssh("grep virtiofs /proc/mounts").expect(0).text();
    assert!(
        mounts.lines().count() == 3 && mounts.lines().all(|line| line.contains("nosuid,nodev")),
        "{mounts}"
    );
}

#[test]
fn nothing_outside_of_the_directory_is_reached() {
    let msb = Msb::new();
    let host = shared(&msb, "host");
    fs::write(msb.scratch("secret"), "secret").unwrap();
    symlink("../secret", host.join("link")).unwrap();
    symlink("/proc/sys/kernel/hostname", host.join("absolute")).unwrap();
    let sandbox = msb.create_with("confined", &["-v", &option(&host, "/v")]);
    // Links are the guest's to follow, in the guest.
    let script = "cd /v; cat link; cat absolute; ln -s /proc/1/root/etc/shadow magic; cat magic; ls ..; \
                  mknod null c 1 3; mknod disk b 8 0; mkfifo pipe && test -p pipe && ls -a";
    let seen = sandbox.ssh(&format!("({script}) 2>&1")).text();
    assert!(
        !seen.contains("secret") && seen.contains("'link': No such file"),
        "{seen}"
    );
    assert_eq!(seen.matches("Operation not permitted").count(), 2, "{seen}");
    assert!(seen.contains("confined"), "the guest's own host name: {seen}");
    assert_eq!(fs::read_to_string(msb.scratch("secret")).unwrap(), "secret");
    assert!(host.join("magic").is_symlink());

    // The server itself sees nothing else.
    let pid = server(&sandbox, 0).unwrap().as_raw_nonzero();
    let proc = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    let status = proc("status");
    for line in [
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        assert!(status.contains(line), "{line}: {status}");
    }
    assert_eq!(proc("mountinfo").lines().count(), 1, "{}", proc("mountinfo"));
    assert!(
        proc("mountinfo").contains("nosuid,nodev,noexec"),
        "{}",
        proc("mountinfo")
    );
    let mut inside = fs::read_dir(format!("/proc/{pid}/root")).unwrap();
    assert!(inside.all(|entry| host.join(entry.unwrap().file_name()).symlink_metadata().is_ok()));
    for namespace in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{namespace}");
    }
    let layers = &sandbox.inspect()["volumes"][0]["server"]["layers"];
    assert!(
        layers["namespaces"] == true && layers["landlock"].as_u64().unwrap() > 0,
        "{layers}"
    );
}

#[test]
fn a_directory_that_becomes_a_link_while_the_guest_reads_shows_nothing_else() {
    const ROUNDS: usize = 60;
    let msb = Msb::new();
    let host = shared(&msb, "host");
    let outside = shared(&msb, "outside");
    fs::write(outside.join("file"), "secret\n").unwrap();
    fs::create_dir(host.join("real")).unwrap();
    fs::write(host.join("real/file"), "public\n").unwrap();
    symlink(&outside, host.join("evil")).unwrap();
    fs::rename(host.join("real"), host.join("swapped")).unwrap();
    let sandbox = msb.create_with("race", &["-v", &option(&host, "/v")]);
    let done = AtomicBool::new(false);
    let (seen, swaps) = std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let mut swaps = 0;
            while !done.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let cwd = rustix::fs::CWD;
                rustix::fs::renameat_with(cwd, host.join("swapped"), cwd, host.join("evil"), flags).unwrap();
                swaps += 1;
            }
            swaps
        });
        let script = format!(
            "cd /v; i=0; while [ $i -lt {ROUNDS} ]; do cat swapped/file; echo x >swapped/made; i=$((i+1)); done"
        );
        let seen = sandbox.ssh(&format!("({script}) 2>/dev/null; true")).expect(0).text();
        done.store(true, Ordering::Relaxed);
        (seen, swapper.join().unwrap())
    });
    assert!(swaps > ROUNDS, "{swaps}");
    assert!(!seen.contains("secret"), "{seen}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "nothing was made outside");
    assert!(sandbox.ssh("ls /v").expect(0).text().contains("swapped"));
}

#[test]
fn what_a_guest_writes_belongs_to_whose_the_directory_is() {
    let msb = Msb::new();
    let (theirs, roots) = (shared(&msb, "theirs"), shared(&msb, "roots"));
    chown(&theirs, Some(USER), Some(USER)).unwrap();
    fs::write(roots.join("private"), "private").unwrap();
    fs::set_permissions(roots.join("private"), fs::Permissions::from_mode(0o600)).unwrap();
    chown(roots.join("private"), Some(USER), Some(USER)).unwrap();
    let options = [option(&theirs, "/theirs"), option(&roots, "/roots")];
    let sandbox = msb.create_with("owners", &["-v", &options[0], "-v", &options[1]]);
    let script = "for d in /theirs /roots; do echo x >$d/file && stat -c %u:%g $d/file; chmod 4755 $d/file 2>&1; \
                  chown 1000 $d/file 2>&1; done; cat /roots/private 2>&1; stat -c %u /roots/private";
    let said = sandbox.ssh(script).text();
    assert_eq!(said.matches("0:0\n").count(), 2, "{said}");
    assert_eq!(said.matches("Operation not permitted").count(), 4, "{said}");
    assert!(
        said.contains("Permission denied") && said.ends_with("65534\n"),
        "{said}"
    );
    let owner = |path: &Path| {
        let metadata = fs::metadata(path.join("file")).unwrap();
        (metadata.uid(), metadata.mode() & 0o7777)
    };
    assert_eq!((owner(&theirs), owner(&roots)), ((USER, 0o644), (0, 0o644)));

    // Who insists on everything has no process of root that faces a guest.
    let strict = msb
        .run(["run", "--isolation=strict", "-v", &options[1], "--", "true"])
        .refusal();
    assert!(
        strict.contains("belongs to root") && strict.contains("--isolation=strict"),
        "{strict}"
    );
    let strict = msb.run([
        "run",
        "--isolation=strict",
        "-v",
        &options[0],
        "--",
        "cat",
        "/theirs/file",
    ]);
    assert_eq!(strict.expect(0).text(), "x\n");
}

#[test]
fn two_thousand_files_are_listed_read_and_removed() {
    const FILES: usize = 2000;
    let msb = Msb::new();
    let host = shared(&msb, "host");
    for index in 0..FILES {
        fs::write(host.join(format!("file{index}")), index.to_string()).unwrap();
    }
    let sandbox = msb.create_with("many", &["-v", &option(&host, "/v")]);
    let counted = sandbox
        .ssh("cd /v && ls >/tmp/names && wc -l </tmp/names && sort -u /tmp/names | wc -l && cat file1999")
        .expect(0)
        .text();
    assert_eq!(counted, "2000\n2000\n1999");
    let left = sandbox
        .ssh("cd /v && rm file1* && set -- * && echo $#")
        .expect(0)
        .text();
    assert_eq!((left.as_str(), fs::read_dir(&host).unwrap().count()), ("889\n", 889));
}

#[test]
fn errors_of_the_host_are_those_of_the_guest() {
    let msb = Msb::new();
    let small = shared(&msb, "small");
    finish(
        Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "none"])
            .arg(&small),
    )
    .expect(0);
    let sandbox = msb.create_with("errors", &["-v", &option(&small, "/small")]);
    let full = sandbox
        .ssh("dd if=/dev/zero of=/small/f bs=64k count=64 2>&1; rm /small/f; echo fits >/small/g && cat /small/g");
    let unmounted = finish(Command::new("umount").arg("--lazy").arg(&small));
    let said = full.expect(0).text();
    assert!(
        said.contains("No space left on device") && said.ends_with("fits\n"),
        "{said}"
    );
    unmounted.expect(0);
}

#[test]
fn a_volume_survives_stop_pause_and_its_server_does_not_outlive_it() {
    let msb = Msb::new();
    let (host, other) = (shared(&msb, "host"), shared(&msb, "other"));
    let options = [option(&host, "/v"), option(&other, "/w")];
    let sandbox = msb.create_with("lives", &["-v", &options[0], "-v", &options[1]]);
    sandbox.ssh("echo one >/v/file").expect(0);
    let first = server(&sandbox, 0).unwrap();
    msb.run(["stop", "lives"]).expect(0);
    assert!(server(&sandbox, 0).is_none());
    assert!(!Path::new(&format!("/proc/{}", first.as_raw_nonzero())).exists());
    msb.run(["start", "lives"]).expect(0);
    assert_eq!(sandbox.ssh("cat /v/file").expect(0).text(), "one\n");
    msb.run(["pause", "lives"]).expect(0);
    fs::write(host.join("file"), "two, while it stood still\n").unwrap();
    msb.run(["resume", "lives"]).expect(0);
    assert_eq!(
        sandbox.ssh("cat /v/file").expect(0).text(),
        "two, while it stood still\n"
    );

    let directory = msb.scratch("saved");
    for verb in [
        vec!["snapshot", "lives", directory.to_str().unwrap()],
        vec!["fork", "lives"],
    ] {
        let refusal = msb.run(&verb).refusal();
        assert!(refusal.contains("volumes"), "{refusal}");
    }
    assert_eq!(msb.state("lives"), "running");

    // One that is killed takes its files with it, and nothing else.
    kill_process(server(&sandbox, 0).unwrap(), Signal::KILL).unwrap();
    let gone = sandbox
        .ssh("cat /v/file 2>&1; echo x >/w/still && cat /w/still")
        .expect(0)
        .text();
    assert!(gone.contains("Input/output error") && gone.ends_with("x\n"), "{gone}");
    assert!(sandbox.inspect()["volumes"][0]["server"].is_null());
    assert!(server(&sandbox, 1).is_some());
    let log = msb.run(["logs", "--vmm", "lives"]).expect(0).text();
    assert!(log.contains("the server of a volume is gone"), "{log}");

    let left = server(&sandbox, 1).unwrap();
    kill_process(sandbox.vmm(), Signal::KILL).unwrap();
    msb.run(["wait", "lives"]).expect(1);
    msb.run(["rm", "lives"]).expect(0);
    assert!(!Path::new(&format!("/proc/{}", left.as_raw_nonzero())).exists());
    assert_eq!(msb.leftovers(), [""; 0]);
}

#[test]
fn a_user_shares_what_is_theirs_without_root() {
    let msb = Msb::new();
    let host = shared(&msb, "host");
    chown(msb.home().parent().unwrap(), Some(USER), Some(USER)).unwrap();
    chown(&host, Some(USER), Some(USER)).unwrap();
    fs::write(msb.scratch("one"), "one file").unwrap();
    fs::set_permissions("/dev/kvm", fs::Permissions::from_mode(0o666)).unwrap();
    let mut run = msb.command_of("setpriv");
    let user = USER.to_string();
    run.args([
        "--reuid",
        &user,
        "--regid",
        &user,
        "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
    ]);
    run.args([
        "msb",
        "run",
        "-v",
        &option(&host, "/v"),
        "-v",
        &(option(&msb.scratch("one"), "/one") + ":ro"),
        "--",
    ]);
    let script =
        "echo mine >/v/file && ln /v/file /v/link && stat -c %u /v/file && cat /one && echo x 2>/dev/null >/one";
    let said = finish(run.args(["sh", "-c", script]).current_dir("/"));
    assert_eq!((said.code, said.text().as_str()), (Some(1), "0\none file"), "{said:?}");
    let file = fs::metadata(host.join("file")).unwrap();
    assert_eq!((file.uid(), file.gid(), file.nlink()), (USER, USER, 2));
    assert_eq!(msb.leftovers(), [""; 0]);
}

#[test]
fn a_volume_that_cannot_be_is_refused_before_anything_is_made() {
    let msb = Msb::new();
    let host = shared(&msb, "host");
    let path = host.display();
    let refused = [
        (format!("{path}/absent:/v"), "cannot use the volume"),
        (format!("{path}:relative"), "must be absolute"),
        (format!("{path}:/v/../etc"), "must be absolute"),
        (format!("{path}:/"), "the guest's own"),
        (format!("{path}:/proc"), "the guest's own"),
        ("/dev/null:/v".to_owned(), "neither a directory nor a file"),
        (format!("{path}"), "write HOST:GUEST"),
    ];
    for (option, reason) in refused {
        let refusal = msb.run(["create", "-v", &option]);
        assert!(
            refusal.code != Some(0) && refusal.stderr.contains(reason),
            "{option}: {refusal:?}"
        );
    }
    let twice = msb
        .run(["create", "-v", &option(&host, "/v"), "-v", &option(&host, "/v/")])
        .refusal();
    assert!(twice.contains("two volumes"), "{twice}");
    assert_eq!(msb.leftovers(), [""; 0]);
}
