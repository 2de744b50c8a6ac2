//! Usage of a session, from the reports of the proxies.

use crate::id::{InvalidId, TokenId};
use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Usage of a session at one moment. An idle timeout runs only in `Quiet`:
/// missing reports never count as idleness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Some proxy has not reported since an outage; idle timeouts are paused.
    Unknown,
    /// A proxy holds a busy lease: a call is in flight.
    Busy,
    /// Every proxy has reported and nothing is in flight.
    Quiet {
        /// The end of the last operation; [`Timestamp::ZERO`] before the first.
        last_activity_at: Timestamp,
    },
}

/// Aggregated reports of all proxies on one session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Use {
    /// The store's time of the read.
    pub at: Timestamp,
    /// End of the last call, or the current time while one is in flight, with
    /// the precision of one report interval; `None` before the first.
    pub last_activity_at: Option<Timestamp>,
    /// Calls in flight on the compute of the current generation.
    pub open_calls: u32,
    /// Totals since creation.
    pub totals: Totals,
}

impl Use {
    /// The activity that the status machine uses.
    pub fn activity(&self) -> Activity {
        if self.open_calls > 0 {
            Activity::Busy
        } else {
            Activity::Quiet {
                last_activity_at: self.last_activity_at.unwrap_or_default(),
            }
        }
    }
}

/// Usage counters of a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Number of calls.
    pub rpcs: u64,
    /// Bytes towards the compute.
    pub bytes_in: u64,
    /// Bytes towards clients.
    pub bytes_out: u64,
    /// Total open time of all calls, in milliseconds.
    pub open_stream_millis: u64,
}

impl Totals {
    /// Whether all counters are zero.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// The sum, saturating.
    #[must_use]
    pub fn plus(self, more: Self) -> Self {
        Self {
            rpcs: self.rpcs.saturating_add(more.rpcs),
            bytes_in: self.bytes_in.saturating_add(more.bytes_in),
            bytes_out: self.bytes_out.saturating_add(more.bytes_out),
            open_stream_millis: self.open_stream_millis.saturating_add(more.open_stream_millis),
        }
    }
}

/// An operation that a session's compute executes for a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// The Spark session id from the client.
    #[serde(rename = "s")]
    pub spark_session_id: String,
    /// The operation id from the client; empty if it sent none.
    #[serde(rename = "o")]
    pub operation_id: String,
    /// The Spark Connect method.
    #[serde(rename = "m")]
    pub method: String,
    /// Time at which the proxy received the call.
    #[serde(rename = "at")]
    pub started_at: Timestamp,
    /// The `user_id` sent to the engine, by which Apache Spark finds the Spark
    /// session; empty if it is the session's id.
    #[serde(rename = "u", default, skip_serializing_if = "String::is_empty")]
    pub user_id: String,
}

/// First and last use of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenUse {
    /// The token.
    pub id: TokenId,
    /// First use; once recorded, it does not change.
    pub first: Timestamp,
    /// Last use so far.
    pub last: Timestamp,
}

/// One run of one proxy; a restart creates another id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProxyId(String);

impl ProxyId {
    /// The identifier as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ProxyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ProxyId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let good = (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        good.then(|| Self(text.to_owned())).ok_or(InvalidId {
            kind: "proxy id",
            expected: "1 to 128 visible ASCII characters without spaces",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_in_flight_is_never_silence() {
        let last = Timestamp::from_millis(7);
        let quiet = Use {
            last_activity_at: Some(last),
            ..Use::default()
        };
        assert_eq!(
            quiet.activity(),
            Activity::Quiet {
                last_activity_at: last
            }
        );
        let busy = Use {
            open_calls: 1,
            ..quiet
        };
        assert_eq!(busy.activity(), Activity::Busy);
        let fresh = Activity::Quiet {
            last_activity_at: Timestamp::ZERO,
        };
        assert_eq!(Use::default().activity(), fresh);
    }

    #[test]
    fn proxy_ids_are_plain_and_short() {
        assert!("proxy-1.example:8085/7".parse::<ProxyId>().is_ok());
        for bad in ["", "two words", "ü", "a\n", &"x".repeat(129)] {
            assert!(bad.parse::<ProxyId>().is_err(), "{bad:?}");
        }
    }
}
