//! `berth doctor`: every verdict of docs/cli.md is provoked on the wire.

mod network;
mod services;
mod settings;

use crate::support::tcp_peer::Authority;
use crate::support::{Berth, Stack};
use std::collections::BTreeMap;
use std::time::Duration;

/// Every wait of the command is bounded.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(40);

/// What is run, and the verdict that it must have.
pub(super) struct Case {
    verdict: &'static str,
    /// The part of the first finding; empty if there is none.
    part: &'static str,
    args: Vec<String>,
    env: Vec<(String, String)>,
}

impl Case {
    fn new(verdict: &'static str, part: &'static str) -> Self {
        Self {
            verdict,
            part,
            args: Vec::new(),
            env: Vec::new(),
        }
    }

    fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.args.extend(args.into_iter().map(str::to_owned));
        self
    }

    fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.env.push((name.to_owned(), value.to_string()));
        self
    }
}

/// The services and a user of them.
pub(super) struct Rig {
    stack: Stack,
    berth: Berth,
    authority: Authority,
}

impl Rig {
    /// A case of `who` at the stack; `session` is the argument.
    fn at_stack(&self, verdict: &'static str, part: &'static str, who: &str, session: Option<&str>) -> Case {
        let [manager, issuer] = self.stack.addresses();
        Case::new(verdict, part)
            .args(session)
            .env("BERTH_MANAGER", manager)
            .env("BERTH_ISSUER", issuer)
            .env("BERTH_KEY", self.stack.key(who))
    }

    /// A case with a connection string only.
    fn string(&self, verdict: &'static str, part: &'static str, string: &str) -> Case {
        Case::new(verdict, part).env("SPARK_REMOTE", string)
    }

    async fn check(&self, case: &Case) -> Result<(), String> {
        let mut args = vec!["--output", "json", "doctor", "--timeout", "1500ms"];
        args.extend(case.args.iter().map(String::as_str));
        let env: Vec<(&str, &str)> = case
            .env
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let run = tokio::time::timeout(COMMAND_TIMEOUT, self.berth.run(&args, &env));
        let Ok(ended) = run.await else {
            return Err(format!("{} {args:?} {env:?} does not end", case.verdict));
        };
        let Ok(json) = serde_json::from_str::<serde_json::Value>(&ended.stdout) else {
            return Err(format!("{}: no JSON: {ended:?}", case.verdict));
        };
        let code = documented()[case.verdict];
        let good = json["verdict"] == case.verdict
            && json["part"].as_str().unwrap_or_default() == case.part
            && json["exit_code"] == code
            && ended.code == Some(code);
        if good {
            return Ok(());
        }
        Err(format!(
            "{} at {}, exit code {code}: {:?} {json:#}",
            case.verdict, case.part, ended.code
        ))
    }
}

/// The verdicts of the documentation with their exit codes, and `ok`.
fn documented() -> BTreeMap<&'static str, i32> {
    let text = include_str!("../../../../../docs/cli.md");
    let rows = text.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
        let id = cells.next()?.strip_suffix('`')?;
        Some((id, cells.next()?.parse().ok()?))
    });
    rows.chain([("ok", 0)]).collect()
}

#[tokio::test]
async fn every_verdict_is_provoked_and_named_right() {
    let rig = Rig {
        stack: Stack::start().await,
        berth: Berth::new(),
        authority: Authority::new(),
    };
    let mut cases = settings::cases(&rig).await;
    let (network, _held) = network::cases(&rig).await;
    cases.extend(network);
    let mut wrong = Vec::new();
    for case in &cases {
        wrong.extend(rig.check(case).await.err());
    }
    // These change the stack, so they prepare and check one after the other.
    let (more, rig) = services::check(rig, &mut wrong).await;
    drop(rig);
    let provoked: Vec<&str> = cases.iter().map(|case| case.verdict).chain(more).collect();
    for id in documented().keys() {
        if !provoked.contains(id) {
            wrong.push(format!("{id} is not provoked"));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// The output for people has the same verdict, the fix, and no secret.
#[tokio::test]
async fn people_read_the_fault_and_its_fix() {
    let rig = Rig {
        stack: Stack::start().await,
        berth: Berth::new(),
        authority: Authority::new(),
    };
    let session = rig.stack.active("ada").await;
    let token = rig.stack.expired_token(&session);
    let string = rig.stack.string(&token, &session);
    let ended = rig.berth.run(&["doctor"], &[("SPARK_REMOTE", &string)]).await;
    assert_eq!(ended.code, Some(13), "{ended:?}");
    assert!(ended.stdout.contains("token-expired at spark-proxy"), "{ended:?}");
    assert!(ended.stdout.contains("berth token issue SESSION"), "{ended:?}");
    assert!(
        !ended.stdout.contains(&token) && !ended.stderr.contains(&token),
        "{ended:?}"
    );
    assert!(
        !ended.stdout.contains('\u{1b}'),
        "no colors without a terminal: {ended:?}"
    );
    // The same string from a file and from standard input.
    let file = rig.berth.write("string", &string);
    let from_file = rig.berth.run(&["doctor", "--connection-file", &file], &[]).await;
    assert_eq!(from_file.code, Some(13), "{from_file:?}");
    let from_input = rig
        .berth
        .run_with_input(&["doctor", "--connection-file", "-"], &[], &string)
        .await;
    assert_eq!(from_input.code, Some(13), "{from_input:?}");
}

/// The check leaves nothing behind.
#[tokio::test]
async fn a_healthy_session_is_left_as_it_was() {
    let rig = Rig {
        stack: Stack::start().await,
        berth: Berth::new(),
        authority: Authority::new(),
    };
    let session = rig.stack.active("ada").await;
    let case = rig.at_stack("ok", "", "ada", Some(&session));
    rig.check(&case).await.unwrap();
    let request = rig.stack.asks(
        "ada",
        session_proto::v1::ListSessionTokensRequest {
            session_id: session.clone(),
        },
    );
    let tokens = rig
        .stack
        .tokens()
        .list_session_tokens(request)
        .await
        .unwrap()
        .into_inner()
        .tokens;
    assert!(!tokens.is_empty(), "a token was issued");
    assert!(tokens.iter().all(|token| token.revoked), "{tokens:?}");
    let paths: Vec<String> = rig
        .stack
        .spark
        .seen()
        .requests
        .into_iter()
        .map(|(path, _)| path)
        .collect();
    assert!(!paths.is_empty(), "the session was called");
    assert!(
        paths.iter().all(|path| path.ends_with("/ReleaseSession")),
        "{paths:?}"
    );
}
