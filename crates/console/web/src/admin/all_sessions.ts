// All sessions that Berth still keeps, live and ended.
import { api } from "../api/client.ts";
import type { Session } from "../api/types.ts";

/** More pages are not read; the page says so. */
const MAX_PAGES = 20;

export interface AllSessions {
  sessions: Session[];
  complete: boolean;
}

export async function allSessions(signal: AbortSignal, pages = MAX_PAGES, pageSize = 1000): Promise<AllSessions> {
  const sessions: Session[] = [];
  let token = "";
  for (let page = 0; page < pages; page += 1) {
    const query = { statuses: ["pending", "active", "idle", "closed", "failed"], page_size: String(pageSize), page_token: token };
    const reply = await api.get<{ sessions: Session[]; next_page_token: string }>("sessions", { signal, query });
    sessions.push(...reply.sessions);
    token = reply.next_page_token;
    if (token === "") return { sessions, complete: true };
  }
  return { sessions, complete: false };
}
