//! The cost of tokens (docs/benchmarks.md): verification beside the signature
//! alone, lookup of a verified token, and issuing end to end on real Redis.
//! Rounds alternate, so that drift of the machine affects all rows equally.
//! `TOKENS_SMOKE=1` runs a few of each, to show that the benchmark works.

use anyhow::{Context, Result};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use e2e::{Server, Stack, StackOptions, repo};
use load::driver::noise;
use load::proc::cpu_seconds;
use serde_json::{Value, json};
use session_core::{SessionId, Timestamp, TokenId};
use session_proto::v1;
use session_proto::v1::token_service_client::TokenServiceClient;
use session_token::{Claims, Grace, Jwks, Keyring, Signer, Verifier, VerifierConfig, generate_key_pem};
use spark_proxy::bench_support::TokenCache;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

const NOW: u64 = 1_790_000_000;
const ROUNDS: usize = 12;
/// Open loop, per second.
const RATE: u32 = 200;
/// Requests at once when as many as possible are asked for.
const TOGETHER: usize = 16;
/// Each has at most 1000 live tokens.
const SESSIONS: usize = 24;

/// The median and the 99th percentile, in microseconds.
fn percentiles(mut times: Vec<Duration>) -> [f64; 2] {
    times.sort();
    let last = times.len() - 1;
    [times[last / 2], times[last * 99 / 100]].map(|time| time.as_secs_f64() * 1e6)
}

fn spread(mut values: Vec<f64>) -> Value {
    values.sort_by(f64::total_cmp);
    let at = |place: usize| (values[place] * 100.0).round() / 100.0;
    json!({"min": at(0), "median": at(values.len() / 2), "max": at(values.len() - 1)})
}

/// Tokens, each another one, and what checks them.
struct Checks {
    tokens: Vec<String>,
    keyring: Keyring,
    verifier: Verifier,
    alone: Vec<(Vec<u8>, Vec<u8>)>,
    point: Vec<u8>,
    cache: TokenCache,
    headers: Vec<http::HeaderValue>,
}

impl Checks {
    fn new(count: usize) -> Result<Self> {
        let signer = Signer::from_pkcs8_pem(&generate_key_pem()?)?;
        let jwk = serde_json::to_value(signer.public_jwk())?;
        let coordinate = |name: &str| -> Result<Vec<u8>> {
            Ok(URL_SAFE_NO_PAD.decode(jwk[name].as_str().context("a coordinate")?)?)
        };
        let now = Timestamp::from_millis(NOW * 1000);
        let claims: Vec<Claims> = (0..count as u64)
            .map(|n| {
                Ok(Claims {
                    iss: "berth".to_owned(),
                    aud: "berth-spark-connect".to_owned(),
                    sub: "sa|etl-nightly".parse()?,
                    org: "acme".parse()?,
                    sid: SessionId::generate(now, n),
                    epoch: 1,
                    iat: NOW,
                    nbf: NOW,
                    exp: NOW + 3600,
                    jti: TokenId::generate(now, n),
                })
            })
            .collect::<Result<_>>()?;
        let tokens: Vec<String> = claims
            .iter()
            .map(|claims| signer.sign(claims))
            .collect::<Result<_, _>>()?;
        let alone = tokens
            .iter()
            .map(|token| {
                let (message, signature) = token.rsplit_once('.').context("a token")?;
                Ok((message.as_bytes().to_vec(), URL_SAFE_NO_PAD.decode(signature)?))
            })
            .collect::<Result<_>>()?;
        let headers: Vec<http::HeaderValue> = tokens
            .iter()
            .map(|token| format!("Bearer {token}").parse())
            .collect::<Result<_, _>>()?;
        let cache = TokenCache::default();
        for (token, claims) in tokens.iter().zip(&claims) {
            cache.put(token, claims.clone(), now);
        }
        Ok(Self {
            keyring: Keyring::new(&Jwks::new([signer.public_jwk()]), now),
            verifier: Verifier::new(VerifierConfig::new("berth", "berth-spark-connect")),
            point: [&[4_u8][..], &coordinate("x")?, &coordinate("y")?].concat(),
            alone,
            tokens,
            cache,
            headers,
        })
    }

    fn largest(&self) -> usize {
        self.tokens.iter().map(String::len).max().unwrap_or_default()
    }

    fn verify(&self) -> [f64; 2] {
        let now = Timestamp::from_millis((NOW + 60) * 1000);
        let one = |token: &String| {
            let begun = Instant::now();
            let good = self.verifier.verify(token, &self.keyring, now, Grace::None);
            let took = begun.elapsed();
            assert!(good.is_ok_and(|good| good.claims.iat == NOW));
            took
        };
        percentiles(self.tokens.iter().map(one).collect())
    }

    fn signature_alone(&self) -> [f64; 2] {
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.point);
        let one = |(message, signature): &(Vec<u8>, Vec<u8>)| {
            let begun = Instant::now();
            let good = key.verify(message, signature);
            let took = begun.elapsed();
            assert!(good.is_ok());
            took
        };
        percentiles(self.alone.iter().map(one).collect())
    }

    /// Below the clock's own grain: of a hundred at a time.
    fn cached(&self) -> [f64; 2] {
        const AT_A_TIME: usize = 100;
        let now = Timestamp::from_millis((NOW + 60) * 1000);
        let times = self.headers.chunks_exact(AT_A_TIME).map(|headers| {
            let begun = Instant::now();
            let known = headers
                .iter()
                .filter(|header| self.cache.contains(black_box(header), now))
                .count();
            let took = begun.elapsed();
            assert_eq!(known, AT_A_TIME);
            took / AT_A_TIME as u32
        });
        percentiles(times.collect())
    }
}

/// Asks token-issuer for tokens of some sessions.
struct Issue {
    client: TokenServiceClient<Channel>,
    bearer: MetadataValue<Ascii>,
    sessions: Vec<String>,
}

impl Issue {
    /// Makes room for more: outside of what is timed.
    async fn revoke_all(&self) -> Result<()> {
        for session in &self.sessions {
            let mut request = Request::new(v1::RevokeAllSessionTokensRequest {
                session_id: session.clone(),
            });
            request
                .metadata_mut()
                .insert("authorization", self.bearer.clone());
            self.client.clone().revoke_all_session_tokens(request).await?;
        }
        Ok(())
    }

    async fn one(&self, number: usize) -> Result<Duration> {
        let mut request = Request::new(v1::IssueSessionTokenRequest {
            session_id: self.sessions[number % self.sessions.len()].clone(),
            ttl: None,
        });
        request
            .metadata_mut()
            .insert("authorization", self.bearer.clone());
        let begun = Instant::now();
        let issued = self.client.clone().issue_session_token(request).await?;
        let took = begun.elapsed();
        assert!(issued.into_inner().token.len() <= 600);
        Ok(took)
    }

    /// So many per second, whether or not the earlier ones were answered;
    /// each is timed from when it was due.
    async fn open_loop(self: &Arc<Self>, time: Duration) -> Result<[f64; 2]> {
        let mut tick = tokio::time::interval(Duration::from_secs(1) / RATE);
        let mut all = JoinSet::new();
        let end = Instant::now() + time;
        for number in 0.. {
            let due = tick.tick().await.into_std();
            if due >= end {
                break;
            }
            let issue = Arc::clone(self);
            all.spawn(async move {
                issue.one(number).await?;
                anyhow::Ok(due.elapsed())
            });
        }
        let mut times = Vec::new();
        while let Some(done) = all.join_next().await {
            times.push(done??);
        }
        Ok(percentiles(times))
    }

    /// As many as can be had: per second, and per CPU second of `pids`.
    async fn closed_loop(self: &Arc<Self>, time: Duration, pids: &[u32]) -> Result<[f64; 2]> {
        let (begun, cpu) = (Instant::now(), cpu_seconds(pids)?);
        let mut all = JoinSet::new();
        for worker in 0..TOGETHER {
            let issue = Arc::clone(self);
            all.spawn(async move {
                let mut count = 0;
                while begun.elapsed() < time {
                    issue.one(worker + count).await?;
                    count += 1;
                }
                anyhow::Ok(count)
            });
        }
        let mut count = 0;
        while let Some(done) = all.join_next().await {
            count += done??;
        }
        let count = count as f64;
        let result = [
            count / begun.elapsed().as_secs_f64(),
            count / (cpu_seconds(pids)? - cpu),
        ];
        self.revoke_all().await?;
        Ok(result)
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let smoke = std::env::var_os("TOKENS_SMOKE").is_some();
    let (count, time) = if smoke {
        (200, Duration::from_millis(300))
    } else {
        (3000, Duration::from_secs(2))
    };
    let rounds = if smoke { 2 } else { ROUNDS };
    let noise = noise::at_rest().await?;

    let server = Server::sail().await?;
    // All come from one caller at one address, as they would not.
    let limits = "limits.calls_per_second_per_principal = 0\nlimits.calls_per_second_per_address = 0\nlimits.calls_at_once_per_address = 0\n";
    let manager = format!(
        "{limits}[[clusters]]\nname = \"shared\"\nengine = \"sail\"\ngranted_orgs = [\"acme\"]\n\
         [[clusters.static.endpoints]]\naddress = \"{}\"\n\
         [[orgs]]\nname = \"acme\"\n[orgs.limits]\ntokens_per_session = 1000\n\
         live_sessions_per_owner = 100\nlive_sessions = 100\n",
        server.address
    );
    let options = StackOptions {
        manager,
        issuer: limits.to_owned(),
        ..StackOptions::default()
    };
    let stack = Stack::start_with(options).await?;
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        let created = stack.berth("ada", &["create", "--wait", "--cluster", "shared"])?;
        sessions.push(created["id"].as_str().context("an id")?.to_owned());
    }
    let issue = Arc::new(Issue {
        client: TokenServiceClient::new(
            Endpoint::from_shared(stack.issuer_uri().to_owned())?
                .tcp_nodelay(true)
                .connect()
                .await?,
        ),
        bearer: format!("Bearer {}", stack.key_of("ada")).parse()?,
        sessions,
    });
    let pids = [
        stack.issuer.pid().context("token-issuer runs")?,
        stack.manager.pid().context("session-manager runs")?,
    ];
    let checks = Checks::new(count)?;

    checks.verify();
    issue.closed_loop(time, &pids).await?;
    let (mut alone, mut verify, mut cached) = (Vec::new(), Vec::new(), Vec::new());
    let (mut open, mut closed, mut issuer_only) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        if round % 2 == 0 {
            alone.push(checks.signature_alone());
            verify.push(checks.verify());
        } else {
            verify.push(checks.verify());
            alone.push(checks.signature_alone());
        }
        cached.push(checks.cached());
        open.push(issue.open_loop(time).await?);
        closed.push(issue.closed_loop(time, &pids).await?);
        issuer_only.push(issue.closed_loop(time, &pids[..1]).await?);
    }

    let column =
        |rounds: &[[f64; 2]], place: usize| spread(rounds.iter().map(|round| round[place]).collect());
    // Of the same round: how fast the machine is at the moment is in both.
    let beside = |place: usize| {
        let rounds = verify.iter().zip(&alone);
        spread(rounds.map(|(ours, alone)| ours[place] / alone[place]).collect())
    };
    let result = json!({
        "what": "session tokens: checked, found again, issued; microseconds unless named otherwise",
        "rounds": rounds, "tokens_per_round": count, "smoke": smoke,
        "noise_percent": noise, "cores": noise::cores(), "cpu": noise::cpu_model(),
        "token_bytes": checks.largest(),
        "signature_alone_p50": column(&alone, 0), "signature_alone_p99": column(&alone, 1),
        "verify_p50": column(&verify, 0), "verify_p99": column(&verify, 1),
        "verify_beside_signature_p50": beside(0), "verify_beside_signature_p99": beside(1),
        "cached_p50": column(&cached, 0), "cached_p99": column(&cached, 1),
        "issue_at_200_per_s_p50": column(&open, 0), "issue_at_200_per_s_p99": column(&open, 1),
        "issued_per_s": column(&closed, 0),
        "issued_per_cpu_s_of_issuer_and_manager": column(&closed, 1),
        "issued_per_cpu_s_of_issuer": column(&issuer_only, 1),
    });
    println!(
        "noise before the run: {noise} % of the machine; the largest token: {} bytes (at most 600)",
        checks.largest()
    );
    println!(
        "{:<42}{:>12}{:>12}{:>12}   must",
        "µs, or per second", "min", "median", "max"
    );
    for (row, must) in [
        ("signature_alone_p50", ""),
        ("signature_alone_p99", ""),
        ("verify_p50", ""),
        ("verify_p99", "<= 80 where the signature alone takes 64"),
        ("verify_beside_signature_p50", "<= 1.25"),
        ("verify_beside_signature_p99", "<= 1.25"),
        ("cached_p50", "<= 2"),
        ("cached_p99", ""),
        ("issue_at_200_per_s_p50", ""),
        ("issue_at_200_per_s_p99", "<= 15000"),
        ("issued_per_s", ""),
        ("issued_per_cpu_s_of_issuer_and_manager", ""),
        ("issued_per_cpu_s_of_issuer", ">= 1000"),
    ] {
        let of = |what: &str| result[row][what].as_f64().unwrap_or(0.0);
        println!(
            "{row:<42}{:>12.2}{:>12.2}{:>12.2}   {must}",
            of("min"),
            of("median"),
            of("max")
        );
    }
    let folder = repo().join("target/bench");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("tokens.json"), format!("{result:#}\n"))?;
    Ok(())
}
