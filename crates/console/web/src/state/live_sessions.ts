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
  const watch = new Watch(publish);
  const stop = follow("sessions:watch", {}, {
    message: (message) => {
      const update = parseUpdate(message);
      if (update) watch.take(update);
    },
    state: (connected) => watch.setConnection(connected, null),
    failed: (error) => watch.setConnection(false, error),
  });
  return () => {
    stop();
    watch.stop();
  };
}

class Watch {
  private loaded = false;
  private connected = false;
  private error: ApiError | null = null;
  private shown = new OrderedSessions();
  /** Not null while a snapshot arrives: the old list is shown until it is complete. */
  private snapshot: OrderedSessions | null = null;
  private begun = 0;
  private frame = 0;
  private quiet: ReturnType<typeof setTimeout> | undefined;

  constructor(private publish: (state: LiveSessions) => void) {}

  setConnection(connected: boolean, error: ApiError | null): void {
    this.connected = connected;
    this.error = error;
    this.schedule();
  }

  take(update: Update): void {
    if ("reset" in update) {
      this.snapshot = new OrderedSessions();
      this.begun = performance.now();
      this.waitForQuiet();
      return;
    }
    const into = this.snapshot ?? this.shown;
    if (isLive(update.session)) into.put(update.session);
    else into.remove(update.session.id);
    if (!this.snapshot) this.schedule();
    else if (performance.now() - this.begun > MAX_SNAPSHOT_MS) this.complete();
    else this.waitForQuiet();
  }

  stop(): void {
    clearTimeout(this.quiet);
    cancelAnimationFrame(this.frame);
  }

  private waitForQuiet(): void {
    clearTimeout(this.quiet);
    this.quiet = setTimeout(() => this.complete(), QUIET_MS);
  }

  private complete(): void {
    clearTimeout(this.quiet);
    if (this.snapshot) this.shown = this.snapshot;
    this.snapshot = null;
    this.loaded = true;
    this.schedule();
  }

  private schedule(): void {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      const { loaded, connected, error } = this;
      this.publish({ loaded, connected, error, sessions: this.shown.sessions.slice() });
    });
  }
}

/** For pages that only need the newest state. */
export const NOTHING_YET: LiveSessions = { loaded: false, connected: false, error: null, sessions: [] };
export const liveSessions = new Store<LiveSessions>(NOTHING_YET);

let users = 0;
let stopWatch: (() => void) | undefined;

/** Shares one stream between all users; returns what ends one use, and with the last one the stream. */
export function shareLiveStream(): () => void {
  users += 1;
  if (users === 1) stopWatch = watchSessions((state) => liveSessions.set(state));
  return () => {
    users -= 1;
    if (users > 0) return;
    stopWatch?.();
    liveSessions.set(NOTHING_YET);
  };
}
