//! Users and groups, read from `/etc/passwd` and `/etc/group` directly: a static binary in a guest has no NSS.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The accounts of a guest.
pub const PASSWD: &str = "/etc/passwd";
/// The groups of a guest.
pub const GROUP: &str = "/etc/group";

/// The largest account file that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// A user that may log in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Every group that names the user, the primary one first.
    pub groups: Vec<u32>,
    /// Home directory; `/` when the account names none.
    pub home: PathBuf,
    /// Login shell; `/bin/sh` when the account names none.
    pub shell: PathBuf,
}

impl User {
    /// Looks `name` up in the guest's accounts. A missing account file has no users, except that root always exists:
    /// an image without `/etc/passwd` must stay reachable.
    pub fn by_name(name: &str) -> Option<Self> {
        let accounts = read_limited(Path::new(PASSWD));
        let groups = read_limited(Path::new(GROUP));
        Self::find(name, &accounts, &groups).or_else(|| (name == "root").then(Self::root))
    }

    /// The user that an image names: `USER`, `UID`, `USER:GROUP` or `UID:GID`. Numbers need no account, and a shell that
    /// only refuses logins is not asked: the image's maker wanted commands to run as this user.
    pub fn by_spec(spec: &str) -> Option<Self> {
        let accounts = read_limited(Path::new(PASSWD));
        let groups = read_limited(Path::new(GROUP));
        Self::find_spec(spec, &accounts, &groups)
    }

    fn find_spec(spec: &str, passwd: &[u8], group: &[u8]) -> Option<Self> {
        let (name, group_name) = match spec.split_once(':') {
            Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
            None => (spec, None),
        };
        let with_uid = |uid: u32| {
            let mut accounts = lines(passwd).filter_map(parse_account);
            let account = accounts.find(|account| account.uid == uid);
            let known = account.and_then(|account| Self::find(&account.name, passwd, group));
            known.unwrap_or_else(|| Self {
                name: uid.to_string(),
                uid,
                gid: 0,
                groups: vec![0],
                ..Self::root()
            })
        };
        let root = || (name == "root" || name.is_empty()).then(Self::root);
        let found = Self::find(name, passwd, group).or_else(root);
        let mut user = found.or_else(|| number(name.as_bytes()).map(with_uid))?;
        if let Some(group_name) = group_name {
            let named = id_of_group(group_name, group);
            user.gid = named.or_else(|| number(group_name.as_bytes()))?;
            user.groups = vec![user.gid];
        }
        let refuses = user
            .shell
            .file_name()
            .is_some_and(|shell| shell == "nologin" || shell == "false");
        if refuses {
            user.shell = "/bin/sh".into();
        }
        Some(user)
    }

    fn root() -> Self {
        Self {
            name: "root".into(),
            uid: 0,
            gid: 0,
            groups: vec![0],
            home: "/".into(),
            shell: "/bin/sh".into(),
        }
    }

    fn find(name: &str, passwd: &[u8], group: &[u8]) -> Option<Self> {
        let mut user = lines(passwd).find_map(|line| parse_account(line).filter(|user| user.name == name))?;
        for line in lines(group) {
            let Some((gid, members)) = parse_group(line) else {
                continue;
            };
            if gid != user.gid
                && members
                    .split(|&byte| byte == b',')
                    .any(|member| member == name.as_bytes())
            {
                user.groups.push(gid);
            }
        }
        Some(user)
    }

    /// Whether the user is the superuser.
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }
}

/// The id of the group `name`, if the guest has it.
pub fn group_id(name: &str) -> Option<u32> {
    id_of_group(name, &read_limited(Path::new(GROUP)))
}

fn id_of_group(name: &str, groups: &[u8]) -> Option<u32> {
    lines(groups).find_map(|line| {
        let entry = line.split(|&byte| byte == b':').next()?;
        (entry == name.as_bytes()).then(|| parse_group(line).map(|(gid, _)| gid))?
    })
}

/// Names by numeric id, as directory listings show them.
#[derive(Debug, Default)]
pub struct Names {
    users: BTreeMap<u32, String>,
    groups: BTreeMap<u32, String>,
}

impl Names {
    /// Reads the guest's accounts and groups.
    pub fn read() -> Self {
        let passwd = read_limited(Path::new(PASSWD));
        let group = read_limited(Path::new(GROUP));
        Self {
            users: ids(&passwd),
            groups: ids(&group),
        }
    }

    /// The user's name, if it has one.
    pub fn user(&self, uid: u32) -> Option<&str> {
        self.users.get(&uid).map(String::as_str)
    }

    /// The group's name, if it has one.
    pub fn group(&self, gid: u32) -> Option<&str> {
        self.groups.get(&gid).map(String::as_str)
    }
}

/// The first name of each id: both files have the name in field 0 and the id in field 2.
fn ids(file: &[u8]) -> BTreeMap<u32, String> {
    let mut names = BTreeMap::new();
    for line in lines(file) {
        let mut fields = line.split(|&byte| byte == b':');
        let (Some(name), Some(id)) = (fields.next().and_then(text), fields.nth(1).and_then(number)) else {
            continue;
        };
        names.entry(id).or_insert(name);
    }
    names
}

fn parse_account(line: &[u8]) -> Option<User> {
    let fields: Vec<&[u8]> = line.split(|&byte| byte == b':').collect();
    let [name, _password, uid, gid, _comment, home, shell] = fields.as_slice() else {
        return None;
    };
    let (uid, gid) = (number(uid)?, number(gid)?);
    Some(User {
        name: text(name).filter(|name| !name.is_empty())?,
        uid,
        gid,
        groups: vec![gid],
        home: path_or(home, "/"),
        shell: path_or(shell, "/bin/sh"),
    })
}

fn parse_group(line: &[u8]) -> Option<(u32, &[u8])> {
    let mut fields = line.split(|&byte| byte == b':').skip(2);
    Some((number(fields.next()?)?, fields.next()?))
}

fn path_or(field: &[u8], default: &str) -> PathBuf {
    if field.is_empty() {
        return default.into();
    }
    OsString::from_vec(field.to_vec()).into()
}

fn text(field: &[u8]) -> Option<String> {
    String::from_utf8(field.to_vec()).ok()
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty() && line[0] != b'#')
}

/// A file that cannot be read is as an empty one: who looks a name up cannot mend it.
fn read_limited(path: &Path) -> Vec<u8> {
    use std::io::Read;
    let mut contents = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        let _ = file.take(MAX_FILE).read_to_end(&mut contents);
    }
    contents
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n# a comment\nbroken:x:no:1::/:\n\
        eve:x:1000:100:Eve,,,:/home/eve:\nnohome:x:1001:101:::/bin/ash\n";
    const GROUP: &[u8] = b"root:x:0:\nusers:x:100:eve\nwheel:x:10:root,eve\naudio:x:29:mallory,evelyn\nbad:x\n";

    #[test]
    fn a_user_has_its_primary_group_first_and_each_group_once() {
        let eve = User::find("eve", PASSWD, GROUP).unwrap();
        assert_eq!((eve.uid, eve.gid, eve.groups), (1000, 100, vec![100, 10]));
        assert_eq!(eve.shell, PathBuf::from("/bin/sh"));
    }

    #[test]
    fn a_malformed_line_spoils_only_itself() {
        assert_eq!(User::find("broken", PASSWD, GROUP), None);
        assert_eq!(User::find("nohome", PASSWD, GROUP).unwrap().home, PathBuf::from("/"));
    }

    #[test]
    fn an_image_names_its_user_in_any_way_docker_knows() {
        let ids = |spec: &str| {
            let user = User::find_spec(spec, PASSWD, GROUP)?;
            Some((user.name, user.uid, user.gid, user.groups))
        };
        let user = |name: &str, uid, gid, groups: &[u32]| Some((name.to_owned(), uid, gid, groups.to_vec()));
        assert_eq!(ids("eve"), user("eve", 1000, 100, &[100, 10]));
        assert_eq!(ids("1000"), user("eve", 1000, 100, &[100, 10]));
        assert_eq!(ids("eve:wheel"), user("eve", 1000, 10, &[10]));
        assert_eq!(ids("65532:65533"), user("65532", 65532, 65533, &[65533]));
        assert_eq!(ids("65532"), user("65532", 65532, 0, &[0]));
        for unknown in ["mallory", "eve:nogroup", "-1", "4294967296"] {
            assert_eq!(ids(unknown), None, "{unknown}");
        }
        let daemon = User::find_spec("www", b"www:x:33:33::/srv:/usr/sbin/nologin\n", b"").unwrap();
        assert_eq!(daemon.shell, PathBuf::from("/bin/sh"));
    }

    #[test]
    fn ids_have_their_first_name() {
        let names = ids(b"a:x:1:\nb:x:1:\nc:x:2:\n");
        assert_eq!(names.get(&1).map(String::as_str), Some("a"));
        assert_eq!(names.get(&2).map(String::as_str), Some("c"));
    }
}
