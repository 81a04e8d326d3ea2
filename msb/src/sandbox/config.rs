//! The configuration of a sandbox: what was asked for, under an id. Written once.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::spec::SandboxSpec;
use crate::store::names::SandboxId;

/// The content of `config.json`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The id.
    pub id: SandboxId,
    /// When it was made.
    pub created_at: Timestamp,
    /// What was asked for.
    pub spec: SandboxSpec,
}

impl Config {
    /// The shortest thing a user can call the sandbox: its name, else its id.
    pub fn label(&self) -> &str {
        self.spec.name.as_ref().map_or(self.id.as_str(), |name| name.as_str())
    }

    /// The host names that ssh knows the sandbox by.
    pub fn hosts(&self) -> Vec<String> {
        let name = self.spec.name.iter().map(|name| format!("{name}.msb"));
        name.chain([format!("{}.msb", self.id)]).collect()
    }
}
