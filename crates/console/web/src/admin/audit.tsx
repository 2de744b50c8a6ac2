// Who changed which session: the events of the newest sessions, for admins.
import { useState } from "preact/hooks";
import { api } from "../api/client.ts";
import type { Session, SessionEvent } from "../api/types.ts";
import { count, full, person } from "../format.ts";
import { useLoad } from "../state/load.ts";
import { Button, Card, Empty, Failure, Link, Loading, PageHeading, Table } from "../ui/basics.tsx";
import { TextField } from "../ui/form.tsx";
import { reasonName } from "../words.ts";
import { allSessions } from "./all_sessions.ts";

/** The events of so many sessions are read, a few at a time. */
const SESSIONS = 50;
const AT_ONCE = 4;
const SHOWN = 200;

interface Entry {
  session: Session;
  event: SessionEvent;
}

async function load(signal: AbortSignal): Promise<Entry[]> {
  const { sessions } = await allSessions(signal, 1, SESSIONS);
  const entries: Entry[] = [];
  const waiting = [...sessions];
  const worker = async () => {
    for (let session = waiting.shift(); session; session = waiting.shift()) {
      const { events } = await api.get<{ events: SessionEvent[] }>(`sessions/${session.id}/events`, { signal });
      for (const event of events) entries.push({ session, event });
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  return entries.sort((a, b) => (b.event.at ?? "").localeCompare(a.event.at ?? ""));
}

export function AuditPage() {
  const [loaded, reload] = useLoad("audit", load);
  const [text, setText] = useState("");
  const wanted = text.trim().toLowerCase();
  const entries = loaded.state === "ready" ? loaded.data.filter((entry) => matches(entry, wanted)) : [];
  return (
    <>
      <PageHeading title="Audit">
        <Button icon="refresh" onClick={reload}>
          Refresh
        </Button>
      </PageHeading>
      <p class="muted">
        Changes of the {SESSIONS} newest sessions, with who or what caused them. The complete audit trail, with tokens, definitions and denied calls, is in the log of session-manager (target <code>audit</code>).
      </p>
      {loaded.state === "loading" ? <Loading what="changes" /> : null}
      {loaded.state === "error" ? <Failure error={loaded.error} what="the changes" retry={reload} /> : null}
      {loaded.state === "ready" ? (
        <Card title="Changes">
          <TextField label="Filter" name="filter" placeholder="Actor, session, reason" value={text} onValue={setText} />
          {entries.length === 0 ? (
            <Empty icon="audit" title={wanted === "" ? "No changes yet" : "No change matches"}>
              {wanted === "" ? "Every create and change of a session appears here." : "Change the filter."}
            </Empty>
          ) : (
            <Entries entries={entries.slice(0, SHOWN)} />
          )}
          {entries.length > SHOWN ? <p class="muted">The newest {SHOWN} of {count(entries.length)}; use the filter to find others.</p> : null}
        </Card>
      ) : null}
    </>
  );
}

function matches(entry: Entry, text: string): boolean {
  if (text === "") return true;
  const { session, event } = entry;
  return [event.actor, event.reason, reasonName(event.reason), session.id, session.name, session.owner].some((value) => value.toLowerCase().includes(text));
}

function Entries(props: { entries: Entry[] }) {
  return (
    <Table label="Changes" head={["Time", "By", "Change", "Session"].map((name) => <th scope="col">{name}</th>)}>
      {props.entries.map(({ session, event }) => (
        <tr key={`${session.id} ${event.version} ${event.at} ${event.reason}`}>
          <td class="nowrap">{full(event.at)}</td>
          <td title={event.actor}>{person(event.actor)}</td>
          <td>{reasonName(event.reason)}</td>
          <td>
            <Link to={`sessions/${session.id}`}>{session.name || session.id}</Link>
            <div class="muted small">of {person(session.owner)}</div>
          </td>
        </tr>
      ))}
    </Table>
  );
}
