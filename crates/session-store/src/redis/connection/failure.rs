//! Failures of Redis calls, and whether a call can be repeated.

use super::target::Address;
use crate::{Error, Outage, OutageCause};
use redis::{ErrorKind, RedisError, ServerErrorKind};
use std::time::Duration;

/// Failure of a call.
#[derive(Debug, Clone)]
pub(in crate::redis) enum Failure {
    /// No reply within the time limit.
    Timeout(Duration),
    /// Error of Redis or of the connection.
    Redis(RedisError),
    /// The server that should take writes is a replica.
    Replica(Address),
    /// The eviction policy of the server may delete keys.
    Evicts(String),
    /// No server is known, or its address or certificate files are unusable.
    NoServer(String),
    /// No sentinel names the primary; the failure of one of them.
    Sentinels(Box<Failure>),
    /// Too many calls are in flight.
    TooManyInFlight,
}

/// What to do with a failed call.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Advice {
    /// Return the error to the caller.
    Fail,
    /// The call was not executed: send it to this server.
    Moved(Address),
    /// The call was not executed: send it to this server after `ASKING`.
    Ask(Address),
    /// The call was not executed: repeat it after a delay.
    Retry,
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        Self::Redis(error)
    }
}

impl Failure {
    /// What to do with the call; `server` is the server that failed it.
    pub(super) fn advice(&self, server: &Address) -> Advice {
        match self {
            Self::Replica(_) => Advice::Retry,
            Self::Timeout(_)
            | Self::Evicts(_)
            | Self::NoServer(_)
            | Self::Sentinels(_)
            | Self::TooManyInFlight => Advice::Fail,
            Self::Redis(error) => advice(error, server),
        }
    }

    /// Returns whether the script is not loaded in Redis.
    pub(super) fn is_unknown_script(&self) -> bool {
        match self {
            Self::Redis(error) => matches!(error.kind(), ErrorKind::Server(ServerErrorKind::NoScript)),
            Self::Timeout(_)
            | Self::Replica(_)
            | Self::Evicts(_)
            | Self::NoServer(_)
            | Self::Sentinels(_)
            | Self::TooManyInFlight => false,
        }
    }

    /// Returns whether the cached topology may be outdated.
    pub(super) fn invalidates_topology(&self) -> bool {
        match self {
            Self::Timeout(_) | Self::Replica(_) | Self::Evicts(_) => true,
            Self::Redis(error) => error.is_unrecoverable_error() || error.is_io_error(),
            Self::NoServer(_) | Self::Sentinels(_) | Self::TooManyInFlight => false,
        }
    }

    /// Converts to a store error: `Unavailable` and `Full` can pass with time,
    /// `Corrupt` needs an operator.
    pub(in crate::redis) fn into_error(self) -> Error {
        let (cause, detail) = match self {
            Self::Timeout(limit) => (OutageCause::Unreachable, format!("no answer within {limit:?}")),
            Self::Replica(address) => (OutageCause::Moving, format!("{address} is a replica")),
            Self::Evicts(policy) => (
                OutageCause::Eviction,
                format!("Redis has maxmemory-policy {policy} now"),
            ),
            Self::NoServer(why) => (OutageCause::Unreachable, why),
            Self::Sentinels(failure) => {
                return match failure.into_error() {
                    Error::Unavailable(Outage { cause, detail }) => Error::Unavailable(Outage::new(
                        cause,
                        format!("no sentinel names the primary: {detail}"),
                    )),
                    error => error,
                };
            }
            Self::TooManyInFlight => (OutageCause::Overloaded, "too many calls are in flight".to_owned()),
            Self::Redis(error) => return store_error(&error),
        };
        Error::Unavailable(Outage::new(cause, detail))
    }
}

/// The store error of an error of Redis or of the connection.
fn store_error(error: &RedisError) -> Error {
    let text = error.to_string();
    if let Some(cause) = outage_cause(error) {
        return Error::Unavailable(Outage::new(cause, text));
    }
    match error.kind() {
        // A key of another type, a failed script or an unexpected reply: the stored
        // data has another form.
        ErrorKind::UnexpectedReturnType
        | ErrorKind::Parse
        | ErrorKind::Server(ServerErrorKind::ResponseError | ServerErrorKind::CrossSlot) => {
            Error::Corrupt(text)
        }
        ErrorKind::Extension if error.code() == Some("WRONGTYPE") => Error::Corrupt(text),
        ErrorKind::Extension if error.code() == Some("OOM") => Error::Full,
        _ => Error::unreachable(text),
    }
}

/// The start of the text with which Redis 7.0 rejects a command of a script for its
/// user; later releases answer `NOPERM`.
const SCRIPT_WITHOUT_RIGHTS: &str = "The user executing the script can't";

/// The cause that Redis itself gives for a rejection that is no fault of the stored data.
fn outage_cause(error: &RedisError) -> Option<OutageCause> {
    if error.kind() == ErrorKind::AuthenticationFailed {
        return Some(OutageCause::Access);
    }
    let errors = error.clone().into_server_errors()?;
    errors.iter().find_map(|(_, one)| match one.code() {
        "MISCONF" => Some(OutageCause::Disk),
        "NOREPLICAS" => Some(OutageCause::Replicas),
        "NOAUTH" | "WRONGPASS" | "NOPERM" => Some(OutageCause::Access),
        "LOADING" | "MOVED" | "ASK" | "TRYAGAIN" | "CLUSTERDOWN" | "MASTERDOWN" | "READONLY" => {
            Some(OutageCause::Moving)
        }
        _ => one
            .details()
            .is_some_and(|details| details.contains(SCRIPT_WITHOUT_RIGHTS))
            .then_some(OutageCause::Access),
    })
}

/// An error of a pipeline contains the errors of its commands.
fn advice(error: &RedisError, server: &Address) -> Advice {
    for (_, one) in error
        .clone()
        .into_server_errors()
        .iter()
        .flat_map(|all| all.iter())
    {
        let address = || {
            let (_, address) = one.details()?.split_once(' ')?;
            Address::parse(address.split_whitespace().next()?, &server.host)
        };
        match one.kind() {
            Some(ServerErrorKind::Moved) => return address().map_or(Advice::Retry, Advice::Moved),
            Some(ServerErrorKind::Ask) => return address().map_or(Advice::Retry, Advice::Ask),
            Some(
                ServerErrorKind::TryAgain
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::MasterDown
                | ServerErrorKind::BusyLoading
                | ServerErrorKind::ReadOnly,
            ) => return Advice::Retry,
            Some(_) | None => {}
        }
    }
    Advice::Fail
}

#[cfg(test)]
mod tests {
    use super::*;
    use redis::parse_redis_value;

    fn server_error(answer: &str) -> RedisError {
        let value = parse_redis_value(format!("-{answer}\r\n").as_bytes()).unwrap();
        value.extract_error().unwrap_err()
    }

    fn address(port: u16) -> Address {
        Address {
            host: "a".to_owned(),
            port,
        }
    }

    #[test]
    fn a_call_that_was_turned_away_is_sent_where_it_belongs() {
        let advice = |answer: &str| Failure::Redis(server_error(answer)).advice(&address(1));
        let there = Address {
            host: "10.0.0.1".to_owned(),
            port: 7001,
        };
        assert_eq!(advice("MOVED 3999 10.0.0.1:7001"), Advice::Moved(there.clone()));
        assert_eq!(advice("ASK 3999 10.0.0.1:7001"), Advice::Ask(there));
        assert_eq!(advice("MOVED 3999 :7001"), Advice::Moved(address(7001)));
        for later in [
            "TRYAGAIN x",
            "CLUSTERDOWN x",
            "LOADING x",
            "READONLY x",
            "MOVED x",
        ] {
            assert_eq!(advice(later), Advice::Retry, "{later}");
        }
        for never in ["ERR x", "OOM x", "NOAUTH x", "WRONGTYPE x"] {
            assert_eq!(advice(never), Advice::Fail, "{never}");
        }
    }

    #[test]
    fn an_answer_says_whether_waiting_helps() {
        let error = |answer: &str| Failure::Redis(server_error(answer)).into_error();
        assert!(matches!(error("OOM no memory"), Error::Full));
        assert!(matches!(error("WRONGTYPE x"), Error::Corrupt(_)));
        assert!(matches!(error("ERR x"), Error::Corrupt(_)));
    }

    /// The texts are those of Redis 7.0 and 7.2.
    #[test]
    fn an_outage_has_the_cause_that_redis_gives() {
        let cause = |failure: Failure| match failure.into_error() {
            Error::Unavailable(outage) => outage.cause,
            error => panic!("{error:?}"),
        };
        for (answer, expected) in [
            (
                "MISCONF Errors writing to the AOF file: No space left on device",
                OutageCause::Disk,
            ),
            (
                "MISCONF Redis is configured to save RDB snapshots",
                OutageCause::Disk,
            ),
            (
                "NOREPLICAS Not enough good replicas to write.",
                OutageCause::Replicas,
            ),
            (
                "NOPERM this user has no permissions to run the 'time' command",
                OutageCause::Access,
            ),
            (
                "ERR The user executing the script can't run this command or subcommand script: 0a",
                OutageCause::Access,
            ),
            ("NOAUTH Authentication required.", OutageCause::Access),
            (
                "WRONGPASS invalid username-password pair or user is disabled.",
                OutageCause::Access,
            ),
            (
                "TRYAGAIN Multiple keys request during rehashing of slot",
                OutageCause::Moving,
            ),
            ("CLUSTERDOWN Hash slot not served", OutageCause::Moving),
            (
                "LOADING Redis is loading the dataset in memory",
                OutageCause::Moving,
            ),
            (
                "READONLY You can't write against a read only replica.",
                OutageCause::Moving,
            ),
        ] {
            let failure = Failure::Redis(server_error(answer));
            assert_eq!(cause(failure.clone()), expected, "{answer}");
            assert_eq!(cause(Failure::Sentinels(Box::new(failure))), expected, "{answer}");
        }
        assert_eq!(cause(Failure::TooManyInFlight), OutageCause::Overloaded);
        assert_eq!(
            cause(Failure::Timeout(Duration::from_secs(2))),
            OutageCause::Unreachable
        );
    }
}
