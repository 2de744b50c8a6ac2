//! User messages: the public text of a cause, and the detail for few.
//!
//! A [`Cause`] has a text for everybody who may see the session, and a detail for its
//! owner and admins. Messages of engines are masked and added to the detail; to the
//! text only if they contain nothing like a location.

use session_core::machine::Cause;
use session_core::route::Secret;

/// Maximum number of characters of an engine's message in the text.
const MAX_PUBLIC_CHARS: usize = 300;
const MASK: &str = "[secret]";

/// A cause with text and detail.
pub(crate) fn cause(text: impl Into<String>, detail: impl ToString) -> Cause {
    Cause {
        text: text.into(),
        detail: detail.to_string(),
    }
}

/// A cause with `text`, followed by `message` if it is public.
pub(crate) fn cause_with_message(text: &str, message: &str) -> Cause {
    match public(message) {
        Some(message) => cause(format!("{text}: {message}"), message),
        None => cause(text, message),
    }
}

/// A cause whose text follows `text`.
pub(crate) fn prefixed(text: &str, cause: Cause) -> Cause {
    Cause {
        text: format!("{text}: {}", cause.text),
        ..cause
    }
}

/// Masks secrets, escapes and truncates a cause: engines colour their logs and quote
/// user input.
pub(crate) fn masked(cause: &Cause, secrets: &[Secret]) -> Cause {
    let detail = mask(&cause.detail, secrets);
    Cause {
        text: printable::escape(&mask(&cause.text, secrets)).into_owned(),
        detail: clip(&printable::escape_lines(&detail), Cause::DETAIL_BYTES),
    }
}

/// The message, if it is short and contains no address, path, host or user.
pub(crate) fn public(message: &str) -> Option<&str> {
    // Network errors contain hosts, which can look like any word.
    const NETWORK_WORDS: [&str; 5] = ["host", "connect", "resolve", "dns", "socket"];
    let message = message.trim();
    let lower = message.to_ascii_lowercase();
    let fits = !message.is_empty()
        && message.chars().count() <= MAX_PUBLIC_CHARS
        && printable::all_printable(message)
        && !NETWORK_WORDS.iter().any(|word| lower.contains(word))
        && !lower.split_ascii_whitespace().any(is_location);
    fits.then_some(message)
        .filter(|message| !message.split_ascii_whitespace().any(is_dotted_name))
}

/// Returns whether a word looks like a path, URL, address or account.
fn is_location(word: &str) -> bool {
    let port = word
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.starts_with(|c: char| c.is_ascii_digit()));
    port || word.contains(['/', '\\', '@']) || word.contains("::")
}

/// `db.example.org`, `10.0.0.1`; not the class `org.example.NoSuchCatalog`.
fn is_dotted_name(word: &str) -> bool {
    let outside = |c: char| !c.is_ascii_alphanumeric();
    let word = word.trim_matches(outside);
    match word.rsplit_once('.') {
        None => false,
        Some((_, last)) => !last.starts_with(|c: char| c.is_ascii_uppercase()),
    }
}

/// Keeps the last `limit` bytes, without a partial first line if possible.
pub(crate) fn clip(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let end = &text[text.ceil_char_boundary(text.len() - limit)..];
    match end.find('\n') {
        Some(line_end) if line_end + 1 < end.len() => end[line_end + 1..].to_owned(),
        Some(_) | None => end.to_owned(),
    }
}

/// The last four lines that are not stack frames.
pub(crate) fn last_lines(tail: &str) -> String {
    let lines: Vec<&str> = tail
        .lines()
        .map(str::trim_end)
        .filter(|line| {
            !line.is_empty() && !line.trim_start().starts_with("at ") && !line.trim_start().starts_with("...")
        })
        .collect();
    let last = lines.len().saturating_sub(4);
    clip(&lines[last..].join("\n"), Cause::DETAIL_BYTES)
}

/// Masks known secrets, and values after words that announce a secret.
pub(crate) fn mask(text: &str, secrets: &[Secret]) -> String {
    let mut text = text.to_owned();
    for secret in secrets {
        if !secret.expose().is_empty() {
            text = text.replace(secret.expose(), MASK);
        }
    }
    text.lines().map(mask_line).collect::<Vec<_>>().join("\n")
}

fn mask_line(line: &str) -> String {
    const ANNOUNCING_WORDS: [&str; 8] = [
        "password",
        "passwd",
        "secret",
        "token",
        "credential",
        "accesskey",
        "access_key",
        "authorization",
    ];
    // ASCII lower case keeps all byte positions.
    let lower = line.to_ascii_lowercase();
    let mut masked = String::with_capacity(line.len());
    let mut at = 0;
    while let Some((start, word)) = ANNOUNCING_WORDS
        .iter()
        .filter_map(|word| lower[at..].find(word).map(|i| (at + i, *word)))
        .min_by_key(|(i, _)| *i)
    {
        let name_end = lower[start + word.len()..]
            .find(|c: char| !c.is_ascii_alphanumeric() && !"._-\"'".contains(c))
            .map_or(line.len(), |i| start + word.len() + i);
        let value = &line[name_end..];
        let separators = value.len() - value.trim_start_matches([' ', ':', '=', '>']).len();
        let announced = value[..separators].contains([':', '=']);
        if !announced {
            masked.push_str(&line[at..name_end]);
            at = name_end;
            continue;
        }
        let value_start = name_end + separators;
        let value = &line[value_start..];
        let scheme = ["Bearer ", "Basic ", "bearer ", "basic "]
            .iter()
            .find(|scheme| value.starts_with(**scheme))
            .map_or(0, |scheme| scheme.len());
        let value_len = if value.starts_with(MASK) {
            MASK.len()
        } else {
            value[scheme..]
                .find(|c: char| c.is_whitespace() || ",;&)]}".contains(c))
                .map_or(value.len(), |i| scheme + i)
        };
        masked.push_str(&line[at..value_start]);
        if value_len > 0 {
            masked.push_str(MASK);
        }
        at = value_start + value_len;
    }
    masked.push_str(&line[at..]);
    masked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked() {
        let known = [Secret::new("s3cr3t")];
        let masked = |text: &str| mask(text, &known);
        assert_eq!(masked("x s3cr3t y"), "x [secret] y");
        assert_eq!(masked("password=abc, user=me"), "password=[secret], user=me");
        assert_eq!(
            masked("Authorization: Bearer eyJ.a.b end"),
            "Authorization: [secret] end"
        );
        assert_eq!(
            masked("spark.hadoop.fs.s3a.secret.key = abc"),
            "spark.hadoop.fs.s3a.secret.key = [secret]"
        );
        assert_eq!(masked("{\"token\":\"abc\"}"), "{\"token\":[secret]}");
        assert_eq!(masked("unexpected token in line 3"), "unexpected token in line 3");
        assert_eq!(
            masked("a token=x and a token=y"),
            "a token=[secret] and a token=[secret]"
        );
        assert_eq!(masked("größe password=ä b"), "größe password=[secret] b");
        let once = masked("token=abc, password=[x] and s3cr3t");
        assert_eq!(masked(&once), once, "masked twice");
    }

    #[test]
    fn what_engines_say_cannot_reach_a_terminal_as_it_is() {
        let cause = cause("bad \u{202e}name", "\u{1b}[31mERROR\u{1b}[0m\n\tat x\u{9b}");
        let kept = masked(&cause, &[]);
        assert_eq!(kept.text, "bad \\u{202e}name");
        assert_eq!(kept.detail, "\\u{1b}[31mERROR\\u{1b}[0m\n\tat x\\u{9b}");
    }

    #[test]
    fn only_what_names_no_place_is_for_everybody() {
        for message in [
            "database nowhere not found",
            "[CATALOG_NOT_FOUND] Cannot find catalog plugin class for catalog 'lake': org.example.NoSuchCatalog. SQLSTATE: 46103",
            "invalid argument: unknown catalog type \"nonsense\"",
        ] {
            assert_eq!(public(message), Some(message));
        }
        for message in [
            "",
            "cannot open /var/lib/berth",
            "see file:/x",
            "http://10.0.0.1/v1",
            "10.0.0.1 is away",
            "refused by minio:9000",
            "[::1]:15002",
            "no answer from db.example.org.",
            "UnknownHostException: minio",
            "login as bob@example failed",
            "two\nlines",
        ] {
            assert_eq!(public(message), None, "{message}");
        }
    }

    #[test]
    fn last_lines_leave_stack_frames_out() {
        let tail = "INFO a\nException: no such catalog\n\tat x.y(Z.java:1)\n\t... 3 more\n";
        assert_eq!(last_lines(tail), "INFO a\nException: no such catalog");
    }
}
