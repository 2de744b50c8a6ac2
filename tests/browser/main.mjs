// Browser tests of the console. One stack serves all of them; they run in order.
// SCREENSHOTS=1 writes the pictures of docs/; ONLY="words" runs matching tests.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { auditTrail, signInAtProvider } from "./cases/admins.mjs";
import { catalogForm, clusterForm, formByKeyboard, noDefinitions } from "./cases/definitions.mjs";
import { byKeyboard } from "./cases/keyboard.mjs";
import { flow } from "./cases/flow.mjs";
import { catalogTest, everyPage, phoneMenu } from "./cases/pages.mjs";
import { failedStart, fieldErrors, hostileText, noPermission, prefixAndExpiry, unknownPage } from "./cases/states.mjs";
import { firstLoad, manySessions } from "./cases/weight.mjs";
import { snippetsRun } from "./cases/snippets.mjs";
import { units } from "./cases/units.mjs";
import { openBrowser, open, signIn } from "./support/browser.mjs";
import { rest, startStack } from "./support/stack.mjs";

test("parts of the front end", units);

let stack;
let browser;
let ended;

before(async () => {
  stack = await startStack();
  browser = await openBrowser(stack.address);
});

after(async () => {
  await browser?.close();
  await stack?.stop();
});

/** A test in the browser that is signed in; nothing forbidden may have happened in it. */
function inBrowser(name, work) {
  test(name, async (t) => {
    if (process.env.ONLY && !name.includes(process.env.ONLY)) return t.skip();
    await work();
    assert.deepEqual(browser.problems.splice(0), []);
  });
}

inBrowser("from the sign-in to a query and back to close", async () => {
  ended = await flow(stack, browser);
});

/** What the next tests need, if the first one does not run. */
async function ready() {
  if (ended) return;
  const { sessions } = await rest(stack, stack.key, "GET", "sessions?page_size=1");
  ended = sessions[0].id;
  await open(browser, "", "Sign in to Berth");
  await signIn(browser, stack.key);
}

inBrowser("the programs for dbt, Airflow and the command work", async () => {
  await ready();
  await snippetsRun(browser, stack);
});
inBrowser("a session that fails to start says why", async () => {
  await ready();
  await failedStart(browser);
});
inBrowser("scripts in names, labels and reasons stay text", async () => {
  await ready();
  await hostileText(browser, stack);
});
inBrowser("an invalid field is named", async () => {
  await ready();
  await fieldErrors(browser);
});
inBrowser("an unknown page says so", async () => {
  await ready();
  await unknownPage(browser);
});
inBrowser("every page is accessible in light and dark, wide and narrow", async () => {
  await ready();
  const { sessions } = await rest(stack, stack.key, "GET", "sessions?statuses=active&page_size=10");
  await everyPage(browser, sessions[0].id, ended);
});
inBrowser("the menu of phones", async () => {
  await ready();
  await phoneMenu(browser);
});
inBrowser("a catalog is tested on a cluster", async () => {
  await ready();
  await catalogTest(browser);
});
inBrowser("a cluster is created, corrected, changed and deleted in a form", async () => {
  await ready();
  await clusterForm(browser, stack);
});
inBrowser("a catalog is created, used, changed and deleted in a form", async () => {
  await ready();
  await catalogForm(browser, stack);
});
inBrowser("a form by keyboard", async () => {
  await ready();
  await formByKeyboard(browser, stack);
});
inBrowser("the audit trail is filtered and read page by page", async () => {
  await ready();
  await auditTrail(browser, stack);
});
inBrowser("people sign in at a provider, by their roles", () => signInAtProvider(stack));
inBrowser("a member is offered no definitions", () => noDefinitions(stack));
inBrowser("a colleague sees that there is no permission", async () => {
  await ready();
  await noPermission(stack, ended);
});
inBrowser("the whole way by keyboard", () => byKeyboard(stack));
inBrowser("behind a path prefix, and after the sign-in expired", async () => {
  await ready();
  await prefixAndExpiry(stack, ended);
});
inBrowser("the first load is small and only from this host", async () => {
  console.log(`first load: ${await firstLoad(stack)} bytes`);
});
inBrowser("10 000 sessions are updated within a frame", async () => {
  const { median, p95 } = await manySessions(stack);
  console.log(`update of 10 000 sessions: median ${median.toFixed(1)} ms, p95 ${p95.toFixed(1)} ms`);
});
