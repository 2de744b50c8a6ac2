// The programs of the tabs "connect from" are run as they are copied: dbt, what
// Airflow is given, and the berth command.
import assert from "node:assert/strict";
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, dirname, join } from "node:path";
import { open } from "../support/browser.mjs";
import { home, programs, python, rest, run } from "../support/stack.mjs";

const QUERY = `from pyspark.sql import SparkSession
spark = SparkSession.builder.getOrCreate()
print("answer", spark.sql("SELECT 41 + 1").first()[0])
spark.stop()
`;

/** Waits until a session is active. */
async function activeSession(stack) {
  const { id } = await rest(stack, stack.key, "POST", "sessions", { cluster: "local", name: "snippets" });
  for (;;) {
    const { status, status_message: why } = await rest(stack, stack.key, "GET", `sessions/${id}?wait=active&timeout=60s`);
    if (status === "active") return id;
    assert.equal(status, "pending", why);
  }
}

/** The texts of the tabs, by their names, with a new token. */
async function texts(page, names) {
  await page.getByRole("button", { name: "Generate token", exact: true }).first().click();
  const dialog = page.getByRole("dialog");
  await dialog.getByRole("button", { name: "Generate token" }).click();
  await dialog.getByText("This is shown once").waitFor();
  const found = {};
  for (const name of names) {
    await dialog.getByRole("tab", { name, exact: true }).click();
    const code = await dialog.getByLabel(`program for ${name}`, { exact: true }).textContent();
    const install = dialog.getByLabel("installation", { exact: true });
    found[name] = { code, install: (await install.count()) > 0 ? await install.textContent() : "" };
  }
  await dialog.getByRole("button", { name: "Done" }).click();
  return found;
}

/** Runs a shell script in a folder; returns its output. */
async function shell(script, cwd, env) {
  const { code, output } = await run("bash", ["-euo", "pipefail", "-c", script], { cwd, env: { ...process.env, ...env } });
  assert.equal(code, 0, output);
  return output;
}

export async function snippetsRun(browser, stack) {
  const id = await activeSession(stack);
  const dir = mkdtempSync(join(tmpdir(), "berth-snippets-"));
  try {
    await open(browser, `sessions/${id}`, "snippets");
    const found = await texts(browser.page, ["dbt", "Airflow", "CLI", "berth exec", "berth connect"]);
    writeFileSync(join(dir, "my_program.py"), QUERY);
    await dbt(found.dbt.code, dir);
    await airflow(found.Airflow, dir);
    await command(found.CLI.code, stack, dir);
    await forwarders(found, stack, dir);
  } finally {
    rmSync(dir, { recursive: true, force: true });
    await rest(stack, stack.key, "POST", `sessions/${id}:close`, {});
  }
}

/** profiles.yml and the commands of the tab, with a project of two models. */
async function dbt(code, dir) {
  const [profile, commands] = code.split("# in the shell");
  assert.match(profile, /^# profiles\.yml\nberth:\n/);
  const project = join(dir, "project");
  mkdirSync(join(project, "models"), { recursive: true });
  writeFileSync(join(project, "profiles.yml"), profile);
  writeFileSync(join(project, "dbt_project.yml"), 'name: demo\nversion: "1.0"\nprofile: berth\n');
  writeFileSync(join(project, "models/one.sql"), "SELECT 1 AS id");
  writeFileSync(join(project, "models/two.sql"), "SELECT count(*) AS n FROM {{ ref('one') }}");
  const client = join(home, "client-dbt");
  const output = await shell(`# ${commands}`, project, {
    PATH: [join(client, "bin"), process.env.PATH].join(delimiter),
    PYTHONPATH: client,
    DBT_SEND_ANONYMOUS_USAGE_STATS: "false",
  });
  assert.match(output, /PASS=2 WARN=0 ERROR=0/);
}

/** The variable that Airflow keeps connects, quoted as the shell reads it; the task is Python. */
async function airflow({ install, code }, dir) {
  const stub = join(dir, "airflow");
  // Airflow itself is 1 GB: what its command would keep is tested.
  writeFileSync(stub, `#!/bin/sh\n[ "$1 $2 $3" = "variables set berth_spark_remote" ] && printf %s "$4" > "${dir}/remote"\n`);
  chmodSync(stub, 0o755);
  const [, set] = install.split("# on the workers\n");
  await shell(set, dir, { PATH: [dir, process.env.PATH].join(delimiter) });
  writeFileSync(join(dir, "dag.py"), code);
  await shell(`'${python}' -c 'import ast; ast.parse(open("dag.py").read())'`, dir, {});
  const output = await shell(`SPARK_REMOTE="$(cat remote)" '${python}' my_program.py`, dir, {});
  assert.match(output, /answer 42/);
}

/** The environment of a person who uses the berth command. */
function signedIn(stack, dir) {
  const at = (port) => `http://127.0.0.1:${port + stack.offset}`;
  return {
    PATH: [programs, dirname(python), process.env.PATH].join(delimiter),
    BERTH_MANAGER: at(8081),
    BERTH_ISSUER: at(8083),
    BERTH_KEY: stack.key,
    BERTH_CONFIG_DIR: dir,
  };
}

/** The berth command sets what a program needs, and finds nothing wrong. */
async function command(code, stack, dir) {
  assert.match(await shell(code, dir, signedIn(stack, dir)), /answer 42/);
}

/** The forwarders need no token of the page. */
async function forwarders(found, stack, dir) {
  const [exec, connect] = [found["berth exec"].code, found["berth connect"].code];
  const env = signedIn(stack, dir);
  assert.match(await shell(exec, dir, env), /answer 42/);
  // On a free port; its output is the connection string.
  const script = `
    ${connect.split("#")[0]} --port 0 > string & forwarder=$!
    trap 'kill $forwarder' EXIT
    for _ in $(seq 600); do [ -s string ] && break; sleep 0.1; done
    SPARK_REMOTE="$(grep -o 'sc://[^ ]*' string)" python my_program.py`;
  assert.match(await shell(script, dir, env), /answer 42/);
}
