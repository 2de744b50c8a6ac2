"""Prints the bill of materials of a program as CycloneDX JSON: `sbom.py PACKAGE TARGET`.

It lists every crate that is linked into the program for the target, from the lock file. Crates that
only build scripts, procedural macros or tests use are not listed. Features are those of the whole
workspace, so a few listed crates may belong to other programs only.
"""

import json
import subprocess
import sys

# Kinds of dependencies whose code is in the program.
LINKED = (None, "normal")


def metadata(target: str) -> dict:
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", target]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def is_macro(package: dict) -> bool:
    return any("proc-macro" in target["kind"] for target in package["targets"])


def linked(nodes: dict, packages: dict, root: str) -> set:
    """Ids of the packages that are reachable by linked dependencies."""
    found, open_ids = set(), [root]
    while open_ids:
        node = open_ids.pop()
        if node in found or is_macro(packages[node]):
            continue
        found.add(node)
        open_ids += [d["pkg"] for d in nodes[node]["deps"] if any(k["kind"] in LINKED for k in d["dep_kinds"])]
    return found


def component(package: dict, kind: str) -> dict:
    name, version = package["name"], package["version"]
    purl = f"pkg:cargo/{name}@{version}"
    entry = {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl}
    if package.get("license"):
        # Old crates separate alternatives by a slash.
        entry["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
    return entry


def main(name: str, target: str) -> None:
    data = metadata(target)
    packages = {package["id"]: package for package in data["packages"]}
    nodes = {node["id"]: node for node in data["resolve"]["nodes"]}
    root = next(p["id"] for p in data["packages"] if p["name"] == name and p["source"] is None)
    ids = linked(nodes, packages, root)
    reference = {i: component(packages[i], "library")["purl"] for i in ids}
    order = sorted(ids - {root}, key=reference.get)
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": component(packages[root], "application")},
        "components": [component(packages[i], "library") for i in order],
        "dependencies": [
            {"ref": reference[i], "dependsOn": sorted({reference[d["pkg"]] for d in nodes[i]["deps"] if d["pkg"] in ids})}
            for i in [root, *order]
        ],
    }
    json.dump(bill, sys.stdout, indent=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
