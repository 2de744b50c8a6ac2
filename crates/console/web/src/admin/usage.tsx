// Usage per owner and cluster, summed from the sessions that Berth still keeps.
import { useMemo, useState } from "preact/hooks";
import type { Session } from "../api/types.ts";
import { bytes, count, full, person, plural, span } from "../format.ts";
import { isLive } from "../state/live_sessions.ts";
import { useLoad } from "../state/load.ts";
import { Banner, Button, Card, Empty, Failure, Loading, PageHeading, Table } from "../ui/basics.tsx";
import { allSessions } from "./all_sessions.ts";

interface Sum {
  name: string;
  sessions: number;
  live: number;
  failed: number;
  calls: number;
  received: number;
  sent: number;
  computeSeconds: number;
}

/** The sums of sessions with the same `key`, most compute time first. */
export function sums(sessions: readonly Session[], key: (session: Session) => string): Sum[] {
  const byKey = new Map<string, Sum>();
  for (const session of sessions) {
    const name = key(session);
    const sum = byKey.get(name) ?? { name, sessions: 0, live: 0, failed: 0, calls: 0, received: 0, sent: 0, computeSeconds: 0 };
    sum.sessions += 1;
    if (isLive(session)) sum.live += 1;
    if (session.status === "failed") sum.failed += 1;
    sum.calls += session.usage?.rpcs ?? 0;
    sum.received += session.usage?.bytes_in ?? 0;
    sum.sent += session.usage?.bytes_out ?? 0;
    sum.computeSeconds += session.usage?.warm_seconds ?? 0;
    byKey.set(name, sum);
  }
  return [...byKey.values()].sort((a, b) => b.computeSeconds - a.computeSeconds || a.name.localeCompare(b.name));
}

export function UsagePage() {
  const [loaded, reload] = useLoad("usage", (signal) => allSessions(signal));
  return (
    <>
      <PageHeading title="Usage">
        <Button icon="refresh" onClick={reload}>
          Refresh
        </Button>
      </PageHeading>
      {loaded.state === "loading" ? <Loading what="usage" /> : null}
      {loaded.state === "error" ? <Failure error={loaded.error} what="the usage" retry={reload} /> : null}
      {loaded.state === "ready" && loaded.data.sessions.length === 0 ? (
        <Empty icon="usage" title="No usage yet">
          Calls, data and compute time appear here as soon as a session was used.
        </Empty>
      ) : null}
      {loaded.state === "ready" && loaded.data.sessions.length > 0 ? <Sums {...loaded.data} /> : null}
    </>
  );
}

function Sums(props: { sessions: Session[]; complete: boolean }) {
  const { sessions } = props;
  const owners = useMemo(() => sums(sessions, (session) => session.owner), [sessions]);
  const clusters = useMemo(() => sums(sessions, (session) => session.cluster), [sessions]);
  const oldest = sessions.reduce((min, session) => (session.created_at && session.created_at < min ? session.created_at : min), sessions[0]?.created_at ?? "");
  return (
    <>
      <p class="muted">
        Of {plural(sessions.length, "session")} that you can read and that Berth still keeps; the oldest is from {full(oldest)}. Ended sessions are deleted after their retention time, so this is not a bill.
      </p>
      {props.complete ? null : <Banner kind="warning">There are more sessions; only the newest {count(sessions.length)} are counted.</Banner>}
      <SumTable title="By owner" first="Owner" rows={owners} name={person} />
      <SumTable title="By cluster" first="Cluster" rows={clusters} name={(name) => name} />
    </>
  );
}

const SHOWN = 50;

function SumTable(props: { title: string; first: string; rows: Sum[]; name: (name: string) => string }) {
  const [all, setAll] = useState(false);
  const rows = all ? props.rows : props.rows.slice(0, SHOWN);
  return (
    <Card title={props.title}>
      <Table label={props.title} head={[props.first, "Sessions", "Live", "Failed", "Compute time", "Calls", "Received", "Sent"].map((name, i) => <th scope="col" class={i > 0 ? "number" : undefined}>{name}</th>)}>
        {rows.map((row) => (
          <tr key={row.name}>
            <td title={row.name}>{props.name(row.name)}</td>
            {[count(row.sessions), count(row.live), count(row.failed), span(row.computeSeconds), count(row.calls), bytes(row.received), bytes(row.sent)].map((value) => (
              <td class="number">{value}</td>
            ))}
          </tr>
        ))}
      </Table>
      {props.rows.length > SHOWN && !all ? <Button small onClick={() => setAll(true)}>Show all {count(props.rows.length)}</Button> : null}
    </Card>
  );
}
