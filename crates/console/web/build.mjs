// Builds the console into dist/: one page, one style sheet, one script, and the
// charts as a script of their own, which only the page of a session loads.
// Names of assets contain a hash of their content, so that they can be cached.
import { build } from "esbuild";
import { createHash } from "node:crypto";
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL(".", import.meta.url));
const dist = join(root, "dist");

await rm(dist, { recursive: true, force: true });
await mkdir(join(dist, "assets"), { recursive: true });

const { metafile } = await build({
  absWorkingDir: root,
  entryPoints: { app: "src/main.tsx" },
  outdir: "dist/assets",
  entryNames: "[name]-[hash]",
  chunkNames: "[name]-[hash]",
  bundle: true,
  splitting: true,
  format: "esm",
  target: ["es2022"],
  minify: true,
  metafile: true,
  legalComments: "none",
  logLevel: "warning",
});

const [entry] = Object.entries(metafile.outputs).filter(([, output]) => output.entryPoint === "src/main.tsx");
if (!entry?.[1].cssBundle) throw new Error("the build has no entry with a style sheet");

const icon = await readFile(join(root, "src/icon.svg"));
const iconName = `icon-${createHash("sha256").update(icon).digest("hex").slice(0, 8)}.svg`;
await writeFile(join(dist, "assets", iconName), icon);

const page = (await readFile(join(root, "src/index.html"), "utf8"))
  .replace("{{style}}", `assets/${basename(entry[1].cssBundle)}`)
  .replace("{{script}}", `assets/${basename(entry[0])}`)
  .replace("{{icon}}", `assets/${iconName}`);
await writeFile(join(dist, "index.html"), page);
