// What an error of the API says about the fields of a form.
import { ApiError } from "../api/client.ts";

/** Texts by the path of the field, as the API names it. */
export type Problems = ReadonlyMap<string, string>;

/**
 * The problems of an error. A definition can have several: the metadata lists
 * their fields, and the text has them in the same order as "field: problem".
 */
export function problemsOf(error: unknown): Problems {
  const found = new Map<string, string>();
  if (!(error instanceof ApiError) || error.field === "") return found;
  const text = without(error.message, `${error.field}: `);
  const fields = (error.metadata["fields"] ?? "").split("\n").filter((field) => field !== "");
  let rest = text;
  for (const [i, field] of fields.entries()) {
    rest = without(rest, `${field}: `);
    const next = fields[i + 1];
    const end = next === undefined ? -1 : rest.indexOf(`; ${next}: `);
    add(found, field, end < 0 ? rest : rest.slice(0, end));
    if (end >= 0) rest = rest.slice(end + 2);
  }
  if (fields.length === 0) add(found, error.field, text);
  return found;
}

function without(text: string, start: string): string {
  return text.startsWith(start) ? text.slice(start.length) : text;
}

function add(found: Map<string, string>, field: string, problem: string): void {
  const old = found.get(field);
  found.set(field, old ? `${old}; ${problem}` : problem);
}

/**
 * Whether a path of the API is of the field `name`: "provider.static.endpoints[0].address" is of "endpoints".
 * Names inside a field do not count: a property can be called like another field.
 */
function isOf(path: string, name: string): boolean {
  return path.replace(/^provider\.[a-z]+\./, "").split(/[.[]/)[0] === name;
}

/** A value that the form itself refuses, as the API refuses one. */
export function wrongValue(field: string, text: string): ApiError {
  return new ApiError(400, "INVALID_ARGUMENT", text, null, { field });
}

/** The text for the field with one of these names. */
export function problemAt(problems: Problems, ...names: string[]): string | undefined {
  const texts = [...problems].filter(([path]) => names.some((name) => path === name || isOf(path, name))).map(([path, text]) => (names.includes(path) ? text : `${path}: ${text}`));
  return texts.length > 0 ? texts.join("; ") : undefined;
}

/** The problems of no field in `names`, for the field that takes the rest. */
export function otherProblems(problems: Problems, names: string[]): string | undefined {
  const texts = [...problems].filter(([path]) => !names.some((name) => path === name || isOf(path, name))).map(([path, text]) => `${path}: ${text}`);
  return texts.length > 0 ? texts.join("; ") : undefined;
}
