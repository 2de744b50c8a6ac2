// The real stack: `berth-dev run` with Redis, Sail, the sample catalog, the
// services and the console, on ports and with data of its own.
import { execFileSync, spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export const repo = fileURLToPath(new URL("../../..", import.meta.url));
export const home = process.env.BERTH_HOME ?? join(repo, ".berth");
export const python = join(home, "venv-sail/bin/python");
export const programs = process.env.PROGRAMS ?? join(process.env.CARGO_TARGET_DIR ?? join(repo, "target"), "debug");
const START_LIMIT_MS = 240_000;
const STOP_LIMIT_MS = 30_000;
const PROGRAM_LIMIT_MS = 180_000;
const PROVIDER_LIMIT_MS = 60_000;
/** What the engine of the cluster `broken` prints before it ends; it must stay text. */
export const HOSTILE_LOG = "<img src=x onerror=window.injected=1> cannot allocate memory";

/** Starts everything; returns the address of the console and the keys of two accounts. */
export async function startStack() {
  const state = mkdtempSync(join(tmpdir(), "berth-browser-"));
  const colleague = JSON.parse(execFileSync(join(programs, "berth"), ["--output", "json", "keys", "service-account"], { encoding: "utf8" }));
  const provider = await startProvider();
  const more = join(state, "more.toml");
  const engine = join(state, "broken-engine");
  // 127 is a permanent failure: the start is not tried again.
  writeFileSync(engine, `#!/bin/sh\necho '${HOSTILE_LOG}' >&2\nexit 127\n`, { mode: 0o755 });
  writeFileSync(more, moreConfig(engine, colleague, provider.issuer));
  const offset = await freeOffset();
  const args = ["run", "--state", state, "--port-offset", String(offset), "--more", more];
  const child = spawn(join(programs, "berth-dev"), args, { stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, BERTH_HOME: home } });
  try {
    const said = await serving(child);
    const address = /http:\/\/localhost:\d+$/m.exec(said)?.[0];
    if (!address) throw new Error(`berth-dev printed no address of the console:\n${said}`);
    const key = JSON.parse(readFileSync(join(state, "account.json"), "utf8")).key;
    return { address: `${address}/`, key, colleague: colleague.key, provider, state, offset, stop: () => stop(child, state, provider) };
  } catch (error) {
    await stop(child, state, provider);
    throw error;
  }
}

function moreConfig(engine, colleague, issuer) {
  return `
[[oidc]]
alias = "corp"
issuer = "${issuer}"
audiences = ["console"]
orgs = ["local"]
org_claim = "org"
roles_claim = "roles"

[[clusters]]
name = "broken"
engine = "sail"
process.program = "${engine}"

[[service_accounts]]
name = "colleague"
org = "local"
roles = ["member"]
key_sha256 = "${colleague.key_sha256}"
`;
}

function serving(child) {
  return new Promise((resolve, reject) => {
    let said = "";
    const limit = setTimeout(() => reject(new Error(`the stack did not start in time:\n${said}`)), START_LIMIT_MS);
    const take = (data) => {
      said += data;
      // The help that follows ends with this sentence.
      if (said.includes("Ctrl-C stops everything")) {
        clearTimeout(limit);
        resolve(said);
      }
    };
    child.stdout.on("data", take);
    child.stderr.on("data", take);
    child.on("exit", (code) => {
      clearTimeout(limit);
      reject(new Error(`berth-dev ended with ${code}:\n${said}`));
    });
  });
}

async function stop(child, state, provider) {
  await stopProcess(child);
  await provider.stop();
  rmSync(state, { recursive: true, force: true });
}

/** An offset at which all ports of a stack are free. */
async function freeOffset() {
  for (let offset = 20_000 + (process.pid % 200) * 100; offset < 55_000; offset += 100) {
    const ports = [6390, 8080, 8081, 8082, 8083, 8084, 8085, 8090, 9080, 9081, 9083, 9085].map((port) => port + offset);
    const free = await Promise.all(ports.map(isFree));
    if (free.every(Boolean)) return offset;
  }
  throw new Error("no free ports for a stack");
}

function isFree(port) {
  return new Promise((resolve) => {
    const server = createServer();
    server.once("error", () => resolve(false));
    server.listen(port, "127.0.0.1", () => server.close(() => resolve(true)));
  });
}

/** An OpenID provider that accepts everybody; `callback` is where it sends people back to. */
async function startProvider() {
  const [port, console] = [await freePort(), await freePort()];
  const child = spawn(process.execPath, [join(home, "oidc/provider.mjs"), String(port), `http://localhost:${console}/auth/callback`], { stdio: "ignore" });
  const issuer = `http://127.0.0.1:${port}`;
  const until = Date.now() + PROVIDER_LIMIT_MS;
  while (!(await fetch(`${issuer}/.well-known/openid-configuration`).then((reply) => reply.ok, () => false))) {
    if (child.exitCode !== null || Date.now() > until) throw new Error("the OpenID provider did not start: run deploy/local/setup.sh browser");
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  return { issuer, console, stop: () => stopProcess(child) };
}

/** A console of the same stack at which people sign in with the provider. */
export function startWithProvider(stack) {
  const secret = join(stack.state, "client-secret");
  writeFileSync(secret, "console-secret", { mode: 0o600 });
  const provider = `
[[sign_in.providers]]
id = "corp"
label = "Sign in with Example"
issuer = "${stack.provider.issuer}"
client_id = "console"
client_secret_file = "${secret}"
`;
  const keys = join(stack.state, "cookie-keys");
  return startPrefixed(stack, "", stack.provider.console, `sign_in.keys_dir = "${keys}"`, provider);
}

/** A second console of the same stack, below a path prefix; its cookies are valid while it runs. `keys` and `tables` are more configuration. */
export async function startPrefixed(stack, prefix, port, keys = "", tables = "") {
  const at = port ?? (await freePort());
  const address = `http://localhost:${at}${prefix}/`;
  const file = join(stack.state, `console-${at}.toml`);
  const config = readFileSync(join(stack.state, "console.toml"), "utf8");
  writeFileSync(file, [keys, prefixedConfig(config, at, await freePort(), address), tables].join("\n"), { mode: 0o600 });
  const child = spawn(join(programs, "console"), ["--config", file], { stdio: ["ignore", "pipe", "pipe"] });
  let log = "";
  child.stdout.on("data", (data) => (log += data));
  child.stderr.on("data", (data) => (log += data));
  const until = Date.now() + 30_000;
  while (!(await fetch(`${address}auth/session`).then((reply) => reply.ok, () => false))) {
    if (child.exitCode !== null) throw new Error(`the second console ended:\n${log}`);
    if (Date.now() > until) throw new Error(`the second console is not ready:\n${log}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  return { address, port: at, stop: () => stopProcess(child) };
}

/** The configuration of a console with other ports, an address with a prefix, and keys in memory. */
function prefixedConfig(config, port, admin, address) {
  const own = /^(listen\.address|admin\.address|sign_in\.keys_dir|public\.url)\b/;
  const kept = config.split("\n").filter((line) => !own.test(line));
  return [`listen.address = "127.0.0.1:${port}"`, `admin.address = "127.0.0.1:${admin}"`, `public.url = "${address.replace(/\/$/, "")}"`, ...kept].join("\n");
}

async function stopProcess(child) {
  if (child.exitCode !== null) return;
  const ended = new Promise((resolve) => child.once("exit", resolve));
  child.kill("SIGTERM");
  const limit = setTimeout(() => child.kill("SIGKILL"), STOP_LIMIT_MS);
  await ended;
  clearTimeout(limit);
}

// Below the ports that Linux gives to outgoing connections (32768 and above), one of
// which could take the port before its service listens. The range is not that of the Rust tests.
const FIRST_PORT = 10_000;
const PORTS = 5_000;
let nextPort = process.pid % PORTS;

/** A port on which nothing listens, given out once. */
async function freePort() {
  for (let tries = 0; tries < PORTS; tries += 1) {
    const port = FIRST_PORT + nextPort;
    nextPort = (nextPort + 1) % PORTS;
    if (await canListen(port)) return port;
  }
  throw new Error("no port is free");
}

function canListen(port) {
  return new Promise((resolve) => {
    const server = createServer();
    server.once("error", () => resolve(false));
    server.listen(port, "127.0.0.1", () => server.close(() => resolve(true)));
  });
}

/** A call of the REST API with a key, beside the browser. */
export async function rest(stack, key, method, path, body) {
  const reply = await fetch(`${stack.address}api/v1/${path}`, {
    method,
    headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const text = await reply.text();
  if (!reply.ok) throw new Error(`${method} ${path}: ${reply.status} ${text}`);
  return text === "" ? null : JSON.parse(text);
}

/** Runs a Python program in the environment of PySpark; returns its output. */
export function runPython(program, limitMs = PROGRAM_LIMIT_MS) {
  const dir = mkdtempSync(join(tmpdir(), "berth-python-"));
  const file = join(dir, "program.py");
  writeFileSync(file, program, { mode: 0o600 });
  const child = spawn(python, [file], { stdio: ["ignore", "pipe", "pipe"] });
  const ended = endOf(child, limitMs).finally(() => rmSync(dir, { recursive: true, force: true }));
  return { ended, kill: () => child.kill("SIGKILL") };
}

/** Runs a program to its end; returns its code and output. */
export function run(program, args, options = {}, limitMs = PROGRAM_LIMIT_MS) {
  return endOf(spawn(program, args, { stdio: ["ignore", "pipe", "pipe"], ...options }), limitMs);
}

function endOf(child, limitMs) {
  let output = "";
  child.stdout.on("data", (data) => (output += data));
  child.stderr.on("data", (data) => (output += data));
  const limit = setTimeout(() => child.kill("SIGKILL"), limitMs);
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (code) => {
      clearTimeout(limit);
      resolve({ code, output });
    });
  });
}
