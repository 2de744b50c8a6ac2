//! Progress on stderr: one line that changes on a terminal, one line for each
//! change elsewhere.

use crate::output;
use std::io::{self, IsTerminal as _, Write as _};
use std::pin::pin;
use std::time::{Duration, Instant};

/// Interval of the moving line on a terminal.
const FRAME_INTERVAL: Duration = Duration::from_millis(120);
/// Time after which an unchanged phase is printed again where there is no
/// terminal.
const REPEAT_INTERVAL: Duration = Duration::from_secs(30);
const FRAMES: [&str; 4] = ["-", "\\", "|", "/"];

/// The progress of one session's start.
#[derive(Debug)]
pub(crate) struct Progress {
    subject: String,
    begun: Instant,
    phase: String,
    phase_begun: Instant,
    printed: Instant,
    frame: usize,
    style: Style,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    /// One line that is written over.
    Line,
    /// A line for each change.
    Plain,
    Silent,
}

impl Progress {
    /// Shows nothing yet. On a terminal the line moves, unless TERM is `dumb`;
    /// with `--quiet` nothing is shown.
    pub(crate) fn new(subject: &str) -> Self {
        let style = if output::is_quiet() {
            Style::Silent
        } else if io::stderr().is_terminal() && std::env::var_os("TERM").is_some_and(|term| term != "dumb") {
            Style::Line
        } else {
            Style::Plain
        };
        Self::with(subject, style)
    }

    fn with(subject: &str, style: Style) -> Self {
        let now = Instant::now();
        Self {
            subject: printable::escape(subject).into_owned(),
            begun: now,
            phase: String::new(),
            phase_begun: now,
            printed: now,
            frame: 0,
            style,
        }
    }

    /// The present phase, and what it waits for.
    pub(crate) fn phase(&mut self, phase: &str) {
        let phase = printable::escape(phase).into_owned();
        let changed = phase != self.phase;
        if changed && self.style == Style::Line && !self.phase.is_empty() {
            self.finish_line();
        }
        if self.style == Style::Plain && (changed || self.printed.elapsed() >= REPEAT_INTERVAL) {
            write(&format!(
                "{}: {phase} ({} s)\n",
                self.subject,
                self.begun.elapsed().as_secs()
            ));
            self.printed = Instant::now();
        }
        if changed {
            self.phase = phase;
            self.phase_begun = Instant::now();
        }
        self.draw();
    }

    /// Runs `work` while the line moves.
    pub(crate) async fn animate<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(FRAME_INTERVAL), if self.style == Style::Line => {
                    self.frame += 1;
                    self.draw();
                }
            }
        }
    }

    /// The end of the start, with its result.
    pub(crate) fn end(&mut self, result: &str) {
        if self.style == Style::Line && !self.phase.is_empty() {
            self.finish_line();
        }
        if self.style != Style::Silent && !self.phase.is_empty() {
            let text = format!(
                "{}: {result} after {:.1} s\n",
                self.subject,
                self.begun.elapsed().as_secs_f64()
            );
            write(&printable::escape_lines(&text));
        }
    }

    /// Removes the moving line.
    pub(crate) fn clear(&self) {
        if self.style == Style::Line {
            write("\r\x1b[K");
        }
    }

    fn draw(&self) {
        if self.style == Style::Line {
            let frame = FRAMES[self.frame % FRAMES.len()];
            let seconds = self.phase_begun.elapsed().as_secs();
            write(&format!(
                "\r\x1b[K{frame} {}: {} ({seconds} s)",
                self.subject, self.phase
            ));
        }
    }

    /// Leaves the phase with its duration as a line of its own.
    fn finish_line(&self) {
        let seconds = self.phase_begun.elapsed().as_secs_f64();
        write(&format!(
            "\r\x1b[K  {}: {} ({seconds:.1} s)\n",
            self.subject, self.phase
        ));
    }
}

fn write(text: &str) {
    let mut err = io::stderr().lock();
    // Without a reader of the progress there is nothing to show.
    let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_is_new_only_when_it_changes() {
        let mut progress = Progress::with("s-1\u{1b}[2J", Style::Silent);
        assert!(!progress.subject.contains('\u{1b}'), "{:?}", progress.subject);
        progress.phase("provisioning");
        let begun = progress.phase_begun;
        progress.phase("provisioning");
        assert_eq!(progress.phase_begun, begun);
        progress.phase("provisioning: no node has room");
        assert!(progress.phase_begun > begun);
    }

    #[tokio::test]
    async fn the_line_moves_while_the_work_runs() {
        let mut progress = Progress::with("s-1", Style::Line);
        let work = tokio::time::sleep(FRAME_INTERVAL * 3);
        progress.animate(work).await;
        assert!(progress.frame >= 2, "{}", progress.frame);
        progress.clear();
    }
}
