//! Commands and terminals of a real guest that outlive what started them: from a program, and with `msb`.

use std::process::Command;
use std::time::Duration;

use msb::processes::{AttachOptions, Commands, Info, ProcessEvent, Program, PtyOptions, RunOptions, Since};
use msb::ssh::ExitStatus;
use msb_test_support::until;
use msb_tests::{Msb, Terminal, finish, finish_with_input};

const MIB: usize = 1 << 20;

/// What fills a terminal, and how often: more than 10 MiB, with the ends of lines that a terminal makes of them.
const LINE: &str = "a line of many that come while nobody looks, and of which each has to be there when somebody does";
const LINES: usize = 106_000;

fn envs(name: &str, value: &str) -> Vec<(String, String)> {
    vec![(name.into(), value.into())]
}

async fn find(commands: &Commands, pid: u32) -> Option<Info> {
    commands.list().await.unwrap().into_iter().find(|info| info.pid == pid)
}

#[tokio::test]
async fn a_program_runs_lists_kills_and_joins_commands() {
    let msb = Msb::new();
    let _running = msb.create("commands");
    let sandbox = msb.open("commands");
    let commands = sandbox.commands();

    // commands.run: collecting, with cwd, envs, user, stdin, timeout.
    let options = RunOptions {
        user: Some("user".into()),
        cwd: Some("/tmp".into()),
        envs: envs("GREETING", "it's me"),
        stdin: Some(b"input".to_vec()),
        ..RunOptions::default()
    };
    let output = commands.run("id -un; pwd; echo $GREETING; cat; echo error >&2; exit 3", options);
    let output = output.await.unwrap();
    assert_eq!(output.stdout, b"user\n/tmp\nit's me\ninput");
    assert_eq!(
        (output.end.status, &output.stderr[..]),
        (ExitStatus::Code(3), &b"error\n"[..])
    );
    let output = commands
        .run(["printf", "%s|", "a b", "$HOME"], RunOptions::default())
        .await
        .unwrap();
    assert_eq!(output.stdout, b"a b|$HOME|");
    let late = RunOptions {
        timeout: Some(Duration::from_millis(500)),
        ..RunOptions::default()
    };
    let output = commands.run("sleep 1000", late).await.unwrap();
    assert!(output.end.timed_out && !output.end.status.is_success());

    // Streaming, by callback.
    let mut pieces = Vec::new();
    let end = commands.run_with("echo out; echo err >&2", RunOptions::default(), |event| {
        pieces.push(event)
    });
    assert!(end.await.unwrap().status.is_success());
    assert!(pieces.contains(&ProcessEvent::Stdout("out\n".into())));
    assert!(pieces.contains(&ProcessEvent::Stderr("err\n".into())));

    // background, list, send_stdin, close_stdin, connect, kill.
    let options = RunOptions {
        tag: Some("echo".into()),
        cwd: Some("/tmp".into()),
        envs: envs("A", "b"),
        stdin: Some(b"first\n".to_vec()),
        ..RunOptions::default()
    };
    let mut process = commands
        .start("while read line; do echo got $line; done; exit 4", options)
        .await
        .unwrap();
    let pid = process.pid();
    until(&mut process, "got first\n").await;
    let info = find(&commands, pid).await.expect("it is listed");
    assert_eq!(
        (info.tag.as_deref(), &info.cwd[..], &info.user[..]),
        (Some("echo"), &b"/tmp"[..], "root")
    );
    assert_eq!(info.env, [(b"A".to_vec(), b"b".to_vec())]);
    assert!(matches!(info.program, Program::Line(line) if line.starts_with(b"while read")));
    let position = process.events.position();
    process.disconnect().await;
    commands.send_stdin(pid, "second\n").await.unwrap();
    commands.close_stdin(pid).await.unwrap();
    let since = Since::Position(position);
    let joined = sandbox
        .commands()
        .connect(pid, AttachOptions { since, hold: true })
        .await
        .unwrap();
    let output = joined.collect(MIB).await.unwrap();
    assert_eq!(
        (output.end.status, &output.stdout[..]),
        (ExitStatus::Code(4), &b"got second\n"[..])
    );
    assert!(find(&commands, pid).await.is_none());
    assert!(!commands.kill(pid, "KILL").await.unwrap(), "it is gone");

    let sleeping = commands.start("exec sleep 1000", RunOptions::default()).await.unwrap();
    assert!(commands.kill(sleeping.pid(), "TERM").await.unwrap());
    let end = sleeping.wait().await.unwrap();
    assert!(matches!(end.status, ExitStatus::Signal { name, .. } if name == "TERM"));

    // A user has its own processes only, root all.
    let options = RunOptions {
        user: Some("user".into()),
        ..RunOptions::default()
    };
    let theirs = commands.start("exec sleep 1000", options).await.unwrap();
    let ours = commands.start("exec sleep 1000", RunOptions::default()).await.unwrap();
    let as_user = sandbox.commands().with_options(msb::ssh::SshClientOptions {
        user: "user".into(),
        ..msb::ssh::SshClientOptions::default()
    });
    let seen: Vec<u32> = as_user.list().await.unwrap().iter().map(|info| info.pid).collect();
    assert_eq!(seen, [theirs.pid()]);
    assert!(!as_user.kill(ours.pid(), "KILL").await.unwrap());
    let info = find(&commands, theirs.pid()).await.expect("root sees it");
    assert_eq!(info.user, "user");
    assert!(commands.kill(theirs.pid(), "KILL").await.unwrap());
    theirs.wait().await.unwrap();
    ours.control.signal("KILL").await.unwrap();
    ours.wait().await.unwrap();

    // One that nobody reads, beside fifty others on the same connection.
    let held = commands.start("yes", RunOptions::default()).await.unwrap();
    let mut others = Vec::new();
    for index in 0..50 {
        others.push(
            commands
                .start(format!("seq 1 2000; echo {index}"), RunOptions::default())
                .await
                .unwrap(),
        );
    }
    for (index, other) in others.into_iter().enumerate() {
        let output = other.collect(MIB).await.unwrap();
        assert!(
            output.stdout.ends_with(format!("\n2000\n{index}\n").as_bytes()),
            "{index}"
        );
    }
    held.control.signal("KILL").await.unwrap();
    drop(held);

    // A keeper that is killed takes its process along, and nothing is made up.
    let mut process = commands
        .start("echo $PPID; exec sleep 1000", RunOptions::default())
        .await
        .unwrap();
    let keeper = until(&mut process, "\n").await;
    let (pid, kill) = (process.pid(), format!("kill -KILL {}", keeper.trim()));
    commands.run(kill, RunOptions::default()).await.unwrap();
    assert_eq!(process.wait().await.unwrap().status, ExitStatus::Unknown);
    assert!(find(&commands, pid).await.is_none());
    let gone = format!("while kill -0 {pid} 2> /dev/null; do sleep 0.1; done");
    assert!(
        commands
            .run(gone, RunOptions::default())
            .await
            .unwrap()
            .end
            .status
            .is_success()
    );
}

#[tokio::test]
async fn a_program_makes_resizes_leaves_and_joins_terminals() {
    let msb = Msb::new();
    let _running = msb.create("terminals");
    let sandbox = msb.open("terminals");
    let pty = sandbox.pty();

    // create, send_input, resize, disconnect, connect, wait.
    let options = PtyOptions {
        cols: 90,
        rows: 30,
        cwd: Some("/tmp".into()),
        envs: envs("MY_VAR", "hello"),
        user: Some("user".into()),
        ..PtyOptions::default()
    };
    let mut terminal = pty.create(options).await.unwrap();
    let pid = terminal.pid();
    pty.send_input(pid, "stty size; echo $MY_VAR-$TERM-$(pwd)-$(id -un)\n")
        .await
        .unwrap();
    let seen = until(&mut terminal, "hello-xterm-256color-/tmp-user\r\n").await;
    assert!(seen.contains("30 90\r\n"), "{seen:?}");
    pty.resize(pid, 120, 40).await.unwrap();
    terminal.disconnect().await;
    pty.send_input(pid, "stty size\n").await.unwrap();
    let mut again = sandbox.pty().connect(pid, AttachOptions::default()).await.unwrap();
    let mut watching = sandbox.pty().connect(pid, AttachOptions::default()).await.unwrap();
    for client in [&mut again, &mut watching] {
        let seen = until(client, "40 120\r\n").await;
        assert!(seen.contains("hello-xterm"), "the recent output comes first: {seen:?}");
    }
    pty.send_input(pid, "exit 5\n").await.unwrap();
    assert_eq!(again.wait().await.unwrap().status, ExitStatus::Code(5));
    assert_eq!(watching.wait().await.unwrap().status, ExitStatus::Code(5));

    // kill, and a timeout that ends a shell.
    let terminal = pty.create(PtyOptions::default()).await.unwrap();
    assert!(pty.kill(terminal.pid()).await.unwrap());
    assert!(!terminal.wait().await.unwrap().status.is_success());
    let brief = PtyOptions {
        timeout: Duration::from_millis(500),
        ..PtyOptions::default()
    };
    assert!(pty.create(brief).await.unwrap().wait().await.unwrap().timed_out);

    // 10 MiB that came while nobody looked, complete, in another process.
    let options = PtyOptions {
        history: 16 << 20,
        command: Some(format!("read go; seq 1000000 1010000; yes '{LINE}' | head -n {LINES}; echo end").into()),
        ..PtyOptions::default()
    };
    let mut terminal = pty.create(options).await.unwrap();
    let pid = terminal.pid();
    terminal.control.send_input("\n").await.unwrap();
    until(&mut terminal, "1000010\r\n").await;
    terminal.disconnect().await;
    let attached = msb.run(["attach", "terminals", &pid.to_string()]).expect(0);
    assert_eq!(attached.stderr, "");
    assert!(attached.stdout.len() > 10 * MIB);
    let text = attached.text();
    let mut lines = text.split("\r\n").skip(1);
    for number in 1_000_000..=1_010_000 {
        assert_eq!(lines.next(), Some(number.to_string().as_str()));
    }
    assert_eq!(lines.by_ref().take(LINES).filter(|line| *line == LINE).count(), LINES);
    assert_eq!(lines.collect::<Vec<_>>(), ["end", ""]);
}

#[test]
fn msb_starts_lists_joins_and_signals_processes() {
    let msb = Msb::new();
    let sandbox = msb.create("kept");

    // exec: --cwd, --env, --timeout, input to its end, the status.
    let mut exec = msb.command(["exec", "--cwd", "/tmp", "--env", "ANY=x y", "kept", "--", "sh", "-c"]);
    let output = finish_with_input(exec.arg("pwd; echo \"$ANY\"; wc -c; exit 6"), vec![0; MIB]).expect(6);
    assert_eq!(output.text(), "/tmp\nx y\n1048576\n");
    let late = msb
        .run(["exec", "--timeout", "0.5", "kept", "--", "sleep", "1000"])
        .expect(143);
    assert!(late.stderr.contains("its time was over"), "{}", late.stderr);
    let missing = msb.run(["exec", "--cwd", "/not/there", "kept", "--", "true"]).refusal();
    assert!(
        missing.contains("/not/there") && missing.contains("No such file"),
        "{missing}"
    );

    // exec -d outlives its command; ps; attach by tag.
    let options = ["exec", "-d", "-i", "--tag", "server", "kept", "--", "sh", "-c"];
    let started = finish(
        msb.command(options)
            .arg("echo ready; read line; echo got $line; exit 7"),
    )
    .expect(0);
    let pid = started.text().trim().to_owned();
    let listed = msb.run(["ps", "--json", "kept"]).expect(0);
    let listed: Vec<serde_json::Value> = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (&listed[0]["tag"], &listed[0]["state"]),
        (&"server".into(), &"running".into())
    );
    assert_eq!(listed[0]["pid"].to_string(), pid);
    let table = msb.run(["ps", "kept"]).expect(0).text();
    assert!(table.starts_with("PID") && table.contains("server"), "{table}");
    let attached = finish_with_input(&mut msb.command(["attach", "kept", "server"]), b"word\n".to_vec()).expect(7);
    assert_eq!(attached.text(), "ready\ngot word\n");
    let gone = msb.run(["attach", "kept", &pid]).refusal();
    assert!(gone.contains("msb ps kept"), "{gone}");
    let absent = msb.run(["attach", "kept", "absent"]).refusal();
    assert!(absent.contains("\"absent\"; see `msb ps kept`"), "{absent}");

    // A tag of two names neither; what is refused says why.
    let twins = [(); 2].map(|()| {
        let twin = ["exec", "-d", "--tag", "twin", "kept", "--", "sleep", "1000"];
        msb.run(twin).expect(0).text().trim().to_owned()
    });
    let several = msb.run(["kill", "kept", "--pid", "twin"]).refusal();
    assert!(
        twins.iter().all(|twin| several.contains(twin.as_str())) && several.contains("by its PID"),
        "{several}"
    );
    let unknown = msb
        .run(["kill", "kept", "--pid", &twins[0], "--signal", "BOGUS"])
        .refusal();
    assert!(unknown.contains("no signal is called BOGUS"), "{unknown}");
    for twin in &twins {
        msb.run(["kill", "kept", "--pid", twin]).expect(0);
        // Whoever hears of the end takes it off the list.
        msb.run(["attach", "kept", twin]).expect(137);
    }
    let stranger = msb.run(["exec", "--user", "stranger", "kept", "--", "true"]);
    assert!(stranger.stderr.contains("it has no such user"), "{stranger:?}");

    // A terminal that is left by keys and taken up again.
    let started = msb
        .run(["exec", "-d", "-t", "--tag", "work", "kept", "--", "sh"])
        .expect(0);
    let pid = started.text().trim().to_owned();
    let mut terminal = Terminal::start(&mut msb.command(["attach", "kept", "work"]), 33);
    terminal.type_text("echo mark-$((40 + 2))\n");
    terminal.wait_for("mark-42");
    terminal.type_text("stty size\n");
    terminal.wait_for("33 80");
    terminal.type_text("\x10\x11");
    terminal.wait_for("goes on");
    assert_eq!(terminal.wait(), 0);
    let mut terminal = Terminal::start(&mut msb.command(["attach", "kept", &pid]), 33);
    terminal.wait_for("mark-42");
    terminal.type_text("exit 9\n");
    assert_eq!(terminal.wait(), 9);

    // kill --pid leaves the sandbox alone.
    let started = msb.run(["exec", "-d", "kept", "--", "sleep", "1000"]).expect(0);
    let pid = started.text().trim().to_owned();
    msb.run(["kill", "kept", "--pid", &pid, "--signal", "SIGTERM"])
        .expect(0);
    msb.run(["attach", "--no-input", "kept", &pid]).expect(143);
    let again = msb.run(["kill", "kept", "--pid", &pid]).refusal();
    assert!(again.contains("msb ps kept"), "{again}");
    assert_eq!(msb.state("kept"), "running");

    // Stock ssh drives the subsystem: hello, list; hello, done.
    let mut ssh: Command = msb.openssh("ssh");
    ssh.args(["-s", &sandbox.host(), "process@msb"]);
    let hello_and_list = b"\0\0\0\x05\x01\0\0\0\x01\0\0\0\x01\x04".to_vec();
    let answered = finish_with_input(&mut ssh, hello_and_list).expect(0);
    assert_eq!(answered.stdout, b"\0\0\0\x05\x65\0\0\0\x01\0\0\0\x01\x6c");
}
