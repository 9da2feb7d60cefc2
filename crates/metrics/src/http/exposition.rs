//! What a renderer gets and what it returns.

use std::error::Error;

use fullbore_core::Failure;

/// What a client that scrapes has asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Scrape<'a> {
    /// The `Accept` header, several joined by commas; `None` if there is none, or it is no text.
    pub accept: Option<&'a str>,
    /// What follows the `?` in the request, not decoded.
    pub query: Option<&'a str>,
}

impl<'a> Scrape<'a> {
    /// A scrape with this `Accept` header, to try a renderer without a server.
    #[must_use]
    pub const fn accepting(accept: &'a str) -> Self {
        Self { accept: Some(accept), query: None }
    }

    /// Whether the client names OpenMetrics in `Accept` and likes it at least as much as plain text. Prometheus does;
    /// browsers and `curl` do not.
    #[must_use]
    pub fn wants_openmetrics(&self) -> bool {
        let openmetrics = self.liking(|media| media.eq_ignore_ascii_case("application/openmetrics-text"));
        let plain = self.liking(|media| media.eq_ignore_ascii_case("text/plain"));
        openmetrics > 0.0 && openmetrics >= plain
    }

    /// The best `q` among the media ranges of `Accept` that match; 0 if none does.
    fn liking(&self, matches: impl Fn(&str) -> bool) -> f32 {
        let ranges = self.accept.unwrap_or_default().split(',');
        let likings = ranges.filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            parts.next().filter(|media| matches(media))?;
            let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
            Some(quality.map_or(1.0, |quality| quality.trim().parse().unwrap_or(0.0)))
        });
        likings.fold(0.0, f32::max)
    }
}

/// A page of metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposition {
    /// The `Content-Type` header.
    pub content_type: &'static str,
    /// The page.
    pub body: String,
}

impl Exposition {
    /// A page in Prometheus's text format.
    #[must_use]
    pub const fn plain_text(body: String) -> Self {
        Self { content_type: "text/plain; version=0.0.4; charset=utf-8", body }
    }

    /// A page in OpenMetrics, `# EOF` at its end included.
    #[must_use]
    pub const fn openmetrics(body: String) -> Self {
        Self { content_type: "application/openmetrics-text; version=1.0.0; charset=utf-8", body }
    }
}

/// What a renderer may return: an [`Exposition`], or a `Result` with one. An error is a 500 whose text says nothing
/// about it; the error itself is in the events (feature `tracing`).
pub trait IntoExposition {
    /// The page, or why there is none.
    ///
    /// # Errors
    /// Those of the renderer.
    fn into_exposition(self) -> Result<Exposition, Failure>;
}

impl IntoExposition for Exposition {
    fn into_exposition(self) -> Result<Exposition, Failure> {
        Ok(self)
    }
}

impl<E: Into<Box<dyn Error + Send + Sync>>> IntoExposition for Result<Exposition, E> {
    fn into_exposition(self) -> Result<Exposition, Failure> {
        self.map_err(Failure::error)
    }
}

#[cfg(test)]
mod tests {
    use super::Scrape;

    #[test]
    fn openmetrics_is_for_those_who_ask_for_it() {
        let wants = |accept| Scrape::accepting(accept).wants_openmetrics();
        assert!(wants(
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
        ));
        assert!(wants("Application/OpenMetrics-Text"));
        assert!(wants("text/plain;q=0.5, application/openmetrics-text; q=0.5"));
        assert!(!wants("text/plain, application/openmetrics-text;q=0.9"));
        assert!(!wants("application/openmetrics-text;q=0"));
        assert!(!wants("application/openmetrics-text;q=much"));
        assert!(!wants("text/html,application/xhtml+xml,*/*;q=0.8"));
        assert!(!wants("*/*"));
        assert!(!wants(""));
        assert!(!Scrape::default().wants_openmetrics());
    }
}
