//! git over ssh.

use std::fs;
use std::path::Path;
use std::process::Command;

use msb_tests::{Finished, finish, sha256_of_file};

use crate::fixture::Fixture;

pub(crate) fn push_and_clone(fixture: &Fixture) {
    let repository = fixture.remote("repository.git");
    let url = format!("{}:{repository}", fixture.server.host);
    let (work, clone) = (fixture.local("git-work"), fixture.local("git-clone"));
    fs::create_dir(&work).unwrap();
    fs::copy(fixture.random_file("git-blob", 1 << 20), work.join("blob")).unwrap();
    finish(&mut fixture.server.ssh(&format!("git init -q --bare {repository}"))).expect(0);
    for arguments in [
        &["init", "-q", "-b", "main"][..],
        &["add", "blob"],
        &["commit", "-q", "-m", "first"],
        &["push", "-q", &url, "main"],
    ] {
        git(fixture, &work, arguments).expect(0);
    }
    git(
        fixture,
        &fixture.local(""),
        &["clone", "-q", "-b", "main", &url, "git-clone"],
    )
    .expect(0);
    assert_eq!(sha256_of_file(&clone.join("blob")), sha256_of_file(&work.join("blob")));

    git(fixture, &clone, &["commit", "-q", "--allow-empty", "-m", "second"]).expect(0);
    git(fixture, &clone, &["push", "-q"]).expect(0);
    let pulled = git(fixture, &work, &["pull", "-q", &url, "main"]).expect(0);
    let log = git(fixture, &work, &["log", "--format=%s"]).expect(0);
    assert_eq!(log.text(), "second\nfirst\n", "{}", pulled.stderr);

    let missing = git(fixture, &work, &["ls-remote", &format!("{url}.missing")]).expect(128);
    assert!(missing.stderr.contains("does not appear to be a git repository"));
}

fn git(fixture: &Fixture, directory: &Path, arguments: &[&str]) -> Finished {
    let mut git: Command = fixture.client("git", "git");
    git.env(
        "GIT_SSH_COMMAND",
        format!("ssh -F {}", fixture.server.ssh_config.display()),
    );
    for role in ["AUTHOR", "COMMITTER"] {
        git.env(format!("GIT_{role}_NAME"), "test");
        git.env(format!("GIT_{role}_EMAIL"), "test@invalid");
    }
    finish(git.current_dir(directory).args(arguments))
}
