// Create and change a catalog: for admins of the organization.
import { useState } from "preact/hooks";
import { api } from "../api/client.ts";
import type { Catalog } from "../api/types.ts";
import { mayWriteCatalogs } from "../state/auth.ts";
import { useLoad } from "../state/load.ts";
import { Banner, Card, Failure, Link, Loading, PageHeading } from "../ui/basics.tsx";
import { type Pairs, PairsField, SelectField, TextField } from "../ui/form.tsx";
import { DefinitionForm, NoPermission } from "./definition_form.tsx";
import { type JsonObject, mergePatch } from "./merge_patch.ts";
import { otherProblems, problemAt } from "./problems.ts";
import { listOf, pairsOf, propertiesOf } from "./values.ts";

const MAX_PROPERTIES = 256;
const BACK = { to: "catalogs", text: "Back to Catalogs" };
const UP = (
  <Link class="up" to="catalogs">
    Catalogs
  </Link>
);

export function NewCatalogPage() {
  if (!mayWriteCatalogs()) return <NoPermission title="Create catalog" what="create catalogs" who="Admins of your organization" back={BACK} />;
  return (
    <>
      <PageHeading title="Create catalog" above={UP} />
      <CatalogForm catalog={null} />
    </>
  );
}

export function EditCatalogPage(props: { name: string }) {
  const path = `catalogs/${encodeURIComponent(props.name)}`;
  const [loaded, reload] = useLoad(path, (signal) => api.get<Catalog>(path, { signal }));
  const title = `Edit catalog ${props.name}`;
  if (!mayWriteCatalogs()) return <NoPermission title={title} what="change catalogs" who="Admins of your organization" back={BACK} />;
  return (
    <>
      <PageHeading title={title} above={UP} />
      {loaded.state === "loading" ? <Loading what="the catalog" /> : null}
      {loaded.state === "error" ? <Failure error={loaded.error} what="this catalog" retry={reload} back={BACK} /> : null}
      {loaded.state === "ready" && loaded.data.managed_by_config ? <Banner kind="info">This catalog is declared in the configuration of session-manager; change it there.</Banner> : null}
      {loaded.state === "ready" && !loaded.data.managed_by_config ? <CatalogForm catalog={loaded.data} /> : null}
    </>
  );
}

interface Values {
  name: string;
  engine: string;
  database: string;
  properties: Pairs;
  teams: string;
}

function valuesOf(catalog: Catalog | null): Values {
  if (!catalog) return { name: "", engine: "sail", database: "", properties: [["type", ""]], teams: "" };
  return { name: catalog.name, engine: catalog.engine, database: catalog.default_database, properties: pairsOf(catalog.properties), teams: catalog.allowed_teams.join(", ") };
}

/** The part of the definition that the form has. */
function definitionOf(values: Values): JsonObject {
  return {
    name: values.name.trim(),
    engine: values.engine,
    default_database: values.database.trim(),
    properties: propertiesOf(values.properties, true),
    allowed_teams: listOf(values.teams),
  };
}

const FIELDS = ["name", "engine", "default_database", "allowed_teams"];

function CatalogForm(props: { catalog: Catalog | null }) {
  const { catalog } = props;
  const [values, setValues] = useState(() => valuesOf(catalog));
  const set = (change: Partial<Values>) => setValues((old) => ({ ...old, ...change }));
  const send = async () => {
    const after = definitionOf(values);
    if (!catalog) {
      const made = await api.post<Catalog>("catalogs", after);
      return { page: `catalogs/${encodeURIComponent(made.name)}`, done: "The catalog is created. Test its connection." };
    }
    const path = `catalogs/${encodeURIComponent(catalog.name)}`;
    const patch = mergePatch(definitionOf(valuesOf(catalog)), after);
    await api.send("PATCH", path, { body: { ...patch, version: catalog.version } });
    return { page: path, done: "The catalog is changed. New compute uses it." };
  };
  return (
    <DefinitionForm
      action={catalog ? "Save catalog" : "Create catalog"}
      failed={catalog ? "The catalog was not changed" : "The catalog was not created"}
      send={send}
      cancel={catalog ? `catalogs/${encodeURIComponent(catalog.name)}` : "catalogs"}
    >
      {(problems) => (
        <>
          <Card title="Catalog">
            {catalog ? null : <TextField label="Name" name="name" value={values.name} mono error={problemAt(problems, "name")} hint="Small letters, digits and -, at most 63; also its name in SQL." onValue={(name) => set({ name })} />}
            <SelectField label="Engine" name="engine" value={values.engine} error={problemAt(problems, "engine")} options={[["sail", "Sail"], ["spark", "Apache Spark"]]} onValue={(engine) => set({ engine })} />
            <TextField label="Default database" name="default_database" optional value={values.database} mono error={problemAt(problems, "default_database")} hint="The current database of a new session." onValue={(database) => set({ database })} />
            <TextField label="Open to teams" name="allowed_teams" optional value={values.teams} error={problemAt(problems, "allowed_teams")} hint="Names with commas between them; everybody in the organization if empty." onValue={(teams) => set({ teams })} />
          </Card>
          <Card title="Properties">
            <PairsField
              legend="Names and values"
              noun="property"
              value={values.properties}
              max={MAX_PROPERTIES}
              hint={
                values.engine === "sail" ? (
                  <>
                    Sail needs <code>type</code>, for example <code>memory</code> or <code>iceberg-rest</code>. A list is written as <code>["a", "b"]</code>. Secrets are named, not written: see the documentation of catalogs.
                  </>
                ) : (
                  <>
                    The property without a name is the class, for example <code>org.apache.iceberg.spark.SparkCatalog</code>. Secrets are named, not written: see the documentation of catalogs.
                  </>
                )
              }
              error={otherProblems(problems, FIELDS)}
              onValue={(properties) => set({ properties })}
            />
          </Card>
        </>
      )}
    </DefinitionForm>
  );
}
