//! Who may log in: with a key, or with a certificate of an authority, that the host gave or that the user's own
//! `~/.ssh/authorized_keys` names.

use std::time::SystemTime;

use russh::keys::{Algorithm, Certificate, PublicKey};
use russh::server::Auth;
use tokio::sync::OnceCell;

use super::Settings;
use super::as_user;
use super::channel::Login;
use crate::authorized_keys::{self, AuthorizedKeys, Options};
use crate::users::User;

/// What may log in as one user.
pub(super) struct Candidate<'a> {
    user: User,
    given: &'a AuthorizedKeys,
    takes_own: bool,
    /// Read when what the host gave does not suffice.
    own: OnceCell<AuthorizedKeys>,
}

impl<'a> Candidate<'a> {
    /// The user `name`, or the only one there is, if this server can become it: root's all, another user's only itself.
    pub(super) fn find(name: &str, settings: &'a Settings) -> Option<Self> {
        let name = settings.only_user.as_deref().unwrap_or(name);
        let user = settings.user(name)?;
        let server = rustix::process::geteuid();
        if !server.is_root() && server.as_raw() != user.uid {
            return None;
        }
        Some(Self {
            user,
            given: &settings.authorized_keys,
            takes_own: settings.features.own_keys,
            own: OnceCell::new(),
        })
    }

    /// Whether a client that offers `key` may go on to prove that it has it.
    ///
    /// For a certificate the library shows only the key that it certifies. So where certificates are taken at all, any
    /// key may be proved; only then it is known whether it logs in.
    pub(super) async fn may_prove(&self, key: &PublicKey, algorithm: &Algorithm) -> bool {
        !is_sha1(algorithm)
            && (self.given.has_authorities()
                || self.options_of_key(key).await.is_some()
                || self.own().await.has_authorities())
    }

    /// The login with `key`, which the client has, if that is allowed.
    pub(super) async fn by_key(self, key: &PublicKey, algorithm: &Algorithm) -> Option<Login> {
        let options = self.options_of_key(key).await.filter(|_| !is_sha1(algorithm))?;
        Some(Login {
            user: self.user,
            options,
        })
    }

    /// The login with `certificate`, if that is allowed. The library verified both its signatures.
    pub(super) async fn by_certificate(self, certificate: &Certificate) -> Option<Login> {
        let now = SystemTime::now();
        let options = |keys: &AuthorizedKeys| keys.find_certificate(certificate, &self.user.name, now);
        let options = match options(self.given) {
            Some(options) => options,
            None => options(self.own().await).map(without_environment)?,
        };
        Some(Login {
            user: self.user,
            options,
        })
    }

    async fn options_of_key(&self, key: &PublicKey) -> Option<Options> {
        let now = SystemTime::now();
        match self.given.find(key, now) {
            Some(options) => Some(options.clone()),
            None => self.own().await.find(key, now).cloned().map(without_environment),
        }
    }

    async fn own(&self) -> &AuthorizedKeys {
        let read = async || {
            if self.takes_own {
                own_keys(&self.user).await
            } else {
                AuthorizedKeys::default()
            }
        };
        self.own.get_or_init(read).await
    }
}

async fn own_keys(user: &User) -> AuthorizedKeys {
    let (home, uid) = (user.home.clone(), user.uid);
    let contents = as_user::run(user, move || authorized_keys::read_own(&home, uid)).await;
    // A file that is missing or not safe has no keys.
    contents
        .map(|contents| AuthorizedKeys::parse(&contents))
        .unwrap_or_default()
}

/// As with sshd's default `PermitUserEnvironment no`: the variables could lead around a command that the line forces.
fn without_environment(mut options: Options) -> Options {
    options.environment.clear();
    options
}

/// The answer to a client.
pub(super) fn answer(accepted: bool) -> Auth {
    if accepted { Auth::Accept } else { Auth::reject() }
}

fn is_sha1(algorithm: &Algorithm) -> bool {
    matches!(algorithm, Algorithm::Rsa { hash: None })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    /// The login of a user with these lines in its own file, where the host gave those.
    async fn login(own: &str, given: &str) -> Option<Login> {
        let home = tempfile::tempdir().unwrap();
        let ssh = home.path().join(".ssh");
        fs::create_dir(&ssh).unwrap();
        fs::write(ssh.join("authorized_keys"), own).unwrap();
        for path in [ssh.join("authorized_keys"), ssh] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
        }
        let user = User {
            uid: rustix::process::geteuid().as_raw(),
            home: home.path().into(),
            ..User::by_name("root").unwrap()
        };
        let candidate = Candidate {
            takes_own: true,
            own: OnceCell::new(),
            given: &AuthorizedKeys::parse(given.as_bytes()),
            user,
        };
        let key = PublicKey::from_openssh(KEY).unwrap();
        assert_eq!(
            candidate.may_prove(&key, &key.algorithm()).await,
            candidate.options_of_key(&key).await.is_some()
        );
        candidate.by_key(&key, &key.algorithm()).await
    }

    #[tokio::test]
    async fn a_key_logs_in_that_the_host_gave_or_the_user_named() {
        assert!(login(KEY, "").await.is_some());
        assert!(login("", KEY).await.is_some());
        assert!(login("", "").await.is_none());
    }

    #[tokio::test]
    async fn what_the_host_says_of_a_key_holds() {
        let login = login(KEY, &format!("no-pty {KEY}")).await.unwrap();
        assert!(!login.options.pty);
    }

    #[tokio::test]
    async fn a_users_own_file_sets_no_variables() {
        let line = format!("environment=\"A=b\" {KEY}");
        assert!(login(&line, "").await.unwrap().options.environment.is_empty());
        assert_eq!(login("", &line).await.unwrap().options.environment.len(), 1);
    }
}
