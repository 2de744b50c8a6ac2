// Addresses of pages, relative to the base of the page, by the History API.
import { Store } from "./store.ts";

export interface Place {
  /** Without leading slash: "sessions/s-1". */
  path: string;
  query: URLSearchParams;
}

const base = new URL(document.baseURI).pathname;

function current(): Place {
  const path = location.pathname.startsWith(base) ? location.pathname.slice(base.length) : location.pathname.slice(1);
  return { path: path.replace(/\/+$/, ""), query: new URLSearchParams(location.search) };
}

export const place = new Store<Place>(current());

addEventListener("popstate", () => place.set(current()));

/** Opens a page of the console. */
export function navigate(path: string, replace = false): void {
  const url = new URL(path, document.baseURI);
  if (replace) history.replaceState(null, "", url);
  else history.pushState(null, "", url);
  place.set(current());
}

/** Changes the query of the present page without a new entry in the history. */
export function setQuery(values: Record<string, string>): void {
  const query = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(values)) {
    if (value === "") query.delete(name);
    else query.set(name, value);
  }
  const text = query.toString();
  history.replaceState(null, "", location.pathname + (text === "" ? "" : `?${text}`));
  place.set(current());
}

/** The path of the present page with its query, to return to after the sign-in. */
export function here(): string {
  return `/${current().path}${location.search}`;
}
