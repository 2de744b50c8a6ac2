"""Values: what is rendered, what is rejected, and with which message."""

import json
import pathlib
import re
import shutil
import tempfile

import yaml

import cases
from chart import CHART, NAMESPACE, REQUIRED, Rendered, at, helm, merged, render, template
from suite import all_rendered, check, expect, in_parallel, values_of


@check
def values_that_work_are_rendered():
    assert len(cases.GOOD) >= 40
    return f"{len(all_rendered())} combinations"


@check
def rendered_twice_is_the_same():
    names = list(cases.GOOD)

    def again(name):
        files, values = values_of(name)
        return render(values, files).text

    texts = in_parallel(again, names)
    expect([name for name, text in zip(names, texts, strict=True) if text != all_rendered()[name].text])


@check
def nothing_depends_on_the_cluster_or_on_chance():
    banned = re.compile(r"\b(lookup|rand[A-Z]\w*|uuidv4|now|date|gen[A-Z]\w*|derivePassword|htpasswd)\b|helm\.sh/hook\b")
    found = []
    for file in sorted((CHART / "templates").iterdir()):
        text = re.sub(r"\{\{-? ?/\*.*?\*/ ?-?\}\}", "", file.read_text(), flags=re.S)
        for number, line in enumerate(text.splitlines(), 1):
            match = banned.search(line) if file.suffix != ".txt" else None
            if match and not ('"helm.sh/hook" "test"' in line and file.name == "helm-test.yaml"):
                found.append(f"{file.name}:{number}: {match.group()}")
    expect(found)


@check
def wrong_values_are_rejected_with_a_message():
    assert len(cases.WRONG) >= 60

    def one(wrong):
        path, value, message = wrong
        changes = value if path == "." else at(path, value)
        done = template(merged(REQUIRED, changes))
        if done.returncode == 0:
            return f"{path}={value!r} was accepted"
        return None if message in done.stderr else f"{path}={value!r}: {message!r} is not in {done.stderr.strip()!r}"

    expect([problem for problem in in_parallel(one, cases.WRONG) if problem])
    return f"{len(cases.WRONG)} values"


@check
def lint_is_strict():
    def one(name):
        files, values = values_of(name)
        done = helm("lint", "--strict", "--namespace", NAMESPACE, str(CHART), values=values, files=files)
        return None if done.returncode == 0 else f"{name}: {done.stdout.strip()}"

    names = ["defaults", "alone: trial", "alone: ha", "sessions as pods, everything", "monitoring", "helm test"]
    expect([problem for problem in in_parallel(one, names) if problem])


@check
def every_value_has_a_comment_or_a_documented_parent():
    """Top-level sections need a comment, and every key of values.yaml is known to the schema."""
    text = (CHART / "values.yaml").read_text()
    lines = text.splitlines()
    found = []
    for number, line in enumerate(lines):
        if re.match(r"^[a-zA-Z]", line):
            before = lines[number - 1]
            within = number + 1 < len(lines) and lines[number + 1].lstrip().startswith("#")
            if not (before.startswith("#") or within or re.match(r"^[a-zA-Z]", before)):
                found.append(line)
    expect(found)
    schema = json.loads((CHART / "values.schema.json").read_text())
    expect(sorted(unknown_to_schema(yaml.safe_load(text), schema, schema, ())))
    expect(sorted(missing_in_values(yaml.safe_load(text), schema, schema, ())))


def resolved(schema, root):
    while "$ref" in schema:
        schema = root["definitions"][schema["$ref"].rsplit("/", 1)[1]]
    return schema


def unknown_to_schema(value, schema, root, path):
    schema = resolved(schema, root)
    if isinstance(value, dict) and "properties" in schema:
        for key, one in value.items():
            if key in schema["properties"]:
                yield from unknown_to_schema(one, schema["properties"][key], root, (*path, key))
            else:
                yield ".".join((*path, key))


def missing_in_values(value, schema, root, path):
    """Properties of closed sections that values.yaml does not show."""
    optional = {("enabled",), *((name, "resources", "claims") for name in ("sessionManager", "tokenIssuer", "sparkProxy", "console"))}
    schema = resolved(schema, root)
    if not isinstance(value, dict) or schema.get("additionalProperties") is not False or path[-1:] in (("livenessProbe",), ("readinessProbe",), ("resources",)):
        return
    for key, one in schema["properties"].items():
        if key in value:
            yield from missing_in_values(value[key], one, root, (*path, key))
        elif (*path, key) not in optional:
            yield ".".join((*path, key))


@check
def the_chart_is_usable_as_a_dependency():
    with tempfile.TemporaryDirectory(prefix="berth-chart-") as folder:
        parent = pathlib.Path(folder)
        shutil.copytree(CHART, parent / "charts" / "berth")
        dependency = {"name": "berth", "version": "0.1.0", "condition": "berth.enabled"}
        (parent / "Chart.yaml").write_text(json.dumps({"apiVersion": "v2", "name": "platform", "version": "1.0.0", "dependencies": [dependency]}))
        for enabled in (True, False):
            done = helm("template", "platform", folder, "--namespace", NAMESPACE,
                        values={"global": {"domain": "example.org"}, "berth": {**REQUIRED, "enabled": enabled}})
            assert done.returncode == 0, done.stderr
            assert len(Rendered(done.stdout).of("Deployment")) == (4 if enabled else 0)


@check
def the_notes_have_the_next_commands():
    done = helm("install", "berth", str(CHART), "--namespace", NAMESPACE, "--dry-run=client", values=merged(REQUIRED, {}))
    assert done.returncode == 0, done.stderr
    notes = done.stdout.split("NOTES:")[1]
    for text in ("rollout status", "berth create", "https://localhost:8081", "https://localhost:8080"):
        assert text in notes, text
    trial = helm("install", "berth", str(CHART), "--namespace", NAMESPACE, "--dry-run=client", files=[CHART / "values-trial.yaml"]).stdout
    assert trial.count("WARNING") == 3, trial[-1500:]
