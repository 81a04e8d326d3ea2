//! The line that `ls -l` would print, for clients that show it as it comes.

use rustix::fs::{FileType, Stat};

use crate::users::Names;

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];
const DAY: i64 = 86_400;

/// Older and future files show their year instead of the time of day.
const RECENT: i64 = 365 * DAY / 2;

/// The line for `name` as bytes, times in UTC.
pub(super) fn line(name: &[u8], stat: &Stat, names: &Names, now: i64) -> Vec<u8> {
    let id = |name: Option<&str>, id: u32| name.map_or_else(|| id.to_string(), Into::into);
    let user = id(names.user(stat.st_uid), stat.st_uid);
    let group = id(names.group(stat.st_gid), stat.st_gid);
    let (links, size, date) = (stat.st_nlink, stat.st_size, date(stat.st_mtime, now));
    let mode = mode(stat.st_mode);
    let mut line = format!("{mode} {links:>3} {user:<8} {group:<8} {size:>8} {date} ").into_bytes();
    line.extend(name);
    line
}

fn mode(mode: u32) -> String {
    let kind = match FileType::from_raw_mode(mode) {
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::CharacterDevice => 'c',
        FileType::BlockDevice => 'b',
        FileType::Fifo => 'p',
        FileType::Socket => 's',
        _ => '-',
    };
    let bit = |bit: u32, letter: char| if mode & bit != 0 { letter } else { '-' };
    // Execute, and the special bit that shares its place.
    let execute = |bit: u32, special: u32, both: char, only: char| match (mode & bit != 0, mode & special != 0) {
        (true, true) => both,
        (false, true) => only,
        (true, false) => 'x',
        (false, false) => '-',
    };
    [
        kind,
        bit(0o400, 'r'),
        bit(0o200, 'w'),
        execute(0o100, 0o4000, 's', 'S'),
        bit(0o040, 'r'),
        bit(0o020, 'w'),
        execute(0o010, 0o2000, 's', 'S'),
        bit(0o004, 'r'),
        bit(0o002, 'w'),
        execute(0o001, 0o1000, 't', 'T'),
    ]
    .iter()
    .collect()
}

fn date(time: i64, now: i64) -> String {
    let (year, month, day) = civil(time.div_euclid(DAY));
    let month = usize::try_from(month - 1)
        .ok()
        .and_then(|index| MONTHS.get(index))
        .copied()
        .unwrap_or("???");
    if (now - RECENT..=now).contains(&time) {
        let (hour, minute) = (time.rem_euclid(DAY) / 3600, time.rem_euclid(3600) / 60);
        format!("{month} {day:>2} {hour:02}:{minute:02}")
    } else {
        format!("{month} {day:>2} {year:>5}")
    }
}

/// Year, month and day of a day since the epoch, in the Gregorian calendar. Years are counted from March in eras of 400.
fn civil(days: i64) -> (i64, i64, i64) {
    const ERA: i64 = 146_097;
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(ERA), days.rem_euclid(ERA));
    let year = (day - day / 1460 + day / 36_524 - day / (ERA - 1)) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, turned) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + turned, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (days, expected) in [
            (0, (1970, 1, 1)),
            (19_782, (2024, 2, 29)),
            (20_778, (2026, 11, 21)),
            (-1, (1969, 12, 31)),
        ] {
            assert_eq!(civil(days), expected);
        }
    }

    #[test]
    fn special_bits_share_the_place_of_execute() {
        assert_eq!(mode(0o104_755), "-rwsr-xr-x");
        assert_eq!(mode(0o041_776), "drwxrwxrwT");
    }

    #[test]
    fn only_recent_files_show_the_time_of_day() {
        let now = 1_000_000_000;
        assert_eq!(date(now - 60, now), "Sep  9 01:45");
        assert_eq!(date(0, now), "Jan  1  1970");
    }
}
