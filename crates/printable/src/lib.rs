//! The characters that are rejected in names and labels, and escaped in log lines, tables and error
//! texts.
//!
//! A character is printable unless it ends a line, controls the terminal, changes the direction of
//! the surrounding text, or takes no space and can hide text. All scripts are printable,
//! right-to-left ones included, and so are combining marks, variation selectors and the two joiners
//! (U+200C, U+200D): Persian, Indic scripts and emoji need them, and they neither reorder nor
//! delete. Similar characters are printable as well: the list has characters that break a display,
//! not those that can be confused.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::ops::RangeInclusive;

/// Unprintable characters besides control characters (general category Cc), by code point.
const UNPRINTABLE: [(RangeInclusive<char>, &str); 20] = [
    ('\u{ad}'..='\u{ad}', "soft hyphen"),
    ('\u{34f}'..='\u{34f}', "combining grapheme joiner"),
    ('\u{61c}'..='\u{61c}', "Arabic letter mark"),
    ('\u{115f}'..='\u{1160}', "Hangul fillers"),
    ('\u{17b4}'..='\u{17b5}', "Khmer inherent vowels"),
    ('\u{180e}'..='\u{180e}', "Mongolian vowel separator"),
    ('\u{200b}'..='\u{200b}', "zero width space"),
    ('\u{200e}'..='\u{200f}', "direction marks"),
    (
        '\u{2028}'..='\u{202e}',
        "line and paragraph separators, directional embeddings and overrides",
    ),
    (
        '\u{2060}'..='\u{206f}',
        "invisible operators, directional isolates, deprecated formats",
    ),
    ('\u{3164}'..='\u{3164}', "Hangul filler"),
    ('\u{fdd0}'..='\u{fdef}', "noncharacters"),
    ('\u{feff}'..='\u{feff}', "byte order mark"),
    ('\u{ffa0}'..='\u{ffa0}', "halfwidth Hangul filler"),
    (
        '\u{fff0}'..='\u{fffb}',
        "interlinear annotation and unassigned ignorable characters",
    ),
    ('\u{fffe}'..='\u{ffff}', "noncharacters"),
    ('\u{1bca0}'..='\u{1bca3}', "shorthand format controls"),
    ('\u{1d173}'..='\u{1d17a}', "musical format controls"),
    ('\u{e0000}'..='\u{e00ff}', "tags"),
    ('\u{e01f0}'..='\u{e0fff}', "unassigned ignorable characters"),
];

/// Whether the character is printable.
pub fn is_printable(char: char) -> bool {
    if char.is_ascii() {
        return !char.is_ascii_control();
    }
    // Each plane ends with two noncharacters.
    let noncharacter = u32::from(char) & 0xfffe == 0xfffe;
    !char.is_control() && !noncharacter && !UNPRINTABLE.iter().any(|(range, _)| range.contains(&char))
}

/// Whether all characters of `text` are printable.
pub fn all_printable(text: &str) -> bool {
    text.chars().all(is_printable)
}

/// Writes each unprintable character as `\u{…}`.
pub fn escape(text: &str) -> Cow<'_, str> {
    escape_except(text, |_| false)
}

/// As [`escape`], for texts of several lines: line feeds and tabs stay.
pub fn escape_lines(text: &str) -> Cow<'_, str> {
    escape_except(text, |char| matches!(char, '\n' | '\t'))
}

/// Writes each unprintable character as a JSON escape, `\u202e`. The value does not change. `json`
/// must be JSON from a serializer: line feeds between members stay.
pub fn escape_json(json: &str) -> Cow<'_, str> {
    if json.chars().all(|char| is_printable(char) || char == '\n') {
        return Cow::Borrowed(json);
    }
    let mut escaped = String::with_capacity(json.len() + 16);
    for char in json.chars() {
        if is_printable(char) || char == '\n' {
            escaped.push(char);
        } else {
            push_json_escape(&mut escaped, char);
        }
    }
    Cow::Owned(escaped)
}

/// Appends the JSON escape of the character.
pub fn push_json_escape(text: &mut String, char: char) {
    for unit in char.encode_utf16(&mut [0; 2]) {
        // Writing to a string cannot fail.
        let _ = write!(text, "\\u{unit:04x}");
    }
}

/// Replaces each unprintable character by `?`, for records with a fixed number of bytes.
pub fn replace(text: &str) -> Cow<'_, str> {
    if all_printable(text) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(
        text.chars()
            .map(|char| if is_printable(char) { char } else { '?' })
            .collect(),
    )
}

fn escape_except(text: &str, stays: impl Fn(char) -> bool) -> Cow<'_, str> {
    if text.chars().all(|char| is_printable(char) || stays(char)) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for char in text.chars() {
        if is_printable(char) || stays(char) {
            escaped.push(char);
        } else {
            escaped.extend(char.escape_unicode());
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_in_order() {
        for pair in UNPRINTABLE.windows(2) {
            assert!(pair[0].0.end() < pair[1].0.start(), "{pair:?}");
        }
        for (range, what) in &UNPRINTABLE {
            for char in range.clone() {
                assert!(!is_printable(char), "{what}: {char:?}");
            }
        }
    }

    #[test]
    fn what_breaks_a_line_or_a_terminal_is_not_printable() {
        for (what, text) in [
            ("null", "\0"),
            ("tab", "\t"),
            ("line feed", "\n"),
            ("carriage return", "\r"),
            ("escape", "\u{1b}[2J"),
            ("delete", "\u{7f}"),
            ("next line, C1", "\u{85}"),
            ("control sequence introducer, C1", "\u{9b}31m"),
            ("soft hyphen", "\u{ad}"),
            ("Arabic letter mark", "\u{61c}"),
            ("zero width space", "\u{200b}"),
            ("left-to-right mark", "\u{200e}"),
            ("right-to-left mark", "\u{200f}"),
            ("line separator", "\u{2028}"),
            ("paragraph separator", "\u{2029}"),
            ("embedding", "\u{202a}"),
            ("pop", "\u{202c}"),
            ("override", "\u{202e}"),
            ("word joiner", "\u{2060}"),
            ("invisible times", "\u{2062}"),
            ("isolate", "\u{2066}"),
            ("pop isolate", "\u{2069}"),
            ("deprecated", "\u{206f}"),
            ("byte order mark", "\u{feff}"),
            ("interlinear annotation", "\u{fff9}"),
            ("musical format", "\u{1d173}"),
            ("tag", "\u{e0041}"),
            ("cancel tag", "\u{e007f}"),
            ("Hangul filler", "\u{3164}"),
            ("noncharacter", "\u{1fffe}"),
        ] {
            assert!(!all_printable(text), "{what}");
            assert!(!all_printable(&format!("a{text}b")), "{what}");
            assert!(all_printable(&escape(text)), "{what}");
            assert!(all_printable(&replace(text)), "{what}");
            assert!(all_printable(&escape_json(&text.replace('\n', "\\n"))), "{what}");
        }
    }

    #[test]
    fn text_of_every_language_is_printable() {
        for (language, text) in [
            (
                "English",
                "plain text, with punctuation: [a] {b} <c> \"d\" 'e' \\ / ~",
            ),
            ("German", "Größe für 5 €"),
            ("decomposed", "e\u{301}cole"),
            ("Vietnamese", "Tiếng Việt"),
            ("Greek", "Ελληνικά"),
            ("Russian", "Отчёт за квартал"),
            ("Hebrew with points", "שָׁלוֹם"),
            ("Arabic", "تقرير مبيعات ٢٠٢٦"),
            ("Persian with a non-joiner", "می\u{200c}خواهم"),
            ("Hindi with a joiner", "क्\u{200d}ष"),
            ("Tamil", "தமிழ்"),
            ("Thai", "ภาษาไทย"),
            ("Chinese", "数据分析会话"),
            ("Japanese with a variation", "葛\u{e0100}城"),
            ("Korean", "데이터 분석"),
            ("Mongolian with a variation", "ᠮᠣᠩᠭᠣᠯ\u{180b}"),
            ("emoji with joiners", "👩\u{200d}💻 👨\u{200d}👩\u{200d}👧"),
            ("emoji with a variation", "❤\u{fe0f}"),
            ("flag", "🇪🇺"),
            ("wide spaces", "a\u{a0}b\u{2003}c\u{3000}d"),
            ("line drawing", "│ ─ █"),
        ] {
            assert!(all_printable(text), "{language}: {}", text.escape_unicode());
            assert_eq!(escape(text), text, "{language}");
            assert_eq!(escape_lines(text), text, "{language}");
            assert_eq!(escape_json(text), text, "{language}");
            assert_eq!(replace(text), text, "{language}");
        }
    }

    #[test]
    fn escapes_keep_the_text_readable() {
        assert_eq!(escape("a\u{202e}b\nc"), "a\\u{202e}b\\u{a}c");
        assert_eq!(escape_lines("a\u{1b}[1m\n\tb\r"), "a\\u{1b}[1m\n\tb\\u{d}");
        assert_eq!(
            escape_json("{\n \"a\": \"\u{202e}\u{e0041}\"}"),
            "{\n \"a\": \"\\u202e\\udb40\\udc41\"}"
        );
        assert_eq!(replace("a\u{202e}b\n"), "a?b?");
    }
}
