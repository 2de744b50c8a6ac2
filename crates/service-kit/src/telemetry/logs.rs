//! Log lines: one event, one line of printable text.

use std::fmt;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Writes an event as one line of plain text: names and texts from others must
/// not start a new line or control a terminal. JSON itself escapes only what
/// would break JSON.
pub(super) struct OneLine<F> {
    inner: F,
    escape: fn(&mut Writer<'_>, char) -> fmt::Result,
}

impl<F> OneLine<F> {
    pub(super) fn text(inner: F) -> Self {
        Self {
            inner,
            escape: |writer, char| write!(writer, "{}", char.escape_unicode()),
        }
    }

    /// Non-printable characters occur only inside a string here, so JSON
    /// escapes are valid.
    pub(super) fn json(inner: F) -> Self {
        Self {
            inner,
            escape: |writer, char| {
                let mut escaped = String::new();
                printable::push_json_escape(&mut escaped, char);
                writer.write_str(&escaped)
            },
        }
    }
}

impl<S, N, F> FormatEvent<S, N> for OneLine<F>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        self.inner.format_event(context, Writer::new(&mut line), event)?;
        for char in line.trim_end_matches('\n').chars() {
            if printable::is_printable(char) {
                writer.write_char(char)?;
            } else {
                (self.escape)(&mut writer, char)?;
            }
        }
        writer.write_char('\n')
    }
}

/// Logs a panic as one log line, without other output.
pub(super) fn log_panics() {
    std::panic::set_hook(Box::new(move |panic| {
        let said = panic.payload_as_str().unwrap_or_default();
        tracing::error!(
            location = panic.location().map(tracing::field::display),
            said,
            "panic"
        );
    }));
}
