//! The ports that send each [`Reason`], and the response of a port to calls of another one.
//!
//! docs/errors.md repeats [`ports`]; `tests/errors_doc.rs` compares both with the sources. In debug
//! builds, which tests use, each port checks its errors with [`check_sent`].

use crate::error::Refused;
use session_core::Reason;

/// A gRPC port of Berth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// session-manager's API.
    Public,
    /// session-manager's API for Berth's own services.
    Internal,
    /// token-issuer's API.
    Issuer,
    /// spark-proxy.
    SparkConnect,
}

use Port::{Internal, Issuer, Public, SparkConnect};

/// The three ports that serve APIs.
const APIS: &[Port] = &[Public, Internal, Issuer];
const EVERYWHERE: &[Port] = &[Public, Internal, Issuer, SparkConnect];

impl Port {
    /// All ports.
    pub const ALL: &'static [Self] = &[Public, Internal, Issuer, SparkConnect];

    /// The default port number.
    pub const fn number(self) -> u16 {
        match self {
            Self::Public => 8081,
            Self::Internal => 8082,
            Self::Issuer => 8083,
            Self::SparkConnect => 8085,
        }
    }

    /// The service of the port, as a sentence.
    const fn serves(self) -> &'static str {
        match self {
            Self::Public => "This is session-manager's API.",
            Self::Internal => "This is session-manager's internal API, for Berth's own services.",
            Self::Issuer => "This is token-issuer's API.",
            Self::SparkConnect => {
                "This is spark-proxy, which serves Spark Connect only (gRPC, POST /spark.connect.SparkConnectService/…)."
            }
        }
    }
}

/// The ports that can send `reason`.
pub const fn ports(reason: Reason) -> &'static [Port] {
    match reason {
        Reason::TokenMissing
        | Reason::HeaderMissing
        | Reason::HeaderDuplicate
        | Reason::SessionMismatch
        | Reason::SparkSessionTaken
        | Reason::TlsRequired
        | Reason::ProxyDraining
        | Reason::MalformedMessage
        | Reason::CompressedRequest
        | Reason::BackendLost
        | Reason::OperationLost => &[SparkConnect],
        // session-manager verifies session tokens for the proxy.
        Reason::TokenMalformed
        | Reason::TokenExpired
        | Reason::TokenRevoked
        | Reason::TokenInvalid
        | Reason::CatalogUnavailable
        | Reason::TooManyWaiting => &[Internal, SparkConnect],
        Reason::ComputeReleased => &[Public, SparkConnect],
        Reason::ClusterNotActive | Reason::SessionWarming | Reason::BackendUnavailable => {
            &[Public, Internal, SparkConnect]
        }
        Reason::CallerUnknown | Reason::Conflict | Reason::Internal => APIS,
        Reason::InUse | Reason::ManagedByConfig | Reason::AlreadyExists | Reason::RequestIdReused => {
            &[Public]
        }
        Reason::NotAuthorized
        | Reason::OrgDisabled
        | Reason::InvalidArgument
        | Reason::SessionClosed
        | Reason::SessionFailed
        | Reason::QuotaExceeded
        | Reason::RateLimited
        | Reason::ControlPlaneUnavailable
        | Reason::UnknownMethod => EVERYWHERE,
    }
}

/// Whether `port` is declared to send `reason`.
pub fn is_sent_at(reason: Reason, port: Port) -> bool {
    ports(reason).contains(&port)
}

/// In debug builds panics if a port sends an error that [`ports`] does not declare for it. `reason`
/// is the value of the trailer `berth-reason`.
pub fn check_sent(port: Port, reason: &[u8]) {
    debug_assert!(
        Reason::ALL
            .iter()
            .any(|known| known.as_str().as_bytes() == reason && is_sent_at(*known, port)),
        "{} is sent at {port:?}: declare it in session_proto::ports and in docs/errors.md",
        reason.escape_ascii()
    );
}

/// The error for a call that `here` does not serve: its service, and the address that the caller
/// needs.
pub fn misdirected(path: &str, here: Port) -> Refused {
    let elsewhere = match path {
        _ if path.starts_with("/spark.connect.") => {
            "Spark Connect clients connect to spark-proxy (port 8085): use the connection string \
             that `berth token <session>` prints."
        }
        _ if path.starts_with("/berth.v1.TokenService/") => {
            "Tokens are made by token-issuer (port 8083): set BERTH_ISSUER, or --issuer, to its address."
        }
        _ if path.starts_with("/berth.v1.") => {
            "Sessions, clusters, catalogs and organizations are at session-manager (port 8081): \
             set BERTH_MANAGER, or --manager, to its address."
        }
        _ if path.starts_with("/berth.internal.") => {
            "Only Berth's own services make this call, at session-manager's internal port (8082)."
        }
        _ => "There is no such method.",
    };
    let own = match here {
        Public => path.starts_with("/berth.v1.") && !path.starts_with("/berth.v1.TokenService/"),
        Internal => path.starts_with("/berth.internal."),
        Issuer => path.starts_with("/berth.v1.TokenService/"),
        SparkConnect => path.starts_with("/spark.connect."),
    };
    let elsewhere = if own {
        "There is no such method: this server may be older than its client."
    } else {
        elsewhere
    };
    Refused::new(Reason::UnknownMethod, format!("{} {elsewhere}", here.serves()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_at_the_wrong_port_is_told_the_right_one() {
        for (here, path, right) in [
            (Public, "/spark.connect.SparkConnectService/Config", "8085"),
            (Issuer, "/spark.connect.SparkConnectService/Config", "8085"),
            (Internal, "/spark.connect.SparkConnectService/Config", "8085"),
            (Public, "/berth.v1.TokenService/IssueSessionToken", "BERTH_ISSUER"),
            (Issuer, "/berth.v1.SessionService/ListSessions", "BERTH_MANAGER"),
            (SparkConnect, "/berth.v1.OrgService/ListOrgs", "BERTH_MANAGER"),
            (SparkConnect, "/berth.v1.TokenService/ListTokens", "BERTH_ISSUER"),
            (Public, "/berth.internal.v1.RouteService/ResolveRoute", "8082"),
            (Public, "/berth.v1.SessionService/New", "older"),
            (Public, "/other.Service/Call", "There is no such method."),
        ] {
            let refused = misdirected(path, here);
            assert_eq!(refused.reason, Reason::UnknownMethod);
            let text = refused.message;
            assert!(
                text.contains(right) && text.starts_with("This is "),
                "{path}: {text}"
            );
        }
    }

    #[test]
    #[should_panic(expected = "declare it")]
    fn an_undeclared_error_is_noticed() {
        check_sent(Issuer, Reason::TlsRequired.as_str().as_bytes());
    }
}
