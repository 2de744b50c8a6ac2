//! The log of the real program under hostile names, headers, credentials and texts:
//! every record stays one valid line without control sequences.

use crate::support::until;
use service_kit::caller::{NewKey, generate_key};
use session_proto::internal::route_service_client::RouteServiceClient;
use session_proto::internal::token_ledger_client::TokenLedgerClient;
use session_proto::internal::{self as wire};
use session_proto::v1;
use session_proto::v1::catalog_service_client::CatalogServiceClient;
use session_proto::v1::cluster_service_client::ClusterServiceClient;
use session_proto::v1::org_service_client::OrgServiceClient;
use session_proto::v1::session_service_client::SessionServiceClient;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tonic::Request;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};

/// A mark in every hostile text.
const MARK: &str = "F0RGED";

/// Texts with control sequences, line breaks and format characters.
fn hostile() -> Vec<String> {
    vec![
        format!("x\n2026-01-01T00:00:00.000000Z ERROR {MARK}: all is lost"),
        format!("x\r\n{{\"level\":\"ERROR\",\"message\":\"{MARK}\"}}"),
        format!("\",\"level\":\"ERROR\",\"{MARK}\":\""),
        format!("\u{1b}[2J\u{1b}[31m{MARK}\u{1b}]0;title\u{7}"),
        format!("\u{9b}31m{MARK}\u{85}next"),
        format!("\u{202e}{MARK}\u{2066}\u{200f}\u{61c}"),
        format!("a\u{2028}{MARK}\u{2029}b\u{200b}\u{feff}\u{e0041}"),
        format!("\0\u{8}\u{7f}{MARK}\u{c}\u{b}"),
        format!("{{}} {{0}} %s %n ${{jndi:ldap://{MARK}}} \\u000a"),
    ]
}

/// The part of the text that a header can carry.
fn header(text: &str) -> MetadataValue<tonic::metadata::Ascii> {
    let bytes: Vec<u8> = text.bytes().filter(|b| *b >= 32 && *b != 127).collect();
    MetadataValue::try_from(bytes.as_slice()).unwrap()
}

struct Program {
    child: Child,
    public: Channel,
    internal: Channel,
    keys: [NewKey; 2],
    dir: tempfile::TempDir,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free() -> SocketAddr {
    test_support::ports::free_port().unwrap()
}

impl Program {
    async fn start(format: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (public, internal) = (free(), free());
        let keys = [generate_key(), generate_key()];
        std::fs::write(at("jwks.json"), {
            let pem = session_token::generate_key_pem().unwrap();
            let signer = session_token::Signer::from_pkcs8_pem(&pem).unwrap();
            session_token::Jwks::new([signer.public_jwk()]).to_json()
        })
        .unwrap();
        let text = format!(
            "platform_admins = [\"sa|pat\"]\nlisten.public.address = \"{public}\"\nlisten.internal.address = \"{internal}\"\n\
             admin.address = \"127.0.0.1:0\"\nstore.url = \"memory://\"\ntokens.keys.location = \"{}\"\n\
             compute.process.state_dir = \"{}\"\ncompute.process.trust_all_users = true\n\
             telemetry.level = \"debug,h2=info,hyper=info,tower=info\"\ntelemetry.format = \"{format}\"\n\
             limits.failures_per_minute_per_address = 0\n\
             [[service_accounts]]\nname = \"ada\"\norg = \"acme\"\nroles = [\"member\", \"org-admin\"]\nkey_sha256 = \"{}\"\n\
             [[service_accounts]]\nname = \"pat\"\norg = \"acme\"\nroles = [\"platform-admin\"]\nkey_sha256 = \"{}\"\n\
             [[clusters]]\nname = \"c\"\nengine = \"sail\"\nprocess = {{ program = \"/nowhere/sail\" }}\n",
            at("jwks.json").display(),
            at("state").display(),
            keys[0].sha256,
            keys[1].sha256,
        );
        std::fs::write(at("config.toml"), text).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_session-manager"))
            .arg("--config")
            .arg(at("config.toml"))
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(at("log")).unwrap())
            .spawn()
            .unwrap();
        let channel = |address| {
            Endpoint::from_shared(format!("http://{address}"))
                .unwrap()
                .connect_lazy()
        };
        let program = Self {
            child,
            public: channel(public),
            internal: channel(internal),
            keys,
            dir,
        };
        until("it has started", async || {
            program.log().contains("session-manager started")
        })
        .await;
        program
    }

    fn log(&self) -> String {
        read(&self.dir.path().join("log"))
    }

    /// A request of `ada` or `pat` with hostile headers.
    fn asks<T>(&self, who: usize, text: &str, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        let key = format!("Bearer {}", self.keys[who].key).parse().unwrap();
        metadata.insert("authorization", key);
        for name in [
            "traceparent",
            "x-forwarded-for",
            "x-berth-caller-address",
            "x-anything",
        ] {
            metadata.insert(name, header(text));
        }
        request
    }

    /// Calls with the hostile text in every field that callers control. Responses do
    /// not matter.
    async fn attack(&self, text: &str) {
        let text = || text.to_owned();
        let mut sessions = SessionServiceClient::new(self.public.clone());
        let mut clusters = ClusterServiceClient::new(self.public.clone());
        let mut catalogs = CatalogServiceClient::new(self.public.clone());
        let mut orgs = OrgServiceClient::new(self.public.clone());
        let mut ledger = TokenLedgerClient::new(self.internal.clone());
        let mut routes = RouteServiceClient::new(self.internal.clone());

        for bearer in [
            text(),
            format!("Bearer {}", text()),
            format!("Bearer berth_sa_{}", text()),
        ] {
            let mut request = Request::new(v1::ListSessionsRequest::default());
            request.metadata_mut().insert("authorization", header(&bearer));
            let _ = sessions.list_sessions(request).await;
        }
        for (cluster, name, request_id) in [
            (text(), String::new(), String::new()),
            ("c".to_owned(), text(), String::new()),
            ("c".to_owned(), String::new(), text()),
            ("c".to_owned(), text(), text()),
        ] {
            let request = v1::CreateSessionRequest {
                cluster,
                name,
                request_id,
                team: String::new(),
                labels: [(text(), text())].into(),
                ..Default::default()
            };
            let _ = sessions
                .create_session(self.asks(0, &text(), request.clone()))
                .await;
            let plain = v1::CreateSessionRequest {
                labels: Default::default(),
                ..request
            };
            let _ = sessions.create_session(self.asks(0, &text(), plain)).await;
        }
        let close = v1::CloseSessionRequest { session_id: text() };
        let _ = sessions.close_session(self.asks(0, &text(), close)).await;
        let list = v1::ListSessionsRequest {
            page_token: text(),
            ..Default::default()
        };
        let _ = sessions.list_sessions(self.asks(0, &text(), list)).await;
        let program = |program: String, key: String, value: String| {
            Some(v1::cluster::Provider::Process(v1::ProcessProvider {
                program,
                properties: [(key, value)].into(),
                ..Default::default()
            }))
        };
        for (name, provider) in [
            (
                text(),
                program("/opt/sail".to_owned(), "RUST_LOG".to_owned(), "info".to_owned()),
            ),
            ("k".to_owned(), program(text(), text(), text())),
            (
                "k".to_owned(),
                program(format!("/{}", text()), "RUST_LOG".to_owned(), text()),
            ),
        ] {
            let cluster = Some(v1::Cluster {
                name,
                engine: v1::Engine::Sail.into(),
                provider,
                ..Default::default()
            });
            let create = v1::CreateClusterRequest { cluster };
            let _ = clusters.create_cluster(self.asks(1, &text(), create)).await;
        }
        let catalog = Some(v1::Catalog {
            name: text(),
            engine: v1::Engine::Sail.into(),
            default_database: text(),
            ..Default::default()
        });
        let create = v1::CreateCatalogRequest { catalog };
        let _ = catalogs.create_catalog(self.asks(0, &text(), create)).await;
        // Principals may have nearly any name.
        for principal in [text(), format!("corp|{}", text()), format!("sa|{}", text())] {
            let disable = v1::DisablePrincipalRequest {
                principal,
                disabled: true,
                org: "acme".to_owned(),
            };
            let _ = orgs.disable_principal(self.asks(1, &text(), disable)).await;
        }
        let create = v1::CreateOrgRequest {
            org: Some(v1::Org {
                name: text(),
                ..Default::default()
            }),
        };
        let _ = orgs.create_org(self.asks(1, &text(), create)).await;
        let record = wire::RecordTokenRequest {
            session_id: text(),
            token_id: text(),
            key_id: text(),
            ..Default::default()
        };
        let _ = ledger.record_token(self.asks(0, &text(), record)).await;
        let keys = wire::ReportKeysRequest {
            published: vec![text()],
            signing: text(),
        };
        let _ = ledger.report_keys(self.asks(0, &text(), keys)).await;
        let resolve = wire::ResolveRouteRequest {
            session_token: text(),
            ..Default::default()
        };
        let _ = routes.resolve_route(self.asks(0, &text(), resolve)).await;
        let report = wire::ReportActivityRequest {
            proxy_id: text(),
            ..Default::default()
        };
        let _ = routes.report_activity(self.asks(0, &text(), report)).await;
    }
}

fn read(path: &Path) -> String {
    // Fails unless the log is UTF-8.
    String::from_utf8(std::fs::read(path).unwrap()).unwrap()
}

/// Whether the character is text for a terminal and for line-based tools.
fn is_plain(char: char) -> bool {
    let turns = [
        '\u{61c}',
        '\u{200b}',
        '\u{200f}',
        '\u{202e}',
        '\u{2066}',
        '\u{feff}',
        '\u{e0041}',
    ];
    !char.is_control() && !turns.contains(&char) && !['\u{2028}', '\u{2029}'].contains(&char)
}

async fn attacked(format: &str) -> String {
    let mut program = Program::start(format).await;
    for text in hostile() {
        program.attack(&text).await;
    }
    // The debug lines of all calls are in the log when that of the last one is.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let pid = program.child.id().to_string();
    Command::new("kill").arg(&pid).status().unwrap();
    until("it ends", async || program.child.try_wait().unwrap().is_some()).await;
    let log = program.log();
    assert!(
        log.contains(MARK),
        "no hostile text is in the log, so the test proves nothing"
    );
    assert!(log.ends_with('\n'));
    for line in log.lines() {
        assert!(line.chars().all(is_plain), "{line:?}");
    }
    log
}

#[tokio::test]
async fn each_line_of_json_is_one_object() {
    let log = attacked("json").await;
    let mut named = 0;
    for line in log.lines() {
        let line: serde_json::Map<_, _> =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for field in ["timestamp", "level", "target"] {
            assert!(
                line.get(field).is_some_and(serde_json::Value::is_string),
                "{line:?}"
            );
        }
        assert!(!line.contains_key(MARK), "a field was forged: {line:?}");
        named += usize::from(line.values().any(|value| value.to_string().contains(MARK)));
    }
    println!("{} lines, {named} with hostile text", log.lines().count());
    assert!(named > 5, "{named}");
}

#[tokio::test]
async fn each_text_line_begins_with_a_time() {
    let log = attacked("text").await;
    for line in log.lines() {
        let mut words = line.split_whitespace();
        let (time, level) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        assert!(time.len() == 27 && time.ends_with('Z'), "{line}");
        assert!(["ERROR", "WARN", "INFO", "DEBUG"].contains(&level), "{line}");
        // A forged line has the same form except for its time.
        assert!(!time.starts_with("2026-01-01"), "{line}");
    }
}
