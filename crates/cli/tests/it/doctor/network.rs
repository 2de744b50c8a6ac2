//! Faults on the way to a server: peers that are broken in one way each.

use super::{Case, Rig};
use crate::support::free_address;
use crate::support::grpc_peer::{Script, scripted};
use crate::support::tcp_peer::{Unreachable, Validity, answering, closing, cutting, silent, unreachable};
use std::net::SocketAddr;
use std::time::Duration;
use tonic::Code;

/// A TLS alert of the level fatal.
const PROTOCOL_VERSION: &[u8] = &[0x15, 3, 3, 0, 2, 2, 70];
const HANDSHAKE_FAILURE: &[u8] = &[0x15, 3, 3, 0, 2, 2, 40];
const HTTP1: &[u8] = b"HTTP/1.1 400 Bad Request\r\nserver: nginx\r\ncontent-length: 0\r\n\r\n";
const REDIS: &[u8] = b"-ERR unknown command 'PRI'\r\n";

/// session-manager at this address.
fn manager(verdict: &'static str, address: &str) -> Case {
    Case::new(verdict, "session-manager")
        .env("BERTH_KEY", "berth_sa_x")
        .env("BERTH_MANAGER", address)
}

fn plain(verdict: &'static str, address: SocketAddr) -> Case {
    manager(verdict, &format!("http://{address}"))
}

fn tls(verdict: &'static str, address: SocketAddr) -> Case {
    manager(verdict, &format!("https://localhost:{}", address.port()))
}

pub(super) async fn cases(rig: &Rig) -> (Vec<Case>, Unreachable) {
    let held = unreachable().await;
    let refused = free_address();
    let mut cases = vec![
        manager("dns-not-found", "https://no-such-host.invalid:8081"),
        plain("connection-refused", refused),
        plain("host-unreachable", held.address),
        plain("closed-without-answer", closing().await),
        plain("no-answer", silent().await),
        plain("http1-only", answering(HTTP1).await),
        plain("not-http2", answering(REDIS).await),
        plain("tls-expected", answering(HANDSHAKE_FAILURE).await),
        tls("closed-without-answer", closing().await),
        tls("no-answer", silent().await),
        tls("not-http2", answering(REDIS).await),
        tls("plaintext-expected", answering(HTTP1).await),
        tls("plaintext-expected", rig.stack.manager),
        tls("tls-version", answering(PROTOCOL_VERSION).await),
        tls("tls-failed", answering(HANDSHAKE_FAILURE).await),
    ];
    cases.extend(certificates(rig).await);
    cases.extend(gateways().await);
    cases.extend(strings(rig).await);
    (cases, held)
}

/// TLS servers with certificates that are wrong in one way each.
async fn certificates(rig: &Rig) -> Vec<Case> {
    let authority = &rig.authority;
    let ca = rig.berth.write("authority.pem", &authority.pem);
    let good = authority.server("localhost", Validity::Now, true, false).await;
    let trusted = |case: Case| case.env("BERTH_CA", &ca);
    vec![
        tls("tls-private-authority", good),
        plain("tls-expected", good),
        trusted(tls(
            "tls-name-mismatch",
            authority
                .server("other.example", Validity::Now, true, false)
                .await,
        )),
        trusted(tls(
            "tls-certificate-expired",
            authority.server("localhost", Validity::Past, true, false).await,
        )),
        trusted(tls(
            "tls-certificate-not-yet-valid",
            authority.server("localhost", Validity::Future, true, false).await,
        )),
        trusted(tls(
            "no-alpn",
            authority.server("localhost", Validity::Now, false, false).await,
        )),
        trusted(tls(
            "tls-client-certificate-required",
            authority.server("localhost", Validity::Now, true, true).await,
        )),
    ]
}

/// What gateways answer in place of Berth.
async fn gateways() -> Vec<Case> {
    let mut cases = Vec::new();
    for (verdict, script) in [
        (
            "gateway-refused",
            Script::Http(302, "location", "https://login.example/"),
        ),
        ("gateway-refused", Script::Http(403, "server", "waf")),
        ("gateway-no-backend", Script::Http(503, "server", "envoy")),
        (
            "gateway-no-backend",
            Script::Status(Code::Unavailable, "no healthy upstream"),
        ),
        ("headers-too-large", Script::Http(431, "server", "nginx")),
        ("message-too-large", Script::Http(413, "server", "nginx")),
        (
            "message-too-large",
            Script::Status(Code::ResourceExhausted, "larger than max"),
        ),
        ("not-grpc", Script::Web),
        ("not-grpc", Script::Http(404, "server", "nginx")),
        ("trailers-stripped", Script::NoTrailers),
        ("cut-during-call", Script::Reset),
        (
            "wrong-service",
            Script::Status(Code::Unimplemented, "unknown service"),
        ),
        ("berth-fault", Script::Status(Code::Internal, "a fault")),
    ] {
        cases.push(plain(verdict, scripted(script).await));
    }
    cases
}

/// The Spark Connect port, by a connection string alone.
async fn strings(rig: &Rig) -> Vec<Case> {
    let session = rig.stack.active("ada").await;
    let token = rig.stack.issue("ada", &session).await.token;
    let string = rig.stack.string(&token, &session);
    let at = |host: &str, address: SocketAddr| {
        format!(
            "sc://{host}:{}/;token={token};x-session-id={session}",
            address.port()
        )
    };
    let cutting = cutting(rig.stack.proxy, Duration::from_millis(900)).await;
    let stripped = scripted(Script::NoTrailers).await;
    let too_large = scripted(Script::Http(413, "server", "nginx")).await;
    let part = "spark-proxy";
    vec![
        // PySpark uses TLS for every host but the literal localhost.
        rig.string("plaintext-expected", part, &at("127.0.0.1", rig.stack.proxy)),
        rig.string("connection-refused", part, &at("localhost", free_address())),
        rig.string("trailers-stripped", part, &at("localhost", stripped)),
        rig.string("message-too-large", part, &at("localhost", too_large)),
        rig.string("cut-while-quiet", part, &at("localhost", cutting))
            .args(["--quiet-for", "5s"]),
        rig.string("ok", "", &string).args(["--quiet-for", "1s"]),
        rig.string("ok", "", &string).args(["--message-bytes", "3000000"]),
    ]
}
