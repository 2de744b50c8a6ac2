// Clusters: where sessions run.
import { useEffect } from "preact/hooks";
import { api } from "../api/client.ts";
import type { Cluster, Session } from "../api/types.ts";
import { count, engineName, plural, shortSpan } from "../format.ts";
import { isPlatformAdmin } from "../state/auth.ts";
import { liveSessions, shareLiveStream } from "../state/live_sessions.ts";
import { useLoad } from "../state/load.ts";
import { useStore } from "../state/store.ts";
import { startTimes } from "../sessions/start_times.ts";
import { Empty, Failure, Link, Loading, PageHeading } from "../ui/basics.tsx";
import { ClusterBadge } from "../ui/status.tsx";

export function ClustersPage() {
  useEffect(() => shareLiveStream(), []);
  const live = useStore(liveSessions);
  const [clusters, reload] = useLoad("clusters", async (signal) => (await api.get<{ clusters: Cluster[] }>("clusters", { signal })).clusters);
  return (
    <>
      <PageHeading title="Clusters">
        {isPlatformAdmin() ? (
          <Link class="button primary" to="new-cluster">
            Create cluster
          </Link>
        ) : null}
      </PageHeading>
      {clusters.state === "loading" ? <Loading what="clusters" /> : null}
      {clusters.state === "error" ? <Failure error={clusters.error} what="the clusters" retry={reload} /> : null}
      {clusters.state === "ready" && clusters.data.length === 0 ? (
        <Empty icon="clusters" title="No clusters">
          Sessions run on clusters. A platform admin creates one here, in the configuration of session-manager, or with <code>berth cluster create</code>.
        </Empty>
      ) : null}
      {clusters.state === "ready" ? (
        <ul class="tiles">
          {clusters.data.map((cluster) => (
            <ClusterTile key={cluster.name} cluster={cluster} sessions={live.sessions} />
          ))}
        </ul>
      ) : null}
    </>
  );
}

function ClusterTile(props: { cluster: Cluster; sessions: readonly Session[] }) {
  const { cluster } = props;
  const mine = props.sessions.filter((session) => session.cluster === cluster.name);
  const start = startTimes(mine)[0];
  return (
    <li class="card tile">
      <div class="card-head">
        <h2>
          <Link to={`clusters/${encodeURIComponent(cluster.name)}`}>{cluster.name}</Link>
        </h2>
        <ClusterBadge status={cluster.status} />
      </div>
      <p class="muted">{engineName(cluster.engine, cluster.engine_version)}</p>
      <ul class="figures compact">
        <li>
          <span class="figure-value">{count(mine.length)}</span> <span class="figure-name">live {mine.length === 1 ? "session" : "sessions"} that you can see</span>
        </li>
        {start ? (
          <li>
            <span class="figure-value">{shortSpan(start.average)}</span> <span class="figure-name">average start of {plural(start.starts, "session")}</span>
          </li>
        ) : null}
      </ul>
    </li>
  );
}
