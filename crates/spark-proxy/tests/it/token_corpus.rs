//! The negative corpus of session-token, and headers of every kind, through a
//! real proxy over the wire: code and reason of each, and nothing passes.

#[allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "shared with session-token"
)]
#[path = "../../../session-token/tests/it/common/mod.rs"]
mod forge;

use crate::common;
use crate::common::{Ask, Raw, Rig, flags, kinds, within};
use forge::corpus::{RIG, rows};
use http::HeaderValue;
use session_core::Reason;
use session_token::Claims;
use std::time::Duration;
use tonic::Code;

type Headers = Vec<(&'static str, String)>;

/// What a header list may hold by default; longer ones do not reach the token.
const HEADER_LIST: usize = 16 << 10;

/// A proxy that trusts the forger's key, a minute after its tokens were made.
async fn start() -> Rig {
    let rig = Rig::with(|config| {
        let jwks = std::path::PathBuf::from(&config.tokens.keys.location);
        common::write_jwks(&jwks, &[&RIG.signer]);
    })
    .await;
    rig.clock.advance(Duration::from_secs(60));
    rig
}

fn good(rig: &Rig) -> String {
    let claims = Claims {
        epoch: 1,
        sid: rig.session.clone(),
        ..forge::claims()
    };
    RIG.signer.sign(&claims).unwrap()
}

fn with_bytes(header: &[u8]) -> Option<Ask> {
    let mut ask = Ask::spark("ExecutePlan");
    ask.headers
        .insert("authorization", HeaderValue::from_bytes(header).ok()?);
    Some(ask)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_token_of_the_corpus_is_refused_over_the_wire() {
    let rig = start().await;
    let client = rig.client().await;
    assert_eq!(client.call(Ask::execute(&good(&rig))).await.code(), Code::Ok);
    let (mut wrong, mut refused, mut unsendable) = (Vec::new(), 0, Vec::new());
    for row in rows() {
        if row.token.starts_with(' ') {
            // HTTP allows spaces after the scheme: it is the same token.
            continue;
        }
        let header = format!("Bearer {}", row.token);
        let Some(ask) = with_bytes(header.as_bytes()) else {
            unsendable.push(header);
            continue;
        };
        if header.len() > HEADER_LIST {
            // Ended before anybody reads a token, perhaps with its connection.
            if let Ok(reply) = rig.client().await.try_call(ask).await {
                let ok = reply.http == 200 && reply.code() == Code::Ok;
                if ok {
                    wrong.push(format!("{}: passed", row.name));
                }
            }
            refused += 1;
            continue;
        }
        let status = client.call(ask).await.status();
        let reason = session_proto::error::reason_of(&status);
        if (reason, status.code()) != (Some(row.reason), Code::Unauthenticated) {
            wrong.push(format!("{}: {status:?}", row.name));
        }
        if row.token.len() > 16 && status.message().contains(&row.token) {
            wrong.push(format!("{}: echoed", row.name));
        }
        refused += 1;
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    println!("{refused} tokens refused, {} cannot be sent", unsendable.len());
    assert!(refused >= 300, "{refused}");
    assert_eq!(rig.spark.seen().requests.len(), 1, "only the good one passed");

    // CR, LF and NUL: no client library sends them, HTTP/2 itself refuses them.
    assert!(unsendable.iter().any(|header| header.ends_with('\n')));
    assert!(unsendable.iter().any(|header| header.ends_with('\0')));
    for ending in ["\r", "\n", "\0", "\r\nx-session-id: s"] {
        let mut raw = Raw::connect(rig.address, &[]).await.unwrap();
        let token = format!("{}{ending}", good(&rig));
        let block = Raw::headers("/spark.connect.SparkConnectService/ExecutePlan", &token, &[]);
        raw.send(kinds::HEADERS, flags::END_HEADERS, 1, &block)
            .await
            .unwrap();
        within("it is reset", async {
            while let Some(frame) = raw.next().await {
                assert_ne!((frame.kind, frame.stream), (kinds::HEADERS, 1), "it was answered");
                if frame.kind == kinds::RST_STREAM || frame.kind == kinds::GOAWAY {
                    return;
                }
            }
        })
        .await;
    }
    assert_eq!(rig.spark.seen().requests.len(), 1);
    assert_eq!(client.call(Ask::execute(&good(&rig))).await.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_header_that_is_not_one_bearer_token_is_refused() {
    let rig = start().await;
    let client = rig.client().await;
    let token = good(&rig);
    let session = rig.session.to_string();
    let one = |name: &'static str, value: String| vec![(name, value)];
    let bearer = |text: &str| one("authorization", text.to_owned());

    let mut rows: Vec<(String, Headers, Reason)> = Vec::new();
    rows.push(("nothing".into(), Vec::new(), Reason::TokenMissing));
    // Another place for the token is no place.
    for name in [
        "x-authorization",
        "proxy-authorization",
        "www-authenticate",
        "cookie",
        "x-access-token",
        "x-auth-token",
        "x-session-token",
        "x-forwarded-authorization",
        "x-goog-iap-jwt-assertion",
        "x-amzn-oidc-data",
        "access_token",
        "token",
        "bearer",
        "grpc-metadata-authorization",
        "sec-websocket-protocol",
    ] {
        for value in [token.clone(), format!("Bearer {token}"), format!("token={token}")] {
            rows.push((
                format!("{name}: {value:.12}…"),
                one(name, value),
                Reason::TokenMissing,
            ));
        }
    }
    for text in [
        String::new(),
        "Bearer".to_owned(),
        "Bearer ".to_owned(),
        "Bearer    ".to_owned(),
        token.clone(),
        format!("Bearer{token}"),
        format!("Bearer\t{token}"),
        format!("Bearer\t {token}"),
        format!("Bearer {token} x"),
        format!("Bearer {token},Bearer {token}"),
        format!("Bearer {token}, Bearer {token}"),
        format!("Bearer {token},"),
        format!("Bearer \"{token}\""),
        format!("Bearer={token}"),
        format!("Bearer: {token}"),
        format!("Bearer:{token}"),
        format!("Bearer token={token}"),
        format!("Basic {token}"),
        "Basic YWRhOmFkYQ==".to_owned(),
        format!("Basic Bearer {token}"),
        format!("Bearer Bearer {token}"),
        format!("Digest username=\"ada\", response=\"{token}\""),
        format!("Negotiate {token}"),
        format!("NTLM {token}"),
        format!("DPoP {token}"),
        format!("MAC {token}"),
        format!("HOBA result=\"{token}\""),
        format!("Token {token}"),
        format!("JWT {token}"),
        format!("Bearer-Token {token}"),
        format!("BearerX {token}"),
        format!("XBearer {token}"),
        format!("\u{412}earer {token}"),
        format!("Bearer\u{a0}{token}"),
        format!("Bearer {token}\u{200b}"),
        "Bearer null".to_owned(),
        "Bearer undefined".to_owned(),
        "Bearer [object Object]".to_owned(),
        "Bearer ${TOKEN}".to_owned(),
        "Bearer ' OR '1'='1".to_owned(),
        "Bearer ../../etc/passwd".to_owned(),
        "Bearer %00".to_owned(),
        "Bearer berth_sa_0123456789012345678901234567890123456789012".to_owned(),
    ] {
        rows.push((
            format!("authorization: {text:.24}…"),
            bearer(&text),
            Reason::TokenMalformed,
        ));
    }
    for (first, second) in [
        (format!("Bearer {token}"), format!("Bearer {token}")),
        (format!("Bearer {token}"), "Bearer x".to_owned()),
        ("Bearer x".to_owned(), format!("Bearer {token}")),
        ("Basic YWRhOmFkYQ==".to_owned(), format!("Bearer {token}")),
        (format!("Bearer {token}"), "Basic YWRhOmFkYQ==".to_owned()),
        (format!("Bearer {token}"), String::new()),
        (String::new(), format!("Bearer {token}")),
    ] {
        let both = vec![("authorization", first.clone()), ("authorization", second)];
        rows.push((
            format!("twice, first {first:.12}…"),
            both,
            Reason::HeaderDuplicate,
        ));
    }
    let good_one = ("authorization", format!("Bearer {token}"));
    let other = "s-01234567890123456789".to_owned();
    for values in [
        vec![session.clone(), session.clone()],
        vec![session.clone(), other.clone()],
        vec![other.clone(), session.clone()],
        vec![String::new(), session.clone()],
    ] {
        let name = format!("x-session-id {values:?}");
        let mut headers = vec![good_one.clone()];
        headers.extend(values.into_iter().map(|value| ("x-session-id", value)));
        rows.push((name, headers, Reason::HeaderDuplicate));
    }
    for value in [
        String::new(),
        other,
        session.to_uppercase(),
        format!("{session} x"),
        format!("{session},{session}"),
        format!("\"{session}\""),
        session[..session.len() - 1].to_owned(),
        format!("{session}0"),
        "*".to_owned(),
        "../x".to_owned(),
    ] {
        let headers = vec![good_one.clone(), ("x-session-id", value.clone())];
        rows.push((
            format!("x-session-id {value:?}"),
            headers,
            Reason::SessionMismatch,
        ));
    }

    let mut wrong = Vec::new();
    let count = rows.len();
    for (name, headers, reason) in rows {
        let mut ask = Ask::spark("ExecutePlan");
        for (name, value) in headers {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            ask.headers.append(name, value);
        }
        let status = client.call(ask).await.status();
        let code = session_proto::error::code_of(reason);
        if (session_proto::error::reason_of(&status), status.code()) != (Some(reason), code) {
            wrong.push(format!("{name}: {status:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    println!("{count} headers refused");
    assert!(count >= 100, "{count}");
    assert!(rig.spark.seen().requests.is_empty(), "nothing passed");

    // The scheme is written in any case, with spaces after it (RFC 9110).
    for text in [
        format!("Bearer {token}"),
        format!("bearer {token}"),
        format!("BEARER   {token}"),
    ] {
        let ask = Ask::spark("ExecutePlan")
            .header("authorization", &text)
            .header("x-session-id", &session);
        assert_eq!(client.call(ask).await.code(), Code::Ok, "{text:.12}");
    }
}
