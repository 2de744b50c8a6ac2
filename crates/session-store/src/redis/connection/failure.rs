//! Why a call of Redis did not succeed, and what can be done about it.

use super::target::Address;
use crate::Error;
use redis::{ErrorKind, RedisError, ServerErrorKind};
use std::time::Duration;

/// Why a call did not succeed.
#[derive(Debug, Clone)]
pub(in crate::redis) enum Failure {
    /// No answer within the time limit.
    Timeout(Duration),
    /// Redis, or the way to it, said so.
    Redis(RedisError),
    /// The server that should take writes is a replica.
    Replica(Address),
    /// The server may throw state away when memory is short.
    Evicts(String),
    /// No server to ask is known, or its address, names or keys cannot be used.
    NoServer(String),
    /// Too many calls are in flight.
    TooManyInFlight,
}

/// What to do with a call that failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Advice {
    /// Tell the caller.
    GiveUp,
    /// Nothing was done: ask this server.
    Moved(Address),
    /// Nothing was done: ask this server, once.
    Ask(Address),
    /// Nothing was done: ask again in a moment.
    Later,
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        Self::Redis(error)
    }
}

impl Failure {
    /// What to do next; `asked` is the server that said so.
    pub(super) fn advice(&self, asked: &Address) -> Advice {
        match self {
            Self::Replica(_) => Advice::Later,
            Self::Timeout(_) | Self::Evicts(_) | Self::NoServer(_) | Self::TooManyInFlight => Advice::GiveUp,
            Self::Redis(error) => advice(error, asked),
        }
    }

    /// Did Redis not know the script?
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

    /// May the server that was asked be the wrong one by now?
    pub(super) fn is_loss(&self) -> bool {
        match self {
            Self::Timeout(_) | Self::Replica(_) | Self::Evicts(_) => true,
            Self::Redis(error) => error.is_unrecoverable_error() || error.is_io_error(),
            Self::NoServer(_) | Self::TooManyInFlight => false,
        }
    }

    /// What a caller can do about it: wait, or call for a human.
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
            // A command on a key of another type, a script that failed, an
            // answer of another form: the data is not what we wrote.
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

/// A step of several commands tells of the one that was turned away.
fn advice(error: &RedisError, asked: &Address) -> Advice {
    for (_, one) in error
        .clone()
        .into_server_errors()
        .iter()
        .flat_map(|all| all.iter())
    {
        let address = || {
            let (_, address) = one.details()?.split_once(' ')?;
            Address::parse(address.split_whitespace().next()?, &asked.host)
        };
        match one.kind() {
            Some(ServerErrorKind::Moved) => return address().map_or(Advice::Later, Advice::Moved),
            Some(ServerErrorKind::Ask) => return address().map_or(Advice::Later, Advice::Ask),
            Some(
                ServerErrorKind::TryAgain
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::MasterDown
                | ServerErrorKind::BusyLoading
                | ServerErrorKind::ReadOnly,
            ) => return Advice::Later,
            Some(_) | None => {}
        }
    }
    Advice::GiveUp
}

#[cfg(test)]
mod tests {
    use super::*;
    use redis::parse_redis_value;

    fn told(answer: &str) -> RedisError {
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
        let advice = |answer: &str| Failure::Redis(told(answer)).advice(&address(1));
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
            assert_eq!(advice(later), Advice::Later, "{later}");
        }
        for never in ["ERR x", "OOM x", "NOAUTH x", "WRONGTYPE x"] {
            assert_eq!(advice(never), Advice::GiveUp, "{never}");
        }
    }

    #[test]
    fn an_answer_says_whether_waiting_helps() {
        let error = |answer: &str| Failure::Redis(told(answer)).into_error();
        assert!(matches!(error("OOM no memory"), Error::Full));
        assert!(matches!(error("WRONGTYPE x"), Error::Corrupt(_)));
        assert!(matches!(error("ERR x"), Error::Corrupt(_)));
        assert!(matches!(error("MISCONF x"), Error::Unavailable(_)));
        assert!(matches!(error("NOREPLICAS x"), Error::Unavailable(_)));
    }
}
