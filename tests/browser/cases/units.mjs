// Parts of the front end without a page: the parser of the stream, the ordered
// list, words and numbers. Bundled from the sources, so that these are tested.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { join } from "node:path";
import { repo } from "../support/stack.mjs";

const web = join(repo, "crates/console/web");

async function load() {
  const { build } = createRequire(join(web, "package.json"))("esbuild");
  const contents = `
    export { parser } from "./src/api/watch.ts";
    export { OrderedSessions, parseUpdate } from "./src/state/live_sessions.ts";
    export { bytes, coarse, person, span } from "./src/format.ts";
    export { rates } from "./src/session/rates.ts";
    export { startTimes } from "./src/sessions/start_times.ts";
    export { endSentence } from "./src/words.ts";
    export { ApiError } from "./src/api/client.ts";
    export { mergePatch } from "./src/forms/merge_patch.ts";
    export { otherProblems, problemAt, problemsOf } from "./src/forms/problems.ts";
    export { durationOf, listOf, pairsOf, propertiesOf, secondsOf } from "./src/forms/values.ts";
    export { clusterDefinition, clusterValues } from "./src/forms/cluster_values.ts";
    export { sums } from "./src/admin/sums.ts";`;
  const { outputFiles } = await build({ stdin: { contents, resolveDir: web, loader: "ts" }, bundle: true, format: "esm", write: false });
  return import(`data:text/javascript;base64,${Buffer.from(outputFiles[0].contents).toString("base64")}`);
}

/** Numbers that look random and are the same in every run. */
function randomNumbers(seed) {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

export async function units() {
  const parts = await load();
  streamInPieces(parts);
  orderedLikeSorted(parts);
  numbersAndWords(parts);
  patches(parts);
  problemsOfFields(parts);
  clusterThereAndBack(parts);
  sumsOfPages(parts);
}

/** A patch has what changed, and null for what is gone. */
function patches({ mergePatch, listOf, pairsOf, propertiesOf, durationOf, secondsOf }) {
  const before = { a: 1, b: { c: "x", d: "y" }, e: ["1", "2"], f: null };
  assert.deepEqual(mergePatch(before, structuredClone(before)), {});
  assert.deepEqual(mergePatch(before, { a: 2, b: { c: "x", z: "n" }, e: ["2"], f: null }), { a: 2, b: { d: null, z: "n" }, e: ["2"] });
  assert.deepEqual(mergePatch({ p: { process: { program: "/x" } } }, { p: { static: {} } }), { p: { process: null, static: {} } });
  assert.deepEqual(listOf(" a, b  c,,"), ["a", "b", "c"]);
  const properties = { type: "memory", initial_database: ["a", "b"], "": "x" };
  assert.deepEqual(propertiesOf(pairsOf(properties), true), properties);
  assert.deepEqual(propertiesOf([["", ""], ["a", "[1]"], ["b", "["]], true), { a: "[1]", b: "[" });
  assert.deepEqual([durationOf(""), durationOf("60"), secondsOf("1800s"), secondsOf(null)], [null, "60s", "1800", ""]);
}

/** The problems of a definition stand at their fields. */
function problemsOfFields({ ApiError, problemsOf, problemAt, otherProblems }) {
  const several = new ApiError(400, "INVALID_ARGUMENT", "cluster: image: must be an image; cpu: is missing; x: 1; LD_PRELOAD: is reserved", null, { field: "cluster", fields: "image\ncpu\nLD_PRELOAD" });
  const problems = problemsOf(several);
  assert.deepEqual([...problems], [["image", "must be an image"], ["cpu", "is missing; x: 1"], ["LD_PRELOAD", "is reserved"]]);
  assert.equal(problemAt(problems, "image"), "must be an image");
  assert.equal(problemAt(problems, "memory"), undefined);
  assert.equal(otherProblems(problems, ["image", "cpu"]), "LD_PRELOAD: is reserved");
  const nested = problemsOf(new ApiError(400, "INVALID_ARGUMENT", "provider.static.endpoints[0].address: must be text", null, { field: "provider.static.endpoints[0].address" }));
  assert.equal(problemAt(nested, "endpoints"), "provider.static.endpoints[0].address: must be text");
  assert.equal(otherProblems(nested, ["endpoints"]), undefined);
  // A property can be called like another field.
  const property = problemsOf(new ApiError(400, "INVALID_ARGUMENT", "provider.kubernetes.properties.image: is reserved", null, { field: "provider.kubernetes.properties.image" }));
  assert.equal(problemAt(property, "image"), undefined);
  assert.equal(problemAt(property, "properties"), "provider.kubernetes.properties.image: is reserved");
  assert.deepEqual([...problemsOf(new Error("no field"))], []);
}

/** A form without changes is no change, whatever the cluster has. */
function clusterThereAndBack({ clusterDefinition, clusterValues, mergePatch }) {
  const common = { name: "lab", status: "active", engine: "sail", engine_version: "", client_versions: [], granted_orgs: ["a"], idle_policy: "keep", idle_timeout: "600s", close_after_idle: null, max_lifetime: null, provisioning_deadline: null, managed_by_config: false, version: 3, wake: "restore", profiles: [] };
  const providers = [
    { static: { endpoints: [{ address: "a:1", tls_server_name: "", token_env: "" }], allow_shared_untrusted: true } },
    { process: { program: "/x", java_home: "", properties: { A: "1" }, python: "", driver_memory: "" } },
    { kubernetes: { namespace: "n", image: "i", cpu: "2", memory: "", command: ["x"], properties: {}, warm_pods: 2, workers: null, warm_pools: [{ catalog: "" }], profiles: {} } },
  ];
  for (const provider of providers) {
    const values = clusterValues({ ...common, provider });
    const definition = clusterDefinition(values);
    assert.deepEqual(mergePatch(definition, clusterDefinition(structuredClone(values))), {});
    const [kind] = Object.keys(provider);
    const [was, is] = [provider[kind], definition.provider[kind]];
    for (const [name, value] of Object.entries(is)) assert.deepEqual(value, was[name] ?? "", `${kind} ${name}`);
    assert.equal(definition.idle_timeout, "600s");
    assert.ok(!("warm_pools" in is));
  }
  assert.throws(() => clusterDefinition({ ...clusterValues({ ...common, provider: providers[2] }), more: "[1]" }), /object/);
}

function sumsOfPages({ sums }) {
  const row = (owner, rpcs, warm) => ({ owner, cluster: "c", sessions: 2, live_sessions: 1, usage: { rpcs, bytes_in: 1, bytes_out: 2, open_stream_seconds: 0, warm_seconds: warm } });
  const all = sums([row("a", 1, 5), row("b", 2, 9), row("a", 3, 7)], (each) => each.owner);
  assert.deepEqual(all.map((sum) => [sum.name, sum.sessions, sum.live, sum.calls, sum.computeSeconds]), [["a", 4, 2, 4, 12], ["b", 2, 1, 2, 9]]);
}

/** Events arrive whole, wherever the network cuts them. */
function streamInPieces({ parser, parseUpdate }) {
  const text = 'retry: 2000\nevent: reset\ndata: {"reset":{"after":null}}\n\n: comment\n\r\nid: s-1@2\r\nevent: session\r\ndata: {"session":{"id":"s-1",\ndata: "name":"é"},"event":null}\n\n';
  for (let cut = 0; cut <= text.length; cut += 1) {
    const place = { id: "" };
    const got = [];
    const parse = parser({ message: (message) => got.push(message) }, place);
    // A cut between CR and LF is the one place where a line could end twice.
    parse(text.slice(0, cut));
    parse(text.slice(cut));
    assert.deepEqual(got.map((message) => message.event), ["reset", "session"], `cut at ${cut}`);
    assert.equal(place.id, "s-1@2");
    assert.deepEqual(parseUpdate(got[0]), { reset: true });
    assert.equal(parseUpdate(got[1]).session.name, "é");
  }
  assert.equal(parseUpdate({ event: "session", data: "not JSON" }), null);
  assert.equal(parseUpdate({ event: "error", data: '{"status":403}' }), null);
}

/** After any changes the list has the newest version of each session, newest first. */
function orderedLikeSorted({ OrderedSessions }) {
  const random = randomNumbers(17);
  const list = new OrderedSessions();
  const expected = new Map();
  for (let step = 0; step < 5000; step += 1) {
    const i = random(300);
    const session = { id: `s-${i}`, created_at: new Date(1.8e12 + (i % 40) * 1000).toISOString(), version: random(1000) };
    if (random(4) === 0) {
      list.remove(session.id);
      expected.delete(session.id);
    } else {
      list.put(session);
      const old = expected.get(session.id);
      if (!old || old.version <= session.version) expected.set(session.id, session);
    }
  }
  const sorted = [...expected.values()].sort((a, b) => (a.created_at === b.created_at ? (a.id < b.id ? -1 : 1) : a.created_at > b.created_at ? -1 : 1));
  assert.deepEqual(list.sessions, sorted);
}

function numbersAndWords({ bytes, coarse, person, span, rates, startTimes, endSentence }) {
  assert.deepEqual([0, 999, 1000, 1_250_000, 2e14].map(bytes), ["0 B", "999 B", "1.0 kB", "1.3 MB", "200 TB"]);
  assert.deepEqual([0.2, 59.4, 65, 3600, 3725, 90_000].map(span), ["0 s", "59 s", "1 min 5 s", "1 h", "1 h 2 min", "1 d 1 h"]);
  assert.deepEqual([10, 61, 7200, 200_000].map(coarse), ["< 1 min", "1 min", "2 h", "2 d"]);
  assert.equal(person("corp|ana|x"), "ana|x");
  const sample = (at, rpcs, bytesIn) => ({ at, operations: 1, rpcs, bytesIn, bytesOut: 0 });
  const rate = rates([sample(0, 0, 0), sample(2, 10, 4000), sample(2.1, 99, 0), sample(4, 4, 0)]);
  assert.deepEqual([rate.at.length, rate.calls[0], rate.received[0], Math.min(...rate.calls)], [2, 5, 2000, 0]);
  const started = (generation, ms) => ({ cluster: "a", generation, created_at: "2027-01-01T00:00:00Z", active_at: new Date(Date.parse("2027-01-01T00:00:00Z") + ms).toISOString() });
  assert.deepEqual(startTimes([started(1, 2000), started(1, 4000), started(2, 900_000)]), [{ cluster: "a", starts: 2, average: 3 }]);
  assert.equal(endSentence({ reason: "CLOSE_REQUESTED" }, "sa|you"), "It was closed by you.");
  assert.equal(endSentence({ reason: "NEW_REASON", status_message: "Why it ended." }), "Why it ended.");
}
