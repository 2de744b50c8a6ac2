// Ended sessions, page by page.
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { api } from "../api/client.ts";
import type { Session } from "../api/types.ts";

interface Page {
  sessions: Session[];
  next_page_token: string;
}

const PAGE_SIZE = "50";
/** A page may be empty and still have a next one; so many are read for one request of the user. */
const MAX_PAGES = 5;

export interface Ended {
  sessions: Session[];
  loading: boolean;
  error: unknown;
  more: boolean;
  loadMore: () => void;
  reload: () => void;
}

/** The ended sessions of a cluster and an owner; of all if empty. */
export function useEnded(cluster: string, owner: string): Ended {
  const [sessions, setSessions] = useState<Session[]>([]);
  const [token, setToken] = useState("");
  const [loading, setLoading] = useState(true);
  const [error, setError] = useState<unknown>(null);
  const round = useRef(0);

  const load = useCallback(
    async (from: string, old: Session[]) => {
      const mine = (round.current += 1);
      setLoading(true);
      setError(null);
      try {
        let found = old;
        let next = from;
        for (let page = 0; page < MAX_PAGES; page += 1) {
          const query = { statuses: ["closed", "failed"], cluster, owner, page_size: PAGE_SIZE, page_token: next };
          const reply = await api.get<Page>("sessions", { query });
          found = [...found, ...reply.sessions];
          next = reply.next_page_token;
          if (next === "" || reply.sessions.length > 0) break;
        }
        if (mine !== round.current) return;
        setSessions(found);
        setToken(next);
      } catch (cause) {
        if (mine === round.current) setError(cause);
      } finally {
        if (mine === round.current) setLoading(false);
      }
    },
    [cluster, owner],
  );

  useEffect(() => {
    setSessions([]);
    void load("", []);
    return () => {
      round.current += 1;
    };
  }, [load]);

  return { sessions, loading, error, more: token !== "", loadMore: () => void load(token, sessions), reload: () => void load("", []) };
}
