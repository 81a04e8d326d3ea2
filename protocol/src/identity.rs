//! The identity of a guest: made on the host, carried by an initramfs archive of its own behind the shared one.
//!
//! The kernel unpacks concatenated archives one after the other, so the files below are there when PID 1 starts. The
//! agent reads them once and removes [`DIRECTORY`]: only its memory keeps the host key.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where the archive puts the identity, mode 0700.
pub const DIRECTORY: &str = "/.msb";

/// Private host key in OpenSSH format, mode 0600, in [`DIRECTORY`].
pub const HOST_KEY: &str = "host_key";

/// Certificate of the host key in OpenSSH format, mode 0600, in [`DIRECTORY`]; optional.
pub const HOST_CERTIFICATE: &str = "host_key-cert.pub";

/// Public keys that may log in, in the format of sshd's `authorized_keys`, in [`DIRECTORY`].
pub const AUTHORIZED_KEYS: &str = "authorized_keys";

/// A [`GuestConfig`] as JSON, in [`DIRECTORY`].
pub const CONFIG: &str = "config.json";

/// Serial number of the disk with the image's tools, which the agent mounts at [`TOOLS`].
pub const TOOLS_SERIAL: &str = "msb-tools";

/// Where the image expects its tools: links of the image point there.
pub const TOOLS: &str = "/usr/lib/msb/tools";

/// Serial number of the disk with the image that the sandbox was made from: EROFS, read-only.
pub const IMAGE_SERIAL: &str = "msb-image";

/// Serial number of the disk for what the guest writes on top of the image: ext4, or nothing but zeros at first.
pub const WRITABLE_SERIAL: &str = "msb-writable";

/// What the agent sets up before it serves SSH.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct GuestConfig {
    /// The guest's host name.
    pub hostname: String,
    /// Environment of every session, beneath what the login itself sets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// Seconds and nanoseconds since the epoch when the host wrote this: a guest has no clock of its own.
    #[serde(default)]
    pub realtime: (u64, u32),
    /// What the SSH server offers.
    #[serde(default, skip_serializing_if = "SshFeatures::is_default")]
    pub ssh: SshFeatures,
    /// The image whose files are the guest's; without one, those of the built-in image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageRoot>,
    /// File systems of the host, in the order in which they are mounted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeMount>,
}

/// A file system of the host, which the guest mounts.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeMount {
    /// Of its virtio-fs device.
    pub tag: String,
    /// Where, as an absolute path; it is made where it is missing.
    pub path: String,
    /// Whether the host refuses writing.
    #[serde(default)]
    pub read_only: bool,
    /// The one file of it that is mounted, by its name there; without one, all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

/// How an image's files become the guest's. They are on the disks [`IMAGE_SERIAL`] and [`WRITABLE_SERIAL`].
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageRoot {
    /// Who runs the image's commands: `USER`, `UID`, `USER:GROUP` or `UID:GID`; no such user need exist. Root when
    /// empty.
    pub user: String,
    /// Where commands begin; the user's home when empty.
    pub working_dir: String,
}

/// What the SSH server of a guest offers beyond commands and terminals; everything by default.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SshFeatures {
    /// Forwarding of TCP ports and Unix sockets, in both directions.
    pub port_forwarding: bool,
    /// Forwarding of the client's agent.
    pub agent_forwarding: bool,
    /// File transfer.
    pub sftp: bool,
    /// Logins with the keys that a user's own `~/.ssh/authorized_keys` names, besides those that the host gave.
    pub own_keys: bool,
}

impl SshFeatures {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for SshFeatures {
    fn default() -> Self {
        Self {
            port_forwarding: true,
            agent_forwarding: true,
            sftp: true,
            own_keys: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_configuration_leaves_out_is_offered() {
        let older: GuestConfig = serde_json::from_str(r#"{"hostname":"box"}"#).unwrap();
        assert_eq!(older.ssh, SshFeatures::default());
        let partial: GuestConfig = serde_json::from_str(r#"{"hostname":"box","ssh":{"sftp":false}}"#).unwrap();
        assert!(partial.ssh.port_forwarding && partial.ssh.agent_forwarding && !partial.ssh.sftp);
        assert_eq!(
            serde_json::from_str::<GuestConfig>(&serde_json::to_string(&partial).unwrap()).unwrap(),
            partial
        );
    }
}
