//! The same client and command, once against `sshd -i` and once against the agent: nothing may differ.

mod support;

use std::fs;
use std::process::{Command, Output};

use support::screen::Screen;
use support::{Server, is_root, output_with_input};

const SSHD: &str = "/usr/sbin/sshd";

/// A server that both programs can serve, with the same keys.
struct Pair {
    ours: Server,
}

impl Pair {
    fn new() -> Self {
        let pair = Self::with_options("");
        assert_eq!(pair.compare(&["box", "echo up"], b"").stdout, b"up\n");
        pair
    }

    fn with_options(options: &str) -> Self {
        let ours = Server::with_options(options);
        assert!(fs::exists(SSHD).unwrap(), "{SSHD} is needed: install openssh-server");
        if is_root() {
            // Where sshd insists to have its helper.
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let at = |name| ours.path(name).display().to_string();
        ours.write(
            "sshd_config",
            &format!(
                "HostKey {host}\nAuthorizedKeysFile {keys}\nUsePAM no\nStrictModes no\nPermitRootLogin yes\n\
                 PermitUserEnvironment yes\nAcceptEnv LANG LC_*\nPrintLastLog no\nPidFile none\n",
                host = at("host"),
                keys = at("authorized_keys"),
            ),
        );
        let config = fs::read_to_string(ours.path("config")).unwrap();
        let lines = config.lines().map(|line| {
            if line.starts_with("ProxyCommand") {
                format!("ProxyCommand {SSHD} -i -f {}\n", at("sshd_config"))
            } else {
                format!("{line}\n")
            }
        });
        ours.write("sshd_client", &lines.collect::<String>());
        Self { ours }
    }

    /// Runs a client with a line of input on each, and compares all that its user sees.
    fn compare(&self, arguments: &[&str], input: &[u8]) -> Output {
        let run = |config: &str| {
            let mut command = Command::new("timeout");
            command.args(["60", "ssh", "-F"]).arg(self.ours.path(config));
            let line = [input, b"\n"].concat();
            output_with_input(command.args(arguments).env("TERM", "vt220"), &line)
        };
        let (theirs, ours) = (run("sshd_client"), run("config"));
        let show = |output: &Output| {
            let (out, errors) = (
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr),
            );
            let errors: Vec<&str> = errors.lines().map(without_explanation).collect();
            // What is typed ahead is echoed once or twice, wherever it meets the output.
            let out = out.replace(str::from_utf8(&[input, b"\r\n"].concat()).unwrap(), "");
            (output.status.code(), out, errors.join("\n"))
        };
        assert_eq!(show(&ours), show(&theirs), "{arguments:?}");
        ours
    }
}

/// The reason why a channel does not open is a number, which the client shows in words; the text behind it is free.
fn without_explanation(line: &str) -> &str {
    let reason = line.strip_prefix("channel 0: open failed: ");
    reason
        .and_then(|reason| reason.split_once(':'))
        .map_or(line, |(reason, _)| reason)
}

/// sshd gives a terminal to its user, which only root may; the agent's own tests of terminals run as any user.
fn sshd_gives_terminals() -> bool {
    is_root()
}

#[test]
fn commands() {
    let pair = Pair::new();
    for command in [
        "echo out; echo err >&2; exit 3",
        "exit 255",
        // Debian's sshd adds a directory of its own to the path of users.
        "env | grep -v '^_=' | sed '/^PATH=/s|:/usr/games$||' | sort; pwd; umask; id; echo $0 $-",
        "kill -TERM $$",
        "kill -KILL $$",
        "kill -USR2 $$",
        "exec >&- 2>&-; sleep 0.1; exit 7",
        "exec >&-; sleep 0.1; echo late >&2",
        "(sleep 0.2; echo later) & echo now",
        "grep -E 'Sig(Blk|Ign|Cgt)|Umask|Cap|NoNewPrivs|Groups' /proc/self/status",
        "ulimit -a; cat /proc/self/oom_score_adj; nice",
        "ls /proc/self/fd | wc -l",
        "ps -o sid=,pgid=,pid=,tpgid=,tty= -p $$ | awk '{print $1 == $3, $2 == $3, $4, $5}'",
        "no-such-command",
        "test -t 0 || test -t 1 || echo pipes",
        "cat; echo after; exit 4",
    ] {
        pair.compare(&["box", command], b"before");
    }
}

#[test]
fn the_environment_from_the_client_and_the_key() {
    let pair = Pair::with_options(r#"environment="FROM_KEY=a b""#);
    let setting = "SetEnv LANG=C LC_TEST=yes LD_LIBRARY_PATH=/evil";
    pair.compare(
        &[
            "-o",
            setting,
            "box",
            "echo [$LANG][$LC_TEST][$LD_LIBRARY_PATH][$FROM_KEY]",
        ],
        b"",
    );
}

#[test]
fn a_forced_command() {
    let pair = Pair::with_options(r#"command="echo forced [$SSH_ORIGINAL_COMMAND]; exit 9""#);
    let forced = pair.compare(&["box", "rm -rf something"], b"");
    assert_eq!(forced.status.code(), Some(9));
    pair.compare(&["-T", "box"], b"");
}

#[test]
fn shells() {
    let pair = Pair::new();
    pair.compare(&["-T", "box"], b"echo $0; umask; pwd; exit 6");
    pair.compare(&["-T", "box"], b"kill -HUP $$");
    pair.compare(&["-T", "box"], b"");
}

#[test]
fn terminals() {
    if !sshd_gives_terminals() {
        return;
    }
    let pair = Pair::new();
    for command in [
        "stty -a; echo $TERM; test $SSH_TTY = $(tty) && echo same; exit 5",
        "stat -c '%U %G %a' $(tty)",
        "ps -o sid=,pgid=,pid=,tpgid=,tty= -p $$ | awk '{print $1 == $3, $2 == $3, $4 == $3}'",
        "ls /proc/self/fd | wc -l",
        "kill -9 $$",
        "trap '' HUP; sleep 2 & exit 0",
        "env | grep -v '^_=' | grep -v SSH_TTY | sort",
        "printf 'a\\nb\\tc'; exit 1",
        "grep -E 'Sig(Blk|Ign|Cgt)' /proc/self/status",
    ] {
        pair.compare(&["-tt", "box", command], b"");
    }
}

#[test]
fn an_interactive_shell_is_greeted() {
    if !sshd_gives_terminals() {
        return;
    }
    let pair = Pair::new();
    let seen = pair.compare(&["-tt", "box"], b"exit 3");
    assert_eq!(seen.status.code(), Some(3));
}

#[test]
fn what_is_refused() {
    let pair = Pair::with_options("no-pty,no-port-forwarding");
    pair.compare(&["-s", "box", "no-such-subsystem"], b"");
    pair.compare(&["-tt", "box", "test -t 0 || echo none"], b"");
    pair.compare(&["-o", "LogLevel=INFO", "-W", "127.0.0.1:1", "box"], b"");
    pair.compare(
        &["-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1", "box", "true"],
        b"",
    );
}

#[test]
fn other_users() {
    if !is_root() {
        return;
    }
    let pair = Pair::new();
    for user in ["nobody", "daemon", "sync"] {
        pair.compare(&["-l", user, "box", "id"], b"");
        pair.compare(&["-l", user, "-T", "box"], b"");
    }
}

#[test]
fn a_target_that_refuses() {
    let pair = Pair::new();
    pair.compare(&["-o", "LogLevel=INFO", "-W", "127.0.0.1:1", "box"], b"");
}

#[test]
fn terminal_settings() {
    if !sshd_gives_terminals() {
        return;
    }
    // All that a terminal of the kernel can be set to and that the client knows how to tell.
    let settings = [
        "sane",
        "raw 115200",
        "erase ^H intr undef quit ^X kill ^Y eof ^Z eol ^A eol2 ^B start ^C stop ^D susp ^E rprnt ^F werase ^G lnext ^K",
        "iutf8 ixoff ixany inlcr igncr iuclc parmrk inpck istrip ignpar -imaxbel -ixon",
        "-isig xcase -echo echonl noflsh tostop -echoctl -echoke -echoe -echok -iexten",
        "olcuc -onlcr ocrnl onocr onlret",
        "-opost 9600",
        "38400",
    ];
    let pair = Pair::new();
    for settings in settings {
        let shown = ["sshd_client", "config"].map(|config| {
            let command = "stty -a | tr '\\n' ' '; stty size";
            Screen::start_with(&pair.ours, config, settings, command).rest()
        });
        assert!(shown[0].contains("33") && shown[0].contains("111"), "{}", shown[0]);
        assert_eq!(shown[1], shown[0], "{settings}");
    }
}
