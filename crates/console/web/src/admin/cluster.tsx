// One cluster: its definition, and what platform admins do with it.
import { useEffect, useState } from "preact/hooks";
import { api } from "../api/client.ts";
import type { Cluster, WarmPool } from "../api/types.ts";
import { count, engineName, seconds, shortSpan, span } from "../format.ts";
import { isPlatformAdmin } from "../state/auth.ts";
import { liveSessions, shareLiveStream } from "../state/live_sessions.ts";
import { useLoad } from "../state/load.ts";
import { notify } from "../state/notices.ts";
import { navigate } from "../state/router.ts";
import { useStore } from "../state/store.ts";
import { startTimes } from "../sessions/start_times.ts";
import { Banner, Button, Card, Facts, Failure, Link, Loading, PageHeading, Table } from "../ui/basics.tsx";
import { Confirm } from "../ui/dialog.tsx";
import { ClusterBadge } from "../ui/status.tsx";

type Action = "activate" | "drain" | "delete" | null;

export function ClusterPage(props: { name: string }) {
  const path = `clusters/${encodeURIComponent(props.name)}`;
  const [loaded, reload] = useLoad(path, (signal) => api.get<Cluster>(path, { signal }));
  const [action, setAction] = useState<Action>(null);
  const cluster = loaded.state === "ready" ? loaded.data : null;
  const admin = isPlatformAdmin();
  return (
    <>
      <PageHeading title={props.name} above={<Link class="up" to="clusters">Clusters</Link>} below={cluster ? <ClusterBadge status={cluster.status} /> : null}>
        {cluster && admin && !cluster.managed_by_config ? (
          <Link class="button plain" to={`${path}/edit`}>
            Edit
          </Link>
        ) : null}
        {cluster && admin && cluster.status === "active" ? <Button onClick={() => setAction("drain")}>Drain</Button> : null}
        {cluster && admin && cluster.status !== "active" ? <Button onClick={() => setAction("activate")}>Activate</Button> : null}
        {cluster && admin && !cluster.managed_by_config && cluster.status === "draining" ? (
          <Button kind="danger" onClick={() => setAction("delete")}>
            Delete
          </Button>
        ) : null}
        {cluster?.status === "active" ? (
          <Link class="button primary" to={`sessions/new?cluster=${encodeURIComponent(cluster.name)}`}>
            Create session
          </Link>
        ) : null}
      </PageHeading>
      {loaded.state === "loading" ? <Loading what="the cluster" /> : null}
      {loaded.state === "error" ? <Failure error={loaded.error} what="this cluster" retry={reload} back={{ to: "clusters", text: "Back to Clusters" }} /> : null}
      {cluster ? <Definition cluster={cluster} /> : null}
      {cluster && action ? <ActionDialog cluster={cluster} action={action} onClose={() => setAction(null)} onDone={reload} /> : null}
    </>
  );
}

function Definition(props: { cluster: Cluster }) {
  const { cluster } = props;
  useEffect(() => shareLiveStream(), []);
  const mine = useStore(liveSessions).sessions.filter((session) => session.cluster === cluster.name);
  const start = startTimes(mine)[0];
  const time = (duration: string | null, fallback: string) => {
    const value = seconds(duration);
    return value === null ? `${fallback} (default)` : span(value);
  };
  return (
    <>
      {cluster.managed_by_config ? <Banner kind="info">This cluster is declared in the configuration of session-manager; change it there.</Banner> : null}
      {cluster.status === "draining" ? <Banner kind="warning">This cluster accepts no new sessions. Its sessions keep their own end times.</Banner> : null}
      <div class="two">
        <Card title="Engine">
          <Facts
            items={[
              ["Engine", engineName(cluster.engine, cluster.engine_version)],
              ["Client versions", cluster.client_versions.join(", ") || "not declared"],
              ["Open to", cluster.granted_orgs.join(", ") || "every organization"],
              ["Provider", provider(cluster)],
              ["Live sessions that you can see", <Link to={`sessions?cluster=${encodeURIComponent(cluster.name)}`}>{count(mine.length)}</Link>],
              ["Average start", start ? shortSpan(start.average) : "no start to measure yet"],
            ]}
          />
        </Card>
        <Card title="Times of its sessions">
          <Facts
            items={[
              ["Idle after", time(cluster.idle_timeout, "15 min")],
              ["Closed when idle for", time(cluster.close_after_idle, "1 h")],
              ["Closed at the latest after", time(cluster.max_lifetime, "24 h")],
              ["Ready within", time(cluster.provisioning_deadline, "2 min")],
              ["Idle compute is", { release: "released", keep: "kept" }[cluster.idle_policy] ?? "as the engine needs it"],
            ]}
          />
        </Card>
      </div>
      <Profiles cluster={cluster} />
      <WarmPools pools={pools(cluster)} />
    </>
  );
}

function provider(cluster: Cluster): string {
  const [kind] = Object.entries(cluster.provider ?? {}).find(([, value]) => value !== null) ?? [];
  const names: Record<string, string> = { static: "existing servers", process: "one process per session", kubernetes: "Kubernetes pods" };
  return kind ? (names[kind] ?? kind) : "visible to platform admins";
}

function pools(cluster: Cluster): WarmPool[] {
  return Object.values(cluster.provider ?? {}).flatMap((value) => value?.warm_pools ?? []);
}

function Profiles(props: { cluster: Cluster }) {
  const { profiles } = props.cluster;
  if (profiles.length === 0) return null;
  return (
    <Card title="Sizes">
      <Table label="Sizes" head={["Name", "CPU", "Memory", ""].map((name) => <th scope="col">{name || <span class="offscreen">Default</span>}</th>)}>
        {profiles.map((profile) => (
          <tr key={profile.name}>
            <td>{profile.name}</td>
            <td>{profile.cpu}</td>
            <td>{profile.memory}</td>
            <td>{profile.default ? "default" : ""}</td>
          </tr>
        ))}
      </Table>
    </Card>
  );
}

function WarmPools(props: { pools: WarmPool[] }) {
  if (props.pools.length === 0) return null;
  return (
    <Card title="Warm pods" hint="Ready without a session; a new session takes one at once.">
      <Table label="Warm pods" head={["Catalog", "Ready", "Starting", "State"].map((name) => <th scope="col">{name}</th>)}>
        {props.pools.map((pool) => (
          <tr key={pool.catalog}>
            <td>{pool.catalog || "none"}</td>
            <td>{pool.available}</td>
            <td>{pool.starting}</td>
            <td>{pool.stopped || "refilled"}</td>
          </tr>
        ))}
      </Table>
    </Card>
  );
}

const WORDS = {
  activate: { title: "Activate cluster", text: "It accepts new sessions again.", done: "The cluster accepts sessions." },
  drain: { title: "Drain cluster", text: "It accepts no new sessions. Existing ones keep their own end times, and wake from idle as before.", done: "The cluster is draining." },
  delete: { title: "Delete cluster", text: "Its definition is removed. This is rejected while it has sessions.", done: "The cluster is deleted." },
};

function ActionDialog(props: { cluster: Cluster; action: Exclude<Action, null>; onClose: () => void; onDone: () => void }) {
  const { cluster, action } = props;
  const words = WORDS[action];
  const path = `clusters/${encodeURIComponent(cluster.name)}`;
  const run = async () => {
    if (action === "drain") await api.post(`${path}:drain`);
    else if (action === "activate") await api.send("PATCH", path, { body: { status: "active", version: cluster.version } });
    else await api.send("DELETE", path);
    notify("done", words.done);
    if (action === "delete") navigate("clusters");
    else props.onDone();
  };
  return (
    <Confirm title={words.title} action={words.title} danger={action === "delete"} typed={action === "delete" ? cluster.name : ""} onClose={props.onClose} onConfirm={run}>
      <p>
        <strong>{cluster.name}</strong>: {words.text}
      </p>
    </Confirm>
  );
}
