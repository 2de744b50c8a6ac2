//! Cookies with sealed values, in pieces if a value is longer than browsers
//! store in one cookie.
//!
//! Over HTTPS names have the prefix `__Host-`: the browser then accepts the
//! cookie from this host only, for the whole host, and sends it over HTTPS
//! only. Plaintext, on loopback, has neither prefix nor `Secure`.

use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, HeaderValue};
use std::time::Duration;

/// Characters of a value in one cookie. Browsers store 4096 bytes with name and
/// attributes.
const PIECE_CHARS: usize = 3800;
/// Maximum number of pieces: the headers of a request may have 64 KiB.
const MAX_PIECES: usize = 14;

/// Names and attributes of the cookies of one console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CookieJar {
    base: String,
    secure: bool,
}

impl CookieJar {
    /// `secure` means HTTPS. The path prefix is a part of the names, because
    /// cookies with `__Host-` are those of the whole host.
    pub(crate) fn new(secure: bool, prefix: &str) -> Self {
        let place: String = prefix
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        let host = if secure { "__Host-" } else { "" };
        Self {
            base: format!("{host}berth{place}"),
            secure,
        }
    }

    /// Whether cookies need HTTPS.
    pub(crate) fn is_secure(&self) -> bool {
        self.secure
    }

    /// Name of the cookie with the session; its pieces follow a dot.
    pub(crate) fn session(&self) -> String {
        format!("{}-session", self.base)
    }

    /// Name of the cookie of a sign-in with this state.
    pub(crate) fn login(&self, state: &str) -> String {
        let id = state.get(..8).unwrap_or(state);
        format!("{}{id}", self.logins())
    }

    /// Prefix of the names of all sign-ins.
    pub(crate) fn logins(&self) -> String {
        format!("{}-login-", self.base)
    }

    /// A `Set-Cookie` header. `age` zero removes the cookie.
    pub(crate) fn set(&self, name: &str, value: &str, age: Duration) -> Option<HeaderValue> {
        let secure = if self.secure { "; Secure" } else { "" };
        let text = format!(
            "{name}={value}; Path=/; Max-Age={}; HttpOnly; SameSite=Lax{secure}",
            age.as_secs()
        );
        let mut header = HeaderValue::from_str(&text).ok()?;
        header.set_sensitive(true);
        Some(header)
    }

    /// Adds the headers that store `value` under `name` in pieces, and remove
    /// pieces of an earlier, longer value. False if it is too long.
    pub(crate) fn store(
        &self,
        answer: &mut HeaderMap,
        request: &HeaderMap,
        name: &str,
        value: &str,
        age: Duration,
    ) -> bool {
        // ASCII, so that it can be cut anywhere.
        let pieces: Vec<&[u8]> = value.as_bytes().chunks(PIECE_CHARS).collect();
        if pieces.len() > MAX_PIECES {
            return false;
        }
        for (index, piece) in pieces.iter().enumerate() {
            let piece = String::from_utf8_lossy(piece);
            let piece = match index {
                0 => format!("{}.{piece}", pieces.len()),
                _ => piece.into_owned(),
            };
            append(answer, self.set(&format!("{name}.{index}"), &piece, age));
        }
        let stale = pieces_of(request, name).filter(|(index, _)| *index >= pieces.len());
        for (index, _) in stale {
            append(answer, self.set(&format!("{name}.{index}"), "", Duration::ZERO));
        }
        true
    }

    /// Adds the headers that remove every piece that the request has.
    pub(crate) fn remove(&self, answer: &mut HeaderMap, request: &HeaderMap, name: &str) {
        for (index, _) in pieces_of(request, name) {
            append(answer, self.set(&format!("{name}.{index}"), "", Duration::ZERO));
        }
    }
}

pub(crate) fn append(answer: &mut HeaderMap, header: Option<HeaderValue>) {
    if let Some(header) = header {
        answer.append(SET_COOKIE, header);
    }
}

/// Whether the request has a piece of the value `name`.
pub(crate) fn has(request: &HeaderMap, name: &str) -> bool {
    pieces_of(request, name).next().is_some()
}

/// The value that was stored under `name`; none if a piece is missing or there
/// is one twice.
pub(crate) fn load(request: &HeaderMap, name: &str) -> Option<String> {
    let mut found: Vec<(usize, &str)> = pieces_of(request, name).collect();
    found.sort_by_key(|(index, _)| *index);
    let (count, first) = found
        .first()
        .filter(|(index, _)| *index == 0)?
        .1
        .split_once('.')?;
    let count: usize = count
        .parse()
        .ok()
        .filter(|count| (1..=MAX_PIECES).contains(count))?;
    let in_order = found
        .iter()
        .enumerate()
        .all(|(place, (index, _))| place == *index);
    if !in_order || found.len() < count {
        return None;
    }
    let rest = found.get(1..count)?.iter().map(|(_, piece)| *piece);
    Some(std::iter::once(first).chain(rest).collect())
}

/// The cookies of a request whose names begin with `prefix`.
pub(crate) fn with_prefix<'r>(
    request: &'r HeaderMap,
    prefix: &'r str,
) -> impl Iterator<Item = (&'r str, &'r str)> {
    all(request).filter(move |(name, _)| name.starts_with(prefix))
}

/// The value of the only cookie of this name.
pub(crate) fn only<'r>(request: &'r HeaderMap, name: &str) -> Option<&'r str> {
    let mut found = all(request).filter(|(found, _)| *found == name);
    let (_, value) = found.next()?;
    found.next().is_none().then_some(value)
}

/// Index and value of each piece. At most a few more than are ever stored.
fn pieces_of<'r>(request: &'r HeaderMap, name: &str) -> impl Iterator<Item = (usize, &'r str)> {
    let prefix = format!("{name}.");
    all(request)
        .filter_map(move |(found, value)| {
            let index: usize = found.strip_prefix(&prefix)?.parse().ok()?;
            Some((index, value))
        })
        .filter(|(index, _)| *index < MAX_PIECES)
        .take(2 * MAX_PIECES)
}

fn all(request: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let lines = request.get_all(COOKIE).iter();
    lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim_matches(' ').split_once('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The request of a browser that received `answer` after it had `before`.
    fn browser(before: &HeaderMap, answer: &HeaderMap) -> HeaderMap {
        let mut jar: Vec<(String, String)> = all(before)
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        for line in answer.get_all(SET_COOKIE) {
            let line = line.to_str().unwrap();
            assert!(line.len() <= 4096, "{}", line.len());
            let (name, rest) = line.split_once('=').unwrap();
            jar.retain(|(known, _)| known != name);
            if !rest.contains("Max-Age=0;") {
                let value = rest.split_once(';').unwrap().0;
                jar.push((name.to_owned(), value.to_owned()));
            }
        }
        let line: Vec<String> = jar
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let mut headers = HeaderMap::new();
        if !line.is_empty() {
            headers.insert(COOKIE, line.join("; ").parse().unwrap());
        }
        headers
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_value_of_any_length_comes_back_and_a_shorter_one_leaves_no_piece() {
        let jar = CookieJar::new(true, "");
        let name = jar.session();
        let mut request = HeaderMap::new();
        for length in [1, PIECE_CHARS, PIECE_CHARS + 1, 50_000, 9_000, 10] {
            let value = "v".repeat(length);
            let mut answer = HeaderMap::new();
            assert!(jar.store(&mut answer, &request, &name, &value, HOUR));
            request = browser(&request, &answer);
            assert_eq!(load(&request, &name).unwrap(), value, "{length}");
            let pieces = pieces_of(&request, &name).count();
            assert_eq!(pieces, length.div_ceil(PIECE_CHARS));
        }
        let mut answer = HeaderMap::new();
        jar.remove(&mut answer, &request, &name);
        assert!(!has(&browser(&request, &answer), &name));
        let too_long = "v".repeat(PIECE_CHARS * MAX_PIECES + 1);
        assert!(!jar.store(&mut HeaderMap::new(), &request, &name, &too_long, HOUR));
    }

    #[test]
    fn missing_and_double_pieces_are_no_value() {
        let load = |line: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(COOKIE, line.parse().unwrap());
            load(&headers, "n")
        };
        assert_eq!(load("a=1; n.0=2.x; n.1=y"), Some("xy".to_owned()));
        assert_eq!(load("n.1=y; n.0=2.x"), Some("xy".to_owned()));
        assert_eq!(load("n.0=1.x; n.1=left-over"), Some("x".to_owned()));
        for bad in [
            "n.1=y",
            "n.0=2.x",
            "n.0=x",
            "n.0=0.x",
            "n.0=99.x",
            "n.0=1.x; n.0=1.z",
            "n=1.x",
            "n.0=3.x; n.2=z",
            "n.0=-1.x",
        ] {
            assert_eq!(load(bad), None, "{bad}");
        }
    }

    #[test]
    fn attributes_follow_the_transport() {
        let text = |jar: &CookieJar| {
            let header = jar.set(&jar.session(), "v", HOUR).unwrap();
            header.to_str().unwrap().to_owned()
        };
        assert_eq!(
            text(&CookieJar::new(true, "/data/berth")),
            "__Host-berth-data-berth-session=v; Path=/; Max-Age=3600; HttpOnly; SameSite=Lax; Secure"
        );
        assert_eq!(
            text(&CookieJar::new(false, "")),
            "berth-session=v; Path=/; Max-Age=3600; HttpOnly; SameSite=Lax"
        );
    }
}
