//! An SSH client that says whatever it is told, in or out of order: it keeps to the protocol only until it is logged in.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use msb_test_support::{kib_in, own_user};
use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::agreement::{EphemeralPrivateKey, UnparsedPublicKey, X25519, agree_ephemeral};
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use russh::keys::PrivateKey;
use russh::keys::signature::Signer;

use super::Server;

const VERSION: &[u8] = b"SSH-2.0-raw";
const BLOCK: usize = 16;

pub(crate) const DISCONNECT: u8 = 1;
const SERVICE_REQUEST: u8 = 5;
const KEXINIT: u8 = 20;
const NEWKEYS: u8 = 21;
const ECDH_INIT: u8 = 30;
const USERAUTH_REQUEST: u8 = 50;
const USERAUTH_SUCCESS: u8 = 52;
pub(crate) const GLOBAL_REQUEST: u8 = 80;
pub(crate) const REQUEST_SUCCESS: u8 = 81;
pub(crate) const REQUEST_FAILURE: u8 = 82;
pub(crate) const OPEN: u8 = 90;
pub(crate) const OPEN_CONFIRMATION: u8 = 91;
pub(crate) const OPEN_FAILURE: u8 = 92;
pub(crate) const WINDOW_ADJUST: u8 = 93;
pub(crate) const DATA: u8 = 94;
pub(crate) const EXTENDED_DATA: u8 = 95;
pub(crate) const EOF: u8 = 96;
pub(crate) const CLOSE: u8 = 97;
pub(crate) const REQUEST: u8 = 98;
pub(crate) const CHANNEL_SUCCESS: u8 = 99;
pub(crate) const CHANNEL_FAILURE: u8 = 100;

/// A message under construction.
#[derive(Clone, Debug)]
pub(crate) struct Message(pub(crate) Vec<u8>);

impl Message {
    pub(crate) fn new(kind: u8) -> Self {
        Self(vec![kind])
    }

    pub(crate) fn byte(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(crate) fn string(self, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        let mut message = self.u32(u32::try_from(value.len()).unwrap());
        message.0.extend(value);
        message
    }

    /// The opening of a session channel that the client calls `id`.
    pub(crate) fn open_session(id: u32) -> Self {
        Self::new(OPEN).string("session").u32(id).u32(1 << 20).u32(1 << 15)
    }

    /// A request on the server's channel `id` that wants an answer.
    pub(crate) fn request(id: u32, name: &str) -> Self {
        Self::new(REQUEST).u32(id).string(name).byte(1)
    }
}

/// One direction of the connection: in the clear until it has a key.
#[derive(Default)]
struct Direction {
    cipher: Option<(LessSafeKey, [u8; 12])>,
}

impl Direction {
    fn nonce(iv: &mut [u8; 12]) -> Nonce {
        let nonce = Nonce::assume_unique_for_key(*iv);
        let counter = u64::from_be_bytes(iv[4..].try_into().unwrap()).wrapping_add(1);
        iv[4..].copy_from_slice(&counter.to_be_bytes());
        nonce
    }

    fn seal(&mut self, payload: &[u8]) -> Vec<u8> {
        // The length counts towards the block only in the clear.
        let head = if self.cipher.is_some() { 1 } else { 5 };
        let mut padding = BLOCK - (head + payload.len()) % BLOCK;
        if padding < 4 {
            padding += BLOCK;
        }
        let mut body = vec![u8::try_from(padding).unwrap()];
        body.extend(payload);
        body.resize(body.len() + padding, 0);
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        if let Some((key, iv)) = &mut self.cipher {
            key.seal_in_place_append_tag(Self::nonce(iv), Aad::from(length), &mut body)
                .unwrap();
        }
        [length.as_slice(), &body].concat()
    }

    fn open(&mut self, source: &mut impl Read) -> io::Result<Vec<u8>> {
        let mut length = [0; 4];
        source.read_exact(&mut length)?;
        let tag = if self.cipher.is_some() {
            AES_128_GCM.tag_len()
        } else {
            0
        };
        let mut body = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap() + tag];
        source.read_exact(&mut body)?;
        let body = match &mut self.cipher {
            Some((key, iv)) => key
                .open_in_place(Self::nonce(iv), Aad::from(length), &mut body)
                .unwrap(),
            None => &mut body,
        };
        Ok(body[1..body.len() - usize::from(body[0])].to_vec())
    }
}

/// A connection of its own server process.
pub(crate) struct Raw {
    server: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    sealing: Direction,
    opening: Direction,
    session: Vec<u8>,
}

impl Raw {
    /// Starts a server and exchanges versions with it.
    pub(crate) fn connect(server: &Server, arguments: &[&str]) -> Self {
        let mut command: Command = super::serve(server);
        let command = command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut server = command.spawn().unwrap();
        let (input, output) = (server.stdin.take().unwrap(), server.stdout.take().unwrap());
        let mut raw = Self {
            server,
            input,
            output: BufReader::new(output),
            sealing: Direction::default(),
            opening: Direction::default(),
            session: Vec::new(),
        };
        raw.write(&[VERSION, b"\r\n"].concat());
        raw
    }

    /// Exchanges keys.
    pub(crate) fn exchange_keys(&mut self) {
        let mut version = Vec::new();
        self.output.read_until(b'\n', &mut version).unwrap();
        let ours = kexinit();
        self.send(&ours);
        let theirs = self.expect(KEXINIT);
        let random = SystemRandom::new();
        let secret = EphemeralPrivateKey::generate(&X25519, &random).unwrap();
        let public = secret.compute_public_key().unwrap();
        self.send(&Message::new(ECDH_INIT).string(&public));
        let reply = self.expect(ECDH_INIT + 1);
        let (host_key, rest) = string(&reply[1..]);
        let (their_public, _) = string(rest);
        let shared = agree_ephemeral(secret, &UnparsedPublicKey::new(&X25519, their_public), mpint).unwrap();
        let hashed = Message(Vec::new())
            .string(VERSION)
            .string(version.trim_ascii_end())
            .string(&ours.0)
            .string(&theirs)
            .string(host_key)
            .string(&public)
            .string(their_public);
        self.session = hash(&[&hashed.0, &shared]);
        self.send(&Message::new(NEWKEYS));
        self.expect(NEWKEYS);
        let derive = |letter: u8| hash(&[&shared, &self.session, &[letter], &self.session]);
        let cipher = |iv: Vec<u8>, key: Vec<u8>| {
            let key = UnboundKey::new(&AES_128_GCM, &key[..16]).unwrap();
            Some((LessSafeKey::new(key), iv[..12].try_into().unwrap()))
        };
        let (sealing, opening) = (cipher(derive(b'A'), derive(b'C')), cipher(derive(b'B'), derive(b'D')));
        (self.sealing.cipher, self.opening.cipher) = (sealing, opening);
    }

    /// A connection that is logged in with the server's key.
    pub(crate) fn log_in(server: &Server) -> Self {
        let mut raw = Self::connect(server, &[]);
        let key = PrivateKey::read_openssh_file(server.path("user")).unwrap();
        let sign = |data: &[u8]| Message(Vec::new()).string(key.try_sign(data).unwrap().as_bytes()).0;
        assert!(raw.authenticate("ssh-ed25519", &key.public_key().to_bytes().unwrap(), sign));
        raw
    }

    /// Exchanges keys and tries to log in. `sign` returns a signature without its algorithm.
    pub(crate) fn authenticate(&mut self, algorithm: &str, public: &[u8], sign: impl Fn(&[u8]) -> Vec<u8>) -> bool {
        self.exchange_keys();
        self.send(&Message::new(SERVICE_REQUEST).string("ssh-userauth"));
        self.expect(SERVICE_REQUEST + 1);
        let request = Message::new(USERAUTH_REQUEST)
            .string(own_user())
            .string("ssh-connection")
            .string("publickey")
            .byte(1)
            .string(algorithm)
            .string(public);
        let signed = Message(Vec::new()).string(&self.session).0;
        let signature = sign(&[signed, request.0.clone()].concat());
        let signature = [Message(Vec::new()).string(algorithm).0, signature].concat();
        self.send(&request.string(signature));
        self.receive().is_some_and(|answer| answer[0] == USERAUTH_SUCCESS)
    }

    /// Sends bytes as they are. A server that is gone takes nothing, which what it sent will tell.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        let _ = self.input.write_all(bytes).and_then(|()| self.input.flush());
    }

    /// Sends a message.
    pub(crate) fn send(&mut self, message: &Message) {
        let packet = self.sealing.seal(&message.0);
        self.write(&packet);
    }

    /// Sends messages in one piece.
    pub(crate) fn send_all(&mut self, messages: &[Message]) {
        let packets: Vec<Vec<u8>> = messages.iter().map(|message| self.sealing.seal(&message.0)).collect();
        self.write(&packets.concat());
    }

    /// The next message, or nothing when the server ended the connection.
    pub(crate) fn receive(&mut self) -> Option<Vec<u8>> {
        self.opening.open(&mut self.output).ok()
    }

    /// The next message of a kind; others are passed over.
    pub(crate) fn expect(&mut self, kind: u8) -> Vec<u8> {
        loop {
            let message = self
                .receive()
                .unwrap_or_else(|| panic!("the server ended before message {kind}"));
            if message[0] == kind {
                return message;
            }
        }
    }

    /// Opens a session and returns the server's name for it.
    pub(crate) fn open_session(&mut self, id: u32) -> u32 {
        self.send(&Message::open_session(id));
        let confirmed = self.expect(OPEN_CONFIRMATION);
        u32::from_be_bytes(confirmed[5..9].try_into().unwrap())
    }

    /// Whether the server still answers; otherwise it has ended.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.send(&Message::new(GLOBAL_REQUEST).string("keepalive@openssh.com").byte(1));
        while let Some(message) = self.receive() {
            match message[0] {
                REQUEST_FAILURE => return true,
                DISCONNECT => return false,
                _ => {}
            }
        }
        false
    }

    /// Whether the server process has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.server.try_wait().unwrap().is_some()
    }

    /// Closes the connection and returns the server's status and what it logged.
    pub(crate) fn finish(self) -> (Option<i32>, String) {
        drop((self.input, self.output));
        let output = self.server.wait_with_output().unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    /// The memory of its own that the server uses, in bytes: what it uses of its program is not in it.
    pub(crate) fn own_memory(&self) -> usize {
        // The server is the only child of timeout(1).
        let timeout = self.server.id();
        let children = std::fs::read_to_string(format!("/proc/{timeout}/task/{timeout}/children")).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", children.trim())).unwrap();
        kib_in(&status, "RssAnon").unwrap() as usize * 1024
    }
}

fn kexinit() -> Message {
    let lists = [
        "curve25519-sha256",
        "ssh-ed25519",
        "aes128-gcm@openssh.com",
        "aes128-gcm@openssh.com",
        "hmac-sha2-256",
        "hmac-sha2-256",
        "none",
        "none",
        "",
        "",
    ];
    let mut message = Message::new(KEXINIT);
    message.0.extend([0; 16]);
    lists.into_iter().fold(message, Message::string).byte(0).u32(0)
}

fn string(bytes: &[u8]) -> (&[u8], &[u8]) {
    let length = u32::from_be_bytes(bytes[..4].try_into().unwrap());
    bytes[4..].split_at(usize::try_from(length).unwrap())
}

fn mpint(bytes: &[u8]) -> Vec<u8> {
    let start = bytes.iter().position(|&byte| byte != 0).unwrap_or(bytes.len());
    let sign: &[u8] = if bytes.get(start).is_some_and(|&byte| byte >= 0x80) {
        &[0]
    } else {
        &[]
    };
    Message(Vec::new()).string([sign, &bytes[start..]].concat()).0
}

fn hash(parts: &[&[u8]]) -> Vec<u8> {
    digest(&SHA256, &parts.concat()).as_ref().to_vec()
}
