//! Clients that nobody here wrote, each doing with one sandbox what its users do. docs/interop.md has the table.
//!
//! With `MSB_INTEROP_SERVER=FILE` they talk to that `msb-agent serve --stdio` on this host instead of to a sandbox: the
//! same clients and the same server at full speed, without KVM. With `sshd` they show what they expect of OpenSSH's
//! server.

mod ansible;
mod audit;
mod dropbear;
mod fixture;
mod git;
mod lftp;
mod openssh;
mod putty;
mod python;
mod sshfs;
mod vscode;

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use fixture::Fixture;
use libtest_mimic::{Arguments, Trial};

/// What is done to the server, by the name of what it shows.
type Named = (&'static str, fn(&Fixture));

const TRIALS: [Named; 14] = [
    (
        "one_openssh_connection_carries_many_sessions_at_once",
        openssh::many_sessions,
    ),
    ("scp_copies_over_sftp", openssh::scp),
    ("scp_copies_with_its_old_protocol", openssh::scp_legacy),
    ("git_pushes_and_clones", git::push_and_clone),
    ("sshfs_is_a_file_system", sshfs::file_system),
    ("dbclient_runs_commands", dropbear::commands),
    ("plink_runs_commands", putty::plink),
    ("psftp_copies_both_ways", putty::psftp),
    ("paramiko_runs_commands_and_prefetches", python::paramiko),
    ("asyncssh_runs_commands_signals_and_copies", python::asyncssh),
    ("lftp_mirrors_both_ways", lftp::mirror),
    ("ansible_pings_copies_and_fetches", ansible::playbook),
    ("ssh_audit_fails_nothing", audit::algorithms),
    (
        "vscode_uploads_a_server_and_reaches_it_through_socks",
        vscode::remote_server,
    ),
];

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let program = arguments.next().unwrap_or_default();
    // The harness of cargo takes several filters, this one takes one.
    let (options, filters) = split_filters(arguments);
    let mut options = Arguments::from_iter([program].into_iter().chain(options));
    // They share one sandbox, and hosts of few CPUs.
    options.test_threads.get_or_insert(1);
    let shared = Arc::new(OnceLock::new());
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter));
    let trials = TRIALS.into_iter().filter(|(name, _)| wanted(name)).map(|(name, test)| {
        let shared = Arc::clone(&shared);
        Trial::test(name, move || {
            test(shared.get_or_init(Fixture::new));
            Ok(())
        })
    });
    libtest_mimic::run(&options, trials.collect()).exit_code()
}

/// The options, and the filters that come before any.
fn split_filters(arguments: impl Iterator<Item = String>) -> (Vec<String>, Vec<String>) {
    let mut filters: Vec<String> = arguments.collect();
    let first_option = filters.iter().position(|argument| argument.starts_with('-'));
    let options = filters.split_off(first_option.unwrap_or(filters.len()));
    (options, filters)
}
