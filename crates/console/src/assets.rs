//! The embedded files of the front end, with their compressed forms and caching.

use axum::body::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, header};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::io::Write as _;

/// A file as the build embedded it.
struct Embedded {
    path: &'static str,
    plain: &'static [u8],
    gzip: &'static [u8],
    brotli: Option<&'static [u8]>,
}

static EMBEDDED: &[Embedded] = &include!(concat!(env!("OUT_DIR"), "/assets.rs"));

/// Folder of assets whose names contain a hash of their content.
pub(crate) const HASHED: &str = "assets/";
/// The page.
const INDEX: &str = "index.html";
/// Where the page gets the path prefix.
const BASE: &str = "<base href=\"/\">";

/// A file with its compressed forms.
#[derive(Debug)]
pub(crate) struct Asset {
    path: &'static str,
    plain: Bytes,
    gzip: Bytes,
    brotli: Option<Bytes>,
    /// A weak tag: it is the same for every encoding.
    pub(crate) etag: HeaderValue,
}

/// All files by path.
#[derive(Debug)]
pub(crate) struct Assets {
    files: HashMap<&'static str, Asset>,
    index: Option<Asset>,
}

impl Assets {
    /// The files of this build, for a console below `prefix`.
    pub(crate) fn embedded(prefix: &str) -> Self {
        Self::of(EMBEDDED, prefix)
    }

    fn of(embedded: &[Embedded], prefix: &str) -> Self {
        let (pages, files): (Vec<_>, Vec<_>) = embedded.iter().partition(|file| file.path == INDEX);
        let files = files.into_iter().map(|file| (file.path, Asset::of(file)));
        Self {
            files: files.collect(),
            index: pages.first().map(|page| based(page, prefix)),
        }
    }

    /// The file at a path without leading slash; the page has none.
    pub(crate) fn file(&self, path: &str) -> Option<&Asset> {
        self.files.get(path)
    }

    /// The page, if the front end was built.
    pub(crate) fn index(&self) -> Option<&Asset> {
        self.index.as_ref()
    }
}

/// The page with its base below the prefix, which its links and calls follow.
fn based(page: &Embedded, prefix: &str) -> Asset {
    if prefix.is_empty() {
        return Asset::of(page);
    }
    let text = String::from_utf8_lossy(page.plain);
    let base = format!("<base href=\"{}/\">", escaped(prefix));
    let plain = Bytes::from(text.replacen(BASE, &base, 1).into_bytes());
    Asset {
        path: INDEX,
        gzip: zipped(&plain),
        brotli: None,
        etag: etag(&plain),
        plain,
    }
}

impl Asset {
    fn of(file: &Embedded) -> Self {
        Self {
            path: file.path,
            plain: Bytes::from_static(file.plain),
            gzip: Bytes::from_static(file.gzip),
            brotli: file.brotli.map(Bytes::from_static),
            etag: etag(file.plain),
        }
    }

    /// Whether it is the page.
    pub(crate) fn is_page(&self) -> bool {
        self.path == INDEX
    }

    /// Its media type.
    pub(crate) fn content_type(&self) -> &'static str {
        match self.path.rsplit('.').next().unwrap_or_default() {
            "html" => "text/html; charset=utf-8",
            "js" | "mjs" => "text/javascript; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            "svg" => "image/svg+xml",
            "png" => "image/png",
            "ico" => "image/x-icon",
            "woff2" => "font/woff2",
            "json" | "map" => "application/json",
            "webmanifest" => "application/manifest+json",
            "txt" => "text/plain; charset=utf-8",
            _ => "application/octet-stream",
        }
    }

    /// A name with a hash never has another content.
    pub(crate) fn caching(&self) -> &'static str {
        if self.path.starts_with(HASHED) {
            "public, max-age=31536000, immutable"
        } else {
            "no-cache"
        }
    }

    /// The smallest form that the client takes, with its encoding.
    pub(crate) fn encoded(&self, request: &HeaderMap) -> (Option<&'static str>, Bytes) {
        if let Some(brotli) = self.brotli.as_ref().filter(|_| accepts(request, "br")) {
            (Some("br"), brotli.clone())
        } else if self.gzip.len() < self.plain.len() && accepts(request, "gzip") {
            (Some("gzip"), self.gzip.clone())
        } else {
            (None, self.plain.clone())
        }
    }
}

/// Whether the client names this encoding, and not with weight 0.
fn accepts(request: &HeaderMap, encoding: &str) -> bool {
    let lines = request.get_all(header::ACCEPT_ENCODING).iter();
    let mut named = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','));
    named.any(|one| {
        let (name, weight) = one.split_once(';').unwrap_or((one, ""));
        let weight = weight.trim().strip_prefix("q=").map(str::parse::<f32>);
        name.trim().eq_ignore_ascii_case(encoding) && !matches!(weight, Some(Ok(weight)) if weight <= 0.0)
    })
}

fn zipped(plain: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    // Writing to memory cannot fail.
    let zipped = encoder.write_all(plain).and_then(|()| encoder.finish());
    zipped.map_or_else(|_| Bytes::copy_from_slice(plain), Bytes::from)
}

fn etag(plain: &[u8]) -> HeaderValue {
    let digest: String = Sha256::digest(plain)
        .iter()
        .take(12)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    HeaderValue::from_str(&format!("W/\"{digest}\"")).unwrap_or(HeaderValue::from_static("W/\"0\""))
}

/// Text for an element or an attribute in double quotes.
pub(crate) fn escaped(text: &str) -> String {
    text.chars()
        .fold(String::with_capacity(text.len()), |mut out, c| {
            match c {
                '&' => out.push_str("&amp;"),
                '<' => out.push_str("&lt;"),
                '>' => out.push_str("&gt;"),
                '"' => out.push_str("&quot;"),
                '\'' => out.push_str("&#39;"),
                other => out.push(other),
            }
            out
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::GzDecoder;
    use std::io::Read as _;

    fn page() -> Vec<Embedded> {
        let plain = b"<!doctype html><head><base href=\"/\"><link href=\"assets/a-12345678.css\"></head>";
        let file = |path, plain: &'static [u8]| Embedded {
            path,
            plain,
            gzip: b"z",
            brotli: Some(b"b"),
        };
        vec![
            file("index.html", plain),
            file("assets/a-12345678.css", b"a{}"),
            file("icon.svg", b"<svg/>"),
        ]
    }

    fn wanting(encodings: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, encodings.parse().unwrap());
        headers
    }

    #[test]
    fn the_page_gets_the_prefix_and_assets_stay_as_they_are() {
        let assets = Assets::of(&page(), "/data/berth");
        let index = assets.index().unwrap();
        let (encoding, body) = index.encoded(&wanting("br, gzip"));
        assert_eq!(encoding, None, "gzip makes this page larger");
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert!(text.contains("<base href=\"/data/berth/\">"), "{text}");
        let mut unzipped = String::new();
        GzDecoder::new(&index.gzip[..])
            .read_to_string(&mut unzipped)
            .unwrap();
        assert_eq!(unzipped, text);
        assert!(assets.file("index.html").is_none() && assets.file("").is_none());
        assert_ne!(index.etag, Assets::of(&page(), "").index().unwrap().etag);
        assert_eq!(index.caching(), "no-cache");
        assert_eq!(assets.file("icon.svg").unwrap().caching(), "no-cache");
        assert!(
            assets
                .file("assets/a-12345678.css")
                .unwrap()
                .caching()
                .ends_with("immutable")
        );
    }

    #[test]
    fn the_encoding_is_one_that_the_client_takes() {
        let assets = Assets::of(&page(), "");
        let css = assets.file("assets/a-12345678.css").unwrap();
        for (encodings, expected) in [
            ("gzip, deflate, br", Some("br")),
            ("gzip", Some("gzip")),
            ("br;q=0, gzip;q=0.5", Some("gzip")),
            ("br;q=0", None),
            ("identity", None),
            ("", None),
        ] {
            assert_eq!(css.encoded(&wanting(encodings)).0, expected, "{encodings}");
        }
    }

    #[test]
    fn the_built_page_needs_nothing_that_its_policy_forbids() {
        // Without a built front end there is nothing to check.
        for file in EMBEDDED.iter().filter(|file| file.path == INDEX) {
            let text = String::from_utf8_lossy(file.plain);
            assert!(text.contains(BASE), "the page has no {BASE}");
            for forbidden in ["<style", " style=", " onclick=", "://", "<script>"] {
                assert!(!text.contains(forbidden), "{forbidden} in the page");
            }
        }
    }

    #[test]
    fn markup_is_text() {
        let hostile = "</p><script>alert('1')</script>&\"";
        let shown = escaped(hostile);
        assert!(!shown.contains(['<', '>', '"', '\'']), "{shown}");
        assert!(shown.starts_with("&lt;/p&gt;&lt;script&gt;"));
    }
}
