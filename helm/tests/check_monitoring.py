"""Monitoring: alerts and dashboard use documented metrics, alerts have a page in the runbook."""

import json
import re

import promql_parser

from chart import CHART
from suite import DOCS, all_rendered, check, expect


def documented_metrics():
    """Metric name = its row of docs/metrics.md."""
    return {name: line for line in (DOCS / "metrics.md").read_text().splitlines() for name in re.findall(r"^\| `(\w+)` \|", line)}


def vectors(node):
    """(metric, matchers) of every selector below a parsed expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node.name, [(one.name, one.value) for one in node.matchers.matchers]
    for field in ("expr", "lhs", "rhs", "vector_selector", "args", "param"):
        child = getattr(node, field, None)
        for one in child if isinstance(child, list) else [child] if child is not None else []:
            yield from vectors(one)


def unknown_metrics(expression, rows, recorded):
    found = list(vectors(promql_parser.parse(expression)))
    if not found:
        yield f"no metric in {expression!r}"
    for name, matchers in found:
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        row = rows.get(name) or (rows.get(base) if "histogram" in rows.get(base, "") else None)
        if row is None and name not in recorded:
            yield f"{name} is not in docs/metrics.md"
            continue
        for label, value in matchers:
            if label in ("namespace", "pod", "job", "le"):
                continue
            if f"`{label}`" not in row or not re.search(rf"`{value}`", (DOCS / "metrics.md").read_text()):
                yield f"{name}: no label {label}={value}"


def rules():
    [rule] = all_rendered()["monitoring in other namespaces"].of("PrometheusRule")
    return rule["spec"]["groups"][0]["rules"]


@check
def alerts_use_documented_metrics():
    rows = documented_metrics()
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    expect([f"{rule.get('alert', rule.get('record'))}: {problem}" for rule in rules() for problem in unknown_metrics(rule["expr"], rows, recorded)])
    assert list(unknown_metrics("rate(spark_proxy_callz_total[5m])", rows, recorded)), "an unknown metric is not noticed"
    assert list(unknown_metrics('spark_proxy_calls_total{outcome="lost"}', rows, recorded)), "an unknown label is not noticed"
    assert all('namespace="berth"' in rule["expr"] for rule in rules())
    return f"{len(rules())} rules"


@check
def alerts_have_a_section_in_the_runbook():
    sections = {line.removeprefix("### ").strip() for line in (DOCS / "runbook.md").read_text().splitlines() if line.startswith("### Berth")}
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len({rule["alert"] for rule in alerts}) == len(alerts)
    assert sections == {rule["alert"] for rule in alerts}, sections ^ {rule["alert"] for rule in alerts}
    expect([rule["alert"] for rule in alerts if rule["annotations"]["runbook_url"] != f"docs/runbook.md#{rule['alert'].lower()}"
            or rule["labels"]["severity"] not in ("critical", "warning", "info") or not rule["annotations"]["summary"]])
    disabled = all_rendered()["monitoring"].of("PrometheusRule")[0]["spec"]["groups"][0]["rules"]
    assert {rule.get("alert") for rule in rules()} - {rule.get("alert") for rule in disabled} == {"BerthPlaintextClients"}
    assert all(rule["labels"]["team"] == "data" for rule in disabled if "alert" in rule)


@check
def the_dashboard_uses_documented_metrics():
    dashboard = json.loads((CHART / "files" / "dashboard.json").read_text())
    rows, recorded = documented_metrics(), set()
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(panels) >= 15
    found = []
    for expression in expressions:
        plain = expression.replace("$__rate_interval", "5m").replace("$namespace", "berth")
        found += unknown_metrics(plain, rows, recorded)
    expect(found)
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    data = next(item for item in all_rendered()["monitoring"].of("ConfigMap") if item["metadata"]["name"].endswith("dashboard"))["data"]
    assert json.loads(data["berth.json"]) == dashboard
    return f"{len(expressions)} expressions"
