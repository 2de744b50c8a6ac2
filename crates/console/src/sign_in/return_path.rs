//! The page that a browser returns to after the sign-in: a path of this
//! console, never another host.

/// Maximum size of a path in bytes.
const MAX_BYTES: usize = 1024;

/// The path to redirect to, below `prefix`; the first page if `wanted` is not a
/// path of this console.
pub(crate) fn local(wanted: Option<&str>, prefix: &str) -> String {
    let home = format!("{prefix}/");
    let Some(path) = wanted.filter(|path| is_path(path)) else {
        return home;
    };
    let below = path
        .strip_prefix(prefix)
        .is_some_and(|rest| !prefix.is_empty() && rest.starts_with('/'));
    // A page may name itself with or without the prefix.
    let path = if below {
        path.to_owned()
    } else {
        format!("{prefix}{path}")
    };
    // A browser resolves dots before it shows the path: it must stay here.
    if leaves(&path) { home } else { path }
}

/// An absolute path of plain characters. Browsers read `//` and `/\` as the
/// begin of a host, and ignore control characters between.
fn is_path(text: &str) -> bool {
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    let (path, _) = text.split_once(['?', '#']).unwrap_or((text, ""));
    text.len() <= MAX_BYTES && plain && text.starts_with('/') && !path.contains("//")
}

/// Whether the path has segments that lead upwards, plain or percent-encoded.
fn leaves(path: &str) -> bool {
    let (path, _) = path.split_once(['?', '#']).unwrap_or((path, ""));
    path.split('/').any(|segment| {
        let segment = segment.to_ascii_lowercase().replace("%2e", ".");
        segment == ".." || segment == "."
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_the_console_are_kept() {
        for (wanted, prefix, path) in [
            ("/sessions", "", "/sessions"),
            ("/sessions/s-1?tab=a/b//c#x", "", "/sessions/s-1?tab=a/b//c#x"),
            ("/sessions", "/berth", "/berth/sessions"),
            ("/berth/sessions", "/berth", "/berth/sessions"),
            ("/berths", "/berth", "/berth/berths"),
            ("/%2f%2fevil.example", "", "/%2f%2fevil.example"),
        ] {
            assert_eq!(local(Some(wanted), prefix), path, "{wanted}");
        }
        assert_eq!(local(None, "/berth"), "/berth/");
    }

    #[test]
    fn everything_else_becomes_the_first_page() {
        for wanted in [
            "",
            "sessions",
            "//evil.example",
            "/\\evil.example",
            "\\\\evil.example",
            "/\t/evil.example",
            "/\n/evil.example",
            " //evil.example",
            "https://evil.example",
            "javascript:alert(1)",
            "/..//evil.example",
            "/a/../..//evil.example",
            "/.//evil.example",
            "/%2e%2E/x",
            "/ok\r\nset-cookie: a=b",
            "/ok\u{0}",
            "/é",
        ] {
            assert_eq!(local(Some(wanted), ""), "/", "{wanted:?}");
            assert_eq!(local(Some(wanted), "/berth"), "/berth/", "{wanted:?}");
        }
        assert_eq!(local(Some(&format!("/{}", "a".repeat(2000))), ""), "/");
    }
}
