// A table of sessions in pages; a row renders again only when its session or the
// minute changes, so that an update of one session among 10 000 stays cheap.
import { useEffect, useMemo, useState } from "preact/hooks";
import type { Session } from "../api/types.ts";
import { coarse, count, full, millis, person, relative } from "../format.ts";
import { useNow } from "../state/clock.ts";
import { isLive } from "../state/live_sessions.ts";
import { announce } from "../state/notices.ts";
import { Button, Link, Table } from "../ui/basics.tsx";
import { StatusBadge } from "../ui/status.tsx";
import { statusReason } from "../words.ts";

const PAGE_SIZE = 50;
const TICK_MS = 15_000;

interface TableProps {
  sessions: readonly Session[];
  onClose: (session: Session) => void;
  label: string;
}

export function SessionTable(props: TableProps) {
  const [page, setPage] = useState(0);
  const now = useNow(TICK_MS);
  // Rows change with the tick and not with every render.
  const minute = Math.floor(now / TICK_MS) * TICK_MS;
  const pages = Math.max(1, Math.ceil(props.sessions.length / PAGE_SIZE));
  useEffect(() => {
    if (page >= pages) setPage(pages - 1);
  }, [page, pages]);
  const first = Math.min(page, pages - 1) * PAGE_SIZE;
  const rows = props.sessions.slice(first, first + PAGE_SIZE);
  return (
    <>
      <Table
        label={props.label}
        class="sessions"
        head={
          <>
            <th scope="col" role="columnheader">Session</th>
            <th scope="col" role="columnheader">Status</th>
            <th scope="col" role="columnheader">Cluster</th>
            <th scope="col" role="columnheader">Owner</th>
            <th scope="col" role="columnheader">Next</th>
            <th scope="col" role="columnheader">Created</th>
            <th scope="col" role="columnheader">
              <span class="offscreen">Actions</span>
            </th>
          </>
        }
      >
        {rows.map((session) => (
          <Row key={session.id} session={session} now={minute} onClose={props.onClose} />
        ))}
      </Table>
      <Pager
        first={first}
        shown={rows.length}
        total={props.sessions.length}
        onPage={(step) => {
          const next = Math.min(pages - 1, Math.max(0, page + step));
          setPage(next);
          announce(`Page ${next + 1} of ${pages}`);
        }}
      />
    </>
  );
}

function Row(props: { session: Session; now: number; onClose: (session: Session) => void }) {
  const { session, now, onClose } = props;
  // The same element makes Preact skip the row.
  return useMemo(
    () => (
      <tr role="row">
        <td role="cell" data-label="Session">
          <Link to={`sessions/${session.id}`} class="row-name">
            {session.name || session.id}
          </Link>
          <div class="muted mono small">{session.name ? session.id : ""}</div>
          <LabelChips labels={session.labels} />
        </td>
        <td role="cell" data-label="Status">
          <StatusBadge status={session.status} />
          <div class="muted small reason">{statusReason(session)}</div>
        </td>
        <td role="cell" data-label="Cluster">
          {session.cluster}
          <div class="muted small">{[session.profile, session.catalog].filter(Boolean).join(" · ")}</div>
        </td>
        <td role="cell" data-label="Owner" title={session.owner}>
          {person(session.owner)}
          <div class="muted small">{session.team}</div>
        </td>
        <td role="cell" data-label="Next">{nextDeadline(session, now)}</td>
        <td role="cell" data-label="Created" title={full(session.created_at)}>
          {relative(session.created_at, now)}
        </td>
        <td role="cell" class="row-actions">
          {isLive(session) ? (
            <Button small label={`Close session ${session.name || session.id}`} onClick={() => onClose(session)}>
              Close
            </Button>
          ) : null}
        </td>
      </tr>
    ),
    [session, now, onClose],
  );
}

const MAX_CHIPS = 3;

export function LabelChips(props: { labels: Record<string, string>; all?: boolean }) {
  const labels = Object.entries(props.labels).sort(([a], [b]) => a.localeCompare(b));
  if (labels.length === 0) return null;
  const shown = props.all ? labels : labels.slice(0, MAX_CHIPS);
  return (
    <ul class="chips" aria-label="Labels">
      {shown.map(([name, value]) => (
        <li key={name}>
          {name}
          {value ? <span class="muted">={value}</span> : null}
        </li>
      ))}
      {labels.length > shown.length ? <li>+{labels.length - shown.length}</li> : null}
    </ul>
  );
}

/** The next thing that happens by itself. */
function nextDeadline(session: Session, now: number): string {
  if (!isLive(session)) return session.closed_at ? `ended ${relative(session.closed_at, now)}` : "";
  if (session.status === "pending") return "starting";
  const kept = millis(session.keep_alive_until);
  if (kept !== null && kept > now) return `kept for ${coarse((kept - now) / 1000)}`;
  const end = millis(session.expires_at);
  const next = millis(session.status === "idle" ? session.closes_at : session.idle_at);
  if (next === null || (end !== null && end < next)) {
    if (end === null) return "";
    return `${session.active_operations > 0 ? "in use; " : ""}ends in ${coarse(Math.max(0, end - now) / 1000)}`;
  }
  return `${session.status === "idle" ? "closes" : "idle"} in ${coarse(Math.max(0, next - now) / 1000)}`;
}

function Pager(props: { first: number; shown: number; total: number; onPage: (step: number) => void }) {
  const { first, shown, total, onPage } = props;
  return (
    <div class="pager">
      <span class="muted">
        {count(first + 1)} to {count(first + shown)} of {count(total)}
      </span>
      {total > PAGE_SIZE ? (
        <span class="actions">
          <Button small icon="left" disabled={first === 0} onClick={() => onPage(-1)}>
            Newer
          </Button>
          <Button small icon="right" disabled={first + shown >= total} onClick={() => onPage(1)}>
            Older
          </Button>
        </span>
      ) : null}
    </div>
  );
}
