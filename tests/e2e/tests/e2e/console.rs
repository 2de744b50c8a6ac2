//! Two consoles behind a balancer that alternates, a real identity provider
//! (npm `oidc-provider`) and a real session-manager: a person signs in, watches
//! sessions, and loses one of the consoles.

use anyhow::{Context as _, Result, ensure};
use e2e::{OidcProvider, Stack, StackOptions, free_port, http};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const LIMIT: Duration = Duration::from_secs(30);

/// A browser with cookies, at the balancer and at the provider.
#[derive(Default)]
struct Person {
    cookies: BTreeMap<String, String>,
}

/// Status and headers of an answer.
struct Head {
    status: String,
    lines: Vec<(String, String)>,
}

impl Head {
    fn of(answer: &str) -> Self {
        let (head, _) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1));
        let pairs = lines.filter_map(|line| line.split_once(": "));
        Self {
            status: status.unwrap_or_default().to_owned(),
            lines: pairs
                .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
                .collect(),
        }
    }

    fn location(&self) -> Option<&str> {
        let mut found = self.lines.iter().filter(|(name, _)| name == "location");
        found.next().map(|(_, value)| value.as_str())
    }
}

impl Person {
    fn headers(&self) -> String {
        let pairs: Vec<String> = self
            .cookies
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        match pairs.is_empty() {
            true => String::new(),
            false => format!("cookie: {}\r\n", pairs.join("; ")),
        }
    }

    async fn get(&mut self, address: SocketAddr, path: &str) -> Result<(Head, String)> {
        let answer = http::get(address, path, &self.headers()).await?;
        let head = Head::of(&answer);
        for (_, line) in head.lines.iter().filter(|(name, _)| name == "set-cookie") {
            let (name, rest) = line.split_once('=').context("a cookie without value")?;
            let value = rest.split(';').next().unwrap_or_default();
            let is_removed = value.is_empty() || rest.contains("Max-Age=0");
            if is_removed {
                self.cookies.remove(name);
            } else {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
        Ok((head, answer))
    }

    /// Follows redirects from `path` until an answer is none.
    async fn follow(&mut self, start: SocketAddr, path: &str) -> Result<String> {
        let (mut address, mut path) = (start, path.to_owned());
        for _ in 0..12 {
            let (head, answer) = self.get(address, &path).await?;
            let Some(location) = head.location() else {
                return Ok(answer);
            };
            ensure!(head.status.starts_with('3'), "{answer}");
            if let Some(rest) = location.strip_prefix("http://") {
                let (host, rest) = rest.split_once('/').context("no path")?;
                (address, path) = (host.parse()?, format!("/{rest}"));
            } else {
                path = location.to_owned();
            }
        }
        anyhow::bail!("too many redirects")
    }

    /// Opens a watch and reads until `text` is in it.
    async fn watch(
        &self,
        address: SocketAddr,
        last: Option<&str>,
        text: &str,
    ) -> Result<(TcpStream, String)> {
        let mut stream = TcpStream::connect(address).await?;
        let last = last
            .map(|id| format!("last-event-id: {id}\r\n"))
            .unwrap_or_default();
        let request = format!(
            "GET /api/v1/sessions:watch HTTP/1.1\r\nhost: {address}\r\naccept: text/event-stream\r\n{last}{}\r\n",
            self.headers()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut seen = String::new();
        read_until(&mut stream, &mut seen, text).await?;
        Ok((stream, seen))
    }
}

async fn read_until(stream: &mut TcpStream, seen: &mut String, text: &str) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let read = async {
        while !seen.contains(text) {
            let count = stream.read(&mut buffer).await?;
            ensure!(count > 0, "the stream ended: {seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        Ok(())
    };
    tokio::time::timeout(LIMIT, read)
        .await
        .with_context(|| format!("no {text}"))?
}

/// Each connection goes to the next console that accepts one.
fn balance(listener: TcpListener, backends: [SocketAddr; 2]) -> Arc<AtomicUsize> {
    let next = Arc::new(AtomicUsize::new(0));
    let turn = Arc::clone(&next);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            for _ in 0..2 {
                let place = turn.fetch_add(1, Ordering::Relaxed) % 2;
                if let Ok(mut backend) = TcpStream::connect(backends[place]).await {
                    tokio::spawn(
                        async move { tokio::io::copy_bidirectional(&mut client, &mut backend).await },
                    );
                    break;
                }
            }
        }
    });
    next
}

#[tokio::test]
async fn a_person_signs_in_watches_and_survives_the_loss_of_a_console() -> Result<()> {
    let balancer = free_port()?;
    let listener = TcpListener::bind(balancer).await?;
    let provider = OidcProvider::start_for_console(&format!("http://{balancer}/auth/callback")).await?;
    let issuer = provider.issuer();
    let stack = Stack::start_with(StackOptions {
        manager: format!(
            "[[oidc]]\nalias = \"corp\"\nissuer = \"{issuer}\"\naudiences = [\"console\"]\norgs = [\"acme\"]\n\
             org_claim = \"org\"\nroles_claim = \"roles\"\n"
        ),
        ..StackOptions::default()
    })
    .await?;
    let secret = stack.dir.path().join("client-secret");
    std::fs::write(&secret, "console-secret")?;
    let config = format!(
        "public.url = \"http://{balancer}\"\n[[sign_in.providers]]\nid = \"corp\"\nissuer = \"{issuer}\"\n\
         client_id = \"console\"\nclient_secret_file = \"{}\"\nparameters = {{ login_hint = \"ada\" }}\n",
        secret.display()
    );
    let (mut one, first) = stack.console(&config).await?;
    let (two, second) = stack.console(&config).await?;
    let turns = balance(listener, [first, second]);

    let mut ada = Person::default();
    let page = ada
        .follow(balancer, "/auth/login/corp?return=/auth/session")
        .await?;
    ensure!(page.contains("\"id\":\"corp|ada\""), "{page}");
    ensure!(
        turns.load(Ordering::Relaxed) >= 3,
        "login, callback and page at different consoles"
    );

    // Both know her; a session that another program of hers makes shows up at both.
    let (mut at_one, mut seen_one) = ada.watch(first, None, "event: ").await?;
    let (mut at_two, mut seen_two) = ada.watch(second, None, "event: ").await?;
    let by_key = stack.berth("olga", &["create", "--cluster", "sail", "--name", "unseen"])?;
    ensure!(by_key["id"].is_string(), "{by_key}");
    let bearer = ada.follow(balancer, "/api/v1/sessions").await?;
    ensure!(
        bearer.contains("\"sessions\":[]"),
        "another's session is not hers: {bearer}"
    );
    let made = create(&ada, balancer).await?;
    read_until(&mut at_one, &mut seen_one, &made).await?;
    read_until(&mut at_two, &mut seen_two, &made).await?;

    // One console dies; the watch continues at the other from where it was.
    one.kill9().await?;
    let ended = tokio::time::timeout(LIMIT, at_one.read(&mut [0; 1])).await;
    ensure!(
        !matches!(ended, Ok(Ok(1..))),
        "the watch of the dead console goes on"
    );
    let last = seen_one.lines().rev().find_map(|line| line.strip_prefix("id: "));
    let last = last.context("events have no id")?.to_owned();
    let (_stream, _) = ada.watch(balancer, Some(&last), "HTTP/1.1 200").await?;
    for _ in 0..2 {
        let page = ada.follow(balancer, "/auth/session").await?;
        ensure!(page.contains("\"signed_in\":true"), "{page}");
    }
    ensure!(!two.log().contains("ERROR"), "{}", two.log());
    Ok(())
}

/// Creates a session as the console's page does; returns its id.
async fn create(person: &Person, address: SocketAddr) -> Result<String> {
    let body = r#"{"cluster":"sail","name":"mine"}"#;
    let request = format!(
        "POST /api/v1/sessions HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         x-berth-request: 1\r\norigin: http://{address}\r\ncontent-length: {}\r\n{}\r\n{body}",
        body.len(),
        person.headers()
    );
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    tokio::time::timeout(LIMIT, stream.read_to_string(&mut answer)).await??;
    ensure!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    let (_, id) = answer.split_once("\"id\":\"").context("no id")?;
    Ok(id.split('"').next().unwrap_or_default().to_owned())
}
