//! Reading and writing with a deadline for the whole of it: the time that is left is computed anew before each call of
//! the system, so that a client which sends a byte now and then gains nothing.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Not more in one call: some systems start the time limit again whenever a part of it has gone out.
const CHUNK: usize = 64 * 1024;

/// When something has to be done. `None`: never, the time is too far to represent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(Option<Instant>);

impl Deadline {
    /// Sockets know no paused clock: this is always real time.
    pub(super) fn after(limit: Duration) -> Self {
        Self(Instant::now().checked_add(limit))
    }

    /// What is left: `None` for no limit, never zero, which the sockets do not take.
    fn left(self) -> io::Result<Option<Duration>> {
        let Some(at) = self.0 else { return Ok(None) };
        match at.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

/// Reads what is there, waiting for the first byte of it; 0 at the end.
pub(super) fn read(mut stream: &TcpStream, buffer: &mut [u8], deadline: Deadline) -> io::Result<usize> {
    loop {
        stream.set_read_timeout(deadline.left()?)?;
        match stream.read(buffer) {
            Err(error) if is_early(&error) => {}
            other => return other,
        }
    }
}

/// Writes all of it.
pub(super) fn write_all(mut stream: &TcpStream, mut bytes: &[u8], deadline: Deadline) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_write_timeout(deadline.left()?)?;
        match stream.write(&bytes[..bytes.len().min(CHUNK)]) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if is_early(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A signal, or a time limit that the system has rounded down: the deadline itself decides.
fn is_early(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_deadline_is_that_of_the_whole() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        client.write_all(b"ab").unwrap();
        let mut byte = [0];
        assert_eq!(read(&stream, &mut byte, Deadline::after(Duration::MAX)).unwrap(), 1);
        // There is more to read, and room to write, but no time.
        let late = Deadline::after(Duration::ZERO);
        assert_eq!(read(&stream, &mut byte, late).unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(write_all(&stream, b"c", late).unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(read(&stream, &mut byte, Deadline::after(Duration::from_secs(3600))).unwrap(), 1);
    }

    #[test]
    fn waiting_ends_at_the_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let soon = || Deadline::after(Duration::from_millis(20));
        assert_eq!(read(&stream, &mut [0], soon()).unwrap_err().kind(), ErrorKind::TimedOut);
        let huge = vec![0; 64 << 20];
        assert_eq!(write_all(&stream, &huge, soon()).unwrap_err().kind(), ErrorKind::TimedOut);
        drop(client);
    }
}
