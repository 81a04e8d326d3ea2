//! Logins: HTTP Basic, and the tokens of the distribution specification ("Bearer").

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Read as _};
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use ureq::Agent;

use super::RegistryError;

/// The longest answer of a token server, in bytes.
const MAX_TOKEN: u64 = 256 << 10;

/// The longest file with logins, in bytes.
const MAX_CONFIG: u64 = 1 << 20;

/// A name and a password. Neither is shown by `Debug`.
#[derive(Clone, Eq, PartialEq)]
pub struct Credentials {
    /// The name.
    pub username: String,
    /// The password or a token in its place.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// The file with logins cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// It is there and cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is no JSON of Docker's.
    #[error("cannot understand {}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
}

impl Credentials {
    /// What `docker login` or `podman login` wrote for `registry`: in `$REGISTRY_AUTH_FILE`, else
    /// `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`. Credential helpers are not asked.
    ///
    /// # Errors
    /// When there is such a file and it cannot be understood.
    pub fn from_docker(registry: &str) -> Result<Option<Self>, CredentialsError> {
        let variable = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let path = variable("REGISTRY_AUTH_FILE")
            .or_else(|| Some(variable("DOCKER_CONFIG")?.join("config.json")))
            .or_else(|| Some(variable("HOME")?.join(".docker/config.json")));
        let Some(path) = path else { return Ok(None) };
        let mut bytes = Vec::new();
        match fs::File::open(&path).and_then(|file| file.take(MAX_CONFIG).read_to_end(&mut bytes)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CredentialsError::Read { path, source }),
            Ok(_) => {}
        }
        Self::in_config(&bytes, registry).map_err(|source| CredentialsError::Malformed { path, source })
    }

    fn in_config(json: &[u8], registry: &str) -> Result<Option<Self>, serde_json::Error> {
        #[derive(Default, Deserialize)]
        struct Config {
            #[serde(default)]
            auths: BTreeMap<String, Auth>,
        }
        #[derive(Default, Deserialize)]
        struct Auth {
            auth: Option<String>,
        }
        let config: Config = serde_json::from_slice(json)?;
        // Docker Hub has the name of its first version here.
        let names = [
            registry.to_owned(),
            format!("https://{registry}"),
            format!("https://{registry}/v1/"),
        ];
        let mut found = names.iter().filter_map(|name| config.auths.get(name)?.auth.as_deref());
        Ok(found.next().and_then(|auth| {
            let plain = String::from_utf8(STANDARD.decode(auth).ok()?).ok()?;
            let (username, password) = plain.split_once(':')?;
            Some(Self {
                username: username.to_owned(),
                password: password.to_owned(),
            })
        }))
    }

    fn basic(&self) -> String {
        format!(
            "Basic {}",
            STANDARD.encode(format!("{}:{}", self.username, self.password))
        )
    }
}

/// The state of a login.
#[derive(Debug)]
pub(super) struct Authorization {
    registry: String,
    scope: String,
    credentials: Option<Credentials>,
    header: Header,
}

/// Not to be shown.
struct Header(Option<String>);

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Header(..)")
    }
}

impl Authorization {
    pub(super) fn new(registry: String, repository: &str, credentials: Option<Credentials>) -> Self {
        Self {
            registry,
            scope: format!("repository:{repository}:pull"),
            credentials,
            header: Header(None),
        }
    }

    pub(super) fn registry(&self) -> &str {
        &self.registry
    }

    pub(super) fn who(&self) -> &str {
        self.credentials
            .as_ref()
            .map_or("anybody", |credentials| &credentials.username)
    }

    /// The value of `Authorization`, once one was asked for.
    pub(super) fn header(&self) -> Option<&str> {
        self.header.0.as_deref()
    }

    /// Does what a registry that answers 401 asks for. A password that may be read on the way is not sent, unless the
    /// registry itself is talked to without TLS.
    pub(super) fn answer(&mut self, challenges: &[String], secure: bool, agent: &Agent) -> Result<(), RegistryError> {
        let parsed: Vec<Challenge> = challenges.iter().filter_map(|text| Challenge::parse(text)).collect();
        let of = |scheme: &str| {
            parsed
                .iter()
                .find(|challenge| challenge.scheme.eq_ignore_ascii_case(scheme))
        };
        if let Some(bearer) = of("bearer") {
            let token = self.token(bearer, secure, agent)?;
            self.header = Header(Some(format!("Bearer {token}")));
            return Ok(());
        }
        match (of("basic"), &self.credentials) {
            (Some(_), Some(credentials)) => {
                self.header = Header(Some(credentials.basic()));
                Ok(())
            }
            (Some(_), None) => Err(self.refused()),
            (None, _) => Err(self.not_understood(challenges)),
        }
    }

    fn token(&self, challenge: &Challenge, secure: bool, agent: &Agent) -> Result<String, RegistryError> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let described = || vec![format!("Bearer realm={:?}", challenge.parameters.get("realm"))];
        let realm = challenge
            .parameters
            .get("realm")
            .filter(|realm| realm.starts_with("https://") || (!secure && realm.starts_with("http://")));
        let realm = realm.ok_or_else(|| self.not_understood(&described()))?;
        let scope = challenge.parameters.get("scope").unwrap_or(&self.scope);
        let mut request = agent.get(realm).query("scope", scope);
        if let Some(service) = challenge.parameters.get("service") {
            request = request.query("service", service);
        }
        if let Some(credentials) = &self.credentials {
            request = request.header("Authorization", credentials.basic());
        }
        let response = request.call().map_err(|source| RegistryError::Http {
            url: realm.clone(),
            source: Box::new(source),
        })?;
        match response.status().as_u16() {
            200 => {}
            401 | 403 => return Err(self.refused()),
            status => {
                let url = realm.clone();
                return Err(RegistryError::Status { url, status });
            }
        }
        let mut bytes = Vec::new();
        let read = response
            .into_body()
            .into_reader()
            .take(MAX_TOKEN)
            .read_to_end(&mut bytes);
        read.map_err(|source| RegistryError::Read {
            url: realm.clone(),
            source,
        })?;
        let token: Option<Token> = serde_json::from_slice(&bytes).ok();
        let token = token.and_then(|token| token.token.or(token.access_token));
        let is_sound = |token: &String| token.bytes().all(|byte| byte.is_ascii_graphic());
        token
            .filter(is_sound)
            .ok_or_else(|| self.not_understood(&["a token that is none".into()]))
    }

    fn refused(&self) -> RegistryError {
        RegistryError::Refused {
            registry: self.registry.clone(),
            who: self.who().to_owned(),
        }
    }

    fn not_understood(&self, challenges: &[String]) -> RegistryError {
        let text = challenges.join("; ");
        RegistryError::Challenge {
            registry: self.registry.clone(),
            challenge: text.chars().filter(|c| !c.is_control()).take(200).collect(),
        }
    }
}

/// One value of `WWW-Authenticate` (RFC 9110, section 11.6.1), as registries write it: one scheme a header.
#[derive(Debug, Eq, PartialEq)]
struct Challenge {
    scheme: String,
    parameters: BTreeMap<String, String>,
}

impl Challenge {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let mut parameters = BTreeMap::new();
        loop {
            rest = rest.trim_start_matches([' ', ',']);
            if rest.is_empty() {
                break;
            }
            let (name, after) = rest.split_once('=')?;
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => unquote(quoted)?,
                None => {
                    let end = after.find(',').unwrap_or(after.len());
                    (after[..end].trim().to_owned(), &after[end..])
                }
            };
            parameters.insert(name.trim().to_ascii_lowercase(), value);
            rest = after;
        }
        let is_token = !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric());
        is_token.then(|| Self {
            scheme: scheme.to_owned(),
            parameters,
        })
    }
}

#[cfg(fuzzing)]
pub(super) fn parse_challenge(text: &str) {
    let _ = Challenge::parse(text);
}

#[cfg(fuzzing)]
pub(super) fn parse_logins(json: &[u8]) {
    if let Ok(Some(credentials)) = Credentials::in_config(json, "r.example") {
        let _ = credentials.basic();
    }
}

/// Up to the closing quote, and what comes behind it.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_challenge_has_a_scheme_and_parameters() {
        let text = r#"Bearer realm="https://auth.example/token",service="registry, \"x\"", scope=repository:a:pull"#;
        let challenge = Challenge::parse(text).unwrap();
        assert_eq!(challenge.scheme, "Bearer");
        assert_eq!(challenge.parameters["realm"], "https://auth.example/token");
        assert_eq!(challenge.parameters["service"], r#"registry, "x""#);
        assert_eq!(challenge.parameters["scope"], "repository:a:pull");
        assert_eq!(Challenge::parse("Bearer realm=\"x"), None);
    }

    #[test]
    fn a_login_is_found_as_docker_wrote_it_and_never_shown() {
        let json = br#"{"auths":{"r.example:5000":{"auth":"bWU6c2VjOnJldA=="},"x":{}},"credsStore":"y"}"#;
        let found = Credentials::in_config(json, "r.example:5000").unwrap().unwrap();
        assert_eq!((found.username.as_str(), found.password.as_str()), ("me", "sec:ret"));
        assert!(!format!("{found:?}").contains("sec"));
        assert_eq!(Credentials::in_config(json, "other").unwrap(), None);
    }

    #[test]
    fn a_password_is_not_sent_where_it_could_be_read() {
        let mut authorization = Authorization::new("r.example".into(), "a", None);
        let challenge = ["Bearer realm=\"http://evil.example/token\"".to_owned()];
        let answered = authorization.answer(&challenge, true, &Agent::new_with_defaults());
        assert!(matches!(answered, Err(RegistryError::Challenge { .. })));
    }

    proptest! {
        #[test]
        fn no_challenge_makes_it_panic(text in ".{0,80}") {
            let _ = Challenge::parse(&text);
        }
    }
}
