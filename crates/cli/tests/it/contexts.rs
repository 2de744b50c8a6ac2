//! Contexts, and the order of precedence of settings.

use crate::support::{Berth, Stack, free_address};
use serde_json::Value;

#[tokio::test]
async fn contexts_are_made_chosen_changed_and_deleted() {
    let berth = Berth::new();
    let set = [
        "context",
        "set",
        "prod",
        "--manager",
        "https://m.example:8081",
        "--ca",
        "ca.pem",
    ];
    // Variables of the environment are not stored.
    berth
        .run(&set, &[("BERTH_ISSUER", "https://i.example:8083")])
        .await
        .good();
    berth
        .run(
            &[
                "context",
                "set",
                "lab",
                "--issuer",
                "http://127.0.0.1:1",
                "--key-file",
                "/k",
            ],
            &[],
        )
        .await
        .good();
    let list = berth
        .run(&["--output", "json", "context", "list"], &[])
        .await
        .good()
        .json();
    let current = |list: &Value, name: &str| {
        let contexts = list.as_array().unwrap();
        contexts.iter().find(|context| context["name"] == name).unwrap()["current"] == true
    };
    assert!(current(&list, "prod") && !current(&list, "lab"), "{list}");
    let prod = &list[1];
    assert_eq!(prod["manager"], "https://m.example:8081");
    assert!(prod["issuer"].is_null(), "{prod}");
    assert!(prod["ca"].as_str().unwrap().starts_with('/'), "{prod}");

    berth.run(&["context", "use", "lab"], &[]).await.good();
    let shown = berth
        .run(&["--output", "json", "context", "show"], &[])
        .await
        .good()
        .json();
    assert_eq!(
        (shown["name"].as_str(), shown["key_file"].as_str()),
        (Some("lab"), Some("/k"))
    );
    let chosen = berth
        .run(
            &["--output", "json", "context", "show"],
            &[("BERTH_CONTEXT", "prod")],
        )
        .await;
    assert_eq!(chosen.json()["name"], "prod");

    berth
        .run(
            &["context", "set", "prod", "--unset", "ca", "--unset", "manager"],
            &[],
        )
        .await
        .good();
    let shown = berth
        .run(&["--output", "json", "context", "show", "prod"], &[])
        .await
        .good()
        .json();
    assert!(shown["ca"].is_null() && shown["manager"].is_null(), "{shown}");

    berth.run(&["context", "delete", "lab"], &[]).await.good();
    let none = berth.run(&["context", "show"], &[]).await;
    assert_eq!(none.code, Some(1), "{none:?}");
    assert!(none.stderr.contains("context use"), "{none:?}");
    for bad in [
        vec!["context", "use", "lab"],
        vec!["context", "delete", "lab"],
        vec!["context", "set", "../x"],
        vec!["context", "set", "x", "--manager", "m.example"],
        vec![
            "context",
            "set",
            "x",
            "--manager",
            "https://user:secret@m.example",
        ],
        vec!["context", "set", "x", "--key-file", "a", "--token-file", "b"],
        vec!["context", "set", "x", "--oidc-issuer", "https://i.example"],
        vec![
            "context",
            "set",
            "x",
            "--oidc-issuer",
            "http://i.example",
            "--oidc-client-id",
            "c",
        ],
        vec!["--context", "lab", "session", "list"],
    ] {
        let ended = berth.run(&bad, &[]).await;
        assert_eq!(ended.code, Some(1), "{bad:?}: {ended:?}");
    }
    let list = berth
        .run(&["--output", "json", "context", "list"], &[])
        .await
        .good()
        .json();
    assert_eq!(
        list.as_array().unwrap().len(),
        1,
        "a refused change leaves no context: {list}"
    );
}

#[tokio::test]
async fn an_option_beats_the_environment_and_that_a_context() {
    let stack = Stack::start().await;
    let berth = Berth::new();
    let good = format!("http://{}", stack.manager);
    let bad = format!("http://{}", free_address());
    let key = berth.write("key", stack.key("ada"));
    let wrong = berth.write("wrong-key", "berth_sa_wrong");
    berth
        .run(
            &["context", "set", "it", "--manager", &bad, "--key-file", &wrong],
            &[],
        )
        .await
        .good();
    let list = ["session", "list"];
    let refused = |stderr: &str| !stderr.contains("cannot be reached");

    let context = berth.run(&list, &[]).await;
    assert!(!refused(&context.stderr), "{context:?}");
    let environment = berth.run(&list, &[("BERTH_MANAGER", &good)]).await;
    assert_eq!(environment.code, Some(1));
    assert!(refused(&environment.stderr), "the wrong key: {environment:?}");
    let both = [("BERTH_MANAGER", good.as_str()), ("BERTH_KEY_FILE", key.as_str())];
    berth.run(&list, &both).await.good();
    let option = berth.run(&["--manager", &bad, "session", "list"], &both).await;
    assert!(!refused(&option.stderr), "{option:?}");
    let option = berth.run(&["--key-file", &wrong, "session", "list"], &both).await;
    assert_eq!(option.code, Some(1), "{option:?}");
    berth
        .run(
            &["--manager", &good, "--key-file", &key, "session", "list"],
            &[("BERTH_KEY", "x")],
        )
        .await
        .good();
    // An empty variable counts as not set.
    let empty = [
        ("BERTH_MANAGER", good.as_str()),
        ("BERTH_KEY_FILE", key.as_str()),
        ("BERTH_KEY", ""),
        ("BERTH_CA", ""),
    ];
    berth.run(&list, &empty).await.good();
    let two = [("BERTH_KEY", "a"), ("BERTH_TOKEN", "b")];
    let ambiguous = berth.run(&list, &two).await;
    assert!(ambiguous.stderr.contains("several credentials"), "{ambiguous:?}");
}

#[tokio::test]
async fn a_secret_is_not_accepted_as_an_argument() {
    let berth = Berth::new();
    for option in ["--key", "--bearer"] {
        let ended = berth.run(&["session", "list", option, "geheim"], &[]).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("--key-file"), "{ended:?}");
        assert!(!ended.stderr.contains("geheim"), "{ended:?}");
    }
}

#[tokio::test]
async fn a_user_without_a_home_has_no_contexts_and_no_problem() {
    let stack = Stack::start().await;
    let berth = Berth::new();
    let addresses = stack.addresses();
    let env = stack.env("ada", &addresses);
    let mut command = berth.command(&["session", "list"], &env);
    command.env_remove("HOME").env_remove("BERTH_CONFIG_DIR");
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    // A file that is named must be there for what it is named for.
    let named = [env.as_slice(), &[("BERTH_CONFIG", "/dev/null/config.toml")]].concat();
    let ended = berth.run(&["session", "list"], &named).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
}

/// Reading a pipe without a writer would wait forever.
#[tokio::test]
async fn a_key_file_is_a_regular_file() {
    let berth = Berth::new();
    let pipe = berth.file("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    for option in ["--key-file", "--token-file"] {
        let args = [option, pipe.to_str().unwrap(), "session", "list"];
        let ended = berth.run(&args, &[]).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("regular file"), "{ended:?}");
    }
}
