//! A model hub for tests: enough HTTP to serve files as the real one does, and to fail as the network does.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{path::Path, thread};

use sha2::{Digest as _, Sha256};
use tokrun_model::pull::{HubOptions, PullOptions, PullProgress};

/// The commit that every branch of the mock stands for.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// The repository that the mock serves.
pub(crate) const REPOSITORY: &str = "acme/tiny";

/// One file of the hub.
#[derive(Clone, Default)]
pub(crate) struct Remote {
    pub(crate) body: Vec<u8>,
    /// Large files are described by their sha256 on a redirect to the storage, small ones are served at once.
    pub(crate) large: bool,
    /// A digest that the body does not have.
    pub(crate) false_digest: Option<String>,
    /// Answers instead of the file, one a request.
    pub(crate) statuses: VecDeque<u16>,
    /// Bytes after which the next GETs break off.
    pub(crate) cuts: VecDeque<usize>,
    /// Bytes after which the next GETs fall silent.
    pub(crate) stalls: VecDeque<usize>,
    /// Whether every GET breaks off before its first byte.
    pub(crate) dead: bool,
    /// Whether parts are refused and the whole file is sent.
    pub(crate) ignores_range: bool,
    /// A pause before each content.
    pub(crate) delay: Duration,
}

/// What a client asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) authorized: bool,
}

#[derive(Default)]
struct State {
    files: HashMap<String, Remote>,
    asked: Vec<Asked>,
}

/// The hub at one address, its storage at another.
pub(crate) struct Hub {
    endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Hub {
    pub(crate) fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let storage = listen(&state, String::new());
        let endpoint = listen(&state, storage);
        Self { endpoint, state }
    }

    /// Adds or replaces a file.
    pub(crate) fn serve(&self, name: &str, remote: Remote) {
        self.state.lock().unwrap().files.insert(name.to_owned(), remote);
    }

    /// Changes a file.
    pub(crate) fn change(&self, name: &str, change: impl FnOnce(&mut Remote)) {
        change(self.state.lock().unwrap().files.get_mut(name).unwrap());
    }

    /// Everything that was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state.lock().unwrap().asked.clone()
    }

    /// The ranges of the requests for content of `name`, in order.
    pub(crate) fn ranges(&self, name: &str) -> Vec<Option<String>> {
        let content = |asked: &Asked| asked.method == "GET" && asked.path == format!("/storage/{name}");
        self.asked().into_iter().filter(content).map(|asked| asked.range).collect()
    }

    /// Options that lead to this hub, with a token and a cache in `home`, and to no Python.
    pub(crate) fn options(&self, home: &Path) -> PullOptions {
        options(&self.endpoint, home)
    }
}

/// Options that lead to `endpoint`.
pub(crate) fn options(endpoint: &str, home: &Path) -> PullOptions {
    let hub = HubOptions {
        endpoint: endpoint.to_owned(),
        token: Some("hf_secret".to_owned()),
        offline: false,
        cache: Some(home.join("hub")),
        certificates: None,
        silence_limit: Duration::from_secs(20),
        retry_pause: Duration::from_millis(1),
    };
    PullOptions { hub, python: home.join("no-python") }
}

/// Bytes that differ from one another.
pub(crate) fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|index| (index.wrapping_mul(2_654_435_761) >> 7) as u8).collect()
}

pub(crate) fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Remembers what it hears.
#[derive(Default)]
pub(crate) struct Recorder {
    /// Bytes of the current or last file.
    pub(crate) bytes: Mutex<u64>,
    pub(crate) begun: Mutex<Vec<String>>,
    pub(crate) notes: Mutex<Vec<String>>,
}

impl PullProgress for Recorder {
    fn begin(&self, file: &str, total_bytes: Option<u64>) {
        *self.bytes.lock().unwrap() = 0;
        self.begun.lock().unwrap().push(format!("{file} {total_bytes:?}"));
    }
    fn advance(&self, bytes: u64) {
        *self.bytes.lock().unwrap() += bytes;
    }
    fn note(&self, message: &str) {
        self.notes.lock().unwrap().push(message.to_owned());
    }
    fn end(&self) {}
}

/// Answers on a free port until the process ends.
fn listen(state: &Arc<Mutex<State>>, storage: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let state = Arc::clone(state);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (state, storage) = (Arc::clone(&state), storage.clone());
            // A client that goes away is no failure of the test.
            thread::spawn(move || answer(stream, &state, &storage).ok());
        }
    });
    address
}

fn answer(stream: TcpStream, state: &Mutex<State>, storage: &str) -> std::io::Result<()> {
    let Some(asked) = read_request(&stream)? else { return Ok(()) };
    let known_paths = [format!("/{REPOSITORY}/resolve/main/"), format!("/{REPOSITORY}/resolve/{COMMIT}/")];
    let at_hub = known_paths.iter().find_map(|prefix| asked.path.strip_prefix(prefix.as_str()));
    let name = at_hub.or_else(|| asked.path.strip_prefix("/storage/")).unwrap_or_default().to_owned();
    let (remote, status, (cut, stall)) = {
        let mut state = state.lock().unwrap();
        state.asked.push(asked.clone());
        let Some(remote) = state.files.get_mut(&name) else { return head(stream, 404, &[]).map(drop) };
        let status = remote.statuses.pop_front();
        let is_content = asked.method == "GET" && !(remote.large && at_hub.is_some());
        let cut = if is_content { remote.cuts.pop_front() } else { None };
        let stall = if is_content { remote.stalls.pop_front() } else { None };
        (remote.clone(), status, (cut, stall))
    };
    if let Some(status) = status {
        return head(stream, status, &[]).map(drop);
    }
    let digest = remote.false_digest.clone().unwrap_or_else(|| sha256(&remote.body));
    let commit = ("x-repo-commit", COMMIT.to_owned());
    if remote.large && at_hub.is_some() {
        let headers = [
            ("location", format!("{storage}/storage/{name}")),
            ("x-linked-etag", format!("\"{digest}\"")),
            ("x-linked-size", remote.body.len().to_string()),
            commit,
            ("content-length", "0".to_owned()),
        ];
        return head(stream, 302, &headers).map(drop);
    }
    let range = asked.range.as_deref().filter(|_| !remote.ignores_range);
    let begin: usize = range.map_or(0, |range| range["bytes=".len()..].trim_end_matches('-').parse().unwrap());
    let body = &remote.body[begin..];
    let mut headers = vec![("content-length", body.len().to_string()), ("etag", "\"0123\"".to_owned()), commit];
    if range.is_some() {
        let total = remote.body.len();
        headers.push(("content-range", format!("bytes {begin}-{}/{total}", total - 1)));
    }
    thread::sleep(remote.delay);
    let mut stream = head(stream, if range.is_some() { 206 } else { 200 }, &headers)?;
    if asked.method == "GET" {
        let end = if remote.dead { 0 } else { cut.or(stall).unwrap_or(body.len()).min(body.len()) };
        stream.write_all(&body[..end])?;
        if stall.is_some() {
            thread::sleep(Duration::from_secs(5));
        }
    }
    Ok(())
}

fn read_request(stream: &TcpStream) -> std::io::Result<Option<Asked>> {
    let mut lines = BufReader::new(stream).lines();
    let Some(first) = lines.next().transpose()? else { return Ok(None) };
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let mut asked = Asked { method, path, range: None, authorized: false };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => asked.range = Some(value.to_owned()),
            "authorization" => asked.authorized = value == "Bearer hf_secret",
            _ => {}
        }
    }
    Ok(Some(asked))
}

fn head(mut stream: TcpStream, status: u16, headers: &[(&str, String)]) -> std::io::Result<TcpStream> {
    let mut text = format!("HTTP/1.1 {status} -\r\nconnection: close\r\n");
    if headers.is_empty() {
        text.push_str("content-length: 0\r\n");
    }
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all((text + "\r\n").as_bytes())?;
    Ok(stream)
}
