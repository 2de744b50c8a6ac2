//! Steps of `berth doctor` and its verdict, for people and programs.

use super::fault::{Fault, Finding, Kind};
use crate::{Exit, Output, output};
use serde_json::{Value, json};
use std::io::IsTerminal as _;
use std::time::Instant;

/// What a step is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Settings,
    Credential,
    Manager,
    Session,
    Issuer,
    Proxy,
    Console,
    Client,
}

impl Part {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Settings => "settings",
            Self::Credential => "credential",
            Self::Manager => "session-manager",
            Self::Session => "session",
            Self::Issuer => "token-issuer",
            Self::Proxy => "spark-proxy",
            Self::Console => "console",
            Self::Client => "client",
        }
    }
}

/// All steps so far. In table output each is printed immediately.
pub(crate) struct Report {
    output: Output,
    steps: Vec<Value>,
    findings: Vec<(Part, Finding)>,
    last: Instant,
}

impl Report {
    pub(crate) fn new(output: Output) -> Self {
        Self {
            output,
            steps: Vec::new(),
            findings: Vec::new(),
            last: Instant::now(),
        }
    }

    /// A step that went well.
    pub(crate) fn ok(&mut self, part: Part, step: &'static str, detail: impl Into<String>) {
        self.step(part, step, "ok", None, detail.into());
    }

    /// A step that does not apply.
    pub(crate) fn skipped(&mut self, part: Part, step: &'static str, why: impl Into<String>) {
        self.step(part, step, "skipped", None, why.into());
    }

    /// A step that found something.
    pub(crate) fn found(&mut self, part: Part, step: &'static str, finding: Finding) {
        let outcome = if finding.fault.kind() == Kind::Note {
            "note"
        } else {
            "fault"
        };
        self.step(part, step, outcome, Some(finding.fault), finding.detail.clone());
        self.findings.push((part, finding));
    }

    /// Records a result; `None` after a fault.
    pub(crate) fn take<T>(
        &mut self,
        part: Part,
        step: &'static str,
        result: Result<T, Finding>,
    ) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(finding) => {
                self.found(part, step, finding);
                None
            }
        }
    }

    fn step(
        &mut self,
        part: Part,
        step: &'static str,
        outcome: &'static str,
        fault: Option<Fault>,
        detail: String,
    ) {
        let millis = u64::try_from(self.last.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last = Instant::now();
        if self.output == Output::Table {
            let id = fault.map(|fault| format!("{}: ", fault.id())).unwrap_or_default();
            let line = format!(
                "{outcome:<8} {:<15} {step:<12} {id}{detail} ({millis} ms)",
                part.name()
            );
            output::colored_line(&line, color(outcome));
        }
        self.steps.push(json!({
            "part": part.name(), "step": step, "outcome": outcome,
            "fault": fault.map(Fault::id), "detail": detail, "milliseconds": millis,
        }));
    }

    /// The first fault, else the first note.
    fn verdict(&self) -> Option<&(Part, Finding)> {
        let is_fault = |(_, finding): &&(Part, Finding)| finding.fault.kind() != Kind::Note;
        self.findings.iter().find(is_fault).or(self.findings.first())
    }

    /// Prints the verdict; a fault is an error with its exit code.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        let verdict = self.verdict();
        let code = verdict.map_or(0, |(_, finding)| finding.fault.exit_code());
        match self.output {
            Output::Json => output::object(&self.object(verdict, code)),
            Output::Table => {
                output::line("");
                for (part, finding) in &self.findings {
                    output::line(&format!(
                        "{} at {}: {}",
                        finding.fault.id(),
                        part.name(),
                        finding.detail
                    ));
                    output::line(&format!("  {}", finding.fault.fix()));
                }
                if self.findings.is_empty() {
                    output::line("No fault found.");
                }
            }
        }
        if code == 0 {
            return Ok(());
        }
        Err(anyhow::Error::new(Exit {
            code,
            text: String::new(),
        }))
    }

    fn object(&self, verdict: Option<&(Part, Finding)>, code: u8) -> Value {
        let finding = |(part, finding): &(Part, Finding)| {
            json!({
                "id": finding.fault.id(), "part": part.name(), "exit_code": finding.fault.exit_code(),
                "detail": finding.detail, "fix": finding.fault.fix(),
            })
        };
        json!({
            "verdict": verdict.map_or("ok", |(_, finding)| finding.fault.id()),
            "part": verdict.map(|(part, _)| part.name()),
            "exit_code": code,
            "findings": self.findings.iter().map(finding).collect::<Vec<_>>(),
            "steps": self.steps,
        })
    }
}

/// The escape code of an outcome, on a terminal that is not asked to be plain.
fn color(outcome: &str) -> Option<&'static str> {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || std::env::var_os("TERM").is_none_or(|term| term == "dumb")
        || !std::io::stdout().is_terminal();
    if plain {
        return None;
    }
    match outcome {
        "ok" => Some("32"),
        "fault" => Some("31"),
        "note" => Some("33"),
        _ => None,
    }
}
