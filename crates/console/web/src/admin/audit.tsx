// The audit trail: who did what, for admins of the organization and of the platform.
import { useEffect, useRef, useState } from "preact/hooks";
import { api } from "../api/client.ts";
import type { AuditRecord } from "../api/types.ts";
import { full, person } from "../format.ts";
import { isPlatformAdmin } from "../state/auth.ts";
import { errorText, notify } from "../state/notices.ts";
import { place, setQuery } from "../state/router.ts";
import { useStore } from "../state/store.ts";
import { Button, Card, Empty, Failure, Link, Loading, PageHeading, Table } from "../ui/basics.tsx";
import { SelectField, TextField } from "../ui/form.tsx";
import { ACTIONS, actionName, reasonName } from "../words.ts";

const PAGE = "100";
/** Maximum number of pages that one click reads: a page can be empty and have a next one. */
const MAX_PAGES_PER_CLICK = 20;
const HOUR_MS = 3_600_000;

const SINCE: [value: string, text: string, ms: number][] = [
  ["", "Everything that is kept", 0],
  ["1h", "The last hour", HOUR_MS],
  ["1d", "The last 24 hours", 24 * HOUR_MS],
  ["7d", "The last 7 days", 168 * HOUR_MS],
];

interface Filters {
  principal: string;
  action: string;
  since: string;
  session: string;
  org: string;
}
const FIELDS: (keyof Filters)[] = ["principal", "action", "since", "session", "org"];

function filtersIn(query: URLSearchParams): Filters {
  return Object.fromEntries(FIELDS.map((field) => [field, query.get(field) ?? ""])) as unknown as Filters;
}

interface Shown {
  records: AuditRecord[];
  next: string;
}

/** Reads pages until one has records. */
async function read(filters: Filters, token: string, signal: AbortSignal): Promise<Shown> {
  const span = SINCE.find(([value]) => value === filters.since)?.[2] ?? 0;
  const since = span === 0 ? "" : new Date(Date.now() - span).toISOString();
  let next = token;
  for (let i = 0; i < MAX_PAGES_PER_CLICK; i += 1) {
    const query = { org: filters.org, principal: filters.principal, actions: filters.action, session_id: filters.session, since, page_size: PAGE, page_token: next };
    const page = await api.get<{ records: AuditRecord[]; next_page_token: string }>("audit", { signal, query });
    next = page.next_page_token;
    if (page.records.length > 0 || next === "") return { records: page.records, next };
  }
  return { records: [], next };
}

/** The records of the filters, and how to read older ones. */
function useRecords(filters: Filters, round: number) {
  const [shown, setShown] = useState<Shown | null>(null);
  const [error, setError] = useState<unknown>(null);
  const [more, setMore] = useState(false);
  const abort = useRef(new AbortController());
  const key = JSON.stringify(filters);
  useEffect(() => {
    const mine = new AbortController();
    abort.current = mine;
    setShown(null);
    setError(null);
    setMore(false);
    read(filters, "", mine.signal).then(
      (first) => mine.signal.aborted || setShown(first),
      (cause) => mine.signal.aborted || setError(cause),
    );
    return () => mine.abort();
  }, [key, round]);
  const older = async () => {
    const mine = abort.current;
    if (!shown || more) return;
    setMore(true);
    try {
      const page = await read(filters, shown.next, mine.signal);
      if (!mine.signal.aborted) setShown({ records: [...shown.records, ...page.records], next: page.next });
    } catch (cause) {
      if (!mine.signal.aborted) notify("error", errorText(cause));
    } finally {
      if (!mine.signal.aborted) setMore(false);
    }
  };
  return { shown, error, more, older };
}

export function AuditPage() {
  const filters = filtersIn(useStore(place).query);
  const [round, setRound] = useState(0);
  const { shown, error, more, older } = useRecords(filters, round);
  const again = () => setRound((n) => n + 1);
  const filtered = FIELDS.some((field) => filters[field] !== "");
  return (
    <>
      <PageHeading title="Audit">
        <Button icon="refresh" onClick={again}>
          Refresh
        </Button>
      </PageHeading>
      <p class="muted">Who did what, newest first. The trail is bounded: Berth removes the oldest records, and its log (target <code>audit</code>) has them all.</p>
      <FilterCard key={JSON.stringify(filters)} filters={filters} />
      {error ? <Failure error={error} what="the audit trail" retry={again} /> : null}
      {!error && !shown ? <Loading what="records" /> : null}
      {shown ? (
        <Card title="Records">
          {shown.records.length > 0 ? <Records records={shown.records} /> : null}
          {shown.records.length === 0 && shown.next === "" ? (
            <Empty icon="audit" title={filtered ? "No record matches" : "No records yet"}>
              {filtered ? "Change the filters." : "Creates, changes, tokens and denied calls appear here."}
            </Empty>
          ) : null}
          {shown.next === "" ? null : (
            <div class="form-actions">
              <Button busy={more} onClick={older}>
                Older records
              </Button>
            </div>
          )}
        </Card>
      ) : null}
    </>
  );
}

function FilterCard(props: { filters: Filters }) {
  const [values, setValues] = useState(props.filters);
  const set = (change: Partial<Filters>) => setValues((old) => ({ ...old, ...change }));
  const apply = (event: Event) => {
    event.preventDefault();
    setQuery(Object.fromEntries(FIELDS.map((field) => [field, values[field].trim()])));
  };
  const clear = () => {
    const none = filtersIn(new URLSearchParams());
    setValues(none);
    setQuery({ ...none });
  };
  return (
    <Card title="Filters">
      <form onSubmit={apply}>
        <div class="columns">
          <TextField label="Who" name="principal" value={values.principal} placeholder="corp|ana@example.org, or system" onValue={(principal) => set({ principal })} />
          <SelectField label="Action" name="action" value={values.action} options={[["", "Every action"], ...Object.entries(ACTIONS)]} onValue={(action) => set({ action })} />
          <SelectField label="Time" name="since" value={values.since} options={SINCE.map(([value, text]): [string, string] => [value, text])} onValue={(since) => set({ since })} />
          <TextField label="Session" name="session" value={values.session} mono placeholder="s-…" onValue={(session) => set({ session })} />
          {isPlatformAdmin() ? <TextField label="Organization" name="org" value={values.org} placeholder="Every organization" onValue={(org) => set({ org })} /> : null}
        </div>
        <div class="form-actions">
          <Button kind="primary" type="submit">
            Apply filters
          </Button>
          <Button onClick={clear}>Clear</Button>
        </div>
      </form>
    </Card>
  );
}

function Records(props: { records: AuditRecord[] }) {
  return (
    <Table label="Records" head={["Time", "Who", "What", "Of what"].map((name) => <th scope="col">{name}</th>)}>
      {props.records.map((record, i) => (
        <tr key={i}>
          <td class="nowrap">{full(record.at)}</td>
          <td title={record.actor}>
            {record.actor === "" ? "Not known" : person(record.actor)}
            {record.address ? <div class="muted small">{record.address}</div> : null}
          </td>
          <td>
            {actionName(record.action)}
            {record.outcome === "denied" ? <strong> (denied)</strong> : null}
            {record.reason ? <div class="muted small">{reasonName(record.reason)}</div> : null}
          </td>
          <td>
            <Target record={record} />
          </td>
        </tr>
      ))}
    </Table>
  );
}

function Target(props: { record: AuditRecord }) {
  const { record } = props;
  return (
    <>
      {record.session_id ? <Link to={`sessions/${record.session_id}`}>{record.session_id}</Link> : <span class="mono">{record.object}</span>}
      {record.token_id ? <div class="muted mono small">{record.token_id}</div> : null}
      {isPlatformAdmin() && record.org ? <div class="muted small">in {record.org}</div> : null}
    </>
  );
}
