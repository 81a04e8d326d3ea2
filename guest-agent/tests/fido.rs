//! Logins with FIDO keys, which are made up here: what they sign is what a token would.

mod support;

use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use russh::keys::PublicKey;
use support::Server;
use support::raw::{Message, Raw};

const ALGORITHM: &str = "sk-ssh-ed25519@openssh.com";
const APPLICATION: &str = "ssh:";

/// Whether a key whose line has these options logs in, when its token attests `flags`.
fn logs_in(options: &str, flags: u8) -> bool {
    let secret = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    let key = Ed25519KeyPair::from_pkcs8(secret.as_ref()).unwrap();
    let public = Message(Vec::new())
        .string(ALGORITHM)
        .string(key.public_key())
        .string(APPLICATION)
        .0;
    let server = Server::new();
    let line = PublicKey::from_bytes(&public).unwrap().to_openssh().unwrap();
    server.write("authorized_keys", &format!("{options} {line}\n"));
    let sign = |data: &[u8]| {
        let attested = [flags, 0, 0, 0, 1];
        let (application, data) = (digest(&SHA256, APPLICATION.as_bytes()), digest(&SHA256, data));
        let signed = [application.as_ref(), &attested, data.as_ref()].concat();
        let signature = Message(Vec::new()).string(key.sign(&signed)).0;
        [signature, attested.to_vec()].concat()
    };
    Raw::connect(&server, &[]).authenticate(ALGORITHM, &public, sign)
}

#[test]
fn a_token_logs_in_where_it_need_attest_nothing() {
    assert!(logs_in("no-touch-required", 0));
    assert!(logs_in("no-touch-required", 1));
}

#[test]
fn a_token_that_would_have_to_be_touched_is_refused() {
    assert!(!logs_in("no-pty", 1));
    assert!(!logs_in("no-touch-required,verify-required", 5));
}
