//! Who may log in: with a key of `authorized_keys`, or with a certificate that one of its authorities signed.

use std::time::SystemTime;

use russh::keys::{Algorithm, Certificate, PublicKey};
use russh::server::Auth;

use super::channel::Login;
use crate::authorized_keys::{AuthorizedKeys, Options};
use crate::users::User;

/// Whether a client that offers `key` may go on to prove that it has it.
///
/// For a certificate the library shows only the key that it certifies. So where certificates are taken at all, any key
/// may be proved; only then it is known whether it logs in.
pub(super) fn may_sign(keys: &AuthorizedKeys, name: &str, key: &PublicKey, algorithm: &Algorithm) -> bool {
    by_key(keys, name, key, algorithm).is_some() || keys.has_authorities() && !is_sha1(algorithm)
}

/// Who logs in with `key` as `name`, if that is allowed.
pub(super) fn by_key(keys: &AuthorizedKeys, name: &str, key: &PublicKey, algorithm: &Algorithm) -> Option<Login> {
    let options = keys.find(key, SystemTime::now()).filter(|_| !is_sha1(algorithm))?;
    login(name, options.clone())
}

/// Who logs in with `certificate` as `name`, if that is allowed. The library verified both its signatures.
pub(super) fn by_certificate(keys: &AuthorizedKeys, name: &str, certificate: &Certificate) -> Option<Login> {
    login(name, keys.find_certificate(certificate, name, SystemTime::now())?)
}

/// The answer to a client.
pub(super) fn answer(accepted: bool) -> Auth {
    if accepted { Auth::Accept } else { Auth::reject() }
}

fn is_sha1(algorithm: &Algorithm) -> bool {
    matches!(algorithm, Algorithm::Rsa { hash: None })
}

/// Root's server can become all users, another user's only itself.
fn login(name: &str, options: Options) -> Option<Login> {
    let user = User::by_name(name)?;
    let own = rustix::process::geteuid();
    (own.is_root() || own.as_raw() == user.uid).then_some(Login { user, options })
}
