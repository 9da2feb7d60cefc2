//! A loopback port that stays ours while nothing listens on it.
//!
//! Asking the system for a free port and closing it again is not enough here, because a server under test dies and must
//! come back on the *same* port:
//!
//! - A port from the system's range for outgoing connections can be taken by one in the meantime; even by the client that
//!   reconnects in a loop, which then connects to itself (TCP simultaneous open) and keeps the port busy. So ports are
//!   taken from outside that range.
//! - Another test of this kit could choose it. So a chosen port is locked with a Unix socket in Linux's abstract
//!   namespace: it has the same scope as the port (the network namespace), goes away with the process however it dies, and
//!   leaves no file.

use std::{
    fs,
    hash::{BuildHasher, RandomState},
    io,
    net::{Ipv4Addr, TcpListener},
    ops::RangeInclusive,
};

/// Fewer candidates than this and tests would collide more often than they start.
const ENOUGH: u16 = 2_000;
/// Below it live well-known servers.
const LOWEST: u16 = 10_000;
const ATTEMPTS: usize = 500;

#[derive(Debug)]
pub(crate) struct PortLease {
    port: u16,
    #[cfg(target_os = "linux")]
    _lock: std::os::unix::net::UnixListener,
}

impl PortLease {
    pub(crate) fn acquire() -> io::Result<Self> {
        let candidates = candidates(fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok().as_deref());
        for _ in 0..ATTEMPTS {
            let wish = candidates.clone().map_or(0, random_in);
            // Bound and closed again: a hint that no stranger has it. Who starts a server there still handles a refusal.
            let port = match TcpListener::bind((Ipv4Addr::LOCALHOST, wish)) {
                Ok(listener) => listener.local_addr()?.port(),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => continue,
                Err(error) => return Err(error),
            };
            if let Some(lease) = Self::lock(port)? {
                return Ok(lease);
            }
        }
        Err(io::Error::new(io::ErrorKind::AddrInUse, format!("no free loopback port in {ATTEMPTS} attempts")))
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    #[cfg(target_os = "linux")]
    fn lock(port: u16) -> io::Result<Option<Self>> {
        use std::os::{linux::net::SocketAddrExt, unix::net};

        let name = net::SocketAddr::from_abstract_name(format!("fullbore-testkit-port-{port}"))?;
        match net::UnixListener::bind_addr(&name) {
            Ok(lock) => Ok(Some(Self { port, _lock: lock })),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error),
        }
    }

    #[cfg(not(target_os = "linux"))]
    #[expect(clippy::unnecessary_wraps, reason = "the Linux form can fail")]
    fn lock(port: u16) -> io::Result<Option<Self>> {
        Ok(Some(Self { port }))
    }
}

/// Ports that no outgoing connection gets by itself; `None` if there are too few, then the system chooses.
fn candidates(outgoing: Option<&str>) -> Option<RangeInclusive<u16>> {
    let mut bounds = outgoing?.split_ascii_whitespace().map(str::parse::<u16>);
    let (low, high) = (bounds.next()?.ok()?, bounds.next()?.ok()?);
    if low >= LOWEST.saturating_add(ENOUGH) {
        Some(LOWEST..=low - 1)
    } else if high <= u16::MAX - ENOUGH {
        Some(high + 1..=u16::MAX)
    } else {
        None
    }
}

/// `RandomState` is seeded by the system: enough to spread tests over the range.
fn random_in(range: RangeInclusive<u16>) -> u16 {
    let span = u64::from(range.end() - range.start()) + 1;
    let offset = RandomState::new().hash_one(()) % span;
    range.start() + u16::try_from(offset).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ports_are_outside_the_range_of_outgoing_connections() {
        assert_eq!(candidates(Some("32768\t60999\n")), Some(LOWEST..=32_767));
        assert_eq!(candidates(Some("1024 60999")), Some(61_000..=u16::MAX));
        assert_eq!(candidates(Some("1024 65535")), None);
        assert_eq!(candidates(Some("what")), None);
        assert_eq!(candidates(None), None);
        for _ in 0..1_000 {
            assert!((5..=7).contains(&random_in(5..=7)));
        }
    }

    #[test]
    fn a_leased_port_is_not_leased_twice() {
        let leases: Vec<_> = (0..200).map(|_| PortLease::acquire().unwrap()).collect();
        let ports: HashSet<_> = leases.iter().map(PortLease::port).collect();
        assert_eq!(ports.len(), leases.len());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_lease_ends_with_its_drop() {
        let lease = PortLease::acquire().unwrap();
        let port = lease.port();
        assert!(PortLease::lock(port).unwrap().is_none());
        drop(lease);
        assert!(PortLease::lock(port).unwrap().is_some());
    }
}
