//! Building something and learning where its programs are, from cargo's messages.

use std::path::PathBuf;

use crate::call::Call;
use crate::stop::Stop;

/// A program that cargo built.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Program {
    /// The target's name.
    pub(crate) name: String,
    /// `example`, `test`, `bin` ..
    pub(crate) kind: String,
    /// The folder of its package.
    pub(crate) package: PathBuf,
    /// The program.
    pub(crate) path: PathBuf,
}

/// Runs a building call of cargo and returns the programs that it made. Errors of the compiler are shown as ever.
///
/// # Errors
///
/// It does not build.
pub(crate) fn build(call: Call) -> Result<Vec<Program>, Stop> {
    let messages = call.args(["--message-format", "json-render-diagnostics"]).output()?;
    Ok(messages.lines().filter_map(program).collect())
}

/// The program that a message announces. Reads the few fields it needs and no JSON beyond them.
fn program(message: &str) -> Option<Program> {
    let path = text(message, "executable")?;
    let target = &message[message.find("\"target\":{")?..];
    let kind = target.split_once("\"kind\":[\"")?.1.split_once('"')?.0;
    let mut package = PathBuf::from(text(message, "manifest_path")?);
    package.pop();
    Some(Program { name: text(target, "name")?, kind: kind.to_owned(), package, path: PathBuf::from(path) })
}

/// The first text field of this name.
fn text(json: &str, field: &str) -> Option<String> {
    let (_, value) = json.split_once(&format!("\"{field}\":\""))?;
    let mut text = String::new();
    let mut characters = value.chars();
    loop {
        match characters.next()? {
            '"' => return Some(text),
            '\\' => text.push(characters.next()?),
            c => text.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &str = r#"{"reason":"compiler-artifact","package_id":"path+file:///r/examples#0.0.0","manifest_path":"/r/examples/Cargo.toml","target":{"kind":["example"],"crate_types":["bin"],"name":"fleet","src_path":"/r/examples/fleet.rs"},"profile":{"opt_level":"3"},"features":[],"filenames":["/t/fleet"],"executable":"/t/the \"fleet\"","fresh":true}"#;

    #[test]
    fn a_program_is_read() {
        let expected = Program {
            name: String::from("fleet"),
            kind: String::from("example"),
            package: PathBuf::from("/r/examples"),
            path: PathBuf::from("/t/the \"fleet\""),
        };
        assert_eq!(program(MESSAGE), Some(expected));
    }

    #[test]
    fn a_library_is_none() {
        assert_eq!(program(&MESSAGE.replace(r#""executable":"/t/the \"fleet\"""#, r#""executable":null"#)), None);
        assert_eq!(program(r#"{"reason":"build-finished","success":true}"#), None);
    }
}
