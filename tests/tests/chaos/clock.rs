//! The host's clock jumps.

use msb_tests::Msb;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::truth::{assert_clean, assert_truth, assert_usable};

const YEAR: i64 = 365 * 86_400;

/// Puts the clock where it would be without the jump, at the end.
struct Jump(i64);

impl Jump {
    fn new(seconds: i64) -> Self {
        shift(seconds);
        Self(seconds)
    }
}

impl Drop for Jump {
    fn drop(&mut self) {
        shift(-self.0);
    }
}

fn shift(seconds: i64) {
    let now = clock_gettime(ClockId::Realtime);
    let then = Timespec {
        tv_sec: now.tv_sec + seconds,
        ..now
    };
    clock_settime(ClockId::Realtime, then).expect("root of a host of its own sets the clock");
}

#[test]
fn a_clock_that_jumps_changes_nothing() {
    let msb = Msb::new();
    if std::env::var("MSB_KVM_HOST_MODE").as_deref() != Ok("emulated") {
        println!("this host's clock is not this test's to set: only what needs none is tested");
        assert_usable(&msb, "no jump");
        return;
    }
    for seconds in [YEAR, -YEAR] {
        let sandbox = msb.create_with("clock", &["--memory", "128M"]);
        let jump = Jump::new(seconds);
        assert_truth(&msb, "a jump");
        assert_eq!(sandbox.ssh("echo fine").expect(0).text(), "fine\n");
        msb.run(["stop", "clock"]).expect(0);
        msb.run(["start", "clock"]).expect(0);
        drop(jump);
        assert_truth(&msb, "the jump back");
        msb.run(["stop", "clock"]).expect(0);
        assert_eq!(msb.state("clock"), "stopped");
        assert_clean(&msb, "jumps");
    }
}
