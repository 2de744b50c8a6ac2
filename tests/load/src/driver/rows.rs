//! The rows of the table, and what each must reach.

use super::peer::Kind;

/// One row.
#[derive(Debug)]
pub struct Row {
    /// Its name in the results.
    pub key: &'static str,
    /// What it says, with the unit.
    pub label: &'static str,
    /// Digits after the point.
    pub digits: usize,
    /// What Berth must reach.
    pub must: &'static [Limit],
    /// What would be better still.
    pub stretch: &'static [Limit],
}

/// A bound on Berth's value, or on its ratio to a peer's in the same round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// At most this.
    AtMost(f64),
    /// At most this many times the peer's.
    AtMostOf(f64, Kind),
    /// At least this many times the peer's.
    AtLeastOf(f64, Kind),
    /// At least this many times the best of all proxies'.
    AtLeastBest(f64),
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "≤ {most}"),
            Self::AtMostOf(most, peer) => write!(f, "≤ {most} × {}", peer.name()),
            Self::AtLeastOf(least, peer) => write!(f, "≥ {least} × {}", peer.name()),
            Self::AtLeastBest(least) => write!(f, "≥ {least} × best peer"),
        }
    }
}

use Kind::{BerthOne, BerthTraced, Direct, Envoy, Haproxy, Nginx};
use Limit::{AtLeastBest, AtLeastOf, AtMost, AtMostOf};

const fn row(
    key: &'static str,
    label: &'static str,
    digits: usize,
    must: &'static [Limit],
    stretch: &'static [Limit],
) -> Row {
    Row {
        key,
        label,
        digits,
        must,
        stretch,
    }
}

/// All rows, in order.
pub const ROWS: &[Row] = &[
    row(
        "lat_p50",
        "1×1 p50, µs",
        0,
        &[AtMostOf(0.5, Envoy), AtMostOf(1.0, Nginx)],
        &[AtMost(132.0)],
    ),
    row(
        "lat_p99",
        "1×1 p99, µs",
        0,
        &[AtMostOf(0.5, Envoy), AtMostOf(1.0, Nginx)],
        &[AtMost(212.0)],
    ),
    row(
        "sat_calls",
        "4×16 k calls/s",
        1,
        &[AtLeastOf(5.0, Envoy)],
        &[AtLeastOf(1.0, Haproxy)],
    ),
    row(
        "sat_cpu",
        "4×16 CPU, µs/call",
        1,
        &[
            AtMost(16.0),
            AtMostOf(1.1, BerthOne),
            AtLeastOf(0.99, BerthTraced),
        ],
        &[AtMost(13.5)],
    ),
    row("sat_generator_cpu", "  the generator's, µs/call", 1, &[], &[]),
    row("sat_backend_cpu", "  the backend's, µs/call", 1, &[], &[]),
    row(
        "down_mb",
        "download 1 MiB msgs, MB/s",
        0,
        &[AtLeastBest(1.05)],
        &[AtLeastBest(1.15)],
    ),
    row("down_cpu", "  CPU, s/GB", 2, &[], &[AtMost(1.1)]),
    row(
        "up_mb",
        "upload 1 MiB msgs, MB/s",
        0,
        &[AtLeastOf(1.0, Envoy)],
        &[AtLeastBest(1.0)],
    ),
    row("up_cpu", "  CPU, s/GB", 2, &[AtMost(1.0)], &[AtMost(0.8)]),
    row("chunks_mb", "upload 32 KiB msgs, MB/s", 0, &[], &[]),
    row("chunks_cpu", "  CPU, s/GB", 2, &[], &[]),
    row(
        "small_rate",
        "download 1 KiB msgs, k msg/s",
        0,
        &[AtLeastOf(1.0, Direct)],
        &[AtLeastOf(1.0, Envoy)],
    ),
    row("small_cpu", "  CPU, µs/msg", 2, &[], &[]),
    row(
        "connect_cpu",
        "new TLS conn. + call, CPU µs",
        0,
        &[AtMost(450.0)],
        &[AtMost(408.0)],
    ),
    row("open_p50", "1000 calls/s p50, µs", 0, &[], &[]),
    row(
        "open_p99",
        "1000 calls/s p99, µs",
        0,
        &[AtMostOf(0.75, Envoy)],
        &[],
    ),
    row(
        "mem_rest",
        "memory at rest, MiB",
        1,
        &[AtMost(25.0)],
        &[AtMost(20.0)],
    ),
    row(
        "mem_idle",
        "  per idle TLS conn., KiB",
        1,
        &[AtMost(40.0)],
        &[AtMost(24.0)],
    ),
    row(
        "mem_used",
        "  the same after a call, KiB",
        1,
        &[AtMost(40.0)],
        &[AtMost(24.0)],
    ),
    row("mem_peak", "  peak streaming 1 GB, MiB", 1, &[AtMost(40.0)], &[]),
    row("mixed_p99", "small call p99 beside download, µs", 0, &[], &[]),
    row("mixed_ratio", "  × its p99 alone", 2, &[AtMost(3.0)], &[]),
    row("beside_ratio", "CPU/call beside idle conns, × alone", 2, &[], &[]),
    row(
        "plain_cpu",
        "plaintext 4×16 CPU, µs/call",
        1,
        &[AtMost(19.5)],
        &[],
    ),
    row(
        "plain_down",
        "plaintext download CPU, s/GB",
        2,
        &[AtMost(0.85)],
        &[],
    ),
    row("plain_up", "plaintext upload CPU, s/GB", 2, &[AtMost(0.8)], &[]),
    row("sessions_cpu", "100 sessions, 10 backends, µs/call", 1, &[], &[]),
    row("sessions_ratio", "  × one session", 2, &[], &[]),
    row(
        "new_token_cpu",
        "token never seen, µs CPU more",
        0,
        &[AtMost(80.0)],
        &[],
    ),
    row(
        "routes_ratio",
        "CPU/call with many routes, × few",
        2,
        &[AtMost(1.1)],
        &[],
    ),
    row("routes_mib", "  memory then, MiB", 1, &[], &[]),
    row(
        "one_instructions",
        "1×1 k instructions/call",
        2,
        &[AtLeastOf(0.99, BerthTraced)],
        &[],
    ),
    row(
        "saturated_instructions",
        "4×16 k instructions/call",
        2,
        &[AtLeastOf(0.99, BerthTraced)],
        &[],
    ),
];

/// The proxies whose best counts.
pub const OTHERS: [Kind; 3] = [Envoy, Nginx, Haproxy];
