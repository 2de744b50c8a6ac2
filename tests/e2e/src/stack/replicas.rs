//! More replicas of the services of a stack.

use super::{Stack, manager_service, proxy_service};
use anyhow::Result;
use local_stack::Service;
use local_stack::config::{self, Addresses, Tls};
use std::net::SocketAddr;
use test_support::ports::free_ports;

/// Variables of a process.
type Env<'a> = &'a [(String, String)];

/// One more session-manager of a stack.
#[derive(Debug)]
pub struct AnotherManager {
    /// The process.
    pub service: Service,
    /// Where its public API is.
    pub public: SocketAddr,
    /// Where its internal API is.
    pub internal: SocketAddr,
}

/// One more token-issuer of a stack.
#[derive(Debug)]
pub struct AnotherIssuer {
    /// The process.
    pub service: Service,
    /// Where its API is.
    pub api: SocketAddr,
    /// Where its key set is.
    pub jwks: SocketAddr,
}

impl Stack {
    /// One more session-manager of the same stack, ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn another_manager(&self) -> Result<AnotherManager> {
        self.another_manager_with(&[]).await
    }

    /// The same, with more of its environment.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn another_manager_with(&self, env: Env<'_>) -> Result<AnotherManager> {
        let [manager, internal, manager_admin] = free_ports()?;
        let addresses = Addresses {
            manager,
            internal,
            manager_admin,
            ..self.addresses
        };
        let dir = self.dir.path().join("another-manager");
        std::fs::create_dir_all(&dir)?;
        let store = self.options.store.clone().unwrap_or_else(|| self.redis.url());
        let service = manager_service(&dir, addresses, &store, &self.accounts, &self.options)?;
        Ok(AnotherManager {
            service: started(service, env).await?,
            public: manager,
            internal,
        })
    }

    /// One more token-issuer of the same stack with the same keys, ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn another_issuer_with(&self, env: Env<'_>) -> Result<AnotherIssuer> {
        let [issuer, jwks, issuer_admin] = free_ports()?;
        let addresses = Addresses {
            issuer,
            jwks,
            issuer_admin,
            ..self.options.behind_balancer(self.addresses)
        };
        let config = config::Issuer {
            addresses: &addresses,
            signing_key: &self.dir.path().join("signing.pem"),
            tls: self.options.tls == Tls::Required,
            more: &self.options.issuer,
        };
        let dir = self.dir.path().join("another-issuer");
        std::fs::create_dir_all(&dir)?;
        let service = Service::new("token-issuer", &dir, &config.toml(), issuer_admin)?;
        Ok(AnotherIssuer {
            service: started(service, env).await?,
            api: issuer,
            jwks,
        })
    }

    /// One more proxy of the same stack, ready, and where it listens.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn another_proxy(&self) -> Result<(Service, SocketAddr)> {
        self.another_proxy_with(&[]).await
    }

    /// The same, with more of its environment.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn another_proxy_with(&self, env: Env<'_>) -> Result<(Service, SocketAddr)> {
        let [proxy, proxy_admin] = free_ports()?;
        let addresses = Addresses {
            proxy,
            proxy_admin,
            ..self.addresses
        };
        let dir = self.dir.path().join("another-proxy");
        std::fs::create_dir_all(&dir)?;
        let service = proxy_service(&dir, self.dir.path(), addresses, &self.options)?;
        Ok((started(service, env).await?, proxy))
    }
}

async fn started(mut service: Service, env: Env<'_>) -> Result<Service> {
    for (name, value) in env {
        service.set_env(name, value);
    }
    service.start_ready().await?;
    Ok(service)
}
