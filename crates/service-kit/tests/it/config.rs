//! Loading configuration: what is merged, and that every mistake is named.

use serde::{Deserialize, Serialize};
use service_kit::config::{
    ConfigArgs, ConfigError, Problems, Secret, Sources, Start, Validate, duration, load, start, to_toml,
};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;
use tempfile::NamedTempFile;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Shop {
    name: String,
    open: bool,
    shelves: u16,
    rate: f64,
    tags: Vec<String>,
    ports: Vec<u16>,
    till: Till,
    staff: Vec<Person>,
    kind: Kind,
    nick: Option<String>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Till {
    address: SocketAddr,
    #[serde(with = "duration")]
    patience: Duration,
    #[serde(with = "duration::option", skip_serializing_if = "Option::is_none")]
    nap: Option<Duration>,
    password: Secret,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Person {
    name: String,
    age: u8,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
enum Kind {
    #[default]
    Corner,
    Super {
        floors: u8,
    },
}

impl Default for Shop {
    fn default() -> Self {
        Self {
            name: "unnamed".into(),
            open: false,
            shelves: 3,
            rate: 0.5,
            tags: Vec::new(),
            ports: Vec::new(),
            till: Till::default(),
            staff: Vec::new(),
            kind: Kind::Corner,
            nick: None,
        }
    }
}

impl Default for Till {
    fn default() -> Self {
        Self {
            address: "127.0.0.1:1".parse().unwrap(),
            patience: Duration::from_secs(30),
            nap: None,
            password: Secret::default(),
        }
    }
}

impl Validate for Shop {
    fn validate(&self, problems: &mut Problems) {
        problems.require(self.shelves <= 10, "shelves", "must be at most 10");
        problems.check("till", &self.till);
        problems.check_all("staff", &self.staff);
    }
}

impl Validate for Till {
    fn validate(&self, problems: &mut Problems) {
        problems.require(
            self.patience >= Duration::from_secs(1),
            "patience",
            "must be at least 1s",
        );
    }
}

impl Validate for Person {
    fn validate(&self, problems: &mut Problems) {
        problems.require(self.age >= 18, "age", "must be at least 18");
    }
}

fn file(extension: &str, text: &str) -> NamedTempFile {
    let mut file = tempfile::Builder::new()
        .suffix(&format!(".{extension}"))
        .tempfile()
        .unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn read(extension: &str, text: &str, env: &[(&str, &str)]) -> Result<Shop, ConfigError> {
    let file = file(extension, text);
    load(&Sources {
        prefix: "SHOP".into(),
        file: Some(file.path().to_owned()),
        env: env
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
    })
}

fn problems(result: Result<Shop, ConfigError>) -> BTreeMap<String, String> {
    result
        .unwrap_err()
        .problems
        .into_iter()
        .map(|p| (p.key, p.what))
        .collect()
}

#[test]
fn nothing_configured_is_the_defaults() {
    let sources = Sources {
        prefix: "SHOP".into(),
        ..Sources::default()
    };
    assert_eq!(load::<Shop>(&sources).unwrap(), Shop::default());
}

#[test]
fn toml_and_yaml_say_the_same() {
    let toml = r#"
        name = "Anna's"
        open = true
        rate = 2
        tags = ["a", "b"]
        [till]
        address = "[::1]:80"
        patience = "1h 30m"
        nap = "90s"
        [[staff]]
        name = "Bo"
        age = 40
        [kind.super]
        floors = 2
    "#;
    let yaml = "name: Anna's\nopen: true\nrate: 2\ntags: [a, b]\ntill:\n  address: '[::1]:80'\n  patience: 1h 30m\n  nap: 90s\nstaff:\n- {name: Bo, age: 40}\nkind: {super: {floors: 2}}\n";
    let shop = read("toml", toml, &[]).unwrap();
    assert_eq!(shop, read("yaml", yaml, &[]).unwrap());
    assert_eq!(shop.till.patience, Duration::from_secs(5400));
    assert_eq!(
        (shop.shelves, shop.rate, shop.kind),
        (3, 2.0, Kind::Super { floors: 2 })
    );
}

#[test]
fn the_environment_wins_and_is_read_as_what_the_field_is() {
    let shop = read(
        "toml",
        "name = \"file\"\nshelves = 2\nnick = \"Nick\"\n[till]\npatience = \"5s\"\n",
        &[
            ("SHOP__NAME", "123"),
            ("SHOP__OPEN", "true"),
            ("SHOP__SHELVES", " 7 "),
            ("SHOP__RATE", "1.5"),
            ("SHOP__TAGS", "x, y ,,z"),
            ("SHOP__PORTS", "[80, 443]"),
            ("SHOP__TILL__PATIENCE", "2m"),
            ("SHOP__TILL__NAP", "1s"),
            ("SHOP__TILL__PASSWORD", "0123"),
            ("SHOP__STAFF", r#"[{"name": "Cy", "age": 20}]"#),
            ("SHOP__KIND", "corner"),
            ("SHOP__NICK", ""),
            ("SHOPPING", "no"),
            ("OTHER__NAME", "no"),
        ],
    )
    .unwrap();
    assert_eq!(
        (shop.name.as_str(), shop.open, shop.shelves, shop.rate),
        ("123", true, 7, 1.5)
    );
    assert_eq!(
        (shop.tags, shop.ports),
        (vec!["x".into(), "y".into(), "z".into()], vec![80, 443])
    );
    assert_eq!(shop.till.patience, Duration::from_secs(120));
    assert_eq!(shop.till.nap, Some(Duration::from_secs(1)));
    assert_eq!(shop.till.password.expose(), "0123");
    assert_eq!(
        shop.staff,
        [Person {
            name: "Cy".into(),
            age: 20
        }]
    );
    assert_eq!(shop.nick, None);
    let ports = read("toml", "", &[("SHOP__PORTS", "80,443")]).unwrap().ports;
    assert_eq!(ports, [80, 443]);
}

#[test]
fn every_bad_key_is_named_at_once() {
    let found = problems(read(
        "toml",
        r#"
            open = "yes"
            shelves = 11
            rate = "fast"
            tags = "a"
            colour = "red"
            [till]
            address = "nowhere"
            patience = 30
            drawer = 1
            [[staff]]
            name = "Bo"
            [[staff]]
            name = 5
            age = 300
            [[staff]]
            name = "Di"
            age = 17
        "#,
        &[
            ("SHOP__TILL__NAP", "soon"),
            ("SHOP__TILL__DRAW__ER", "1"),
            ("SHOP__KIND", "mega"),
        ],
    ));
    let keys: Vec<_> = found.keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "colour",
            "kind",
            "open",
            "rate",
            "shelves",
            "staff[0].age",
            "staff[1].age",
            "staff[1].name",
            "staff[2].age",
            "tags",
            "till.address",
            "till.draw",
            "till.drawer",
            "till.nap",
            "till.patience",
        ],
        "{found:#?}"
    );
    assert_eq!(found["staff[0].age"], "is required");
    assert_eq!(found["staff[2].age"], "must be at least 18");
    assert_eq!(found["shelves"], "must be at most 10");
    assert!(found["colour"].contains("not a known key"), "{}", found["colour"]);
    assert!(
        found["till.patience"].contains("with a unit"),
        "{}",
        found["till.patience"]
    );
    assert!(
        found["till.nap"].ends_with("(set by SHOP__TILL__NAP)"),
        "{}",
        found["till.nap"]
    );
}

#[test]
fn unknown_keys_are_refused_even_where_the_struct_forgot_to() {
    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default)]
    struct Lax {
        inner: Inner,
        many: Vec<Inner>,
    }
    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default)]
    struct Inner {
        known: u8,
    }
    impl Validate for Lax {
        fn validate(&self, problems: &mut Problems) {
            problems.require(
                self.inner.known == 1 && self.many.len() == 1,
                "inner.known",
                "must be 1",
            );
        }
    }
    let file = file("toml", "top = 1\n[inner]\nknown = 1\nx = 1\n[[many]]\nz = 1\n");
    let error = load::<Lax>(&Sources {
        file: Some(file.path().to_owned()),
        env: [("P__INNER__Y".into(), "1".into())].into(),
        prefix: "P".into(),
    })
    .unwrap_err();
    let mut keys: Vec<_> = error.problems.iter().map(|p| p.key.as_str()).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["inner.x", "inner.y", "many[0].z", "top"]);
}

#[test]
fn secrets_show_nowhere() {
    let secret = "hunter2";
    let shop = read("toml", &format!("[till]\npassword = \"{secret}\"\n"), &[]).unwrap();
    let shown = to_toml(&shop).unwrap();
    assert!(shown.contains("password = \"********\""), "{shown}");
    assert!(!shown.contains(secret) && !format!("{shop:?}").contains(secret));

    for (text, env) in [
        (format!("shelves = \"{secret}\""), None),
        (format!("[till]\nnap = \"{secret}\""), None),
        (format!("[till]\npassword = [\"{secret}\"]"), None),
        (format!("[till]\npassword = \"{secret}\nrest"), None),
        (format!("staff = \"{secret}\""), None),
        (format!("till = \"{secret}\""), None),
        (String::new(), Some(("SHOP__TILL", secret))),
        (String::new(), Some(("SHOP__STAFF", "[hunter2"))),
        (String::new(), Some(("SHOP__SHELVES", secret))),
    ] {
        let error = read("toml", &text, env.as_slice()).unwrap_err().to_string();
        assert!(!error.contains(secret), "{error}");
        assert!(error.contains("1 problem:"), "{error}");
    }
    let error = read("yaml", &format!("till: {{password: \"{secret}"), &[])
        .unwrap_err()
        .to_string();
    assert!(!error.contains(secret), "{error}");
}

#[test]
fn what_is_printed_can_be_read_again() {
    let text = "name = \"x\"\n[till]\npatience = \"90s\"\n[[staff]]\nname = \"Bo\"\nage = 40\n";
    let shop = read("toml", text, &[]).unwrap();
    assert_eq!(read("toml", &to_toml(&shop).unwrap(), &[]).unwrap(), shop);
}

#[test]
fn files_that_cannot_be_read_are_named() {
    for (name, says) in [
        ("/nonexistent/x.toml", "cannot be read"),
        ("/etc/hostname", "must end in"),
    ] {
        let error = load::<Shop>(&Sources {
            file: Some(name.into()),
            ..Sources::default()
        })
        .unwrap_err()
        .to_string();
        assert!(error.contains(name) && error.contains(says), "{error}");
    }
    let error = read("toml", "a = 1\nb = \n", &[]).unwrap_err().to_string();
    assert!(error.contains("line 2"), "{error}");
    assert!(read("yaml", "- a\n- b\n", &[]).is_err());
    assert!(read("yaml", "", &[]).is_ok() && read("toml", "", &[]).is_ok());
}

#[test]
fn over_defaults_one_field_of_a_section_is_enough() {
    #[derive(Debug, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Outer {
        listen: service_kit::listen::ListenerConfig,
        store: Store,
    }
    #[derive(Debug, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Store {
        url: Secret,
        names: Vec<String>,
    }
    impl Default for Outer {
        fn default() -> Self {
            let listen = service_kit::listen::ListenerConfig::plaintext("127.0.0.1:8081".parse().unwrap());
            Self {
                listen,
                store: Store::default(),
            }
        }
    }
    impl Default for Store {
        fn default() -> Self {
            Self {
                url: Secret::new("redis://localhost"),
                names: vec!["a".into(), "b".into()],
            }
        }
    }
    impl Validate for Outer {
        fn validate(&self, problems: &mut Problems) {
            problems.check("listen", &self.listen);
        }
    }
    let sources = |env: &[(&str, &str)]| Sources {
        prefix: "P".into(),
        file: None,
        env: env
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
    };
    let outer: Outer = load(&sources(&[
        ("P__LISTEN__INSECURE", "true"),
        ("P__STORE__NAMES", "c"),
    ]))
    .unwrap();
    assert!(outer.listen.insecure && outer.listen.address.port() == 8081);
    assert_eq!(
        (outer.store.url.expose(), outer.store.names),
        ("redis://localhost", vec!["c".to_owned()])
    );

    let error = load::<Outer>(&sources(&[
        ("P__LISTEN__ADDRESS", "x"),
        ("P__LISTEN__X", "1"),
        ("P__STORE__NAMES__X", "1"),
    ]))
    .unwrap_err();
    let mut keys: Vec<_> = error.problems.iter().map(|p| p.key.as_str()).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["listen.address", "listen.x", "store.names"], "{error}");
}

#[test]
fn the_options_check_or_print_instead_of_running() {
    let file = file("toml", "name = \"Anna's\"\n[till]\npassword = \"hunter2\"\n");
    let args = ConfigArgs {
        config: Some(file.path().to_owned()),
        ..ConfigArgs::default()
    };
    let run = start::<Shop>(&args, "NO_SUCH_PREFIX").unwrap();
    assert!(matches!(run, Start::Run(shop) if shop.name == "Anna's"));

    let print = ConfigArgs {
        print_config: true,
        ..args.clone()
    };
    let Start::Print(text) = start::<Shop>(&print, "NO_SUCH_PREFIX").unwrap() else {
        panic!("runs")
    };
    assert!(text.contains("Anna's") && !text.contains("hunter2"), "{text}");

    let check = ConfigArgs {
        check_config: true,
        ..args
    };
    assert!(matches!(
        start::<Shop>(&check, "NO_SUCH_PREFIX"),
        Ok(Start::Print(_))
    ));
    let missing = ConfigArgs {
        config: Some("/nonexistent.toml".into()),
        ..check
    };
    assert!(start::<Shop>(&missing, "NO_SUCH_PREFIX").is_err());
}
