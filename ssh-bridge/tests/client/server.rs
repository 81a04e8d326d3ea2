//! An SSH server in the test's own process whose commands are scripts for the client to cope with.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use msb_ssh::client::{ClientConfig, ClientError, SshClient};
use msb_ssh::keys::{KeyPair, PublicKey};

use russh::server::{Auth, ChannelOpenHandle, Handle, Handler, Msg, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelMsg, Pty, Sig};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;

/// Bytes between client and server.
const TRANSPORT: usize = 64 * 1024;

/// What an SFTP server says to a packet, both without and with their lengths.
pub(crate) type Answer = dyn Fn(&[u8]) -> Vec<u8> + Send + Sync;

/// What the server lets the test see.
#[derive(Default)]
pub(crate) struct Observed {
    /// Bytes that the command `flood` got rid of.
    pub(crate) flooded: AtomicUsize,
    /// Data and signals that reached the command `flood`.
    pub(crate) reached: Option<mpsc::UnboundedSender<String>>,
    /// Answers each packet of an SFTP client. Without it, there is no SFTP.
    pub(crate) sftp: Option<Box<Answer>>,
}

/// A server with one connection, and the client's way in.
pub(crate) struct Server {
    pub(crate) host_key: KeyPair,
    pub(crate) client_key: KeyPair,
    pub(crate) transport: DuplexStream,
}

impl Server {
    pub(crate) fn start(observed: Observed) -> (Self, Arc<Observed>) {
        let host_key = KeyPair::generate_ed25519("host").unwrap();
        let client_key = KeyPair::generate_ed25519("client").unwrap();
        let observed = Arc::new(observed);
        let (transport, stream) = duplex(TRANSPORT);
        let config = russh::server::Config {
            keys: vec![host_key.private_key().clone()],
            auth_rejection_time: std::time::Duration::ZERO,
            // A script that waits for room to write must not stop the connection, which brings that room.
            channel_buffer_size: 100_000,
            ..Default::default()
        };
        let script = Script {
            authorized: client_key.public_key().clone(),
            observed: Arc::clone(&observed),
            channel: None,
            terminal: String::new(),
        };
        tokio::spawn(async move {
            if let Ok(session) = russh::server::run_stream(Arc::new(config), stream, script).await {
                let _ = session.await;
            }
        });
        (
            Self {
                host_key,
                client_key,
                transport,
            },
            observed,
        )
    }

    pub(crate) fn config(&self) -> ClientConfig {
        let host_key = self.host_key.public_key().clone();
        ClientConfig::new("root", self.client_key.private_key().clone(), host_key)
    }

    pub(crate) async fn connect(self, config: ClientConfig) -> Result<SshClient, ClientError> {
        SshClient::connect(self.transport, config).await
    }
}

/// A client that is logged in.
pub(crate) async fn connected() -> SshClient {
    let (server, _) = Server::start(Observed::default());
    let config = server.config();
    server.connect(config).await.unwrap()
}

struct Script {
    authorized: PublicKey,
    observed: Arc<Observed>,
    channel: Option<Channel<Msg>>,
    terminal: String,
}

impl Script {
    fn run(&mut self, id: ChannelId, command: String, session: &mut Session) -> Result<(), russh::Error> {
        session.channel_success(id)?;
        let channel = self
            .channel
            .take()
            .expect("a command comes on a channel that was opened");
        let (handle, observed, terminal) = (session.handle(), Arc::clone(&self.observed), self.terminal.clone());
        tokio::spawn(async move { play(channel, handle, &command, &observed, terminal).await });
        Ok(())
    }
}

impl Handler for Script {
    type Error = russh::Error;

    async fn auth_publickey(&mut self, _: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        let known = key.public_key.key_data() == self.authorized.key_data();
        Ok(if known { Auth::Accept } else { Auth::reject() })
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        self.channel = Some(channel);
        reply.accept().await;
        Ok(())
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        cols: u32,
        rows: u32,
        _: u32,
        _: u32,
        _: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        if term == "refused" {
            return session.channel_failure(id);
        }
        self.terminal = format!("{term} {cols}x{rows}");
        session.channel_success(id)
    }

    async fn env_request(&mut self, _: ChannelId, name: &str, value: &str, _: &mut Session) -> Result<(), Self::Error> {
        self.terminal.push_str(&format!(" {name}={value}"));
        Ok(())
    }

    async fn exec_request(&mut self, id: ChannelId, command: &[u8], session: &mut Session) -> Result<(), Self::Error> {
        self.run(id, String::from_utf8_lossy(command).into_owned(), session)
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<(), Self::Error> {
        self.run(id, "terminal".to_owned(), session)
    }

    async fn subsystem_request(&mut self, id: ChannelId, _: &str, session: &mut Session) -> Result<(), Self::Error> {
        if self.observed.sftp.is_none() {
            return session.channel_failure(id);
        }
        session.channel_success(id)?;
        let channel = self
            .channel
            .take()
            .expect("a subsystem comes on a channel that was opened");
        tokio::spawn(serve_sftp(channel, Arc::clone(&self.observed)));
        Ok(())
    }
}

/// Hands each packet to the script, without its length.
async fn serve_sftp(mut channel: Channel<Msg>, observed: Arc<Observed>) {
    let answer = observed.sftp.as_ref().expect("it is only called with one");
    let mut writer = channel.make_writer();
    let mut reader = channel.make_reader();
    while let Ok(length) = reader.read_u32().await {
        let mut packet = vec![0; length.try_into().unwrap()];
        reader.read_exact(&mut packet).await.unwrap();
        // The client may have given up already.
        let _ = writer.write_all(&answer(&packet)).await;
    }
    drop(reader);
    let _ = channel.exit_status(0).await;
    let _ = channel.close().await;
}

async fn play(mut channel: Channel<Msg>, handle: Handle, command: &str, observed: &Observed, terminal: String) {
    let id = channel.id();
    let (verb, argument) = command.split_once(' ').unwrap_or((command, ""));
    let mut status = Some(0);
    match verb {
        "status" => status = Some(argument.parse().unwrap()),
        "signal" => {
            let signal = Sig::Custom(argument.to_owned());
            handle
                .exit_signal_request(id, signal, true, "dumped".into(), "".into())
                .await
                .unwrap();
            status = None;
        }
        "silent" => status = None,
        "both" => {
            channel.data(&b"to output"[..]).await.unwrap();
            channel.extended_data(1, &b"to error"[..]).await.unwrap();
        }
        "echo" => {
            let mut writer = channel.make_writer();
            let mut reader = channel.make_reader();
            tokio::io::copy(&mut reader, &mut writer).await.unwrap();
        }
        "count" => {
            let mut input = Vec::new();
            channel.make_reader().read_to_end(&mut input).await.unwrap();
            channel.data(format!("{}", input.len()).as_bytes()).await.unwrap();
        }
        "flood" => flood(&mut channel, argument.parse().unwrap(), observed).await,
        "terminal" => show_terminal(&mut channel, &terminal).await,
        "knock" => {
            let mut answers = Vec::new();
            answers.push(handle.channel_open_forwarded_tcpip("a", 1, "b", 2).await.is_ok());
            answers.push(handle.channel_open_agent().await.is_ok());
            answers.push(handle.channel_open_x11("a", 1).await.is_ok());
            answers.push(handle.channel_open_forwarded_streamlocal("/a").await.is_ok());
            channel.data(format!("{answers:?}").as_bytes()).await.unwrap();
        }
        "vanish" => {
            let _ = handle
                .disconnect(russh::Disconnect::ByApplication, "gone".into(), "en".into())
                .await;
            return;
        }
        other => panic!("the script has no {other:?}"),
    }
    if let Some(status) = status {
        let _ = channel.exit_status(status).await;
    }
    let _ = channel.eof().await;
    let _ = channel.close().await;
}

/// Writes as fast as the client takes, and tells the test what reaches it meanwhile.
async fn flood(channel: &mut Channel<Msg>, total: usize, observed: &Observed) {
    let mut writer = channel.make_writer();
    let write = async {
        let mut left = total;
        while left > 0 {
            let chunk = vec![b'x'; left.min(16 * 1024)];
            writer.write_all(&chunk).await.unwrap();
            left -= chunk.len();
            observed.flooded.fetch_add(chunk.len(), Ordering::SeqCst);
        }
    };
    let listen = async {
        while let Some(message) = channel.wait().await {
            let seen = match message {
                ChannelMsg::Signal {
                    signal: Sig::Custom(name),
                } => name,
                ChannelMsg::Signal { signal } => format!("{signal:?}"),
                ChannelMsg::Data { data } => String::from_utf8_lossy(&data).into_owned(),
                _ => continue,
            };
            if let Some(reached) = &observed.reached {
                let _ = reached.send(seen);
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = write => {}
        () = listen => {}
    }
}

/// Prints the terminal, then each change and signal, until its input ends or `q` comes.
async fn show_terminal(channel: &mut Channel<Msg>, terminal: &str) {
    channel.data(format!("{terminal}\n").as_bytes()).await.unwrap();
    while let Some(message) = channel.wait().await {
        let line = match message {
            ChannelMsg::WindowChange {
                col_width, row_height, ..
            } => format!("{col_width}x{row_height}\n"),
            ChannelMsg::Signal { signal } => format!("{signal:?}\n"),
            ChannelMsg::Data { data } if data.contains(&b'q') => return,
            ChannelMsg::Data { data } => format!("typed {}\n", data.escape_ascii()),
            ChannelMsg::Eof => return,
            _ => continue,
        };
        channel.data(line.as_bytes()).await.unwrap();
    }
}
