//! Templates: images that are built step by step in guests, and what their sandboxes start.

use std::ffi::OsStr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

use msb_tests::{Finished, Msb, finish};

/// An `msb` with a small image, `base:1`, and a context.
struct Workshop {
    msb: Msb,
    context: PathBuf,
}

impl Workshop {
    fn new() -> Self {
        let workshop = Self::without_image();
        workshop.msb.import_base();
        workshop
    }

    fn without_image() -> Self {
        let msb = Msb::new();
        let context = msb.scratch("context");
        fs::create_dir_all(&context).unwrap();
        Self { msb, context }
    }

    fn write(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.context.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, contents).unwrap();
        path
    }

    /// Builds `template` to the image `built:1`.
    fn build(&self, template: &str) -> Finished {
        self.build_with(template, &[])
    }

    fn build_with(&self, template: &str, options: &[&str]) -> Finished {
        let file = self.msb.scratch("template.toml");
        fs::write(&file, template).unwrap();
        let (file, context) = (file.to_string_lossy(), self.context.to_string_lossy());
        let build = ["image", "build", "-t", "built:1", "-f", &file, &context];
        self.msb.run(build.iter().chain(options))
    }

    /// What a script prints in a sandbox of the image that was built.
    fn printed(&self, script: &str) -> String {
        let run = self.msb.run(["run", "built:1", "--", "sh", "-c", script]).expect(0);
        run.text()
    }
}

/// Which steps were taken as they were before.
fn cached(build: &Finished) -> Vec<usize> {
    let steps = build.stderr.lines().filter(|line| line.ends_with(" CACHED"));
    let numbers = steps.filter_map(|line| line.strip_prefix('[')?.split('/').next()?.parse().ok());
    numbers.collect()
}

#[test]
fn a_template_is_built_step_by_step_and_only_what_changed_is_run_again() {
    let workshop = Workshop::new();
    let program = workshop.write("app/bin/run", "#!/bin/sh\necho run\n");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    symlink("bin/run", workshop.context.join("app/link")).unwrap();
    workshop.write("note", "a note");
    let template = |last: &str| {
        format!(
            r#"
from = "base:1"
steps = [
  {{ copy = "app", to = "/srv/app" }},
  {{ copy = "note", to = "/srv/notes/" }},
  {{ run = '''
      set -e
      cat /proc/sys/kernel/random/uuid > /srv/random
      rm /etc/motd
      rm -r /etc/skel; mkdir /etc/skel; touch /etc/skel/new
      mv /opt/dir /opt/moved
      mkfifo /srv/fifo; touch /srv/setuid; chmod 4755 /srv/setuid
      (while :; do date > /srv/clock; done) > /dev/null 2>&1 &
    ''' }},
  {{ env = {{ GREETING = "hello" }} }},
  {{ workdir = "/srv/work" }},
  {{ run = "rm /srv/clock /srv/notes/note; chown app /srv/work" }},
  {{ user = "app" }},
  {{ run = "{last}" }},
]
"#
        )
    };
    let say = r"id -u > said; readlink /proc/self/cwd >> said; echo $GREETING >> said; echo $GREETING from the step";
    let built = workshop.build(&template(say)).expect(0);
    assert!(built.stderr.contains("[8/8] run id -u"), "{}", built.stderr);
    assert!(built.stderr.contains("hello from the step"), "{}", built.stderr);
    assert_eq!(cached(&built), [0; 0]);
    let script = r#"cat said; id -u; echo "$PWD $GREETING"; /srv/app/link; ls /etc/skel /opt /srv/notes; ls /srv;
        stat -c '%A %u' /srv/fifo /srv/setuid /srv/app/bin/run said; cat /opt/moved/file; echo; ls /etc/motd 2>&1"#;
    let expected = "1000\n/srv/work\nhello\n1000\n/srv/work hello\nrun\n/etc/skel:\nnew\n\n/opt:\nmoved\n\n/srv/notes:\n\
        app\nfifo\nnotes\nrandom\nsetuid\nwork\nprw-r--r-- 0\n-rwsr-xr-x 0\n-rwxr-xr-x 0\n-rw-r--r-- 1000\nmoved\n\
        ls: /etc/motd: No such file or directory\n";
    assert_eq!(workshop.printed(&format!("{script}; true")), expected);
    let random = workshop.printed("cat /srv/random");

    // The same again is the same image, and no guest ran for it.
    let again = workshop.build(&template(say)).expect(0);
    assert_eq!((again.text(), cached(&again)), (built.text(), vec![1, 2, 3, 6, 8]));

    // From the step that changed on, on top of what is kept.
    let changed = workshop.build(&template("echo changed > said")).expect(0);
    assert_eq!(cached(&changed), [1, 2, 3, 6]);
    assert_eq!(workshop.printed("cat said /srv/random"), format!("changed\n{random}"));

    // From the file that changed on: another mode is a change.
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(cached(&workshop.build(&template(say)).expect(0)), [0; 0]);
    assert_ne!(workshop.printed("cat /srv/random"), random);
    assert_eq!(workshop.printed("stat -c %a /srv/app/bin/run"), "700\n");

    // All of it, when asked.
    let random = workshop.printed("cat /srv/random");
    assert_eq!(
        cached(&workshop.build_with(&template(say), &["--no-cache"]).expect(0)),
        [0; 0]
    );
    assert_ne!(workshop.printed("cat /srv/random"), random);
    let images = workshop.msb.run(["image", "ls", "--json"]).expect(0).text();
    let inspected = workshop.msb.run(["image", "inspect", "built:1"]).expect(0).text();
    assert!(inspected.contains("\"copy app /srv/app\""), "{inspected}");
    // Two were built before and have no name any more; what steps began with is gone.
    assert_eq!(images.matches("\"id\":").count(), 5, "{images}");
    assert!(workshop.msb.leftovers().is_empty(), "{:?}", workshop.msb.leftovers());
}

#[test]
fn a_step_that_fails_is_named_with_its_status_and_what_it_printed_and_those_before_it_are_kept() {
    let workshop = Workshop::new();
    let failing = "from = 'base:1'\nsteps = [{ run = 'echo kept > /kept' }, { run = 'echo the reason >&2; exit 7' }]";
    for before in [vec![], vec![1]] {
        let failed = workshop.build(failing).expect(125);
        let said = &failed.stderr;
        assert!(
            said.contains("step 2, run echo the reason >&2; exit 7, failed"),
            "{said}"
        );
        assert!(
            said.contains("ended with status 7") && said.ends_with("the reason\n"),
            "{said}"
        );
        assert_eq!((cached(&failed), failed.text().as_str()), (before, ""));
    }
    workshop.msb.run(["run", "--pull", "never", "built:1"]).expect(125);
    let mended = failing.replace("exit 7", "exit 0");
    assert_eq!(cached(&workshop.build(&mended).expect(0)), [1]);
    assert_eq!(workshop.printed("cat /kept"), "kept\n");
    assert!(workshop.msb.leftovers().is_empty(), "{:?}", workshop.msb.leftovers());
}

#[test]
fn what_no_template_may_do_is_refused_before_any_guest_runs() {
    let workshop = Workshop::new();
    fs::write(workshop.msb.scratch("secret"), "secret").unwrap();
    symlink("../secret", workshop.context.join("out")).unwrap();
    for (steps, reason) in [
        ("{ copy = '../secret', to = '/' }", "leads out of the context"),
        ("{ copy = 'out', to = '/' }", "leads out of the context"),
        ("{ copy = '/etc/passwd', to = '/' }", "leads out of the context"),
        ("{ copy = 'none', to = '/' }", "none"),
        ("{ copi = 'x' }", "copi"),
        ("{ apt_install = ['x'] }", "--apt-repository"),
        ("{ apt_install = ['-x'] }", "no name of a package"),
    ] {
        let refused = workshop
            .build(&format!("from = 'base:1'\nsteps = [{steps}]"))
            .expect(125);
        assert!(refused.stderr.contains(reason), "{steps}: {}", refused.stderr);
    }
}

/// What is to be started, and what says that it is ready.
/// A package of one file, `/usr/share/NAME`, in the directory `debs` of the context.
fn package(workshop: &Workshop, name: &str, depends: &str) {
    let control = format!(
        "Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <nobody@example.com>\n\
         Description: a test\n{depends}"
    );
    workshop.write(&format!("trees/{name}/DEBIAN/control"), &control);
    workshop.write(&format!("trees/{name}/usr/share/{name}"), name);
    fs::create_dir_all(workshop.context.join("debs")).unwrap();
    let mut build = Command::new("dpkg-deb");
    build.args(["--root-owner-group", "--build"]);
    build.arg(workshop.context.join("trees").join(name));
    build.arg(workshop.context.join(format!("debs/{name}.deb")));
    finish(&mut build).expect(0);
}

#[test]
fn debian_installs_packages_and_what_they_depend_on_from_a_directory_of_the_host() {
    let workshop = Workshop::without_image();
    let debian = env::var_os("MSB_TEST_DEBIAN").expect("scripts/test makes an archive of Debian and names it");
    let import = [OsStr::new("image"), "import".as_ref(), &debian, "base:1".as_ref()];
    workshop.msb.run(import).expect(0);
    package(&workshop, "msb-words", "");
    package(&workshop, "msb-greeting", "Depends: msb-words\n");
    package(&workshop, "msb-unwanted", "");
    let template = r#"
from = "base:1"
apt_repository = "debs"
steps = [{ apt_install = ["msb-greeting"] }]
"#;
    workshop.build(template).expect(0);
    let script =
        "cd /usr/share && cat msb-greeting msb-words && echo && ls -d msb-* && dpkg -s msb-words | grep Status";
    let printed = "msb-greetingmsb-words\nmsb-greeting\nmsb-words\nStatus: install ok installed\n";
    assert_eq!(workshop.printed(script), printed);
    assert_eq!(cached(&workshop.build(template).expect(0)), [1]);

    // A package that is not there is apt's to tell of.
    let missing = template.replace("msb-greeting", "msb-missing");
    let missing = workshop.build(&missing).expect(125).stderr;
    assert!(missing.contains("Unable to locate package msb-missing"), "{missing}");
}

fn starting(command: &str, ready: &str) -> String {
    format!("from = 'base:1'\n[start]\ncommand = '''{command}'''\nready = {{ {ready} }}")
}

#[test]
fn a_sandbox_is_ready_when_its_start_command_is_by_any_probe() {
    let workshop = Workshop::new();
    // Before the probe can hold, there is something to wait for; what holds then is seen at once.
    let serve =
        "sleep 1; mkdir -p /tmp/www; echo served > /tmp/www/index.html; exec httpd -f -p 127.0.0.1:8080 -h /tmp/www";
    for (command, ready, check) in [
        (serve, "port = 8080", "nc 127.0.0.1 8080 < /dev/null"),
        (serve, "url = 'http://localhost:8080/'", "cat /tmp/www/index.html"),
        ("sleep 1; touch /tmp/up; sleep 1000", "file = '/tmp/up'", "ls /tmp/up"),
        (
            "sleep 1; exec httpd -f -p 127.0.0.1:81",
            "process = 'httpd'",
            "grep -l httpd /proc/[0-9]*/cmdline",
        ),
        (
            "sleep 1; echo up > /tmp/up; sleep 1000",
            "command = 'grep up /tmp/up'",
            "grep up /tmp/up",
        ),
    ] {
        workshop.build(&starting(command, ready)).expect(0);
        let sandbox = workshop.msb.create_with("box", &["built:1"]);
        sandbox.ssh(check).expect(0);
        let listed = workshop.msb.run(["ps", "box"]).expect(0).text();
        assert!(listed.contains("start"), "{listed}");
        if ready.starts_with("file") {
            // A later start does the same.
            workshop.msb.run(["stop", "box"]).expect(0);
            workshop.msb.run(["start", "box"]).expect(0);
            let listed = workshop.msb.run(["ps", "box"]).expect(0).text();
            assert!(listed.contains("start"), "{listed}");
        }
        workshop.msb.run(["rm", "--force", "box"]).expect(0);
    }
    let inspected = workshop.msb.run(["image", "inspect", "built:1"]).expect(0).text();
    assert!(inspected.contains("\"command\": \"grep up /tmp/up\""), "{inspected}");
}

#[test]
fn a_start_command_that_dies_or_never_gets_ready_is_an_error_that_says_what_it_printed() {
    let workshop = Workshop::new();
    workshop
        .build(&starting("echo the reason >&2; exit 3", "port = 8080"))
        .expect(0);
    let failed = workshop.msb.run(["create", "--name", "box", "built:1"]).expect(125);
    for part in [
        "echo the reason",
        "ended with status 3",
        "port 8080",
        "printed last: the reason",
    ] {
        assert!(failed.stderr.contains(part), "{part}: {}", failed.stderr);
    }
    assert!(workshop.msb.leftovers().is_empty(), "{:?}", workshop.msb.leftovers());
    let options = [
        "--start-cmd",
        "echo waiting; sleep 1000",
        "--ready",
        "file=/none",
        "--ready-timeout",
        "3",
    ];
    let create = ["create", "--name", "box"];
    let failed = workshop
        .msb
        .run(create.iter().chain(&options).chain(&["built:1"]))
        .expect(125);
    for part in ["file /none was not ready within 3 s", "printed last: waiting"] {
        assert!(failed.stderr.contains(part), "{part}: {}", failed.stderr);
    }
    assert!(workshop.msb.leftovers().is_empty(), "{:?}", workshop.msb.leftovers());
    // An empty one is none.
    workshop
        .msb
        .run(["run", "--start-cmd", "", "built:1", "--", "echo", "ran"])
        .expect(0);
}
