// Texts of fields, and the values that the API has in their place.
import type { Pairs } from "../ui/form.tsx";
import { wrongValue } from "./problems.ts";

/** "a, b" as a list. */
export function listOf(text: string): string[] {
  return text
    .split(/[,\s]+/)
    .map((part) => part.trim())
    .filter((part) => part !== "");
}

/** "1800s" as the seconds of a field; empty if it is not set. */
export function secondsOf(duration: string | null | undefined): string {
  return duration ? String(Number.parseFloat(duration)) : "";
}

/** The seconds of a field as a duration. */
export function durationOf(seconds: string): string | null {
  return seconds === "" ? null : `${seconds}s`;
}

export type PropertyValue = string | string[] | null;

/** Properties as pairs of texts; a list is written as JSON. */
export function pairsOf(properties: Record<string, PropertyValue>): Pairs {
  const names = Object.keys(properties).sort((a, b) => a.localeCompare(b));
  return names.map((name) => {
    const value = properties[name] ?? "";
    return [name, Array.isArray(value) ? JSON.stringify(value) : value];
  });
}

/** The properties of pairs that have a name or a value; `lists` reads ["a", "b"] as a list. A name given twice is refused. */
export function propertiesOf(pairs: Pairs, lists: boolean): Record<string, string | string[]> {
  const named = pairs.filter(([name, value]) => name.trim() !== "" || value !== "");
  const names = named.map(([name]) => name.trim());
  const double = names.find((name, i) => names.indexOf(name) < i);
  if (double !== undefined) throw wrongValue("properties", `"${double}" is given twice; remove one`);
  return Object.fromEntries(named.map(([name, value]) => [name.trim(), (lists && listIn(value)) || value]));
}

function listIn(text: string): string[] | null {
  if (!text.trim().startsWith("[")) return null;
  try {
    const value: unknown = JSON.parse(text);
    return Array.isArray(value) && value.every((item) => typeof item === "string") ? value : null;
  } catch {
    return null;
  }
}
