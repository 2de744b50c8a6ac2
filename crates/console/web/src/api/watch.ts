// Server-sent events by fetch, because an EventSource hides the status and the
// problem of a rejected request.
import { address, ApiError, problem, v1 } from "./client.ts";

export interface Message {
  event: string;
  data: string;
}

export interface Handlers {
  message(message: Message): unknown;
  /** `connected` is false while the stream is down and is tried again. */
  state?(connected: boolean): void;
  /** The stream ended for good: access was lost, or the session does not exist. */
  failed?(error: ApiError): void;
}

const FIRST_RETRY_MS = 500;
const MAX_RETRY_MS = 15_000;
/** The server sends a comment every 15 s; a stream silent for longer is dead. */
const SILENCE_LIMIT_MS = 45_000;

/** Follows a stream until it ends for good or the returned function is called. Waits while the page is hidden. */
export function follow(path: string, query: Record<string, string>, handlers: Handlers): () => void {
  const stopped = new AbortController();
  void run(path, query, handlers, stopped.signal);
  return () => stopped.abort();
}

async function run(path: string, query: Record<string, string>, handlers: Handlers, stop: AbortSignal): Promise<void> {
  let retry = FIRST_RETRY_MS;
  const place = { id: "" };
  while (!stop.aborted) {
    await visible(stop);
    if (stop.aborted) return;
    const began = Date.now();
    const error = await once(path, query, handlers, stop, place);
    if (stop.aborted || error === "end") return;
    handlers.state?.(false);
    if (error && error.status >= 400 && error.status < 500 && error.status !== 429 && error.status !== 408) {
      handlers.failed?.(error);
      return;
    }
    if (Date.now() - began > MAX_RETRY_MS) retry = FIRST_RETRY_MS;
    await pause(error?.retryAfter ? error.retryAfter * 1000 : retry * (0.75 + Math.random() / 2), stop);
    retry = Math.min(retry * 2, MAX_RETRY_MS);
  }
}

/** Reads one stream; returns why it could not, or that the server has nothing more to send. */
async function once(
  path: string,
  query: Record<string, string>,
  handlers: Handlers,
  stop: AbortSignal,
  place: { id: string },
): Promise<ApiError | "end" | null> {
  const end = new AbortController();
  const abort = () => end.abort();
  stop.addEventListener("abort", abort);
  let silence = setTimeout(abort, SILENCE_LIMIT_MS);
  try {
    const headers: Record<string, string> = { accept: "text/event-stream" };
    if (place.id !== "") headers["last-event-id"] = place.id;
    const response = await fetch(address(v1(path), query), { headers, signal: end.signal, credentials: "same-origin" });
    if (!response.ok || !response.body) return await problem(response);
    handlers.state?.(true);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let ended = false;
    const message = (received: Message) => (received.event === "end" ? (ended = true) : handlers.message(received));
    const parse = parser({ message }, place);
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return ended ? "end" : null;
      clearTimeout(silence);
      silence = setTimeout(abort, SILENCE_LIMIT_MS);
      parse(value);
    }
  } catch {
    return null;
  } finally {
    clearTimeout(silence);
    stop.removeEventListener("abort", abort);
  }
}

/** A parser of the event stream format that is fed with pieces of text. */
export function parser(handlers: Pick<Handlers, "message">, place: { id: string }): (text: string) => void {
  let rest = "";
  let event = "";
  let data: string[] = [];
  const line = (text: string): void => {
    if (text === "") {
      if (data.length > 0) handlers.message({ event: event || "message", data: data.join("\n") });
      event = "";
      data = [];
      return;
    }
    const colon = text.indexOf(":");
    if (colon === 0) return;
    const name = colon < 0 ? text : text.slice(0, colon);
    const value = colon < 0 ? "" : text.slice(colon + 1).replace(/^ /, "");
    if (name === "event") event = value;
    else if (name === "data") data.push(value);
    else if (name === "id") place.id = value;
  };
  return (text) => {
    const lines = (rest + text).split(/\r?\n/);
    rest = lines.pop() ?? "";
    lines.forEach(line);
  };
}

function pause(ms: number, stop: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    stop.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}

/** Waits until the page is visible: hidden pages do not need a stream of their own. */
function visible(stop: AbortSignal): Promise<void> {
  if (document.visibilityState !== "hidden") return Promise.resolve();
  return new Promise((resolve) => {
    const check = () => {
      if (document.visibilityState === "hidden" && !stop.aborted) return;
      document.removeEventListener("visibilitychange", check);
      resolve();
    };
    document.addEventListener("visibilitychange", check);
    stop.addEventListener("abort", check, { once: true });
  });
}
