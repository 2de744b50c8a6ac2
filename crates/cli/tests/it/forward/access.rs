//! Who may call: the secret, the user of the connection, the UNIX socket.

use super::client::Client;
use super::{Forwarder, send};
use crate::support::{Berth, Stack, within};
use rustix::process::Signal;
use session_core::Reason;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use test_support::fake_spark::Shape;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tonic::Code;

#[tokio::test]
async fn a_client_without_the_secret_gets_an_error() {
    let stack = Stack::start().await;
    let session = stack.active("ada").await;
    let forwarder = Forwarder::start(&stack, &[&session, "--port", "0"]).await;
    let wrong = "0".repeat(32);
    let (mut without, mut wrong_client) = (
        forwarder.client_without_secret().await,
        Client::connect(&forwarder.address, Some(&wrong)).await,
    );
    for _ in 0..3 {
        let answer = without.call(Shape::Echo).await;
        assert_eq!(answer.code, Code::Unauthenticated, "{answer:?}");
        assert_eq!(answer.reason, Some(Reason::TokenMissing));
        assert!(answer.message.contains("x-berth-secret"), "{answer:?}");
        let answer = wrong_client.call(Shape::Echo).await;
        assert_eq!(answer.reason, Some(Reason::TokenInvalid), "{answer:?}");
    }
    assert!(stack.spark.seen().requests.is_empty(), "no call is forwarded");
    // A session token, which the client may have, is no secret.
    let token = stack.issue("ada", &session).await.token;
    let answer = without
        .call_header("authorization", &format!("Bearer {token}"))
        .await;
    assert_eq!(answer.reason, Some(Reason::TokenInvalid), "{answer:?}");

    let answer = forwarder.client().await.call(Shape::Echo).await;
    assert_eq!(answer.code, Code::Ok, "{answer:?}");
}

/// Go sends the parameters of the connection string in some calls only, and
/// some clients send a token and nothing else.
#[tokio::test]
async fn the_secret_counts_for_its_connection_and_can_be_a_token() {
    let stack = Stack::start().await;
    let session = stack.active("ada").await;
    let forwarder = Forwarder::start(&stack, &[&session, "--port", "0"]).await;
    let secret = forwarder.secret().unwrap();
    let mut client = forwarder.client_without_secret().await;
    let answer = client.call_header("x-berth-secret", secret).await;
    assert_eq!(answer.code, Code::Ok, "{answer:?}");
    assert_eq!(client.call(Shape::Echo).await.code, Code::Ok);
    for header in ["authorization", "authentication"] {
        let mut client = forwarder.client_without_secret().await;
        let answer = client.call_header(header, &format!("Bearer {secret}")).await;
        assert_eq!(answer.code, Code::Ok, "{header}: {answer:?}");
    }
    assert_eq!(
        forwarder
            .client_without_secret()
            .await
            .call(Shape::Echo)
            .await
            .code,
        Code::Unauthenticated
    );
    // The engine sees neither the secret nor a token.
    let seen = format!("{:?}", stack.spark.seen());
    assert!(!seen.contains(secret) && !seen.contains("earer"), "{seen}");
}

#[tokio::test]
async fn readiness_needs_no_secret_on_either_version_of_http() {
    let stack = Stack::start().await;
    let session = stack.active("ada").await;
    let forwarder = Forwarder::start(&stack, &[&session, "--port", "0"]).await;
    let mut client = forwarder.client_without_secret().await;
    let ready = client.get("/readyz").await;
    assert_eq!((ready.0.as_u16(), ready.1.as_str()), (200, "ready\n"));
    assert_eq!(client.get("/other").await.0, 404);
    for (request, wanted) in [
        ("GET /readyz", "HTTP/1.1 200 OK"),
        ("DELETE /readyz", "HTTP/1.1 405"),
        ("GET /spark.connect.SparkConnectService/Config", "HTTP/1.1 404"),
    ] {
        let mut stream = TcpStream::connect(&forwarder.address).await.unwrap();
        let text = format!("{request} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within("the answer", stream.read_to_string(&mut answer))
            .await
            .unwrap();
        assert!(answer.starts_with(wanted), "{request}: {answer}");
    }
}

#[tokio::test]
async fn a_socket_is_private_and_needs_no_secret() {
    let stack = Stack::start().await;
    let session = stack.active("ada").await;
    let path = stack.dir.path().join("spark.sock");
    let forwarder = Forwarder::start(&stack, &[&session, "--socket", path.to_str().unwrap()]).await;
    assert_eq!(forwarder.url, format!("unix:{}", path.display()));
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let answer = forwarder.client().await.call(Shape::Echo).await;
    assert_eq!(answer.code, Code::Ok, "{answer:?}");
    assert_eq!(forwarder.client().await.get("/readyz").await.0, 200);
    assert_eq!(forwarder.end(Signal::TERM).await, Some(0));
    assert!(!path.exists());
}

/// `localhost` can be either address, and another user could listen on the one that is free.
#[tokio::test]
async fn both_addresses_of_localhost_are_served() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        eprintln!("this machine has no IPv6");
        return;
    }
    let stack = Stack::start().await;
    let session = stack.active("ada").await;
    let forwarder = Forwarder::start(&stack, &[&session, "--port", "0"]).await;
    let (_, port) = forwarder.address.rsplit_once(':').unwrap();
    let address = format!("[::1]:{port}");
    let mut client = Client::connect(&address, forwarder.secret()).await;
    let answer = client.call(Shape::Echo).await;
    assert_eq!(answer.code, Code::Ok, "{answer:?}");
    let answer = Client::connect(&address, None).await.call(Shape::Echo).await;
    assert_eq!(answer.reason, Some(Reason::TokenMissing), "{answer:?}");

    let own = Forwarder::start(&stack, &[&session, "--port", "0", "--trust-own-processes"]).await;
    let (_, port) = own.address.rsplit_once(':').unwrap();
    let mut client = Client::connect(&format!("[::1]:{port}"), None).await;
    assert_eq!(client.call(Shape::Echo).await.code, Code::Ok);

    let taken = std::net::TcpListener::bind("[::1]:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let addresses = stack.addresses();
    let args = ["connect", &session, "--port", &port];
    let ended = Berth::new().run(&args, &stack.env("ada", &addresses)).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    for word in ["[::1]", "is in use", "--port 0"] {
        assert!(ended.stderr.contains(word), "no {word:?} in {ended:?}");
    }
}

/// A relay that runs as another user of the machine, if this user may start one.
struct OtherUser {
    relay: Child,
    address: String,
}

impl OtherUser {
    async fn start(target: &str) -> Option<Self> {
        const RELAY: &str = "
import socket, sys, threading
host, port = sys.argv[1].rsplit(':', 1)
server = socket.create_server(('127.0.0.1', 0))
print('127.0.0.1:%d' % server.getsockname()[1], flush=True)
def copy(a, b):
    try:
        while data := a.recv(65536):
            b.sendall(data)
    except OSError:
        pass
    b.close()
while True:
    client, _ = server.accept()
    peer = socket.create_connection((host, int(port)))
    threading.Thread(target=copy, args=(client, peer), daemon=True).start()
    threading.Thread(target=copy, args=(peer, client), daemon=True).start()
";
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let mut relay = Command::new("/usr/bin/python3")
            .args(["-c", RELAY, target])
            .current_dir("/")
            .uid(65534)
            .gid(65534)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(relay.stdout.take().unwrap()).lines();
        let address = within("the relay", lines.next_line()).await.unwrap().unwrap();
        Some(Self { relay, address })
    }
}

#[tokio::test]
async fn processes_of_the_user_differ_from_those_of_others() {
    let stack = Stack::start().await;
    let session = stack.active("ada").await;
    let forwarder = Forwarder::start(&stack, &[&session, "--port", "0", "--trust-own-processes"]).await;
    let answer = forwarder.client_without_secret().await.call(Shape::Echo).await;
    assert_eq!(answer.code, Code::Ok, "{answer:?}");
    // Only root can act as another user; without it, the kernel's table is tested beside the code.
    if let Some(other) = OtherUser::start(&forwarder.address).await {
        let answer = Client::connect(&other.address, None)
            .await
            .call(Shape::Echo)
            .await;
        assert_eq!(answer.code, Code::Unauthenticated, "{answer:?}");
        let mut trusted = Client::connect(&other.address, forwarder.secret()).await;
        let answer = trusted.call(Shape::Echo).await;
        assert_eq!(
            answer.code,
            Code::Ok,
            "others may be given the secret: {answer:?}"
        );
        send(&other.relay, Signal::TERM);
    }
}

#[tokio::test]
async fn all_local_users_can_be_trusted_with_a_warning() {
    let stack = Stack::start().await;
    let session = stack.active("ada").await;
    let forwarder = Forwarder::start(&stack, &[&session, "--port", "0", "--trust-local-users"]).await;
    assert!(!forwarder.url.contains("secret"), "{}", forwarder.url);
    let answer = forwarder.client_without_secret().await.call(Shape::Echo).await;
    assert_eq!(answer.code, Code::Ok, "{answer:?}");
    if let Some(other) = OtherUser::start(&forwarder.address).await {
        let answer = Client::connect(&other.address, None)
            .await
            .call(Shape::Echo)
            .await;
        assert_eq!(answer.code, Code::Ok, "{answer:?}");
    }

    // A warning is no hint: --quiet does not omit it.
    let (berth, addresses) = (Berth::new(), stack.addresses());
    let env = stack.env("ada", &addresses);
    let option = "--trust-local-users";
    let mut child = berth.start(&["--quiet", "connect", &session, "--port", "0", option], &env);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let warning = within("the warning", lines.next_line()).await.unwrap();
    assert!(warning.unwrap().contains("every user of this machine"));
    let args = ["--quiet", "exec", &session, option, "--", "true"];
    let ended = berth.run(&args, &env).await.good();
    assert!(ended.stderr.contains("every user of this machine"), "{ended:?}");
    let ended = berth
        .run(&["connect", &session, "--socket", "s", option], &env)
        .await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains(option), "{ended:?}");
}
