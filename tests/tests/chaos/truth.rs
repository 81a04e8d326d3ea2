//! What must hold after any fault.

use msb_tests::Msb;

/// `msb ls` works and tells the truth: what it calls running answers, what it does not has no process.
#[track_caller]
pub(crate) fn assert_truth(msb: &Msb, after: &str) {
    let listed = msb.list();
    let mut alive = 0;
    for sandbox in &listed {
        let id = sandbox["id"].as_str().expect("every sandbox has an id");
        match sandbox["state"].as_str().expect("every sandbox has a state") {
            "running" => {
                alive += 1;
                let answer = msb.run(["exec", id, "--", "echo", "alive"]);
                assert_eq!(answer.text(), "alive\n", "after {after}: {answer:?}");
            }
            "created" | "stopped" | "crashed" => {}
            state => panic!("after {after}: a sandbox stays {state}: {listed:?}"),
        }
    }
    // A keeper and its VM each.
    let processes = msb.processes();
    assert_eq!(processes.len(), 2 * alive, "after {after}: {processes:?} of {listed:?}");
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
