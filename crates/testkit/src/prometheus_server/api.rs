//! Prometheus' HTTP API, as far as tests need it.

use std::{
    collections::BTreeMap,
    error, fmt,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::Duration,
};

use serde_json::Value;

/// Whoever listens there may be a stranger that talks without end.
const LONGEST_ANSWER: u64 = 64 << 20;
/// How much of an answer goes into an error message.
const SHOWN: usize = 500;

/// One series' value at the time of the query.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Sample {
    /// Its labels, the name under `__name__` where it has one.
    pub labels: BTreeMap<String, String>,
    /// May be infinite or not a number.
    pub value: f64,
}

/// How the last scrape of a target went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetHealth {
    /// There was none yet.
    Unknown,
    /// It was read whole and understood.
    Up,
    /// It failed.
    Down {
        /// Prometheus' words for why.
        last_error: String,
    },
}

/// Why a question to a [`Prometheus`](crate::Prometheus) has no answer.
///
/// `Debug` prints the same as `Display`, so that `unwrap` in a test shows it readably.
#[non_exhaustive]
pub enum PrometheusError {
    /// It is down, or did not answer in time.
    Unreachable {
        /// Where it was looked for.
        addr: SocketAddr,
        /// What connecting, sending or receiving met.
        error: io::Error,
    },
    /// It says that it cannot do what it was asked.
    Refused {
        /// Its `errorType`: `bad_data` for an expression that is wrong.
        kind: String,
        /// Its words for why.
        message: String,
    },
    /// The answer is there and not of the form that was asked for.
    Unexpected {
        /// What was expected.
        wanted: &'static str,
        /// The beginning of the answer.
        answer: String,
    },
}

impl PrometheusError {
    fn unexpected(wanted: &'static str, answer: &str) -> Self {
        Self::Unexpected { wanted, answer: answer.chars().take(SHOWN).collect() }
    }
}

impl fmt::Display for PrometheusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { addr, error } => write!(f, "no answer from prometheus at {addr}: {error}"),
            Self::Refused { kind, message } => write!(f, "prometheus refused ({kind}): {message}"),
            Self::Unexpected { wanted, answer } => {
                write!(f, "prometheus answered something else than {wanted}:\n{answer}")
            }
        }
    }
}

impl fmt::Debug for PrometheusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl error::Error for PrometheusError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Unreachable { error, .. } => Some(error),
            Self::Refused { .. } | Self::Unexpected { .. } => None,
        }
    }
}

pub(super) fn query(addr: SocketAddr, promql: &str, within: Duration) -> Result<Vec<Sample>, PrometheusError> {
    let data = get(addr, &format!("/api/v1/query?query={}", percent_encoded(promql)), within)?;
    samples(&data).ok_or_else(|| PrometheusError::unexpected("numbers", &data.to_string()))
}

pub(super) fn target_health(
    addr: SocketAddr,
    target: SocketAddr,
    within: Duration,
) -> Result<TargetHealth, PrometheusError> {
    let data = get(addr, "/api/v1/targets?state=active", within)?;
    health(&data, target).ok_or_else(|| PrometheusError::unexpected("the health of targets", &data.to_string()))
}

/// The working directory of the server; an error as long as it is not ready for queries.
pub(super) fn works_in(addr: SocketAddr, within: Duration) -> Result<PathBuf, PrometheusError> {
    let data = get(addr, "/api/v1/status/runtimeinfo", within)?;
    let path = data["CWD"].as_str().map(PathBuf::from);
    path.ok_or_else(|| PrometheusError::unexpected("its working directory", &data.to_string()))
}

/// What the API answers under `data`.
fn get(addr: SocketAddr, target: &str, within: Duration) -> Result<Value, PrometheusError> {
    let answer = exchange(addr, target, within).map_err(|error| {
        let timed_out = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        // The system's own words for it are "resource temporarily unavailable".
        let error =
            if timed_out { io::Error::new(io::ErrorKind::TimedOut, format!("none within {within:?}")) } else { error };
        PrometheusError::Unreachable { addr, error }
    })?;
    data(&String::from_utf8_lossy(&answer))
}

fn exchange(addr: SocketAddr, target: &str, within: Duration) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&addr, within)?;
    stream.set_read_timeout(Some(within))?;
    stream.set_write_timeout(Some(within))?;
    // Not 1.1: to that a long answer comes in chunks. One that is cut short is seen anyway, as it is no JSON.
    let request = format!("GET {target} HTTP/1.0\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(LONGEST_ANSWER).read_to_end(&mut answer)?;
    Ok(answer)
}

fn data(answer: &str) -> Result<Value, PrometheusError> {
    let body = answer.split_once("\r\n\r\n").map(|(_head, body)| body);
    let mut json: Value = body.and_then(|body| serde_json::from_str(body).ok()).unwrap_or_default();
    // The HTTP status says no more than these do.
    match json["status"].as_str() {
        Some("success") => Ok(json["data"].take()),
        Some("error") => {
            let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
            Err(PrometheusError::Refused { kind: text("errorType"), message: text("error") })
        }
        _ => Err(PrometheusError::unexpected("JSON with a status", answer)),
    }
}

fn samples(data: &Value) -> Option<Vec<Sample>> {
    let result = &data["result"];
    match data["resultType"].as_str()? {
        "vector" => result.as_array()?.iter().map(|series| sample(&series["metric"], &series["value"])).collect(),
        "scalar" => Some(vec![sample(&Value::Object(serde_json::Map::new()), result)?]),
        _ => None,
    }
}

/// `at` is a time, and the value as a text; without it the series is a native histogram.
fn sample(metric: &Value, at: &Value) -> Option<Sample> {
    let label = |(name, value): (&String, &Value)| Some((name.clone(), value.as_str()?.to_owned()));
    let labels = metric.as_object()?.iter().map(label).collect::<Option<_>>()?;
    Some(Sample { labels, value: at[1].as_str()?.parse().ok()? })
}

fn health(data: &Value, target: SocketAddr) -> Option<TargetHealth> {
    // Not `instance`: a label that relabelling may change.
    let address =
        |active: &Value| active["discoveredLabels"]["__address__"].as_str().and_then(|text| text.parse().ok());
    let Some(active) = data["activeTargets"].as_array()?.iter().find(|active| address(active) == Some(target)) else {
        return Some(TargetHealth::Unknown);
    };
    match active["health"].as_str()? {
        "unknown" => Some(TargetHealth::Unknown),
        "up" => Some(TargetHealth::Up),
        "down" => Some(TargetHealth::Down { last_error: active["lastError"].as_str()?.to_owned() }),
        _ => None,
    }
}

fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use serde_json::json;

    use super::*;

    #[test]
    fn every_byte_with_a_meaning_is_encoded() {
        assert_eq!(percent_encoded("a_b-1.~"), "a_b-1.~");
        assert_eq!(percent_encoded("up{a=\"ü & +%\"}[1s]"), "up%7Ba%3D%22%C3%BC%20%26%20%2B%25%22%7D%5B1s%5D");
    }

    #[test]
    fn a_vector_and_a_scalar_are_samples() {
        let vector = json!({"resultType": "vector", "result": [
            {"metric": {"__name__": "up", "job": "x"}, "value": [1.5, "0.25"]},
            {"metric": {}, "value": [1, "+Inf"]},
        ]});
        let samples_of_vector = samples(&vector).unwrap();
        assert_eq!(samples_of_vector.len(), 2);
        assert_eq!(samples_of_vector[0].labels["job"], "x");
        assert_eq!(samples_of_vector[0].value, 0.25);
        assert_eq!(samples_of_vector[1], Sample { labels: BTreeMap::new(), value: f64::INFINITY });
        let scalar = samples(&json!({"resultType": "scalar", "result": [1, "NaN"]})).unwrap();
        assert!(scalar[0].labels.is_empty() && scalar[0].value.is_nan());
        assert_eq!(samples(&json!({"resultType": "vector", "result": []})), Some(Vec::new()));
    }

    #[test]
    fn what_is_no_number_is_no_sample() {
        let histogram = json!({"resultType": "vector", "result": [{"metric": {}, "histogram": [1, {"count": "1"}]}]});
        for data in [histogram, json!({"resultType": "matrix", "result": []}), json!({}), Value::Null] {
            assert_eq!(samples(&data), None, "{data}");
        }
    }

    #[test]
    fn health_is_found_by_address() {
        let target = |address: &str, health: &str, error: &str| json!({"discoveredLabels": {"__address__": address}, "health": health, "lastError": error});
        let data = json!({"activeTargets": [
            target("127.0.0.1:1", "up", ""), target("[::1]:2", "down", "why"), target("127.0.0.1:3", "unknown", ""),
        ]});
        let of = |address: &str| health(&data, address.parse().unwrap());
        assert_eq!(of("127.0.0.1:1"), Some(TargetHealth::Up));
        assert_eq!(of("[::1]:2"), Some(TargetHealth::Down { last_error: "why".to_owned() }));
        assert_eq!(of("127.0.0.1:3"), Some(TargetHealth::Unknown));
        assert_eq!(of("127.0.0.1:4"), Some(TargetHealth::Unknown), "not discovered yet");
        assert_eq!(health(&json!({}), "127.0.0.1:1".parse().unwrap()), None);
    }

    #[test]
    fn answers_that_are_none() {
        let ok = "HTTP/1.0 200 OK\r\nA: b\r\n\r\n{\"status\":\"success\",\"data\":{\"a\":1}}";
        assert_eq!(data(ok).unwrap(), json!({"a": 1}));
        let refused = "HTTP/1.0 400 x\r\n\r\n{\"status\":\"error\",\"errorType\":\"bad_data\",\"error\":\"parse\"}";
        assert_eq!(data(refused).unwrap_err().to_string(), "prometheus refused (bad_data): parse");
        for answer in ["HTTP/1.0 503 x\r\n\r\nService Unavailable", &ok[..ok.len() - 1], "+PONG", ""] {
            assert!(matches!(data(answer), Err(PrometheusError::Unexpected { .. })), "{answer}");
        }
    }

    #[test]
    fn a_silent_stranger_is_left() {
        let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = stranger.local_addr().unwrap();
        let error = query(addr, "up", Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().ends_with("none within 50ms"), "{error}");
        assert!(error::Error::source(&error).is_some());
        let hangs_up = thread::spawn(move || drop(stranger.incoming().nth(1)));
        assert!(query(addr, "up", Duration::from_secs(30)).is_err());
        hangs_up.join().unwrap();
    }
}
