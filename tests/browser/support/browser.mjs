// Chromium of Debian with an empty profile, and what every page must hold:
// no errors in the console, no requests to other hosts, nothing in the storage.
import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { home, repo } from "./stack.mjs";

const require = createRequire(join(home, "browser", "package.json"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const FLAGS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
/** Long enough for a machine on which much else runs; what is slow by itself is measured elsewhere. */
export const WAIT_MS = 120_000;
export const DESKTOP = { width: 1280, height: 860 };
export const PHONE = { width: 390, height: 844 };

/** A browser with a profile of its own; `problems` collects what must not happen, such as requests to other hosts than `hosts`. */
export async function openBrowser(address, hosts = []) {
  const known = [new URL(address).host, ...hosts];
  const profile = mkdtempSync(join(tmpdir(), "berth-chromium-"));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    headless: true,
    args: FLAGS,
    viewport: DESKTOP,
    locale: "en-GB",
    permissions: ["clipboard-read", "clipboard-write"],
  });
  context.setDefaultTimeout(WAIT_MS);
  const problems = [];
  context.on("request", (request) => {
    const url = new URL(request.url());
    if (url.protocol.startsWith("http") && !known.includes(url.host)) problems.push(`request to ${url.host}`);
  });
  context.on("page", (page) => guard(page, problems));
  for (const page of context.pages()) guard(page, problems);
  const close = async () => {
    await context.close();
    rmSync(profile, { recursive: true, force: true });
  };
  return { context, problems, address, page: context.pages()[0] ?? (await context.newPage()), close };
}

function guard(page, problems) {
  page.on("pageerror", (error) => problems.push(`error of a script: ${error.message}`));
  page.on("console", (message) => {
    // Answers such as 401 and 403 are logged by the browser itself.
    if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) problems.push(`console: ${message.text()}`);
  });
  page.on("dialog", (dialog) => {
    problems.push(`a script opened a dialog: ${dialog.message()}`);
    void dialog.dismiss();
  });
}

/** Opens a page and waits until its content is there. */
export async function open(browser, path, heading) {
  await browser.page.goto(new URL(path, browser.address).href);
  await browser.page.getByRole("heading", { level: 1, name: heading }).waitFor();
}

/** Signs in by key in the form. */
export async function signIn(browser, key) {
  const { page } = browser;
  await page.getByLabel("Service-account key").fill(key);
  await page.getByRole("button", { name: "Sign in with the key" }).click();
  await page.getByRole("navigation", { name: "Main" }).waitFor();
}

/** Requires that axe finds nothing on the present page. */
export async function checkAccessibility(page, what) {
  // The protocol runs it although the policy of the page forbids foreign scripts.
  const client = await page.context().newCDPSession(page);
  await client.send("Runtime.evaluate", { expression: axe });
  await client.detach();
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  const found = violations.map((each) => `${each.id}: ${each.nodes.map((node) => node.html.slice(0, 160)).join(" | ")}`);
  assert.deepEqual(found, [], `accessibility of ${what}`);
  const wider = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.ok(wider <= 0, `${what} is ${wider} px wider than the window`);
}

/** Requires that nothing is in the storage of the browser that scripts can read. */
export async function checkStorage(page) {
  const stored = await page.evaluate(async () => ({
    local: localStorage.length,
    session: sessionStorage.length,
    cookies: document.cookie,
    databases: (await indexedDB.databases()).length,
    caches: "caches" in globalThis ? (await caches.keys()).length : 0,
  }));
  assert.deepEqual(stored, { local: 0, session: 0, cookies: "", databases: 0, caches: 0 });
}

/** With SCREENSHOTS=1 writes a picture for the documents. */
export async function picture(page, name, options = {}) {
  if (!process.env.SCREENSHOTS) return;
  const dir = join(repo, "docs/images");
  mkdirSync(dir, { recursive: true });
  await page.screenshot({ path: join(dir, `${name}.png`), animations: "disabled", ...options });
}
