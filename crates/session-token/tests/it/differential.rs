//! Differential test: PyJWT on OpenSSL verifies the same thousands of changed tokens.
//! Every token that we accept it accepts with the same claims. Every token that only it
//! accepts violates one of our named stricter rules. `MUTATIONS=100000` sets the
//! number, `SEED=…` the seed.

use crate::common::{AUDIENCE, ISSUER, NOW, Rig, at, b64, claims, payload};
use serde::Deserialize;
use session_token::{Grace, Jwks, TokenError};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Our rules beyond those of a general JWT library, and how they are recognized.
const STRICTER: [&str; 8] = [
    "malformed token: too long",
    "malformed token: a part is not base64url",
    "malformed token: the header is not exactly alg, typ and kid",
    "malformed token: the claims are not exactly the ten of a session token",
    "invalid token: the kid is not a thumbprint",
    "invalid token: exp is not after iat",
    "invalid token: nbf is not before exp",
    "invalid token: exp is too far from iat",
];

#[derive(Deserialize)]
struct Verdict {
    good: bool,
    #[serde(default)]
    claims: serde_json::Value,
    #[serde(default)]
    why: String,
}

/// A deterministic generator, so that a seed identifies a run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % (below as u64)).unwrap()
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.roll(of.len())]
    }
}

/// Replacement values.
fn value(dice: &mut Dice, old: &serde_json::Value) -> serde_json::Value {
    use serde_json::json;
    let near = old.as_u64().map_or(0, |old| {
        let by = *dice.one(&[0, 1, 29, 30, 31, 59, 60, 61, 89, 90, 91, 3600, 43_200, 43_201]);
        if dice.roll(2) == 0 {
            old.saturating_add(by)
        } else {
            old.saturating_sub(by)
        }
    });
    match dice.roll(16) {
        0 => json!(null),
        1 => json!([old]),
        2 => json!({ "x": old }),
        3 => json!(old.to_string()),
        4 => json!(true),
        5 => json!(-1),
        6 => json!(1.5),
        7 => json!(u64::MAX),
        8 => json!(""),
        9 => json!(ISSUER),
        10 => json!(AUDIENCE),
        11 => json!(format!("{}x", old.as_str().unwrap_or("a"))),
        12 => old.as_u64().map_or(json!(0), |old| json!(old as f64)),
        _ if old.is_u64() => json!(near),
        _ => old.clone(),
    }
}

/// An object with changed, missing, duplicate or added members.
fn object(dice: &mut Dice, json: &str) -> String {
    let mut map: serde_json::Map<String, serde_json::Value> = serde_json::from_str(json).unwrap();
    let names: Vec<String> = map.keys().cloned().collect();
    for _ in 0..=dice.roll(2) {
        let name = dice.one(&names).clone();
        match dice.roll(10) {
            0 => {
                map.remove(&name);
            }
            1 => {
                let extra = *dice.one(&["crit", "jwk", "jku", "b64", "role", "azp", "x5u", "nonce"]);
                map.insert(extra.to_owned(), serde_json::json!(["x"]));
            }
            _ => {
                let old = map.get(&name).cloned().unwrap_or_default();
                let new = value(dice, &old);
                map.insert(name, new);
            }
        }
    }
    let text = serde_json::to_string(&map).unwrap();
    match dice.roll(12) {
        0 => {
            let name = dice.one(&names);
            let new = value(dice, &map.get(name).cloned().unwrap_or_default());
            text.replacen('{', &format!("{{\"{name}\":{new},"), 1)
        }
        1 => text.replacen(',', " , ", 1),
        2 => format!(" {text}"),
        3 => format!("{text} "),
        4 => text.replacen("\"iss\"", "\"\\u0069ss\"", 1),
        _ => text,
    }
}

/// One changed token: changed bytes or JSON, signed by us or by others.
fn mutant(dice: &mut Dice, rig: &Rig, stranger: &Rig) -> String {
    let good = rig.good();
    match dice.roll(8) {
        0 => {
            let mut bytes = good.into_bytes();
            let place = dice.roll(bytes.len());
            bytes[place] ^= 1 << dice.roll(7);
            String::from_utf8(bytes).unwrap()
        }
        1 => {
            let (from, len) = (dice.roll(good.len()), dice.roll(8));
            let to = (from + len).min(good.len());
            let insert = *dice.one(&["", "=", ".", "A", "-", "+", " ", "\n", "=="]);
            format!("{}{insert}{}", &good[..from], &good[to..])
        }
        2 => rig.forge(&object(dice, &rig.header()), &payload()),
        3 => stranger.forge(&object(dice, &rig.header()), &object(dice, &payload())),
        4 => rig.sign_parts(
            &b64(object(dice, &rig.header())),
            &format!("{}{}", b64(object(dice, &payload())), dice.one(&["", "=", "=="])),
        ),
        _ => rig.forge(&rig.header(), &object(dice, &payload())),
    }
}

fn python() -> PathBuf {
    let home = std::env::var_os("BERTH_HOME").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.berth")),
        PathBuf::from,
    );
    let python = home.join("venv-jwt/bin/python");
    assert!(
        python.is_file(),
        "{} is missing: run `make setup` first",
        python.display()
    );
    python
}

#[test]
fn another_implementation_agrees_on_thousands_of_changed_tokens() {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |n| n.parse().unwrap());
    let (count, seed) = (number("MUTATIONS", 8000), number("SEED", 7));
    let (rig, stranger) = (Rig::new(), Rig::new());
    let mut dice = Dice(seed);
    let mut tokens = vec![rig.good(), stranger.good()];
    tokens.extend((0..count).map(|_| mutant(&mut dice, &rig, &stranger)));

    let dir = std::env::temp_dir().join(format!("berth-second-opinion-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (set, input) = (dir.join("jwks.json"), dir.join("tokens"));
    std::fs::write(&set, Jwks::new([rig.signer.public_jwk()]).to_json()).unwrap();
    let mut file = std::fs::File::create(&input).unwrap();
    for token in &tokens {
        writeln!(file, "{}", serde_json::to_string(token).unwrap()).unwrap();
    }
    drop(file);
    let output = Command::new(python())
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/second_opinion.py"))
        .arg(&set)
        .args([ISSUER, AUDIENCE, &(NOW + 60).to_string(), "30", "43200"])
        .stdin(Stdio::from(std::fs::File::open(&input).unwrap()))
        .output()
        .unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let verdicts: Vec<Verdict> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(verdicts.len(), tokens.len());

    let (mut both, mut neither) = (0, 0);
    let mut stricter: BTreeMap<String, u32> = BTreeMap::new();
    let mut disagree = Vec::new();
    for (token, theirs) in tokens.iter().zip(verdicts) {
        let ours = rig
            .verifier
            .verify(token, &rig.keyring, at(NOW + 60), Grace::None);
        match (ours, theirs.good) {
            (Ok(verified), true) => {
                both += 1;
                if serde_json::to_value(&verified.claims).unwrap() != theirs.claims {
                    disagree.push(format!("read otherwise: {token}"));
                }
            }
            (Err(_), false) => neither += 1,
            (Ok(_), false) => disagree.push(format!("only we accept ({}): {token}", theirs.why)),
            (Err(error), true) => {
                let rule = error.to_string();
                if STRICTER.contains(&rule.as_str()) {
                    *stricter.entry(rule).or_default() += 1;
                } else {
                    disagree.push(format!("only they accept ({rule}): {token}"));
                }
            }
        }
    }
    println!(
        "seed {seed}: both accept {both}, both refuse {neither}, only we refuse, by rule: {stricter:#?}"
    );
    assert!(disagree.is_empty(), "{disagree:#?}");
    assert_eq!(
        both + neither + stricter.values().sum::<u32>(),
        u32::try_from(tokens.len()).unwrap()
    );
    // The mutations must reach all three outcomes.
    assert!(
        both > 100 && neither > 1000 && stricter.len() >= 3,
        "{both} {neither}"
    );
    assert!(matches!(rig.check(&tokens[1]), Err(TokenError::UnknownKid)));
}

#[test]
fn the_unchanged_claims_are_what_both_judge() {
    assert_eq!(
        serde_json::from_str::<session_token::Claims>(&payload()).unwrap(),
        claims()
    );
}
