//! The negative token corpus of session-token, and malformed headers, through a real proxy: the code
//! and reason of each, and none is forwarded.

#[allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "shared with session-token"
)]
#[path = "../../../session-token/tests/it/common/mod.rs"]
mod forge;

use crate::common;
use crate::common::{Raw, Rig, Rpc, flags, kinds, within};
use forge::corpus::{RIG, rows};
use http::HeaderValue;
use session_core::Reason;
use session_token::Claims;
use std::time::Duration;
use tonic::Code;

type Headers = Vec<(&'static str, String)>;

/// Default limit of a header list; longer ones are rejected before the token is read.
const HEADER_LIST: usize = 16 << 10;

/// A proxy that trusts the key of the corpus, a minute after its tokens were issued.
async fn start() -> Rig {
    let rig = Rig::with(|config| {
        let jwks = std::path::PathBuf::from(&config.tokens.keys.location);
        common::write_jwks(&jwks, &[&RIG.signer]);
    })
    .await;
    rig.clock.advance(Duration::from_secs(60));
    rig
}

fn valid(rig: &Rig) -> String {
    let claims = Claims {
        epoch: 1,
        sid: rig.session.clone(),
        ..forge::claims()
    };
    RIG.signer.sign(&claims).unwrap()
}

fn with_bytes(header: &[u8]) -> Option<Rpc> {
    let mut rpc = Rpc::spark("ExecutePlan");
    rpc.headers
        .insert("authorization", HeaderValue::from_bytes(header).ok()?);
    Some(rpc)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_token_of_the_corpus_is_rejected() {
    let rig = start().await;
    let client = rig.client().await;
    assert_eq!(client.call(Rpc::execute(&valid(&rig))).await.code(), Code::Ok);
    let (mut wrong, mut refused, mut unsendable) = (Vec::new(), 0, Vec::new());
    for row in rows() {
        if row.token.starts_with(' ') {
            // HTTP allows spaces after the scheme: the token is the same.
            continue;
        }
        let header = format!("Bearer {}", row.token);
        let Some(rpc) = with_bytes(header.as_bytes()) else {
            unsendable.push(header);
            continue;
        };
        if header.len() > HEADER_LIST {
            // Ended before the token is read, possibly with its connection.
            if let Ok(reply) = rig.client().await.try_call(rpc).await {
                let ok = reply.http == 200 && reply.code() == Code::Ok;
                if ok {
                    wrong.push(format!("{}: passed", row.name));
                }
            }
            refused += 1;
            continue;
        }
        let status = client.call(rpc).await.status();
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
    assert_eq!(rig.spark.seen().requests.len(), 1, "only the valid one passed");

    // CR, LF and NUL: no client library sends them; HTTP/2 rejects them.
    assert!(unsendable.iter().any(|header| header.ends_with('\n')));
    assert!(unsendable.iter().any(|header| header.ends_with('\0')));
    for ending in ["\r", "\n", "\0", "\r\nx-session-id: s"] {
        let mut raw = Raw::connect(rig.address, &[]).await.unwrap();
        let token = format!("{}{ending}", valid(&rig));
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
    assert_eq!(client.call(Rpc::execute(&valid(&rig))).await.code(), Code::Ok);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_header_without_exactly_one_bearer_token_is_rejected() {
    let rig = start().await;
    let client = rig.client().await;
    let token = valid(&rig);
    let session = rig.session.to_string();
    let one = |name: &'static str, value: String| vec![(name, value)];
    let bearer = |text: &str| one("authorization", text.to_owned());

    let mut rows: Vec<(String, Headers, Reason)> = Vec::new();
    rows.push(("nothing".into(), Vec::new(), Reason::TokenMissing));
    // A token in another place is not accepted.
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
        let mut rpc = Rpc::spark("ExecutePlan");
        for (name, value) in headers {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            rpc.headers.append(name, value);
        }
        let status = client.call(rpc).await.status();
        let code = session_proto::error::code_of(reason);
        if (session_proto::error::reason_of(&status), status.code()) != (Some(reason), code) {
            wrong.push(format!("{name}: {status:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    println!("{count} headers refused");
    assert!(count >= 100, "{count}");
    assert!(rig.spark.seen().requests.is_empty(), "nothing passed");

    // The scheme is case-insensitive, with any number of spaces after it (RFC 9110).
    for text in [
        format!("Bearer {token}"),
        format!("bearer {token}"),
        format!("BEARER   {token}"),
    ] {
        let rpc = Rpc::spark("ExecutePlan")
            .header("authorization", &text)
            .header("x-session-id", &session);
        assert_eq!(client.call(rpc).await.code(), Code::Ok, "{text:.12}");
    }
}
