// The page of one session.
import { useState } from "preact/hooks";
import type { Session } from "../api/types.ts";
import { bytes, count, engineName, full, person, relative, shortSpan, span } from "../format.ts";
import { isLive } from "../state/live_sessions.ts";
import { Banner, Button, Card, Copy, Facts, Failure, Link, Loading, PageHeading } from "../ui/basics.tsx";
import { StatusBadge } from "../ui/status.tsx";
import { LabelChips } from "../sessions/session_table.tsx";
import { startSeconds } from "../sessions/start_times.ts";
import { endAdvice, endSentence, statusReason } from "../words.ts";
import { Charts } from "./charts.tsx";
import { Connect } from "./connect.tsx";
import { Countdowns } from "./countdowns.tsx";
import { CloseDialog, EditDialog, ExtendDialog, KeepAliveDialog } from "./dialogs.tsx";
import { Events } from "./events.tsx";
import { Operations } from "./operations.tsx";
import { StartProgress } from "./start_progress.tsx";
import { TokenDialog } from "./token_dialog.tsx";
import { Tokens } from "./tokens.tsx";
import { type SessionAccess, useSession } from "./use_session.ts";
import { warm } from "./warm.ts";

export type Open = "token" | "close" | "extend" | "keep" | "edit" | null;

export function SessionPage(props: { id: string }) {
  const access = useSession(props.id);
  const [open, setOpen] = useState<Open>(null);
  const [tokens, setTokens] = useState(0);
  const { session } = access;
  if (!session) {
    return (
      <>
        <PageHeading title="Session" above={<Link class="up" to="sessions">Sessions</Link>} />
        {access.error ? <Failure error={access.error} what="this session" retry={access.reload} back={{ to: "sessions", text: "Back to Sessions" }} /> : <Loading what="the session" />}
      </>
    );
  }
  return (
    <>
      <Head access={access} session={session} onOpen={setOpen} />
      {isLive(session) ? null : <Ended session={session} access={access} />}
      {isLive(session) && !access.connected ? (
        <Banner kind="warning" live>
          The connection to Berth is interrupted; this page may be out of date. It is tried again by itself.
        </Banner>
      ) : null}
      <StartProgress session={session} events={access.events} />
      {isLive(session) ? <Countdowns session={session} onOpen={setOpen} /> : null}
      <div class="session-columns">
        <div>
          {isLive(session) ? <Connect session={session} onToken={() => setOpen("token")} /> : null}
          {isLive(session) ? <Operations access={access} session={session} /> : null}
          <Charts session={session} samples={access.samples} />
          <Events session={session.id} events={access.events} />
        </div>
        <div>
          <Details session={session} onEdit={() => setOpen("edit")} />
          <Tokens session={session} round={tokens} onToken={() => setOpen("token")} />
        </div>
      </div>
      <Dialogs open={open} session={session} access={access} onClose={() => setOpen(null)} onToken={() => setTokens((n) => n + 1)} />
    </>
  );
}

function Dialogs(props: { open: Open; session: Session; access: SessionAccess; onClose: () => void; onToken: () => void }) {
  const { open, session, access, onClose } = props;
  switch (open) {
    case "token":
      return <TokenDialog session={session} onClose={onClose} onIssued={props.onToken} />;
    case "close":
      return <CloseDialog session={session} onClose={onClose} onChanged={access.put} />;
    case "extend":
      return <ExtendDialog session={session} onClose={onClose} onChanged={access.put} />;
    case "keep":
      return <KeepAliveDialog session={session} onClose={onClose} onChanged={access.put} />;
    case "edit":
      return <EditDialog session={session} etag={access.etag} onClose={onClose} onChanged={access.put} />;
    default:
      return null;
  }
}

function Head(props: { access: SessionAccess; session: Session; onOpen: (open: Open) => void }) {
  const { session, onOpen } = props;
  const live = isLive(session);
  const waking = session.status === "idle" && session.phase === "released";
  return (
    <PageHeading
      title={session.name || session.id}
      above={<Link class="up" to="sessions">Sessions</Link>}
      below={
        <div class="session-line">
          <span aria-live="polite">
            <StatusBadge status={session.status} />
          </span>
          {live ? <span class="muted">{statusReason(session)}</span> : null}
          <span class="id">
            <code>{session.id}</code>
            <Copy text={session.id} what="session id" />
          </span>
        </div>
      }
    >
      {live ? (
        <>
          {waking ? (
            <Button icon="sun" onClick={() => warm(session, props.access.put)}>
              Wake up
            </Button>
          ) : null}
          <Button kind="danger" onClick={() => onOpen("close")}>
            Close session
          </Button>
          <Button kind="primary" icon="key" onClick={() => onOpen("token")}>
            Generate token
          </Button>
        </>
      ) : (
        <Link class="button primary" to={`sessions/new?cluster=${encodeURIComponent(session.cluster)}`}>
          Create session
        </Link>
      )}
    </PageHeading>
  );
}

/** Why it ended, in one sentence, and what to do. */
function Ended(props: { session: Session; access: SessionAccess }) {
  const { session } = props;
  const last = props.access.events.findLast((event) => event.to === "closed" || event.to === "failed");
  const named = last && last.reason === session.reason && ["CLOSE_REQUESTED", "ORG_DISABLED", "OWNER_DISABLED"].includes(last.reason);
  const failed = session.status === "failed";
  return (
    <Banner kind={failed ? "error" : "info"} title={failed ? "This session failed" : "This session is closed"}>
      <p>
        {endSentence(session, named ? last.actor : "")}
        {session.closed_at ? ` It ended ${relative(session.closed_at)}, ${full(session.closed_at)}.` : ""}
      </p>
      {failed && session.status_message ? <p class="message">{session.status_message}</p> : null}
      {session.status_detail ? (
        <details>
          <summary>Details for the owner</summary>
          <pre class="detail" tabIndex={0}>{session.status_detail}</pre>
        </details>
      ) : null}
      <p>{endAdvice(session)}</p>
    </Banner>
  );
}

function Details(props: { session: Session; onEdit: () => void }) {
  const { session } = props;
  const start = startSeconds(session);
  const usage = session.usage;
  const items: [string, preact.ComponentChildren][] = [
    ["Owner", <span title={session.owner}>{person(session.owner)}</span>],
    ["Organization", session.org],
    ["Cluster", <Link to={`clusters/${encodeURIComponent(session.cluster)}`}>{session.cluster}</Link>],
    ["Engine", engineName(session.engine, session.engine_version)],
    ["Catalog", session.catalog ? <Link to={`catalogs/${encodeURIComponent(session.catalog)}`}>{session.catalog}</Link> : "none"],
    ["Created", <span title={full(session.created_at)}>{full(session.created_at)}</span>],
  ];
  if (session.team) items.splice(2, 0, ["Team", session.team]);
  if (session.profile) items.push(["Size", session.profile]);
  if (start !== null) items.push(["Start took", shortSpan(start)]);
  if (session.last_activity_at) items.push(["Last used", relative(session.last_activity_at)]);
  if (session.generation > 1) items.push(["Compute", `number ${session.generation}; temporary views and settings of earlier ones may be lost`]);
  if (usage) {
    items.push(["Calls", count(usage.rpcs)]);
    items.push(["Received, sent", `${bytes(usage.bytes_in)}, ${bytes(usage.bytes_out)}`]);
    items.push(["Compute time", span(usage.warm_seconds)]);
  }
  return (
    <Card
      title="Details"
      actions={
        isLive(session) ? (
          <Button small icon="edit" label="Edit name and labels" onClick={props.onEdit}>
            Edit
          </Button>
        ) : null
      }
    >
      <Facts items={items} />
      <LabelChips labels={session.labels} all />
    </Card>
  );
}
