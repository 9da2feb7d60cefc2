//! Responses. Each says how long it is and that the connection ends with it.

use std::borrow::Cow;

use crate::http::exposition::Exposition;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    HeadTooLarge,
    Internal,
    Unavailable,
}

impl Status {
    const fn line(self) -> &'static str {
        match self {
            Status::Ok => "200 OK",
            Status::BadRequest => "400 Bad Request",
            Status::NotFound => "404 Not Found",
            Status::MethodNotAllowed => "405 Method Not Allowed",
            Status::RequestTimeout => "408 Request Timeout",
            Status::HeadTooLarge => "431 Request Header Fields Too Large",
            Status::Internal => "500 Internal Server Error",
            Status::Unavailable => "503 Service Unavailable",
        }
    }

    /// Fields that only this status has.
    const fn fields(self) -> &'static str {
        match self {
            Status::MethodNotAllowed => "Allow: GET, HEAD\r\n",
            Status::Unavailable => "Retry-After: 1\r\n",
            _ => "",
        }
    }
}

#[derive(Debug)]
pub(super) struct Response {
    status: Status,
    content_type: &'static str,
    body: Cow<'static, str>,
}

impl Response {
    pub(super) fn page(exposition: Exposition) -> Self {
        let Exposition { content_type, body } = exposition;
        Self { status: Status::Ok, content_type, body: Cow::Owned(body) }
    }

    pub(super) fn text(body: String) -> Self {
        Self { status: Status::Ok, content_type: PLAIN, body: Cow::Owned(body) }
    }

    /// Says what everybody may know: the status.
    pub(super) fn error(status: Status) -> Self {
        Self { status, content_type: PLAIN, body: Cow::Owned(format!("{}\n", status.line())) }
    }

    /// The head. Metrics change and are no page to be guessed at, hence the two fields in the middle.
    pub(super) fn head(&self) -> String {
        let Self { status, content_type, body } = self;
        format!(
            "HTTP/1.1 {}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\n{}Connection: close\r\n\r\n",
            status.line(),
            body.len(),
            status.fields(),
        )
    }

    pub(super) fn body(&self) -> &str {
        &self.body
    }
}

const PLAIN: &str = "text/plain; charset=utf-8";

/// Whether a `Content-Type` is one, and does not smuggle in another field.
pub(super) fn is_field_value(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_says_all() {
        let page = Response::page(Exposition { content_type: "text/x", body: "é".to_owned() });
        assert!(page.head().starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/x\r\nContent-Length: 2\r\n"));
        assert!(page.head().ends_with("\r\nConnection: close\r\n\r\n"));
        assert!(Response::error(Status::MethodNotAllowed).head().contains("\r\nAllow: GET, HEAD\r\n"));
        assert_eq!(Response::error(Status::NotFound).body(), "404 Not Found\n");
    }

    #[test]
    fn a_field_stays_on_its_line() {
        assert!(is_field_value("text/plain; version=0.0.4"));
        assert!(!is_field_value("a\r\nSet-Cookie: b") && !is_field_value("é") && !is_field_value(""));
    }
}
