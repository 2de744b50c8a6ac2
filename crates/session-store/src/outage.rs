//! Why the store is unavailable, so that callers, metrics and operators get the cause.

use std::fmt;

/// The cause of an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OutageCause {
    /// No connection, or no answer in time.
    Unreachable,
    /// Data moves to another server, another server takes over, or one still loads its
    /// data.
    Moving,
    /// Too many calls are in flight.
    Overloaded,
    /// The store cannot write to its disk and rejects changes.
    Disk,
    /// Fewer replicas are connected than the store requires for changes.
    Replicas,
    /// The store rejects the credentials, or the rights of the user do not suffice.
    Access,
    /// The store may evict records, so it is not used.
    Eviction,
}

/// An outage of the store, with its cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outage {
    /// The cause.
    pub cause: OutageCause,
    /// The text of the store or of the connection; for logs only.
    pub detail: String,
}

impl OutageCause {
    /// Its name in logs, metrics and error metadata.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Moving => "moving",
            Self::Overloaded => "overloaded",
            Self::Disk => "disk",
            Self::Replicas => "replicas",
            Self::Access => "access",
            Self::Eviction => "eviction",
        }
    }

    /// Whether the store answers, but rejects changes until an operator acts.
    pub const fn rejects_changes(self) -> bool {
        match self {
            Self::Disk | Self::Replicas | Self::Access => true,
            Self::Unreachable | Self::Moving | Self::Overloaded | Self::Eviction => false,
        }
    }
}

impl Outage {
    /// An outage with this cause.
    pub fn new(cause: OutageCause, detail: impl Into<String>) -> Self {
        Self {
            cause,
            detail: detail.into(),
        }
    }
}

impl fmt::Display for OutageCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.detail, self.cause)
    }
}
