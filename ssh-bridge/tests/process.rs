//! Processes that outlive their connection, with the real agent.

mod agent;

use std::time::Duration;

use agent::Agent;
use msb_ssh::client::{ExitStatus, SshClient};
use msb_ssh::process::{
    self, AttachOptions, Failure, Process, ProcessError, ProcessEvent, Program, Since, StartOptions, Terminal,
};
use msb_test_support::until;

const MIB: usize = 1024 * 1024;

fn line(command: &str) -> Program {
    Program::Line(command.as_bytes().to_vec())
}

/// For a shell that reads nothing of the user's first.
fn plain(command: &str) -> Program {
    Program::Arguments(
        ["/bin/sh", "-c", command]
            .map(|argument| argument.as_bytes().to_vec())
            .into(),
    )
}

async fn start(client: &SshClient, command: &str, options: &StartOptions) -> Process {
    process::start(client, plain(command), options).await.unwrap()
}

fn surviving() -> StartOptions {
    StartOptions {
        survive: true,
        ..StartOptions::default()
    }
}

fn with_input() -> StartOptions {
    StartOptions {
        input: true,
        ..StartOptions::default()
    }
}

fn on_terminal() -> StartOptions {
    StartOptions {
        terminal: Some(Terminal {
            term: "xterm-256color".into(),
            cols: 80,
            rows: 24,
        }),
        survive: true,
        ..StartOptions::default()
    }
}

fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ")
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

/// Waits for the end of a process that is nobody's child here.
async fn gone(pid: u32) {
    while is_alive(pid) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn output_errors_and_status_arrive_apart_and_complete() {
    let (_agent, client) = Agent::connected().await;
    let process = start(
        &client,
        "seq 1 200000; echo error >&2; exit 3",
        &StartOptions::default(),
    )
    .await;
    let output = process.collect(4 * MIB).await.unwrap();
    assert_eq!(output.end.status, ExitStatus::Code(3));
    assert_eq!(output.stderr, b"error\n");
    let lines = String::from_utf8(output.stdout).unwrap();
    assert!(lines.lines().map(|line| line.parse::<u32>().unwrap()).eq(1..=200_000));
}

#[tokio::test]
async fn directory_environment_and_arguments_are_as_asked_for() {
    let (agent, client) = Agent::connected().await;
    let options = StartOptions {
        cwd: Some(agent.path("")),
        env: vec![("ODD".into(), "a=b \n'c'".into()), ("LD_X".into(), "any name".into())],
        ..StartOptions::default()
    };
    let arguments = [
        "sh",
        "-c",
        "pwd; printf '%s|' \"$ODD\" \"$LD_X\" \"$@\"",
        "sh",
        "two words",
        "$HOME",
    ];
    let program = Program::Arguments(arguments.iter().map(|argument| argument.as_bytes().to_vec()).collect());
    let process = process::start(&client, program, &options).await.unwrap();
    let output = String::from_utf8(process.collect(MIB).await.unwrap().stdout).unwrap();
    let directory = std::fs::canonicalize(agent.path("")).unwrap();
    let expected = format!("{}\na=b \n'c'|any name|two words|$HOME|", directory.display());
    assert_eq!(output, expected);
}

#[tokio::test]
async fn a_line_is_for_the_users_shell() {
    let (_agent, client) = Agent::connected().await;
    let command = line("for word in a b; do echo $word | tr a-z A-Z; done; exit 5");
    let process = process::start(&client, command, &StartOptions::default())
        .await
        .unwrap();
    let output = process.collect(MIB).await.unwrap();
    assert_eq!(
        (output.end.status, &output.stdout[..]),
        (ExitStatus::Code(5), &b"A\nB\n"[..])
    );
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let (_agent, client) = Agent::connected().await;
    let nowhere = StartOptions {
        cwd: Some("/does/not/exist".into()),
        ..StartOptions::default()
    };
    for (program, options, word) in [
        (line("true"), nowhere, "/does/not/exist"),
        (
            Program::Arguments(vec![b"/no/program".to_vec()]),
            StartOptions::default(),
            "/no/program",
        ),
        (Program::Arguments(Vec::new()), StartOptions::default(), "no program"),
    ] {
        let error = process::start(&client, program, &options).await.unwrap_err();
        assert!(
            matches!(
                error,
                ProcessError::Refused {
                    failure: Failure::Start,
                    ..
                }
            ),
            "{error}"
        );
        assert!(error.to_string().contains(word), "{error}");
    }
    let error = process::attach(&client, 1, &AttachOptions::default())
        .await
        .unwrap_err();
    assert!(error.is_no_process(), "{error}");
}

#[tokio::test]
async fn input_is_sent_and_closed_and_waits_for_its_reader() {
    let (_agent, client) = Agent::connected().await;
    let process = start(&client, "wc -c", &with_input()).await;
    process.control.send_input(vec![7; 3 * MIB]).await.unwrap();
    process.control.close_input().await.unwrap();
    assert_eq!(process.collect(MIB).await.unwrap().stdout, b"3145728\n");

    // Nobody reads: the sender waits, and the process can be signalled all the same.
    let mut process = start(&client, "exec sleep 1000", &with_input()).await;
    let control = process.control.clone();
    let sending = tokio::spawn(async move { control.send_input(vec![7; MIB]).await });
    process.control.signal("TERM").await.unwrap();
    let end = process.events.wait().await.unwrap();
    assert!(matches!(end.status, ExitStatus::Signal { name, .. } if name == "TERM"));
    assert!(matches!(sending.await.unwrap(), Err(ProcessError::Ended)));

    let without = start(&client, "cat", &StartOptions::default()).await;
    assert!(matches!(
        without.control.send_input("x").await,
        Err(ProcessError::NoInput)
    ));
    assert_eq!(
        without.wait().await.unwrap().status,
        ExitStatus::Code(0),
        "its input was not empty"
    );
}

#[tokio::test]
async fn running_processes_are_listed_with_all_that_is_known() {
    let (agent, client) = Agent::connected().await;
    let options = StartOptions {
        cwd: Some(agent.path("")),
        env: vec![("A".into(), "b".into())],
        tag: Some("server".into()),
        ..surviving()
    };
    let process = start(&client, "echo hello; exec sleep 1000", &options).await;
    let listed = process::list(&client).await.unwrap();
    let info = listed
        .iter()
        .find(|info| info.pid == process.pid())
        .expect("it is listed");
    assert_eq!(info.program, plain("echo hello; exec sleep 1000"));
    assert_eq!(info.env, [(b"A".to_vec(), b"b".to_vec())]);
    assert_eq!(info.tag.as_deref(), Some("server"));
    assert_eq!((info.clients, &info.end), (1, &None));
    process.control.signal("KILL").await.unwrap();
    process.wait().await.unwrap();
    let listed = process::list(&client).await.unwrap();
    assert!(listed.iter().all(|info| info.end.is_some()), "{listed:?}");
}

#[tokio::test]
async fn a_process_survives_its_connection_and_is_joined_where_it_was_left() {
    let (mut agent, client) = Agent::connected().await;
    let options = StartOptions {
        input: true,
        ..surviving()
    };
    let mut process = start(&client, "read a; seq 1 100; read b; seq 101 200", &options).await;
    process.control.send_input("\n").await.unwrap();
    let seen = until(&mut process, "\n50\n").await;
    let (pid, position) = (process.pid(), process.events.position());
    assert_eq!(position, seen.len() as u64);

    let client = agent.reconnected().await;
    let since = Since::Position(position);
    let mut process = process::attach(&client, pid, &AttachOptions { since, hold: true })
        .await
        .unwrap();
    assert_eq!(process.lost(), 0);
    process.control.send_input("\n").await.unwrap();
    let output = process.events.collect(MIB).await.unwrap();
    assert_eq!(output.end.status, ExitStatus::Code(0));
    let whole = seen + &String::from_utf8(output.stdout).unwrap();
    assert!(whole.lines().map(|line| line.parse::<u32>().unwrap()).eq(1..=200));
}

#[tokio::test]
async fn an_end_that_nobody_saw_is_told_once() {
    let (mut agent, client) = Agent::connected().await;
    let process = start(&client, "echo done; exit 7", &surviving()).await;
    let pid = process.pid();
    // Before anything of it is read.
    drop(process);
    let client_again = agent.reconnected().await;
    drop(client);
    let process = process::attach(&client_again, pid, &AttachOptions::default())
        .await
        .unwrap();
    let output = process.collect(MIB).await.unwrap();
    assert_eq!(
        (output.end.status, &output.stdout[..]),
        (ExitStatus::Code(7), &b"done\n"[..])
    );
    while process::attach(&client_again, pid, &AttachOptions::default())
        .await
        .is_ok()
    {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_process_that_does_not_survive_goes_with_its_connection() {
    let (mut agent, client) = Agent::connected().await;
    let mut process = start(&client, "echo $$; exec sleep 1000", &StartOptions::default()).await;
    let pid: u32 = until(&mut process, "\n").await.trim().parse().unwrap();
    assert_eq!(pid, process.pid());
    agent.kill();
    gone(pid).await;
}

#[tokio::test]
async fn a_slow_reader_loses_nothing_and_the_process_waits_for_it() {
    let (_agent, client) = Agent::connected().await;
    let command = format!("head -c {} /dev/zero | tr '\\0' x; echo end", 12 * MIB);
    let mut process = start(&client, &command, &StartOptions::default()).await;
    // The process is ahead by what is in flight and kept, and no further.
    let mut seen = 0;
    let listed = loop {
        let listed = process::list(&client).await.unwrap();
        let printed = listed[0].printed;
        if printed == seen && printed > 0 {
            break listed;
        }
        seen = printed;
    };
    assert!(listed[0].end.is_none() && seen < 2 * MIB as u64, "{seen}");
    let output = process.events.collect(20 * MIB).await.unwrap();
    assert_eq!(output.stdout.len(), 12 * MIB + 4);
    assert!(output.stdout.ends_with(b"xend\n"));
}

#[tokio::test]
async fn what_a_watcher_missed_is_counted() {
    let (_agent, client) = Agent::connected().await;
    let options = StartOptions {
        history: 64 * 1024,
        hold: false,
        ..surviving()
    };
    let command = format!("head -c {} /dev/zero; echo end", 4 * MIB);
    let mut process = start(&client, &command, &options).await;
    let is_running = |info: &process::Info| info.end.is_none();
    while process::list(&client).await.unwrap().iter().any(is_running) {
        tokio::task::yield_now().await;
    }
    let (mut received, mut lost) = (0, 0);
    loop {
        match process.events.next().await.unwrap() {
            Some(ProcessEvent::Stdout(data)) => received += data.len() as u64,
            Some(ProcessEvent::Lost(bytes)) => lost += bytes,
            Some(ProcessEvent::Exit(_)) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(lost > 0);
    assert_eq!(received + lost, 4 * MIB as u64 + 4);
    assert_eq!(process.events.position(), 4 * MIB as u64 + 4);
}

#[tokio::test]
async fn a_time_that_is_over_ends_the_whole_group_and_is_told() {
    let (_agent, client) = Agent::connected().await;
    let options = StartOptions {
        timeout: Some(Duration::from_secs(1)),
        ..StartOptions::default()
    };
    let mut process = start(&client, "sleep 1000 & echo $!; wait", &options).await;
    let child: u32 = until(&mut process, "\n").await.trim().parse().unwrap();
    let end = process.events.wait().await.unwrap();
    assert!(end.timed_out && matches!(end.status, ExitStatus::Signal { name, .. } if name == "TERM"));
    gone(child).await;
    let patient = StartOptions {
        timeout: Some(Duration::from_secs(1000)),
        ..StartOptions::default()
    };
    let end = start(&client, "exit 4", &patient).await.wait().await.unwrap();
    assert_eq!((end.status, end.timed_out), (ExitStatus::Code(4), false));
}

#[tokio::test]
async fn a_terminal_has_a_size_that_changes_and_is_shared_by_its_clients() {
    let (mut agent, client) = Agent::connected().await;
    let mut terminal = start(
        &client,
        "stty size; read a; stty size; read b; echo got-$b",
        &on_terminal(),
    )
    .await;
    until(&mut terminal, "24 80\r\n").await;
    terminal.control.resize(120, 40).await.unwrap();
    terminal.control.send_input("\n").await.unwrap();
    until(&mut terminal, "40 120\r\n").await;
    let mut second = process::attach(&client, terminal.pid(), &AttachOptions::default())
        .await
        .unwrap();
    let replayed = until(&mut second, "40 120\r\n").await;
    assert!(replayed.contains("24 80\r\n"), "{replayed:?}");
    assert!(second.has_terminal());
    assert!(
        second.control.close_input().await.is_err(),
        "a terminal has no end of input"
    );

    let pid = terminal.pid();
    terminal.disconnect().await;
    second.disconnect().await;
    let client = agent.reconnected().await;
    let mut third = process::attach(&client, pid, &AttachOptions::default()).await.unwrap();
    third.control.send_input("input\n").await.unwrap();
    until(&mut third, "got-input\r\n").await;
    assert_eq!(third.wait().await.unwrap().status, ExitStatus::Code(0));
}

#[tokio::test]
async fn ten_mib_that_a_terminal_showed_while_nobody_looked_are_complete_over_another_connection() {
    let (mut agent, client) = Agent::connected().await;
    let options = StartOptions {
        history: 16 << 20,
        ..on_terminal()
    };
    let mut terminal = start(&client, "read go; seq 1000000 2170000; echo end", &options).await;
    terminal.control.send_input("\n").await.unwrap();
    until(&mut terminal, "1000010\r\n").await;
    let pid = terminal.pid();
    terminal.disconnect().await;
    let client = agent.reconnected().await;
    let terminal = process::attach(&client, pid, &AttachOptions::default()).await.unwrap();
    assert_eq!(terminal.lost(), 0);
    let output = terminal.collect(20 * MIB).await.unwrap().stdout;
    assert!(output.len() > 10 * MIB);
    let text = String::from_utf8(output).unwrap();
    let numbers = text.split("\r\n").skip(1).map_while(|line| line.parse::<u32>().ok());
    assert!(numbers.eq(1_000_000..=2_170_000));
    assert!(text.ends_with("\r\nend\r\n"));
}

#[tokio::test]
async fn a_killed_keeper_takes_its_process_along_and_nothing_is_made_up() {
    let (_agent, client) = Agent::connected().await;
    let mut process = start(&client, "echo $PPID; exec sleep 1000", &surviving()).await;
    let keeper: u32 = until(&mut process, "\n").await.trim().parse().unwrap();
    let pid = process.pid();
    std::process::Command::new("kill")
        .args(["-KILL", &keeper.to_string()])
        .status()
        .unwrap();
    let end = process.events.wait().await.unwrap();
    assert_eq!(end.status, ExitStatus::Unknown);
    gone(pid).await;
    assert!(process::list(&client).await.unwrap().is_empty());
    let error = process::attach(&client, pid, &AttachOptions::default())
        .await
        .unwrap_err();
    assert!(error.is_no_process(), "{error}");
}

#[tokio::test]
async fn one_that_nobody_reads_holds_up_none_of_fifty_others() {
    let (_agent, client) = Agent::connected().await;
    let _held = start(&client, "yes", &StartOptions::default()).await;
    let mut others = Vec::new();
    for index in 0..50 {
        others.push(start(&client, &format!("seq 1 5000; echo {index}"), &StartOptions::default()).await);
    }
    for (index, other) in others.into_iter().enumerate() {
        let output = other.collect(MIB).await.unwrap();
        assert!(
            output.stdout.ends_with(format!("\n5000\n{index}\n").as_bytes()),
            "{index}"
        );
    }
}

#[tokio::test]
async fn what_a_command_leaves_behind_neither_delays_its_end_nor_dies_of_it() {
    let (agent, client) = Agent::connected().await;
    let (go, done) = (agent.path("go"), agent.path("done"));
    let left = format!(
        "(until test -e {}; do sleep 0.01; done; seq 1 100000; touch {}) & echo now",
        go.display(),
        done.display()
    );
    let process = start(&client, &left, &StartOptions::default()).await;
    let output = process.collect(MIB).await.unwrap();
    assert_eq!(
        (output.end.status, &output.stdout[..]),
        (ExitStatus::Code(0), &b"now\n"[..])
    );
    std::fs::write(go, "").unwrap();
    while !done.exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
