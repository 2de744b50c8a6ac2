//! The Kubernetes Secret with the signing keys, whose entries are the files of
//! the folder that token-issuer follows.
//!
//! Every change is a create or a merge patch of single entries, so that two
//! commands at the same time lose no key.

use crate::key_dir::{self, stamp};
use anyhow::{Context as _, Result, bail};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;
use session_core::Timestamp;
use session_token::Signer;
use std::collections::BTreeMap;
use std::time::Duration;

/// Limit of one request to the API server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// Attempts to read or create the Secret, when another command is faster.
const ATTEMPTS: u32 = 3;

/// Which Secret, and what a new one gets.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    /// Default: the namespace of the pod or of the kubeconfig's context.
    pub(crate) namespace: Option<String>,
    /// Service account whose deletion deletes the Secret.
    pub(crate) owner: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
    /// Whether an existing Secret gets a new key.
    pub(crate) rotate: bool,
}

/// A key in the Secret.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Entry {
    /// Name of the entry.
    pub(crate) file: String,
    pub(crate) kid: String,
}

/// The Secret after the command.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Outcome {
    pub(crate) namespace: String,
    pub(crate) secret: String,
    /// The key that this command made.
    pub(crate) added: Option<Entry>,
    /// Keys that this command removed, because no token of them can be valid.
    pub(crate) removed: Vec<Entry>,
    /// All keys, oldest first.
    pub(crate) keys: Vec<Entry>,
}

/// Makes sure that the Secret exists and has a key, and rotates its keys if that
/// is wanted. Without `rotate` a Secret that has a key stays as it is.
///
/// # Errors
/// If the API server cannot be reached or rejects the request, if an entry is
/// not a signing key, or if there are too many keys.
pub(crate) async fn ensure(wanted: &Wanted, now: Timestamp) -> Result<Outcome> {
    let mut config = kube::Config::infer()
        .await
        .context("there is neither a kubeconfig nor the service account of a pod")?;
    config.connect_timeout = Some(REQUEST_TIMEOUT);
    config.read_timeout = Some(REQUEST_TIMEOUT);
    let namespace = wanted
        .namespace
        .clone()
        .unwrap_or_else(|| config.default_namespace.clone());
    let client = kube::Client::try_from(config).context("making a client of the API server")?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
    for _ in 0..ATTEMPTS {
        let existing = secrets
            .get_opt(&wanted.name)
            .await
            .with_context(|| format!("reading Secret {namespace}/{}", wanted.name))?;
        let outcome = match existing {
            Some(secret) => Some(change(&secrets, wanted, &namespace, &secret, now).await?),
            None => create(&client, &secrets, wanted, &namespace, now).await?,
        };
        if let Some(outcome) = outcome {
            return Ok(outcome);
        }
    }
    bail!(
        "Secret {namespace}/{} is created and deleted again and again",
        wanted.name
    )
}

/// Creates the Secret with a first key. Nothing if it exists by now.
async fn create(
    client: &kube::Client,
    secrets: &Api<Secret>,
    wanted: &Wanted,
    namespace: &str,
    now: Timestamp,
) -> Result<Option<Outcome>> {
    let (entry, pem) = new_key(now)?;
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(wanted.name.clone()),
            labels: Some(wanted.labels.clone()),
            owner_references: match &wanted.owner {
                Some(name) => Some(vec![owner(client, namespace, name).await?]),
                None => None,
            },
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(
            entry.file.clone(),
            ByteString(pem.into_bytes()),
        )])),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    };
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(_) => Ok(Some(Outcome {
            namespace: namespace.to_owned(),
            secret: wanted.name.clone(),
            added: Some(entry.clone()),
            removed: Vec::new(),
            keys: vec![entry],
        })),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
        Err(error) => Err(error).with_context(|| format!("creating Secret {namespace}/{}", wanted.name)),
    }
}

async fn owner(client: &kube::Client, namespace: &str, name: &str) -> Result<OwnerReference> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let account = accounts
        .get(name)
        .await
        .with_context(|| format!("reading service account {namespace}/{name}"))?;
    Ok(OwnerReference {
        api_version: "v1".to_owned(),
        kind: "ServiceAccount".to_owned(),
        name: name.to_owned(),
        uid: account.metadata.uid.context("the service account has no uid")?,
        ..OwnerReference::default()
    })
}

/// Adds and removes keys of an existing Secret, where that is needed.
async fn change(
    secrets: &Api<Secret>,
    wanted: &Wanted,
    namespace: &str,
    secret: &Secret,
    now: Timestamp,
) -> Result<Outcome> {
    let place = || format!("Secret {namespace}/{}", wanted.name);
    let mut keys = entries(secret.data.as_ref()).with_context(place)?;
    let removed = if wanted.rotate {
        dead(&keys, now)
    } else {
        Vec::new()
    };
    keys.retain(|key| !removed.contains(key));
    let mut added = None;
    if wanted.rotate || keys.is_empty() {
        if keys.len() >= key_dir::MAX_KEYS {
            bail!(
                "{} has {} keys; remove some, token-issuer reads {} at most",
                place(),
                keys.len(),
                key_dir::MAX_KEYS
            );
        }
        let (entry, pem) = new_key(now)?;
        let mut data = serde_json::Map::new();
        data.insert(entry.file.clone(), json!(ByteString(pem.into_bytes())));
        data.extend(removed.iter().map(|key| (key.file.clone(), json!(null))));
        let patch = Patch::Merge(json!({ "data": data }));
        secrets
            .patch(&wanted.name, &PatchParams::default(), &patch)
            .await
            .with_context(|| format!("changing {}", place()))?;
        keys.push(entry.clone());
        keys.sort_by(|a, b| a.file.cmp(&b.file));
        added = Some(entry);
    }
    Ok(Outcome {
        namespace: namespace.to_owned(),
        secret: wanted.name.clone(),
        added,
        removed,
        keys,
    })
}

/// The keys in a Secret by name. Entries that are not `*.pem` are skipped, as
/// token-issuer does.
fn entries(data: Option<&BTreeMap<String, ByteString>>) -> Result<Vec<Entry>> {
    let mut keys = Vec::new();
    for (file, pem) in data.into_iter().flatten() {
        if file.starts_with('.') || !file.ends_with(".pem") {
            continue;
        }
        let pem = std::str::from_utf8(&pem.0).with_context(|| format!("{file} is not a PEM file"))?;
        let signer = Signer::from_pkcs8_pem(pem).with_context(|| file.clone())?;
        keys.push(Entry {
            file: file.clone(),
            kid: signer.kid().to_owned(),
        });
    }
    Ok(keys)
}

/// Keys whose tokens are all invalid: a later one has been there long enough.
fn dead(keys: &[Entry], now: Timestamp) -> Vec<Entry> {
    let followed = |key: &Entry| {
        keys.iter()
            .any(|later| later.file > key.file && key_dir::replaces_all_before(&later.file, now))
    };
    keys.iter().filter(|key| followed(key)).cloned().collect()
}

/// A new key and its PEM text.
fn new_key(now: Timestamp) -> Result<(Entry, String)> {
    let pem = session_token::generate_key_pem()?;
    let kid = Signer::from_pkcs8_pem(&pem)?.kid().to_owned();
    let file = format!("{}-{}.pem", stamp(now), &kid[..key_dir::LEAST_NAME]);
    Ok((Entry { file, kid }, pem))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn a_key_is_dead_a_day_after_the_next_one() {
        let then = Timestamp::from_millis(1_795_305_599_000);
        let (first, pem) = new_key(then).unwrap();
        let (second, _) = new_key(then.after(DAY)).unwrap();
        let keys = [first.clone(), second.clone()];
        assert_eq!(dead(&keys, then.after(DAY)), []);
        assert_eq!(dead(&keys, then.after(DAY * 2)), [], "an hour is left");
        assert_eq!(dead(&keys, then.after(DAY * 3)), keys[..1]);
        assert_eq!(dead(&keys[1..], then.after(DAY * 300)), [], "the last key stays");
        // A name without a time, as of a Secret that was made by hand.
        let named = Entry {
            file: "signing.pem".to_owned(),
            kid: "k".to_owned(),
        };
        assert_eq!(dead(&[first.clone(), named], then.after(DAY * 300)), []);

        let data = BTreeMap::from([
            (first.file.clone(), ByteString(pem.into_bytes())),
            ("notes.txt".to_owned(), ByteString(b"no key".to_vec())),
        ]);
        assert_eq!(entries(Some(&data)).unwrap(), [first]);
        assert_eq!(entries(None).unwrap(), []);
        let broken = BTreeMap::from([("a.pem".to_owned(), ByteString(b"no key".to_vec()))]);
        assert!(entries(Some(&broken)).is_err());
    }
}
