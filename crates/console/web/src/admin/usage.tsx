// Usage per owner and cluster, summed by Berth from the sessions that it still keeps.
import { useMemo, useState } from "preact/hooks";
import { api } from "../api/client.ts";
import type { UsageRow } from "../api/types.ts";
import { bytes, count, person, plural, span } from "../format.ts";
import { isOrgAdmin, isPlatformAdmin, principal } from "../state/auth.ts";
import { useLoad } from "../state/load.ts";
import { place, setQuery } from "../state/router.ts";
import { useStore } from "../state/store.ts";
import { Banner, Button, Card, Empty, Failure, Loading, PageHeading, Table } from "../ui/basics.tsx";
import { TextField } from "../ui/form.tsx";
import { type Sum, sums } from "./sums.ts";

/** Each page has the sums of up to 5000 sessions. */
const MAX_PAGES = 40;

interface All {
  rows: UsageRow[];
  complete: boolean;
}

async function load(org: string, signal: AbortSignal): Promise<All> {
  const rows: UsageRow[] = [];
  let token = "";
  for (let page = 0; page < MAX_PAGES; page += 1) {
    const reply = await api.get<{ rows: UsageRow[]; next_page_token: string }>("usage", { signal, query: { org, page_token: token } });
    rows.push(...reply.rows);
    token = reply.next_page_token;
    if (token === "") return { rows, complete: true };
  }
  return { rows, complete: false };
}

export function UsagePage() {
  const org = useStore(place).query.get("org") ?? "";
  const [loaded, reload] = useLoad(`usage ${org}`, (signal) => load(org, signal));
  return (
    <>
      <PageHeading title="Usage">
        <Button icon="refresh" onClick={reload}>
          Refresh
        </Button>
      </PageHeading>
      {isPlatformAdmin() ? <OrgChoice key={org} org={org} /> : null}
      {loaded.state === "loading" ? <Loading what="usage" /> : null}
      {loaded.state === "error" ? <Failure error={loaded.error} what="the usage" retry={reload} /> : null}
      {loaded.state === "ready" && loaded.data.rows.length === 0 ? (
        <Empty icon="usage" title="No usage yet">
          Calls, data and compute time appear here as soon as a session was used.
        </Empty>
      ) : null}
      {loaded.state === "ready" && loaded.data.rows.length > 0 ? <Sums {...loaded.data} /> : null}
    </>
  );
}

function OrgChoice(props: { org: string }) {
  const [org, setOrg] = useState(props.org);
  const apply = (event: Event) => {
    event.preventDefault();
    setQuery({ org: org.trim() });
  };
  return (
    <form class="inline-form" onSubmit={apply}>
      <TextField label="Organization" name="org" value={org} placeholder={principal().organization ?? ""} onValue={setOrg} />
      <Button type="submit">Show</Button>
    </form>
  );
}

function Sums(props: All) {
  const { rows } = props;
  const owners = useMemo(() => sums(rows, (row) => row.owner), [rows]);
  const clusters = useMemo(() => sums(rows, (row) => row.cluster), [rows]);
  const sessions = owners.reduce((sum, owner) => sum + owner.sessions, 0);
  return (
    <>
      <p class="muted">
        Of {plural(sessions, "session")} {isOrgAdmin() ? "of the organization" : "that you can read"} and that Berth still keeps. Ended sessions are deleted after 7 days at most, so this is not a bill.
      </p>
      {props.complete ? null : <Banner kind="warning">There are more sessions; only {count(sessions)} are counted.</Banner>}
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
      <Table label={props.title} head={[props.first, "Sessions", "Live", "Compute time", "Calls", "Received", "Sent"].map((name, i) => <th scope="col" class={i > 0 ? "number" : undefined}>{name}</th>)}>
        {rows.map((row) => (
          <tr key={row.name}>
            <td title={row.name}>{props.name(row.name)}</td>
            {[count(row.sessions), count(row.live), span(row.computeSeconds), count(row.calls), bytes(row.received), bytes(row.sent)].map((value) => (
              <td class="number">{value}</td>
            ))}
          </tr>
        ))}
      </Table>
      {props.rows.length > SHOWN && !all ? <Button small onClick={() => setAll(true)}>Show all {count(props.rows.length)}</Button> : null}
    </Card>
  );
}
