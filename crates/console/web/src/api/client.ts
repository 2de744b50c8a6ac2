// Calls of the REST API. Every call is below the base of the page, so that the
// console works behind a path prefix.

/** A problem (RFC 9457) of the API, or a network error with status 0. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly reason: string,
    message: string,
    readonly retryAfter: number | null = null,
    readonly metadata: Record<string, string> = {},
    readonly requestId = "",
  ) {
    super(message);
  }

  /** The field of the request that is invalid; empty if none is named. */
  get field(): string {
    return this.metadata["field"] ?? "";
  }
}

export interface Options {
  query?: Record<string, string | string[] | undefined>;
  body?: unknown;
  headers?: Record<string, string>;
  signal?: AbortSignal;
}

export interface Reply<T> {
  data: T;
  etag: string | null;
}

let onSignedOut: () => void = () => {};
let clockOffset = 0;

/** Calls `listener` when the API rejects the credential of a call. */
export function whenSignedOut(listener: () => void): void {
  onSignedOut = listener;
}

/** The time of the server in milliseconds, exact to about a second. */
export function serverNow(): number {
  return Date.now() + clockOffset;
}

/** The absolute address of a path below the base of the page. */
export function address(path: string, query: Options["query"] = {}): string {
  const url = new URL(path, document.baseURI);
  for (const [name, value] of Object.entries(query)) {
    for (const item of Array.isArray(value) ? value : [value]) {
      if (item !== undefined && item !== "") url.searchParams.append(name, item);
    }
  }
  return url.href;
}

/** Sends a request; throws an `ApiError` for every other answer than 2xx. */
export async function send<T>(method: string, path: string, options: Options = {}): Promise<Reply<T>> {
  const response = await reach(method, path, options);
  keepClock(response);
  if (!response.ok) throw await problem(response);
  const text = await response.text();
  return { data: (text === "" ? null : JSON.parse(text)) as T, etag: response.headers.get("etag") };
}

export const api = {
  get: async <T>(path: string, options?: Options): Promise<T> => (await send<T>("GET", v1(path), options)).data,
  post: async <T>(path: string, body?: unknown, options: Options = {}): Promise<T> =>
    (await send<T>("POST", v1(path), { ...options, body })).data,
  send: <T>(method: string, path: string, options?: Options): Promise<Reply<T>> => send<T>(method, v1(path), options),
};

/** The path of a resource of the API. */
export function v1(path: string): string {
  return `api/v1/${path}`;
}

async function reach(method: string, path: string, options: Options): Promise<Response> {
  const headers: Record<string, string> = { accept: "application/json", ...options.headers };
  if (method !== "GET") headers["x-berth-request"] = "1";
  if (options.body !== undefined) headers["content-type"] = "application/json";
  try {
    return await fetch(address(path, options.query), {
      method,
      headers,
      body: options.body === undefined ? null : JSON.stringify(options.body),
      signal: options.signal ?? null,
      credentials: "same-origin",
      redirect: "error",
    });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError(0, "UNREACHABLE", "Berth cannot be reached. Check your network connection, then try again.");
  }
}

/** The error that an answer stands for. */
export async function problem(response: Response): Promise<ApiError> {
  let body: { detail?: string; title?: string; reason?: string; retry_after?: unknown; metadata?: Record<string, string> } = {};
  try {
    body = await response.json();
  } catch {
    // Not a problem document: the status has to do.
  }
  if (response.status === 401) onSignedOut();
  const after = Number(response.headers.get("retry-after"));
  return new ApiError(
    response.status,
    body.reason ?? "",
    body.detail || body.title || `The server answered with status ${response.status}.`,
    Number.isFinite(after) && after > 0 ? after : null,
    body.metadata ?? {},
    response.headers.get("x-request-id") ?? "",
  );
}

function keepClock(response: Response): void {
  const date = Date.parse(response.headers.get("date") ?? "");
  // The header has whole seconds: smaller differences say nothing.
  if (Number.isFinite(date)) {
    const offset = date - Date.now();
    clockOffset = Math.abs(offset) > 2000 ? offset : 0;
  }
}
