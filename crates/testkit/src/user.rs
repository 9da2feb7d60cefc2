//! The user that PostgreSQL and PgBouncer run as when the tests run as root, which they refuse.

use std::{fs, io, os::unix::fs::chown, path::Path};

use crate::error::StartError;

const NAME: &str = "postgres";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl User {
    /// The user to change to; `None` where the tests do not run as root and the server can run as they do.
    pub(crate) fn for_postgres(server: &'static str) -> Result<Option<Self>, StartError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let passwd = fs::read_to_string("/etc/passwd").map_err(StartError::io(server, "cannot read /etc/passwd"))?;
        lookup(&passwd, NAME).map(Some).ok_or_else(|| {
            StartError::failed(
                server,
                format!(
                    "it refuses to run as root, and there is no user `{NAME}` in /etc/passwd to run it as: \
                     create it (`useradd --system {NAME}`), or run the tests as another user than root"
                ),
            )
        })
    }

    pub(crate) fn own(self, path: &Path) -> io::Result<()> {
        chown(path, Some(self.uid), Some(self.gid))
    }
}

fn lookup(passwd: &str, name: &str) -> Option<User> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next()? != name {
            return None;
        }
        let _password = fields.next()?;
        Some(User { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwd_is_read_by_name() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n# postgres\npostgresql:x:1:2::/:\npostgres:x:101:104:P,,,:/v:/b\n";
        assert_eq!(lookup(passwd, "postgres"), Some(User { uid: 101, gid: 104 }));
        assert_eq!(lookup(passwd, "nobody"), None);
        assert_eq!(lookup("postgres:x:many:1::", "postgres"), None);
        assert_eq!(lookup("postgres", "postgres"), None);
    }
}
