//! `msb watch` with the real agent.

mod guest;

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use guest::Guest;
use msb_test_support::own_user;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// `msb watch` while it runs.
struct Watch {
    process: Child,
    lines: Option<Lines<BufReader<ChildStdout>>>,
}

impl Watch {
    /// Starts it, and returns once what changes is told.
    fn start(guest: &Guest, options: &[&str]) -> Self {
        let mut process = watch(guest, "dir", options)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut watch = Self {
            process,
            lines: Some(lines),
        };
        assert!(watch.line().contains("watching"));
        watch
    }

    fn line(&mut self) -> String {
        self.lines.as_mut().unwrap().next().unwrap().unwrap()
    }

    fn event(&mut self) -> Value {
        serde_json::from_str(&self.line()).unwrap()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.process.id().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// How it ends, with what it says on standard error.
    fn ended(&mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        std::io::Read::read_to_string(self.process.stderr.as_mut().unwrap(), &mut said).unwrap();
        (self.process.wait().unwrap().code(), said)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn watch(guest: &Guest, what: &str, options: &[&str]) -> Command {
    let mut command = guest.msb();
    let what = format!("box:{}", guest.path(what).display());
    command.args(["watch", "--user", &own_user()]).args(options).arg(what);
    command
}

fn guest() -> Guest {
    let guest = Guest::new();
    fs::create_dir_all(guest.path("dir/sub")).unwrap();
    guest
}

#[test]
fn each_change_is_a_line_of_json_until_the_directory_is_gone() {
    let guest = guest();
    let mut watch = Watch::start(&guest, &["--recursive", "--json"]);
    let dir = guest.path("dir");
    fs::write(dir.join("sub/a"), "").unwrap();
    assert_eq!(
        watch.event(),
        json!({"event": "created", "path": "sub/a", "is_dir": false})
    );
    fs::write(dir.join("sub/a"), "content").unwrap();
    assert_eq!(watch.event(), json!({"event": "modified", "path": "sub/a"}));
    fs::set_permissions(dir.join("sub/a"), fs::Permissions::from_mode(0o600)).unwrap();
    let mut event = watch.event();
    while event["event"] == "modified" {
        event = watch.event();
    }
    assert_eq!(event, json!({"event": "attributes", "path": "sub/a"}));
    fs::rename(dir.join("sub/a"), dir.join("b\nc")).unwrap();
    assert_eq!(
        watch.event(),
        json!({"event": "renamed", "from": "sub/a", "to": "b\nc", "is_dir": false})
    );
    fs::create_dir(dir.join("new")).unwrap();
    assert_eq!(
        watch.event(),
        json!({"event": "created", "path": "new", "is_dir": true})
    );
    fs::remove_file(dir.join("b\nc")).unwrap();
    assert_eq!(
        watch.event(),
        json!({"event": "removed", "path": "b\nc", "is_dir": false})
    );
    fs::remove_dir_all(&dir).unwrap();
    let mut last = watch.event();
    while last["event"] != "gone" {
        assert!(
            matches!(last["event"].as_str(), Some("removed" | "attributes")),
            "{last}"
        );
        last = watch.event();
    }
    assert_eq!(watch.ended(), (Some(0), String::new()));
}

#[test]
fn a_name_is_one_line_also_without_json() {
    let guest = guest();
    let mut watch = Watch::start(&guest, &[]);
    fs::create_dir(guest.path("dir/two\nlines")).unwrap();
    assert_eq!(watch.line(), "created     two\\nlines/");
    // What is below is not told.
    fs::write(guest.path("dir/sub/a"), "").unwrap();
    fs::remove_dir(guest.path("dir/two\nlines")).unwrap();
    assert_eq!(watch.line(), "removed     two\\nlines/");
}

#[test]
fn it_ends_in_order_when_it_is_told_to_or_nobody_reads() {
    let guest = guest();
    for signal in [Signal::INT, Signal::TERM] {
        let mut watch = Watch::start(&guest, &["--json"]);
        watch.signal(signal);
        assert_eq!(watch.ended(), (Some(0), String::new()));
    }
    let mut watch = Watch::start(&guest, &["--json"]);
    watch.lines.take();
    fs::write(guest.path("dir/a"), "").unwrap();
    assert_eq!(watch.ended(), (Some(0), String::new()));
}

#[test]
fn what_cannot_be_watched_is_told_in_one_line() {
    let guest = guest();
    let refused = |mut command: Command, parts: &[&str]| {
        let Output { status, stdout, stderr } = command.output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert_eq!(
            (status.code(), stdout.len(), stderr.lines().count()),
            (Some(125), 0, 1),
            "{stderr}"
        );
        for part in parts {
            assert!(stderr.contains(part), "{part:?} is not in: {stderr}");
        }
    };
    refused(
        watch(&guest, "none", &[]),
        &["cannot watch box:", "none: ", "No such file"],
    );
    let mut here = guest.msb();
    here.args(["watch", "/tmp"]);
    refused(here, &["/tmp", "box:/path"]);
}
