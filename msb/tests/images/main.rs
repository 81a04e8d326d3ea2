//! Images from every source, good and bad, by the command, without a guest.

mod hostile;
#[path = "../machine/mod.rs"]
mod machine;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use machine::Machine;
use msb_test_support::images::{self, tar_of};
use msb_test_support::registry::Registry;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

impl Machine {
    /// What it prints, when it must succeed.
    fn text(&self, arguments: &[&str]) -> String {
        text_of(&self.msb(arguments))
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.text(arguments)).unwrap()
    }

    /// The line on standard error of what must be refused, and that nothing of it is left.
    fn refused(&self, arguments: &[&str]) -> String {
        let before = self.entries();
        let output = self.msb(arguments);
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        assert_eq!(self.entries(), before, "something was left behind");
        String::from_utf8(output.stderr).unwrap()
    }

    fn write(&self, name: &str, contents: &[u8]) -> String {
        let path = self.path(name);
        std::fs::write(&path, contents).unwrap();
        path.into_os_string().into_string().unwrap()
    }

    /// What lies in the store of images but for its lock.
    fn entries(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("home/images")).into_iter().flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.retain(|name| name != "lock");
        names.sort();
        names
    }
}

fn text_of(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap().trim().to_owned()
}

/// What `docker save` writes for one image.
fn docker_archive(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let config = json!({ "Env": ["A=b"], "Cmd": ["/run"], "User": "7" });
    images::docker_archive(name, &config, layers)
}

fn assert_sound(machine: &Machine, id: &str) {
    let entry = machine
        .entries()
        .into_iter()
        .find(|entry| entry.starts_with(id))
        .unwrap();
    let erofs = machine.path("home/images").join(entry).join("image.erofs");
    let checked = Command::new("fsck.erofs").arg(erofs).output().unwrap();
    assert!(checked.status.success(), "{checked:?}");
}

#[test]
fn an_archive_of_docker_is_imported_named_listed_and_removed() {
    let machine = Machine::new();
    let layers = [tar_of(&[("a", b"1"), ("b", b"2")]), tar_of(&[(".wh.a", b"")])];
    let path = machine.write("app.tar", &docker_archive("app:1", &layers));
    let id = machine.text(&["image", "import", &path]);
    assert_sound(&machine, &id);
    let inspected = machine.json(&["image", "inspect", "app:1"]);
    assert_eq!(inspected["names"], json!(["app:1"]));
    assert_eq!(
        inspected["config"],
        json!({ "env": { "A": "b" }, "user": "7", "cmd": ["/run"] })
    );
    assert!(inspected["disk_usage"].as_u64() > Some(0));
    // The same again is the same image.
    assert_eq!(machine.text(&["image", "import", &path, "other:2"]), id);
    assert_eq!(machine.json(&["image", "ls", "--json"]).as_array().unwrap().len(), 1);
    assert_eq!(machine.text(&["image", "rm", "other:2"]), "untagged other:2");
    let sandbox = machine.text(&["create", "--no-start", "--name", "box", "app:1"]);
    assert_eq!(machine.json(&["inspect", "box"])["image"]["name"], "app:1");
    let error = machine.refused(&["image", "rm", "app:1"]);
    assert!(error.contains("used by box"), "{error}");
    machine.text(&["image", "prune", "--all"]);
    machine.text(&["rm", &sandbox]);
    assert!(machine.text(&["image", "rm", &id[..6]]).starts_with("removed sha256:"));
    assert_eq!(machine.entries(), ["refs.json"]);
}

#[test]
fn a_directory_and_a_tar_of_it_are_imported_as_they_are() {
    let machine = Machine::new();
    let root = machine.path("root");
    std::fs::create_dir_all(root.join("etc")).unwrap();
    std::fs::write(root.join("etc/.wh.name"), "a name like another").unwrap();
    let id = machine.text(&["image", "import", root.to_str().unwrap(), "dir:1"]);
    assert_sound(&machine, &id);
    let packed = Command::new("tar")
        .arg("-C")
        .arg(&root)
        .args(["-czf", "-", "."])
        .output()
        .unwrap();
    let mut import = machine.command(&["image", "import", "-", "tar:1"]);
    let mut import = import.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    import.stdin.take().unwrap().write_all(&packed.stdout).unwrap();
    let id = text_of(&import.wait_with_output().unwrap());
    assert_sound(&machine, &id);
    let listed = machine.text(&["image", "ls"]);
    assert!(listed.contains("dir:1") && listed.contains("tar:1"), "{listed}");
}

#[test]
fn what_is_bad_is_refused_with_its_reason_and_leaves_nothing() {
    let machine = Machine::new();
    let layer = tar_of(&[("a", &[7; 5000])]);
    let good = docker_archive("app:1", std::slice::from_ref(&layer));
    let mut damaged = good.clone();
    let at = damaged.windows(5000).position(|window| window == [7; 5000]).unwrap();
    damaged[at] = 8;
    let mut climbing = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..11].copy_from_slice(b"../../etc/x");
    header.set_mode(0o644);
    header.set_size(0);
    header.set_cksum();
    climbing.append(&header, std::io::empty()).unwrap();
    let climbing = climbing.into_inner().unwrap();
    for (name, contents, reason) in [
        ("damaged", damaged.as_slice(), "layer 1 is damaged"),
        ("cut", &good[..good.len() - 4000], "truncated"),
        ("climbing", &climbing, "'..'"),
        (
            "text",
            b"no archive, but longer than one block of one: ".repeat(20).as_slice(),
            "no tar archive",
        ),
        ("empty", b"", "truncated"),
        ("xz", b"\xfd7zXZ\0....", "xz"),
    ] {
        let path = machine.write(name, contents);
        let error = machine.refused(&["image", "import", &path, "bad:1"]);
        assert!(error.contains(reason) && error.contains(&path), "{name}: {error}");
    }
    let error = machine.refused(&["image", "import", "/nonexistent"]);
    assert!(error.contains("/nonexistent"), "{error}");
    let error = machine.refused(&["create", "--no-start", "--pull", "never", "nothing:1"]);
    assert!(error.contains("msb image"), "{error}");
}

#[test]
fn a_directory_of_more_directories_than_may_be_open_is_imported() {
    let machine = Machine::new();
    let root = machine.path("wide");
    for number in 0..200 {
        std::fs::create_dir_all(root.join(format!("d{number}/below"))).unwrap();
    }
    let mut import = Command::new("sh");
    import.args(["-c", "ulimit -n 64 && exec \"$@\"", "sh", env!("CARGO_BIN_EXE_msb")]);
    import.args(["image", "import"]).arg(&root);
    import.env("MSB_HOME", machine.path("home"));
    assert_sound(&machine, &text_of(&import.output().unwrap()));
}

#[test]
fn a_killed_import_is_swept_and_two_of_one_name_both_succeed() {
    let machine = Machine::new();
    let mut killed = machine.command(&["image", "import", "-", "x:1"]);
    let mut killed = killed.stdin(Stdio::piped()).spawn().unwrap();
    while machine.entries().is_empty() {
        std::thread::yield_now();
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    let path = machine.write("a.tar", &tar_of(&[("a", b"1")]));
    let other = machine.write("b.tar", &tar_of(&[("b", b"1")]));
    let imports = [&path, &other, &path].map(|path| {
        let mut import = machine.command(&["image", "import", path, "x:1"]);
        import.stdout(Stdio::piped()).spawn().unwrap()
    });
    let ids = imports.map(|import| text_of(&import.wait_with_output().unwrap()));
    assert_eq!(ids[0], ids[2]);
    let named = machine.json(&["image", "inspect", "x:1"])["id"].as_str().unwrap()[7..19].to_owned();
    assert!(ids.contains(&named));
    let entries = machine.entries();
    assert!(entries.iter().all(|entry| !entry.starts_with('.')), "{entries:?}");
}

#[test]
fn an_image_comes_from_debians_registry_as_it_was_pushed_by_skopeo() {
    let machine = Machine::new();
    let registry = Registry::start(&machine.path("registry"));
    let shared = tar_of(&[("shared", &[1; 100_000])]);
    for (name, own) in [("one", "1"), ("two", "2")] {
        let layers = [shared.clone(), tar_of(&[(own, own.as_bytes())])];
        let archive = machine.write(name, &docker_archive("local:1", &layers));
        registry.push(Path::new(&archive), &format!("team/{name}:v1"));
    }
    let name = format!("{}/team/one:v1", registry.address);
    let id = machine.text(&["image", "pull", &name]);
    assert_sound(&machine, &id);
    let inspected = machine.json(&["image", "inspect", &name]);
    assert_eq!(inspected["config"]["cmd"], json!(["/run"]));
    // A layer that is here is not asked for again, and one that is damaged here is mended.
    let blobs = || std::fs::read_dir(machine.path("home/images/blobs")).unwrap().flatten();
    let largest = blobs().max_by_key(|blob| blob.metadata().unwrap().len()).unwrap();
    let before = std::fs::metadata(largest.path()).unwrap().modified().unwrap();
    machine.text(&["image", "pull", &format!("{}/team/two:v1", registry.address)]);
    assert_eq!(std::fs::metadata(largest.path()).unwrap().modified().unwrap(), before);
    assert_eq!(blobs().count(), 3);
    let error = machine.refused(&["image", "pull", &format!("{}/team/three:v1", registry.address)]);
    assert!(error.contains("has no image"), "{error}");
    machine.text(&["image", "rm", &id]);
    let path = largest.path();
    std::fs::write(&path, vec![0; 10]).unwrap();
    machine.text(&["create", "--no-start", &name]);
    assert!(machine.text(&["image", "prune", "--all"]).contains("free again"));
    assert_eq!(blobs().count(), 0);
}

#[test]
fn a_layer_that_is_damaged_or_short_in_the_registry_is_refused() {
    let machine = Machine::new();
    let registry = Registry::start(&machine.path("registry"));
    let layer = tar_of(&[("a", &msb_test_support::pattern(100_000))]);
    let archive = machine.write("app", &docker_archive("local:1", &[layer]));
    registry.push(Path::new(&archive), "app:v1");
    let name = format!("{}/app:v1", registry.address);
    let blobs = machine.path("registry/docker/registry/v2/blobs/sha256");
    let stored = Command::new("find")
        .arg(blobs)
        .args(["-name", "data", "-size", "+50k"])
        .output()
        .unwrap();
    let stored = machine.path(&text_of(&stored));
    let whole = std::fs::read(&stored).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    for wrong in [damaged.as_slice(), &whole[..whole.len() / 2]] {
        std::fs::write(&stored, wrong).unwrap();
        let output = machine.msb(&["image", "pull", &name]);
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        assert_eq!(
            machine.text(&["image", "ls", "--quiet"]),
            "",
            "nothing half-made is visible"
        );
    }
    std::fs::write(&stored, &whole).unwrap();
    assert_sound(&machine, &machine.text(&["image", "pull", &name]));
}

#[test]
fn a_registry_that_is_killed_in_a_layer_leaves_what_came_of_it_for_the_next_pull() {
    const LAYER: usize = 48 << 20;
    let machine = Machine::new();
    let mut registry = Registry::start(&machine.path("registry"));
    let layer = tar_of(&[("large", &msb_test_support::pattern(LAYER))]);
    let archive = machine.write("app", &docker_archive("local:1", &[layer]));
    registry.push(Path::new(&archive), "app:v1");
    let name = format!("{}/app:v1", registry.address);
    let came = || {
        let blobs = std::fs::read_dir(machine.path("home/images/blobs"))
            .into_iter()
            .flatten();
        blobs
            .map(|blob| blob.unwrap().metadata().unwrap().len())
            .max()
            .unwrap_or(0)
    };

    let mut pull = machine.command(&["image", "pull", &name]);
    let pull = pull.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while came() == 0 {
        std::thread::yield_now();
    }
    let process = Pid::from_child(&pull);
    kill_process(process, Signal::STOP).unwrap();
    registry.kill();
    kill_process(process, Signal::CONT).unwrap();
    let output = pull.wait_with_output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125), "{error}");
    assert!(error.contains(&registry.address), "{error}");
    let before = came();
    assert!((1..LAYER as u64).contains(&before), "{before}");
    assert_eq!(machine.text(&["image", "ls", "--quiet"]), "");

    registry.start_again();
    assert_sound(&machine, &machine.text(&["image", "pull", &name]));
}
