//! Who may use the local side. A TCP port of the loopback interface is open to every user of the
//! machine, so clients send a secret that is new in each run, unless the kernel already
//! limits the clients to this user.

use http::{HeaderMap, HeaderName, header};
use std::fmt;
use subtle::ConstantTimeEq as _;

/// Header with the secret; a parameter of the connection string becomes a header in every client.
pub(super) static SECRET_HEADER: HeaderName = HeaderName::from_static("x-berth-secret");
static AUTHENTICATION: HeaderName = HeaderName::from_static("authentication");

/// Which connections need no secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trusted {
    /// None.
    SecretOnly,
    /// Clients of the UNIX socket, which only this user can open.
    SocketOwner,
    /// Processes of this user.
    OwnProcesses,
    /// All of this machine.
    AllLocalUsers,
}

/// The rule for local clients, and the secret of this run.
pub(super) struct Access {
    trusted: Trusted,
    secret: String,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("trusted", &self.trusted)
            .finish_non_exhaustive()
    }
}

/// Whether a call has the secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Secret {
    Right,
    Wrong,
    Absent,
}

impl Access {
    fn new(trusted: Trusted) -> Self {
        // Letters and digits only: every client passes them on unchanged.
        let secret = format!("{:032x}", rand::random::<u128>());
        Self { trusted, secret }
    }

    pub(super) fn secret() -> Self {
        Self::new(Trusted::SecretOnly)
    }

    pub(super) fn socket() -> Self {
        Self::new(Trusted::SocketOwner)
    }

    pub(super) fn own_processes() -> Self {
        Self::new(Trusted::OwnProcesses)
    }

    pub(super) fn all_local_users() -> Self {
        Self::new(Trusted::AllLocalUsers)
    }

    /// Whether a new connection needs no secret. `is_own` asks the kernel for the client's user.
    pub(super) async fn trusts_connection(&self, is_own: impl Future<Output = bool>) -> bool {
        match self.trusted {
            Trusted::SecretOnly => false,
            Trusted::SocketOwner | Trusted::OwnProcesses => is_own.await,
            Trusted::AllLocalUsers => true,
        }
    }

    /// Compares the secret of a call, in its own header or in place of a token.
    pub(super) fn check(&self, headers: &HeaderMap) -> Secret {
        if let Some(sent) = headers.get(&SECRET_HEADER) {
            return self.compare(sent.as_bytes());
        }
        let token = headers
            .get(header::AUTHORIZATION)
            .or_else(|| headers.get(&AUTHENTICATION));
        match token.and_then(|value| value.as_bytes().strip_prefix(b"Bearer ")) {
            Some(sent) => self.compare(sent),
            None => Secret::Absent,
        }
    }

    fn compare(&self, sent: &[u8]) -> Secret {
        if bool::from(sent.ct_eq(self.secret.as_bytes())) {
            Secret::Right
        } else {
            Secret::Wrong
        }
    }

    /// The connection string of a port.
    pub(super) fn connection_url(&self, port: u16) -> String {
        match self.trusted {
            Trusted::AllLocalUsers => format!("sc://127.0.0.1:{port}/"),
            Trusted::SecretOnly | Trusted::SocketOwner | Trusted::OwnProcesses => {
                format!("sc://127.0.0.1:{port}/;{SECRET_HEADER}={}", self.secret)
            }
        }
    }

    /// Whether other users of this machine can send queries without the secret.
    pub(super) fn is_open_to_others(&self) -> bool {
        self.trusted == Trusted::AllLocalUsers
    }

    /// The rule as it is printed.
    pub(super) fn note(&self) -> &'static str {
        match self.trusted {
            Trusted::SecretOnly => {
                "The connection string has a secret of this run, which keeps out other users of this machine."
            }
            Trusted::SocketOwner => "Only your user can open the socket.",
            Trusted::OwnProcesses => {
                "Programs of your user need no secret; others need the one in the connection string."
            }
            Trusted::AllLocalUsers => {
                "Warning: every user of this machine can send queries as you while this runs (--trust-local-users)."
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_is_new_in_each_run_and_safe_in_a_connection_string() {
        let [one, other] = [Access::secret(), Access::secret()];
        assert_ne!(one.secret, other.secret);
        assert_eq!(one.secret.len(), 32);
        assert!(one.secret.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert!(one.connection_url(15002).ends_with(&one.secret));
        assert!(!format!("{one:?}").contains(&one.secret));
        assert_eq!(Access::all_local_users().connection_url(7), "sc://127.0.0.1:7/");
    }

    #[test]
    fn the_secret_is_accepted_in_its_header_and_in_place_of_a_token() {
        let access = Access::secret();
        let check = |name: &str, value: String| {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::try_from(name).unwrap(), value.parse().unwrap());
            access.check(&headers)
        };
        let secret = || access.secret.clone();
        assert_eq!(check("x-berth-secret", secret()), Secret::Right);
        assert_eq!(
            check("authorization", format!("Bearer {}", secret())),
            Secret::Right
        );
        assert_eq!(
            check("authentication", format!("Bearer {}", secret())),
            Secret::Right
        );
        assert_eq!(check("authorization", secret()), Secret::Absent);
        assert_eq!(check("x-berth-secret", secret()[..31].to_owned()), Secret::Wrong);
        assert_eq!(check("x-berth-secret", "0".repeat(32)), Secret::Wrong);
        assert_eq!(access.check(&HeaderMap::new()), Secret::Absent);
    }
}
