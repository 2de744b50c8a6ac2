//! The top-level modules of a crate depend on each other without circles.
//! Read from the `crate::` paths of its sources. Names that the crate root
//! re-exports count for the module that defines them; tests do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

type Graph = BTreeMap<String, BTreeSet<String>>;

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Code without line comments and without what follows the test module.
fn code(file: &Path) -> String {
    let source = std::fs::read_to_string(file).unwrap();
    let code = source.split("#[cfg(test)]\nmod tests").next().unwrap();
    code.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect()
}

fn sources(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let is_tests = path
            .file_stem()
            .is_some_and(|stem| stem == "tests" || stem == "testing");
        if is_tests {
            continue;
        }
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

/// The first names of the paths below `crate::` in this text: one, or those of
/// a group in braces.
fn first_names(text: &str) -> Vec<String> {
    let name = |text: &str| {
        let name: String = text
            .chars()
            .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
            .collect();
        name
    };
    let Some(group) = text.strip_prefix('{') else {
        return vec![name(text)];
    };
    let (mut names, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => {
                names.push(name(group[start..at].trim_start()));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(name(group[start..at].trim_start()));
                start = at + 1;
            }
            _ => {}
        }
    }
    names
}

/// The names that the root has from each of its modules.
fn re_exports(root: &str, modules: &BTreeSet<String>) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for statement in root.split("use ").skip(1) {
        let path = statement.split(';').next().unwrap();
        let Some((module, names)) = path.split_once("::") else {
            continue;
        };
        if modules.contains(module) {
            let names = names.split(|letter: char| !(letter.is_alphanumeric() || letter == '_'));
            all.extend(names.map(|name| (name.to_owned(), module.to_owned())));
        }
    }
    all
}

/// Which top-level modules each top-level module uses.
fn graph(src: &Path) -> Graph {
    let mut files = Vec::new();
    sources(src, &mut files);
    let top = |file: &Path| {
        let first = file.strip_prefix(src).unwrap().components().next().unwrap();
        Path::new(first.as_os_str())
            .file_stem()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    };
    let is_root = |name: &str| ["lib", "main", "bin"].contains(&name);
    let modules: BTreeSet<String> = files
        .iter()
        .map(|file| top(file))
        .filter(|name| !is_root(name))
        .collect();
    let roots = ["lib.rs", "main.rs"].map(|root| src.join(root));
    let root: String = roots
        .iter()
        .filter(|root| root.exists())
        .map(|root| code(root))
        .collect();
    let re_exports = re_exports(&root, &modules);
    let mut graph = Graph::new();
    for file in &files {
        let module = top(file);
        if is_root(&module) {
            continue;
        }
        let uses = graph.entry(module.clone()).or_default();
        for path in code(file).split("crate::").skip(1) {
            for name in first_names(path) {
                let used = if modules.contains(&name) {
                    Some(&name)
                } else {
                    re_exports.get(&name)
                };
                uses.extend(used.filter(|used| **used != module).cloned());
            }
        }
    }
    graph
}

/// A way from `start` back to `start`, if there is one.
fn circle(graph: &Graph, start: &str) -> Option<Vec<String>> {
    let mut ways = vec![vec![start.to_owned()]];
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop() {
        for next in graph.get(way.last()?).into_iter().flatten() {
            let longer: Vec<String> = way.iter().chain([next]).cloned().collect();
            if next == start {
                return Some(longer);
            }
            if seen.insert(next.clone()) {
                ways.push(longer);
            }
        }
    }
    None
}

#[test]
fn modules_have_no_circles() {
    let mut checked = 0;
    for entry in std::fs::read_dir(crates()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let graph = graph(&path.join("src"));
        let circle = graph.keys().find_map(|module| circle(&graph, module));
        assert_eq!(circle, None, "{name} has a circle of modules");
        checked += graph.values().map(BTreeSet::len).sum::<usize>();
    }
    assert!(checked > 200, "only {checked} uses were found");
}

#[test]
fn paths_are_read() {
    assert_eq!(first_names("a::b;"), ["a"]);
    assert_eq!(first_names("{a::{b, c}, d, e::f};"), ["a", "d", "e"]);
    let modules = BTreeSet::from(["a".to_owned()]);
    let root = "pub use a::{B, c::D};\nuse std::fmt;";
    let re_exports = re_exports(root, &modules);
    assert_eq!((re_exports["B"].as_str(), re_exports["D"].as_str()), ("a", "a"));
    let text = |name: &str| name.to_owned();
    let graph = Graph::from([
        (text("a"), BTreeSet::from([text("b")])),
        (text("b"), BTreeSet::from([text("c")])),
        (text("c"), BTreeSet::from([text("b")])),
    ]);
    assert_eq!(circle(&graph, "a"), None);
    assert_eq!(circle(&graph, "b").unwrap(), ["b", "c", "b"]);
}
