//! The head of a request, from bytes that may be anything.

use std::borrow::Cow;

use crate::http::response::Status;

/// More header fields than this are too many: browsers send about twenty, Prometheus five.
const MAX_FIELDS: usize = 64;

/// What matters of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) method: Method,
    /// Without query, not decoded.
    pub(super) path: String,
    pub(super) query: Option<String>,
    /// All `Accept` fields, joined by commas.
    pub(super) accept: Option<String>,
    /// Whether the client sends something behind the head. It is not read.
    pub(super) more: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Head,
    Other,
}

/// Collects bytes until they are a head.
#[derive(Debug)]
pub(super) struct Reader {
    bytes: Vec<u8>,
    /// How many bytes there were when the parser last looked.
    looked_at: usize,
    max_bytes: usize,
}

impl Reader {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { bytes: Vec::new(), looked_at: 0, max_bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes more bytes; `Some` once they are a head.
    ///
    /// The parser starts from the beginning each time, so it is not asked about every byte: only when a line has ended
    /// or there is twice as much as last time, which also finds nonsense without a line end early.
    pub(super) fn feed(&mut self, more: &[u8]) -> Result<Option<Head>, Status> {
        // One byte more than allowed is enough to know that it is too much.
        let room = self.max_bytes.saturating_add(1).saturating_sub(self.bytes.len());
        let more = &more[..more.len().min(room)];
        self.bytes.extend_from_slice(more);
        if more.contains(&b'\n') || self.bytes.len() >= self.looked_at * 2 {
            self.looked_at = self.bytes.len();
            if let Some((head, length)) = parse(&self.bytes)? {
                let fits = length <= self.max_bytes;
                return if fits { Ok(Some(head)) } else { Err(Status::HeadTooLarge) };
            }
        }
        if self.bytes.len() > self.max_bytes { Err(Status::HeadTooLarge) } else { Ok(None) }
    }
}

/// The head at the start of `bytes` and its length; `None` if there is more to come.
fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>, Status> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Status::HeadTooLarge),
        Err(_) => return Err(Status::BadRequest),
    };
    let (Some(method), Some(target)) = (request.method, request.path) else { return Err(Status::BadRequest) };
    let named = |name: &'static str| {
        let fields = request.headers.iter();
        fields.filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
    };
    // RFC 9112, 3.2: exactly one, but for HTTP/1.0.
    let hosts = named("host").count();
    if hosts > 1 || (hosts == 0 && request.version != Some(0)) {
        return Err(Status::BadRequest);
    }
    let method = match method {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        _ => Method::Other,
    };
    let (path, query) = match origin_form(target).split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (origin_form(target), None),
    };
    let accept: Vec<_> = named("accept").map(String::from_utf8_lossy).collect();
    let has_body = named("transfer-encoding").next().is_some() || named("content-length").any(|length| length != b"0");
    let head = Head {
        method,
        path: if path.is_empty() { "/".to_owned() } else { path.to_owned() },
        query: query.map(str::to_owned),
        accept: (!accept.is_empty()).then(|| accept.join(&Cow::Borrowed(", "))),
        more: has_body || bytes.len() > length,
    };
    Ok(Some((head, length)))
}

/// Path and query of a target that may be a whole URI, as a proxy sends it (RFC 9112, 3.2.2).
fn origin_form(target: &str) -> &str {
    let is_uri = |scheme: &&str| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    match ["http://", "https://"].iter().find(|scheme| is_uri(scheme)) {
        None => target,
        Some(scheme) => {
            let rest = &target[scheme.len()..];
            rest.find(['/', '?']).map_or("", |at| &rest[at..])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(bytes: &[u8]) -> Result<Option<Head>, Status> {
        Reader::new(8192).feed(bytes)
    }

    fn head(text: &str) -> Head {
        feed(text.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn a_whole_head() {
        let seen = head("GET /metrics?name%5B%5D=up HTTP/1.1\r\nHost: x\r\naccept: text/plain\r\nAccept: */*\r\n\r\n");
        assert_eq!((seen.method, seen.path.as_str()), (Method::Get, "/metrics"));
        assert_eq!(seen.query.as_deref(), Some("name%5B%5D=up"));
        assert_eq!(seen.accept.as_deref(), Some("text/plain, */*"));
        assert!(!seen.more);
        assert_eq!(head("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n").method, Method::Head);
        assert_eq!(head("get / HTTP/1.1\r\nHost: x\r\n\r\n").method, Method::Other, "methods are case-sensitive");
        assert_eq!(head("GET / HTTP/1.0\r\n\r\n").accept, None);
        assert_eq!(head("GET / HTTP/1.1\nHost: x\n\n").path, "/", "bare line feeds");
    }

    #[test]
    fn a_target_may_be_a_uri() {
        let path = |target: &str| {
            let head = head(&format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n"));
            (head.path, head.query)
        };
        let plain = |path: &str| (path.to_owned(), None);
        assert_eq!(path("http://x:1/metrics"), plain("/metrics"));
        assert_eq!(path("HTTPS://x/metrics"), plain("/metrics"));
        assert_eq!(path("http://x"), plain("/"));
        assert_eq!(path("http://x?a/b"), ("/".to_owned(), Some("a/b".to_owned())));
        assert_eq!(path("/http://x/y"), plain("/http://x/y"));
        assert_eq!(path("*"), plain("*"));
    }

    #[test]
    fn any_split_gives_the_same() {
        let text = b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: a\r\n\r\n";
        for first in 1..text.len() {
            let mut reader = Reader::new(text.len());
            assert_eq!(reader.feed(&text[..first]), Ok(None), "{first}");
            assert!(reader.feed(&text[first..]).unwrap().is_some(), "{first}");
        }
        let mut reader = Reader::new(text.len());
        let (last, all_but) = text.split_last().unwrap();
        for byte in all_but {
            assert_eq!(reader.feed(&[*byte]), Ok(None));
        }
        assert_eq!(reader.feed(&[*last]).unwrap(), feed(text).unwrap());
    }

    #[test]
    fn what_comes_behind_the_head_is_noticed() {
        assert!(head("GET / HTTP/1.1\r\nHost: x\r\n\r\nG").more);
        assert!(head("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n").more);
        assert!(head("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").more);
        assert!(!head("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").more);
    }

    #[test]
    fn nonsense_is_refused_as_soon_as_it_shows() {
        assert_eq!(feed(b"\x16\x03\x01\x02\x00"), Err(Status::BadRequest), "TLS");
        assert_eq!(feed(b"GET / HTTP/2.0\r\n"), Err(Status::BadRequest));
        assert_eq!(feed(b"GET  / HTTP/1.1\r\n"), Err(Status::BadRequest));
        assert_eq!(feed(b"GET / HTTP/1.1\r\nno colon\r\n"), Err(Status::BadRequest));
        assert_eq!(feed(b"GET / HTTP/1.1\r\n\r\n"), Err(Status::BadRequest), "no host");
        assert_eq!(feed(b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"), Err(Status::BadRequest));
        let mut reader = Reader::new(8192);
        let fed = (0..8192).find_map(|_| reader.feed(b"\x01").err());
        assert_eq!(fed, Some(Status::BadRequest));
    }

    #[test]
    fn too_much_is_too_much() {
        let text = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        assert!(Reader::new(text.len()).feed(text).unwrap().is_some());
        assert_eq!(Reader::new(text.len() - 1).feed(text), Err(Status::HeadTooLarge));
        let mut reader = Reader::new(100);
        assert_eq!(reader.feed(&[b'a'; 100]), Ok(None));
        assert_eq!(reader.feed(b"a"), Err(Status::HeadTooLarge));
        let mut many = b"GET / HTTP/1.1\r\nHost: x\r\n".to_vec();
        many.extend(b"a:\r\n".repeat(MAX_FIELDS));
        assert_eq!(feed(&many), Err(Status::HeadTooLarge));
        // A body does not count.
        let mut long = text.to_vec();
        long.extend([b'x'; 200]);
        assert!(Reader::new(text.len()).feed(&long).unwrap().is_some_and(|head| head.more));
    }

    const STARTS: &[&str] = &["", "GET / HTTP/1.1\r\n", "GET /\u{e9} HTTP/1.1\r\nHost: x\r\n", "\r\n\r\n"];

    proptest::proptest! {
        #[test]
        fn anything_in_any_pieces_is_taken(
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400),
            start in proptest::sample::select(STARTS),
            piece in 1_usize..50,
        ) {
            let all = [start.as_bytes(), &bytes].concat();
            let mut reader = Reader::new(256);
            for piece in all.chunks(piece) {
                match reader.feed(piece) {
                    Ok(None) => proptest::prop_assert!(reader.bytes.len() <= 256),
                    Ok(Some(_)) | Err(Status::BadRequest | Status::HeadTooLarge) => break,
                    Err(other) => proptest::prop_assert!(false, "{other:?}"),
                }
            }
        }
    }
}
