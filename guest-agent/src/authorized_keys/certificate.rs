//! What an OpenSSH user certificate permits, with the meaning sshd(8) gives its options and extensions.

use std::time::SystemTime;

use russh::keys::ssh_key::certificate::CertType;
use russh::keys::{Algorithm, Certificate};

use super::options::Options;

/// Runs instead of whatever the client asks for.
const FORCE_COMMAND: &str = "force-command";

/// What the certificate's owner may do, if `certificate` is a user's and valid at `now` for one of `principals`.
///
/// That its authority is trusted and signed it is for the caller to know. A certificate that names no principal at all
/// admits nobody, and so does one with a critical option that cannot be enforced.
pub(super) fn permits(certificate: &Certificate, principals: &[&str], now: SystemTime) -> Option<Options> {
    let valid = certificate.cert_type() == CertType::User
        && !matches!(certificate.signature().algorithm(), Algorithm::Rsa { hash: None })
        && certificate.valid_after_time().is_none_or(|start| now >= start)
        && certificate.valid_before_time().is_none_or(|end| now < end)
        && certificate
            .valid_principals()
            .iter()
            .any(|principal| principals.contains(&principal.as_str()));
    let enforceable = certificate.critical_options().keys().all(|name| name == FORCE_COMMAND);
    if !valid || !enforceable {
        return None;
    }
    let extension = |name: &str| certificate.extensions().contains_key(name);
    let mut options = Options::default().without_touch(extension("no-touch-required"));
    options.command = certificate.critical_options().get(FORCE_COMMAND).cloned();
    options.pty = extension("permit-pty");
    options.port_forwarding = extension("permit-port-forwarding");
    options.agent_forwarding = extension("permit-agent-forwarding");
    Some(options)
}
