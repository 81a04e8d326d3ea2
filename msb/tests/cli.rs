//! What `msb` says and how it ends when it is used wrongly, and what needs no guest.

mod machine;

use std::process::{Command, Output, Stdio};

use machine::Machine;
use msb::Store;
use msb::events::Events;
use msb::store::layout::Layout;
use serde_json::json;

impl Machine {
    fn id_of_new(&self, arguments: &[&str]) -> String {
        let output = self.msb(&[&["create", "--no-start"], arguments].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A kernel and an image that can be found, but not booted.
    fn with_files(self, kernel: &[u8]) -> Self {
        let lib = self.path("lib");
        std::fs::create_dir(&lib).unwrap();
        std::fs::write(lib.join("vmlinux"), kernel).unwrap();
        std::fs::write(lib.join("initramfs.cpio"), b"").unwrap();
        std::fs::write(lib.join("programs.cramfs"), [0; 4096]).unwrap();
        std::fs::write(lib.join("tools.erofs"), b"").unwrap();
        std::fs::copy(env!("CARGO_BIN_EXE_msb-vmm"), lib.join("msb-vmm")).unwrap();
        self
    }

    fn sandboxes(&self) -> Vec<String> {
        let directory = self.path("home").join("sandboxes");
        let entries = std::fs::read_dir(directory).into_iter().flatten();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

/// One line on standard error that contains all of `parts`, nothing on standard output, status 125.
fn assert_refused(output: &Output, parts: &[&str]) {
    assert_fails(output, 125, parts);
}

fn assert_fails(output: &Output, status: i32, parts: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    assert!(output.stdout.is_empty(), "{output:?}");
    assert!(stderr.starts_with("msb: ") && stderr.lines().count() == 1, "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{part:?} is not in: {stderr}");
    }
}

#[test]
fn wrong_usage_is_one_line_and_status_125() {
    let machine = Machine::new();
    assert_refused(&machine.msb(&[]), &["without a verb", "msb --help"]);
    assert_refused(&machine.msb(&["frobnicate"]), &["frobnicate", "msb --help"]);
    assert_refused(
        &machine.msb(&["run", "--memroy", "1G"]),
        &["--memroy", "msb run --help"],
    );
    assert_refused(&machine.msb(&["exec", "box"]), &["COMMAND", "msb exec --help"]);
    assert!(!machine.path("home").exists());
}

#[test]
fn a_vmm_that_nobody_asked_for_says_who_starts_it() {
    let output = Command::new(env!("CARGO_BIN_EXE_msb-vmm")).arg("{}").output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.starts_with("msb-vmm: only msb starts this program"), "{stderr}");
}

#[test]
fn help_and_version_are_data() {
    let machine = Machine::new();
    for arguments in [&["--help"][..], &["--version"], &["run", "--help"]] {
        let output = machine.msb(arguments);
        assert!(
            output.status.success() && output.stderr.is_empty() && !output.stdout.is_empty(),
            "{output:?}"
        );
    }
}

#[test]
fn a_sandbox_that_cannot_be_is_refused_and_leaves_nothing() {
    let machine = Machine::new().with_files(b"");
    let cases: [(&[&str], &[&str]); 9] = [
        (&["--name", "Box"], &["'Box'", "'B'"]),
        (&["--name", "-"], &["'-'"]),
        (&["--name", "0123456789ab"], &["looks like a sandbox id"]),
        (&["--memory", "63M"], &["63M", "at least 64M"]),
        (&["--memory", "4000000G"], &["4000000G"]),
        (&["--memory", "3000000M"], &["more than the", "this host has"]),
        (&["--cpus", "0"], &["1 to 32 CPUs"]),
        (&["--env", "1=2"], &["'1' is no name"]),
        (
            &["--kernel", "/nonexistent/vmlinux"],
            &["/nonexistent/vmlinux", "No such file"],
        ),
    ];
    for (arguments, parts) in cases {
        assert_refused(&machine.msb(&[&["create"], arguments].concat()), parts);
        assert_refused(&machine.msb(&[&["run"], arguments, &["--", "true"]].concat()), parts);
    }
    let missing = ["create", "--authorized-key", "/nonexistent/key.pub"];
    assert_refused(&machine.msb(&missing), &["/nonexistent/key.pub"]);
    assert_eq!(machine.sandboxes(), [""; 0]);
}

#[test]
fn a_name_is_given_once() {
    let machine = Machine::new();
    let id = machine.id_of_new(&["--name", "box"]);
    assert_refused(
        &machine.msb(&["create", "--no-start", "--name", "box"]),
        &["'box' is taken", &id, "msb rm box"],
    );
    assert_eq!(machine.sandboxes(), [id]);
    assert!(machine.msb(&["rm", "box"]).status.success());
    machine.id_of_new(&["--name", "box"]);
}

#[test]
fn of_many_that_want_one_name_at_once_one_gets_it() {
    let machine = Machine::new();
    let creates: Vec<_> = (0..8)
        .map(|_| {
            let mut create = machine.command(&["create", "--no-start", "--name", "box"]);
            create.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let outputs: Vec<Output> = creates
        .into_iter()
        .map(|create| create.wait_with_output().unwrap())
        .collect();
    let (created, refused): (Vec<_>, Vec<_>) = outputs.iter().partition(|output| output.status.success());
    assert_eq!(created.len(), 1, "{outputs:?}");
    let id = String::from_utf8_lossy(&created[0].stdout).trim().to_owned();
    for output in refused {
        assert_refused(output, &["'box' is taken", "msb rm box"]);
    }
    assert_eq!(machine.sandboxes(), [id]);
    let known_hosts = std::fs::read_to_string(machine.path("home/known_hosts")).unwrap();
    assert_eq!(known_hosts.lines().count(), 1, "{known_hosts}");
}

#[test]
fn a_record_that_is_wrong_is_told_by_its_file_and_key() {
    let machine = Machine::new();
    let id = machine.id_of_new(&["--name", "box"]);
    let root = machine.path("root");
    std::fs::create_dir(&root).unwrap();
    assert!(
        machine
            .msb(&["image", "import", root.to_str().unwrap(), "app:1"])
            .status
            .success()
    );
    let of_sandbox = |name: &str| machine.path("home/sandboxes").join(&id).join(name);
    let images = std::fs::read_dir(machine.path("home/images")).unwrap().flatten();
    let image = images
        .map(|entry| entry.path().join("image.json"))
        .find(|path| path.is_file())
        .unwrap();
    let json = |path: &std::path::Path| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    let run = json!({
        "run_id": "a", "process": { "pid": 1, "start_ticks": 1, "boot_id": "b" }, "vm": null,
        "started_at": "2026-01-01T00:00:00Z", "socket": "/s",
    });
    let stamp = "2026-01-01T00:00:00Z";
    let ready = json!({ "run_id": "a", "ready_at": stamp, "agent": "1", "timings": {} });
    let paused = json!({ "run_id": "a", "paused_at": stamp });
    let exit = json!({ "run_id": "a", "ended_at": stamp, "reason": "killed", "message": "m" });
    let deadline = json!({ "run_id": "a", "at": stamp, "boot_time": { "secs": 1, "nanos": 0 }, "end": "stop" });
    let refs = machine.path("home/images/refs.json");
    let cases = [
        (of_sandbox("run.json"), run, "/process/pid", "process.pid"),
        (of_sandbox("ready.json"), ready, "/timings", "timings"),
        (of_sandbox("paused.json"), paused, "/paused_at", "paused_at"),
        (of_sandbox("exit.json"), exit, "/reason", "reason"),
        (of_sandbox("deadline.json"), deadline, "/end", "end"),
        (image.clone(), json(&image), "/config", "config"),
        (refs.clone(), json(&refs), "/docker.io~1library~1app:1", "app:1"),
        // The last: nothing else of the sandbox can be read without it.
        (
            of_sandbox("config.json"),
            json(&of_sandbox("config.json")),
            "/id",
            "at id",
        ),
        (
            of_sandbox("config.json"),
            json(&of_sandbox("config.json")),
            "/spec/cpus",
            "spec.cpus",
        ),
    ];
    for (path, right, pointer, key) in cases {
        let file = path.to_str().unwrap();
        let mut wrong = right.clone();
        *wrong.pointer_mut(pointer).unwrap() = json!(["of another type"]);
        let mut unknown = right.clone();
        unknown["from_the_future"] = json!(1);
        for (value, named) in [(wrong, key), (unknown, "from_the_future")] {
            std::fs::write(&path, value.to_string()).unwrap();
            let verb: &[&str] = if file.contains("images") {
                &["image", "ls"]
            } else {
                &["inspect", "box"]
            };
            assert_refused(&machine.msb(verb), &["cannot understand", file, named]);
        }
        std::fs::write(&path, right.to_string()).unwrap();
        for verb in [&["inspect", "box"][..], &["image", "ls"]] {
            assert!(machine.msb(verb).status.success(), "{path:?}");
        }
    }
}

#[test]
fn a_configuration_of_another_sandbox_is_told() {
    let machine = Machine::new();
    let (id, other) = (machine.id_of_new(&["--name", "box"]), machine.id_of_new(&[]));
    let config = |id: &str| machine.path("home/sandboxes").join(id).join("config.json");
    std::fs::copy(config(&other), config(&id)).unwrap();
    assert_refused(
        &machine.msb(&["inspect", "box"]),
        &[config(&id).to_str().unwrap(), "at id", &other],
    );
}

#[test]
fn what_ran_when_the_host_went_down_is_told_and_can_be_removed() {
    let machine = Machine::new();
    let id = machine.id_of_new(&["--name", "box"]);
    let dir = machine.path("home/sandboxes").join(&id);
    let run = json!({
        "run_id": "a", "process": { "pid": std::process::id(), "start_ticks": 1, "boot_id": "of another boot" },
        "vm": null, "started_at": "2026-01-01T00:00:00Z", "socket": "/s",
    });
    let ready = json!({ "run_id": "a", "ready_at": "2026-01-01T00:00:00Z", "agent": "1", "timings": {} });
    std::fs::write(dir.join("run.json"), run.to_string()).unwrap();
    std::fs::write(dir.join("ready.json"), ready.to_string()).unwrap();
    let inspected: serde_json::Value = serde_json::from_slice(&machine.msb(&["inspect", "box"]).stdout).unwrap();
    assert_eq!(inspected["state"], "crashed");
    let message = inspected["message"].as_str().unwrap();
    assert!(
        message.contains("the host went down") && message.contains("msb start"),
        "{message}"
    );
    assert_refused(&machine.msb(&["ssh", "box"]), &["crashed", "msb start box"]);
    assert!(
        machine.msb(&["stop", "box"]).status.success(),
        "no other process is taken for its own"
    );
    assert!(machine.msb(&["rm", "box"]).status.success());
}

#[test]
fn an_unknown_sandbox_is_named_by_every_verb() {
    let machine = Machine::new();
    for verb in [
        "start",
        "stop",
        "kill",
        "rm",
        "inspect",
        "logs",
        "wait",
        "ssh",
        "ssh-bridge",
        "timeout",
    ] {
        assert_refused(
            &machine.msb(&[verb, "nobody"]),
            &["there is no sandbox 'nobody'", "msb ls"],
        );
    }
    assert_refused(
        &machine.msb(&["exec", "nobody", "--", "true"]),
        &["there is no sandbox 'nobody'"],
    );
    assert!(!machine.path("home").exists());
}

#[test]
fn connecting_to_what_does_not_run_names_the_command_that_starts_it() {
    let machine = Machine::new();
    machine.id_of_new(&["--name", "box"]);
    let verbs: [&[&str]; 4] = [
        &["ssh-bridge", "box.msb"],
        &["ssh-bridge", "--fdpass", "box"],
        &["ssh", "box"],
        &["exec", "box", "--", "true"],
    ];
    for verb in verbs {
        assert_refused(&machine.msb(verb), &["created", "msb start box"]);
    }
}

#[test]
fn a_sandbox_is_shown_with_a_stable_schema() {
    let machine = Machine::new();
    let id = machine.id_of_new(&["--name", "box", "--memory", "1G", "--cpus", "2", "--env", "A=b"]);
    let inspected: serde_json::Value = serde_json::from_slice(&machine.msb(&["inspect", "box"]).stdout).unwrap();
    let listed: serde_json::Value = serde_json::from_slice(&machine.msb(&["ls", "--json"]).stdout).unwrap();
    assert_eq!(listed[0], inspected);
    let keys: Vec<&str> = inspected.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = "agent cmdline cpu_limit cpus created_at deadline directory disk_size_mib disks ended_at env \
                    exit_reason host id image io_limit isolation kernel labels memory_mib message name on_timeout pid \
                    ready_at seconds_left socket ssh started_at state timeout_ms timings vm volumes";
    assert_eq!(keys, expected.split_whitespace().collect::<Vec<_>>());
    for (key, value) in [
        ("id", id.as_str()),
        ("name", "box"),
        ("state", "created"),
        ("host", "box.msb"),
    ] {
        assert_eq!(inspected[key], value);
    }
    assert_eq!(
        (&inspected["cpus"], &inspected["memory_mib"]),
        (&2.into(), &1024.into())
    );
    let table = String::from_utf8(machine.msb(&["ls"]).stdout).unwrap();
    assert!(
        table.starts_with("NAME") && table.contains(&id) && table.contains("created"),
        "{table}"
    );
}

#[test]
fn a_time_limit_is_a_duration_and_only_what_runs_is_given_another() {
    let machine = Machine::new();
    for bad in ["", "0", "-1", "1x", "none", "200000w"] {
        let output = machine.msb(&["create", "--no-start", &format!("--timeout={bad}")]);
        assert_refused(&output, &["--timeout", "msb create --help"]);
    }
    machine.id_of_new(&["--name", "box", "--timeout", "1h30m", "--on-timeout", "kill"]);
    let inspected: serde_json::Value = serde_json::from_slice(&machine.msb(&["inspect", "box"]).stdout).unwrap();
    assert_eq!(
        (&inspected["timeout_ms"], &inspected["on_timeout"]),
        (&5_400_000.into(), &"kill".into())
    );
    assert!(inspected["deadline"].is_null() && inspected["seconds_left"].is_null());
    assert_eq!(machine.msb(&["timeout", "box"]).stdout, b"none\n");
    assert_refused(
        &machine.msb(&["timeout", "box", "1h"]),
        &["cannot set the timeout of box", "created", "msb start box"],
    );
}

#[test]
fn what_does_not_run_can_be_stopped_and_waited_for_but_not_killed() {
    let machine = Machine::new();
    machine.id_of_new(&["--name", "box"]);
    assert!(machine.msb(&["stop", "box"]).status.success());
    assert!(machine.msb(&["wait", "box"]).status.success());
    assert_refused(&machine.msb(&["kill", "box"]), &["not running"]);
}

#[test]
fn a_failure_keeps_no_other_sandbox_from_its_turn() {
    let machine = Machine::new();
    machine.id_of_new(&["--name", "box"]);
    assert_refused(&machine.msb(&["rm", "nobody", "box"]), &["nobody"]);
    assert_eq!(machine.sandboxes(), [""; 0]);
}

#[test]
fn without_msbs_files_the_command_that_builds_them_is_named() {
    let machine = Machine::new();
    for arguments in [&["create"][..], &["run", "--", "true"]] {
        assert_refused(&machine.msb(arguments), &["vmlinux is missing", "scripts/build"]);
    }
    assert_eq!(machine.sandboxes(), [""; 0]);
    machine.id_of_new(&["--name", "box"]);
    assert_refused(&machine.msb(&["start", "box"]), &["cannot start box", "scripts/build"]);
    assert_eq!(machine.sandboxes().len(), 1);
}

#[test]
fn a_kernel_that_is_none_is_told_by_the_vmm_process() {
    for kernel in [&b"not an ELF file"[..], b"\x7fELF", b""] {
        let machine = Machine::new().with_files(kernel);
        assert_refused(
            &machine.msb(&["run", "--", "true"]),
            &["cannot run a sandbox", "vmlinux"],
        );
        assert_refused(
            &machine.msb(&["create", "--name", "box"]),
            &["cannot create sandbox box", "vmlinux"],
        );
        assert_eq!(machine.sandboxes(), [""; 0]);
        machine.id_of_new(&["--name", "box"]);
        assert_refused(&machine.msb(&["start", "box"]), &["cannot start box", "vmlinux"]);
        let waited = machine.msb(&["wait", "--json", "box"]);
        assert_eq!(waited.status.code(), Some(1));
        let view: serde_json::Value = serde_json::from_slice(&waited.stdout).unwrap();
        assert_eq!(
            (&view["state"], &view["exit_reason"]),
            (&"crashed".into(), &"vmm-error".into())
        );
        assert_eq!(std::fs::read_dir(machine.path("run")).unwrap().count(), 0);
    }
}

#[test]
fn a_socket_path_that_is_too_long_is_refused() {
    let machine = Machine::new();
    let long = format!("/tmp/{}", "x".repeat(100));
    let output = machine
        .command(&["create", "--no-start"])
        .env("MSB_RUNTIME_DIR", long)
        .output()
        .unwrap();
    assert_refused(&output, &["at most 107", "MSB_RUNTIME_DIR"]);
}

#[test]
fn without_a_home_the_variable_to_set_is_named() {
    let machine = Machine::new();
    let output = machine
        .command(&["ls"])
        .env_remove("MSB_HOME")
        .env_remove("HOME")
        .output()
        .unwrap();
    assert_refused(&output, &["MSB_HOME"]);
}

#[test]
fn the_logs_of_what_never_ran_are_empty() {
    let machine = Machine::new();
    machine.id_of_new(&["--name", "box"]);
    for arguments in [
        &["logs", "box"][..],
        &["logs", "--follow", "box"],
        &["logs", "--vmm", "box"],
    ] {
        let output = machine.msb(arguments);
        assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    }
}

#[test]
fn doctor_names_what_is_missing_and_how_to_mend_it() {
    let machine = Machine::new();
    let output = machine.msb(&["doctor", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["healthy"], false);
    let checks = report["checks"].as_array().unwrap();
    let named = |name: &str| checks.iter().find(|check| check["name"] == name).unwrap();
    assert_eq!(named("files")["verdict"], "failed");
    assert!(named("files")["mend"].as_str().unwrap().contains("scripts/build"));
    assert_eq!(named("guest")["verdict"], "skipped");
    let quiet = machine.msb(&["doctor", "--probe", "--quiet"]);
    assert_eq!((quiet.status.code(), quiet.stdout.len()), (Some(1), 0));
}

#[test]
fn a_completion_script_completes_the_verbs() {
    let script = Machine::new().msb(&["completion", "bash"]).stdout;
    assert!(String::from_utf8(script).unwrap().contains("ssh-bridge"));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let machine = Machine::new();
    machine.id_of_new(&[]);
    let mut child = machine
        .command(&["ls"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = Machine::new()
        .command(&["completion", "bash"])
        .stdout(full)
        .output()
        .unwrap();
    assert_refused(&output, &["standard output", "No space left on device"]);
}

#[test]
fn the_ssh_configuration_is_one_block_that_weakens_nothing() {
    let machine = Machine::new();
    let block = String::from_utf8(machine.msb(&["ssh-config"]).stdout).unwrap();
    assert!(block.starts_with("Host *.msb\n"), "{block}");
    assert!(block.contains("StrictHostKeyChecking yes"), "{block}");
    assert!(
        block.contains(&format!("MSB_HOME='{}'", machine.path("home").display())),
        "{block}"
    );
    assert!(machine.path("home").join("client_key").exists());
}

#[test]
fn a_relative_home_is_refused() {
    let output = Machine::new()
        .command(&["ls"])
        .env("MSB_HOME", "state")
        .output()
        .unwrap();
    assert_refused(&output, &["MSB_HOME", "state", "absolute"]);
}

#[test]
fn a_damaged_sandbox_hides_no_other_and_can_be_removed() {
    let machine = Machine::new();
    let (damaged, whole) = (machine.id_of_new(&["--name", "damaged"]), machine.id_of_new(&[]));
    std::fs::write(
        machine
            .path("home")
            .join("sandboxes")
            .join(&damaged)
            .join("config.json"),
        "",
    )
    .unwrap();
    let listed = machine.msb(&["ls", "--quiet"]);
    assert_eq!(String::from_utf8_lossy(&listed.stdout), format!("{whole}\n"));
    assert!(String::from_utf8_lossy(&listed.stderr).contains(&damaged));
    assert_refused(&machine.msb(&["start", "damaged"]), &["cannot understand", &damaged]);
    assert!(machine.msb(&["rm", "damaged"]).status.success());
    assert_eq!(machine.sandboxes(), [whole]);
    machine.id_of_new(&["--name", "damaged"]);
}

#[test]
fn sandboxes_are_listed_by_label_state_and_name() {
    let machine = Machine::new().with_files(b"kernel");
    let create = |arguments: &[&str]| machine.id_of_new(arguments);
    let nightly = create(&["--name", "one", "--label", "job=nightly", "--label", "keep"]);
    let weekly = create(&["--name", "two", "--label", "job=weekly"]);
    let bare = create(&[]);
    let listed = |filters: &[&str]| {
        let options = filters.iter().flat_map(|filter| ["--filter", filter]);
        let output = machine.msb(&["ls", "--quiet"].into_iter().chain(options).collect::<Vec<_>>());
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines()
            .map(str::to_owned)
            .collect::<std::collections::BTreeSet<_>>()
    };
    let ids = |ids: &[&String]| ids.iter().map(|id| (*id).clone()).collect();
    assert_eq!(listed(&[]), ids(&[&nightly, &weekly, &bare]));
    assert_eq!(listed(&["label=job"]), ids(&[&nightly, &weekly]));
    assert_eq!(listed(&["label=job=nightly"]), ids(&[&nightly]));
    assert_eq!(listed(&["label=job=nightly", "name=tw"]), ids(&[]));
    assert_eq!(
        listed(&["label=keep=", "state=created", "state=running"]),
        ids(&[&nightly])
    );
    assert_eq!(listed(&["state=running"]), ids(&[]));
    assert_eq!(listed(&["name=tw"]), ids(&[&weekly]));
    assert_refused(
        &machine.msb(&["ls", "--filter", "state=runing"]),
        &["runing", "running"],
    );
}

#[test]
fn events_tell_what_becomes_of_sandboxes() {
    let machine = Machine::new().with_files(b"kernel");
    machine.id_of_new(&["--name", "earlier"]);
    let store = Store::new(Layout {
        home: machine.path("home"),
        runtime: machine.path("run"),
    });
    let mut events = Events::of(&store).unwrap();
    let mut next = || {
        let events = events.next_batch().unwrap();
        assert_eq!(events.len(), 1, "{events:?}");
        (events[0].id.to_string(), events[0].state)
    };
    let id = machine.id_of_new(&["--name", "box"]);
    assert_eq!(next(), (id.clone(), "created"));
    // The kernel is none.
    assert!(!machine.msb(&["start", "box"]).status.success());
    assert_eq!(next().0, id);
    assert!(machine.msb(&["rm", "--force", "box"]).status.success());
    while next() != (id.clone(), "removed") {}
}
