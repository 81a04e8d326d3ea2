//! Ansible. Its modules are Python programs on the server; the fixture brings a Python.

use std::fs;

use msb_tests::{finish, sha256_of_file};

use crate::fixture::Fixture;

pub(crate) fn playbook(fixture: &Fixture) {
    let server = &fixture.server;
    let (playbook, inventory) = (fixture.local("playbook.yml"), fixture.local("inventory"));
    fs::write(&playbook, include_str!("playbook.yml")).unwrap();
    let python = finish(&mut server.ssh("command -v python3")).expect(0).text();
    let host = format!(
        "{} ansible_ssh_common_args='-F {}' ansible_python_interpreter={python}",
        server.host,
        server.ssh_config.display()
    );
    fs::write(&inventory, host).unwrap();
    let file = fixture.random_file("ansible-file", 100_000);
    let back = fixture.local("ansible-back");
    let variables = serde_json::json!({"file": file, "remote": fixture.remote("ansible"), "back": back});
    let mut ansible = fixture.client("ansible-playbook", "ansible-core");
    // Its connections outlive it otherwise.
    ansible.env("ANSIBLE_SSH_ARGS", "-o ControlMaster=auto -o ControlPersist=5s");
    ansible.arg("-i").arg(&inventory).arg("-e").arg(variables.to_string());
    let done = finish(ansible.arg(&playbook)).expect(0);
    assert!(done.text().contains("ok=3 "), "{}", done.text());
    assert_eq!(sha256_of_file(&back), sha256_of_file(&file));
    let mode = finish(&mut server.ssh(&format!("stat -c %a {}", fixture.remote("ansible")))).expect(0);
    assert_eq!(mode.text(), "640\n");
}
