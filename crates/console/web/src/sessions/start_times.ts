// Start times of sessions: from the request to the first successful test query.
import type { Session } from "../api/types.ts";
import { millis } from "../format.ts";

export interface StartTime {
  cluster: string;
  /** Sessions that the average is of. */
  starts: number;
  /** Seconds. */
  average: number;
}

/** The newest starts of a cluster that count, so that the average is of today's state. */
const MAX_STARTS = 50;

/** Seconds from the creation to the first compute; none if that is unknown. */
export function startSeconds(session: Session): number | null {
  const [created, active] = [millis(session.created_at), millis(session.active_at)];
  // A later generation's time would count the life before it.
  if (created === null || active === null || session.generation > 1 || active < created) return null;
  return (active - created) / 1000;
}

/** The average start time of each cluster, of sessions in the order newest first. */
export function startTimes(sessions: readonly Session[]): StartTime[] {
  const sums = new Map<string, { starts: number; sum: number }>();
  for (const session of sessions) {
    const sum = sums.get(session.cluster) ?? { starts: 0, sum: 0 };
    // Before the times are parsed: that is the expensive part of long lists.
    if (sum.starts >= MAX_STARTS) continue;
    const time = startSeconds(session);
    if (time === null) continue;
    sums.set(session.cluster, { starts: sum.starts + 1, sum: sum.sum + time });
  }
  return [...sums].map(([cluster, { starts, sum }]) => ({ cluster, starts, average: sum / starts })).sort((a, b) => a.cluster.localeCompare(b.cluster));
}
