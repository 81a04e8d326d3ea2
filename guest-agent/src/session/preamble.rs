//! What comes ahead of SSH on a connection of a prepared endpoint: read with a bound and a deadline, and answered.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use msb_protocol::frame::{self, FrameLength};
use msb_protocol::server_preamble::{Answer, NAMESPACE, Preamble, Refusal, ServerOptions};
use russh::keys::Algorithm;
use russh::keys::ssh_key::SshSig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::auth::Candidate;
use super::{Settings, parse_authorized_keys, parse_host_key, server_config};

/// How long it may take until a preamble is read and answered: its writer has it whole before it connects.
const TIME: Duration = Duration::from_secs(10);

/// Why a preamble is not served.
#[derive(Debug, thiserror::Error)]
pub enum PreambleError {
    /// It did not come.
    #[error("it did not come within {} s", TIME.as_secs())]
    Late,
    /// It ended early, or cannot be answered.
    #[error("the stream ends in it")]
    Stream(#[source] io::Error),
    /// It claims a length that none has.
    #[error(transparent)]
    Length(#[from] FrameLength),
    /// What the host was told.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Reads the preamble and answers it. Returns the settings that it makes of `settings`; SSH comes next in the stream.
///
/// # Errors
/// When it is cut off, late or refused; nothing but the end may follow.
pub(super) async fn receive(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    settings: Settings,
) -> Result<Settings, PreambleError> {
    let exchange = async {
        let prepared = match read(stream).await {
            Ok(frame) => settings.prepared(&frame).map_err(PreambleError::Refused),
            Err(error) => Err(error),
        };
        let answer = match &prepared {
            Ok(_) => Answer::Accepted,
            Err(PreambleError::Refused(refusal)) => Answer::Refused(*refusal),
            Err(PreambleError::Length(_)) => Answer::Refused(Refusal::Malformed),
            Err(_) => return prepared,
        };
        let answered = stream.write_all(&answer.to_frame()).await;
        answered.map_err(PreambleError::Stream).and(prepared)
    };
    timeout(TIME, exchange).await.unwrap_or(Err(PreambleError::Late))
}

/// One frame, and not a byte beyond it.
async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Zeroizing<Vec<u8>>, PreambleError> {
    let length = stream.read_u32().await.map_err(PreambleError::Stream)?;
    let mut frame = Zeroizing::new(vec![0; frame::check(length)?]);
    stream.read_exact(&mut frame).await.map_err(PreambleError::Stream)?;
    Ok(frame)
}

impl Settings {
    /// The settings of a connection whose preamble is `frame`.
    fn prepared(mut self, frame: &[u8]) -> Result<Self, Refusal> {
        let preamble = Preamble::from_frame(frame).map_err(|_| Refusal::Malformed)?;
        self.verify(&preamble)?;
        let options = ServerOptions::from_message(&preamble.options).map_err(|_| Refusal::Malformed)?;
        if let Some(key) = &options.host_key {
            let key = parse_host_key(key.as_bytes()).map_err(|_| Refusal::HostKey)?;
            let known = matches!(
                key.algorithm(),
                Algorithm::Ed25519 | Algorithm::Ecdsa { .. } | Algorithm::Rsa { .. }
            );
            if !known {
                return Err(Refusal::HostKey);
            }
            self.config = Arc::new(server_config(vec![key]));
        }
        if let Some(keys) = &options.authorized_keys {
            let keys = parse_authorized_keys(keys);
            if keys.is_empty() {
                return Err(Refusal::AuthorizedKeys);
            }
            self.authorized_keys = Arc::new(keys);
            self.features.own_keys = false;
        }
        if let Some(user) = &options.user {
            Candidate::find(user, &self).ok_or(Refusal::User)?;
            self.only_user = Some(user.as_str().into());
        }
        self.features.sftp &= options.sftp;
        Ok(self)
    }

    /// Whether it comes from who has the sandbox's own host key.
    fn verify(&self, preamble: &Preamble) -> Result<(), Refusal> {
        let signature = SshSig::from_pem(&preamble.signature).map_err(|_| Refusal::Signature)?;
        let mut keys = self.config.keys.iter().map(russh::keys::PrivateKey::public_key);
        let signed = keys.any(|key| key.verify(NAMESPACE, &preamble.options, &signature).is_ok());
        signed.then_some(()).ok_or(Refusal::Signature)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;
    use crate::session::Settings;

    fn settings() -> Settings {
        let key = russh::keys::PrivateKey::from(russh::keys::ssh_key::private::Ed25519Keypair::from_seed(&[7; 32]));
        let key = key.to_openssh(russh::keys::ssh_key::LineEnding::LF).unwrap();
        Settings::new(key.as_bytes(), b"").unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_preamble_that_stalls_ends_at_the_deadline() {
        for begun in [&b""[..], &[0, 0], &[0, 0, 1, 0, 1, 2, 3]] {
            let (mut host, mut agent) = duplex(64);
            host.write_all(begun).await.unwrap();
            let result = receive(&mut agent, settings()).await;
            assert!(matches!(result, Err(PreambleError::Late)), "{begun:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_takes_no_answer_holds_nobody() {
        let (mut host, mut agent) = duplex(5);
        host.write_all(&[0, 0, 0, 1, 9]).await.unwrap();
        let result = receive(&mut agent, settings()).await;
        assert!(matches!(result, Err(PreambleError::Late)));
    }

    #[tokio::test]
    async fn a_length_that_no_frame_has_is_answered_before_its_bytes_come() {
        let (mut host, mut agent) = duplex(64);
        host.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
        let result = receive(&mut agent, settings()).await;
        assert!(matches!(result, Err(PreambleError::Length(_))));
        drop(agent);
        let mut answer = Vec::new();
        host.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, Answer::Refused(Refusal::Malformed).to_frame());
    }
}
