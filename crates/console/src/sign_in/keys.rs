//! Keys that seal cookies: AES-256-GCM, derived from the files of a folder.
//!
//! The folder is that of `berth keys rotate` or a mounted Secret: any file of
//! at least 32 secret bytes is a key. All of them open cookies; one seals.
//! Names that begin with a time (`20261125T152258Z-…`, as `berth keys` makes
//! them) let a new key wait until every replica has read it, without any
//! coordination: see [`ADOPTION`].

use anyhow::{Context as _, Result, ensure};
use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use session_core::{Clock as _, SystemClock, Timestamp};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Age at which a key with a time in its name begins to seal. Files of a
/// Kubernetes Secret reach all replicas within about a minute.
const ADOPTION: Duration = Duration::from_secs(5 * 60);
/// Interval of reads of the folder.
const REFRESH_INTERVAL: Duration = Duration::from_secs(15);
/// Minimum size of a key file in bytes, without white space at its ends.
const MIN_BYTES: usize = 32;
const MAX_FILE_BYTES: u64 = 16 * 1024;
const MAX_KEYS: usize = 32;
const ID_BYTES: usize = 4;
const NONCE_BYTES: usize = 12;
/// Domain of the derivation: the same file never makes another key of Berth.
const SALT: &[u8] = b"berth console cookie v1";
/// Length of a time in a file name.
const STAMP_CHARS: usize = 16;

/// Purpose of a sealed text. A text of one purpose does not open as another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A signed-in browser.
    Session,
    /// A sign-in at an identity provider that has not finished.
    Login,
}

impl Purpose {
    const fn as_bytes(self) -> &'static [u8] {
        match self {
            Self::Session => b"session",
            Self::Login => b"login",
        }
    }
}

/// The keys, which follow their folder.
pub(crate) struct CookieKeys {
    dir: Option<PathBuf>,
    current: ArcSwap<KeySet>,
}

/// All keys, oldest name first.
struct KeySet(Vec<Key>);

struct Key {
    /// Name of its file.
    name: String,
    /// Selects the key of a sealed text; not secret.
    id: [u8; ID_BYTES],
    key: RandomizedNonceKey,
}

/// Output lengths of the key derivation.
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

impl CookieKeys {
    /// Reads the folder. Without one, makes a key that ends with the process.
    ///
    /// # Errors
    /// When the folder has no usable key.
    pub(crate) fn open(dir: Option<&Path>) -> Result<Self> {
        let keys = match dir {
            Some(dir) => KeySet::read(dir)?,
            None => {
                let mut random = [0; MIN_BYTES];
                aws_lc_rs::rand::fill(&mut random).map_err(|_| anyhow::anyhow!("no randomness"))?;
                KeySet(vec![Key::derive("process".to_owned(), &random)?])
            }
        };
        Ok(Self {
            dir: dir.map(Path::to_owned),
            current: ArcSwap::from_pointee(keys),
        })
    }

    /// Follows the folder until `stop`. The last good keys stay if it cannot be
    /// read.
    pub(crate) async fn follow(&self, stop: CancellationToken) {
        let Some(dir) = &self.dir else { return };
        let mut failing = false;
        while stop
            .run_until_cancelled(tokio::time::sleep(REFRESH_INTERVAL))
            .await
            .is_some()
        {
            match KeySet::read(dir) {
                Ok(keys) => {
                    self.current.store(std::sync::Arc::new(keys));
                    failing = false;
                }
                Err(error) if !failing => {
                    let error = format!("{error:#}");
                    tracing::error!(
                        error,
                        "reading cookie keys failed; the last good ones stay in use"
                    );
                    failing = true;
                }
                Err(_) => {}
            }
        }
    }

    /// Seals a text for a cookie.
    ///
    /// # Errors
    /// When the random generator of the system fails.
    pub(crate) fn seal(&self, purpose: Purpose, plain: &[u8]) -> Result<String> {
        self.seal_at(purpose, plain, SystemClock.now())
    }

    fn seal_at(&self, purpose: Purpose, plain: &[u8], now: Timestamp) -> Result<String> {
        let keys = self.current.load();
        let key = keys.sealing(now).context("no cookie key")?;
        let mut sealed = plain.to_vec();
        let nonce = key
            .key
            .seal_in_place_append_tag(Aad::from(purpose.as_bytes()), &mut sealed)
            .map_err(|_| anyhow::anyhow!("sealing failed"))?;
        let whole = [&key.id[..], &nonce.as_ref()[..], &sealed].concat();
        Ok(URL_SAFE_NO_PAD.encode(whole))
    }

    /// The text of a cookie; none if it was not sealed with one of these keys
    /// for this purpose, or was changed.
    pub(crate) fn unseal(&self, purpose: Purpose, sealed: &str) -> Option<Vec<u8>> {
        let whole = URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let (id, rest) = whole.split_at_checked(ID_BYTES)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_BYTES)?;
        let keys = self.current.load();
        keys.0.iter().filter(|key| key.id == id).find_map(|key| {
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let mut text = sealed.to_vec();
            let aad = Aad::from(purpose.as_bytes());
            let plain = key.key.open_in_place(nonce, aad, &mut text).ok()?.len();
            text.truncate(plain);
            Some(text)
        })
    }
}

impl KeySet {
    fn read(dir: &Path) -> Result<Self> {
        let advice = "make a key with `berth keys rotate DIR`";
        let entries =
            std::fs::read_dir(dir).with_context(|| format!("reading {}; {advice}", dir.display()))?;
        let mut names = Vec::new();
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            // A mounted Secret has hidden folders beside its entries.
            if !name.starts_with('.') && dir.join(&name).is_file() {
                names.push(name);
            }
        }
        names.sort_unstable();
        ensure!(!names.is_empty(), "{} has no key; {advice}", dir.display());
        ensure!(
            names.len() <= MAX_KEYS,
            "{} has more than {MAX_KEYS} keys",
            dir.display()
        );
        let keys = names.into_iter().map(|name| Key::read(&dir.join(&name), name));
        keys.collect::<Result<Vec<_>>>().map(Self)
    }

    /// The newest key that every replica has, or the oldest one if all are new.
    fn sealing(&self, now: Timestamp) -> Option<&Key> {
        let newest = stamp(now.before(ADOPTION));
        let adopted = |key: &&Key| stamp_of(&key.name).is_none_or(|made| made <= newest.as_str());
        self.0.iter().rev().find(adopted).or(self.0.first())
    }
}

impl Key {
    fn read(file: &Path, name: String) -> Result<Self> {
        let size = std::fs::metadata(file).with_context(|| format!("reading {}", file.display()))?;
        ensure!(
            size.len() <= MAX_FILE_BYTES,
            "{} is too large for a key",
            file.display()
        );
        let bytes = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        let secret = bytes.trim_ascii();
        ensure!(
            secret.len() >= MIN_BYTES,
            "{} has {} bytes, and a key needs at least {MIN_BYTES}",
            file.display(),
            secret.len()
        );
        Self::derive(name, secret)
    }

    fn derive(name: String, secret: &[u8]) -> Result<Self> {
        let extracted = Salt::new(HKDF_SHA256, SALT).extract(secret);
        let expand = |info: &[u8], out: &mut [u8]| {
            let info = [info];
            let okm = extracted.expand(&info, Length(out.len()));
            okm.and_then(|okm| okm.fill(out))
                .map_err(|_| anyhow::anyhow!("deriving a cookie key failed"))
        };
        let (mut key, mut id) = ([0; 32], [0; ID_BYTES]);
        expand(b"key", &mut key)?;
        expand(b"id", &mut id)?;
        let key = RandomizedNonceKey::new(&AES_256_GCM, &key);
        Ok(Self {
            name,
            id,
            key: key.map_err(|_| anyhow::anyhow!("the cookie key is unusable"))?,
        })
    }
}

/// A time as `berth keys` writes it into names.
fn stamp(at: Timestamp) -> String {
    let mut stamp = at.to_string().replace(['-', ':'], "");
    stamp.truncate(STAMP_CHARS);
    stamp
}

/// The time in a name: `20261125T152258Z`.
fn stamp_of(name: &str) -> Option<&str> {
    let stamp = name.get(..STAMP_CHARS)?;
    let is_time = stamp.bytes().enumerate().all(|(index, byte)| match index {
        8 => byte == b'T',
        15 => byte == b'Z',
        _ => byte.is_ascii_digit(),
    });
    is_time.then_some(stamp)
}

impl fmt::Debug for CookieKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CookieKeys")
            .field("keys", &self.current.load().0.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    #[test]
    fn another_key_another_purpose_and_a_changed_byte_do_not_open() {
        let (one, other) = (folder(&[("k", A)]), folder(&[("k", B)]));
        let keys = CookieKeys::open(Some(one.path())).unwrap();
        let sealed = keys.seal(Purpose::Session, b"text").unwrap();
        assert_eq!(keys.unseal(Purpose::Session, &sealed).unwrap(), b"text");
        assert_ne!(keys.seal(Purpose::Session, b"text").unwrap(), sealed);
        assert_eq!(keys.unseal(Purpose::Login, &sealed), None);
        let others = CookieKeys::open(Some(other.path())).unwrap();
        assert_eq!(others.unseal(Purpose::Session, &sealed), None);
        let mut bytes = URL_SAFE_NO_PAD.decode(&sealed).unwrap();
        for index in 0..bytes.len() {
            bytes[index] ^= 1;
            assert_eq!(
                keys.unseal(Purpose::Session, &URL_SAFE_NO_PAD.encode(&bytes)),
                None
            );
            bytes[index] ^= 1;
        }
        for short in ["", "AAAA", "!!!!", &sealed[..sealed.len() - 3]] {
            assert_eq!(keys.unseal(Purpose::Session, short), None, "{short:?}");
        }
    }

    #[test]
    fn a_new_key_opens_at_once_and_seals_when_all_replicas_have_it() {
        let (old, new) = ("20261130T010000Z-a.pem", "20261130T020000Z-b.pem");
        let before = CookieKeys::open(Some(folder(&[(old, A)]).path())).unwrap();
        let both = CookieKeys::open(Some(folder(&[(old, A), (new, B)]).path())).unwrap();
        let only_new = CookieKeys::open(Some(folder(&[(new, B)]).path())).unwrap();
        // 2026-11-30T02:04:00Z and :06:00Z.
        let (early, late) = (
            Timestamp::from_secs(1_796_004_240),
            Timestamp::from_secs(1_796_004_360),
        );
        assert_eq!(stamp(early), "20261130T020400Z");
        let sealed = both.seal_at(Purpose::Session, b"x", early).unwrap();
        assert!(
            before.unseal(Purpose::Session, &sealed).is_some(),
            "the old key seals"
        );
        assert!(only_new.unseal(Purpose::Session, &sealed).is_none());
        let sealed = both.seal_at(Purpose::Session, b"x", late).unwrap();
        assert!(
            only_new.unseal(Purpose::Session, &sealed).is_some(),
            "the new key seals"
        );
        // What the old key sealed still opens.
        let sealed = before.seal_at(Purpose::Session, b"x", late).unwrap();
        assert!(both.unseal(Purpose::Session, &sealed).is_some());
    }

    #[test]
    fn an_unusable_folder_is_named_with_the_fix() {
        for (dir, says) in [
            (folder(&[]), "berth keys rotate"),
            (folder(&[("k", "short")]), "at least 32"),
            (folder(&[(".hidden", A)]), "has no key"),
        ] {
            let error = CookieKeys::open(Some(dir.path())).unwrap_err();
            assert!(format!("{error:#}").contains(says), "{error:#}");
        }
        assert!(CookieKeys::open(Some(Path::new("/nowhere/keys"))).is_err());
    }

    #[test]
    fn without_a_folder_every_process_has_its_own_key() {
        let (one, other) = (CookieKeys::open(None).unwrap(), CookieKeys::open(None).unwrap());
        let sealed = one.seal(Purpose::Session, b"x").unwrap();
        assert!(one.unseal(Purpose::Session, &sealed).is_some());
        assert!(other.unseal(Purpose::Session, &sealed).is_none());
    }
}
