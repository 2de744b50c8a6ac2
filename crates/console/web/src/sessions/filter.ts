// Filters of the list, as they are in the address of the page.
import type { Session } from "../api/types.ts";

export interface Filter {
  /** live, pending, active, idle or ended */
  status: string;
  cluster: string;
  /** "me" or empty */
  owner: string;
  /** Lower-case text in name, id, owner, catalog or a label. */
  text: string;
}

export function readFilter(query: URLSearchParams): Filter {
  const status = query.get("status") ?? "";
  return {
    status: ["pending", "active", "idle", "ended"].includes(status) ? status : "live",
    cluster: query.get("cluster") ?? "",
    owner: query.get("owner") === "me" ? "me" : "",
    text: (query.get("q") ?? "").trim().toLowerCase(),
  };
}

export function isFiltered(filter: Filter): boolean {
  return filter.cluster !== "" || filter.owner !== "" || filter.text !== "" || !["live", "ended"].includes(filter.status);
}

export function matches(session: Session, filter: Filter, me: string): boolean {
  if (filter.status !== "live" && filter.status !== "ended" && session.status !== filter.status) return false;
  if (filter.cluster !== "" && session.cluster !== filter.cluster) return false;
  if (filter.owner === "me" && session.owner !== me) return false;
  return filter.text === "" || hasText(session, filter.text);
}

function hasText(session: Session, text: string): boolean {
  if (session.name.toLowerCase().includes(text) || session.id.includes(text)) return true;
  if (session.owner.toLowerCase().includes(text) || session.catalog.includes(text)) return true;
  for (const name in session.labels) {
    if (`${name}=${session.labels[name]}`.toLowerCase().includes(text)) return true;
  }
  return false;
}
