//! The way to a server, one step at a time: name, TCP, TLS, HTTP/2. Each
//! failure is told apart from those that look alike.

use super::fault::{Checked, Fault, Finding};
use rustls::{AlertDescription, CertificateError, Error as TlsError};
use service_kit::tls::{ClientTls, ClientTlsFiles, H2};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What a client of HTTP/2 sends first: preface and an empty SETTINGS frame.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
/// Types of frames with which a server can begin.
const SETTINGS_FRAME: u8 = 4;
const GOAWAY_FRAME: u8 = 7;

/// A byte stream, plain or TLS.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A server to reach.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: bool,
    /// Trusted authorities in place of the system's.
    pub(crate) ca: Option<PathBuf>,
    /// Limit of each step.
    pub(crate) limit: Duration,
}

impl Endpoint {
    /// `host:port` for messages and `:authority`.
    pub(crate) fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The addresses of the host.
    pub(crate) async fn resolve(&self) -> Checked<Vec<SocketAddr>> {
        let host = self.host.trim_matches(['[', ']']);
        let found = tokio::time::timeout(self.limit, tokio::net::lookup_host((host, self.port))).await;
        let problem = match found {
            Ok(Ok(addresses)) => {
                let addresses: Vec<SocketAddr> = addresses.collect();
                if !addresses.is_empty() {
                    return Ok(addresses);
                }
                "the name has no address".to_owned()
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {:?}", self.limit),
        };
        Err(Fault::DnsNotFound.seen(format!("{}: {problem}", self.host)))
    }

    /// A TCP connection to the first address that accepts one.
    pub(crate) async fn connect(&self) -> Checked<TcpStream> {
        let mut problem = Fault::HostUnreachable.seen(format!("{} has no address", self.host));
        for address in self.resolve().await? {
            let connected = tokio::time::timeout(self.limit, TcpStream::connect(address)).await;
            problem = match connected {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
                    Fault::ConnectionRefused.seen(format!("nothing listens at {address}"))
                }
                Ok(Err(error)) => Fault::HostUnreachable.seen(format!("{address}: {error}")),
                Err(_) => {
                    Fault::HostUnreachable.seen(format!("{address} does not answer within {:?}", self.limit))
                }
            };
        }
        Err(problem)
    }

    /// A stream over which HTTP/2 can be spoken: TCP, and TLS with ALPN h2.
    pub(crate) async fn open(&self) -> Checked<Box<dyn Stream>> {
        let tcp = self.connect().await?;
        if !self.tls {
            return Ok(Box::new(tcp));
        }
        match self.handshake(tcp).await {
            Ok(stream) => Ok(stream),
            Err(TlsProblem::Finding(finding)) => Err(finding),
            Err(TlsProblem::NotTls(seen)) => Err(self.tell_plaintext(&seen).await),
        }
    }

    async fn handshake(&self, tcp: TcpStream) -> Result<Box<dyn Stream>, TlsProblem> {
        let files = ClientTlsFiles {
            ca: self.ca.clone(),
            ..ClientTlsFiles::default()
        };
        let tls = ClientTls::load(&files, H2)
            .map_err(|error| Fault::AuthorityFileInvalid.seen(error.to_string()))?;
        let name = tls
            .server_name(&self.host)
            .map_err(|error| Fault::AddressInvalid.seen(error.to_string()))?;
        let connected = tokio::time::timeout(self.limit, tls.connector().connect(name, tcp)).await;
        let stream = match connected {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(self.tls_problem(&error)),
            Err(_) => return Err(TlsProblem::NotTls(Seen::Silence)),
        };
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(no_alpn().into());
        }
        Ok(Box::new(stream))
    }

    fn tls_problem(&self, error: &io::Error) -> TlsProblem {
        let Some(tls) = tls_error(error) else {
            return TlsProblem::NotTls(Seen::Closed);
        };
        match tls {
            TlsError::InvalidCertificate(problem) => self.certificate_problem(problem).into(),
            TlsError::AlertReceived(alert) => alert_finding(*alert).into(),
            TlsError::PeerIncompatible(problem) => Fault::TlsVersion.seen(format!("{problem:?}")).into(),
            TlsError::InvalidMessage(_) => TlsProblem::NotTls(Seen::Other(String::new())),
            other => Fault::TlsFailed.seen(other.to_string()).into(),
        }
    }

    fn certificate_problem(&self, problem: &CertificateError) -> Finding {
        let host = &self.host;
        match problem {
            CertificateError::NotValidForName => {
                Fault::TlsNameMismatch.seen(format!("the certificate does not name {host}"))
            }
            CertificateError::NotValidForNameContext { presented, .. } => Fault::TlsNameMismatch.seen(
                format!("the certificate names {} and not {host}", presented.join(", ")),
            ),
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                Fault::TlsCertificateExpired.seen(problem.to_string())
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Fault::TlsCertificateNotYetValid.seen(problem.to_string())
            }
            CertificateError::UnknownIssuer => Fault::TlsPrivateAuthority
                .seen(format!("no trusted authority signed the certificate of {host}")),
            // The system's verifier has an error of its own for a certificate
            // that signed itself.
            CertificateError::Other(other) => {
                Fault::TlsPrivateAuthority.seen(format!("the certificate of {host} is not trusted: {other}"))
            }
            other => Fault::TlsFailed.seen(other.to_string()),
        }
    }

    /// After a failed TLS handshake: does the server speak plaintext?
    async fn tell_plaintext(&self, seen: &Seen) -> Finding {
        if let Ok(mut tcp) = self.connect().await {
            match first_answer(&mut tcp, self.limit).await {
                Seen::Http2 => {
                    return Fault::PlaintextExpected
                        .seen("TLS was offered, and the server speaks plaintext HTTP/2");
                }
                Seen::Http1(line) => {
                    return Fault::PlaintextExpected.seen(format!(
                        "TLS was offered, and a plaintext HTTP/1.1 server answers: {line}"
                    ));
                }
                Seen::Silence | Seen::Closed | Seen::Tls | Seen::Alert(_) | Seen::Other(_) => {}
            }
        }
        match seen {
            Seen::Silence => Fault::NoAnswer.seen("no answer to the TLS handshake"),
            Seen::Closed => {
                Fault::ClosedWithoutAnswer.seen("the connection was closed during the TLS handshake")
            }
            Seen::Other(_) | Seen::Http2 | Seen::Http1(_) | Seen::Tls | Seen::Alert(_) => {
                Fault::NotHttp2.seen("the answer is neither TLS nor HTTP")
            }
        }
    }

    /// Checks that HTTP/2 is spoken on a new connection.
    pub(crate) async fn check_http2(&self) -> Checked<()> {
        let mut stream = self.open().await?;
        let seen = first_answer(&mut stream, self.limit).await;
        drop(stream);
        let problem = match seen {
            Seen::Http2 => return Ok(()),
            Seen::Tls => return Err(Fault::TlsExpected.seen("plaintext was sent, and the server speaks TLS")),
            Seen::Alert(alert) => return Err(alert_finding(alert)),
            Seen::Http1(line) => Fault::Http1Only.seen(format!("the answer to HTTP/2 was: {line}")),
            Seen::Closed => Fault::ClosedWithoutAnswer.seen("the connection was closed before any answer"),
            Seen::Silence => Fault::NoAnswer.seen(format!("no answer within {:?}", self.limit)),
            Seen::Other(first) => Fault::NotHttp2.seen(format!("the answer begins with {first:?}")),
        };
        // Servers differ in what they do to plaintext on a TLS port.
        if !self.tls && self.speaks_tls().await {
            return Err(Fault::TlsExpected.seen("plaintext was sent, and the server speaks TLS"));
        }
        Err(problem)
    }

    async fn speaks_tls(&self) -> bool {
        let with_tls = Self {
            tls: true,
            ..self.clone()
        };
        let Ok(tcp) = self.connect().await else {
            return false;
        };
        match with_tls.handshake(tcp).await {
            Ok(_) => true,
            // Any verdict on a certificate, ALPN or version needs a TLS server.
            Err(TlsProblem::Finding(_)) => true,
            Err(TlsProblem::NotTls(_)) => false,
        }
    }
}

/// Outcome of a TLS handshake that failed.
enum TlsProblem {
    Finding(Finding),
    NotTls(Seen),
}

impl From<Finding> for TlsProblem {
    fn from(finding: Finding) -> Self {
        Self::Finding(finding)
    }
}

/// First answer of a server.
enum Seen {
    Http2,
    Http1(String),
    Tls,
    Alert(AlertDescription),
    Closed,
    Silence,
    Other(String),
}

fn tls_error(error: &io::Error) -> Option<&TlsError> {
    error.get_ref()?.downcast_ref()
}

fn no_alpn() -> Finding {
    Fault::NoAlpn.seen("TLS works, and the server did not choose h2 in ALPN")
}

fn alert_finding(alert: AlertDescription) -> Finding {
    let text = format!("the server ended TLS with the alert {alert:?}");
    match alert {
        AlertDescription::NoApplicationProtocol => no_alpn(),
        AlertDescription::CertificateRequired | AlertDescription::BadCertificate => {
            Fault::TlsClientCertificateRequired.seen("the server asks for a client certificate")
        }
        AlertDescription::ProtocolVersion => Fault::TlsVersion.seen(text),
        AlertDescription::UnrecognisedName => Fault::TlsNameMismatch.seen(text),
        _ => Fault::TlsFailed.seen(text),
    }
}

/// Sends the beginning of HTTP/2 and classifies the first answer.
async fn first_answer(stream: &mut (impl Stream + ?Sized), limit: Duration) -> Seen {
    let exchange = async {
        // A server that has closed already may have sent the reason before.
        let written = stream.write_all(HELLO).await;
        let _ = written.and(stream.flush().await);
        let mut first = vec![0; 256];
        let mut len = 0;
        // A frame's head has nine bytes.
        while len < 9 {
            let read = stream.read(&mut first[len..]).await?;
            if read == 0 {
                break;
            }
            len += read;
        }
        first.truncate(len);
        io::Result::Ok(first)
    };
    match tokio::time::timeout(limit, exchange).await {
        Err(_) => Seen::Silence,
        Ok(Ok(first)) => classify(&first),
        Ok(Err(error)) => match tls_error(&error) {
            Some(TlsError::AlertReceived(alert)) => Seen::Alert(*alert),
            Some(_) | None => Seen::Closed,
        },
    }
}

fn classify(first: &[u8]) -> Seen {
    match first {
        [] => Seen::Closed,
        [_, _, _, SETTINGS_FRAME | GOAWAY_FRAME, _, 0, 0, 0, 0, ..] => Seen::Http2,
        [0x15 | 0x16, 3, ..] => Seen::Tls,
        [b'H', b'T', b'T', b'P', b'/', ..] => {
            let text = String::from_utf8_lossy(first);
            Seen::Http1(text.lines().next().unwrap_or_default().trim().to_owned())
        }
        other => Seen::Other(String::from_utf8_lossy(&other[..other.len().min(16)]).into_owned()),
    }
}
