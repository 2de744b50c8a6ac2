// People who sign in at an OpenID provider, by their roles; the audit trail and
// the usage that admins see.
import assert from "node:assert/strict";
import { checkAccessibility, checkStorage, open, openBrowser, picture } from "../support/browser.mjs";
import { rest, startWithProvider } from "../support/stack.mjs";

/** Signs in at the provider as this person; returns the browser. */
async function personAt(second, stack, name) {
  const browser = await openBrowser(second.address, [new URL(stack.provider.issuer).host]);
  try {
    await open(browser, "", "Sign in to Berth");
    await browser.page.getByRole("link", { name: "Sign in with Example" }).click();
    await browser.page.getByLabel("Name").fill(name);
    await browser.page.getByRole("button", { name: "Continue" }).click();
    return browser;
  } catch (error) {
    await browser.close();
    throw error;
  }
}

async function withPerson(second, stack, name, work) {
  const browser = await personAt(second, stack, name);
  try {
    await work(browser, browser.page);
    assert.deepEqual(browser.problems, []);
  } finally {
    await browser.close();
  }
}

/** A member, an admin of the organization, and a member of another organization. */
export async function signInAtProvider(stack) {
  const second = await startWithProvider(stack);
  try {
    let session;
    await withPerson(second, stack, "mia", async (browser, page) => {
      await page.getByRole("heading", { level: 1, name: "Sessions" }).waitFor();
      await page.getByTitle("corp|mia").waitFor();
      await checkStorage(page);
      assert.equal(await page.getByRole("link", { name: "Audit" }).count(), 0);
      await open(browser, "sessions/new", "Create session");
      await page.getByRole("radio", { name: /^local/ }).check();
      await page.getByLabel("Name (optional)").fill("of mia");
      await page.getByRole("button", { name: "Create session" }).click();
      await page.locator(".page-head .badge.active").waitFor();
      session = new URL(page.url()).pathname.split("/").pop();
      await open(browser, "new-catalog", "Create catalog");
      await page.getByText("You cannot create catalogs").waitFor();
      await page.getByRole("button", { name: "Sign out" }).click();
      await page.getByRole("heading", { level: 1, name: "Sign in to Berth" }).waitFor();
    });
    await withPerson(second, stack, "lena", (browser, page) => admin(browser, page, session));
    await withPerson(second, stack, "mallory", async (_, page) => {
      // The provider lets her in, and Berth does not: her organization is not of this provider.
      await page.getByText("may not speak for the organization").waitFor();
      assert.equal(await page.getByRole("navigation", { name: "Main" }).count(), 0);
    });
  } finally {
    await second.stop();
  }
}

/** An admin of the organization sees what its members do. No claim makes a platform admin. */
async function admin(browser, page, session) {
  await page.getByRole("heading", { level: 1, name: "Sessions" }).waitFor();
  await page.getByText("of mia").first().waitFor();
  await page.getByRole("link", { name: "Audit" }).click();
  await page.getByRole("heading", { level: 1, name: "Audit" }).waitFor();
  assert.equal(await page.getByLabel("Organization").count(), 0, "an org admin has one organization");
  await page.getByLabel("Who").fill("corp|mia");
  await page.getByLabel("Action").selectOption({ label: "Session created" });
  await page.getByRole("button", { name: "Apply filters" }).click();
  await page.getByRole("link", { name: session }).waitFor();
  await page.locator("td", { hasText: "127.0.0.1" }).first().waitFor();
  await page.waitForFunction(() => document.querySelectorAll("tbody tr").length === 1);
  await checkAccessibility(page, "the filtered audit trail");
  await open(browser, "usage", "Usage");
  await page.getByRole("cell", { name: "mia", exact: true }).waitFor();
  await open(browser, "organization", "Organization local");
  await page.getByRole("button", { name: /^Disable principal corp\|mia/ }).waitFor();
  assert.equal(await page.getByRole("button", { name: "Disable organization" }).count(), 0);
  await open(browser, "new-cluster", "Create cluster");
  await page.getByText("You cannot create clusters").waitFor();
  await open(browser, "new-catalog", "Create catalog");
  await page.getByLabel("Name", { exact: true }).waitFor();
  await open(browser, `sessions/${session}`, "of mia");
  await page.getByRole("button", { name: "Close session" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Close session" }).click();
  await page.getByText("This session is closed").waitFor();
}

/** The audit trail is filtered and read page by page; the address has the filters. */
export async function auditTrail(browser, stack) {
  const { page } = browser;
  await open(browser, "audit", "Audit");
  await page.locator("tbody tr").first().waitFor();
  await picture(page, "console-audit");
  const name = `corp-${Date.now()}`;
  for (let i = 0; i < 60; i += 1) {
    await rest(stack, stack.key, "POST", "catalogs", { name, engine: "sail", properties: { type: "memory", initial_database: ["a"] } });
    await rest(stack, stack.key, "DELETE", `catalogs/${name}`);
  }
  await open(browser, "audit", "Audit");
  const rows = page.locator("tbody tr");
  await page.waitForFunction(() => document.querySelectorAll("tbody tr").length === 100);
  await page.getByRole("button", { name: "Older records" }).click();
  await page.waitForFunction(() => document.querySelectorAll("tbody tr").length > 120);
  await page.getByLabel("Action").selectOption({ label: "Catalog deleted" });
  await page.getByRole("button", { name: "Apply filters" }).click();
  await page.waitForFunction(() => {
    const shown = [...document.querySelectorAll("tbody tr")];
    return shown.length >= 60 && shown.every((row) => row.textContent.includes("Catalog deleted"));
  });
  assert.match(page.url(), /action=catalog\.deleted/);
  await page.reload();
  await page.waitForFunction(() => [...document.querySelectorAll("tbody tr")].filter((row) => row.textContent.includes("Catalog deleted")).length >= 60);
  await page.getByLabel("Who").fill("sa|nobody");
  await page.getByRole("button", { name: "Apply filters" }).click();
  await page.getByText("No record matches").waitFor();
  await checkAccessibility(page, "an audit trail without records");
  await page.getByLabel("Who").fill("no principal");
  await page.getByRole("button", { name: "Apply filters" }).click();
  await page.getByText(/principal/).first().waitFor();
  await page.getByRole("button", { name: "Clear" }).click();
  await rows.first().waitFor();
}
