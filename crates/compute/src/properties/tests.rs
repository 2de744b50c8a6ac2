//! Examples of valid and invalid definitions.

use super::keys::reserved;
use super::values::MAX_VALUE_BYTES;
use super::*;
use crate::testing::{catalog, process_cluster, static_cluster};
use crate::validate_cluster;
use session_core::{OrgId, Provider};

fn keys(result: Result<(), Invalid>) -> Vec<String> {
    result
        .err()
        .map(|e| e.problems.into_iter().map(|p| p.key).collect())
        .unwrap_or_default()
}

fn text(value: &str) -> PropertyValue {
    PropertyValue::Text(value.to_owned())
}

#[test]
fn reserved_and_unknown_spark_properties_are_named_at_once() {
    let good = [
        ("spark.sql.shuffle.partitions", "4"),
        ("spark.hadoop.fs.s3a.endpoint", "http://minio:9000"),
        ("spark.hadoop.fs.s3a.secret.key", "${BERTH_SECRET_S3}"),
        ("spark.files.maxPartitionBytes", "1m"),
        ("spark.master", "local[2]"),
    ];
    let mut cluster = process_cluster(Engine::Spark, "/opt/spark", &good);
    assert_eq!(validate_cluster(&cluster), Ok(()));
    let bad = [
        ("spark.connect.grpc.binding.address", "0.0.0.0"),
        ("spark.driver.extraJavaOptions", "-Dx"),
        ("spark.executor.extraJavaOptions", "-Dx"),
        ("spark.hadoop.fs.s3a.access.key", "AKIA"),
        ("spark.hadoop.x.password", "${HOME}"),
        ("spark.jars", "x.jar"),
        ("spark.jars.packages", "a:b:1"),
        ("spark.master", "yarn"),
        ("spark.plugins", "X"),
        ("spark.sql.defaultCatalog", "x"),
        ("spark.sql.warehouse.dir", "a\nspark.jars=x"),
        ("spark.yarn.queue", "x"),
        ("not.spark", "x"),
    ];
    cluster = process_cluster(Engine::Spark, "/opt/spark", &bad);
    let mut expected: Vec<&str> = bad.iter().map(|(key, _)| *key).collect();
    expected.sort_unstable();
    assert_eq!(keys(validate_cluster(&cluster)), expected);
}

#[test]
fn reserved_and_unknown_sail_variables_are_named_at_once() {
    let good = [
        ("SAIL_EXECUTION__BATCH_SIZE", "1024"),
        ("AWS_REGION", "eu-west-1"),
        ("RUST_LOG", "info"),
    ];
    assert_eq!(
        validate_cluster(&process_cluster(Engine::Sail, "/opt/sail", &good)),
        Ok(())
    );
    let bad = [
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("LD_PRELOAD", "/x.so"),
        ("SAIL_CATALOG__LIST", "[]"),
        ("SAIL_MODE", "cluster"),
        ("SAIL_SPARK__SESSION_TIMEOUT_SECS", "1"),
    ];
    let named = keys(validate_cluster(&process_cluster(
        Engine::Sail,
        "/opt/sail",
        &bad,
    )));
    assert_eq!(named, bad.map(|(key, _)| key));
}

#[test]
fn fields_of_a_process_cluster_are_checked() {
    let mut cluster = process_cluster(Engine::Sail, "sail", &[]);
    if let Provider::Process {
        python,
        driver_memory,
        ..
    } = &mut cluster.provider
    {
        *python = Some("/usr/bin/python3".into());
        *driver_memory = Some("1g".into());
    }
    assert_eq!(
        keys(validate_cluster(&cluster)),
        ["program", "python", "driver_memory"]
    );
    cluster.engine = Engine::Spark;
    if let Provider::Process { driver_memory, .. } = &mut cluster.provider {
        *driver_memory = Some("1g -Dx=y".into());
    }
    assert_eq!(keys(validate_cluster(&cluster)), ["program", "driver_memory"]);
}

#[test]
fn an_existing_server_is_for_one_organization_unless_it_is_said_otherwise() {
    let with = |engine, orgs: &[&str], allow: bool| {
        let mut cluster = static_cluster(engine, &["a:1"]);
        cluster.granted_orgs = orgs.iter().map(|org| org.parse().unwrap()).collect();
        if let Provider::Static {
            allow_shared_untrusted,
            ..
        } = &mut cluster.provider
        {
            *allow_shared_untrusted = allow;
        }
        validate_cluster(&cluster)
    };
    for engine in [Engine::Sail, Engine::Spark] {
        assert_eq!(with(engine, &["acme"], false), Ok(()));
        assert_eq!(keys(with(engine, &[], false)), ["granted_orgs"]);
        assert_eq!(keys(with(engine, &["a", "b"], false)), ["granted_orgs"]);
        assert_eq!(with(engine, &[], true), Ok(()));
        assert_eq!(with(engine, &["a", "b"], true), Ok(()));
    }
}

#[test]
fn endpoints_are_checked() {
    let mut cluster = static_cluster(Engine::Spark, &["a:1", "A:1", "nonsense"]);
    if let Provider::Static { endpoints, .. } = &mut cluster.provider {
        endpoints[0].token_env = Some("REDIS_URL".into());
    }
    assert_eq!(
        keys(validate_cluster(&cluster)),
        [
            "endpoints[0].token_env",
            "endpoints[1].address",
            "endpoints[2].address"
        ]
    );
    assert_eq!(
        keys(validate_cluster(&static_cluster(Engine::Sail, &[]))),
        ["endpoints"]
    );
}

#[test]
fn catalogs_name_their_kind_and_refer_to_their_own_secrets() {
    let class = "org.apache.iceberg.spark.SparkCatalog";
    let good = [
        ("", text(class)),
        ("uri", text("http://c")),
        ("token", text("${BERTH_SECRET_ACME__LAKE}")),
    ];
    assert_eq!(validate_catalog(&catalog(Engine::Spark, "lake", &good)), Ok(()));
    let foreign = [
        ("", text(class)),
        ("token", text("${BERTH_SECRET_OTHER__LAKE}")),
        ("password", text("x")),
    ];
    assert_eq!(
        keys(validate_catalog(&catalog(Engine::Spark, "lake", &foreign))),
        ["password", "token"]
    );
    let sail = [
        ("name", text("x")),
        ("bearer_access_token_file", text("/etc/shadow")),
        ("warehouse", text("a\"}, {type=\"memory")),
    ];
    assert_eq!(
        keys(validate_catalog(&catalog(Engine::Sail, "lake", &sail))),
        [
            "type",
            "bearer_access_token_file",
            "bearer_access_token_file",
            "name",
            "warehouse"
        ]
    );
    let nested = [
        ("type", text("memory")),
        ("initial_database", PropertyValue::List(vec!["a".into()])),
    ];
    assert_eq!(validate_catalog(&catalog(Engine::Sail, "lake", &nested)), Ok(()));
    for reference in ["${BERTH_SECRET_ACME__LAKE}", "x${BERTH_SECRET_ACME__LAKE}"] {
        let list = PropertyValue::List(vec!["a".into(), reference.into()]);
        let hidden = [("type", text("memory")), ("scopes", list)];
        let refused = validate_catalog(&catalog(Engine::Sail, "lake", &hidden)).unwrap_err();
        assert_eq!(refused.problems.len(), 1, "{refused}");
        assert!(
            refused
                .to_string()
                .starts_with("scopes: is a list, and a list cannot refer to secrets"),
            "{refused}"
        );
    }
}

#[test]
fn an_org_cannot_reach_the_secrets_of_an_org_with_a_longer_name() {
    let org = |name: &str| name.parse::<OrgId>().unwrap();
    assert!(is_secret_of(&org("a"), "BERTH_SECRET_A__X"));
    assert!(is_secret_of(&org("a-b"), "BERTH_SECRET_A_B__X"));
    assert!(!is_secret_of(&org("a"), "BERTH_SECRET_A_B__X"));
    assert!(!is_secret_of(&org("a"), "BERTH_SECRET_A__B__X"));
}

#[test]
fn a_catalog_must_fit_the_cluster() {
    let spark = process_cluster(Engine::Spark, "/opt/spark", &[]);
    let mut jdbc = catalog(Engine::Spark, "db", &[("", text("x.JdbcCatalog"))]);
    assert_eq!(validate_use(&spark, &jdbc), Ok(()));
    jdbc.default_database = Some("sales".into());
    assert_eq!(keys(validate_use(&spark, &jdbc)), ["default_database"]);
    assert_eq!(
        validate_use(&static_cluster(Engine::Spark, &["a:1"]), &jdbc),
        Ok(())
    );
    let sail = process_cluster(Engine::Sail, "/opt/sail", &[]);
    assert_eq!(keys(validate_use(&sail, &jdbc)), ["catalog"]);
}

/// Spellings that a lenient parser could accept as the same name.
fn spellings(name: &str) -> Vec<String> {
    let swapped: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_uppercase() {
                c.to_ascii_lowercase()
            } else {
                c.to_ascii_uppercase()
            }
        })
        .collect();
    let last = name.len() - 1;
    let mut all = vec![
        name.to_owned(),
        name.to_ascii_uppercase(),
        name.to_ascii_lowercase(),
        swapped,
        format!("{}{}", name[..last].to_owned(), name[last..].to_ascii_uppercase()),
        format!("{}{}", &name[..last], name[last..].to_ascii_lowercase()),
        format!("{name}.more"),
        format!("{name}__MORE"),
        // Look-alikes: Cyrillic and Greek letters, full width, a combining mark, the Kelvin sign.
        name.replace(['a', 'A'], "\u{0430}"),
        name.replace(['o', 'O'], "\u{03bf}"),
        name.replace(['s', 'S'], "\u{ff53}"),
        name.replace(['k', 'K'], "\u{212a}"),
        format!("{name}\u{0301}"),
        // Other separators.
        name.replace('.', "\u{2024}"),
        name.replace('.', "\u{ff0e}"),
        name.replace("__", "."),
        name.replace('_', "\u{ff3f}"),
        name.replace('_', "-"),
    ];
    for blank in [
        " ", "\t", "\n", "\r", "\0", "\u{a0}", "\u{200b}", "\u{feff}", "\u{202e}",
    ] {
        all.push(format!("{blank}{name}"));
        all.push(format!("{name}{blank}"));
        all.push(format!("{}{blank}{}", &name[..last], &name[last..]));
    }
    for separator in ["=", ":", "#", "!", "\\", "\"", "'", "$", "`", ";", "/", "%", ","] {
        all.push(format!("{name}{separator}"));
        all.push(format!("{separator}{name}"));
    }
    all
}

#[test]
fn what_is_reserved_is_reserved_in_every_spelling() {
    for engine in [Engine::Sail, Engine::Spark] {
        for name in reserved(engine) {
            let good = "spark.files.maxPartitionBytes";
            for key in spellings(name) {
                let may = cluster_key_problem(engine, &key).is_none();
                assert!(!may || key == good, "{engine:?} takes {key:?}");
            }
        }
    }
    // Below an allowed prefix, and inside a name.
    for key in [
        "SAIL_SPARK__session_timeout_secs",
        "SAIL_SPARK__Session_Timeout_Secs",
        "SAIL_RUNTIME__temporary_files__paths",
        "SAIL_SPARK__X.SESSION_TIMEOUT_SECS",
        "sail_spark__SESSION_TIMEOUT_SECS",
        "SAIL_catalog__LIST",
        "RUST_LOG\nLD_PRELOAD",
        "AWS_REGION=x",
        "",
    ] {
        assert!(cluster_key_problem(Engine::Sail, key).is_some(), "{key:?}");
    }
    for key in [
        "spark.sql.defaultcatalog",
        "spark.sql.DEFAULTCATALOG",
        "spark.sql.hive.metastore.jars.path",
        "spark.sql.x.extraJavaOptions",
        "spark.sql.x.EXTRAJAVAOPTIONS",
        "spark.hadoop.x y",
        "spark.hadoop.x\nspark.jars",
        "",
    ] {
        assert!(cluster_key_problem(Engine::Spark, key).is_some(), "{key:?}");
    }
    let long = format!("spark.sql.{}", "x".repeat(300));
    assert!(cluster_key_problem(Engine::Spark, &long).is_some());
}

#[test]
fn a_catalog_cannot_name_what_is_not_its_own() {
    for key in spellings("name").iter().chain(&spellings("token_file")) {
        let refused = catalog_key_problem(Engine::Sail, key).is_some();
        // Sail reads the fields of its list exactly: these are only unknown ones.
        assert!(refused || key.contains("more"), "{key:?}");
    }
    for key in [
        ".", "..", ".x", "x.", "x y", "x\n", "x=y", "x:y", "\u{0430}", "x\0", "x#", "x\\",
    ] {
        assert!(catalog_key_problem(Engine::Spark, key).is_some(), "{key:?}");
    }
    for engine in [Engine::Sail, Engine::Spark] {
        assert!(catalog_key_problem(engine, &"x".repeat(300)).is_some());
    }
}

#[test]
fn one_machine_is_one_jvm() {
    for good in ["local", "local[1]", "local[*]", "local[16,3]", "local[*,2]"] {
        assert!(is_local_master(good), "{good}");
    }
    for bad in [
        "local-cluster[1,1,1024]",
        "localhost:7077",
        "local[",
        "local[]",
        "local[1]x",
        "local[1,2,3]",
        "local[-1]",
        "LOCAL",
        "spark://x:1",
        "yarn",
        "",
    ] {
        assert!(!is_local_master(bad), "{bad}");
    }
}

#[test]
fn values_are_bounded_and_of_one_line() {
    let with = |value: &str| {
        let properties = [("spark.sql.x", value)];
        keys(validate_cluster(&process_cluster(
            Engine::Spark,
            "/opt/spark",
            &properties,
        )))
    };
    let none: [&str; 0] = [];
    for good in [
        "$(reboot)",
        "`reboot`",
        "a; b",
        "-Dx=y",
        "'\"",
        "größe",
        &"x".repeat(MAX_VALUE_BYTES),
    ] {
        assert_eq!(with(good), none, "{good}");
    }
    for bad in [
        "a\nb",
        "a\rb",
        "a\0b",
        "\u{1b}[2J",
        "\u{85}",
        "${HOME}",
        "x${BERTH_SECRET_X}",
        &"x".repeat(MAX_VALUE_BYTES + 1),
    ] {
        assert_eq!(with(bad), ["spark.sql.x"], "{bad:?}");
    }
    let many: Vec<String> = (0..300).map(|n| format!("spark.sql.x{n}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|key| (key.as_str(), "1")).collect();
    assert_eq!(
        keys(validate_cluster(&process_cluster(
            Engine::Spark,
            "/opt/spark",
            &many
        ))),
        ["properties"]
    );
}

#[test]
fn names_that_break_a_table_are_refused_and_values_are_exact() {
    for bad in ["a\u{202e}b", "a\u{200b}", "\u{2028}", "\u{1b}[2J", "a\u{9b}31m"] {
        let mut cluster = process_cluster(Engine::Sail, "/opt/sail", &[]);
        cluster.engine_version = Some(bad.to_owned());
        cluster.client_versions = vec!["4.1".to_owned(), bad.to_owned()];
        assert_eq!(
            keys(validate_cluster(&cluster)),
            ["engine_version", "client_versions"],
            "{bad:?}"
        );
        let mut lake = catalog(Engine::Sail, "lake", &[("type", text("memory"))]);
        lake.allowed_teams = [bad.to_owned()].into();
        assert_eq!(keys(validate_catalog(&lake)), ["allowed_teams"], "{bad:?}");
    }
    let mut lake = catalog(
        Engine::Sail,
        "lake",
        &[
            ("type", text("memory")),
            ("warehouse", text("s3://\u{202e}données")),
        ],
    );
    lake.allowed_teams = ["équipe".to_owned(), "データ".to_owned()].into();
    assert_eq!(validate_catalog(&lake), Ok(()));
}
