//! Whoever does what an error says gets a working query, in the same process and with every client:
//! the test reads the commands out of the error's text and carries them out.

use anyhow::{Context, Result, ensure};
use e2e::{Client, Engine, Repl, Stack, StackOptions, Tls, wait};
use serde_json::Value;
use session_core::{Clock, SystemClock, TokenId};
use session_token::{Claims, Signer, generate_key_pem};
use std::fs::create_dir_all;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::LocalSet;

const LIMIT: Duration = Duration::from_secs(120);

/// A user with one client process and one session at a time.
struct User {
    stack: Arc<Stack>,
    client: Client,
    repl: Repl,
    session: String,
}

impl User {
    async fn begin(stack: Arc<Stack>, client: Client) -> Result<Self> {
        let session = stack.session("ada", Engine::Sail, &[])?;
        let url = stack.url_for(client, "ada", &session)?;
        let dir = stack.dir.path().join(format!("{client:?}"));
        create_dir_all(&dir)?;
        let repl = client.repl(&dir, &url, stack.ca_for(client)).await?;
        let mut user = Self {
            stack,
            client,
            repl,
            session,
        };
        user.works().await?;
        Ok(user)
    }

    async fn works(&mut self) -> Result<()> {
        let answer = self.repl.sql("SELECT 1").await?;
        ensure!(answer["rows"][0][0] == 1, "{:?}: {answer}", self.client);
        Ok(())
    }

    /// The error that a query ends with once the proxy knows what happened.
    async fn error(&mut self, reason: &str) -> Result<String> {
        let begun = Instant::now();
        loop {
            let answer = self.repl.sql("SELECT 1").await?;
            if let Some(text) = answer["error"]["text"].as_str() {
                self.is(reason, &answer)?;
                return Ok(text.to_owned());
            }
            ensure!(begun.elapsed() < LIMIT, "{:?}: no {reason}", self.client);
        }
    }

    /// PySpark shows the trailer, Scala the error class, the Rust client the class in the text.
    fn is(&self, reason: &str, answer: &Value) -> Result<()> {
        let error = &answer["error"];
        let class = format!("BERTH.{reason}");
        let seen = error["berth_reason"] == reason
            || error["error_class"] == class.as_str()
            || error["text"].as_str().is_some_and(|text| text.contains(&class));
        ensure!(seen, "{:?}: no {reason}: {answer}", self.client);
        Ok(())
    }

    /// Does what `text` says, word by word, and expects that a query works then.
    async fn follow(&mut self, text: &str) -> Result<()> {
        let said = format!("{:?} did what this says: {text}", self.client);
        if text.contains("spark.stop()") {
            let quiet = self.repl.stop().await?;
            // The Rust client tells that the server refused to release the session, and is stopped.
            ensure!(quiet || self.client == Client::PyRust, "stop() failed: {said}");
        }
        let mut url = None;
        for command in text.split('`').skip(1).step_by(2) {
            let command = command.replace("<session>", &self.session);
            let mut words = command.split_whitespace();
            ensure!(words.next() == Some("berth"), "{said}");
            let words: Vec<&str> = words.collect();
            let more: &[&str] = if words == ["create"] {
                &["--wait", "--cluster", Engine::Sail.cluster()]
            } else {
                &[]
            };
            let done = self.stack.berth("ada", &[&words[..], more].concat())?;
            if words == ["create"] {
                done["id"]
                    .as_str()
                    .context("no id")?
                    .clone_into(&mut self.session);
            } else {
                url = done["connection_url"].as_str().map(str::to_owned);
            }
        }
        let url = match url {
            Some(url) => url,
            None => self.stack.url("ada", &self.session)?,
        };
        let url = Stack::as_taken_by(self.client, &url);
        self.repl.connect(&url).await.context(said.clone())?;
        self.works().await.context(said)
    }

    /// The claims of a token of the real issuer, for one that the test signs itself.
    fn claims(&self) -> Result<Claims> {
        let now = SystemClock.now();
        Ok(Claims {
            iss: "berth".to_owned(),
            aud: "berth-spark-connect".to_owned(),
            sub: "sa|ada".parse()?,
            org: "acme".parse()?,
            sid: self.session.parse()?,
            epoch: 1,
            iat: now.as_secs(),
            nbf: now.as_secs(),
            exp: now.as_secs() + 600,
            jti: TokenId::generate(now, 1),
        })
    }

    fn signed(&self, claims: &Claims) -> Result<String> {
        let key = std::fs::read_to_string(self.stack.dir.path().join("signing.pem"))?;
        Ok(Signer::from_pkcs8_pem(&key)?.sign(claims)?)
    }

    /// A connection string like `berth token` prints it, with another token or none.
    fn url(&self, token: Option<&str>) -> String {
        let token = token.map(|token| format!("token={token};")).unwrap_or_default();
        let url = format!(
            "sc://localhost:{}/;{token}x-session-id={}",
            self.stack.proxy_address.port(),
            self.session
        );
        Stack::as_taken_by(self.client, &url)
    }

    /// A Spark session that is opened with a bad string, then a good one as the error says.
    async fn opened_with(&mut self, url: &str, reason: &str) -> Result<()> {
        self.repl.stop().await?;
        // PySpark 3.5 asks its first question here, the others with the first query.
        let opened = self.repl.sql(&format!(":connect {url}")).await?;
        let text = match opened["error"]["text"].as_str() {
            Some(text) => {
                self.is(reason, &opened)?;
                text.to_owned()
            }
            None => self.error(reason).await?,
        };
        self.follow(&text).await
    }

    async fn lose_until_failed(&self) -> Result<()> {
        wait::until("the session to fail", LIMIT, async || {
            let shown = self.stack.show("ada", &self.session).map_err(|e| e.to_string())?;
            if shown["status"] == "failed" {
                return Ok(());
            }
            self.stack
                .crash_compute_of(&self.session)
                .map_err(|e| e.to_string())?;
            Err(shown.to_string())
        })
        .await
    }
}

async fn every_advice(stack: Arc<Stack>, client: Client) -> Result<()> {
    let mut user = User::begin(Arc::clone(&stack), client).await?;

    stack.berth("ada", &["revoke", &user.session, "--all"])?;
    let text = user.error("TOKEN_REVOKED").await?;
    user.follow(&text).await?;

    stack.berth("ada", &["close", &user.session])?;
    let text = user.error("SESSION_CLOSED").await?;
    user.follow(&text).await?;

    user.lose_until_failed().await?;
    let text = user.error("SESSION_FAILED").await?;
    user.follow(&text).await?;

    let mut old = user.claims()?;
    for time in [&mut old.iat, &mut old.nbf, &mut old.exp] {
        *time -= 3600;
    }
    let url = user.url(Some(&user.signed(&old)?));
    user.opened_with(&url, "TOKEN_EXPIRED").await?;

    let stranger = Signer::from_pkcs8_pem(&generate_key_pem()?)?.sign(&user.claims()?)?;
    let url = user.url(Some(&stranger));
    user.opened_with(&url, "TOKEN_INVALID").await?;
    let url = user.url(Some("abc"));
    user.opened_with(&url, "TOKEN_MALFORMED").await?;
    let url = user.url(None);
    user.opened_with(&url, "TOKEN_MISSING").await?;
    let good = stack.token("ada", &user.session)?;
    let url = user
        .url(Some(&good))
        .replace(&user.session, "s-0123456789abcdefghjk");
    user.opened_with(&url, "SESSION_MISMATCH").await?;
    Ok(())
}

#[tokio::test]
async fn advice_of_final_errors_helps() -> Result<()> {
    let stack = Arc::new(
        Stack::start_with(StackOptions {
            tls: Tls::Auto,
            ..StackOptions::default()
        })
        .await?,
    );
    let local = LocalSet::new();
    let users: Vec<_> = Client::chosen()
        .into_iter()
        .map(|client| {
            (
                client,
                local.spawn_local(every_advice(Arc::clone(&stack), client)),
            )
        })
        .collect();
    let failed = local.run_until(async {
        let mut failed = Vec::new();
        for (client, user) in users {
            if let Err(error) = user.await? {
                failed.push(format!("{client:?}: {error:#}"));
            }
        }
        anyhow::Ok(failed)
    });
    let failed = failed.await?;
    ensure!(failed.is_empty(), "{}", failed.join("\n\n"));
    Ok(())
}
