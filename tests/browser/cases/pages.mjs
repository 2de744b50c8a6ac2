// Every page in light and dark, on a wide screen and on a phone.
import { checkAccessibility, DESKTOP, open, PHONE, picture } from "../support/browser.mjs";

const PICTURES = { sessions: "console-sessions", clusters: "console-clusters", organization: "console-organization", usage: "console-usage" };

/** Pages with their headings; `live` and `ended` are ids of sessions. */
function pages(live, ended) {
  return [
    ["sessions", "Sessions"],
    ["sessions?status=ended", "Sessions"],
    ["sessions?q=nothing-has-this-name", "Sessions"],
    ["sessions/new", "Create session"],
    [`sessions/${live}`, /./],
    [`sessions/${ended}`, /./],
    ["clusters", "Clusters"],
    ["clusters/local", "local"],
    ["catalogs", "Catalogs"],
    ["catalogs/sample", "sample"],
    ["new-cluster", "Create cluster"],
    ["clusters/local/edit", "Edit cluster local"],
    ["new-catalog", "Create catalog"],
    ["organization", "Organization local"],
    ["usage", "Usage"],
    ["audit", "Audit"],
  ];
}

export async function everyPage(browser, live, ended) {
  const { page } = browser;
  for (const [scheme, size, name] of [
    ["light", DESKTOP, "wide"],
    ["dark", DESKTOP, "wide"],
    ["light", PHONE, "phone"],
    ["dark", PHONE, "phone"],
  ]) {
    await page.emulateMedia({ colorScheme: scheme });
    await page.setViewportSize(size);
    for (const [path, heading] of pages(live, ended)) {
      await open(browser, path, heading);
      await page.locator("main .loading").first().waitFor({ state: "detached" }).catch(() => {});
      await checkAccessibility(page, `${path} (${scheme}, ${name})`);
      if (PICTURES[path] && scheme === "light" && name === "wide") await picture(page, PICTURES[path]);
      if (path === "sessions" && scheme === "dark") await picture(page, `console-sessions-dark-${name}`);
    }
  }
  await page.emulateMedia({ colorScheme: "light" });
  await page.setViewportSize(DESKTOP);
}

/** On a phone the menu opens and closes by its button. */
export async function phoneMenu(browser) {
  const { page } = browser;
  await page.setViewportSize(PHONE);
  await open(browser, "sessions", "Sessions");
  await page.getByRole("button", { name: "Menu" }).click();
  await page.getByRole("link", { name: "Usage" }).click();
  await page.getByRole("heading", { level: 1, name: "Usage" }).waitFor();
  await page.getByRole("navigation", { name: "Main" }).waitFor({ state: "hidden" });
  await page.setViewportSize(DESKTOP);
}

/** The test of a catalog by a real query on a real cluster. */
export async function catalogTest(browser) {
  const { page } = browser;
  await open(browser, "catalogs/sample", "sample");
  await page.getByLabel("On cluster").selectOption("local");
  await page.getByRole("button", { name: "Test connection" }).click();
  await page.getByText("The catalog can be used").waitFor();
  await checkAccessibility(page, "a tested catalog");
}
