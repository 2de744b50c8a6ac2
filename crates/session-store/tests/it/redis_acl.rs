//! The rights that the documents give to Berth's user: those of the commands in the code,
//! and no others. The contract runs as this user.

use std::collections::BTreeSet;
use std::path::Path;
use test_support::redis::documented_rules;

/// How commands are written in Rust and in the scripts.
const COMMANDS: [&str; 4] = ["redis::cmd(\"", ".cmd(\"", "redis.call('", "self.cmd(\""];

/// The commands below a folder; those with subcommands are left out.
fn commands(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            commands(&path, found);
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        // A call and its first argument can be on two lines.
        let code: String = code.split_whitespace().collect();
        for start in COMMANDS {
            let calls = code.split(start).skip(1);
            found.extend(calls.map(|call| {
                let end = call.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(0);
                call[..end].to_ascii_lowercase()
            }));
        }
    }
}

#[test]
fn the_documented_rights_are_those_of_the_code() {
    let mut used = BTreeSet::new();
    commands(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src/redis"),
        &mut used,
    );
    let with_subcommands = ["cluster", "sentinel"];
    for name in with_subcommands {
        assert!(used.remove(name), "no {name} in the code: {used:?}");
    }
    let [rules, sentinel_rules] = documented_rules().unwrap();
    let rights = |rules: &str| -> BTreeSet<String> {
        rules
            .split(' ')
            .filter_map(|rule| rule.strip_prefix('+'))
            .map(str::to_owned)
            .collect()
    };
    let (with, documented): (BTreeSet<_>, BTreeSet<_>) =
        rights(&rules).into_iter().partition(|right| right.contains('|'));
    assert_eq!(documented, used, "documented, and in the code");
    assert_eq!(
        with,
        BTreeSet::from(["cluster|keyslot", "cluster|slots"].map(str::to_owned))
    );
    assert_eq!(
        rights(&sentinel_rules),
        BTreeSet::from(["sentinel|get-master-addr-by-name", "sentinel|master"].map(str::to_owned))
    );
    for rules in [rules, sentinel_rules] {
        assert!(
            rules.contains("resetchannels") && rules.contains("-@all"),
            "{rules}"
        );
    }
}
