//! The whole of Berth with two proxies, what is removed from it, and what is measured then.

use super::api::{Api, is_refusal, until_done};
use super::credentials::Credentials;
use super::manager_relay::ManagerRelay;
use super::spark::{Holder, until_stream_ends};
use super::table::{State, Times};
use super::{REMOVALS, Removal};
use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use e2e::wait::until;
use e2e::{Server, Service, Stack, StackOptions};
use local_stack::berth::new_signing_key;
use session_proto::v1;
use session_token::Signer;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tonic::{Status, Streaming};

const TRY_INTERVAL: Duration = Duration::from_millis(20);
/// Time after which a credential that is still accepted fails the test.
const MAX_ACCEPTED: Duration = Duration::from_secs(60);
/// Signing keys that are ready; one of them signs.
const SIGNING_KEYS: usize = 3;

/// Everything that runs.
pub(super) struct Rig {
    stack: Stack,
    second: Service,
    proxies: [SocketAddr; 2],
    relay: ManagerRelay,
    credentials: Credentials,
    signing_keys: TempDir,
    made_keys: AtomicUsize,
    api: Api,
    _server: Server,
}

/// A session, and a token of it.
struct Victim {
    owner: String,
    session: String,
    issued: v1::IssueSessionTokenResponse,
}

type Measured = JoinSet<Result<(Removal, State, Duration)>>;

async fn collect(mut measured: Measured, times: &mut Times) -> Result<()> {
    while let Some(one) = measured.join_next().await {
        let (removal, state, time) = one??;
        times.add(removal, state, time);
    }
    Ok(())
}

async fn until_calls_end(
    removal: Removal,
    holder: Holder,
    since: Instant,
) -> Result<(Removal, State, Duration)> {
    let time = holder.until_calls_are_refused(since, removal.reasons()).await?;
    Ok((removal, State::WatchCut, time))
}

/// Time for which calls of a credential still succeed.
async fn until_refused(
    since: Instant,
    mut call: impl AsyncFnMut() -> Result<(), Status>,
) -> Result<Duration> {
    loop {
        let outcome = call().await;
        match &outcome {
            Err(status) if is_refusal(status) => return Ok(since.elapsed()),
            Ok(()) | Err(_) if since.elapsed() < MAX_ACCEPTED => {}
            Ok(()) | Err(_) => bail!("not refused: {outcome:?}"),
        }
        tokio::time::sleep(TRY_INTERVAL).await;
    }
}

/// Time until a watch ends.
async fn until_ended(since: Instant, mut watch: Streaming<v1::WatchSessionsResponse>) -> Result<Duration> {
    loop {
        match tokio::time::timeout(MAX_ACCEPTED, watch.message()).await {
            Ok(Ok(Some(_))) => {}
            Ok(Err(status)) if is_refusal(&status) => return Ok(since.elapsed()),
            other => bail!("a watch that ends with a refusal: {other:?}"),
        }
    }
}

impl Rig {
    pub(super) async fn start() -> Result<Self> {
        let server = Server::sail().await?;
        let relay = ManagerRelay::start().await?;
        let credentials = Credentials::new()?;
        let signing_keys = tempfile::tempdir()?;
        let limits = "live_sessions_per_owner = 1000\nlive_sessions = 3000\ncreates_per_minute = 10000\n";
        let mut stack = Stack::prepare(&StackOptions {
            manager: format!(
                "limits.calls_per_second_per_principal = 0\nlimits.calls_per_second_per_address = 0\n\
                 limits.failures_per_minute_per_address = 0\n{}\
                 [[orgs]]\nname = \"acme\"\n[orgs.limits]\n{limits}\
                 [[orgs]]\nname = \"umbrella\"\n[orgs.limits]\n{limits}\
                 [[clusters]]\nname = \"shared\"\nengine = \"sail\"\ngranted_orgs = [\"acme\", \"umbrella\"]\n\
                 [clusters.static]\nallow_shared_untrusted = true\n\
                 endpoints = [{{ address = \"{}\" }}]\n",
                credentials.config(),
                server.address
            ),
            // No key becomes old enough to be preferred.
            issuer: format!(
                "keys.dir = \"{}\"\nkeys.publish_before_signing = \"6h\"\n\
                 limits.calls_per_second_per_address = 0\n",
                signing_keys.path().display()
            ),
            managers: Some(relay.address),
            ..StackOptions::default()
        })
        .await?;
        relay.point_at(stack.internal_address);
        stack.up().await?;
        let (second, address) = stack.another_proxy().await?;
        let rig = Self {
            api: Api::new(&stack)?,
            proxies: [stack.proxy_address, address],
            stack,
            second,
            relay,
            credentials,
            signing_keys,
            made_keys: AtomicUsize::new(0),
            _server: server,
        };
        rig.fill_signing_keys()?;
        Ok(rig)
    }

    /// Measures one removal in the first three states.
    pub(super) async fn round(&self, removal: Removal, times: &mut Times) -> Result<()> {
        if removal.is_of_credential() {
            return self.credential_round(removal, times).await;
        }
        let victim = self.victim(removal).await?;
        let why = removal.reasons();
        let mut ready = Vec::new();
        for proxy in self.proxies {
            let holder = self.holder(proxy, &victim).await?;
            let (stream, left) = (holder.open_stream().await?, holder.leave_operation().await?);
            ready.push((holder, stream, left));
        }
        let since = Instant::now();
        let mut measured = Measured::new();
        for (holder, stream, left) in ready {
            let calls = holder.clone();
            measured.spawn_local(async move {
                let time = calls.until_calls_are_refused(since, why).await?;
                Ok((removal, State::NewCall, time))
            });
            measured.spawn_local(async move {
                let time = until_stream_ends(since, why, stream).await?;
                Ok((removal, State::OpenStream, time))
            });
            measured.spawn_local(async move {
                let time = holder.until_reattach_is_refused(since, why, left).await?;
                Ok((removal, State::Reattach, time))
            });
        }
        self.remove(removal, &victim).await?;
        collect(measured, times).await?;
        self.restore(removal, &victim).await
    }

    /// As [`Self::round`], for a credential of the APIs.
    async fn credential_round(&self, removal: Removal, times: &mut Times) -> Result<()> {
        let (bearer, session) = self.grant(removal).await?;
        let mut watch = self.api.watch(&bearer, &session).await?;
        watch.message().await?.context("the first message of a watch")?;
        let since = Instant::now();
        let mut measured = Measured::new();
        let (api, key, id) = (self.api.clone(), bearer.clone(), session.clone());
        measured.spawn_local(async move {
            let refused = until_refused(since, async || api.describe(&key, &id).await.map(drop));
            Ok((removal, State::NewCall, refused.await?))
        });
        measured
            .spawn_local(async move { Ok((removal, State::OpenStream, until_ended(since, watch).await?)) });
        let (api, key, id) = (self.api.clone(), bearer, session.clone());
        measured.spawn_local(async move {
            let refused = until_refused(since, async || api.watch(&key, &id).await.map(drop));
            Ok((removal, State::Reattach, refused.await?))
        });
        self.remove_credential(removal)?;
        collect(measured, times).await?;
        self.api.close(self.stack.key_of("olga"), &session).await
    }

    /// Gives a credential; returns it with a session that it may use.
    async fn grant(&self, removal: Removal) -> Result<(String, String)> {
        let bearer = match removal {
            Removal::ServiceKey => self.credentials.grant_key()?,
            Removal::ProviderKey => self.credentials.grant_provider_key()?,
            Removal::Role => self.credentials.grant_role()?,
            Removal::Principal
            | Removal::Org
            | Removal::OneToken
            | Removal::AllTokens
            | Removal::Close
            | Removal::SigningKey => bail!("no credential"),
        };
        let owner = if removal == Removal::Role {
            self.stack.key_of("ada")
        } else {
            &bearer
        };
        let session = self.api.create(owner).await?;
        until_done("access", async || self.api.describe(&bearer, &session).await).await?;
        Ok((bearer, session))
    }

    fn remove_credential(&self, removal: Removal) -> Result<()> {
        match removal {
            Removal::ServiceKey => self.credentials.remove_key(),
            Removal::ProviderKey => self.credentials.remove_provider_key(),
            Removal::Role => self.credentials.remove_role(),
            Removal::Principal
            | Removal::Org
            | Removal::OneToken
            | Removal::AllTokens
            | Removal::Close
            | Removal::SigningKey => bail!("no credential"),
        }
    }

    /// Measures all removals while no proxy gets changes of routes. The proxies hold nothing of the
    /// credentials of the APIs: for these the issue of a token is tried.
    pub(super) async fn cut_round(&self, times: &mut Times) -> Result<()> {
        let mut ready = Vec::new();
        let mut credentials = Vec::new();
        for removal in REMOVALS {
            if removal.is_of_credential() {
                credentials.push((removal, self.grant(removal).await?));
            } else if removal != Removal::SigningKey {
                ready.push((removal, self.victim(removal).await?));
            }
        }
        // Their routes are new.
        let mut holders = Vec::new();
        for (removal, victim) in &ready {
            for proxy in self.proxies {
                holders.push((*removal, self.holder(proxy, victim).await?));
            }
        }
        self.relay.cut_watches(true);
        let mut measured = Measured::new();
        let since = Instant::now();
        for (removal, holder) in holders {
            measured.spawn_local(until_calls_end(removal, holder, since));
        }
        let mut sessions = Vec::new();
        for (removal, (bearer, session)) in credentials {
            let (api, id) = (self.api.clone(), session.clone());
            measured.spawn_local(async move {
                let refused = until_refused(since, async || api.issue(&bearer, &id).await.map(drop));
                Ok((removal, State::WatchCut, refused.await?))
            });
            self.remove_credential(removal)?;
            sessions.push(session);
        }
        for (removal, victim) in &ready {
            self.remove(*removal, victim).await?;
        }
        collect(measured, times).await?;
        self.cut_signing_key(times).await?;
        self.relay.cut_watches(false);
        for (removal, victim) in &ready {
            self.restore(*removal, victim).await?;
        }
        for session in sessions {
            self.api.close(self.stack.key_of("olga"), &session).await?;
        }
        self.watches_are_back().await
    }

    /// The signing key is removed alone, because it ends the tokens of all sessions.
    async fn cut_signing_key(&self, times: &mut Times) -> Result<()> {
        let removal = Removal::SigningKey;
        let victim = self.victim(removal).await?;
        let mut holders = Vec::new();
        for proxy in self.proxies {
            holders.push(self.holder(proxy, &victim).await?);
        }
        let (mut measured, since) = (Measured::new(), Instant::now());
        for holder in holders {
            measured.spawn_local(until_calls_end(removal, holder, since));
        }
        self.remove(removal, &victim).await?;
        collect(measured, times).await?;
        self.restore(removal, &victim).await
    }

    async fn watches_are_back(&self) -> Result<()> {
        for proxy in [&self.stack.proxy, &self.second] {
            until("the watch of a proxy", MAX_ACCEPTED, async || {
                let metrics = proxy.admin("/metrics").await.map_err(|error| error.to_string())?;
                let back = metrics.contains("spark_proxy_route_watch_connected 1");
                back.then_some(()).ok_or_else(|| "not connected".to_owned())
            })
            .await?;
        }
        Ok(())
    }

    /// A session for a removal, with a token of a signing key of `keys.dir`.
    async fn victim(&self, removal: Removal) -> Result<Victim> {
        let who = if removal == Removal::Principal {
            "bob"
        } else if removal == Removal::Org {
            "eve"
        } else {
            "ada"
        };
        let owner = self.stack.key_of(who).to_owned();
        let session = self.api.create(&owner).await?;
        let issued = until_done("a token", async || self.api.issue(&owner, &session).await).await?;
        Ok(Victim {
            owner,
            session,
            issued,
        })
    }

    /// The victim's token at a proxy, which has accepted it.
    async fn holder(&self, proxy: SocketAddr, victim: &Victim) -> Result<Holder> {
        let holder = Holder::new(proxy, &victim.issued.token)?;
        holder.is_accepted().await?;
        Ok(holder)
    }

    async fn remove(&self, removal: Removal, victim: &Victim) -> Result<()> {
        let (api, admin) = (&self.api, self.stack.key_of("pat"));
        let Victim {
            owner,
            session,
            issued,
        } = victim;
        match removal {
            Removal::Principal => api.set_principal_disabled(admin, "sa|bob", true).await,
            Removal::Org => api.set_org_disabled(admin, "umbrella", true).await,
            Removal::OneToken => api.revoke(owner, session, &issued.token_id).await,
            Removal::AllTokens => api.revoke_all(owner, session).await,
            Removal::Close => api.close(owner, session).await,
            Removal::SigningKey => Ok(std::fs::remove_file(self.key_file(&issued.token)?)?),
            Removal::ServiceKey | Removal::ProviderKey | Removal::Role => bail!("a credential"),
        }
    }

    /// Undoes a removal, as far as the next one needs it, and ends the session.
    async fn restore(&self, removal: Removal, victim: &Victim) -> Result<()> {
        let (api, admin) = (&self.api, self.stack.key_of("pat"));
        if removal == Removal::Principal {
            api.set_principal_disabled(admin, "sa|bob", false).await?;
        } else if removal == Removal::Org {
            api.set_org_disabled(admin, "umbrella", false).await?;
        } else if removal == Removal::SigningKey {
            self.fill_signing_keys()?;
        }
        until_done("the end of the session", async || {
            let closed = api.close(&victim.owner, &victim.session).await;
            closed.map_err(|error| Status::unknown(format!("{error:#}")))
        })
        .await
    }

    /// New keys take the place of removed ones; the first of all signs.
    fn fill_signing_keys(&self) -> Result<()> {
        let there = std::fs::read_dir(self.signing_keys.path())?.count();
        for _ in there..SIGNING_KEYS {
            let number = self.made_keys.fetch_add(1, Ordering::Relaxed);
            new_signing_key(&self.signing_keys.path().join(format!("{number:04}.pem")))?;
        }
        Ok(())
    }

    /// The file of the key that signed a token.
    fn key_file(&self, token: &str) -> Result<PathBuf> {
        let header = token.split('.').next().unwrap_or_default();
        let header: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header)?)?;
        let mut files: Vec<_> = std::fs::read_dir(self.signing_keys.path())?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        files.push(self.stack.dir.path().join("signing.pem"));
        for file in files.into_iter().filter(|file| file.exists()) {
            if header["kid"] == Signer::from_pkcs8_pem(&std::fs::read_to_string(&file)?)?.kid() {
                return Ok(file);
            }
        }
        bail!("no file has the key {}", header["kid"])
    }
}
