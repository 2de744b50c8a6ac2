//! Two replicas behind a balancer that alternates: any of them continues what
//! the other began.

use super::installation::Balancer;
use super::{Browser, Installation, Provider, through};

#[tokio::test]
async fn a_sign_in_crosses_replicas_and_outlives_one() {
    let provider = Provider::start().await;
    let installation = Installation::start(Some(&provider)).await;
    let (listener, address) = Balancer::bind().await;
    let config = provider.config(installation.dir.path(), &format!("http://{address}"));
    let (one, two) = (
        installation.console(&config).await,
        installation.console(&config).await,
    );
    let balancer = Balancer::serve(listener, vec![one.address, two.address]);

    // Login at one, callback at two, session at one and two.
    let browser = Browser::new(balancer.address);
    assert_eq!(through(&browser, "/auth/login/corp").await.status, 303);
    assert_eq!(balancer.served(), [1, 1]);
    for _ in 0..2 {
        assert_eq!(browser.who().await.as_deref(), Some("corp|grace"));
    }
    assert_eq!(balancer.served(), [2, 2]);

    // One ends between login and callback.
    let second = Browser::new(balancer.address);
    let to_provider = second.get("/auth/login/corp").await;
    one.kill();
    wait_until_refused(one.address).await;
    let back = Browser::at_url(to_provider.header("location")).get_url().await;
    let answer = second.get(super::path_of(back.header("location"))).await;
    assert_eq!(answer.status, 303, "{answer:?}");
    for who in [&browser, &second] {
        assert_eq!(who.who().await.as_deref(), Some("corp|grace"));
    }
}

async fn wait_until_refused(address: std::net::SocketAddr) {
    for _ in 0..500 {
        if tokio::net::TcpStream::connect(address).await.is_err() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{address} still listens");
}
