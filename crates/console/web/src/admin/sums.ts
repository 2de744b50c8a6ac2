// Sums of rows of usage.
import type { UsageRow } from "../api/types.ts";

export interface Sum {
  name: string;
  sessions: number;
  live: number;
  calls: number;
  received: number;
  sent: number;
  computeSeconds: number;
}

/** The sums of rows with the same `key`, most compute time first. */
export function sums(rows: readonly UsageRow[], key: (row: UsageRow) => string): Sum[] {
  const byKey = new Map<string, Sum>();
  for (const row of rows) {
    const name = key(row);
    const sum = byKey.get(name) ?? { name, sessions: 0, live: 0, calls: 0, received: 0, sent: 0, computeSeconds: 0 };
    sum.sessions += row.sessions;
    sum.live += row.live_sessions;
    sum.calls += row.usage?.rpcs ?? 0;
    sum.received += row.usage?.bytes_in ?? 0;
    sum.sent += row.usage?.bytes_out ?? 0;
    sum.computeSeconds += row.usage?.warm_seconds ?? 0;
    byKey.set(name, sum);
  }
  return [...byKey.values()].sort((a, b) => b.computeSeconds - a.computeSeconds || a.name.localeCompare(b.name));
}
