//! A user of its own for each sandbox that root starts: what breaks out of one is nobody to the host, and a stranger to
//! the others.

use std::fs;

use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// The first of the users, who have their groups' numbers. They are in a range that nothing else gives out (systemd's
/// "Users, Groups, UIDs and GIDs on systemd Systems").
const FIRST: u32 = 0x7000_0000;

/// How many there are: a power of two.
const COUNT: u32 = 0x0800_0000;

/// The user of the sandbox with this number.
pub fn of(number: u64) -> u32 {
    let below = u32::try_from(number % u64::from(COUNT)).expect("a remainder is smaller than its divisor");
    FIRST + below
}

/// Whether this process can give a sandbox a user of its own.
pub fn can_become(user: u32) -> bool {
    let is_mapped = |map| is_mapped(&fs::read_to_string(map).unwrap_or_default(), user);
    rustix::process::geteuid().is_root() && is_mapped("/proc/self/uid_map") && is_mapped("/proc/self/gid_map")
}

/// Whether a map (user_namespaces(7): inside, outside, length) has `id` inside.
fn is_mapped(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().map(str::parse::<u64>);
        match (fields.next(), fields.nth(1)) {
            (Some(Ok(first)), Some(Ok(length))) => (first..first.saturating_add(length)).contains(&id.into()),
            _ => false,
        }
    })
}

/// Makes the calling thread that user, in that group and no other. Where the host does not let it, it stays who it is, which
/// [`super::Layers`] tells.
pub(super) fn become_user(user: u32, group: u32) {
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(group));
    let _ = set_thread_groups(&[])
        .and_then(|()| set_thread_res_gid(gid, gid, gid))
        .and_then(|()| set_thread_res_uid(uid, uid, uid));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_stay_in_their_range() {
        assert_eq!(of(0), FIRST);
        assert_eq!(of(u64::from(COUNT) + 5), FIRST + 5);
        assert_eq!(of(u64::from(COUNT) - 1), 0x77ff_ffff);
    }

    #[test]
    fn a_user_is_mapped_or_not() {
        let all = "         0          0 4294967295\n";
        assert!(is_mapped(all, FIRST));
        let container = "0 100000 65536\n";
        assert!(is_mapped(container, 65535) && !is_mapped(container, 65536) && !is_mapped("", 0));
    }
}
