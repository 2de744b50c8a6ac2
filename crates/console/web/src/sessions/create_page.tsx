// Create session: a cluster, and everything else has a default.
import { useEffect, useRef, useState } from "preact/hooks";
import { api, ApiError } from "../api/client.ts";
import type { Catalog, Cluster, Session } from "../api/types.ts";
import { engineName, seconds, span } from "../format.ts";
import { principal } from "../state/auth.ts";
import { useLoad } from "../state/load.ts";
import { errorText } from "../state/notices.ts";
import { navigate, place } from "../state/router.ts";
import { Banner, Button, Card, Empty, Failure, Link, Loading, PageHeading } from "../ui/basics.tsx";
import { DurationField, labelMap, PairsField, SelectField, TextField } from "../ui/form.tsx";
import { ClusterBadge } from "../ui/status.tsx";

interface Choices {
  clusters: Cluster[];
  catalogs: Catalog[];
}

export function CreatePage() {
  const [choices, reload] = useLoad<Choices>("create", async (signal) => {
    const [clusters, catalogs] = await Promise.all([
      api.get<{ clusters: Cluster[] }>("clusters", { signal }),
      api.get<{ catalogs: Catalog[] }>("catalogs", { signal, query: { page_size: "1000" } }),
    ]);
    return { clusters: clusters.clusters, catalogs: catalogs.catalogs };
  });
  return (
    <>
      <PageHeading title="Create session" above={<Link class="up" to="sessions">Sessions</Link>} />
      {choices.state === "loading" ? <Loading what="clusters" /> : null}
      {choices.state === "error" ? <Failure error={choices.error} what="the clusters" retry={reload} back={{ to: "sessions", text: "Back to Sessions" }} /> : null}
      {choices.state === "ready" ? (
        choices.data.clusters.length > 0 ? (
          <CreateForm {...choices.data} />
        ) : (
          <Empty icon="clusters" title="No cluster is open to you" action={<Link class="button plain" to="clusters">Go to Clusters</Link>}>
            A session runs on a cluster. Ask your platform team to declare one and to grant it to your organization.
          </Empty>
        )
      ) : null}
    </>
  );
}

interface Values {
  cluster: string;
  profile: string;
  catalog: string;
  name: string;
  team: string;
  labels: [string, string][];
  idle_timeout: string;
  close_after_idle: string;
  max_lifetime: string;
}

function firstValues(clusters: Cluster[]): Values {
  const wanted = place.get().query.get("cluster");
  const open = clusters.filter((cluster) => cluster.status === "active");
  const cluster = open.find((each) => each.name === wanted) ?? open[0];
  return { cluster: cluster?.name ?? "", profile: "", catalog: "", name: "", team: "", labels: [], idle_timeout: "", close_after_idle: "", max_lifetime: "" };
}

/** The body of the request; only what the user chose. */
function requestBody(values: Values): Record<string, unknown> {
  const body: Record<string, unknown> = { cluster: values.cluster };
  for (const field of ["profile", "catalog", "team"] as const) if (values[field] !== "") body[field] = values[field];
  if (values.name.trim() !== "") body["name"] = values.name.trim();
  const labels = labelMap(values.labels);
  if (Object.keys(labels).length > 0) body["labels"] = labels;
  for (const field of ["idle_timeout", "close_after_idle", "max_lifetime"] as const) if (values[field] !== "") body[field] = `${values[field]}s`;
  return body;
}

function CreateForm(props: Choices) {
  const [values, setValues] = useState(() => firstValues(props.clusters));
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const summary = useRef<HTMLDivElement>(null);
  // The same request for a repeated submit: a lost answer makes no second session.
  const request = useRef({ body: "", key: "" });
  const set = (change: Partial<Values>) => setValues((old) => ({ ...old, ...change }));
  const cluster = props.clusters.find((each) => each.name === values.cluster);
  useEffect(() => {
    if (error) summary.current?.focus();
  }, [error]);

  const submit = async (event: Event) => {
    event.preventDefault();
    if (busy) return;
    const body = requestBody(values);
    const text = JSON.stringify(body);
    if (request.current.body !== text) request.current = { body: text, key: randomKey() };
    setBusy(true);
    setError(null);
    try {
      const session = await api.post<Session>("sessions", body, { headers: { "idempotency-key": request.current.key } });
      navigate(`sessions/${session.id}`);
    } catch (cause) {
      setError(cause);
      setBusy(false);
    }
  };
  const fieldError = (name: string) => (error instanceof ApiError && error.field.split(/[.[]/)[0] === name ? error.message : undefined);
  return (
    <form class="create" onSubmit={submit} noValidate>
      {error ? (
        <div ref={summary} tabIndex={-1}>
          <Banner kind="error" title="The session was not created" live>
            {errorText(error)}
          </Banner>
        </div>
      ) : null}
      <Card title="Where it runs">
        <ClusterChoice clusters={props.clusters} value={values.cluster} error={fieldError("cluster")} onValue={(name) => set({ cluster: name, profile: "", catalog: "" })} />
        {cluster && cluster.profiles.length > 0 ? <ProfileChoice cluster={cluster} value={values.profile} error={fieldError("profile")} onValue={(profile) => set({ profile })} /> : null}
        <CatalogChoice catalogs={props.catalogs} engine={cluster?.engine ?? ""} value={values.catalog} error={fieldError("catalog")} onValue={(catalog) => set({ catalog })} />
      </Card>
      <Card title="How you find it again">
        <TextField label="Name" name="name" optional value={values.name} maxLength={128} error={fieldError("name")} placeholder="For example: churn report" onValue={(name) => set({ name })} />
        <PairsField legend="Labels" noun="label" optional value={values.labels} max={32} error={fieldError("labels")} onValue={(labels) => set({ labels })} />
        <TeamChoice value={values.team} error={fieldError("team")} onValue={(team) => set({ team })} />
      </Card>
      <Timeouts cluster={cluster} values={values} set={set} fieldError={fieldError} />
      <div class="form-actions">
        <Button kind="primary" type="submit" busy={busy} disabled={values.cluster === ""}>
          Create session
        </Button>
        <Link class="button plain" to="sessions">
          Cancel
        </Link>
      </div>
    </form>
  );
}

function ClusterChoice(props: { clusters: Cluster[]; value: string; error: string | undefined; onValue: (name: string) => void }) {
  return (
    <fieldset class="choices">
      <legend>Cluster</legend>
      <div class="choice-list">
        {props.clusters.map((cluster) => (
          <label key={cluster.name} class={`choice${cluster.status === "active" ? "" : " disabled"}`}>
            <input type="radio" name="cluster" value={cluster.name} checked={props.value === cluster.name} disabled={cluster.status !== "active"} onChange={() => props.onValue(cluster.name)} />
            <span class="choice-text">
              <strong>{cluster.name}</strong>
              <span class="muted">{engineName(cluster.engine, cluster.engine_version)}</span>
            </span>
            {cluster.status === "active" ? null : <ClusterBadge status={cluster.status} />}
          </label>
        ))}
      </div>
      {props.error ? <p class="field-error">{props.error}</p> : null}
    </fieldset>
  );
}

function ProfileChoice(props: { cluster: Cluster; value: string; error: string | undefined; onValue: (name: string) => void }) {
  const standard = props.cluster.profiles.find((profile) => profile.default);
  return (
    <fieldset class="choices">
      <legend>Size</legend>
      <div class="choice-list">
        {props.cluster.profiles.map((profile) => (
          <label key={profile.name} class="choice">
            <input type="radio" name="profile" value={profile.name} checked={(props.value || standard?.name) === profile.name} onChange={() => props.onValue(profile.name)} />
            <span class="choice-text">
              <strong>{profile.name}</strong>
              <span class="muted">
                {profile.cpu} CPU, {profile.memory} memory
              </span>
            </span>
          </label>
        ))}
      </div>
      {props.error ? <p class="field-error">{props.error}</p> : null}
    </fieldset>
  );
}

function CatalogChoice(props: { catalogs: Catalog[]; engine: string; value: string; error: string | undefined; onValue: (name: string) => void }) {
  const fitting = props.catalogs.filter((catalog) => catalog.engine === props.engine);
  return (
    <SelectField
      label="Catalog"
      name="catalog"
      value={props.value}
      error={props.error}
      hint="The current catalog of the session. It is tested by a real query before the session is ready."
      options={[["", fitting.length > 0 ? "None" : "None (no catalog for this engine)"], ...fitting.map((catalog): [string, string] => [catalog.name, catalog.name])]}
      onValue={props.onValue}
    />
  );
}

function TeamChoice(props: { value: string; error: string | undefined; onValue: (team: string) => void }) {
  const teams = principal().teams ?? [];
  if (teams.length === 0) return null;
  return (
    <SelectField label="Team" name="team" value={props.value} error={props.error} hint="Its admins can see and close the session." options={[["", "None"], ...teams.map((team): [string, string] => [team, team])]} onValue={props.onValue} />
  );
}

const MINUTE = 60;
const HOUR = 3600;
const DAY = 86_400;

function Timeouts(props: { cluster: Cluster | undefined; values: Values; set: (change: Partial<Values>) => void; fieldError: (name: string) => string | undefined }) {
  const { cluster, values, set, fieldError } = props;
  const standard = (duration: string | null | undefined, fallback: number) => `Cluster default (${span(seconds(duration) ?? fallback)})`;
  return (
    <Card title="When it ends">
      <div class="columns">
        <DurationField
          label="Idle after"
          name="idle_timeout"
          value={values.idle_timeout}
          standard={standard(cluster?.idle_timeout, 15 * MINUTE)}
          presets={[[10 * MINUTE, "10 min"], [30 * MINUTE, "30 min"], [HOUR, "1 h"], [4 * HOUR, "4 h"], [8 * HOUR, "8 h"]]}
          hint="Time without calls. The next query wakes it."
          error={fieldError("idle_timeout")}
          onValue={(idle_timeout) => set({ idle_timeout })}
        />
        <DurationField
          label="Close when idle for"
          name="close_after_idle"
          value={values.close_after_idle}
          standard={standard(cluster?.close_after_idle, HOUR)}
          presets={[[15 * MINUTE, "15 min"], [HOUR, "1 h"], [4 * HOUR, "4 h"], [12 * HOUR, "12 h"], [DAY, "24 h"]]}
          hint="An idle session is closed after this time."
          error={fieldError("close_after_idle")}
          onValue={(close_after_idle) => set({ close_after_idle })}
        />
        <DurationField
          label="Close at the latest after"
          name="max_lifetime"
          value={values.max_lifetime}
          standard={standard(cluster?.max_lifetime, DAY)}
          presets={[[HOUR, "1 h"], [8 * HOUR, "8 h"], [DAY, "24 h"], [3 * DAY, "3 d"], [7 * DAY, "7 d"]]}
          hint="You can extend it later, up to 7 days."
          error={fieldError("max_lifetime")}
          onValue={(max_lifetime) => set({ max_lifetime })}
        />
      </div>
    </Card>
  );
}

function randomKey(): string {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
