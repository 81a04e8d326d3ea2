//! A real guest from a Rust program, and its files by `msb cp`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use msb::ssh::sftp::FileKind;
use msb::ssh::sftp::tree::TreeOptions;
use msb::ssh::{
    ExitStatus, Program, Session, SessionEvent, SpawnOptions, SshClientOptions, SshError, SshExecOptions,
    SshServerOptions,
};
use msb::vmm_process::args::Lifetime;
use msb_ssh::client::{ClientConfig, SshClient};
use msb_ssh::keys::{KeyPair, load_public};
use msb_tests::{Msb, finish, finish_with_input, sha256_of_file};
use tokio::io::AsyncWriteExt;

fn make_tree(at: &Path) {
    fs::create_dir_all(at.join("nested/deep")).unwrap();
    fs::write(at.join("empty"), "").unwrap();
    let large: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(at.join("nested/large"), large).unwrap();
    for index in 0..20 {
        fs::write(at.join(format!("nested/deep/{index} 'odd'")), format!("{index}\n")).unwrap();
    }
    fs::write(at.join("script"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(at.join("script"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("nested/large", at.join("link")).unwrap();
}

#[track_caller]
fn assert_same(left: &Path, right: &Path) {
    let mut diff = std::process::Command::new("diff");
    finish(diff.args(["-r", "--no-dereference"]).args([left, right])).expect(0);
}

#[tokio::test]
async fn a_program_has_commands_files_and_endpoints_of_a_sandbox() {
    let msb = Msb::new();
    let _running = msb.create("library");
    let sandbox = msb.open("library");
    let client = sandbox.ssh().open_client(SshClientOptions::default()).await.unwrap();

    let output = client.exec("uname -r; echo error >&2; exit 3", SshExecOptions::default());
    let output = output.await.unwrap();
    assert_eq!(
        (output.status, &output.stderr[..]),
        (ExitStatus::Code(3), &b"error\n"[..])
    );
    assert!(String::from_utf8(output.stdout).unwrap().contains("-msb"));

    let Session {
        mut stdin, mut events, ..
    } = client
        .spawn(&Program::Exec("wc -c".into()), &SpawnOptions::default())
        .await
        .unwrap();
    stdin.write_all(&vec![7; 1 << 20]).await.unwrap();
    stdin.shutdown().await.unwrap();
    assert_eq!(
        events.next().await.unwrap(),
        Some(SessionEvent::Stdout("1048576\n".into()))
    );
    assert!(events.wait().await.unwrap().is_success());

    let sftp = client.sftp().await.unwrap();
    sftp.mkdir("work").await.unwrap();
    sftp.write("work/one", "content").await.unwrap();
    sftp.rename("work/one", "work/two").await.unwrap();
    sftp.symlink("two", "work/link").await.unwrap();
    assert_eq!(sftp.read("work/link").await.unwrap(), b"content");
    assert_eq!(sftp.read_link("work/link").await.unwrap(), Path::new("two"));
    assert_eq!(sftp.real_path("work/link").await.unwrap(), Path::new("/root/work/two"));
    assert_eq!(sftp.list("work").await.unwrap().len(), 2);
    assert_eq!(sftp.lstat("work/link").await.unwrap().kind(), FileKind::Symlink);
    for name in ["work/link", "work/two"] {
        sftp.remove_file(name).await.unwrap();
    }
    sftp.remove_dir("work").await.unwrap();
    let (tree, back) = (msb.scratch("tree"), msb.scratch("back"));
    make_tree(&tree);
    let options = TreeOptions::default();
    sftp.upload(&tree, "/tmp/tree", &options).await.unwrap();
    assert_eq!(sftp.download("/tmp/tree", &back, &options).await.unwrap().failed, 0);
    assert_same(&tree, &back);
    sftp.close().await;

    let server = sandbox.ssh().prepare_server(SshServerOptions::default()).await.unwrap();
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let served = server.clone();
    let serving = tokio::spawn(async move { served.serve_connection_on(theirs).await });
    let key = KeyPair::load(&sandbox.store().layout().client_key()).unwrap();
    let host_key = load_public(&sandbox.dir().host_key_pub()).unwrap();
    let config = ClientConfig::new("user", key.private_key().clone(), host_key);
    let through = SshClient::connect(ours, config).await.unwrap();
    let output = through.exec("id -un", SshExecOptions::default()).await.unwrap();
    assert_eq!(output.stdout, b"user\n");
    server.close();
    assert!(matches!(serving.await.unwrap(), Err(SshError::Closed)));
    client.close().await;
}

#[test]
fn files_are_copied_both_ways_without_an_openssh_client() {
    let msb = Msb::new();
    let sandbox = msb.create("copy");
    let (tree, back) = (msb.scratch("tree"), msb.scratch("back"));
    make_tree(&tree);
    let here = |path: &Path| path.to_str().unwrap().to_owned();

    msb.run(["cp", "-p", &here(&tree), "copy:tree"]).expect(0);
    assert_eq!(
        sandbox.ssh("tree/script; readlink tree/link").expect(0).text(),
        "ran\nnested/large\n"
    );
    let copied = msb.run(["cp", "-p", "copy:tree", &here(&back)]).expect(0);
    assert_eq!((copied.text(), copied.stderr), (String::new(), String::new()));
    assert_same(&tree, &back);

    let mut up = msb.command(["cp", "--user", "user", "-", "copy:from-input"]);
    finish_with_input(&mut up, fs::read(tree.join("nested/large")).unwrap()).expect(0);
    let down = msb.run(["cp", "copy:/home/user/from-input", "-"]).expect(0);
    fs::write(msb.scratch("output"), down.stdout).unwrap();
    assert_eq!(
        sha256_of_file(&msb.scratch("output")),
        sha256_of_file(&tree.join("nested/large"))
    );
    let owner = sandbox.ssh("stat -c %U /home/user/from-input").expect(0);
    assert_eq!(owner.text(), "user\n");
    let refused = msb
        .run(["cp", "--user", "user", "copy:/root/tree/script", "-"])
        .refusal();
    assert!(
        refused.contains("/root/tree/script") && refused.contains("Permission denied"),
        "{refused}"
    );

    let user = msb.run(["exec", "--user", "user", "copy", "--", "id", "-un"]).expect(0);
    assert_eq!(user.text(), "user\n");
}

#[tokio::test]
async fn a_program_forks_a_sandbox_and_hears_of_each_fork() {
    let msb = Msb::new();
    msb.create("source");
    let sandbox = msb.open("source");
    sandbox.pause().unwrap();
    let names = ["source", "fork"].map(|name| Some(name.parse().unwrap()));
    let mut forks = sandbox.fork(names, Lifetime::OfStarter).unwrap();
    sandbox.resume().unwrap();
    let mut fork = forks.pop().unwrap().unwrap();
    let taken = forks.pop().unwrap().unwrap_err();
    assert!(taken.to_string().contains("is taken"), "{taken}");

    fork.ready(Duration::from_secs(60)).await.unwrap();
    let client = fork
        .sandbox()
        .ssh()
        .open_client(SshClientOptions::default())
        .await
        .unwrap();
    let output = client.exec("hostname", SshExecOptions::default()).await.unwrap();
    assert_eq!(output.stdout, b"fork\n");
    client.close().await;
    fork.discard().await.unwrap();
    assert_eq!(msb.state("source"), "running");
}
