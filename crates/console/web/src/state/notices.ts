// Short messages: shown for some seconds, and read by screen readers.
import { ApiError } from "../api/client.ts";
import { Store } from "./store.ts";

export interface Notice {
  id: number;
  kind: "done" | "error";
  text: string;
}

const DONE_MS = 6000;
const ERROR_MS = 15_000;
const MAX_NOTICES = 4;

export const notices = new Store<Notice[]>([]);
/** Text for screen readers only. */
export const announcement = new Store("");

let last = 0;

export function notify(kind: Notice["kind"], text: string): void {
  const notice = { id: (last += 1), kind, text };
  notices.set([...notices.get().slice(1 - MAX_NOTICES), notice]);
  setTimeout(() => dismiss(notice.id), kind === "done" ? DONE_MS : ERROR_MS);
}

export function dismiss(id: number): void {
  notices.set(notices.get().filter((notice) => notice.id !== id));
}

export function announce(text: string): void {
  announcement.set(text);
}

/** The sentence of an error that a user can act on. */
export function errorText(error: unknown): string {
  if (error instanceof ApiError) {
    const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
    return error.message + (wait !== "" && !/try again|wait/i.test(error.message) ? wait : "");
  }
  return error instanceof Error ? error.message : String(error);
}
