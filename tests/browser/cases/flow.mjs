// The way of a new user: sign in, create, watch it start, generate a token, run
// the pasted program, see the query, interrupt, extend, close.
import assert from "node:assert/strict";
import { checkAccessibility, checkStorage, open, picture, signIn } from "../support/browser.mjs";
import { runPython } from "../support/stack.mjs";

/** A query that runs far longer than the test; it ends by the interrupt. */
const LONG_QUERY = `
from pyspark.sql import functions as F
spark.range(400_000_000_000).select(F.sum(F.col("id") % F.lit(7)).alias("id")).collect()
`;

export async function flow(stack, browser) {
  const { page } = browser;
  await open(browser, "", "Sign in to Berth");
  await checkAccessibility(page, "the sign-in page");
  await picture(page, "console-sign-in");
  await page.getByLabel("Service-account key").fill("berth_sa_wrong");
  await page.getByRole("button", { name: "Sign in with the key" }).click();
  await page.getByText("Berth does not accept this key").first().waitFor();
  await signIn(browser, stack.key);
  await page.getByRole("heading", { level: 1, name: "Sessions" }).waitFor();

  const id = await create(page);
  await starts(page, id);
  const program = await token(page);
  await checkStorage(page);
  await query(page, program);
  await extend(page);
  await close(page);
  return id;
}

async function create(page) {
  await page.getByRole("link", { name: "Create session" }).first().click();
  await page.getByRole("heading", { level: 1, name: "Create session" }).waitFor();
  await page.getByRole("radio", { name: /^local/ }).check();
  await page.getByLabel("Catalog").selectOption("sample");
  await page.getByLabel("Name (optional)").fill("churn report");
  await page.getByRole("button", { name: "Add label" }).click();
  await page.getByLabel("Name of label 1").fill("project");
  await page.getByLabel("Value of label 1").fill("churn");
  await page.getByLabel("Idle after").selectOption({ label: "30 min" });
  await picture(page, "console-create");
  await page.getByRole("button", { name: "Create session" }).click();
  await page.waitForURL(/sessions\/s-/);
  return new URL(page.url()).pathname.split("/").pop();
}

async function starts(page, id) {
  await page.getByRole("heading", { level: 1, name: "churn report" }).waitFor();
  // The start is shown live, and a reload shows the same.
  await page.getByRole("heading", { level: 2, name: "Starting compute" }).waitFor();
  await picture(page, "console-starting");
  await page.reload();
  const phases = page.getByRole("heading", { level: 2, name: "Starting compute" });
  const ready = page.locator(".page-head .badge.active");
  await phases.or(ready).first().waitFor();
  await ready.waitFor();
  await page.getByText("Compute answered a test query and is ready").first().waitFor();
  await page.getByRole("button", { name: "Copy session id" }).click();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), id);
  assert.equal(await page.getByText("project=churn").count(), 1);
}

/** Returns the program that the dialog offers for PySpark 4. */
async function token(page) {
  await page.getByRole("button", { name: "Generate token", exact: true }).first().click();
  const dialog = page.getByRole("dialog");
  await dialog.getByRole("radio", { name: "4 h", exact: true }).check();
  await picture(page, "console-token");
  await dialog.getByRole("button", { name: "Generate token" }).click();
  await dialog.getByText("This is shown once").waitFor();
  await checkAccessibility(page, "the token dialog");
  await dialog.getByRole("tab", { name: "PySpark 4.x" }).click();
  const code = dialog.getByLabel("program for PySpark 4.x", { exact: true });
  await dialog.getByRole("button", { name: "Copy program for PySpark 4.x" }).click();
  const program = await page.evaluate(() => navigator.clipboard.readText());
  assert.equal(program, await code.textContent());
  assert.match(program, /sc:\/\/localhost:\d+\/;.*token=ey/);
  await dialog.getByRole("button", { name: "Done" }).click();
  await dialog.waitFor({ state: "detached" });
  assert.ok(!(await page.content()).includes(/token=(ey[^;"]+)/.exec(program)[1]), "the token is shown once");
  await page.getByText(/^Valid, expires in 4 h$/).waitFor();
  await picture(page, "console-connect", { fullPage: true });
  return program;
}

async function query(page, program) {
  const done = await runPython(program).ended;
  assert.equal(done.code, 0, done.output);
  assert.match(done.output, /orders/, "the tables of the sample catalog");

  const url = /remote\("([^"]+)"\)/.exec(program)[1];
  const long = runPython(`from pyspark.sql import SparkSession\nspark = SparkSession.builder.remote("${url}").getOrCreate()\n${LONG_QUERY}`);
  try {
    const operation = page.getByRole("button", { name: /^Interrupt operation/ });
    await operation.first().waitFor();
    await page.getByText(/in flight/).first().waitFor();
    // Proxies report every 5 s; then the charts have more than one value.
    if (process.env.SCREENSHOTS) await page.waitForTimeout(12_000);
    await picture(page, "console-running", { fullPage: true });
    await checkAccessibility(page, "a session with a running operation");
    await interrupt(page, operation);
    const ended = await long.ended;
    assert.notEqual(ended.code, 0);
    assert.match(ended.output, /cancel|interrupt/i);
    await page.getByText("Nothing is running.").waitFor();
  } finally {
    long.kill();
  }
}

/** Proxies report every 5 s, so the list can still have the query of the first program, which ended. */
async function interrupt(page, operation) {
  const interrupted = page.getByText("1 operation interrupted.");
  for (let attempt = 0; attempt < 4; attempt += 1) {
    await operation.first().click();
    const ended = page.getByText("Nothing was running any more.");
    await interrupted.or(ended).first().waitFor();
    if (await interrupted.isVisible()) return;
    await ended.first().waitFor({ state: "detached" });
  }
  assert.fail("the running query was not interrupted");
}

async function extend(page) {
  const left = page.locator(".countdown", { hasText: "Ends at the latest" }).locator(".left");
  assert.match(await left.textContent(), /in 23 h|in 1 d/);
  await page.getByRole("button", { name: "Extend", exact: true }).click();
  const dialog = page.getByRole("dialog");
  await dialog.getByRole("radio", { name: /^24 h more/ }).check();
  await dialog.getByRole("button", { name: "Extend session" }).click();
  await dialog.waitFor({ state: "detached" });
  await page.waitForFunction(() => /in 1 d 23 h|in 2 d/.test(document.querySelectorAll(".countdown .left")[2].textContent));
  await page.getByRole("button", { name: /^Keep awake: pause the idle/ }).click();
  await dialog.getByRole("radio", { name: /^For 1 h/ }).check();
  await dialog.getByRole("button", { name: "Keep awake" }).click();
  await page.getByText(/^Kept awake until/).first().waitFor();
}

async function close(page) {
  await page.getByRole("button", { name: "Close session" }).click();
  const dialog = page.getByRole("dialog");
  await checkAccessibility(page, "the dialog that confirms a close");
  await picture(page, "console-close");
  await dialog.getByRole("button", { name: "Close session" }).click();
  await page.getByText("This session is closed").waitFor();
  await page.getByText(/^It was closed by you\./).waitFor();
  await picture(page, "console-closed");
  assert.equal(await page.getByRole("button", { name: "Generate token" }).count(), 0);
}
