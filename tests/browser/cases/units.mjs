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
    export { endSentence } from "./src/words.ts";`;
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
