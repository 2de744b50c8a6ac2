// Clusters and catalogs are created and changed in forms; wrong fields are named
// in place, and no page offers a form that the API would reject.
import assert from "node:assert/strict";
import { checkAccessibility, open, openBrowser, picture, signIn } from "../support/browser.mjs";
import { rest } from "../support/stack.mjs";
import { tabTo } from "./keyboard.mjs";

/** The error at the field with this label. */
function errorAt(page, label) {
  return page.locator(".field.invalid", { has: page.getByLabel(label, { exact: true }) }).locator(".field-error");
}

async function errorOf(page, label) {
  const error = errorAt(page, label);
  await error.waitFor();
  return error.textContent();
}

async function save(page, action) {
  await page.getByRole("button", { name: action, exact: true }).click();
}

/** Create, correct, change, activate, drain and delete a cluster. */
export async function clusterForm(browser, stack) {
  const { page } = browser;
  await open(browser, "clusters", "Clusters");
  await page.getByRole("link", { name: "Create cluster" }).click();
  await page.getByRole("heading", { level: 1, name: "Create cluster" }).waitFor();
  await checkAccessibility(page, "the empty form of a cluster");
  await page.getByLabel("Name", { exact: true }).fill("Lab!");
  await page.getByRole("radio", { name: /^Kubernetes pods/ }).check();
  await page.getByLabel("More settings (optional)").fill("{");
  await save(page, "Create cluster");
  await page.getByText("The cluster was not created").waitFor();
  assert.match(await errorOf(page, "More settings (optional)"), /JSON/);
  await page.getByLabel("More settings (optional)").fill('{"image": "x"}');
  await save(page, "Create cluster");
  await page.locator(".field-error", { hasText: '"image" has a field of its own' }).waitFor();
  await page.getByLabel("More settings (optional)").fill("");
  await save(page, "Create cluster");
  assert.match(await errorOf(page, "Name"), /lower-case|a-z|letters/i);
  await page.getByLabel("Name", { exact: true }).fill("lab");
  await save(page, "Create cluster");
  // Several fields are invalid, and each shows its error.
  assert.match(await errorOf(page, "Image"), /container image/);
  assert.match(await errorOf(page, "Namespace"), /namespace/);
  await page.locator(".choices .field-error", { hasText: "kubernetes is off" }).waitFor();
  await checkAccessibility(page, "the form of a cluster with errors");
  await page.getByRole("radio", { name: /^Processes/ }).check();
  await page.getByLabel("Program", { exact: true }).fill("sail");
  await page.getByRole("button", { name: "Add setting" }).click();
  await page.getByLabel("Name of setting 1").fill("LD_PRELOAD");
  await page.getByLabel("Value of setting 1").fill("x");
  await page.getByRole("button", { name: "Add setting" }).click();
  await page.getByLabel("Name of setting 2").fill("LD_PRELOAD");
  await save(page, "Create cluster");
  await page.locator("fieldset.invalid .field-error", { hasText: '"LD_PRELOAD" is given twice' }).waitFor();
  await page.getByRole("button", { name: "Remove setting 2" }).click();
  await page.getByLabel("Idle after", { exact: true }).selectOption({ label: "Other…" });
  await page.getByLabel("Idle after in minutes").fill("0");
  await save(page, "Create cluster");
  assert.match(await errorOf(page, "Program"), /absolute path/);
  assert.match(await errorOf(page, "Idle after"), /between/);
  await page.locator("fieldset.invalid .field-error", { hasText: "LD_PRELOAD" }).waitFor();
  await picture(page, "console-cluster-form", { fullPage: true });
  await page.getByLabel("Program", { exact: true }).fill("/bin/false");
  await page.getByRole("button", { name: "Remove setting 1" }).click();
  await page.getByLabel("Idle after in minutes").fill("20");
  await page.getByLabel("Client versions (optional)").fill("4.0, 4.1");
  await page.getByRole("checkbox", { name: /^Accept no sessions/ }).check();
  await save(page, "Create cluster");
  await page.getByRole("heading", { level: 1, name: "lab" }).waitFor();
  const made = await rest(stack, stack.key, "GET", "clusters/lab");
  assert.deepEqual([made.status, made.idle_timeout, made.client_versions, made.provider.process.program], ["pending", "1200s", ["4.0", "4.1"], "/bin/false"]);

  await page.getByRole("link", { name: "Edit" }).click();
  await page.getByRole("heading", { level: 1, name: "Edit cluster lab" }).waitFor();
  assert.equal(await page.getByLabel("Program", { exact: true }).inputValue(), "/bin/false");
  await page.getByRole("button", { name: "Add setting" }).click();
  await page.getByLabel("Name of setting 1").fill("SAIL_EXECUTION__BATCH_SIZE");
  await page.getByLabel("Value of setting 1").fill("4096");
  await page.getByLabel("Idle after", { exact: true }).selectOption({ label: "30 min" });
  // Another account changes it meanwhile: nothing is overwritten.
  await rest(stack, stack.key, "PATCH", "clusters/lab", { client_versions: ["4.2"] });
  await save(page, "Save cluster");
  await page.getByText("The cluster was not changed").waitFor();
  await page.reload();
  await page.getByLabel("Idle after", { exact: true }).selectOption({ label: "30 min" });
  await page.getByLabel("Open to organizations (optional)").fill("local");
  await save(page, "Save cluster");
  await page.getByRole("heading", { level: 1, name: "lab", exact: true }).waitFor();
  const changed = await rest(stack, stack.key, "GET", "clusters/lab");
  assert.deepEqual([changed.idle_timeout, changed.client_versions, changed.granted_orgs], ["1800s", ["4.2"], ["local"]]);
  for (const action of ["Activate", "Drain"]) {
    await page.getByRole("button", { name: action, exact: true }).click();
    await page.getByRole("dialog").getByRole("button", { name: `${action} cluster` }).click();
    await page.getByRole("dialog").waitFor({ state: "detached" });
  }
  await page.getByRole("button", { name: "Delete", exact: true }).click();
  await page.getByRole("dialog").getByLabel(/^Type lab/).fill("lab");
  await page.getByRole("dialog").getByRole("button", { name: "Delete cluster" }).click();
  await page.getByRole("heading", { level: 1, name: "Clusters" }).waitFor();
}

/** A catalog of the form works in the engine, and is changed and deleted. */
export async function catalogForm(browser, stack) {
  const { page } = browser;
  await open(browser, "catalogs", "Catalogs");
  await page.getByRole("link", { name: "Create catalog" }).click();
  await page.getByRole("heading", { level: 1, name: "Create catalog" }).waitFor();
  await checkAccessibility(page, "the empty form of a catalog");
  await page.getByLabel("Name", { exact: true }).fill("scratch");
  await page.getByLabel("Default database (optional)").fill("a b");
  await save(page, "Create catalog");
  await page.getByText("The catalog was not created").waitFor();
  assert.match(await errorOf(page, "Default database (optional)"), /^must be names/);
  await page.locator("fieldset.invalid .field-error", { hasText: /^type: must say the kind/ }).waitFor();
  await checkAccessibility(page, "the form of a catalog with errors");
  await page.getByLabel("Default database (optional)").fill("lab");
  await page.getByLabel("Value of property 1").fill("memory");
  await page.getByRole("button", { name: "Add property" }).click();
  await page.getByLabel("Name of property 2").fill("initial_database");
  await page.getByLabel("Value of property 2").fill('["lab"]');
  await picture(page, "console-catalog-form", { fullPage: true });
  await save(page, "Create catalog");
  await page.getByRole("heading", { level: 1, name: "scratch" }).waitFor();
  const made = await rest(stack, stack.key, "GET", "catalogs/scratch");
  assert.deepEqual(made.properties, { type: "memory", initial_database: ["lab"] });
  await page.getByLabel("On cluster").selectOption("local");
  await page.getByRole("button", { name: "Test connection" }).click();
  await page.getByText("The catalog can be used").waitFor();

  await page.getByRole("link", { name: "Edit" }).click();
  await page.getByRole("heading", { level: 1, name: "Edit catalog scratch" }).waitFor();
  await page.getByLabel("Open to teams (optional)").fill("data, ops");
  await page.getByLabel("Default database (optional)").fill("");
  await page.getByRole("button", { name: "Remove property 1" }).click();
  await save(page, "Save catalog");
  await page.getByRole("heading", { level: 1, name: "scratch", exact: true }).waitFor();
  const changed = await rest(stack, stack.key, "GET", "catalogs/scratch");
  assert.deepEqual([changed.properties, changed.allowed_teams, changed.default_database], [{ type: "memory" }, ["data", "ops"], ""]);
  await page.getByRole("button", { name: "Delete", exact: true }).click();
  await page.getByRole("dialog").getByLabel(/^Type scratch/).fill("scratch");
  await page.getByRole("dialog").getByRole("button", { name: "Delete catalog" }).click();
  await page.getByRole("heading", { level: 1, name: "Catalogs" }).waitFor();
  await page.getByText("sample").first().waitFor();
  assert.equal(await page.getByRole("link", { name: "scratch" }).count(), 0);
}

/** The form of a catalog by keyboard alone. */
export async function formByKeyboard(browser, stack) {
  const { page } = browser;
  await open(browser, "catalogs", "Catalogs");
  await tabTo(page, /^Create catalog$/);
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { level: 1, name: "Create catalog" }).waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.tagName), "H1");
  await tabTo(page, /^Name/);
  await page.keyboard.press("Enter");
  await page.getByText("The catalog was not created").waitFor();
  assert.ok(await page.evaluate(() => document.activeElement.contains(document.querySelector(".banner.error"))), "the error has the focus");
  await tabTo(page, /^Name/);
  await page.keyboard.type("keys");
  await tabTo(page, /^Value of property 1$/);
  await page.keyboard.type("memory");
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { level: 1, name: "keys" }).waitFor();
  await rest(stack, stack.key, "DELETE", "catalogs/keys");
}

/** What a member may not define is named, not offered. */
export async function noDefinitions(stack) {
  const browser = await openBrowser(stack.address);
  try {
    const { page } = browser;
    await open(browser, "clusters", "Sign in to Berth");
    await signIn(browser, stack.colleague);
    await page.getByRole("heading", { level: 1, name: "Clusters" }).waitFor();
    assert.equal(await page.getByRole("link", { name: "Create cluster" }).count(), 0);
    for (const [path, title, text] of [
      ["new-cluster", "Create cluster", "You cannot create clusters"],
      ["new-catalog", "Create catalog", "You cannot create catalogs"],
      ["clusters/local/edit", "Edit cluster local", "You cannot change clusters"],
      ["catalogs/sample/edit", "Edit catalog sample", "You cannot change catalogs"],
    ]) {
      await open(browser, path, title);
      await page.getByText(text).waitFor();
      await checkAccessibility(page, path);
      assert.equal(await page.locator("main form").count(), 0, path);
    }
    assert.deepEqual(browser.problems, []);
  } finally {
    await browser.close();
  }
}
