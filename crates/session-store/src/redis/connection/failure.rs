//! Failures of Redis calls, and whether a call can be repeated.

use super::target::Address;
use crate::Error;
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
            Self::Timeout(_) | Self::Evicts(_) | Self::NoServer(_) | Self::TooManyInFlight => Advice::Fail,
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
            | Self::TooManyInFlight => false,
        }
    }

    /// Returns whether the cached topology may be outdated.
    pub(super) fn invalidates_topology(&self) -> bool {
        match self {
            Self::Timeout(_) | Self::Replica(_) | Self::Evicts(_) => true,
            Self::Redis(error) => error.is_unrecoverable_error() || error.is_io_error(),
            Self::NoServer(_) | Self::TooManyInFlight => false,
        }
    }

    /// Converts to a store error: `Unavailable` and `Full` can pass with time,
    /// `Corrupt` needs an operator.
    pub(in crate::redis) fn into_error(self) -> Error {
        let error = match self {
            Self::Timeout(limit) => return Error::Unavailable(format!("no answer within {limit:?}")),
            Self::Replica(address) => return Error::Unavailable(format!("{address} is a replica")),
            Self::Evicts(policy) => {
                return Error::Unavailable(format!("Redis has maxmemory-policy {policy} now"));
            }
            Self::NoServer(why) => return Error::Unavailable(why),
            Self::TooManyInFlight => return Error::Unavailable("too many calls are in flight".to_owned()),
            Self::Redis(error) => error,
        };
        match error.kind() {
            // A key of another type, a failed script or an unexpected reply: the stored
            // data has another form.
            ErrorKind::UnexpectedReturnType
            | ErrorKind::Parse
            | ErrorKind::Server(ServerErrorKind::ResponseError | ServerErrorKind::CrossSlot) => {
                Error::Corrupt(error.to_string())
            }
            ErrorKind::Extension if error.code() == Some("WRONGTYPE") => Error::Corrupt(error.to_string()),
            ErrorKind::Extension if error.code() == Some("OOM") => Error::Full,
            _ => Error::Unavailable(error.to_string()),
        }
    }
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
        assert!(matches!(error("MISCONF x"), Error::Unavailable(_)));
        assert!(matches!(error("NOREPLICAS x"), Error::Unavailable(_)));
    }
}
