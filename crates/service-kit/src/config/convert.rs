//! Conversion of the tree that finds every problem, not only the first.

use super::Problems;
use super::de::De;
use super::error::{Error, Fault};
use super::tree::{self, Step};
use config::Value;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;

/// Converts repeatedly: each round records an invalid value and replaces it by
/// its default, or a missing one by a placeholder. If the replacement also
/// fails, the section around it is replaced. No place is repaired twice in the
/// same way, so the loop ends. `None` if nothing could be repaired.
pub(super) fn convert<T: DeserializeOwned>(mut root: Value, problems: &mut Problems) -> Option<T> {
    let mut tried = BTreeSet::new();
    loop {
        let (mut path, mut fault) = match attempt::<T>(&root, problems) {
            Ok(value) => return Some(value),
            Err(found) => found,
        };
        loop {
            if path.is_empty() {
                return None;
            }
            let repaired = tried.insert((tree::show(&path), fault == Fault::Other))
                && match fault {
                    Fault::Missing(_) => tree::fill(&mut root, &path),
                    Fault::Other => tree::reset(&mut root, &path),
                };
            if repaired {
                break;
            }
            path.pop();
            fault = Fault::Other;
        }
    }
}

/// One conversion; adds its problems to `problems` and returns the path of the
/// failure.
fn attempt<T: DeserializeOwned>(root: &Value, problems: &mut Problems) -> Result<T, (Vec<Step>, Fault)> {
    let mut track = serde_path_to_error::Track::new();
    let mut unknown = Vec::new();
    let result = {
        let de = serde_path_to_error::Deserializer::new(De(root.clone()), &mut track);
        serde_ignored::deserialize::<_, _, T>(de, |path| unknown.push(tree::ignored(&path)))
    };
    match result {
        Ok(value) => {
            for path in unknown {
                problems.add_new(&tree::show(&path), "is not a known key");
            }
            Ok(value)
        }
        Err(Error { fault, text }) => {
            let mut path = tree::tracked(&track.path());
            if let Fault::Missing(field) = fault {
                path.push(Step::Key(field.to_owned()));
            }
            problems.add_new(&tree::show(&path), text);
            Err((path, fault))
        }
    }
}
