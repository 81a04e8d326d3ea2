//! What must hold after any fault.

use std::thread;
use std::time::{Duration, Instant};

use msb_tests::{Finished, Msb};

use crate::kill::PATIENCE;

/// `msb ls` works and tells the truth: what it calls running answers, what it does not has no process. A guest that was asked
/// to shut down just before is running until it ends: what is told of it must hold then.
#[track_caller]
pub(crate) fn assert_truth(msb: &Msb, after: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let listed = msb.list();
        let Err(lie) = check(msb, &listed) else { return };
        let is_over = Instant::now() >= deadline;
        match lie {
            Lie::Moving(_) if !is_over => thread::sleep(Duration::from_millis(20)),
            Lie::Dead(_) if !is_over && states(&msb.list()) != states(&listed) => {}
            lie => panic!("after {after}: {lie:?} of {listed:?}"),
        }
    }
}

/// What does not hold.
#[derive(Debug)]
#[expect(dead_code, reason = "what the variants hold is for the message")]
enum Lie {
    /// A sandbox is starting or stopping, or its processes are: these are there.
    Moving(Vec<String>),
    /// It is called running and does not answer.
    Dead(Finished),
    /// It is called what it cannot be.
    Unknown(String),
}

fn check(msb: &Msb, listed: &[serde_json::Value]) -> Result<(), Lie> {
    let mut alive = 0;
    for (id, state) in states(listed) {
        match state.as_str() {
            "running" => {
                alive += 1;
                let answer = msb.run(["exec", &id, "--", "echo", "alive"]);
                if answer.text() != "alive\n" {
                    return Err(Lie::Dead(answer));
                }
            }
            "created" | "stopped" | "crashed" => {}
            "starting" | "stopping" => return Err(Lie::Moving(msb.processes())),
            _ => return Err(Lie::Unknown(state)),
        }
    }
    // A keeper and its VM each.
    let processes = msb.processes();
    match processes.len() == 2 * alive {
        true => Ok(()),
        false => Err(Lie::Moving(processes)),
    }
}

/// Id and state of each.
fn states(listed: &[serde_json::Value]) -> Vec<(String, String)> {
    let text = |value: &serde_json::Value| value.as_str().expect("every sandbox has an id and a state").to_owned();
    listed
        .iter()
        .map(|sandbox| (text(&sandbox["id"]), text(&sandbox["state"])))
        .collect()
}

/// Removes all there is, and nothing is left.
#[track_caller]
pub(crate) fn assert_clean(msb: &Msb, after: &str) {
    for sandbox in msb.list() {
        let id = sandbox["id"].as_str().expect("every sandbox has an id");
        let removed = msb.run(["rm", "--force", id]);
        assert_eq!(removed.code, Some(0), "after {after}: {removed:?}");
    }
    assert_eq!(msb.leftovers(), [""; 0], "after {after}");
}

/// A new sandbox starts.
#[track_caller]
pub(crate) fn assert_usable(msb: &Msb, after: &str) {
    let run = msb.run(["run", "--memory", "128M", "--", "echo", "new"]);
    assert_eq!(run.text(), "new\n", "after {after}: {run:?}");
    assert_clean(msb, after);
}
