use std::collections::HashMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use super::*;

fn config(root: &Path) -> SshConfig {
    SshConfig {
        msb: root.join("bin/msb"),
        known_hosts: root.join("known_hosts"),
        identity: root.join("client_key"),
        environment: Vec::new(),
        fdpass: false,
    }
}

/// What ssh makes of `file` for `host`. Several values of one option keep the last.
fn evaluate(file: &Path, host: &str) -> HashMap<String, String> {
    let output = Command::new("ssh")
        .arg("-G")
        .arg("-F")
        .arg(file)
        .arg(host)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn rendered(config: &SshConfig) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config");
    std::fs::write(&file, config.render().unwrap()).unwrap();
    (directory, file)
}

#[test]
fn ssh_understands_the_block_for_sandboxes_and_no_other_host() {
    let (_directory, file) = rendered(&config(Path::new("/opt/msb")));
    let options = evaluate(&file, "demo.msb");
    let expected = [
        ("user", "root"),
        ("proxycommand", "'/opt/msb/bin/msb' ssh-bridge -- '%h'"),
        ("identityfile", "/opt/msb/client_key"),
        ("identitiesonly", "yes"),
        ("stricthostkeychecking", "true"),
        ("userknownhostsfile", "/opt/msb/known_hosts"),
        ("globalknownhostsfile", "/dev/null"),
        ("updatehostkeys", "false"),
        ("checkhostip", "no"),
        ("proxyusefdpass", "no"),
    ];
    for (name, value) in expected {
        assert_eq!(options.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(options["ciphers"].starts_with("aes128-gcm@openssh.com,aes256-gcm@openssh.com,"));
    assert!(
        options["ciphers"].contains("chacha20-poly1305"),
        "{}",
        options["ciphers"]
    );
    assert!(!evaluate(&file, "example.org").contains_key("proxycommand"));
}

#[test]
fn the_descriptor_is_passed_where_asked_for() {
    let (_directory, file) = rendered(&SshConfig {
        fdpass: true,
        ..config(Path::new("/opt/msb"))
    });
    let options = evaluate(&file, "demo.msb");
    assert_eq!(options["proxyusefdpass"], "yes");
    assert_eq!(
        options["proxycommand"],
        "'/opt/msb/bin/msb' ssh-bridge --fdpass -- '%h'"
    );
}

#[test]
fn ssh_runs_the_right_program_with_the_right_words_from_any_directory() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("it's 100% \"odd\" $HOME #1 \\ `x`");
    std::fs::create_dir_all(root.join("bin")).unwrap();
    let config = SshConfig {
        environment: vec![("MSB_HOME".into(), root.clone())],
        ..config(&root)
    };
    std::fs::write(
        &config.msb,
        "#!/bin/sh\nprintf '%s\\n' \"$MSB_HOME\" \"$@\" > \"$MSB_HOME/seen\"\n",
    )
    .unwrap();
    std::fs::set_permissions(&config.msb, std::fs::Permissions::from_mode(0o755)).unwrap();
    let file = directory.path().join("config");
    std::fs::write(&file, config.render().unwrap()).unwrap();

    let status = Command::new("ssh")
        .arg("-F")
        .arg(&file)
        .arg("demo.msb")
        .output()
        .unwrap()
        .status;
    assert!(!status.success(), "the program is no bridge");
    let seen = std::fs::read_to_string(root.join("seen")).unwrap();
    assert_eq!(
        seen.lines().collect::<Vec<_>>(),
        [root.to_str().unwrap(), "ssh-bridge", "--", "demo.msb"]
    );
    let options = evaluate(&file, "demo.msb");
    assert_eq!(
        options["userknownhostsfile"].replace("%%", "%"),
        config.known_hosts.to_str().unwrap()
    );
    assert_eq!(
        options["identityfile"].replace("%%", "%"),
        config.identity.to_str().unwrap()
    );
}

#[test]
fn a_path_that_no_quoting_brings_through_is_refused() {
    for root in ["/a\nb", "/a${HOME}b"] {
        assert!(
            matches!(config(Path::new(root)).render(), Err(RenderError::Path { .. })),
            "{root:?}"
        );
    }
    assert!(matches!(
        config(Path::new("relative")).render(),
        Err(RenderError::Relative { .. })
    ));
}

struct Home {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

impl Home {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            path: directory.path().join("a home [1]"),
            _directory: directory,
        }
    }

    fn with_config(content: &str) -> Self {
        let home = Self::new();
        std::fs::create_dir_all(home.path.join(".ssh")).unwrap();
        std::fs::write(home.config(), content).unwrap();
        home
    }

    fn config(&self) -> PathBuf {
        self.path.join(".ssh/config")
    }

    fn read(&self) -> String {
        std::fs::read_to_string(self.config()).unwrap()
    }

    fn install(&self) -> Plan {
        let plan = Plan::install(&self.path, &config(Path::new("/opt/msb"))).unwrap();
        plan.apply().unwrap();
        plan
    }

    fn uninstall(&self) {
        Plan::uninstall(&self.path).unwrap().apply().unwrap();
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn an_installed_block_works_above_the_users_own_hosts() {
    let home = Home::with_config("Host *\n    User someone\n    StrictHostKeyChecking no\n");
    home.install();
    let options = evaluate(&home.config(), "demo.msb");
    assert_eq!(
        (options["user"].as_str(), options["stricthostkeychecking"].as_str()),
        ("root", "true")
    );
    assert_eq!(evaluate(&home.config(), "example.org")["user"], "someone");
}

#[test]
fn installing_twice_changes_nothing_and_uninstalling_restores_every_byte() {
    for original in [
        "",
        "Host a\r\n  User b\n\n\n# end without newline",
        "# msb\nInclude other\n",
    ] {
        let home = Home::with_config(original);
        assert!(!home.install().is_empty());
        let installed = home.read();
        assert!(installed.ends_with(original));
        assert!(home.install().is_empty());
        assert_eq!(home.read(), installed);
        home.uninstall();
        assert_eq!(home.read(), original);
        assert!(!home.path.join(".ssh/msb_config").exists());
        assert!(Plan::uninstall(&home.path).unwrap().is_empty());
    }
}

#[test]
fn a_new_installation_is_private_and_an_old_file_keeps_its_mode() {
    let fresh = Home::new();
    fresh.install();
    assert_eq!(mode(&fresh.path.join(".ssh")), 0o700);
    assert_eq!(
        (mode(&fresh.config()), mode(&fresh.path.join(".ssh/msb_config"))),
        (0o600, 0o600)
    );

    let old = Home::with_config("# mine\n");
    std::fs::set_permissions(old.config(), std::fs::Permissions::from_mode(0o640)).unwrap();
    old.install();
    assert_eq!(mode(&old.config()), 0o640);
}

#[test]
fn a_linked_config_stays_a_link() {
    let home = Home::with_config("");
    let real = home.path.join("dotfiles");
    std::fs::write(&real, "# mine\n").unwrap();
    std::fs::remove_file(home.config()).unwrap();
    symlink("../dotfiles", home.config()).unwrap();
    home.install();
    assert!(home.config().is_symlink());
    assert!(std::fs::read_to_string(&real).unwrap().ends_with("# mine\n"));

    std::fs::remove_file(&real).unwrap();
    let error = Plan::install(&home.path, &config(Path::new("/opt/msb"))).unwrap_err();
    assert!(matches!(error, InstallError::DanglingLink { .. }), "{error}");
}

#[test]
fn a_plan_shows_its_changes_and_makes_none() {
    let home = Home::with_config("Host a\n");
    let plan = Plan::install(&home.path, &config(Path::new("/opt/msb"))).unwrap();
    let diff = plan.diff();
    assert!(
        diff.contains(&format!(
            "--- {0}\n+++ {0}\n@@ -0,0 +1,2 @@\n+# Sandboxes",
            home.config().display()
        )),
        "{diff}"
    );
    assert!(
        diff.contains("--- /dev/null\n") && diff.contains("\n+Host *.msb\n"),
        "{diff}"
    );
    assert!(!diff.contains("Host a"), "{diff}");
    assert_eq!(home.read(), "Host a\n");

    std::fs::write(home.config(), "Host b\n").unwrap();
    assert!(matches!(plan.apply(), Err(InstallError::Changed { .. })));
    assert_eq!(home.read(), "Host b\n");
}
