//! What users are told, and what is kept from them.
//!
//! A [`Cause`] has a text for everybody who may see the session and a detail
//! for those who may act as it. What engines say goes into the detail, masked;
//! into the text only when nothing in it looks like a place.

use session_core::machine::Cause;
use session_core::route::Secret;

/// Of what an engine says, this much is passed on to everybody.
const PUBLIC_CHARS: usize = 300;
const MASK: &str = "[secret]";

/// A text for everybody with a detail for few.
pub(crate) fn cause(text: impl Into<String>, detail: impl ToString) -> Cause {
    Cause {
        text: text.into(),
        detail: detail.to_string(),
    }
}

/// `text`, followed by what was `said` if everybody may hear that.
pub(crate) fn cause_said(text: &str, said: &str) -> Cause {
    match public(said) {
        Some(said) => cause(format!("{text}: {said}"), said),
        None => cause(text, said),
    }
}

/// The cause without secrets, escaped, and cut to what is kept of it: engines
/// colour their logs, and quote whatever a user wrote.
pub(crate) fn masked(cause: &Cause, secrets: &[Secret]) -> Cause {
    let detail = mask(&cause.detail, secrets);
    Cause {
        text: printable::escape(&mask(&cause.text, secrets)).into_owned(),
        detail: clip(&printable::escape_lines(&detail), Cause::DETAIL_BYTES),
    }
}

/// What was said, if it is short and names no address, path, host or user.
pub(crate) fn public(said: &str) -> Option<&str> {
    // Errors of the network speak of hosts, which may look like any word.
    const OF_NETWORKS: [&str; 5] = ["host", "connect", "resolve", "dns", "socket"];
    let said = said.trim();
    let lower = said.to_ascii_lowercase();
    let fits = !said.is_empty()
        && said.chars().count() <= PUBLIC_CHARS
        && printable::all_printable(said)
        && !OF_NETWORKS.iter().any(|word| lower.contains(word))
        && !lower.split_ascii_whitespace().any(is_place);
    fits.then_some(said)
        .filter(|said| !said.split_ascii_whitespace().any(is_dotted_name))
}

/// Has this word what only paths, URLs, addresses and accounts have?
fn is_place(word: &str) -> bool {
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

/// Keeps the last `limit` bytes, without a partial first line if it can.
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

/// The last lines of a tail that tell most: what is no stack frame, and short.
pub(crate) fn last_words(tail: &str) -> String {
    let telling: Vec<&str> = tail
        .lines()
        .map(str::trim_end)
        .filter(|line| {
            !line.is_empty() && !line.trim_start().starts_with("at ") && !line.trim_start().starts_with("...")
        })
        .collect();
    let last = telling.len().saturating_sub(4);
    clip(&telling[last..].join("\n"), Cause::DETAIL_BYTES)
}

/// Hides known secrets, and what stands behind words that announce one.
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
    const ANNOUNCE: [&str; 8] = [
        "password",
        "passwd",
        "secret",
        "token",
        "credential",
        "accesskey",
        "access_key",
        "authorization",
    ];
    // ASCII lowering keeps every byte where it is.
    let lower = line.to_ascii_lowercase();
    let mut masked = String::with_capacity(line.len());
    let mut at = 0;
    while let Some((start, word)) = ANNOUNCE
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
        for said in [
            "database nowhere not found",
            "[CATALOG_NOT_FOUND] Cannot find catalog plugin class for catalog 'lake': org.example.NoSuchCatalog. SQLSTATE: 46103",
            "invalid argument: unknown catalog type \"nonsense\"",
        ] {
            assert_eq!(public(said), Some(said));
        }
        for said in [
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
            assert_eq!(public(said), None, "{said}");
        }
    }

    #[test]
    fn last_words_leave_stack_frames_out() {
        let tail = "INFO a\nException: no such catalog\n\tat x.y(Z.java:1)\n\t... 3 more\n";
        assert_eq!(last_words(tail), "INFO a\nException: no such catalog");
    }
}
