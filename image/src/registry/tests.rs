use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::*;
use crate::registry::download::DownloadError;

/// What a registry answers to one request: bytes of HTTP, after which it hangs up or says nothing more.
type Answer = Box<dyn Fn(&Request) -> Reply + Send>;

struct Request {
    path: String,
    headers: String,
}

enum Reply {
    /// All of it, then the end.
    Close(Vec<u8>),
    /// All of it, then nothing.
    Stall(Vec<u8>),
}

/// A registry on loopback that answers with a function, one request a connection.
struct Server {
    address: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn new(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        std::thread::spawn(move || {
            let mut stalled = Vec::new();
            for stream in listener.incoming().flatten() {
                stalled.extend(serve(stream, &answer, &seen));
            }
        });
        Self { address, requests }
    }

    fn repository(&self, credentials: Option<Credentials>) -> Repository {
        let reference = format!("{}/app:1", self.address).parse().unwrap();
        let options = RegistryOptions {
            credentials,
            stall_timeout: Duration::from_millis(200),
            ..RegistryOptions::default()
        };
        Repository::new(reference, &options)
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve(mut stream: TcpStream, answer: &Answer, seen: &Mutex<Vec<String>>) -> Option<TcpStream> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    seen.lock().unwrap().push(path.clone());
    let headers = headers.join("\n").to_ascii_lowercase();
    match answer(&Request { path, headers }) {
        Reply::Close(bytes) => {
            let _ = stream.write_all(&bytes);
            None
        }
        Reply::Stall(bytes) => {
            let _ = stream.write_all(&bytes);
            Some(stream)
        }
    }
}

fn response(status: &str, headers: &str, length: usize, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n");
    [head.as_bytes(), body].concat()
}

fn ok(body: &[u8]) -> Reply {
    Reply::Close(response("200 OK", "", body.len(), body))
}

fn content() -> Vec<u8> {
    (0..100_000_u32).flat_map(u32::to_le_bytes).collect()
}

fn blob() -> Blob {
    Blob {
        digest: Digest::of(&content()),
        size: content().len() as u64,
    }
}

fn range_start(request: &Request) -> usize {
    let range = request.headers.split("range: bytes=").nth(1);
    range.map_or(0, |range| range.split('-').next().unwrap().parse().unwrap())
}

#[test]
fn a_download_that_breaks_or_stalls_goes_on_where_it_was() {
    for stalls in [false, true] {
        let server = Server::new(Box::new(move |request| {
            let (content, start) = (content(), range_start(request));
            let end = content.len().min(start + 150_000);
            let status = if start == 0 { "200 OK" } else { "206 Partial Content" };
            let bytes = response(status, "", content.len() - start, &content[start..end]);
            if stalls {
                Reply::Stall(bytes)
            } else {
                Reply::Close(bytes)
            }
        }));
        let mut file = tempfile::tempfile().unwrap();
        let moved = std::cell::Cell::new(0);
        let count = |bytes| moved.set(moved.get() + bytes);
        server.repository(None).download(blob(), &mut file, &count).unwrap();
        // No byte came twice. A busy machine may take an answer for one that stalls, and ask once more.
        assert_eq!(moved.get(), blob().size, "stalls: {stalls}");
        assert!(server.requests().len() >= 3, "stalls: {stalls}");
    }
}

#[test]
fn a_download_that_gets_nowhere_ends_and_what_came_is_kept_for_the_next_one() {
    let server = Server::new(Box::new(|request| match range_start(request) {
        0 => Reply::Close(response("200 OK", "", 400_000, &content()[..1000])),
        _ => Reply::Close(response("503 Busy", "", 0, b"")),
    }));
    let mut file = tempfile::tempfile().unwrap();
    let broken = server.repository(None).download(blob(), &mut file, &|_| {});
    assert!(
        matches!(broken, Err(DownloadError::Broken { at: 1000, .. })),
        "{broken:?}"
    );
    let server = Server::new(Box::new(|request| {
        let rest = &content()[range_start(request)..];
        Reply::Close(response("206 Partial Content", "", rest.len(), rest))
    }));
    let moved = std::cell::Cell::new(0);
    let count = |bytes| moved.set(moved.get() + bytes);
    server.repository(None).download(blob(), &mut file, &count).unwrap();
    assert_eq!(moved.get(), blob().size - 1000);
}

#[test]
fn a_beginning_that_was_damaged_meanwhile_is_thrown_away() {
    use std::io::{Read as _, Seek as _};
    let server = Server::new(Box::new(|request| match range_start(request) {
        0 => ok(&content()),
        start => {
            let rest = &content()[start..];
            Reply::Close(response("206 Partial Content", "", rest.len(), rest))
        }
    }));
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[9; 5000]).unwrap();
    server.repository(None).download(blob(), &mut file, &|_| {}).unwrap();
    let mut found = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut found).unwrap();
    assert!(found == content());
}

#[test]
fn what_is_damaged_or_too_long_is_refused_and_not_kept() {
    let damaged = Server::new(Box::new(|_| ok(&vec![7; content().len()])));
    let mut file = tempfile::tempfile().unwrap();
    let error = damaged.repository(None).download(blob(), &mut file, &|_| {});
    assert!(matches!(error, Err(DownloadError::Damaged { .. })));
    assert_eq!(file.metadata().unwrap().len(), 0);
    let long = Server::new(Box::new(|_| ok(&vec![0; content().len() + 1])));
    let error = long.repository(None).download(blob(), &mut file, &|_| {});
    assert!(matches!(error, Err(DownloadError::TooLong { .. })));
    assert!(file.metadata().unwrap().len() <= blob().size);
}

fn image() -> (String, String) {
    let config = r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let descriptor = format!(
        r#"{{"mediaType":"x/y","digest":"{}","size":9}}"#,
        Digest::of(config.as_bytes())
    );
    let manifest = format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[]}}"#);
    (config.to_owned(), manifest)
}

fn answer_image(request: &Request) -> Reply {
    let (config, manifest) = image();
    match request.path.contains("/manifests/") {
        true => ok(manifest.as_bytes()),
        false => ok(config.as_bytes()),
    }
}

fn credentials() -> Option<Credentials> {
    Some(Credentials {
        username: "me".into(),
        password: "secret".into(),
    })
}

#[test]
fn an_image_is_resolved_with_a_basic_login_or_a_token_when_one_is_asked_for() {
    let basic = Server::new(Box::new(|request| {
        match request.headers.contains("basic bwu6c2vjcmv0") {
            true => answer_image(request),
            false => Reply::Close(response("401 Who", "WWW-Authenticate: Basic realm=\"r\"\r\n", 0, b"")),
        }
    }));
    assert!(basic.repository(credentials()).resolve().is_ok());
    let refused = basic.repository(None).resolve();
    assert!(matches!(refused, Err(RegistryError::Refused { .. })), "{refused:?}");

    let tokens = Server::new(Box::new(|request| {
        let asked_well = request.path.contains("scope=") && request.path.contains("service=s");
        let logged_in = request.headers.contains("basic bwu6c2vjcmv0");
        match asked_well && logged_in {
            true => ok(br#"{"token":"t0k"}"#),
            false => Reply::Close(response("401 Who", "", 0, b"")),
        }
    }));
    let challenge = format!(
        "WWW-Authenticate: Bearer realm=\"http://{}/token\",service=\"s\"\r\n",
        tokens.address
    );
    let bearer = Server::new(Box::new(move |request| match request.headers.contains("bearer t0k") {
        true => answer_image(request),
        false => Reply::Close(response("401 Who", &challenge, 0, b"")),
    }));
    assert!(bearer.repository(credentials()).resolve().is_ok());
    assert!(matches!(
        bearer.repository(None).resolve(),
        Err(RegistryError::Refused { .. })
    ));
}

#[test]
fn a_registry_that_lies_or_has_nothing_is_an_error() {
    let lying = Server::new(Box::new(|request| match request.path.contains("/manifests/") {
        true => ok(image().1.as_bytes()),
        false => ok(b"another configuration"),
    }));
    assert!(matches!(
        lying.repository(None).resolve(),
        Err(RegistryError::Damaged { .. })
    ));
    let empty = Server::new(Box::new(|_| Reply::Close(response("404 No", "", 0, b""))));
    assert!(matches!(
        empty.repository(None).resolve(),
        Err(RegistryError::NotFound { .. })
    ));
    let endless = Server::new(Box::new(|_| ok(&vec![b' '; 5 << 20])));
    assert!(matches!(
        endless.repository(None).resolve(),
        Err(RegistryError::TooLong { .. })
    ));
    let silent = Server::new(Box::new(|_| Reply::Stall(response("200 OK", "", 100, b"{"))));
    assert!(matches!(
        silent.repository(None).resolve(),
        Err(RegistryError::Read { .. })
    ));
}

#[test]
fn only_a_registry_on_this_machine_is_talked_to_without_tls() {
    for (registry, loopback) in [
        ("localhost:5000", true),
        ("127.0.0.1:5000", true),
        ("[::1]:5000", true),
        ("localhost.example.org", false),
        ("10.0.0.1:5000", false),
    ] {
        assert_eq!(is_loopback(registry), loopback, "{registry}");
    }
}
