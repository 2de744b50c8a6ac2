// The whole way by keyboard alone: sign in, create, token, tabs, close.
import assert from "node:assert/strict";
import { open, openBrowser } from "../support/browser.mjs";

/** Presses Tab until the element with this accessible name has the focus. */
export async function tabTo(page, name, limit = 60) {
  for (let i = 0; i < limit; i += 1) {
    await page.keyboard.press("Tab");
    const focused = await page.evaluate(() => {
      const element = document.activeElement;
      const label = element.labels?.[0]?.textContent ?? "";
      return element.getAttribute("aria-label") ?? (label || element.textContent);
    });
    if (name.test(focused.trim())) return;
  }
  assert.fail(`no way by Tab to ${name}`);
}

export async function byKeyboard(stack) {
  const browser = await openBrowser(stack.address);
  try {
    const { page } = browser;
    await open(browser, "sessions/new", "Sign in to Berth");
    await tabTo(page, /^Service-account key/);
    await page.keyboard.type(stack.key);
    await page.keyboard.press("Enter");
    await page.getByRole("heading", { level: 1, name: "Create session" }).waitFor();
    assert.equal(await page.evaluate(() => document.activeElement.tagName), "H1", "the heading of a new page has the focus");
    await page.getByRole("radio", { name: /^local/ }).waitFor();
    await tabTo(page, /^broken/);
    await page.keyboard.press("ArrowDown");
    assert.ok(await page.getByRole("radio", { name: /^local/ }).isChecked());
    await tabTo(page, /^Name/);
    await page.keyboard.type("by keyboard");
    await page.keyboard.press("Enter");
    await page.getByRole("heading", { level: 1, name: "by keyboard" }).waitFor();
    await page.locator(".page-head .badge.active").waitFor();

    await tabTo(page, /^Generate token$/);
    await page.keyboard.press("Enter");
    await page.getByRole("dialog").waitFor();
    await page.keyboard.press("Escape");
    await page.getByRole("dialog").waitFor({ state: "detached" });
    assert.match(await page.evaluate(() => document.activeElement.textContent), /Generate token/, "a closed dialog gives the focus back");

    await tabTo(page, /^PySpark 4\.x$/);
    await page.keyboard.press("ArrowRight");
    assert.equal(await page.evaluate(() => document.activeElement.textContent), "PySpark 3.x");
    await page.keyboard.press("End");
    assert.equal(await page.evaluate(() => document.activeElement.textContent), "CLI");

    await page.evaluate(() => document.querySelector("h1").focus());
    await tabTo(page, /^Close session$/);
    await page.keyboard.press("Enter");
    await page.getByRole("dialog").waitFor();
    assert.equal(await page.evaluate(() => document.activeElement.textContent), "Close session", "the dialog begins at its action");
    await page.keyboard.press("Enter");
    await page.getByText("This session is closed").waitFor();
    assert.deepEqual(browser.problems, []);
  } finally {
    await browser.close();
  }
}
