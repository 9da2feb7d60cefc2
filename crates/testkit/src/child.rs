use std::{env, process::Command};

const VARIABLE: &str = "FULLBORE_TESTKIT_CHILD";

/// A command that runs the test `name` of the running test binary in a child process, for tests that kill a process.
///
/// `name` is the full name that the test runner shows (`module::test`). The named test asks [`is_child`] first and returns
/// when it is not; mark it `#[ignore]`, so that it does not count as a test of its own. Its output is not captured.
///
/// ```no_run
/// use fullbore_testkit::{child_test, is_child};
///
/// #[test]
/// #[ignore = "the child of survives_kill_9"]
/// fn child_writes() {
///     if is_child("child_writes") { /* write, and tell the parent over stdout what is acknowledged */ }
/// }
///
/// #[test]
/// fn survives_kill_9() {
///     let mut child = child_test("child_writes").spawn().unwrap();
///     child.kill().unwrap(); // SIGKILL
/// }
/// ```
///
/// # Panics
/// If the path of the running binary is unknown.
#[must_use]
pub fn child_test(name: &str) -> Command {
    let binary = env::current_exe().expect("the path of the running test binary");
    let mut command = Command::new(binary);
    command.args([name, "--exact", "--include-ignored", "--nocapture", "--test-threads=1"]).env(VARIABLE, name);
    command
}

/// Whether this process was made by [`child_test`] to run the test `name`.
#[must_use]
pub fn is_child(name: &str) -> bool {
    env::var_os(VARIABLE).is_some_and(|child| child == name)
}
