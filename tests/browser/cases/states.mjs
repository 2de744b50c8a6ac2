// What is not the usual way: no rights, an expired sign-in, a failed start,
// hostile text, an unknown page, an interrupted connection.
import assert from "node:assert/strict";
import { checkAccessibility, open, openBrowser, picture, signIn } from "../support/browser.mjs";
import { HOSTILE_LOG, rest, startPrefixed } from "../support/stack.mjs";

const HOSTILE = '<img src=x onerror="window.injected=1"><script>window.injected=1</script>';

/** A colleague without rights sees why, and what to do. */
export async function noPermission(stack, id) {
  const browser = await openBrowser(stack.address);
  try {
    await open(browser, `sessions/${id}`, "Sign in to Berth");
    await signIn(browser, stack.colleague);
    const { page } = browser;
    await page.getByText("You cannot open this session").waitFor();
    await page.getByRole("link", { name: "Back to Sessions" }).waitFor();
    await checkAccessibility(page, "the page without permission");
    await picture(page, "console-no-permission");
    await page.getByRole("link", { name: "Back to Sessions" }).click();
    await page.getByText("No live sessions").waitFor();
    await checkAccessibility(page, "the empty list");
    assert.equal(await page.getByRole("link", { name: "Audit" }).count(), 0, "only admins have an audit view");
    await open(browser, "organization", "Organization local");
    assert.equal(await page.getByRole("button", { name: /Disable/ }).count(), 0);
    assert.deepEqual(browser.problems, []);
  } finally {
    await browser.close();
  }
}

/** A start that fails says why; the text of the engine stays text. */
export async function failedStart(browser) {
  const { page } = browser;
  await open(browser, "sessions/new?cluster=broken", "Create session");
  await page.getByRole("button", { name: "Create session" }).click();
  await page.getByText("This session failed").waitFor();
  await page.getByText("Its compute could not be started.").first().waitFor();
  await page.getByRole("heading", { level: 2, name: "The start failed" }).waitFor();
  await page.getByText(/exited with code 127/).first().waitFor();
  await page.getByText("Details for the owner").click();
  await page.getByText(HOSTILE_LOG).first().waitFor();
  assert.equal(await page.evaluate(() => window.injected), undefined);
  await checkAccessibility(page, "a session that failed to start");
  await picture(page, "console-failed");
}

/** Scripts in names and labels stay text on every page that shows them. */
export async function hostileText(browser, stack) {
  const { page } = browser;
  const session = await rest(stack, stack.key, "POST", "sessions", { cluster: "local", name: HOSTILE, labels: { note: HOSTILE.slice(0, 60) } });
  for (const path of ["sessions", `sessions/${session.id}`, `audit?session=${session.id}`]) {
    await page.goto(new URL(path, browser.address).href);
    await page.getByRole("heading", { level: 1 }).waitFor();
    if (!path.startsWith("audit")) await page.getByText(HOSTILE).first().waitFor();
    assert.equal(await page.evaluate(() => window.injected), undefined, path);
    assert.equal(await page.locator("main img, main script").count(), 0, path);
  }
  await rest(stack, stack.key, "POST", `sessions/${session.id}:close`, {});
}

/** A wrong value is named at its field, and nothing that was typed is lost. */
export async function fieldErrors(browser) {
  const { page } = browser;
  await open(browser, "sessions/new", "Create session");
  await page.getByLabel("Name (optional)").fill("kept text");
  await page.getByLabel("Idle after").selectOption({ label: "Other…" });
  await page.getByLabel("Idle after in minutes").fill("100000");
  await page.getByRole("button", { name: "Create session" }).click();
  await page.getByText("The session was not created").waitFor();
  await page.locator(".field.invalid", { hasText: "Idle after" }).waitFor();
  assert.equal(await page.getByLabel("Name (optional)").inputValue(), "kept text");
  await checkAccessibility(page, "a form with an error");
}

/** An unknown address says so. */
export async function unknownPage(browser) {
  await open(browser, "nothing/here", "Page not found");
  await checkAccessibility(browser.page, "the page for unknown addresses");
}

/** Behind a path prefix everything works; and a sign-in that expired is renewed in place. */
export async function prefixAndExpiry(stack, id) {
  let second = await startPrefixed(stack, "/data/berth");
  const browser = await openBrowser(second.address);
  try {
    const { page } = browser;
    const outside = [];
    page.on("request", (request) => {
      if (!new URL(request.url()).pathname.startsWith("/data/berth/")) outside.push(request.url());
    });
    await open(browser, `sessions/${id}`, "Sign in to Berth");
    await signIn(browser, stack.key);
    await page.locator(".page-head code", { hasText: id }).waitFor();
    await page.getByRole("link", { name: "Clusters" }).click();
    await page.getByRole("heading", { level: 1, name: "Clusters" }).waitFor();
    await page.getByRole("link", { name: "local", exact: true }).click();
    await page.getByRole("heading", { level: 1, name: "local" }).waitFor();
    await page.reload();
    await page.getByRole("heading", { level: 1, name: "local" }).waitFor();
    assert.deepEqual(outside, []);

    // Its keys are in memory: a new process accepts no old sign-in.
    await second.stop();
    second = await startPrefixed(stack, "/data/berth", second.port);
    // A request of the open page can notice it first; then there is no link to click.
    await page.getByRole("link", { name: "Catalogs" }).click({ timeout: 3000 }).catch(() => {});
    await page.getByText("Your sign-in has expired").waitFor();
    await checkAccessibility(page, "an expired sign-in");
    await picture(page, "console-expired");
    await signIn(browser, stack.key);
    await page.getByRole("heading", { level: 1, name: /^(Catalogs|local)$/ }).waitFor();
    assert.deepEqual(browser.problems, []);
  } finally {
    await browser.close();
    await second.stop();
  }
}
