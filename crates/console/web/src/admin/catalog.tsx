// One catalog, and a test of its connection.
import { useState } from "preact/hooks";
import { api } from "../api/client.ts";
import type { Catalog, Cluster } from "../api/types.ts";
import { engineName } from "../format.ts";
import { mayWriteCatalogs } from "../state/auth.ts";
import { useLoad } from "../state/load.ts";
import { announce, errorText, notify } from "../state/notices.ts";
import { navigate } from "../state/router.ts";
import { Banner, Button, Card, Facts, Failure, Link, Loading, PageHeading, Table } from "../ui/basics.tsx";
import { Confirm } from "../ui/dialog.tsx";
import { SelectField } from "../ui/form.tsx";

export function CatalogPage(props: { name: string }) {
  const path = `catalogs/${encodeURIComponent(props.name)}`;
  const [loaded, reload] = useLoad(path, (signal) => api.get<Catalog>(path, { signal }));
  const [deleting, setDeleting] = useState(false);
  const catalog = loaded.state === "ready" ? loaded.data : null;
  return (
    <>
      <PageHeading title={props.name} above={<Link class="up" to="catalogs">Catalogs</Link>}>
        {catalog && mayWriteCatalogs() && !catalog.managed_by_config ? (
          <>
            <Button kind="danger" onClick={() => setDeleting(true)}>
              Delete
            </Button>
            <Link class="button plain" to={`${path}/edit`}>
              Edit
            </Link>
          </>
        ) : null}
      </PageHeading>
      {loaded.state === "loading" ? <Loading what="the catalog" /> : null}
      {loaded.state === "error" ? <Failure error={loaded.error} what="this catalog" retry={reload} back={{ to: "catalogs", text: "Back to Catalogs" }} /> : null}
      {catalog ? (
        <>
          {catalog.managed_by_config ? <Banner kind="info">This catalog is declared in the configuration of session-manager; change it there.</Banner> : null}
          <div class="two">
            <Card title="Definition">
              <Facts
                items={[
                  ["Organization", catalog.org],
                  ["Engine", engineName(catalog.engine)],
                  ["Default database", catalog.default_database || "default of the engine"],
                  ["Open to", catalog.allowed_teams.join(", ") || "everybody in the organization"],
                ]}
              />
            </Card>
            <Test catalog={catalog} />
          </div>
          <Properties properties={catalog.properties} />
        </>
      ) : null}
      {catalog && deleting ? <Delete catalog={catalog} onClose={() => setDeleting(false)} /> : null}
    </>
  );
}

function Delete(props: { catalog: Catalog; onClose: () => void }) {
  const { name } = props.catalog;
  const run = async () => {
    await api.send("DELETE", `catalogs/${encodeURIComponent(name)}`);
    notify("done", "The catalog is deleted.");
    navigate("catalogs");
  };
  return (
    <Confirm title="Delete catalog" action="Delete catalog" danger typed={name} onClose={props.onClose} onConfirm={run}>
      <p>
        <strong>{name}</strong>: its definition is removed, not the data. This is rejected while live sessions use it.
      </p>
    </Confirm>
  );
}

function Properties(props: { properties: Catalog["properties"] }) {
  const items = Object.entries(props.properties).sort(([a], [b]) => a.localeCompare(b));
  if (items.length === 0) return null;
  return (
    <Card title="Properties">
      <Table label="Properties" head={["Name", "Value"].map((name) => <th scope="col">{name}</th>)}>
        {items.map(([name, value]) => (
          <tr key={name}>
            <td class="mono">{name}</td>
            <td class="mono">{Array.isArray(value) ? value.join(", ") : (value ?? "")}</td>
          </tr>
        ))}
      </Table>
    </Card>
  );
}

type Result = { state: "none" } | { state: "running" } | { state: "done"; usable: boolean; message: string };

function Test(props: { catalog: Catalog }) {
  const { catalog } = props;
  const [clusters] = useLoad("clusters", async (signal) => (await api.get<{ clusters: Cluster[] }>("clusters", { signal })).clusters);
  const [chosen, setChosen] = useState("");
  const [result, setResult] = useState<Result>({ state: "none" });
  if (!mayWriteCatalogs()) {
    return (
      <Card title="Test connection">
        <p class="muted">Admins of the organization can test a catalog. Every session also tests it before it is ready.</p>
      </Card>
    );
  }
  const fitting = clusters.state === "ready" ? clusters.data.filter((cluster) => cluster.engine === catalog.engine && cluster.status === "active") : [];
  const cluster = chosen || fitting[0]?.name || "";
  const run = async () => {
    setResult({ state: "running" });
    announce(`Testing ${catalog.name} on ${cluster}`);
    try {
      const reply = await api.post<{ usable: boolean; message: string }>(`catalogs/${encodeURIComponent(catalog.name)}:test`, { cluster });
      setResult({ state: "done", ...reply });
    } catch (error) {
      setResult({ state: "done", usable: false, message: errorText(error) });
    }
  };
  return (
    <Card title="Test connection" hint="Uses the catalog as a new session would, and releases everything afterwards. Takes up to 75 seconds.">
      {clusters.state === "ready" && fitting.length === 0 ? (
        <p class="muted">No active cluster has the engine {engineName(catalog.engine)}.</p>
      ) : (
        <>
          <SelectField label="On cluster" name="cluster" value={cluster} options={fitting.map((each): [string, string] => [each.name, each.name])} onValue={setChosen} />
          <div class="form-actions">
            <Button kind="primary" busy={result.state === "running"} disabled={cluster === ""} onClick={run}>
              Test connection
            </Button>
          </div>
        </>
      )}
      <div aria-live="polite">
        {result.state === "running" ? <p class="muted">An engine starts and runs a query; please wait.</p> : null}
        {result.state === "done" ? (
          <Banner kind={result.usable ? "done" : "error"} title={result.usable ? "The catalog can be used" : "The catalog cannot be used"}>
            <p class="message">{result.message}</p>
          </Banner>
        ) : null}
      </div>
    </Card>
  );
}
