//! What clients did and what they were answered, and which faults happened meanwhile: everything
//! that the checker knows. One JSON object a line, so that a history can be kept and checked again.

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Microseconds since the start of the history, on the monotonic clock of the test.
pub(super) type Micros = u64;

/// One call of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Event {
    /// The session, by the number that the test gave it before its create.
    pub(super) session: u32,
    pub(super) client: u32,
    pub(super) call: Call,
    pub(super) invoked: Micros,
    pub(super) returned: Micros,
    pub(super) outcome: Outcome,
}

/// What was called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Call {
    /// Always with the same request id for the same session.
    Create {
        name: String,
    },
    Describe,
    Rename {
        name: String,
    },
    Close,
    Issue,
    Revoke {
        token: String,
    },
    RevokeAll,
    /// `ResolveRoute` at a session-manager.
    Resolve {
        token: String,
    },
    /// A call of a Spark client through a proxy.
    Spark {
        proxy: u8,
        token: String,
    },
}

impl Call {
    /// Whether it can change something.
    pub(super) fn writes(&self) -> bool {
        match self {
            Self::Create { .. }
            | Self::Rename { .. }
            | Self::Close
            | Self::Revoke { .. }
            | Self::RevokeAll => true,
            Self::Describe | Self::Issue | Self::Resolve { .. } | Self::Spark { .. } => false,
        }
    }
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Outcome {
    /// The record of the session.
    Record(Record),
    /// The token's id, and the epoch in it.
    Issued {
        token: String,
        epoch: u64,
    },
    /// The new epoch.
    AllRevoked {
        epoch: u64,
    },
    /// Success without a word.
    Done,
    /// A Spark call was answered by compute of this generation.
    Answered {
        generation: u64,
    },
    Refused(Refusal),
    /// It was certainly not done.
    Failed(String),
    /// It may have been done, or may still be.
    Unknown(String),
}

/// A refusal that tells something about the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Refusal {
    /// It has ended.
    Ended,
    /// It does not exist.
    Absent,
    /// It has ended, or does not exist.
    EndedOrAbsent,
    TokenRevoked,
}

/// The session as an answer shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) id: String,
    pub(super) version: u64,
    pub(super) generation: u64,
    pub(super) epoch: u64,
    pub(super) life: Life,
    /// Routes have none.
    pub(super) name: Option<String>,
    /// Only routes have them, in order.
    pub(super) revoked: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) enum Life {
    Live,
    Closed,
    Failed,
}

/// Something that was broken on purpose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fault {
    pub(super) what: String,
    pub(super) begun: Micros,
    pub(super) ended: Micros,
    /// A fail-over: what Redis acknowledged meanwhile may be lost. Everything before its begin is
    /// on the replicas.
    pub(super) loses: bool,
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct History {
    pub(super) events: Vec<Event>,
    pub(super) faults: Vec<Fault>,
}

#[derive(Serialize, Deserialize)]
enum Line {
    Event(Event),
    Fault(Fault),
}

impl History {
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let faults = self.faults.iter().cloned().map(Line::Fault);
        let events = self.events.iter().cloned().map(Line::Event);
        let mut text = String::new();
        for line in faults.chain(events) {
            text += &serde_json::to_string(&line)?;
            text.push('\n');
        }
        std::fs::create_dir_all(path.parent().context("a path with a folder")?)?;
        Ok(std::fs::write(path, text)?)
    }

    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let mut history = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line = serde_json::from_str(line).with_context(|| format!("line {}", number + 1))?;
            match line {
                Line::Event(event) => history.events.push(event),
                Line::Fault(fault) => history.faults.push(fault),
            }
        }
        Ok(history)
    }
}
