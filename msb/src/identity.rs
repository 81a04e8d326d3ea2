//! The identity of a guest as an initramfs archive, to be unpacked behind the image's own.

use std::io::{self, Write as _};

use cpio::newc;
use msb_protocol::identity::{AUTHORIZED_KEYS, CONFIG, DIRECTORY, GuestConfig, HOST_KEY};

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;

/// What makes a guest this one. See [`msb_protocol::identity`].
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// Private host key in OpenSSH format.
    pub host_key: &'a [u8],
    /// Public keys that may log in.
    pub authorized_keys: &'a [u8],
    /// What the agent sets up.
    pub config: &'a GuestConfig,
}

impl Identity<'_> {
    /// The archive, in the format the kernel calls "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).
    pub fn to_archive(&self) -> Vec<u8> {
        self.write()
            .expect("writing to memory does not fail, and the sizes are those of the contents")
    }

    fn write(&self) -> io::Result<Vec<u8>> {
        let directory = DIRECTORY.trim_start_matches('/');
        let config = serde_json::to_vec(self.config).expect("the configuration has string keys only");
        let mut archive = newc::Builder::new(directory)
            .ino(1)
            .nlink(2)
            .mode(S_IFDIR | 0o700)
            .write(Vec::new(), 0)
            .finish()?;
        let files = [
            (HOST_KEY, self.host_key),
            (AUTHORIZED_KEYS, self.authorized_keys),
            (CONFIG, config.as_slice()),
        ];
        for (ino, (name, contents)) in (2..).zip(files) {
            let size = u32::try_from(contents.len()).map_err(io::Error::other)?;
            let entry = newc::Builder::new(&format!("{directory}/{name}"))
                .ino(ino)
                .mode(S_IFREG | 0o600);
            let mut writer = entry.write(archive, size);
            writer.write_all(contents)?;
            archive = writer.finish()?;
        }
        newc::trailer(archive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn the_archive_holds_the_identity_for_root_alone() {
        let config = GuestConfig {
            hostname: "box".into(),
            ..GuestConfig::default()
        };
        let identity = Identity {
            host_key: b"PRIVATE",
            authorized_keys: b"ssh-ed25519 AAAA\n",
            config: &config,
        };
        let archive = identity.to_archive();
        assert_eq!(archive.len() % 4, 0, "the next archive must begin aligned");

        let mut entries = Vec::new();
        let mut rest = archive.as_slice();
        loop {
            let mut reader = newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            assert_eq!((reader.entry().uid(), reader.entry().gid()), (0, 0));
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut contents = Vec::new();
            reader.read_to_end(&mut contents).unwrap();
            entries.push((name, mode, contents));
            rest = reader.finish().unwrap();
        }
        let config = serde_json::to_vec(&config).unwrap();
        let file = |name: &str, contents: &[u8]| (name.to_owned(), 0o100_600, contents.to_owned());
        assert_eq!(
            entries,
            [
                (".msb".to_owned(), 0o040_700, Vec::new()),
                file(".msb/host_key", b"PRIVATE"),
                file(".msb/authorized_keys", b"ssh-ed25519 AAAA\n"),
                file(".msb/config.json", &config),
            ]
        );
    }
}
