//! What the tests of all servers share.

use std::{
    io::{self, BufRead as _, BufReader, Read as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use fullbore_testkit::{child_test, eventually, is_alive};

/// Far more than needed, so that only what will never happen runs into it.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) fn accepts(addr: SocketAddr) -> bool {
    TcpStream::connect(addr).is_ok()
}

/// A server of a child process.
pub(crate) struct Orphan {
    pub(crate) pid: u32,
    addr: SocketAddr,
    dir: PathBuf,
}

impl Orphan {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("SERVER ")?.splitn(3, ' ');
        let (pid, addr, dir) = (words.next()?, words.next()?, words.next()?);
        Some(Self { pid: pid.parse().ok()?, addr: addr.parse().ok()?, dir: Path::new(dir).to_owned() })
    }

    pub(crate) fn must_go_away(&self) {
        assert!(eventually(LONG, || !is_alive(self.pid)), "the server is still there");
        assert!(!accepts(self.addr));
        assert!(eventually(LONG, || !self.dir.exists()), "{} is still there", self.dir.display());
    }
}

/// In the child: tells the parent of the server.
pub(crate) fn tell(pid: Option<u32>, addr: SocketAddr, dir: &Path) {
    println!("\nSERVER {} {addr} {}", pid.unwrap(), dir.display());
}

/// In the child: until the parent kills it.
pub(crate) fn wait_for_the_end() {
    let _ = io::stdin().read(&mut [0]);
}

/// Runs the test `name` in a child process until it has told of its server; none if it skipped.
pub(crate) fn child_with_server(name: &str) -> (Child, Option<Orphan>) {
    let mut child = child_test(name).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let orphan = lines.by_ref().map_while(Result::ok).find_map(|line| Orphan::parse(&line));
    // The rest is read too: a child whose output nobody takes would fail for that.
    thread::spawn(move || lines.for_each(drop));
    (child, orphan)
}

/// `restart` of a stopped server meets a stranger on its port, who leaves when the server has failed once.
pub(crate) fn let_a_stranger_have_its_port(addr: SocketAddr, restart: impl FnOnce() + Send, log: impl Fn() -> String) {
    let stranger = TcpListener::bind(addr).unwrap();
    thread::scope(|scope| {
        let restarted = scope.spawn(restart);
        let failed_once = eventually(LONG, || log().to_ascii_lowercase().contains("address already in use"));
        drop(stranger);
        restarted.join().unwrap();
        assert!(failed_once);
    });
}
