//! SIGSTOP: a process that lives and does nothing keeps nobody waiting for ever.

use std::process::Stdio;
use std::thread;

use msb_tests::{Msb, finish};
use rustix::process::{Pid, Signal, kill_process};

use crate::is_soak;
use crate::kill::{self, Verb, Victim};
use crate::truth::{assert_clean, assert_usable};

/// `verb` ends within a minute.
fn bounded(msb: &Msb, verb: &[&str]) -> msb_tests::Finished {
    let finished = finish(msb.command_of("timeout").args(["-k", "5", "60", "msb"]).args(verb));
    println!("{verb:?} ended after {:?}", finished.took);
    assert_ne!(finished.code, Some(124), "{verb:?} hangs: {finished:?}");
    finished
}

fn stop(pid: Pid) {
    kill_process(pid, Signal::STOP).expect("the process lives");
}

#[test]
fn a_stopped_vm_or_keeper_keeps_no_verb_waiting() {
    let msb = Msb::new();
    for (name, keeper) in [("vm", false), ("keeper", true)] {
        let sandbox = msb.create(name);
        stop(if keeper { sandbox.vmm() } else { sandbox.vm() });
        for verb in [vec!["ls"], vec!["inspect", name], vec!["logs", name]] {
            bounded(&msb, &verb).expect(0);
        }
        // Each takes half a minute, which is how long a guest may take to answer.
        if !keeper && is_soak() {
            for verb in [
                vec!["exec", name, "--", "true"],
                vec!["cp", "/etc/hostname", &format!("{name}:/tmp/x")],
            ] {
                let refused = bounded(&msb, &verb);
                assert!(refused.code.is_some_and(|code| code >= 125), "{verb:?}: {refused:?}");
                assert!(refused.stderr.starts_with("msb: "), "{verb:?}: {refused:?}");
            }
        }
        bounded(&msb, &["rm", name]).refusal();
        bounded(&msb, &["stop", "--timeout", "1", name]).expect(0);
        assert_eq!(msb.state(name), "stopped", "{name}");
        bounded(&msb, &["start", name]).expect(0);
        stop(if keeper { sandbox.vmm() } else { sandbox.vm() });
        bounded(&msb, &["rm", "--force", name]).expect(0);
        assert_eq!(msb.leftovers(), [""; 0], "{name}");
    }
    assert_usable(&msb, "stopped processes");
}

#[test]
fn a_run_ends_when_its_stopped_vm_does_not() {
    let msb = Msb::new();
    for signal in [Signal::TERM, Signal::KILL] {
        let mut run = msb.command(["run", "--", "sh", "-c", "echo up; sleep 1000"]);
        let mut run = run
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut up = [0; 3];
        std::io::Read::read_exact(run.stdout.as_mut().unwrap(), &mut up).unwrap();
        let listed = msb.list();
        let vm = listed[0]["vm"]["pid"]
            .as_i64()
            .and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
            .unwrap();
        stop(vm);
        kill_process(Pid::from_child(&run), signal).unwrap();
        run.wait().unwrap();
        let id = listed[0]["id"].as_str().unwrap();
        // It is gone when its keeper is, or sooner.
        let _ = bounded(&msb, &["wait", id]);
        assert_clean(&msb, &format!("{signal:?}"));
    }
}

#[test]
fn a_vm_that_is_stopped_while_it_is_built_goes_with_its_starter() {
    let msb = Msb::new();
    let directory = msb.home().parent().expect("the home is in a directory").to_owned();
    let mut starter = Verb::Run.begin(&msb);
    // The VM's process made it, and is not done yet.
    while !kill::is_there(&directory, "run/*/v.sock") {
        assert!(
            starter.try_wait().unwrap().is_none(),
            "the VM's process comes before the end"
        );
        thread::sleep(kill::LOOK);
    }
    stop(kill::find(&msb, Victim::Vm, &starter).expect("what made the socket is there"));
    starter.kill().unwrap();
    starter.wait().unwrap();
    kill::wait_for_quiet(&msb);
    assert_eq!(msb.leftovers(), [""; 0]);
}
