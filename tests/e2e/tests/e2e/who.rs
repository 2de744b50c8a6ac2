//! Who may do what with whose session.

use anyhow::Result;
use e2e::{Engine, Stack};

#[tokio::test]
async fn others_learn_nothing_and_admins_act() -> Result<()> {
    let stack = Stack::start().await?;
    let session = stack.session("ada", Engine::Sail, &["--name", "mine"])?;
    let nowhere = "s-00000000000000000000";
    for (who, command) in [
        ("bob", "show"),
        ("eve", "show"),
        ("bob", "close"),
        ("eve", "token"),
        ("bob", "token"),
        ("pat", "token"),
    ] {
        let foreign = stack.berth(who, &[command, &session]).unwrap_err().to_string();
        let absent = stack.berth(who, &[command, nowhere]).unwrap_err().to_string();
        assert_eq!(foreign, absent, "{who} {command}");
    }
    assert_eq!(stack.berth("bob", &["list"])?.as_array().map(Vec::len), Some(0));
    assert_eq!(stack.berth("olga", &["list"])?[0]["id"], session.as_str());
    stack.token("olga", &session)?;
    assert_eq!(stack.berth("olga", &["close", &session])?["status"], "closed");
    let refused = stack.token("ada", &session).unwrap_err().to_string();
    assert!(refused.contains("closed"), "{refused}");
    Ok(())
}

#[tokio::test]
async fn keys_are_checked_and_tokens_are_no_keys() -> Result<()> {
    let stack = Stack::start().await?;
    let session = stack.session("ada", Engine::Sail, &[])?;
    let token = stack.token("ada", &session)?;
    for (credential, word) in [
        ("", "key"),
        ("nonsense", "key"),
        ("berth_sa_0000000000000000000000000000000000000000000", "key"),
        (&token, "it is a session token"),
    ] {
        let refused = stack.berth_with(credential, &["list"]).unwrap_err().to_string();
        assert!(refused.to_lowercase().contains(word), "{refused}");
        assert!(
            credential.is_empty() || !refused.contains(credential),
            "a credential is shown: {refused}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_repeated_create_is_the_same_session() -> Result<()> {
    let stack = Stack::start().await?;
    let create = ["create", "--cluster", "sail", "--request-id", "notebook-7"];
    let first = stack.berth("ada", &create)?;
    assert_eq!(stack.berth("ada", &create)?["id"], first["id"]);
    let other = stack
        .berth("ada", &[&create[..], &["--name", "another"]].concat())
        .unwrap_err()
        .to_string();
    assert!(other.contains("request_id"), "{other}");
    assert_ne!(
        stack.berth("bob", &create)?["id"],
        first["id"],
        "request ids are each caller's own"
    );
    Ok(())
}
