//! What the driver and its processes say to each other: one JSON value a line,
//! on standard input and output.

use crate::callers::Caller;
use crate::wire::{Method, Shape};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Where the backend listens.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Addresses {
    /// Takes messages of anybody.
    pub open: SocketAddr,
    /// Look for the right identity in every message.
    pub asserting: Vec<SocketAddr>,
}

/// What the backend saw since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Request messages.
    pub messages: u64,
    /// Request messages with a wrong identity, at the ports that look.
    pub strangers: u64,
    /// Calls that made no sense.
    pub broken: u64,
}

/// Whom to call.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Target {
    /// The port.
    pub address: SocketAddr,
    /// The authority to trust; plaintext without one.
    pub ca: Option<PathBuf>,
    /// Send no token and no session, as to a backend itself.
    pub anonymous: bool,
}

/// A load to make. Everything is bounded in time and in number.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "job", rename_all = "snake_case")]
pub enum Job {
    /// Unary calls in a closed loop: each of `connections` x `concurrency` makes one after the other.
    Calls {
        /// Whom to call.
        target: Target,
        /// Which calls.
        method: Method,
        /// Taken in turn.
        callers: Vec<Caller>,
        /// HTTP/2 connections.
        connections: usize,
        /// Calls at once on each.
        concurrency: usize,
        /// Not measured.
        warmup_ms: u64,
        /// Measured.
        millis: u64,
        /// Processes whose CPU time is measured.
        watch: Vec<Vec<u32>>,
    },
    /// Each caller makes one unary call, `concurrency` at once on one connection.
    Each {
        /// Whom to call.
        target: Target,
        /// Who.
        callers: Vec<Caller>,
        /// Calls at once.
        concurrency: usize,
        /// Connections they are spread over.
        connections: usize,
        /// Processes whose CPU time is measured.
        watch: Vec<Vec<u32>>,
    },
    /// Unary calls at a fixed rate; latency counts from when a call was due.
    Open {
        /// Whom to call.
        target: Target,
        /// Who.
        caller: Caller,
        /// Calls a second.
        rate: u64,
        /// HTTP/2 connections.
        connections: usize,
        /// Not measured.
        warmup_ms: u64,
        /// Measured.
        millis: u64,
        /// Processes whose CPU time is measured.
        watch: Vec<Vec<u32>>,
    },
    /// New connections, one call on each, one after the other.
    Connects {
        /// Whom to call.
        target: Target,
        /// Who.
        caller: Caller,
        /// How many.
        count: usize,
        /// Processes whose CPU time is measured.
        watch: Vec<Vec<u32>>,
    },
    /// Calls that stream many messages, one after the other on each of `streams`.
    Stream {
        /// Whom to call.
        target: Target,
        /// Who.
        caller: Caller,
        /// [`Method::Execute`] downloads, [`Method::AddArtifacts`] uploads.
        method: Method,
        /// The messages of one call.
        shape: Shape,
        /// Calls at once on the one connection.
        streams: usize,
        /// Not measured.
        warmup_ms: u64,
        /// Measured; 0 makes one call on each stream and measures all of it.
        millis: u64,
        /// Processes whose CPU time is measured.
        watch: Vec<Vec<u32>>,
    },
    /// Opens connections and keeps them.
    Hold {
        /// Whom to call.
        target: Target,
        /// How many.
        count: usize,
    },
    /// Makes one call on each connection that is held.
    Touch {
        /// Who.
        caller: Caller,
    },
    /// Closes the connections that are held.
    Release,
}

/// What a job found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Calls, or connections, that went well in the measured time.
    pub calls: u64,
    /// Those that did not, at any time.
    pub errors: u64,
    /// What went wrong first.
    pub error: Option<String>,
    /// How long was measured.
    pub seconds: f64,
    /// Latency in microseconds.
    pub p50: f64,
    /// Latency in microseconds.
    pub p99: f64,
    /// Latency in microseconds.
    pub max: f64,
    /// Bytes of messages.
    pub bytes: u64,
    /// CPU seconds of each group of processes that was watched.
    pub cpu: Vec<f64>,
}
