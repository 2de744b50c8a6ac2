//! The faults that `berth doctor` names, with exit code and fix. docs/cli.md
//! has the same table; a test compares the two.

/// Kind of a fault. Its number is the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Worth to know; not a fault.
    Note = 0,
    /// Settings of this machine.
    Settings = 10,
    /// The way to the server.
    Network = 11,
    /// TLS, HTTP/2 and what speaks them on the way.
    Protocol = 12,
    /// Credentials and tokens.
    Credential = 13,
    /// The session and its compute.
    Session = 14,
    /// Berth's services.
    Service = 15,
    /// Quotas and rates.
    Limit = 16,
}

macro_rules! faults {
    ($($name:ident $id:literal $kind:ident $fix:literal;)*) => {
        /// A fault, or a note.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Fault { $($name),* }

        impl Fault {
            /// All of them, in the order of the documentation.
            #[cfg(test)]
            pub(crate) const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The verdict's id, which does not change.
            pub(crate) const fn id(self) -> &'static str {
                match self { $(Self::$name => $id),* }
            }

            /// Its kind.
            pub(crate) const fn kind(self) -> Kind {
                match self { $(Self::$name => Kind::$kind),* }
            }

            /// What to do.
            pub(crate) const fn fix(self) -> &'static str {
                match self { $(Self::$name => $fix),* }
            }
        }
    };
}

impl Fault {
    /// The exit code of `berth doctor`.
    pub(crate) const fn exit_code(self) -> u8 {
        self.kind() as u8
    }
}

faults! {
    ConfigFileInvalid "config-file-invalid" Settings "Correct the named line of the file, or create the context again with `berth context set`.";
    ContextUnknown "context-unknown" Settings "Select an existing context with --context or `berth context use`.";
    AddressInvalid "address-invalid" Settings "Write the address like https://berth.example.org:8081.";
    PlaintextRefused "plaintext-refused" Settings "Use https://. Only in a network that you trust: --insecure.";
    AuthorityFileInvalid "authority-file-invalid" Settings "Set --ca (BERTH_CA) to a PEM file with the certificate of the authority.";
    ConnectionStringInvalid "connection-string-invalid" Settings "Copy the whole string that `berth token issue SESSION` prints, unchanged and in quotes.";
    ClientNeedsTls "client-needs-tls" Settings "Use a proxy with TLS, or PySpark 4 with the literal host localhost (docs/clients.md).";

    DnsNotFound "dns-not-found" Network "Check the host's spelling, the VPN and the DNS server of this machine.";
    ConnectionRefused "connection-refused" Network "Check the port and that the service runs; a firewall can refuse too.";
    HostUnreachable "host-unreachable" Network "Check firewall, VPN and route: packets to this port get no answer.";
    ClosedWithoutAnswer "closed-without-answer" Network "A load balancer or firewall cuts new connections: check its backend, its allowed addresses, and whether it expects PROXY protocol.";
    NoAnswer "no-answer" Network "Something accepts the connection and stays silent: check that the port is Berth's, and what stands in front of it.";
    CutDuringCall "cut-during-call" Network "Something on the way ended the connection during the call: check the load balancer's logs, and that it forwards HTTP/2.";
    CutWhileQuiet "cut-while-quiet" Network "Raise the idle timeout of the load balancer or firewall above 60 s (docs/config.md, load balancers).";

    TlsNameMismatch "tls-name-mismatch" Protocol "Use a host that the certificate names, or issue a certificate for this host.";
    TlsPrivateAuthority "tls-private-authority" Protocol "Set --ca (BERTH_CA) to the authority's PEM file; for PySpark also GRPC_DEFAULT_SSL_ROOTS_FILE_PATH.";
    TlsCertificateExpired "tls-certificate-expired" Protocol "The operator must renew the certificate. If the date is wrong, set the clock of this machine.";
    TlsCertificateNotYetValid "tls-certificate-not-yet-valid" Protocol "Set the clock of this machine; if it is right, the certificate was made with a wrong one.";
    TlsClientCertificateRequired "tls-client-certificate-required" Protocol "This port is for Berth's own services: check the address and the port.";
    TlsVersion "tls-version" Protocol "The server must offer TLS 1.2 or 1.3.";
    TlsFailed "tls-failed" Protocol "Check what terminates TLS on this port.";
    TlsExpected "tls-expected" Protocol "The server speaks TLS: use https://, or use_ssl=true in the connection string.";
    PlaintextExpected "plaintext-expected" Protocol "The server speaks plaintext: use http:// on loopback. For Spark clients use the literal host localhost without use_ssl, or configure TLS (docs/clients.md).";
    NoAlpn "no-alpn" Protocol "The server or load balancer must offer h2 in ALPN; current gRPC clients refuse a connection without it.";
    Http1Only "http1-only" Protocol "A proxy on the way speaks HTTP/1.1 only: it must forward HTTP/2 to Berth, or pass TCP through.";
    NotHttp2 "not-http2" Protocol "Another service answers on this port: check the address and the port.";
    NotGrpc "not-grpc" Protocol "A web server answers in place of Berth: check the address, and the path rules of the gateway.";
    GatewayRefused "gateway-refused" Protocol "A gateway in front of Berth demands its own sign-in: exempt this port from it.";
    GatewayNoBackend "gateway-no-backend" Protocol "The gateway in front of Berth reaches no healthy backend: its operator must check it.";
    TrailersStripped "trailers-stripped" Protocol "A proxy on the way removes HTTP trailers: it must forward gRPC, not HTTP/1.1 to its backend.";
    HeadersTooLarge "headers-too-large" Protocol "Use a token with fewer groups or claims, or have the proxy on the way allow larger headers.";
    MessageTooLarge "message-too-large" Protocol "Raise the limit of the body on the way (for example client_max_body_size), or send smaller data.";
    WrongService "wrong-service" Protocol "Exchange the addresses: session-manager is port 8081, token-issuer 8083, Spark Connect 8085. If they are right, the server is older than this command.";

    CredentialMissing "credential-missing" Credential "Sign in with `berth login`, or set BERTH_KEY or BERTH_TOKEN.";
    CredentialAmbiguous "credential-ambiguous" Credential "Use one credential, and unset the other variables.";
    CredentialRejected "credential-rejected" Credential "Get a new key from your platform team, or a new token: `berth login`.";
    CredentialExpired "credential-expired" Credential "Get a new token from your identity provider: `berth login`.";
    CredentialIsSessionToken "credential-is-session-token" Credential "A session token is for Spark clients; the APIs need your key or sign-in.";
    LoginNeeded "login-needed" Credential "Run `berth login`.";
    IdentityProviderUnreachable "identity-provider-unreachable" Credential "Check the network to the identity provider and --oidc-issuer.";
    TokenMissing "token-missing" Credential "Use the string that `berth token issue SESSION` prints.";
    TokenMalformed "token-malformed" Credential "Use a session token: `berth token issue SESSION`. A service-account key does not serve Spark clients.";
    TokenExpired "token-expired" Credential "Get a new one: `berth token issue SESSION`, and build a new SparkSession.";
    TokenRevoked "token-revoked" Credential "Get a new one: `berth token issue SESSION`, and build a new SparkSession.";
    TokenForeign "token-foreign" Credential "The token is of another installation: use a string of this one, and check the host.";
    SessionMismatch "session-mismatch" Credential "x-session-id names another session than the token: use the string as it was printed.";
    ClockOff "clock-off" Credential "Set the clock of this machine, for example by NTP.";
    OrganizationDisabled "organization-disabled" Credential "Ask the administrator of your organization.";

    SessionNotFound "session-not-found" Session "Check the id with `berth session list --all`, and which account you use: `berth whoami`.";
    SessionClosed "session-closed" Session "Create another: `berth session create`. `berth session events SESSION` shows who closed it.";
    SessionFailed "session-failed" Session "Correct the cause and create another; `berth session describe SESSION` has details.";
    SessionStarting "session-starting" Session "Wait: `berth session describe SESSION --wait`.";
    SessionIdle "session-idle" Note "The next query starts its compute; `berth session warm SESSION` does so now.";
    ComputeUnavailable "compute-unavailable" Session "Try again; if it remains, `berth session events SESSION` shows why compute is lost.";
    CatalogUnavailable "catalog-unavailable" Session "Test it: `berth catalog test NAME --cluster CLUSTER`.";
    ClusterNotActive "cluster-not-active" Session "Choose another: `berth cluster list`.";
    ClientVersion "client-version" Session "Install a client version that the cluster supports: `berth cluster describe NAME`.";

    StateStoreUnavailable "state-store-unavailable" Service "Berth's Redis is away or rejects changes: running queries go on. Try again; the operator finds help in docs/runbook.md.";
    ControlPlaneUnavailable "control-plane-unavailable" Service "session-manager is away behind this service: try again; the operator must check it.";
    ProxyDraining "proxy-draining" Service "This proxy is stopping: connect again, another one answers.";
    ConsoleUnreachable "console-unreachable" Service "Check the console's address (--console).";
    Berth "berth-fault" Service "Tell your platform team the text and the time.";

    QuotaExceeded "quota-exceeded" Limit "Close, end or revoke what the text names, or have the limit raised.";
    RateLimited "rate-limited" Limit "Wait as long as the text says, and send fewer calls.";

    ProxyEnvironment "proxy-environment" Note "PySpark uses the proxy of this variable, this check does not: add the host to no_proxy if clients fail.";
    ClientAuthority "client-authority" Note "PySpark trusts its own list: set GRPC_DEFAULT_SSL_ROOTS_FILE_PATH to the authority's file (`berth env` does).";
}

/// A fault that was found, and what was seen of it.
#[derive(Debug, Clone)]
pub(crate) struct Finding {
    pub(crate) fault: Fault,
    pub(crate) detail: String,
}

/// Result of a check.
pub(crate) type Checked<T> = Result<T, Finding>;

impl Fault {
    /// This fault with what was seen.
    pub(crate) fn seen(self, detail: impl Into<String>) -> Finding {
        Finding {
            fault: self,
            detail: detail.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn ids_are_unique_and_fixes_are_sentences() {
        let ids: BTreeSet<&str> = Fault::ALL.iter().map(|fault| fault.id()).collect();
        assert_eq!(ids.len(), Fault::ALL.len());
        for fault in Fault::ALL {
            assert!(fault.fix().ends_with('.'), "{}", fault.id());
        }
    }

    /// The table of docs/cli.md, in both directions and in its order.
    #[test]
    fn the_documentation_has_every_fault() {
        let text = include_str!("../../../../docs/cli.md");
        let documented: Vec<(String, String)> = text
            .lines()
            .filter_map(|line| {
                let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
                let id = cells.next()?.strip_suffix('`')?;
                let code = cells.next()?;
                code.parse::<u8>().ok()?;
                Some((id.to_owned(), code.to_owned()))
            })
            .collect();
        let declared: Vec<(String, String)> = Fault::ALL
            .iter()
            .map(|fault| (fault.id().to_owned(), fault.exit_code().to_string()))
            .collect();
        assert_eq!(documented, declared);
    }
}
