//! What keepers say of their processes.

use std::path::Path;

use msb_protocol::process::{Attach, Failure, Info, Reply, Request, Since};

use super::ServeError;
use super::directory::Place;
use super::stream;
use crate::users::Names;

/// Processes that a user may have at once, with those that ended lately.
const MAX_PROCESSES: usize = 512;

/// Asks the keeper of a process about it. Nothing when it does not answer, or not as a keeper does.
pub(super) fn ask(place: &Place) -> Option<Info> {
    let keeper = place.connect().ok()?;
    stream::ask(&keeper, &Request::List).ok()?;
    match stream::receive_reply(&keeper).ok()?? {
        // Who it belongs to is what the kernel says, not what the keeper does.
        Reply::Listed(info) if info.pid == place.pid => Some(Info {
            user: user_name(place.uid),
            ..*info
        }),
        _ => None,
    }
}

fn user_name(uid: u32) -> String {
    let names = Names::read();
    names.user(uid).map_or_else(|| uid.to_string(), str::to_owned)
}

/// Lets the oldest ended process of this user go, if there are as many as there may be.
///
/// # Errors
/// When all of them run.
pub(super) fn make_room(directory: &Path) -> Result<(), ServeError> {
    let me = rustix::process::geteuid().as_raw();
    let own: Vec<Place> = Place::all(directory)
        .into_iter()
        .filter(|place| place.uid == me)
        .collect();
    if own.len() < MAX_PROCESSES {
        return Ok(());
    }
    let ended = own
        .iter()
        .filter_map(|place| Some((ask(place)?, place)))
        .filter(|(info, _)| info.end.is_some())
        .min_by_key(|(info, _)| info.started_ms);
    match ended {
        Some((_, place)) => {
            forget(place);
            Ok(())
        }
        None => Err(ServeError::refused(
            Failure::TooMany,
            format!("{MAX_PROCESSES} processes run already; end some"),
        )),
    }
}

/// A keeper goes once somebody knows how its process ended.
fn forget(place: &Place) {
    let attach = Request::Attach(Attach {
        pid: place.pid,
        since: Since::Now,
        hold: false,
        credit: 0,
    });
    let Ok(keeper) = place.connect() else { return };
    if stream::ask(&keeper, &attach).is_ok() && stream::ask(&keeper, &Request::Seen).is_ok() {
        while let Ok(Some(_)) = stream::receive_reply(&keeper) {}
    }
}
