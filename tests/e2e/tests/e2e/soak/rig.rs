//! Two of each service behind balancers, TLS for Spark clients, one Sail.

use anyhow::Result;
use e2e::{
    AnotherIssuer, AnotherManager, Link, Server, Service, Stack, StackOptions, Tls,
    shared_sail_without_limits,
};
use local_stack::berth::new_signing_key;
use session_token::Signer;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use tempfile::TempDir;

/// Everything that runs.
pub(super) struct Rig {
    pub(super) stack: Stack,
    pub(super) manager: AnotherManager,
    pub(super) issuer: AnotherIssuer,
    pub(super) proxy: (Service, SocketAddr),
    pub(super) consoles: [(Service, SocketAddr); 2],
    pub(super) balancers: Balancers,
    pub(super) keys: Keys,
    _server: Server,
}

/// What clients and services call.
pub(super) struct Balancers {
    /// session-manager's public API.
    pub(super) public: Link,
    internal: Link,
    pub(super) issuers: Link,
    key_sets: Link,
    pub(super) proxies: Link,
    pub(super) consoles: Link,
}

/// The folder of signing keys.
pub(super) struct Keys {
    dir: TempDir,
    /// Their ids.
    made: Vec<String>,
}

impl Keys {
    /// A folder with one key.
    fn new() -> Result<Self> {
        let mut keys = Self {
            dir: tempfile::Builder::new().prefix("berth-keys-").tempdir()?,
            made: Vec::new(),
        };
        keys.rotate()?;
        Ok(keys)
    }

    /// One more key: it is published immediately and signs after its time.
    pub(super) fn rotate(&mut self) -> Result<()> {
        let file = self.dir.path().join(format!("{:03}.pem", self.made.len()));
        new_signing_key(&file)?;
        let signer = Signer::from_pkcs8_pem(&std::fs::read_to_string(&file)?)?;
        self.made.push(signer.kid().to_owned());
        Ok(())
    }

    /// The later keys that are not among these.
    pub(super) fn unused(&self, signed: &BTreeSet<String>) -> Vec<&String> {
        self.made[1..]
            .iter()
            .filter(|key| !signed.contains(*key))
            .collect()
    }
}

impl Balancers {
    async fn start() -> Result<Self> {
        Ok(Self {
            public: Link::to(Vec::new()).await?,
            internal: Link::to(Vec::new()).await?,
            issuers: Link::to(Vec::new()).await?,
            key_sets: Link::to(Vec::new()).await?,
            proxies: Link::to(Vec::new()).await?,
            consoles: Link::to(Vec::new()).await?,
        })
    }

    /// Where verifiers read the key set.
    fn key_set(&self) -> (String, String) {
        let location = format!("http://{}/.well-known/jwks.json", self.key_sets.address);
        ("BERTH__TOKENS__KEYS__LOCATION".to_owned(), location)
    }

    /// Where connection strings lead.
    fn endpoint(&self) -> (String, String) {
        let endpoint = format!("localhost:{}", self.proxies.address.port());
        ("BERTH__PUBLIC__ENDPOINT".to_owned(), endpoint)
    }

    /// Where consoles find the APIs.
    fn apis(&self) -> [(&'static str, String); 2] {
        [
            ("BERTH__MANAGER__URI", format!("http://{}", self.public.address)),
            ("BERTH__ISSUER__URI", format!("http://{}", self.issuers.address)),
        ]
    }
}

impl Rig {
    pub(super) async fn start() -> Result<Self> {
        let server = Server::sail_with(&[("SAIL_SPARK__SESSION_TIMEOUT_SECS", "86400")]).await?;
        let keys = Keys::new()?;
        let balancers = Balancers::start().await?;
        let mut stack = Stack::prepare(&options(&server, &keys, &balancers)).await?;
        let env = [balancers.key_set()];
        for service in [&mut stack.manager, &mut stack.proxy] {
            service.set_env(&env[0].0, &env[0].1);
        }
        let endpoint = balancers.endpoint();
        stack.issuer.set_env(&endpoint.0, &endpoint.1);
        let of = |uri: &str| -> Result<SocketAddr> { Ok(uri.trim_start_matches("http://").parse()?) };
        let (public, api) = (of(&stack.manager_uri)?, of(stack.issuer_uri())?);
        balancers.internal.point_at(vec![stack.internal_address]);
        balancers.key_sets.point_at(vec![stack.jwks_address]);
        stack.up().await?;
        let manager = stack.another_manager_with(&env).await?;
        balancers
            .internal
            .point_at(vec![stack.internal_address, manager.internal]);
        balancers.public.point_at(vec![public, manager.public]);
        let issuer = stack.another_issuer_with(&[endpoint]).await?;
        balancers.key_sets.point_at(vec![stack.jwks_address, issuer.jwks]);
        balancers.issuers.point_at(vec![api, issuer.api]);
        let proxy = stack.another_proxy_with(&env).await?;
        balancers.proxies.point_at(vec![stack.proxy_address, proxy.1]);
        let consoles = [
            console(&stack, &balancers).await?,
            console(&stack, &balancers).await?,
        ];
        balancers.consoles.point_at(vec![consoles[0].1, consoles[1].1]);
        // The commands of the forwarder call the balancer too.
        stack.manager_uri = format!("http://{}", balancers.public.address);
        Ok(Self {
            stack,
            manager,
            issuer,
            proxy,
            consoles,
            balancers,
            keys,
            _server: server,
        })
    }

    /// The processes of the services.
    pub(super) fn processes(&self) -> Vec<(String, Option<u32>)> {
        [
            ("manager 0", &self.stack.manager),
            ("manager 1", &self.manager.service),
            ("issuer 0", &self.stack.issuer),
            ("issuer 1", &self.issuer.service),
            ("proxy 0", &self.stack.proxy),
            ("proxy 1", &self.proxy.0),
            ("console 0", &self.consoles[0].0),
            ("console 1", &self.consoles[1].0),
        ]
        .map(|(name, service)| (name.to_owned(), service.pid()))
        .to_vec()
    }

    /// The services in the order of a rolling restart.
    pub(super) fn services(&mut self) -> [&mut Service; 8] {
        let [(console, _), (other_console, _)] = &mut self.consoles;
        [
            &mut self.stack.manager,
            &mut self.manager.service,
            &mut self.stack.issuer,
            &mut self.issuer.service,
            &mut self.stack.proxy,
            &mut self.proxy.0,
            console,
            other_console,
        ]
    }
}

async fn console(stack: &Stack, balancers: &Balancers) -> Result<(Service, SocketAddr)> {
    let (mut service, address) = stack.console("").await?;
    for (name, value) in balancers.apis() {
        service.set_env(name, &value);
    }
    service.terminate().await?;
    service.start_ready().await?;
    Ok((service, address))
}

fn options(server: &Server, keys: &Keys, balancers: &Balancers) -> StackOptions {
    StackOptions {
        tls: Tls::Required,
        manager: shared_sail_without_limits(server.address),
        // The shortest time that is allowed.
        issuer: format!(
            "keys.dir = \"{}\"\nkeys.publish_before_signing = \"90s\"\nlimits.calls_per_second_per_address = 0\n",
            keys.dir.path().display()
        ),
        managers: Some(balancers.internal.address),
        ..StackOptions::default()
    }
}
