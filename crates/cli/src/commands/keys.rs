//! Key commands, without a server of Berth.

use crate::args::{KeySecret, Keys};
use crate::key_dir::{self, KeyFile};
use crate::key_secret::{self, Outcome, Wanted};
use crate::{Output, output};
use anyhow::Result;
use serde_json::json;
use service_kit::caller::NewKey;
use session_core::{Clock, SystemClock};

pub(super) async fn run(output: Output, command: Keys) -> Result<()> {
    match command {
        Keys::Signing { file } => {
            let kid = crate::keys::write_signing_key(&file)?;
            show_key(output, &KeyFile { file, kid });
        }
        Keys::Rotate { dir } => show_key(output, &key_dir::rotate(&dir, SystemClock.now())?),
        Keys::List { dir } => {
            let keys = key_dir::list(&dir)?;
            let rows = keys
                .iter()
                .map(|key| vec![key.kid.clone(), key.file.display().to_string()])
                .collect();
            output::rows(output, &["KID", "FILE"], rows, &keys);
        }
        Keys::Retire { dir, kid, emergency } => {
            let (gone, next) = key_dir::retire(&dir, &kid, emergency, SystemClock.now())?;
            if let Some(next) = next {
                output::note(&format!(
                    "Made {} first: it was the last one.",
                    next.file.display()
                ));
            }
            show_key(output, &gone);
        }
        Keys::Secret(secret) => keep_secret(output, secret).await?,
        Keys::ServiceAccount => {
            let NewKey { key, sha256 } = service_kit::caller::generate_key();
            let json = json!({"key": key, "key_sha256": sha256});
            output::fields(output, &[("key", key), ("key_sha256", sha256)], &json);
        }
    }
    Ok(())
}

async fn keep_secret(output: Output, args: KeySecret) -> Result<()> {
    let wanted = Wanted {
        name: args.name,
        namespace: args.namespace,
        owner: args.owner,
        labels: args.labels.into_iter().collect(),
        rotate: args.rotate,
    };
    let outcome = key_secret::ensure(&wanted, SystemClock.now()).await?;
    let Outcome {
        namespace, secret, ..
    } = &outcome;
    let names = |keys: &[key_secret::Entry]| {
        let names: Vec<_> = keys.iter().map(|key| key.file.clone()).collect();
        names.join(" ")
    };
    let fields = [
        ("secret", format!("{namespace}/{secret}")),
        (
            "added",
            outcome.added.iter().map(|key| key.file.clone()).collect(),
        ),
        ("removed", names(&outcome.removed)),
        ("keys", names(&outcome.keys)),
    ];
    output::fields(output, &fields, &outcome);
    Ok(())
}

fn show_key(output: Output, key: &KeyFile) {
    let fields = [("file", key.file.display().to_string()), ("kid", key.kid.clone())];
    output::fields(output, &fields, key);
}
