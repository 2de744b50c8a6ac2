// All that the page of a session shows, kept current: changes of state by the
// watch stream, activity and usage by polls, because activity is no change.
import { useCallback, useEffect, useReducer, useRef } from "preact/hooks";
import { api, serverNow } from "../api/client.ts";
import { follow } from "../api/watch.ts";
import type { Operation, Session, SessionEvent } from "../api/types.ts";
import { isLive, parseUpdate } from "../state/live_sessions.ts";
import { usePoll } from "../state/load.ts";
import type { Sample } from "./rates.ts";

const POLL_MS = 2500;
/** Samples of half an hour. */
const MAX_SAMPLES = 720;

export interface SessionData {
  session: Session | null;
  etag: string | null;
  events: SessionEvent[];
  operations: Operation[];
  samples: Sample[];
  error: unknown;
  connected: boolean;
}

export interface SessionAccess extends SessionData {
  /** Takes the answer of a change that the user made. */
  put: (session: Session) => void;
  reload: () => void;
  reloadOperations: () => Promise<void>;
}

export function useSession(id: string): SessionAccess {
  const [, render] = useReducer((n: number) => n + 1, 0);
  const data = useRef<SessionData>({ session: null, etag: null, events: [], operations: [], samples: [], error: null, connected: true });
  const alive = useRef(true);
  const change = useCallback((values: Partial<SessionData>) => {
    if (!alive.current) return;
    data.current = { ...data.current, ...values };
    render(undefined as never);
  }, []);

  const loadEvents = useCallback(async () => {
    const { events } = await api.get<{ events: SessionEvent[] }>(`sessions/${encodeURIComponent(id)}/events`);
    change({ events });
  }, [id]);
  const put = useCallback((session: Session) => {
    const old = data.current.session;
    if (old && old.version > session.version) return;
    change({ session, samples: withSample(data.current.samples, session) });
    if (!old || old.version !== session.version) loadEvents().catch(() => {});
  }, [loadEvents]);
  const load = useCallback(async () => {
    const { data: session, etag } = await api.send<Session>("GET", `sessions/${encodeURIComponent(id)}`);
    change({ etag, error: null });
    put(session);
  }, [id, put]);
  const reload = useCallback(() => void load().catch((error) => change({ error })), [load]);
  const reloadOperations = useCallback(async () => {
    const { operations } = await api.get<{ operations: Operation[] }>(`sessions/${encodeURIComponent(id)}/operations`);
    change({ operations });
  }, [id]);

  useEffect(() => {
    alive.current = true;
    reload();
    const stop = follow("sessions:watch", { session_id: id }, {
      message: (message) => {
        const update = parseUpdate(message);
        if (update && "session" in update && update.session.id === id) put(update.session);
      },
      state: (connected) => change({ connected }),
      // The load has the reason: the stream of an ended session ends too.
      failed: () => reload(),
    });
    return () => {
      alive.current = false;
      stop();
    };
  }, [id]);

  const { session } = data.current;
  const live = session !== null && isLive(session);
  usePoll(POLL_MS, live, load);
  usePoll(POLL_MS, live && session.status === "active", reloadOperations);
  useEffect(() => {
    if (session?.status === "active") reloadOperations().catch(() => {});
    else change({ operations: [] });
  }, [session?.status]);
  return { ...data.current, put, reload, reloadOperations };
}

function withSample(samples: Sample[], session: Session): Sample[] {
  const usage = session.usage;
  if (!usage) return samples;
  const sample = { at: serverNow() / 1000, operations: session.active_operations, rpcs: usage.rpcs, bytesIn: usage.bytes_in, bytesOut: usage.bytes_out };
  return [...samples.slice(1 - MAX_SAMPLES), sample];
}
