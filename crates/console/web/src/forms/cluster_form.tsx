// Create and change a cluster: for platform admins.
import { useState } from "preact/hooks";
import { api } from "../api/client.ts";
import type { Cluster } from "../api/types.ts";
import { isPlatformAdmin } from "../state/auth.ts";
import { useLoad } from "../state/load.ts";
import { Banner, Card, Failure, Link, Loading, PageHeading } from "../ui/basics.tsx";
import { CheckField, DurationField, SelectField, TextField } from "../ui/form.tsx";
import { clusterDefinition, clusterValues, type ClusterValues, emptyCluster, TIMES, type TimeField } from "./cluster_values.ts";
import { DefinitionForm, NoPermission } from "./definition_form.tsx";
import { mergePatch } from "./merge_patch.ts";
import { problemAt, type Problems } from "./problems.ts";
import { PROVIDER_FIELDS, ProviderCard } from "./provider_card.tsx";

const BACK = { to: "clusters", text: "Back to Clusters" };
const UP = (
  <Link class="up" to="clusters">
    Clusters
  </Link>
);

export function NewClusterPage() {
  if (!isPlatformAdmin()) return <NoPermission title="Create cluster" what="create clusters" who="Platform admins" back={BACK} />;
  return (
    <>
      <PageHeading title="Create cluster" above={UP} />
      <ClusterForm cluster={null} />
    </>
  );
}

export function EditClusterPage(props: { name: string }) {
  const path = `clusters/${encodeURIComponent(props.name)}`;
  const [loaded, reload] = useLoad(path, (signal) => api.get<Cluster>(path, { signal }));
  const title = `Edit cluster ${props.name}`;
  if (!isPlatformAdmin()) return <NoPermission title={title} what="change clusters" who="Platform admins" back={BACK} />;
  return (
    <>
      <PageHeading title={title} above={UP} />
      {loaded.state === "loading" ? <Loading what="the cluster" /> : null}
      {loaded.state === "error" ? <Failure error={loaded.error} what="this cluster" retry={reload} back={BACK} /> : null}
      {loaded.state === "ready" && loaded.data.managed_by_config ? <Banner kind="info">This cluster is declared in the configuration of session-manager; change it there.</Banner> : null}
      {loaded.state === "ready" && !loaded.data.managed_by_config ? <ClusterForm cluster={loaded.data} /> : null}
    </>
  );
}

/** Sends the form; a text that is not JSON is an error of its field, like those of the API. */
async function sendCluster(cluster: Cluster | null, values: ClusterValues): Promise<{ page: string; done: string }> {
  const after = clusterDefinition(values);
  if (!cluster) {
    const made = await api.post<Cluster>("clusters", { ...after, ...(values.pending ? { status: "pending" } : {}) });
    return { page: `clusters/${encodeURIComponent(made.name)}`, done: values.pending ? "The cluster is created. Activate it when it may accept sessions." : "The cluster is created and accepts sessions." };
  }
  const path = `clusters/${encodeURIComponent(cluster.name)}`;
  const patch = mergePatch(clusterDefinition(clusterValues(cluster)), after);
  await api.send("PATCH", path, { body: { ...patch, version: cluster.version } });
  return { page: path, done: "The cluster is changed. New sessions and new compute use it." };
}

export interface PartProps {
  values: ClusterValues;
  set: (change: Partial<ClusterValues>) => void;
  problems: Problems;
}

function ClusterForm(props: { cluster: Cluster | null }) {
  const { cluster } = props;
  const [values, setValues] = useState(() => (cluster ? clusterValues(cluster) : emptyCluster()));
  const set = (change: Partial<ClusterValues>) => setValues((old) => ({ ...old, ...change }));
  return (
    <DefinitionForm
      action={cluster ? "Save cluster" : "Create cluster"}
      failed={cluster ? "The cluster was not changed" : "The cluster was not created"}
      send={() => sendCluster(cluster, values)}
      cancel={cluster ? `clusters/${encodeURIComponent(cluster.name)}` : "clusters"}
    >
      {(problems) => (
        <>
          <ClusterCard values={values} set={set} problems={problems} isNew={!cluster} />
          <ProviderCard values={values} set={set} problems={problems} isNew={!cluster} others={[...CLUSTER_FIELDS, ...PROVIDER_FIELDS]} />
          <TimesCard values={values} set={set} problems={problems} />
        </>
      )}
    </DefinitionForm>
  );
}

/** Fields outside of the provider. */
const CLUSTER_FIELDS = ["name", "engine", "engine_version", "client_versions", "granted_orgs", "idle_policy", "wake", ...TIMES];

function ClusterCard(props: PartProps & { isNew: boolean }) {
  const { values, set, problems, isNew } = props;
  return (
    <Card title="Cluster">
      {isNew ? <TextField label="Name" name="name" value={values.name} mono error={problemAt(problems, "name")} hint="Small letters, digits and -, at most 63." onValue={(name) => set({ name })} /> : null}
      {isNew ? <SelectField label="Engine" name="engine" value={values.engine} error={problemAt(problems, "engine")} options={[["sail", "Sail"], ["spark", "Apache Spark"]]} onValue={(engine) => set({ engine })} /> : null}
      <div class="columns">
        <TextField label="Version of the engine" name="engine_version" optional value={values.engineVersion} error={problemAt(problems, "engine_version")} hint="For people; for example 4.1.1." onValue={(engineVersion) => set({ engineVersion })} />
        <TextField label="Client versions" name="client_versions" optional value={values.clientVersions} error={problemAt(problems, "client_versions")} hint="With commas between them; for example 4.0, 4.1." onValue={(clientVersions) => set({ clientVersions })} />
        <TextField label="Open to organizations" name="granted_orgs" optional value={values.orgs} error={problemAt(problems, "granted_orgs")} hint="Names with commas between them; every organization if empty." onValue={(orgs) => set({ orgs })} />
      </div>
      {isNew ? <CheckField label="Accept no sessions until it is activated" name="pending" value={values.pending} onValue={(pending) => set({ pending })} /> : null}
    </Card>
  );
}

const MINUTE = 60;
const HOUR = 3600;
const DAY = 86_400;

const TIME_FIELDS: Record<TimeField, { label: string; standard: string; hint: string; presets: [number, string][] }> = {
  idle_timeout: { label: "Idle after", standard: "Default (15 min)", hint: "Time without calls, unless a session says otherwise.", presets: [[10 * MINUTE, "10 min"], [30 * MINUTE, "30 min"], [HOUR, "1 h"], [8 * HOUR, "8 h"]] },
  close_after_idle: { label: "Close when idle for", standard: "Default (1 h)", hint: "An idle session is closed after this time.", presets: [[15 * MINUTE, "15 min"], [4 * HOUR, "4 h"], [DAY, "24 h"]] },
  max_lifetime: { label: "Close at the latest after", standard: "Default (24 h)", hint: "From its creation.", presets: [[8 * HOUR, "8 h"], [3 * DAY, "3 d"], [7 * DAY, "7 d"]] },
  provisioning_deadline: { label: "Ready within", standard: "Default (2 min)", hint: "A session whose compute is not ready by then fails.", presets: [[MINUTE, "1 min"], [5 * MINUTE, "5 min"], [10 * MINUTE, "10 min"]] },
};

function TimesCard(props: PartProps) {
  const { values, set, problems } = props;
  return (
    <Card title="Times of its sessions">
      <div class="columns">
        {TIMES.map((field) => {
          const { label, standard, hint, presets } = TIME_FIELDS[field];
          return (
            <DurationField
              key={field}
              label={label}
              name={field}
              value={values.times[field]}
              standard={standard}
              presets={presets}
              hint={hint}
              error={problemAt(problems, field)}
              onValue={(seconds) => set({ times: { ...values.times, [field]: seconds } })}
            />
          );
        })}
        <SelectField
          label="Compute of an idle session"
          name="idle_policy"
          value={values.idlePolicy}
          error={problemAt(problems, "idle_policy")}
          options={[["", "Default of the engine"], ["release", "Released"], ["keep", "Kept"]]}
          onValue={(idlePolicy) => set({ idlePolicy })}
        />
        <SelectField
          label="Spark sessions after compute was replaced"
          name="wake"
          value={values.wake}
          error={problemAt(problems, "wake")}
          options={[["", "Default (settings are applied again)"], ["restore", "Settings are applied again"], ["signal", "Clients get SESSION_CHANGED once"]]}
          onValue={(wake) => set({ wake })}
        />
      </div>
    </Card>
  );
}
