// The list of sessions: live ones from the watch stream, ended ones by pages.
import { useEffect, useMemo, useState } from "preact/hooks";
import { api } from "../api/client.ts";
import type { Session } from "../api/types.ts";
import { count, plural, shortSpan } from "../format.ts";
import { myId } from "../state/auth.ts";
import { liveSessions, shareLiveStream } from "../state/live_sessions.ts";
import { notify } from "../state/notices.ts";
import { place, setQuery } from "../state/router.ts";
import { useStore } from "../state/store.ts";
import { Banner, Button, Empty, Failure, Link, Loading, PageHeading } from "../ui/basics.tsx";
import { Confirm } from "../ui/dialog.tsx";
import { Icon } from "../ui/icon.tsx";
import { type Filter, isFiltered, matches, readFilter } from "./filter.ts";
import { Filters } from "./filters.tsx";
import { SessionTable } from "./session_table.tsx";
import { startTimes } from "./start_times.ts";
import { useEnded } from "./use_ended.ts";

export function SessionsPage() {
  const filter = readFilter(useStore(place).query);
  useEffect(() => shareLiveStream(), []);
  const live = useStore(liveSessions);
  const [closing, setClosing] = useState<Session | null>(null);
  return (
    <>
      <PageHeading title="Sessions">
        <Link class="button primary" to="sessions/new">
          <Icon name="plus" />
          <span>Create session</span>
        </Link>
      </PageHeading>
      {live.loaded ? <Figures sessions={live.sessions} /> : null}
      <Filters filter={filter} sessions={live.sessions} />
      {filter.status === "ended" ? (
        <Ended filter={filter} onClose={setClosing} />
      ) : live.error ? (
        <Failure error={live.error} what="the sessions" />
      ) : !live.loaded ? (
        <Loading what="sessions" />
      ) : (
        <>
          {live.connected ? null : (
            <Banner kind="warning" live>
              The connection to Berth is interrupted; the list may be out of date. It is tried again by itself.
            </Banner>
          )}
          <Live filter={filter} sessions={live.sessions} onClose={setClosing} />
        </>
      )}
      {closing ? <CloseDialog session={closing} onDone={() => setClosing(null)} /> : null}
    </>
  );
}

/** How many there are, and how long starts take. */
function Figures(props: { sessions: readonly Session[] }) {
  const figures = useMemo(() => {
    const counts = { pending: 0, active: 0, idle: 0 };
    for (const session of props.sessions) {
      if (session.status in counts) counts[session.status as keyof typeof counts] += 1;
    }
    return { counts, starts: startTimes(props.sessions) };
  }, [props.sessions]);
  const { counts, starts } = figures;
  if (props.sessions.length === 0) return null;
  return (
    <ul class="figures" aria-label="Overview">
      <Figure value={count(counts.active)} name="active" />
      <Figure value={count(counts.pending)} name="starting" />
      <Figure value={count(counts.idle)} name="idle" />
      {starts.slice(0, 3).map((start) => (
        <Figure key={start.cluster} value={shortSpan(start.average)} name={`average start on ${start.cluster}`} hint={`of ${plural(start.starts, "session")}`} />
      ))}
    </ul>
  );
}

function Figure(props: { value: string; name: string; hint?: string }) {
  return (
    <li>
      <span class="figure-value">{props.value}</span> <span class="figure-name">{props.name}</span>
      {props.hint ? <span class="muted"> {props.hint}</span> : null}
    </li>
  );
}

function Live(props: { filter: Filter; sessions: readonly Session[]; onClose: (session: Session) => void }) {
  const me = myId();
  const { status, cluster, owner, text } = props.filter;
  const shown = useMemo(
    () => props.sessions.filter((session) => matches(session, props.filter, me)),
    [props.sessions, status, cluster, owner, text, me],
  );
  if (shown.length > 0) return <SessionTable key={status + cluster + owner + text} sessions={shown} onClose={props.onClose} label="Live sessions" />;
  if (isFiltered(props.filter)) return <NoMatch />;
  return (
    <Empty
      icon="sessions"
      title="No live sessions"
      action={
        <Link class="button primary" to="sessions/new">
          <Icon name="plus" />
          <span>Create session</span>
        </Link>
      }
    >
      A session is your own Spark Connect server behind one address. Create one, generate a token for it, and paste the connection string into your client.
    </Empty>
  );
}

function NoMatch() {
  return (
    <Empty icon="search" title="No session matches" action={<Button onClick={() => setQuery({ status: "", cluster: "", owner: "", q: "" })}>Clear filters</Button>}>
      Change the filters, or look under Ended for sessions that were closed.
    </Empty>
  );
}

function Ended(props: { filter: Filter; onClose: (session: Session) => void }) {
  const ended = useEnded(props.filter.cluster, props.filter.owner === "me" ? myId() : "");
  const shown = ended.sessions.filter((session) => matches(session, props.filter, myId()));
  if (ended.error) return <Failure error={ended.error} what="the ended sessions" retry={ended.reload} />;
  if (ended.loading && ended.sessions.length === 0) return <Loading what="ended sessions" />;
  const more = ended.more ? (
    <div class="more">
      <Button busy={ended.loading} onClick={ended.loadMore}>
        Load older sessions
      </Button>
    </div>
  ) : null;
  if (shown.length === 0) {
    return (
      <>
        {isFiltered(props.filter) ? <NoMatch /> : <Empty icon="sessions" title="No ended sessions">Sessions that were closed or failed appear here until their retention time is over.</Empty>}
        {more}
      </>
    );
  }
  return (
    <>
      <SessionTable sessions={shown} onClose={props.onClose} label="Ended sessions" />
      {more}
    </>
  );
}

function CloseDialog(props: { session: Session; onDone: () => void }) {
  const { session } = props;
  const name = session.name || session.id;
  return (
    <Confirm
      title="Close session"
      action="Close session"
      danger
      onClose={props.onDone}
      onConfirm={async () => {
        await api.post(`sessions/${session.id}:close`);
        notify("done", `Session ${name} is closed.`);
      }}
    >
      <p>
        Close <strong>{name}</strong>? Its compute is released, running queries end, and its tokens stop working. A closed session cannot be opened again.
      </p>
      {session.active_operations > 0 ? <Banner kind="warning">{plural(session.active_operations, "call")} in flight will be ended.</Banner> : null}
    </Confirm>
  );
}

