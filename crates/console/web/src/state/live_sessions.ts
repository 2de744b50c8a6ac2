// The live sessions that the caller may read, kept current by the watch stream.
// Changes are collected and published at most once per frame, in the order
// newest first; an update costs a binary search, never a sort of the list.
import { follow, type Message } from "../api/watch.ts";
import type { ApiError } from "../api/client.ts";
import type { Session, SessionEvent } from "../api/types.ts";
import { Store } from "./store.ts";

export interface LiveSessions {
  /** Whether the first snapshot is complete. */
  loaded: boolean;
  connected: boolean;
  error: ApiError | null;
  /** Newest first. */
  sessions: readonly Session[];
}

/** A snapshot is complete when nothing followed for this long, because the stream has no mark for it. */
const QUIET_MS = 250;
const MAX_SNAPSHOT_MS = 3000;

export type Update = { reset: true } | { session: Session; event: SessionEvent | null };

/** What a message of the watch stream says; none if it is unknown. */
export function parseUpdate(message: Message): Update | null {
  let data: Record<string, unknown>;
  try {
    data = JSON.parse(message.data);
  } catch {
    return null;
  }
  if (message.event === "reset" || (data !== null && data["reset"])) return { reset: true };
  const session = (data["session"] ?? data) as Session;
  if (typeof session?.id !== "string") return null;
  return { session, event: (data["event"] as SessionEvent | undefined) ?? null };
}

export function isLive(session: Session): boolean {
  return session.status === "pending" || session.status === "active" || session.status === "idle";
}

/** The place of a session in the list: by creation, newest first, then by id. */
function before(a: Session, b: Session): boolean {
  const [x, y] = [a.created_at ?? "", b.created_at ?? ""];
  return x === y ? a.id < b.id : x > y;
}

/** A list of sessions that is ordered at all times. */
export class OrderedSessions {
  private list: Session[] = [];
  private byId = new Map<string, Session>();

  get sessions(): readonly Session[] {
    return this.list;
  }

  has(id: string): boolean {
    return this.byId.has(id);
  }

  put(session: Session): void {
    const old = this.byId.get(session.id);
    if (old && old.version > session.version) return;
    const at = this.find(old ?? session);
    this.byId.set(session.id, session);
    if (old) this.list[at] = session;
    else this.list.splice(at, 0, session);
  }

  remove(id: string): void {
    const old = this.byId.get(id);
    if (!old) return;
    this.list.splice(this.find(old), 1);
    this.byId.delete(id);
  }

  private find(session: Session): number {
    let [low, high] = [0, this.list.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (before(this.list[middle] as Session, session)) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/** Follows the live sessions; `publish` gets each state, at most one per frame. */
export function watchSessions(publish: (state: LiveSessions) => void): () => void {
  let [loaded, connected] = [false, false];
  let error: ApiError | null = null;
  let shown = new OrderedSessions();
  // Not null while a snapshot arrives: the old list is shown until it is complete.
  let snapshot: OrderedSessions | null = null;
  let frame = 0;
  let quiet: ReturnType<typeof setTimeout> | undefined;
  let begun = 0;

  const publishNow = () => {
    frame = 0;
    publish({ loaded, connected, error, sessions: shown.sessions.slice() });
  };
  const schedule = () => (frame ||= requestAnimationFrame(publishNow));
  const complete = () => {
    clearTimeout(quiet);
    if (snapshot) shown = snapshot;
    snapshot = null;
    loaded = true;
    schedule();
  };
  const take = (update: Update) => {
    if ("reset" in update) {
      snapshot = new OrderedSessions();
      begun = performance.now();
      clearTimeout(quiet);
      quiet = setTimeout(complete, QUIET_MS);
      return;
    }
    const into = snapshot ?? shown;
    if (isLive(update.session)) into.put(update.session);
    else into.remove(update.session.id);
    if (!snapshot) schedule();
    else if (performance.now() - begun > MAX_SNAPSHOT_MS) complete();
    else {
      clearTimeout(quiet);
      quiet = setTimeout(complete, QUIET_MS);
    }
  };

  const stop = follow("sessions:watch", {}, {
    message: (message) => {
      const update = parseUpdate(message);
      if (update) take(update);
    },
    state: (up) => {
      connected = up;
      error = null;
      schedule();
    },
    failed: (cause) => {
      error = cause;
      schedule();
    },
  });
  return () => {
    stop();
    clearTimeout(quiet);
    cancelAnimationFrame(frame);
  };
}

/** For pages that only need the newest state. */
export const NOTHING_YET: LiveSessions = { loaded: false, connected: false, error: null, sessions: [] };
export const liveSessions = new Store<LiveSessions>(NOTHING_YET);

let users = 0;
let stopWatch: (() => void) | undefined;

/** Shares one stream between all users; the last one ends it. */
export function useLiveStream(): () => void {
  users += 1;
  if (users === 1) stopWatch = watchSessions((state) => liveSessions.set(state));
  return () => {
    users -= 1;
    if (users > 0) return;
    stopWatch?.();
    liveSessions.set(NOTHING_YET);
  };
}
