//! Redis over TLS, with a private authority, client certificates and ACL users.

use crate::common;
use crate::common::{Draft, commit, eventually, touch};
use futures::StreamExt;
use session_store::Feed;
use session_store::prelude::*;
use session_store::redis::{ConnectError, Credentials, Options, RedisStore, TlsFiles};
use test_support::redis::{Certificates, PrivateRedis, RedisOptions, documented_rules};

struct Secured {
    redis: PrivateRedis,
    certificates: Certificates,
    port: u16,
}

impl Secured {
    async fn start() -> Self {
        let certificates = Certificates::make().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let redis = PrivateRedis::start_with(RedisOptions {
            more: certificates.words(port).unwrap(),
            ..RedisOptions::default()
        })
        .await
        .unwrap();
        Self {
            redis,
            certificates,
            port,
        }
    }

    fn url(&self, login: &str) -> String {
        format!("rediss://{login}127.0.0.1:{}/", self.port)
    }

    fn options(&self) -> Options {
        let (certificate, key) = self.certificates.client();
        Options {
            tls: TlsFiles {
                ca: Some(self.certificates.ca()),
                certificate: Some(certificate),
                key: Some(key),
            },
            ..Options::default()
        }
    }
}

#[tokio::test]
async fn a_client_with_a_certificate_works_and_no_other() {
    let secured = Secured::start().await;
    let store = RedisStore::connect(&secured.url(""), &secured.options())
        .await
        .unwrap();
    let mut feed = store.changes();
    assert!(matches!(feed.next().await, Some(Feed::Reset)));
    let store: common::Store = std::sync::Arc::new(store);
    let session = Draft::default().store(&store).await;
    let session = commit(&store, touch(&session)).await;
    assert_eq!(store.get(&session.key()).await.unwrap(), Some(session));
    assert!(matches!(feed.next().await, Some(Feed::Change(_))));

    let without_own = Options {
        tls: TlsFiles {
            certificate: None,
            key: None,
            ..secured.options().tls
        },
        ..secured.options()
    };
    let strangers = Certificates::make().unwrap();
    let of_strangers = Options {
        tls: TlsFiles {
            ca: Some(strangers.ca()),
            ..secured.options().tls
        },
        ..secured.options()
    };
    for (who, options) in [
        ("no certificate", without_own),
        ("trusts somebody else", of_strangers),
        (
            "trusts the system's authorities",
            Options {
                tls: TlsFiles::default(),
                ..Options::default()
            },
        ),
    ] {
        let refused = RedisStore::connect(&secured.url(""), &options).await;
        assert!(
            matches!(refused, Err(ConnectError::Unavailable(_))),
            "{who}: {refused:?}"
        );
    }
    // Not by the name in the certificate.
    let wrong_name = secured.url("").replace("127.0.0.1", "127.0.0.2");
    assert!(
        RedisStore::connect(&wrong_name, &secured.options())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn an_acl_user_needs_only_its_keys_and_its_password_is_never_shown() {
    let secured = Secured::start().await;
    let [rules, _] = documented_rules().unwrap();
    let acl = format!("ACL SETUSER berth on >hunter2 {rules}");
    assert_eq!(secured.redis.command(&acl).await.unwrap(), "+OK\r\n");
    let with = |username: &str, password: &str| Options {
        credentials: Credentials {
            username: Some(username.to_owned()),
            password: Some(password.to_owned()),
        },
        ..secured.options()
    };
    let options = with("berth", "hunter2");
    let store = RedisStore::connect(&secured.url(""), &options).await.unwrap();
    RedisStore::connect(&secured.url("berth:hunter2@"), &secured.options())
        .await
        .unwrap();
    assert_eq!(
        secured.redis.command("ACL SETUSER default off").await.unwrap(),
        "+OK\r\n"
    );
    let store: common::Store = std::sync::Arc::new(store);
    let session = Draft::default().store(&store).await;
    let session = commit(&store, touch(&session)).await;
    assert_eq!(store.get(&session.key()).await.unwrap(), Some(session));
    eventually("it goes on", async || store.ping().await).await;

    for refused in [
        RedisStore::connect(&secured.url(""), &with("berth", "hunter3")).await,
        RedisStore::connect(&secured.url("berth:hunter3@"), &secured.options()).await,
        RedisStore::connect(&secured.url(""), &secured.options()).await,
    ] {
        let refused = refused.unwrap_err();
        assert!(matches!(refused, ConnectError::Unavailable(_)), "{refused:?}");
        assert!(!format!("{refused} {refused:?}").contains("hunter"), "{refused}");
    }
    assert!(!format!("{store:?} {options:?}").contains("hunter"));
}
