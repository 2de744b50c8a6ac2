// Times, durations, sizes and names as people read them.
import { serverNow } from "./api/client.ts";

/** Milliseconds of an RFC 3339 time; none if it is unset. */
export function millis(time: string | null | undefined): number | null {
  const at = time ? Date.parse(time) : NaN;
  return Number.isFinite(at) ? at : null;
}

/** Seconds of a duration such as "1800s"; none if it is unset. */
export function seconds(duration: string | null | undefined): number | null {
  const value = duration ? Number.parseFloat(duration) : NaN;
  return Number.isFinite(value) ? value : null;
}

/** A length of time in at most two units: "2 h 5 min". */
export function span(totalSeconds: number): string {
  const s = Math.max(0, Math.round(totalSeconds));
  if (s < 60) return `${s} s`;
  const [d, h, m] = [Math.floor(s / 86_400), Math.floor((s % 86_400) / 3600), Math.floor((s % 3600) / 60)];
  if (d > 0) return h > 0 ? `${d} d ${h} h` : `${d} d`;
  if (h > 0) return m > 0 ? `${h} h ${m} min` : `${h} h`;
  return m < 10 && s % 60 > 0 ? `${m} min ${s % 60} s` : `${m} min`;
}

/** A time that is short: "3.2 s", "1 min 5 s". */
export function shortSpan(totalSeconds: number): string {
  return totalSeconds < 10 ? `${totalSeconds.toFixed(1)} s` : span(totalSeconds);
}

/** "5 min ago", "in 2 h"; coarse, because it is not updated every second. */
export function relative(time: string | null | undefined, now = serverNow()): string {
  const at = millis(time);
  if (at === null) return "never";
  const difference = (at - now) / 1000;
  if (Math.abs(difference) < 45) return difference > 5 ? "in a moment" : "just now";
  const text = coarse(Math.abs(difference));
  return difference < 0 ? `${text} ago` : `in ${text}`;
}

/** One unit: "5 min", "3 h", "2 d". */
export function coarse(totalSeconds: number): string {
  if (totalSeconds < 60) return "< 1 min";
  if (totalSeconds < 5400) return `${Math.round(totalSeconds / 60)} min`;
  if (totalSeconds < 129_600) return `${Math.round(totalSeconds / 3600)} h`;
  return `${Math.round(totalSeconds / 86_400)} d`;
}

const FULL = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DAY = new Intl.DateTimeFormat(undefined, { weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

/** Date and time in the reader's own zone. */
export function full(time: string | number | null | undefined): string {
  const at = typeof time === "number" ? time : millis(time);
  return at === null ? "–" : FULL.format(at);
}

export function clock(time: string | number | null | undefined): string {
  const at = typeof time === "number" ? time : millis(time);
  return at === null ? "–" : CLOCK.format(at);
}

/** Day and time of day. */
export function day(time: string | number | null | undefined): string {
  const at = typeof time === "number" ? time : millis(time);
  return at === null ? "–" : DAY.format(at);
}

/** "1.4 MB", in powers of 1000. */
export function bytes(count: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = count;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

const COUNT = new Intl.NumberFormat();
export function count(value: number): string {
  return COUNT.format(value);
}

/** "1 session", "2 sessions". */
export function plural(value: number, noun: string): string {
  return `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
}

/** The subject of a principal without the alias of its issuer. */
export function person(principal: string): string {
  const bar = principal.indexOf("|");
  return bar < 0 ? principal : principal.slice(bar + 1);
}

export function engineName(engine: string, version = ""): string {
  const names: Record<string, string> = { sail: "Sail", spark: "Apache Spark" };
  const name = names[engine] ?? (engine || "Engine");
  if (!version) return name;
  // What an engine reports is the version of Spark that it speaks.
  return engine === "spark" ? `${name} ${version}` : `${name} (Spark ${version})`;
}
