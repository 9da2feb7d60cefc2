//! Waking a thread that sleeps in `accept`, so that it need not look up now and then (C10).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// How long a connection to ourselves may take where that is what wakes.
const KNOCK: Duration = Duration::from_secs(1);

/// Ends an `accept`.
#[derive(Debug)]
pub(super) struct Waker {
    /// On Linux shutting down a listening socket ends `accept` with an error. Of all ways this is the one that needs
    /// nothing at the time: no free file descriptor, no place in the backlog, no firewall's permission. The type is
    /// only the standard library's name for a socket that can be shut down.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    listening: TcpStream,
    address: SocketAddr,
}

impl Waker {
    pub(super) fn new(listener: &TcpListener) -> io::Result<Self> {
        Ok(Self {
            #[cfg(any(target_os = "linux", target_os = "android"))]
            listening: TcpStream::from(std::os::fd::OwnedFd::from(listener.try_clone()?)),
            address: reachable(listener.local_addr()?),
        })
    }

    /// May fail, and may come too early: to be called again until it was heard.
    pub(super) fn wake(&self) {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if self.listening.shutdown(std::net::Shutdown::Both).is_ok() {
            return;
        }
        drop(TcpStream::connect_timeout(&self.address, KNOCK));
    }
}

/// Nobody can connect to "any address": the loopback one of the same family reaches it.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_address_is_reached_over_loopback() {
        let reached = |address: &str| reachable(address.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:9"), "127.0.0.1:9");
        assert_eq!(reached("[::]:9"), "[::1]:9");
        assert_eq!(reached("10.0.0.1:9"), "10.0.0.1:9");
    }

    #[test]
    fn accept_ends_before_and_after() {
        for listen in ["127.0.0.1:0", "0.0.0.0:0"] {
            let listener = TcpListener::bind(listen).unwrap();
            let waker = Waker::new(&listener).unwrap();
            std::thread::scope(|scope| {
                let sleeping = scope.spawn(|| drop(listener.accept()));
                waker.wake();
                sleeping.join().unwrap();
            });
        }
    }

    #[test]
    fn a_knock_ends_accept_too() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = reachable(listener.local_addr().unwrap());
        std::thread::scope(|scope| {
            let sleeping = scope.spawn(|| listener.accept().map(drop));
            drop(TcpStream::connect_timeout(&address, KNOCK));
            sleeping.join().unwrap().unwrap();
        });
    }
}
