//! A template as a file: TOML, in which every key is one of those below.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use msb_image::config::StartCommand;
use serde::Deserialize;

use super::Template;

/// The longest file that is read, in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// Why a file is no template.
#[derive(Debug, thiserror::Error)]
pub enum TemplateFileError {
    /// It cannot be read.
    #[error("cannot read the template {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is too long to be one.
    #[error("the template {} has more than {} KiB", .0.display(), MAX_SIZE >> 10)]
    TooLong(PathBuf),
    /// It is not TOML, or has keys or values that no template has.
    #[error("the template {} cannot be used: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and in which line.
        reason: String,
    },
    /// A step says nothing, or too much.
    #[error("step {number} of the template {} cannot be used: {reason}", path.display())]
    Step {
        /// The file.
        path: PathBuf,
        /// Which step, from 1.
        number: usize,
        /// What is wrong.
        reason: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TemplateFile {
    from: String,
    apt_repository: Option<PathBuf>,
    #[serde(default)]
    steps: Vec<StepTable>,
    start: Option<StartCommand>,
}

/// One step: one of the first six keys, and what belongs to it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct StepTable {
    copy: Option<PathBuf>,
    run: Option<String>,
    apt_install: Option<Vec<String>>,
    env: Option<BTreeMap<String, String>>,
    workdir: Option<String>,
    /// A step of its own, or beside `run`.
    user: Option<String>,
    /// Beside `copy`.
    to: Option<String>,
}

pub(super) fn read(path: &Path) -> Result<Template, TemplateFileError> {
    let reading = |source| TemplateFileError::Read {
        path: path.into(),
        source,
    };
    if std::fs::metadata(path).map_err(reading)?.len() > MAX_SIZE {
        return Err(TemplateFileError::TooLong(path.into()));
    }
    parse(&std::fs::read_to_string(path).map_err(reading)?, path)
}

fn parse(text: &str, path: &Path) -> Result<Template, TemplateFileError> {
    let file: TemplateFile = toml::from_str(text).map_err(|error| TemplateFileError::Malformed {
        path: path.into(),
        reason: described(&error, text),
    })?;
    let mut template = Template::from_image(file.from);
    template.apt_repository = file.apt_repository;
    template.start = file.start;
    for (index, step) in file.steps.into_iter().enumerate() {
        template = step.add_to(template).map_err(|reason| TemplateFileError::Step {
            path: path.into(),
            number: index + 1,
            reason: reason.into(),
        })?;
    }
    Ok(template)
}

/// On one line, with the line that it is about.
fn described(error: &toml::de::Error, text: &str) -> String {
    let line = error.span().and_then(|span| text.get(..span.start));
    match line.map(|before| before.matches('\n').count() + 1) {
        Some(line) => format!("line {line}: {}", error.message()),
        None => error.message().to_owned(),
    }
}

impl StepTable {
    fn add_to(self, template: Template) -> Result<Template, &'static str> {
        const ONE: &str = "write one of copy, run, apt_install, env, workdir and user";
        let Self {
            copy,
            run,
            apt_install,
            env,
            workdir,
            user,
            to,
        } = self;
        if to.is_some() != copy.is_some() {
            return Err("copy and to belong together: copy = \"app\", to = \"/srv/app\"");
        }
        Ok(match (copy.zip(to), run, apt_install, env, workdir, user) {
            (Some((from, to)), None, None, None, None, None) => template.copy(from, to),
            (None, Some(command), None, None, None, None) => template.run_cmd(command),
            (None, Some(command), None, None, None, Some(user)) => template.run_cmd_as(user, command),
            (None, None, Some(packages), None, None, None) => template.apt_install(packages),
            (None, None, None, Some(variables), None, None) => template.set_envs(variables),
            (None, None, None, None, Some(directory), None) => template.set_workdir(directory),
            (None, None, None, None, None, Some(user)) => template.set_user(user),
            _ => return Err(ONE),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::wait_for_port;

    const WHOLE: &str = r#"
from = "debian:12"
apt_repository = "debs"
steps = [
  { apt_install = ["nginx", "curl=8.1"] },
  { workdir = "/srv" },
  { copy = "site", to = "html" },
  { env = { B = "2", A = "1" } },
  { run = "make", user = "root" },
  { user = "www-data" },
]
[[more]]
"#;

    fn parsed(text: &str) -> Result<Template, String> {
        parse(text, Path::new("t.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_says_what_the_builder_does() {
        let text = WHOLE.replace("[[more]]", "[start]\ncommand = \"nginx\"\nready = { port = 80 }");
        let built = Template::from_image("debian:12")
            .apt_repository("debs")
            .apt_install(["nginx", "curl=8.1"])
            .set_workdir("/srv")
            .copy("site", "html")
            .set_envs([("A", "1"), ("B", "2")])
            .run_cmd_as("root", "make")
            .set_user("www-data")
            .set_start_cmd("nginx", wait_for_port(80));
        assert_eq!(parsed(&text).unwrap(), built);
    }

    #[test]
    fn what_is_unknown_or_wrong_is_named_with_its_line() {
        for (text, part) in [
            (WHOLE, "`more`"),
            ("from = 'a'\nstep = []", "line 2: unknown field `step`"),
            ("from = 'a'\nsteps = [{ copi = 'a' }]", "`copi`"),
            ("from = 'a'\n[start]\ncommand = 'x'\nready = { porte = 1 }", "`porte`"),
            ("from = 'a'\n[start]\ncommand = 'x'\nready = { port = 70000 }", "line 4"),
            ("steps = []", "`from`"),
            ("from = 'a'\nsteps = [{ run = 'x', copy = 'a', to = 'b' }]", "step 1"),
            ("from = 'a'\nsteps = [{ run = 'x' }, { copy = 'a' }]", "step 2"),
            ("from = 'a'\nsteps = [{}]", "write one of copy"),
            ("from = \"a", "line 1"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(part) && error.contains("t.toml"), "{text}: {error}");
        }
    }
}
