//! The Lua scripts, one file each, and their replies.

use crate::Error;
use crate::redis::schema::keys::Slot;
use redis::{Arg, Cmd, ToRedisArgs};
use session_core::Quota;
use std::time::Duration;

macro_rules! script {
    ($($file:literal),+) => {
        Script::new(concat!($(include_str!(concat!("lua/", $file, ".lua")), "\n"),+))
    };
    // Changes nothing, so it runs on a server that rejects changes or has no free memory.
    (reading $($file:literal),+) => {
        Script::new(concat!(
            "#!lua flags=no-writes\n",
            $(include_str!(concat!("lua/", $file, ".lua")), "\n"),+
        ))
    };
    // Runs without free memory too: writes that end or advance something.
    (always $($file:literal),+) => {
        Script::new(concat!(
            "#!lua flags=allow-oom\n",
            $(include_str!(concat!("lua/", $file, ".lua")), "\n"),+
        ))
    };
}

/// A script and its hash in Redis.
pub(super) struct Script {
    code: &'static str,
    hash: String,
}

impl Script {
    fn new(code: &'static str) -> Self {
        let hash = redis::Script::new(code).get_hash().to_owned();
        Self { code, hash }
    }

    /// A call with its first key.
    pub(super) fn key(&self, key: impl ToRedisArgs) -> Call<'_> {
        let mut call = self.prepare_invoke();
        call.key(key);
        call
    }

    /// A call without keys and arguments.
    pub(super) fn prepare_invoke(&self) -> Call<'_> {
        Call {
            script: self,
            keys: Cmd::new(),
            args: Cmd::new(),
        }
    }
}

/// A call of a script. The number of keys precedes them in the command, so keys and
/// arguments are collected first.
pub(super) struct Call<'a> {
    script: &'a Script,
    keys: Cmd,
    args: Cmd,
}

impl Call<'_> {
    /// Adds keys.
    pub(super) fn key(&mut self, key: impl ToRedisArgs) -> &mut Self {
        self.keys.arg(key);
        self
    }

    /// Adds arguments.
    pub(super) fn arg(&mut self, arg: impl ToRedisArgs) -> &mut Self {
        self.args.arg(arg);
        self
    }

    /// The slot of its keys.
    pub(super) fn slot(&self) -> Slot {
        let first = texts(&self.keys).next().and_then(Slot::of_key);
        first.unwrap_or(Slot::Global)
    }

    /// The command for a loaded script.
    pub(super) fn by_hash(&self) -> Cmd {
        self.cmd("EVALSHA", &self.script.hash)
    }

    /// The command with the full text.
    pub(super) fn in_full(&self) -> Cmd {
        self.cmd("EVAL", self.script.code)
    }

    fn cmd(&self, name: &str, script: &str) -> Cmd {
        let mut cmd = redis::cmd(name);
        cmd.arg(script).arg(texts(&self.keys).count());
        for text in texts(&self.keys).chain(texts(&self.args)) {
            cmd.arg(text);
        }
        cmd
    }
}

/// The collected texts.
fn texts(of: &Cmd) -> impl Iterator<Item = &[u8]> {
    of.args_iter().filter_map(|arg| match arg {
        Arg::Simple(text) => Some(text),
        _ => None,
    })
}

/// All scripts, hashed once.
pub(super) struct Scripts {
    pub(super) create: Script,
    pub(super) commit: Script,
    pub(super) commit_if_idle: Script,
    pub(super) apply_report: Script,
    pub(super) get_with_activity: Script,
    pub(super) usage: Script,
    pub(super) operations: Script,
    pub(super) begin_proxy_report: Script,
    pub(super) count_proxies: Script,
    pub(super) set_due: Script,
    pub(super) due_times: Script,
    pub(super) claim_due: Script,
    pub(super) record_token: Script,
    pub(super) place_session: Script,
    pub(super) remove_placement: Script,
    pub(super) bind: Script,
    pub(super) finish_preparation: Script,
    pub(super) unbind: Script,
    pub(super) seal_bindings: Script,
    pub(super) store_settings: Script,
    pub(super) use_spark_session: Script,
    pub(super) acquire_lease: Script,
    pub(super) release_lease: Script,
    pub(super) put_definition: Script,
    pub(super) delete_definition: Script,
    pub(super) epoch: Script,
    pub(super) heartbeat: Script,
    pub(super) rewrite_lost: Script,
    pub(super) trim_ended: Script,
    pub(super) report_signing_keys: Script,
    pub(super) append_audit: Script,
    pub(super) read_audit_of_org: Script,
    pub(super) read_older: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            create: script!("time", "record", "token", "ended", "audit", "save", "create"),
            commit: script!(always "record", "token", "ended", "audit", "save", "commit"),
            commit_if_idle: script!(
                always "time", "record", "use", "token", "ended", "audit", "save", "leases", "commit_if_idle"
            ),
            apply_report: script!(
                "time",
                "record",
                "use",
                "token",
                "leases",
                "audit",
                "apply_report"
            ),
            get_with_activity: script!("time", "record", "use", "leases", "get_with_activity"),
            usage: script!("time", "record", "use", "leases", "usage"),
            operations: script!("time", "record", "leases", "operations"),
            begin_proxy_report: script!("time", "begin_proxy_report"),
            count_proxies: script!("time", "count_proxies"),
            set_due: script!(always "record", "set_due"),
            due_times: script!("time", "due_times"),
            claim_due: script!(always "time", "claim_due"),
            record_token: script!("time", "record", "token", "audit", "record_token"),
            place_session: script!("place_session"),
            remove_placement: script!(always "remove_placement"),
            bind: script!("time", "bindings", "bind"),
            finish_preparation: script!("bindings", "finish_preparation"),
            unbind: script!(always "bindings", "unbind"),
            seal_bindings: script!(always "seal_bindings"),
            store_settings: script!("spark_session", "store_settings"),
            use_spark_session: script!("spark_session", "use_spark_session"),
            acquire_lease: script!(always "time", "acquire_lease"),
            release_lease: script!(always "release_lease"),
            put_definition: script!("put_definition"),
            delete_definition: script!(always "delete_definition"),
            epoch: script!(always "time", "epoch"),
            heartbeat: script!(always "heartbeat"),
            rewrite_lost: script!(always "record", "token", "ended", "audit", "save", "rewrite_lost"),
            trim_ended: script!(always "record", "ended", "trim_ended"),
            report_signing_keys: script!(always "time", "report_signing_keys"),
            append_audit: script!(always "audit", "append_audit"),
            read_audit_of_org: script!(reading "read_audit_of_org"),
            read_older: script!(reading "read_older"),
        }
    }
}

/// Reply of a writing script: the outcome, then its fields.
pub(super) struct Reply(pub(super) Vec<String>);

impl Reply {
    /// All fields.
    pub(super) fn fields(&self) -> Vec<&str> {
        self.0.iter().map(String::as_str).collect()
    }

    /// The fields after `ok`, or the error of the outcome. `limit_of` returns the limit
    /// of a quota.
    pub(super) fn accepted(self, limit_of: impl Fn(Quota) -> u32) -> Result<Vec<String>, Error> {
        let mut fields = self.0.into_iter();
        let outcome = fields.next().unwrap_or_default();
        let rest: Vec<_> = fields.collect();
        match (outcome.as_str(), rest.first().map(String::as_str)) {
            ("ok", _) => Ok(rest),
            ("conflict", _) => Err(Error::Conflict),
            ("not-found", _) => Err(Error::NotFound),
            ("exists", _) => Err(Error::Exists),
            ("reused", _) => Err(Error::RequestIdReused),
            ("refused", Some("closed")) => Err(Error::TokenRejected("closed")),
            ("refused", Some("epoch")) => Err(Error::TokenRejected("epoch")),
            ("quota", Some(quota)) => Err(quota_error(quota, rest.get(1), limit_of)),
            _ => Err(Error::Corrupt(format!("a script answered {outcome:?} {rest:?}"))),
        }
    }

    /// [`Reply::accepted`] of a script without a quota.
    pub(super) fn done(self) -> Result<Vec<String>, Error> {
        self.accepted(|_| 0)
    }
}

fn quota_error(name: &str, retry_ms: Option<&String>, limit_of: impl Fn(Quota) -> u32) -> Error {
    let Some(quota) = Quota::named(name) else {
        return Error::Corrupt(format!("a script returned the quota {name:?}"));
    };
    let retry_after = retry_ms.and_then(|ms| ms.parse().ok()).map(Duration::from_millis);
    Error::Quota {
        quota,
        limit: limit_of(quota),
        retry_after,
    }
}
