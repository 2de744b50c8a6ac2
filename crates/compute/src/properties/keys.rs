//! Settings of an engine that a definition may contain.
//!
//! An allow-list of prefixes, minus reserved names. Engines accept several spellings of
//! a name (Sail ignores the case of its variables), so reserved names are reserved in
//! every spelling.

use session_core::Engine;

/// Environment of a Sail child that a cluster may set.
const SAIL_ALLOWED: &[&str] = &[
    "SAIL_EXECUTION__",
    "SAIL_OPTIMIZER__",
    "SAIL_PARQUET__",
    "SAIL_PYTHON__",
    "SAIL_RUNTIME__",
    "SAIL_SPARK__",
    "SAIL_TELEMETRY__",
    "AWS_",
    "AZURE_",
    "GOOGLE_",
    "RUST_LOG",
];
const SAIL_RESERVED: &[&str] = &[
    "SAIL_SPARK__SESSION_TIMEOUT_SECS",
    "SAIL_RUNTIME__TEMPORARY_FILES",
    "SAIL_CATALOG__",
];

/// Spark properties that a cluster may set.
const SPARK_ALLOWED: &[&str] = &[
    "spark.sql.",
    "spark.hadoop.",
    "spark.default.parallelism",
    "spark.driver.maxResultSize",
    "spark.executor.heartbeatInterval",
    "spark.files.maxPartitionBytes",
    "spark.io.",
    "spark.kryo",
    "spark.locality.",
    "spark.master",
    "spark.memory.",
    "spark.network.",
    "spark.python.worker.",
    "spark.rdd.",
    "spark.reducer.",
    "spark.rpc.",
    "spark.scheduler.",
    "spark.serializer",
    "spark.shuffle.",
    "spark.speculation",
    "spark.storage.",
    "spark.task.",
];
/// Set by Berth, able to load code, or able to open the server.
const SPARK_RESERVED: &[&str] = &[
    "spark.app.",
    "spark.archives",
    "spark.connect.",
    "spark.driver.bindAddress",
    "spark.driver.extra",
    "spark.driver.host",
    "spark.driver.defaultJavaOptions",
    "spark.driver.memory",
    "spark.executor.extra",
    "spark.executor.defaultJavaOptions",
    "spark.files",
    "spark.jars",
    "spark.local.dir",
    "spark.plugins",
    "spark.pyspark.",
    "spark.python.daemon.module",
    "spark.python.worker.module",
    "spark.sql.defaultCatalog",
    "spark.sql.hive.metastore.jars",
    "spark.submit.",
    "spark.ui.",
];

/// Maximum length of a name, above that of any engine.
const MAX_KEY_BYTES: usize = 256;

/// Returns the reason why a cluster may not set this, if any.
pub(crate) fn cluster_key_problem(engine: Engine, key: &str) -> Option<String> {
    let (reserved, allowed) = match engine {
        Engine::Sail => (SAIL_RESERVED, SAIL_ALLOWED),
        Engine::Spark => (SPARK_RESERVED, SPARK_ALLOWED),
    };
    let is_name = match engine {
        Engine::Sail => is_variable(key),
        Engine::Spark => key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)),
    };
    // An allowed name below a reserved prefix.
    let excepted = engine == Engine::Spark && key == "spark.files.maxPartitionBytes";
    if key.len() > MAX_KEY_BYTES || !is_name {
        Some("has characters that property names cannot have, or is too long".to_owned())
    } else if is_reserved(reserved, key) && !excepted {
        Some("is reserved: Berth sets it, or it could load code or open the server".to_owned())
    } else if allowed.iter().any(|prefix| key.starts_with(prefix)) {
        None
    } else {
        Some(format!("is not on the allow-list ({})", allowed.join(", ")))
    }
}

/// Sail ignores the case of its variables and treats a dot like `__`. Only one spelling
/// is allowed, so that each setting has one name.
fn is_variable(key: &str) -> bool {
    key.bytes()
        .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

fn is_reserved(reserved: &[&str], key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let begins = |prefix: &&str| key.starts_with(&prefix.to_ascii_lowercase());
    reserved.iter().any(begins) || key.ends_with("javaoptions")
}

/// Returns the reason why a catalog may not set this, if any.
pub(super) fn catalog_key_problem(engine: Engine, key: &str) -> Option<String> {
    if key.len() > MAX_KEY_BYTES {
        return Some("is too long".to_owned());
    }
    match engine {
        Engine::Sail if key == "name" => Some("is reserved: it is the catalog's own name".to_owned()),
        Engine::Sail if key.ends_with("_file") => {
            Some("is reserved: it would read files of Berth's machine".to_owned())
        }
        Engine::Sail => (key.is_empty()
            || !key
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
        .then(|| "must be a field of one entry of SAIL_CATALOG__LIST, e.g. uri".to_owned()),
        Engine::Spark => (!key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            || key.starts_with('.')
            || key.ends_with('.'))
        .then(|| "must be what follows spark.sql.catalog.<name>., e.g. uri".to_owned()),
    }
}

/// `local`, `local[4]`, `local[*]`, `local[4,3]`: one JVM on one machine.
/// `local-cluster[…]` would start more.
pub(crate) fn is_local_master(value: &str) -> bool {
    let Some(rest) = value.strip_prefix("local") else {
        return false;
    };
    let inner = rest.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let is_count = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    rest.is_empty()
        || inner.is_some_and(|inner| {
            let mut parts = inner.split(',');
            parts.next().is_some_and(|cores| cores == "*" || is_count(cores))
                && parts.next().is_none_or(is_count)
                && parts.next().is_none()
        })
}

/// All reserved prefixes of an engine, for tests.
#[cfg(test)]
pub(super) fn reserved(engine: Engine) -> &'static [&'static str] {
    match engine {
        Engine::Sail => SAIL_RESERVED,
        Engine::Spark => SPARK_RESERVED,
    }
}
