//! What an image says of how to run it.

use std::collections::BTreeMap;

use msb_protocol::ready::Probe;
use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, DigestError};

/// The part of an image's configuration that a sandbox of it honours.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// Environment.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Who runs commands: `USER`, `UID`, `USER:GROUP` or `UID:GID`; root when empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Where commands run; the user's home when empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// What comes in front of each command.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// The command when none is given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What runs in the background of every sandbox of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<StartCommand>,
}

/// A command that every sandbox of an image runs from its start on. Images from elsewhere have none: a template sets it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StartCommand {
    /// A line for the shell of the image's user.
    pub command: String,
    /// What says that it is ready; without one, it is as soon as it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<Probe>,
}

impl StartCommand {
    /// Checks what can be checked without a guest.
    ///
    /// # Errors
    /// With what is wrong.
    pub fn check(&self) -> Result<(), &'static str> {
        let texts = match &self.ready {
            Some(Probe::Url(url)) if !url.starts_with("http://") => {
                return Err("a URL to wait for begins with http://");
            }
            Some(Probe::Port(0)) => return Err("there is no port 0"),
            Some(Probe::Url(text) | Probe::File(text) | Probe::Process(text) | Probe::Command(text)) => {
                vec![&self.command, text]
            }
            Some(Probe::Port(_) | Probe::Timeout(_)) | None => vec![&self.command],
        };
        match texts.iter().any(|text| text.is_empty() || text.contains('\0')) {
            true => Err("a text is empty or has a zero byte"),
            false => Ok(()),
        }
    }
}

/// A configuration as an image has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ParsedConfig {
    /// What is honoured.
    pub run: RunConfig,
    /// Digests of the layers, unpacked, lowest first.
    pub diff_ids: Vec<Digest>,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is no configuration.
    #[error("the image's configuration cannot be understood")]
    Malformed(#[source] serde_json::Error),
    /// It is for other machines.
    #[error("the image is for {os}/{architecture}, and a guest is linux/amd64")]
    Platform {
        /// Its system.
        os: String,
        /// Its processor.
        architecture: String,
    },
    /// A layer is named by something else than a SHA-256 digest.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// A zero byte where there can be none.
    #[error("the image's configuration has a zero byte in its {0}")]
    Nul(&'static str),
}

impl ParsedConfig {
    /// Reads the JSON of an image's configuration (OCI image specification, config.md; Docker's is the same in what
    /// matters here).
    ///
    /// # Errors
    /// When it is none, or not for a guest of msb.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        let config: ImageConfiguration = serde_json::from_slice(json).map_err(ConfigError::Malformed)?;
        let (os, architecture) = (config.os().to_string(), config.architecture().to_string());
        if (os.as_str(), architecture.as_str()) != ("linux", "amd64") {
            return Err(ConfigError::Platform { os, architecture });
        }
        let diff_ids = config.rootfs().diff_ids().iter().map(|digest| digest.parse());
        let diff_ids = diff_ids.collect::<Result<_, _>>()?;
        let section = config.config().clone().unwrap_or_default();
        let pairs = section.env().iter().flatten().filter_map(|pair| pair.split_once('='));
        let run = RunConfig {
            env: pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            user: section.user().clone().unwrap_or_default(),
            working_dir: section.working_dir().clone().unwrap_or_default(),
            entrypoint: section.entrypoint().clone().unwrap_or_default(),
            cmd: section.cmd().clone().unwrap_or_default(),
            labels: section.labels().clone().unwrap_or_default().into_iter().collect(),
            start: None,
        };
        run.check()?;
        Ok(Self { run, diff_ids })
    }
}

impl RunConfig {
    fn check(&self) -> Result<(), ConfigError> {
        let has_nul = |text: &String| text.contains('\0');
        let fields = [
            (
                "environment",
                self.env.iter().any(|(name, value)| has_nul(name) || has_nul(value)),
            ),
            ("user", has_nul(&self.user)),
            ("working directory", has_nul(&self.working_dir)),
            ("command", self.entrypoint.iter().chain(&self.cmd).any(has_nul)),
        ];
        match fields.into_iter().find(|(_, wrong)| *wrong) {
            Some((field, _)) => Err(ConfigError::Nul(field)),
            None => Ok(()),
        }
    }

    /// The command of the image with `arguments` in the place of its own; empty when there is nothing to run.
    pub fn command(&self, arguments: &[String]) -> Vec<String> {
        let arguments = if arguments.is_empty() { &self.cmd } else { arguments };
        self.entrypoint.iter().chain(arguments).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CONFIG: &str = r#"{"architecture":"amd64","os":"linux","config":{"Env":["A=b=c","PATH=/bin"],"User":"app:1",
        "WorkingDir":"/srv","Entrypoint":["/e","-x"],"Cmd":["c"],"Labels":{"l":"v"},"Healthcheck":{"Test":["NONE"]}},
        "rootfs":{"type":"layers","diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]},
        "docker_version":"20"}"#;

    #[test]
    fn what_docker_writes_is_understood() {
        let parsed = ParsedConfig::parse(CONFIG.as_bytes()).unwrap();
        assert_eq!(parsed.diff_ids, [Digest::of(b"")]);
        assert_eq!(parsed.run.env["A"], "b=c");
        assert_eq!(parsed.run.command(&[]), ["/e", "-x", "c"]);
        assert_eq!(parsed.run.command(&["d".into()]), ["/e", "-x", "d"]);
        let json = serde_json::to_string(&parsed.run).unwrap();
        assert_eq!(serde_json::from_str::<RunConfig>(&json).unwrap(), parsed.run);
    }

    #[test]
    fn an_image_for_another_machine_is_refused() {
        let config = CONFIG.replace("amd64", "arm64");
        let error = ParsedConfig::parse(config.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("linux/arm64"), "{error}");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(at in 0..CONFIG.len(), byte in any::<u8>()) {
            let mut config = CONFIG.as_bytes().to_vec();
            config[at] = byte;
            let _ = ParsedConfig::parse(&config);
        }
    }
}
